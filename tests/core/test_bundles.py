"""What leaves together: everything once, in its order, within the limits of a Bundle, and large things alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_zmq import wire
from iii_zmq.core.bundles import PORTION_MIN, PORTIONS, by_peer, packed, portion
from iii_zmq.core.worker.core import WorkerCore
from iii_zmq.core.worker.events import BROKER
from iii_zmq.core.worker.membership import Profile
from iii_zmq.core.worker.shared import SHARED_BYTES_MAX, Shared
from iii_zmq.errors import ProtocolError
from tests.core.brokerage import Brokerage

SMALL = st.builds(wire.Result, st.integers(1, 99), st.binary(min_size=1, max_size=400))
MIDDLE = st.builds(lambda number: wire.Result(number, bytes(9000)), st.integers(1, 99))
LARGE = st.builds(lambda number: wire.Result(number, bytes(wire.INLINE_BYTES_MAX + 1)), st.integers(1, 99))
OTHERS = st.sampled_from([wire.Cancel(5), wire.Drain(6), wire.Failure(7, "busy", "executed", "", ""), wire.Bye(8)])


def opened(frame: bytes, payload: wire.Buffer | None) -> list[wire.Message]:
    message = wire.decode(frame, payload)
    if isinstance(message, wire.Bundle):
        assert len(message.frames) > 1
        return [wire.decode(one) for one in message.frames]
    return [message]


@given(st.lists(SMALL | MIDDLE | LARGE | OTHERS, max_size=200))
def test_everything_arrives_once_and_in_its_order(messages: list[wire.Message]) -> None:
    packets = list(packed(messages))
    assert [one for _, _, carried in packets for one in carried] == messages
    for frame, payload, carried in packets:  # decoding checks the limits
        assert opened(frame, payload) == list(carried)


@given(st.integers(1, 300))
def test_small_ones_leave_in_as_few_bundles_as_may_be(count: int) -> None:
    packets = list(packed([wire.Cancel(number) for number in range(1, count + 1)]))
    assert len(packets) == -(-count // wire.BUNDLE_MAX)


@given(st.integers(0, 5000))
def test_a_callers_bundle_leaves_some_of_its_calls_to_others(open_calls: int) -> None:
    """A hundred calls went round as 64 and 36, and no processor but one was at work at any moment."""
    most = portion(open_calls)
    assert PORTION_MIN <= most <= wire.BUNDLE_MAX
    assert open_calls <= PORTION_MIN or most == PORTION_MIN or most <= open_calls // PORTIONS
    packets = list(packed([wire.Cancel(1)] * open_calls, most))
    assert len(packets) == -(-open_calls // most)


def test_one_message_leaves_as_it_is() -> None:
    result = wire.Result(3, b"\xc0")
    assert list(packed([result])) == [(*wire.encode(result), [result])]


@pytest.mark.parametrize(
    "alone",
    [wire.Result(2, bytes(wire.INLINE_BYTES_MAX + 1)), wire.Result(2, bytes(wire.BUNDLE_BYTES_MAX)), wire.Bye(2)],
)
def test_what_is_large_or_no_call_leaves_alone_between_the_others(alone: wire.Message) -> None:
    before, after = [wire.Cancel(1), wire.Cancel(1)], [wire.Cancel(3), wire.Cancel(3)]
    assert [list(carried) for _, _, carried in packed([*before, alone, *after])] == [before, [alone], after]


@pytest.mark.parametrize("frames", [[b""] * (wire.BUNDLE_MAX + 1), [bytes(wire.BUNDLE_BYTES_MAX), b"\x00"]])
def test_a_bundle_that_is_too_large_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="Bundle of"):
        wire.decode(wire.encode(wire.Bundle(0, frames))[0])


@given(st.lists(st.tuples(st.sampled_from("abc"), SMALL)))
def test_each_peer_is_sent_its_own_in_their_order(outbox: list[tuple[str, wire.Message]]) -> None:
    found = by_peer(outbox)
    assert {to: [one for to_, one in outbox if to_ == to] for to, _ in outbox} == found


def test_only_who_said_so_takes_bundles() -> None:
    broker = Brokerage()
    broker.worker("a")
    broker.send("b", wire.Hello(1, [wire.BUNDLES], "b", "h", 1, b"\x80", 1, False, "", 0, b"", b""))
    assert [broker.core.takes_bundles(peer) for peer in (b"a", b"b", b"nobody")] == [False, True, False]


def test_a_worker_counts_a_bundle_in_a_bundle() -> None:
    core = WorkerCore(Profile("w", "h", 1, "tcp://127.0.0.1:1"), random=lambda: 0.5)
    core.receive(BROKER, wire.Bundle(0, []), 1.0)
    assert core.counted()["unexpected"] == 1


def test_the_workers_of_a_process_decode_a_frame_once() -> None:
    shared = Shared()
    frame = wire.STREAM_TOPIC + wire.encode(wire.Closing(0, "e"))[0]
    first = shared.decode(frame)
    assert first == wire.Closing(0, "e")
    assert shared.decode(bytes(bytearray(frame))) is first
    large = wire.STREAM_TOPIC + wire.encode(wire.Deltas(0, "e", [bytes(SHARED_BYTES_MAX)]))[0]
    assert shared.decode(large) is not shared.decode(large)
    assert shared.decode(frame) is first


def test_a_small_call_with_a_wrong_field_is_refused_like_any_other() -> None:
    header = wire.pack(["f", "w", -1, "", 0, 0])
    with pytest.raises(ProtocolError, match="wrong type"):
        wire.decode(wire.PREFIX.pack(wire.MAGIC, wire.VERSION, wire.KIND[wire.Call], len(header), 1) + header + b"\xc0")
