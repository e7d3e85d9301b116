"""What is no message: who is told so, in which words and which version, and how often."""

from __future__ import annotations

import pytest

from iii_zmq import errors, wire
from iii_zmq.core.broker import refusing
from iii_zmq.core.broker.events import EVERYONE, Malformed
from iii_zmq.errors import ProtocolError
from tests.core.brokerage import NIL, Brokerage, leftovers


def malformed(frame: bytes) -> Malformed:
    """As the shell tells it."""
    with pytest.raises(ProtocolError) as raised:
        wire.decode(frame)
    return Malformed(str(raised.value), wire.read_heading(frame))


def frame(kind: int, header: bytes = b"\xc1", *, version: int = wire.VERSION, number: int = 9) -> bytes:
    return wire.PREFIX.pack(wire.MAGIC, version, kind, len(header), number) + header


def answers(*frames: bytes) -> list[wire.Message]:
    broker = Brokerage()
    broker.send("x", *map(malformed, frames))
    assert broker.count("malformed") == [len(frames)]
    return broker.to("x")


# A client of another version waited for its Hello's timeout, and was never told why.


@pytest.mark.parametrize("kind", [wire.KIND[wire.Hello], wire.KIND[wire.Call], 200])
@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_told_so_in_its_own_version(kind: int, version: int) -> None:
    (refuse,) = answers(frame(kind, version=version))
    assert refuse == wire.Refuse(
        9, kind, errors.VERSION, f"this broker speaks version 1 of the protocol, not version {version}", version
    )
    assert wire.encode(refuse)[0][:4] == bytes([*wire.MAGIC, version, wire.KIND[wire.Refuse]])


def test_an_unknown_kind_is_refused() -> None:
    assert answers(frame(99, b"\x90")) == [
        wire.Refuse(9, 99, errors.UNKNOWN_KIND, "this broker knows no message of kind 99")
    ]


@pytest.mark.parametrize("kind", [wire.Hello, wire.Register, wire.Unregister, wire.Sync])
def test_a_malformed_message_that_waits_for_an_answer_is_told_what_is_wrong(kind: type[wire.Hello]) -> None:
    (refuse,) = answers(frame(wire.KIND[kind], b"\x90"))
    expected = f"{kind.__name__} with 0 fields; expected {len(wire.FIELDS[kind])}"
    assert refuse == wire.Refuse(9, wire.KIND[kind], errors.INVALID, expected)


def test_a_malformed_drain_is_told_what_is_wrong() -> None:
    assert answers(frame(wire.KIND[wire.Drain], b"\x80")) == [
        wire.Refuse(9, wire.KIND[wire.Drain], errors.INVALID, "dict where an array is expected")
    ]


def test_a_malformed_call_fails_at_once() -> None:
    assert answers(frame(wire.KIND[wire.Call], b"\x90")) == [
        wire.Failure(9, errors.INVALID, "not_handed_over", "", "Call with 0 fields; expected 6")
    ]


def test_a_malformed_repetition_of_an_open_call_is_no_second_outcome_of_it() -> None:
    broker = Brokerage()
    caller, _ = broker.worker("c"), broker.worker("p", "f")
    broker.send("c", caller.call(9, "f"), malformed(frame(wire.KIND[wire.Call], b"\x90")))
    assert broker.to("c") == []
    broker.send("p", wire.Result(broker.calls("p")[0].number, NIL))
    assert broker.to("c") == [wire.Result(9, NIL)]


@pytest.mark.parametrize("kind", [wire.Heartbeat, wire.Received, wire.Result, wire.Failure, wire.Ack, wire.Welcome])
def test_what_nobody_waits_for_is_only_counted(kind: type[wire.Hello]) -> None:
    assert answers(frame(wire.KIND[kind])) == []


@pytest.mark.parametrize("data", [b"", b"i3\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(40)])
def test_what_is_not_meant_for_us_is_only_counted(data: bytes) -> None:
    assert answers(data) == []


@pytest.mark.parametrize("version", [wire.VERSION, 2])
def test_a_refusal_is_never_refused(version: int) -> None:
    assert answers(frame(wire.KIND[wire.Refuse], version=version)) == []


def test_garbage_on_the_stream_has_nobody_who_could_be_told() -> None:
    broker = Brokerage()
    broker.core.receive(EVERYONE, Malformed("not a subscription"), broker.now)
    broker.turn()
    assert (broker.count("malformed", "refused"), leftovers(broker.core)) == ([1, 0], {})


# One that sends garbage and never reads would have let its answers pile up at the broker.


def test_one_connection_is_refused_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusing, "REFUSALS_MAX", 2)
    broker = Brokerage()
    for peer in ("x", "y"):
        broker.send(peer, *[malformed(frame(99))] * 5)
    assert (len(broker.to("x")), len(broker.to("y"))) == (2, 2)
    assert broker.count("malformed", "refused") == [10, 4]


def test_only_so_many_refused_connections_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusing, "REFUSALS_MAX", 1)
    monkeypatch.setattr(refusing, "REFUSED_PEERS_MAX", 2)
    broker = Brokerage()
    for peer in ("x", "y", "z", "z", "y", "x"):
        broker.send(peer, malformed(frame(99)))
    assert [len(broker.to(peer)) for peer in ("x", "y", "z")] == [2, 1, 1]
    assert len(broker.core._refusing._told) == 2


def test_a_reason_is_cut_to_what_a_text_may_have() -> None:
    broker = Brokerage()
    broker.send("x", Malformed("?" * 9999, wire.Heading(wire.VERSION, wire.KIND[wire.Hello], 1)))
    (refuse,) = broker.to("x")
    assert isinstance(refuse, wire.Refuse)
    assert len(refuse.text) == wire.TEXT_CHARS_MAX
