"""More than anybody can take: calls beyond a provider's credit, floods, and payloads for those who do not read.

Everything has one outcome, nothing grows beyond its limit, and whoever has no part in it is served as before.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from iii_zmq import wire
from iii_zmq.core.broker.session import IN_FLIGHT_BYTES_MAX, QUEUE_MAX, QUEUED_BYTES_MAX
from iii_zmq.core.broker.unread import UNREAD_BYTES_MAX
from iii_zmq.io import sockets
from iii_zmq.io.broker import Broker
from tests.fault.measuring import PATIENCE_S, ROUND_TRIPS_MAX, call_s, change_s, ping_s, told
from tests.fault.programs import Program, memory_kib, program, until
from tests.fault.proxy import Proxy
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import NIL, RawPeer, has_left, raw_worker

pytestmark = [pytest.mark.net, pytest.mark.fault]

ROUNDS = 60  # of each measurement
WINDOW = 256  # changes that are on their way all the time
CREDIT = 2
LARGE = wire.pack(bytes(16 * 1024 * 1024))


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with running_broker() as one:
        yield one


# -- more calls than the provider's credit -----------------------------------------------------------------------------


def test_calls_beyond_the_credit_wait_then_are_busy_and_none_is_lost(broker: RunningBroker) -> None:
    beyond = 300
    with (
        RawPeer(broker.url) as caller,
        RawPeer(broker.url) as provider,
        raw_worker(broker, "other"),
    ):
        caller.join("caller")
        provider.join("provider", "slow", credit=CREDIT)
        numbers = [caller.call("slow", wire.pack(at)) for at in range(CREDIT + QUEUE_MAX + beyond)]
        refused = [caller.read(wire.Failure, within_s=PATIENCE_S) for _ in range(beyond)]
        while_full, pings = zip(*[(call_s(caller, "other"), ping_s(caller)) for _ in range(ROUNDS)], strict=True)
        handed = serve(provider, CREDIT + QUEUE_MAX)
        answered = [caller.read(wire.Result, within_s=PATIENCE_S).number for _ in range(CREDIT + QUEUE_MAX)]
        counters = caller.counters("calls_queued", "calls_busy", "results_unmatched")
    assert {(one.code, one.fate) for one in refused} == {("busy", "not_handed_over")}
    assert Counter([*answered, *(one.number for one in refused)]) == Counter(numbers)
    assert handed == list(range(CREDIT + QUEUE_MAX))  # in their order
    assert counters == [QUEUE_MAX, beyond, 0]
    median = told("a call of another function while a queue is full", while_full)
    assert median < ROUND_TRIPS_MAX * told("a round trip", pings)


def serve(provider: RawPeer, calls: int) -> list[object]:
    """Answers so many calls, never having more than its credit; the payloads, in the order in which they came."""
    handed: list[object] = []
    for _ in range(calls):
        call = provider.read(wire.Call, within_s=PATIENCE_S)
        handed.append(wire.unpack(call.payload))
        provider.send(wire.Result(call.number, NIL))
    return handed


# -- floods ------------------------------------------------------------------------------------------------------------

FLOOD = """
    import sys
    from iii_zmq import wire
    from tests.fault.measuring import entry
    from tests.net.raw import RawPeer

    kind, window, payload = sys.argv[2], int(sys.argv[3]), wire.pack(bytes(int(sys.argv[4])))

    def send_one(at):
        if kind == "changes":
            peer.send(wire.Register(peer.number(), [entry(f"flood::f{at % 50}")]))
        else:
            peer.call("flood::echo", payload, timeout_s=3600.0)

    with RawPeer(sys.argv[1]) as peer:
        peer.join("flood", "flood::echo")
        for at in range(window):
            send_one(at)
        print("flooding", flush=True)
        while True:
            message = peer.read(wire.Call, wire.Ack, wire.Result, wire.Failure, within_s=60.0)
            assert not isinstance(message, wire.Failure), message
            if isinstance(message, wire.Call):
                peer.send(wire.Result(message.number, message.payload))
            else:
                at += 1
                send_one(at)
"""


@contextmanager
def flood(broker: RunningBroker, kind: str, window: int, payload_bytes: int = 64) -> Iterator[Program]:
    """A process that always has `window` changes or calls on their way, from the moment when all of them are."""
    with program(FLOOD, broker.url, kind, str(window), str(payload_bytes)) as one:
        one.expect("flooding")
        yield one
        assert one.process.poll() is None, one.finish().err


def test_a_flood_of_changes_starves_no_calls(broker: RunningBroker) -> None:
    with RawPeer(broker.url) as caller, raw_worker(broker, "other"):
        caller.join("caller")
        before = [call_s(caller, "other") for _ in range(ROUNDS)]
        seq = caller.status()["seq"]
        with flood(broker, "changes", WINDOW):
            during = [call_s(caller, "other") for _ in range(ROUNDS)]
            changes = caller.status()["seq"] - seq
        status = caller.status()
    print(f"{changes} changes meanwhile, longest turn {status['counters']['turn_max_ms']} ms")
    told("a call", before)
    told("a call in a flood of changes", during)
    assert WINDOW < changes < 2 * WINDOW * ROUNDS  # it passes the broker twice, each time behind those that were there


@pytest.mark.parametrize(
    ("window", "payload_bytes", "most"),
    [
        pytest.param(1_000, 64, 1_000, id="small"),
        pytest.param(8, len(LARGE), 1, id="16-MiB", marks=pytest.mark.slow),
    ],
)
def test_a_flood_of_calls_delays_no_changes(broker: RunningBroker, window: int, payload_bytes: int, most: int) -> None:
    """A change waits behind at most so many calls: all that were on their way, or a single large one."""
    with (
        RawPeer(broker.url) as peer,
        RawPeer(broker.url) as neighbour,
    ):
        peer.join("changer")
        neighbour.join("neighbour", observer=True)
        before = [change_s(peer, neighbour) for _ in range(ROUNDS)]
        calls = peer.counters("results")[0]
        with flood(broker, "calls", window, payload_bytes):
            during = [change_s(peer, neighbour) for _ in range(ROUNDS)]
            until(lambda: peer.counters("results")[0] > calls, PATIENCE_S)
            calls = peer.counters("results")[0] - calls
        status = peer.status()
    print(f"{calls} calls meanwhile, longest turn {status['counters']['turn_max_ms']} ms")
    told("a change", before)
    told(f"a change in a flood of calls of {payload_bytes} bytes", during)
    assert 0 < calls < most * ROUNDS


# -- bytes for those who do not read -----------------------------------------------------------------------------------


LASTING = ("--ttl", "60")  # nobody is taken for dead, nor any connection cut, while it does not read
LASTING_MS = 60_000


@pytest.mark.slow
def test_a_provider_that_does_not_read_makes_the_broker_hold_so_many_bytes_and_no_more() -> None:
    # 128 calls of 16 MiB, its credit, were all handed to libzmq.
    in_flight, queued, beyond = IN_FLIGHT_BYTES_MAX // len(LARGE) + 1, QUEUED_BYTES_MAX // len(LARGE), 4
    with (
        running_broker(*LASTING) as broker,
        Proxy(broker.url) as proxy,
        RawPeer(broker.url, ttl_ms=LASTING_MS) as caller,
        RawPeer(proxy.url, ttl_ms=LASTING_MS) as provider,
        raw_worker(broker, "other"),
    ):
        caller.join("caller")
        provider.join("provider", "held")
        before_kib = memory_kib(broker.pid)
        proxy.hold()
        numbers = [caller.call("held", LARGE) for _ in range(in_flight + queued + beyond)]
        refused = [caller.read(wire.Failure, within_s=PATIENCE_S) for _ in range(beyond)]
        grown_kib = memory_kib(broker.pid) - before_kib
        counters = caller.counters("saturated", "calls_queued", "calls_busy")
        call_s(caller, "other")
        proxy.forward()
        serve(provider, in_flight + queued)
        answered = [caller.read(wire.Result, within_s=PATIENCE_S).number for _ in range(in_flight + queued)]
    print(f"the broker has grown by {grown_kib // 1024} MiB")
    assert {(one.code, one.fate) for one in refused} == {("busy", "not_handed_over")}
    assert Counter([*answered, *(one.number for one in refused)]) == Counter(numbers)
    assert counters == [1, queued, beyond]
    assert grown_kib * 1024 < IN_FLIGHT_BYTES_MAX + QUEUED_BYTES_MAX + 4 * len(LARGE)


@pytest.mark.slow
def test_a_caller_that_does_not_read_makes_the_broker_hold_so_many_bytes_and_no_more() -> None:
    # 4,096 results, its open calls, were all handed to libzmq, whatever their size.
    unread, beyond = UNREAD_BYTES_MAX // len(LARGE), 4
    with (
        running_broker(*LASTING) as broker,
        Proxy(broker.url) as proxy,
        RawPeer(proxy.url, ttl_ms=LASTING_MS) as caller,
        RawPeer(broker.url, ttl_ms=LASTING_MS) as provider,
        raw_worker(broker, "other"),
    ):
        caller.join("caller")
        provider.join("provider", "large")
        numbers = [caller.call("large") for _ in range(unread + beyond)]
        calls = [provider.read(wire.Call) for _ in numbers]
        before_kib = memory_kib(broker.pid)
        proxy.hold()
        for call in calls:
            provider.send(wire.Result(call.number, LARGE))
        until(lambda: provider.counters("results")[0] == len(numbers), PATIENCE_S)
        grown_kib = memory_kib(broker.pid) - before_kib
        (dropped,) = provider.counters("results_unread")
        call_s(provider, "other")
        proxy.forward()
        answers = [caller.read(wire.Result, wire.Failure, within_s=PATIENCE_S) for _ in numbers]
        failures = [(one.code, one.fate) for one in answers if isinstance(one, wire.Failure)]
        told_numbers = Counter(one.number for one in answers)
        del answers
        number = caller.call("large")  # all those were acknowledged
        provider.send(wire.Result(provider.read(wire.Call).number, LARGE))
        assert caller.read(wire.Result, wire.Failure, within_s=PATIENCE_S).number == number
    print(f"the broker has grown by {grown_kib // 1024} MiB")
    assert (dropped, failures) == (beyond, [("busy", "possibly_executed")] * beyond)
    assert told_numbers == Counter(numbers)
    assert grown_kib * 1024 < UNREAD_BYTES_MAX + 4 * len(LARGE)


def test_whose_queue_of_messages_is_full_is_reset_and_nobody_else_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small answers are not acknowledged. A peer that asks and asks, and never reads, comes to the ROUTER's mark.
    monkeypatch.setattr(sockets, "ROUTER_SNDHWM", 60)
    broker = Broker("tcp://127.0.0.1:0", ttl_s=60.0)
    broker.bind()
    thread = threading.Thread(target=broker.run)
    thread.start()
    try:
        with (
            Proxy(broker.url) as proxy,
            RawPeer(proxy.url, ttl_ms=LASTING_MS) as asker,
            RawPeer(broker.url, ttl_ms=LASTING_MS) as neighbour,
        ):
            asker.join("asker", "asker::own")
            neighbour.join("neighbour")
            proxy.hold(up=False)
            for _ in range(1_000):
                asker.call("engine::ping", wire.pack(bytes(60_000)))
            until(lambda: neighbour.counters("overflows")[0] > 0, PATIENCE_S)
            neighbour.next_delta(has_left, within_s=PATIENCE_S)
            call_s(neighbour, "engine::ping")
            proxy.forward()
            read_all_unknown(asker)
            asker.join("asker", "asker::own")  # it is as welcome as before
    finally:
        broker.stop()
        thread.join()


def read_all_unknown(peer: RawPeer) -> None:
    """Until a Heartbeat is answered by Unknown, and nothing is left in between: its queue has room again."""
    for _ in range(30):
        asked = wire.Heartbeat(peer.number(), "", 0, 0, 0)
        peer.send(asked)
        while (message := peer.read_any(1.0)) is not None:
            if message == wire.Unknown(asked.number, wire.KIND[type(asked)]):
                return
    raise AssertionError("the broker does not answer")
