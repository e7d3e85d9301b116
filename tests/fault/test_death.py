"""Death: SIGKILL of those who idle, call and serve. Everybody else knows, each call fails once, no trace is left.

How fast all hear of it is measured elsewhere (bench). A death must be known long before any heartbeat or TTL could tell
of it, so the broker's are far longer than a test waits.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from iii_zmq import wire
from tests.fault.crews import Watcher, ask, crew, eventually, start, watching
from tests.fault.programs import PATIENCE_S, Program, program
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import RawPeer

pytestmark = [pytest.mark.net, pytest.mark.fault]

LONG = wire.pack(600.0)  # seconds that a handler takes: no test waits for its end
LOST = ("provider_lost", "possibly_executed")
KNOWN_S = 0.05  # after a death: some 5 ms on an idle machine
NEVER_LEFT = ("no_provider", "not_handed_over")

# Answers its only call with much else before, as soon as it is told to: then it waits to be killed.
LAST_WORDS = """
    import sys
    from iii_zmq import wire
    from tests.net.raw import RawPeer

    peer = RawPeer(sys.argv[1]).join("talker", "talker::f")
    print("joined", flush=True)
    call = peer.read(wire.Call, within_s=60)
    print("has it", flush=True)
    sys.stdin.readline()
    for _ in range(3_000):
        peer.send(wire.Heartbeat(0, "", 0, 0, 0))
    peer.send(wire.Result(call.number, call.payload))
    print("answered", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with running_broker("--heartbeat", "20", "--ttl", "60") as served:
        yield served


@pytest.fixture
def watcher(broker: RunningBroker) -> Iterator[Watcher]:
    with watching(broker.url) as one:
        yield one


@pytest.fixture
def caller(broker: RunningBroker) -> Iterator[RawPeer]:
    """One that hears every message as it came over the wire."""
    with RawPeer(broker.url) as one:
        yield one.join("caller", observer=True)


def outcomes(caller: RawPeer, count: int) -> dict[int, tuple[str, str]]:
    """What so many calls ended in, by number; and that the broker tells no outcome twice, and of no other call."""
    found: dict[int, tuple[str, str]] = {}
    for _ in range(count):
        failure = caller.read(wire.Failure)
        assert failure.number not in found
        found[failure.number] = (failure.code, failure.fate)
    last = caller.call("engine::ping")
    assert caller.read(wire.Failure, wire.Result).number == last
    return found


def begun(victim: Program, count: int, watcher: Watcher) -> None:
    """So many of its handlers run."""
    try:
        victim.expect(*["began"] * count)
    except AssertionError as error:
        raise AssertionError(f"{error}; the broker says {watcher.status()}") from error


def test_an_idle_worker_that_is_killed_is_gone_for_all(broker: RunningBroker, watcher: Watcher) -> None:
    idle = {"name": "idle", "functions": {"idle::a": "echo", "idle::b": "echo"}}
    with crew(broker.url, {"name": "one"}, {"name": "two"}) as others, crew(broker.url, idle) as victim:
        watcher.worker.wait_for("idle::a", "idle::b")
        worker_id = watcher.id_of("idle")
        victim.kill()
        watcher.wait_until_left(worker_id)
        eventually(watcher.reasons, ["died"])
        removed = [one.function_id for _, one in watcher.seen if one.kind == "function_removed"]
        assert sorted(removed) == ["idle::a", "idle::b"]
        eventually(watcher.tables, (3, 0, 0, 3))
        eventually(lambda: [one["digest"] for one in ask(others)], [watcher.worker.digest] * 2)
        for one in ask(others):
            assert (one["functions"], one["workers"]) == ([], sorted(watcher.worker.workers))


def test_each_call_of_a_killed_provider_fails_once_and_tells_its_fate(
    broker: RunningBroker, watcher: Watcher, caller: RawPeer
) -> None:
    """Two have begun, two wait in the queue behind them."""
    with crew(broker.url, {"name": "mortal", "functions": {"mortal::f": "sleep"}, "credit": 2}) as victim:
        calls = [caller.call("mortal::f", LONG, timeout_s=600) for _ in range(4)]
        begun(victim, 2, watcher)
        eventually(lambda: watcher.counters("calls_queued"), [2])
        victim.kill()
        assert outcomes(caller, 4) == dict(zip(calls, [LOST, LOST, NEVER_LEFT, NEVER_LEFT], strict=True))
        eventually(watcher.tables, (1, 0, 0, 2))
        assert victim.finish().out == "joined\n" + 2 * "began\n"


def test_a_result_counts_with_3000_messages_before_it_that_the_broker_had_not_read(
    broker: RunningBroker, caller: RawPeer
) -> None:
    """1. The broker is stopped. 2. The provider says all that, and is killed. 3. The broker goes on: it reads the lost
    presence first, and the result lies far behind in its ROUTER."""
    with program(LAST_WORDS, broker.url) as victim:
        victim.expect("joined")
        number = caller.call("talker::f", wire.pack("last words"))
        victim.expect("has it")
        broker.process.send_signal(signal.SIGSTOP)
        victim.say("go on")
        victim.expect("answered")
        time.sleep(0.2)  # for libzmq's own thread there to hand it to the system
        victim.kill()
        broker.process.send_signal(signal.SIGCONT)
        assert caller.read(wire.Result, wire.Failure) == wire.Result(number, wire.pack("last words"))


def test_a_death_is_known_in_milliseconds(broker: RunningBroker, caller: RawPeer) -> None:
    """The quickest of ten: where the machine is busy some are late, and where anything waits for a while all are."""
    took_s = []
    for _ in range(10):
        mortal = RawPeer(broker.url).join("mortal", "mortal::f")
        assert mortal.welcome is not None
        row = (mortal.welcome.worker_id, "")
        began = time.monotonic()
        mortal.close()  # both its connections, without a word: what the system does for a killed process
        caller.next_delta(lambda delta, row=row: row in delta.drops)
        took_s.append(time.monotonic() - began)
    print(f"known after {min(took_s) * 1000:.1f} to {max(took_s) * 1000:.1f} ms")
    assert min(took_s) < KNOWN_S


def test_a_killed_caller_leaves_no_call_behind(broker: RunningBroker, watcher: Watcher) -> None:
    """Its call still runs, and its answer, which nobody waits for, is what frees the provider's slot."""
    provider = {"name": "provider", "functions": {"slow::f": "sleep"}, "credit": 1, "threads": 1}
    with crew(broker.url, provider) as serving, RawPeer(broker.url) as rival:
        rival.join("rival", observer=True)
        with crew(broker.url, {"name": "asking", "asks": ["slow::f", 1.0]}) as victim:
            begun(serving, 1, watcher)
            number = rival.call("slow::f", wire.pack(0.0))
            eventually(lambda: watcher.counters("calls_queued"), [1])
            victim.kill()
            watcher.wait_until_gone("asking")
        assert rival.read(wire.Result, wire.Failure, within_s=PATIENCE_S) == wire.Result(number, wire.pack(0.0))
        assert watcher.tables() == (2, 1, 0, 3)
        assert watcher.counters("results_late", "calls_provider_lost") == [1, 0]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_provider_and_its_caller_killed_at_once_leave_no_trace(
    broker: RunningBroker, watcher: Watcher, processes: int
) -> None:
    serving, asking = {"name": "serving", "functions": {"f": "sleep"}}, {"name": "asking", "asks": ["f", 600.0]}
    crews = [[serving, asking]] if processes == 1 else [[serving], [asking]]
    with ExitStack() as stack:
        victims = [stack.enter_context(crew(broker.url, *members)) for members in crews]
        begun(victims[0], 1, watcher)
        assert watcher.tables() == (3, 1, 1, 3)
        for victim in victims:
            victim.signal(signal.SIGKILL)
        watcher.wait_until_gone("serving", "asking")
        eventually(watcher.tables, (1, 0, 0, 1))
        eventually(watcher.reasons, ["died"] * 2)


@pytest.mark.slow
def test_twenty_of_a_hundred_workers_killed_with_calls_in_flight(
    broker: RunningBroker, watcher: Watcher, caller: RawPeer
) -> None:
    """Ten processes of ten workers; two of them are killed. All others agree, and each call fails once."""
    with ExitStack() as stack:
        members = [[{"name": f"w{i}-{k}", "functions": {f"f{i}::{k}": "sleep"}} for k in range(10)] for i in range(10)]
        crews = [stack.enter_context(start(broker.url, *ten)) for ten in members]
        for one in crews:
            one.expect("joined")
        eventually(watcher.tables, (101, 100, 0, 102))
        calls = [caller.call(f"f{i}::{k}", LONG, timeout_s=600) for i in (0, 1) for k in range(10)]
        for victim in crews[:2]:
            begun(victim, 10, watcher)
        for victim in crews[:2]:
            victim.signal(signal.SIGKILL)
        assert outcomes(caller, 20) == dict.fromkeys(calls, LOST)
        eventually(watcher.tables, (81, 80, 0, 82))
        eventually(watcher.reasons, ["died"] * 20)
        for one in crews[2:]:
            eventually(lambda one=one: {each["digest"] for each in ask(one)}, {watcher.worker.digest})
            assert {len(each["workers"]) for each in ask(one)} == {81}
