"""Calls that are cancelled, or whose deadline passes, before their handler had a chance to begin."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from iii_zmq import AsyncWorker, CallTimeout, Worker, wire
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import RawPeer

pytestmark = [pytest.mark.net, pytest.mark.fault]

PATIENCE_S = 10.0
OVERDUE_S = 0.5


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


def test_a_call_cancelled_before_its_task_began_frees_its_slot(broker: RunningBroker) -> None:
    """1. A worker's loop is busy for a moment. 2. A call comes, its time is over, and Cancel comes after it. 3. The
    loop reads both in one turn: the task is cancelled before its first step, so that nothing in it ever runs, not even
    a `finally`. The broker got no answer, and the slot was taken for good: the only one of this worker.
    """
    ran = []

    async def late(payload: Any) -> Any:
        ran.append(payload)
        return payload

    async def main() -> None:
        worker = AsyncWorker("busy", broker.url, credit=1)
        worker.function("busy::late")(late)
        async with worker:
            with Worker("caller", broker.url) as caller:
                block_until_failed(caller.submit("busy::late", 1, timeout=0.05))
                assert await worker.call("busy::late", 2, timeout=PATIENCE_S) == 2

    asyncio.run(main())
    assert ran == [2]


def block_until_failed(future: Any) -> None:
    """Blocks the loop until the call has failed, and a moment longer, for its Cancel to arrive."""
    with pytest.raises(CallTimeout):
        future.result(PATIENCE_S)
    time.sleep(0.1)  # should Cancel come later still, the handler is merely cancelled once it has begun


class Behind:
    """A handler of a worker with one thread: its first call holds that thread until it is told to go on."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, payload: Any) -> Any:
        self.ran.append(payload)
        if payload == "holds":
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        return payload


Ping = Callable[[], Any]
"""Returns once the worker has read all that the broker had sent it."""


@contextmanager
def sync_provider(url: str, handler: Behind) -> Iterator[Ping]:
    with Worker("provider", url, threads=1) as worker:
        worker.register("behind::f", handler)
        yield lambda: worker.call("engine::ping")


@contextmanager
def async_provider(url: str, handler: Behind) -> Iterator[Ping]:
    """On a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE_S)

    worker = AsyncWorker("provider", url, threads=1)
    try:
        wait_for(worker.register("behind::f", handler))
        wait_for(worker.start())
        yield lambda: wait_for(worker.call("engine::ping"))
    finally:
        wait_for(worker.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def patient_broker() -> Iterator[RunningBroker]:
    """One that may be stopped for a moment, and nobody minds."""
    with running_broker("--heartbeat", "20", "--ttl", "60") as running:
        yield running


both = pytest.mark.parametrize("provider", [sync_provider, async_provider])


@both
def test_a_call_that_is_cancelled_while_it_waits_for_a_thread_never_runs(
    patient_broker: RunningBroker, provider: Any
) -> None:
    handler = Behind()
    with provider(patient_broker.url, handler) as ping, RawPeer(patient_broker.url) as caller:
        caller.join("caller", observer=True)
        caller.call("behind::f", wire.pack("holds"))
        assert handler.begun.wait(PATIENCE_S)
        given_up = caller.call("behind::f", wire.pack("cancelled"))
        last = caller.call("behind::f", wire.pack("last"))
        caller.send(wire.Cancel(given_up))
        caller.status()
        ping()
        handler.go_on.set()
        while caller.read(wire.Result).number != last:
            pass
    assert handler.ran == ["holds", "last"]


@both
def test_a_call_whose_deadline_passes_while_it_waits_for_a_thread_never_runs(
    patient_broker: RunningBroker, provider: Any
) -> None:
    """The broker, which would cancel it, is stopped meanwhile: the provider itself knows the deadline."""
    handler = Behind()
    with provider(patient_broker.url, handler) as ping, RawPeer(patient_broker.url) as caller:
        caller.join("caller", observer=True)
        caller.call("behind::f", wire.pack("holds"))
        assert handler.begun.wait(PATIENCE_S)
        ping()  # what it takes the first time is not to count
        caller.call("behind::f", wire.pack("overdue"), timeout_s=OVERDUE_S)
        last = caller.call("behind::f", wire.pack("last"))
        caller.status()
        ping()
        patient_broker.process.send_signal(signal.SIGSTOP)
        time.sleep(OVERDUE_S)  # the deadline itself
        handler.go_on.set()
        deadline = time.monotonic() + PATIENCE_S
        while "last" not in handler.ran and time.monotonic() < deadline:
            time.sleep(0.005)
        patient_broker.process.send_signal(signal.SIGCONT)
        while caller.read(wire.Result).number != last:
            pass
    assert handler.ran == ["holds", "last"]
