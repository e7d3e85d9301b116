"""Garbage at a broker's ports: it is refused and counted, the broker lives, and its neighbours' calls go on.

The broker is a process of its own, and so is the provider; for workers see test_garbage_for_workers.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import zmq

from iii_zmq import Worker, errors, wire
from iii_zmq.io import sockets
from tests.fault import strangers
from tests.fault.programs import descriptors, memory_kib, program, until
from tests.fault.strangers import Neighbour, array, connected, framed, hello, is_cut, neighbour, say
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import NIL, RawPeer

pytestmark = [pytest.mark.net, pytest.mark.fault]

SCAN = 2_500  # connections
LEVEL_KIB = (
    16 * 1024
)  # what a process of 40 MiB may differ by without having kept anything of 3,000 messages of garbage


@pytest.fixture(scope="module")
def beside() -> Iterator[Neighbour]:
    with running_broker("--log-level", "error") as broker, neighbour(broker) as one:
        yield one


@pytest.fixture(params=["control", "stream"])
def url(request: pytest.FixtureRequest, beside: Neighbour) -> str:
    return beside.broker.url if request.param == "control" else beside.broker.stream_url


# -- connections that come to nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*strangers.OTHER_PROTOCOLS, *strangers.FAILED_HANDSHAKES])
def test_who_speaks_another_protocol_is_counted(beside: Neighbour, url: str, name: str) -> None:
    before = beside.count("strangers")
    with connected(url) as stranger:
        say(stranger, (strangers.OTHER_PROTOCOLS | strangers.FAILED_HANDSHAKES)[name])
        beside.goes_on()
    beside.wait_for("strangers", before + 1)


@pytest.mark.slow
def test_half_a_handshake_is_cut_off(beside: Neighbour) -> None:
    before = beside.count("strangers")
    halves: list[socket.socket] = []
    with ExitStack() as stack:
        for url in (beside.broker.url, beside.broker.stream_url):
            for data in strangers.HALF_HANDSHAKES.values():
                stranger = stack.enter_context(connected(url))
                say(stranger, data)
                halves.append(stranger)
        beside.wait_for("strangers", before + len(halves))
        beside.goes_on()
        assert all(is_cut(stranger) for stranger in halves)


@pytest.mark.parametrize("name", strangers.OLD_VERSIONS)
def test_what_old_versions_of_zmtp_send_is_garbage_like_any_other(beside: Neighbour, url: str, name: str) -> None:
    before = beside.count("malformed")
    with connected(url) as stranger:
        say(stranger, strangers.OLD_VERSIONS[name])
        beside.wait_for("malformed", before + 1)
        beside.goes_on()


@pytest.mark.parametrize("kind", [zmq.PUSH, zmq.PAIR, zmq.PUB, zmq.XPUB, zmq.SUB, zmq.PULL])
def test_a_socket_of_the_wrong_kind_is_refused(beside: Neighbour, kind: int) -> None:
    before = beside.count("strangers")
    with zmq.Context() as context, context.socket(kind) as stranger, sockets.monitor(context, stranger) as watched:
        stranger.linger = 0
        stranger.connect(beside.broker.url)
        until(lambda: beside.count("strangers") > before)
        stranger.disable_monitor()
        assert watched.poll(0)
    beside.goes_on()


def test_a_port_scan_is_counted_and_leaves_nothing_behind(beside: Neighbour) -> None:
    before = beside.count("strangers")
    level = descriptors(beside.broker.pid)
    for number in range(SCAN):
        connected(beside.broker.url if number % 2 else beside.broker.stream_url).close()
    beside.wait_for("strangers", before + SCAN)
    until(lambda: descriptors(beside.broker.pid) <= level)
    beside.goes_on()


# -- frames that are no message ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", strangers.BOMBS)
def test_a_bomb_is_counted_and_holds_nobody_up(beside: Neighbour, name: str) -> None:
    before = beside.count("malformed")
    with RawPeer(beside.broker.url) as stranger:
        for _ in range(10):
            stranger.send_frames(strangers.BOMBS[name])
        beside.wait_for("malformed", before + 10)
    beside.goes_on()


# A client that sent more frames than two held the broker's loop for as long as it took to drop them.


def test_a_message_of_a_hundred_thousand_frames_is_one_message_and_holds_nobody_up(beside: Neighbour) -> None:
    before = beside.count("malformed")
    with RawPeer(beside.broker.url) as stranger:
        for _ in range(100_000):
            stranger.dealer.send(b"", zmq.SNDMORE)
        stranger.send_frames(b"")
        stranger.send(wire.Heartbeat(7, "", 0, 0, 0))
        assert stranger.read(wire.Unknown) == wire.Unknown(7, wire.KIND[wire.Heartbeat])  # read as a message of its own
    beside.wait_for("malformed", before + 1)
    beside.goes_on()


def test_a_subscription_of_many_frames_is_one_message(beside: Neighbour) -> None:
    before = beside.count("malformed")
    with zmq.Context() as context, context.socket(zmq.XSUB) as stranger:
        stranger.linger = 0
        stranger.connect(beside.broker.stream_url)
        stranger.send_multipart([b"what?"] * 5_000)
        stranger.send(b"what?")
        beside.wait_for("malformed", before + 2)
    beside.goes_on()


def test_messages_that_are_never_finished_cost_next_to_nothing(beside: Neighbour) -> None:
    level = memory_kib(beside.broker.pid)
    handshake = strangers.greeting() + strangers.ready(b"DEALER")
    with ExitStack() as stack:
        for _ in range(50):
            stranger = stack.enter_context(connected(beside.broker.url))
            say(stranger, handshake + b"\x02" + wire.PAYLOAD_BYTES_MAX.to_bytes(8, "big") + b"the beginning")
        beside.goes_on(100)
        assert memory_kib(beside.broker.pid) < level + LEVEL_KIB  # not 50 times 32 MiB


def test_a_declared_length_above_the_limit_costs_the_connection(beside: Neighbour) -> None:
    with connected(beside.broker.url) as stranger:
        say(stranger, strangers.greeting() + strangers.ready(b"DEALER") + b"\x02\x7f" + bytes(7))
        assert is_cut(stranger)
    beside.goes_on()


# -- messages of another version, of another kind, and malformed ones --------------------------------------------------


def raw_answer(stranger: RawPeer) -> bytes:
    assert stranger.dealer.poll(5_000)
    return stranger.dealer.recv()


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_hello_of_another_version_is_told_so_in_its_own(beside: Neighbour, version: int) -> None:
    frame = bytearray(wire.encode(hello())[0])
    frame[2] = version
    with RawPeer(beside.broker.url) as stranger:
        stranger.send_frames(bytes(frame))
        answer = bytearray(raw_answer(stranger))
    assert answer[2] == version
    answer[2] = wire.VERSION
    refuse = wire.decode(bytes(answer))
    assert isinstance(refuse, wire.Refuse)
    assert (refuse.number, refuse.kind, refuse.code) == (7, wire.KIND[wire.Hello], errors.VERSION)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (framed(77, b"\x90"), errors.UNKNOWN_KIND),
        (framed(wire.KIND[wire.Hello], b"\x93\x01\x02\x03"), errors.INVALID),
        (framed(wire.KIND[wire.Hello], b"\xc1"), errors.INVALID),
        (wire.encode(hello(name="n" * 65))[0], errors.INVALID),
        (wire.encode(hello(metadata=bytes(wire.METADATA_BYTES_MAX + 1)))[0], errors.INVALID),
        (wire.encode(hello(metadata=b"\x91" * 1000 + b"\x80"))[0], errors.INVALID),
        (wire.encode(hello(credit=0))[0], errors.INVALID),
        (framed(wire.KIND[wire.Register], b"\x91\xc0"), errors.INVALID),
    ],
)
def test_who_waits_for_an_answer_is_told_what_is_wrong(beside: Neighbour, frame: bytes, code: str) -> None:
    with RawPeer(beside.broker.url) as stranger:
        stranger.send_frames(frame)
        refuse = stranger.read(wire.Refuse)
        assert (refuse.number, refuse.kind, refuse.code) == (7, frame[3], code)
        assert stranger.join("after all").status()["epoch"] == beside.broker.epoch


def test_a_malformed_call_fails_at_once(beside: Neighbour) -> None:
    with RawPeer(beside.broker.url) as stranger:
        stranger.join("caller").send_frames(framed(wire.KIND[wire.Call], b"\x90", NIL))
        failure = stranger.read(wire.Failure)
    assert (failure.number, failure.code, failure.fate) == (7, errors.INVALID, "not_handed_over")


# -- messages in the wrong order ---------------------------------------------------------------------------------------


def register_before_presence(peer: RawPeer) -> None:
    peer.hello()
    peer.send(wire.Register(2, []))
    assert peer.read(wire.Refuse).code == errors.NOT_JOINED


def sync_before_presence(peer: RawPeer) -> None:
    peer.hello()
    peer.send(wire.Sync(2, "", 0, "gap"))
    assert peer.read(wire.Refuse).code == errors.NOT_JOINED


def call_before_presence(peer: RawPeer) -> None:
    peer.hello()
    peer.call(strangers.ECHO)
    failure = peer.read(wire.Failure)
    assert (failure.code, failure.fate) == (errors.NOT_JOINED, "not_handed_over")


def everything_before_hello(peer: RawPeer) -> None:
    told = [
        wire.Register(2, []), wire.Unregister(2, []), wire.Sync(2, "", 0, "gap"), wire.Received(2, 0), wire.Drain(2),
        wire.Call(2, strangers.ECHO, "", 1000, "", 0, 0, NIL), wire.Result(2, NIL), wire.Cancel(2),
    ]  # fmt: skip
    for message in told:
        peer.send(message)
        assert peer.read(wire.Unknown) == wire.Unknown(2, wire.KIND[type(message)])


def received_of_nothing(peer: RawPeer) -> None:
    peer.join()
    for number in range(5):
        peer.send(wire.Received(number + 1000, number))


def results_never_asked_for(peer: RawPeer) -> None:
    peer.join()
    for number in range(5):
        peer.send(wire.Result(number, NIL))
        peer.send(wire.Failure(number, "busy", "executed", "", ""))


def what_only_a_broker_says(peer: RawPeer) -> None:
    peer.join()
    digest = bytes(16)
    for message in (
        wire.Ack(1, "e", 1, []), wire.Snapshot(1, "e", 1, digest, 0, True, []), wire.Replay(1, "e", 0, True, []),
        wire.Invite(1, b"t|", 1), wire.Unknown(1, 1), wire.Refuse(1, 1, "c", "t"), wire.Probe(1), wire.Closing(1, "e"),
        wire.Deltas(1, "e", []), wire.Beacon(1, "e", 1, digest),
    ):  # fmt: skip
        peer.send(message)


def bye_twice(peer: RawPeer) -> None:
    peer.join()
    peer.send(wire.Bye(1))
    peer.send(wire.Bye(2))


def drain_twice(peer: RawPeer) -> None:
    peer.join("drained", "drained::f")
    for number in (100, 101):
        peer.send(wire.Drain(number))
        assert peer.read(wire.Ack).number == number


def hello_twice(peer: RawPeer) -> None:
    first = peer.join("first", "first::f").welcome
    peer.welcome = None
    assert first is not None
    assert peer.hello("second").worker_id != first.worker_id


def register_as_an_observer(peer: RawPeer) -> None:
    peer.join(observer=True)
    peer.send(wire.Register(2, []))
    assert peer.read(wire.Refuse).code == errors.NOT_JOINED


def unregister_what_is_not_ones_own(peer: RawPeer) -> None:
    peer.join()
    peer.send(wire.Unregister(2, [strangers.ECHO]))
    assert [code for _, code, _ in peer.read(wire.Ack).refusals] == [errors.NOT_REGISTERED]


def call_in_anothers_name(peer: RawPeer) -> None:
    peer.join()
    peer.send(wire.Call(9, strangers.ECHO, "somebody", 1000, "", 0, 0, NIL))
    assert peer.read(wire.Failure).code == errors.INVALID


def one_number_for_two_calls(peer: RawPeer) -> None:
    peer.join("waits", "waits::f")
    assert peer.welcome is not None
    for _ in range(2):
        peer.send(wire.Call(9, "waits::f", peer.welcome.worker_id, 1000, "", 0, 0, NIL))
    peer.read(wire.Call)


DISORDER: list[tuple[Callable[[RawPeer], None], str, int]] = [
    (register_before_presence, "refused", 1),
    (sync_before_presence, "refused", 1),
    (call_before_presence, "hellos", 1),
    (everything_before_hello, "unknown_peers", 8),
    (received_of_nothing, "unexpected", 5),
    (results_never_asked_for, "results_unmatched", 10),
    (what_only_a_broker_says, "unexpected", 10),
    (bye_twice, "unknown_peers", 1),
    (drain_twice, "registered", 1),
    (hello_twice, "left_replaced", 1),
    (register_as_an_observer, "refused", 1),
    (unregister_what_is_not_ones_own, "refused", 1),
    (call_in_anothers_name, "forged", 1),
    (one_number_for_two_calls, "unexpected", 1),
]


@pytest.mark.parametrize(("story", "counter", "times"), DISORDER, ids=[story.__name__ for story, _, _ in DISORDER])
def test_what_comes_in_the_wrong_order_is_refused_or_counted(
    beside: Neighbour, story: Callable[[RawPeer], None], counter: str, times: int
) -> None:
    before = beside.count(counter)
    with RawPeer(beside.broker.url) as peer:
        story(peer)
        beside.wait_for(counter, before + times)
    beside.goes_on()


# -- nothing stays -----------------------------------------------------------------------------------------------------


def a_round_of_garbage(broker: RunningBroker) -> None:
    """3,000 messages and 100 connections."""
    frames = [
        bytes(17), framed(99, b"\x90"), framed(1, b"\x90"), framed(3, array(b"\x80", 4_000)), framed(32, b"\x90", NIL),
        framed(4, b"\x90"), wire.encode(wire.Heartbeat(1, "", 0, 0, 0))[0], wire.encode(hello(credit=0))[0],
        wire.encode(hello(name=""))[0], wire.encode(wire.Result(1, bytes(5_000)))[0],
    ]  # fmt: skip
    for _ in range(10):
        with RawPeer(broker.url) as stranger:
            for _ in range(30):
                for frame in frames:
                    stranger.send_frames(frame)
            stranger.join("stranger", "stranger::f")  # all that was said before was read by then
    for number in range(100):
        with connected(broker.url if number % 2 else broker.stream_url) as stray:
            say(stray, strangers.HTTP)


def test_memory_and_descriptors_are_level_whatever_comes(beside: Neighbour) -> None:
    pid = beside.broker.pid
    for _ in range(2):
        a_round_of_garbage(beside.broker)
    before = beside.count("strangers")
    kib, open_ = memory_kib(pid), descriptors(pid)
    for _ in range(4):
        a_round_of_garbage(beside.broker)
    until(lambda: beside.count("strangers") >= before + 400)  # or more: those of the rounds before come late
    until(lambda: descriptors(pid) <= open_)
    assert memory_kib(pid) < kib + LEVEL_KIB
    beside.goes_on()


# -- no descriptors left -----------------------------------------------------------------------------------------------

FEW = 100  # descriptors
NARROW = f"""
    import resource, runpy, sys

    resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW}))
    sys.argv[1:] = ["serve", "--url", "tcp://127.0.0.1:0", "--json"]
    runpy.run_module("iii_zmq.cli", run_name="__main__")
"""
SESSIONS = (FEW - 64) // 2  # see DESCRIPTORS_SPARE


@pytest.fixture
def narrow() -> Iterator[tuple[RunningBroker, Neighbour]]:
    with program(NARROW) as served:
        told = json.loads(served.line())
        broker = RunningBroker(told["url"], told["stream_url"], told["epoch"], served.process)
        with neighbour(broker) as one:
            yield broker, one


def test_without_descriptors_it_serves_who_is_there_and_then_newcomers_again(
    narrow: tuple[RunningBroker, Neighbour],
) -> None:
    broker, beside = narrow
    with ExitStack() as stack:
        for _ in range(2 * FEW):
            stack.enter_context(connected(broker.url))
        until(lambda: beside.count("descriptors_lacking") > 0)
        assert descriptors(broker.pid) == FEW
        beside.goes_on()
    with Worker("newcomer", broker.url, connect_timeout=20.0) as newcomer:
        assert newcomer.call(strangers.ECHO, 1, timeout=20.0) == 1
    until(lambda: beside.count("strangers") >= 2 * FEW)  # each of them was accepted in the end


def test_who_would_be_one_too_many_is_refused_with_a_word(narrow: tuple[RunningBroker, Neighbour]) -> None:
    broker, beside = narrow
    with ExitStack() as stack:
        for _ in range(SESSIONS - 3):  # the neighbour is three already
            stack.enter_context(RawPeer(broker.url)).join("member")
        with pytest.raises(errors.Refused, match=f"the broker holds {SESSIONS} sessions") as refused:
            Worker("too many", broker.url).start()
        assert refused.value.code == errors.LIMIT
        beside.goes_on()
    until(lambda: beside.watcher.status()["sessions"] == 3)
    with Worker("newcomer", broker.url) as newcomer:
        assert newcomer.call(strangers.ECHO, 1) == 1
