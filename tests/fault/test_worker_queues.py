"""The queues of a worker itself: what its own program asks for or does not fetch has limits, too."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from iii_zmq import AsyncWorker, Busy, Worker, wire
from iii_zmq.core.worker import sends
from iii_zmq.core.worker.changes import Change
from iii_zmq.core.worker.outgoing import OPEN_CALLS_MAX
from iii_zmq.io.worker import callbacks, coroutines, listeners, payloads, sync_guest
from tests.fault.measuring import PATIENCE_S, entry, flood_changes
from tests.fault.programs import until
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import RawPeer

pytestmark = [pytest.mark.net, pytest.mark.fault]


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as one:
        yield one


@contextmanager
def stopped(broker: RunningBroker) -> Iterator[None]:
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def test_above_the_limit_of_open_calls_every_way_to_call_is_busy() -> None:
    with running_broker("--ttl", "60") as broker, Worker("caller", broker.url) as worker:
        with stopped(broker):
            futures = [worker.submit("engine::ping", at) for at in range(OPEN_CALLS_MAX)]
            refused = worker.submit("engine::ping")
            assert isinstance(refused.exception(PATIENCE_S), Busy)
            for ask in (worker.call, worker.send):
                with pytest.raises(Busy):
                    ask("engine::ping")
        assert [future.result(PATIENCE_S) for future in futures] == list(range(OPEN_CALLS_MAX))
        assert worker.call("engine::ping", 1) == 1


def test_above_the_limit_of_open_calls_every_way_to_call_of_an_async_worker_is_busy() -> None:
    async def main(broker: RunningBroker) -> None:
        async with AsyncWorker("caller", broker.url) as worker:
            with stopped(broker):
                futures = [worker.submit("engine::ping", at) for at in range(OPEN_CALLS_MAX)]
                with pytest.raises(Busy):
                    worker.submit("engine::ping")
                for ask in (worker.call, worker.send):
                    with pytest.raises(Busy):
                        await ask("engine::ping")
            assert await asyncio.gather(*futures) == list(range(OPEN_CALLS_MAX))

    with running_broker("--ttl", "60") as broker:
        asyncio.run(main(broker))


def test_sends_that_a_stopped_broker_does_not_read_are_limited_and_go_on_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All of them were kept by the worker's own socket, however many they were.
    monkeypatch.setattr(sends, "SENDS_MAX", 200)
    with running_broker("--ttl", "60") as broker, Worker("sender", broker.url) as worker:
        with stopped(broker):
            for at in range(200):
                worker.send("engine::ping", at)
            with pytest.raises(Busy):
                worker.send("engine::ping")
        assert worker.call("engine::ping", 1) == 1
        worker.send("engine::ping")
        assert worker.counters["calls_refused"] == 1


def test_inline_handlers_that_wait_inside_each_other_are_limited(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each runs on the stack of the one before it: without a limit the stack would end the process.
    monkeypatch.setattr(sync_guest, "NESTING_MAX", 4)
    depth = deepest = 0

    def call_again(left: int) -> int:
        nonlocal depth, deepest
        depth += 1
        deepest = max(depth, deepest)
        futures = [worker.submit("deep::call", left - 1)] if left else []
        worker.call("engine::ping")
        depth -= 1
        return sum(future.done() for future in futures)

    with Worker("caller", broker.url) as caller, Worker("deep", broker.url, threads=0) as worker:
        worker.register("deep::call", call_again)
        for future in [caller.submit("deep::call", 3, timeout=PATIENCE_S) for _ in range(60)]:
            future.result()
    assert deepest == 4


def test_function_ids_that_are_remembered_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "_IDS_MAX", 2)
    known: set[str] = set()
    monkeypatch.setattr(payloads, "_good_ids", known)
    for at in range(5):
        payloads.check_call(f"some::id{at}", None, 1.0, None)
    assert known == {"some::id0", "some::id1"}
    with pytest.raises(ValueError, match="id"):
        payloads.check_call("some::", None, 1.0, None)


def test_a_reader_of_changes_that_falls_behind_is_told_by_a_reset(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "WAITING_MAX", 100)
    with RawPeer(broker.url) as peer, Worker("reader", broker.url) as worker:
        peer.join("changer")
        changes = worker.changes("flood::*", timeout=PATIENCE_S)
        register(peer, "flood::first")
        heard = [next(changes)]
        flood_changes(peer, 250)
        last = peer.status()["seq"]
        while worker.position.seq < last:  # it looks, but does not fetch
            time.sleep(0.005)
        assert worker.counters["readers_reset"] >= 1
        while not heard or heard[-1].kind != "reset":
            heard.append(next(changes))
        register(peer, "flood::last")
        while heard[-1].function_id != "flood::last":
            heard.append(next(changes))
    check_no_silent_gap(heard)


@pytest.mark.parametrize("pattern", ["*", "flood::*"])
def test_callbacks_that_fall_behind_are_told_by_a_reset(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    # The reset reached callbacks for everything alone: one for a pattern had a silent gap.
    monkeypatch.setattr(callbacks, "WAITING_MAX", 100)
    heard: list[Change] = []
    go_on = threading.Event()

    def slowly(change: Change) -> None:
        heard.append(change)
        go_on.wait(PATIENCE_S)

    with running_broker() as broker, RawPeer(broker.url) as peer, Worker("listener", broker.url) as worker:
        peer.join("changer")
        worker.on_change(pattern)(slowly)
        register(peer, "flood::first")
        until(lambda: len(heard) > 0)
        flood_changes(peer, 250)
        last = peer.status()["seq"]
        until(lambda: worker.position.seq >= last and worker.counters["readers_reset"] > 0)
        assert len(heard) == 1
        go_on.set()
        register(peer, "flood::last")
        until(lambda: heard[-1].function_id == "flood::last")
    assert len(heard) <= 103  # the first, a reset, at most 100 that waited behind it, and the last
    check_no_silent_gap(heard)


def test_a_reset_that_comes_while_a_batch_of_callbacks_runs_leaves_the_queue_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The batch counted jobs that the reset had replaced: its thread died, and no callback of the worker ran any more.
    monkeypatch.setattr(callbacks, "WAITING_MAX", 5)
    queue, heard = callbacks.CallbackQueue(), list[object]()
    gates = [threading.Event(), threading.Event()]
    begun = [threading.Event(), threading.Event()]

    def block(at: int) -> None:
        begun[at].set()
        gates[at].wait(PATIENCE_S)

    def put(count: int) -> None:
        changes = [Change("function_added", "a::b", "w", "w", None, "e", seq, 1) for seq in range(count)]
        queue.put_changes(lambda told: heard.append(len(told)), lambda told: heard.append(told[0].kind), changes)

    queue.put(block, 0)
    assert begun[0].wait(PATIENCE_S)
    queue.put(block, 1)
    put(2)
    put(2)
    gates[0].set()
    assert begun[1].wait(PATIENCE_S)
    put(10)
    gates[1].set()
    queue.put(heard.append, "later")
    until(lambda: heard[-1:] == ["later"])
    assert heard == ["reset", "later"]


def test_so_many_callbacks_may_block_at_once_and_the_next_ones_run_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "THREADS_MAX", 3)
    monkeypatch.setattr(callbacks, "_threads", callbacks.Threads())
    begun: list[threading.Event] = []

    def block(go_on: threading.Event) -> None:
        begun.append(go_on)
        go_on.wait(PATIENCE_S)

    for _ in range(5):  # of five workers
        callbacks.CallbackQueue().put(block, threading.Event())
    until(lambda: len(begun) == 3)
    time.sleep(20 * callbacks.STUCK_S)
    assert len(begun) == 3
    begun[0].set()
    until(lambda: len(begun) == 4)
    begun[1].set()
    until(lambda: len(begun) == 5)
    for go_on in begun:
        go_on.set()


def test_coroutine_callbacks_that_run_at_once_are_limited(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each change made a task, however many had not ended.
    monkeypatch.setattr(coroutines, "RUNNING_MAX", 100)
    heard: list[Change] = []
    running_now = most = 0

    async def listen() -> None:
        go_on = asyncio.Event()

        async def slowly(change: Change) -> None:
            nonlocal running_now, most
            running_now += 1
            most = max(most, running_now)
            heard.append(change)
            await go_on.wait()
            running_now -= 1

        with RawPeer(broker.url) as peer:
            async with AsyncWorker("listener", broker.url) as worker:
                peer.join("changer")
                worker.on_change("flood::*")(slowly)
                await asyncio.to_thread(flood_changes, peer, 250)
                last = peer.status()["seq"]
                while worker.position.seq < last or running_now < 100:
                    await asyncio.sleep(0.005)
                go_on.set()
                while worker.counters["readers_reset"] == 0:
                    await asyncio.sleep(0.005)
                register(peer, "flood::last")
                while not heard or heard[-1].function_id != "flood::last":
                    await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(listen(), PATIENCE_S))
    assert (len(heard), most) == (102, 100)
    check_no_silent_gap(heard)


def register(peer: RawPeer, function_id: str) -> None:
    peer.send(wire.Register(peer.number(), [entry(function_id)]))
    assert peer.read(wire.Ack).refusals == []


def check_no_silent_gap(heard: list[Change]) -> None:
    """Who missed something was told so, by exactly one reset for each hole."""
    for before, after in pairwise(heard):
        assert after.kind == "reset" or after.seq == before.seq + 1
    assert Counter(change.kind for change in heard)["reset"] >= 1
