"""The product itself, by its shipped `Worker` and `AsyncWorker`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.measure import memory_mib, tcp_bytes_received
from bench.peers import install, lanes, watching
from bench.peers.peer import CALLS, CHANGES, DEATHS, JOINS, STORMS, Peer
from bench.processes import Broker, Child
from bench.roles import answer, ready

FUNCTION_ID = "bench::echo"
READY_S = 30.0
CONNECT_S = 60.0  # a thousand connect at once, to two CPUs
JOINING_MAX = 100  # threads in which one process of a storm joins: one a worker
LOADERS, BATCH = 10, 1_000  # one worker may offer 150,000 functions


def echo(payload: object) -> object:
    return payload


def _run(role: Coroutine[Any, Any, None]) -> None:
    import uvloop

    uvloop.run(role)


class Product(Peer):
    """A broker of its own."""

    key = "iii"
    kind = "product"
    name = "Worker"
    what = "iii_zmq through its broker, `Worker` with `threads=0` on both sides"
    does = frozenset({CALLS, CHANGES, DEATHS, STORMS, JOINS})
    entries_beside = 1  # the function that is called while others join
    broker: Broker

    def start(self) -> None:
        self.broker = self.children.broker()
        self.address, self.servers = {"url": self.broker.url}, [self.broker.child]

    def traffic(self) -> Child:
        """A caller that calls while others join (`begin`, `end`), and whom it calls."""
        self.role("provider", number=0).answer()
        caller = self.children.start("workers.caller", **self.address, function_id=FUNCTION_ID)
        caller.answer()
        return caller


class Async(Product):
    name = "AsyncWorker"
    what = "the same, `AsyncWorker` on uvloop on both sides, as the other Python clients"
    does = frozenset({CALLS, CHANGES, DEATHS, STORMS})

    @classmethod
    def install(cls) -> None:
        install.uvloop_venv()

    @classmethod
    def versions(cls) -> dict[str, str]:
        return install.python_versions(install.uvloop_venv(), "uvloop")

    @classmethod
    def python(cls) -> str:
        return str(install.uvloop_venv())

    def role(self, role: str, **details: Any) -> Child:
        both = role in ("victim", "loader", "joiner")
        return super().role(role if both else f"async_{role}", **details)


# Calls ---------------------------------------------------------------------------------------


def provider(url: str, number: int) -> None:
    from iii_zmq import Worker

    worker = Worker(f"provider-{number}", url, threads=0)
    worker.register(FUNCTION_ID, echo)
    worker.start()
    ready()
    threading.Event().wait()


def async_provider(url: str, number: int) -> None:
    _run(_async_provider(url, number))


async def _async_provider(url: str, number: int) -> None:
    from iii_zmq import AsyncWorker

    async def async_echo(payload: object) -> object:
        return payload

    async with AsyncWorker(f"provider-{number}", url) as worker:
        await worker.register(FUNCTION_ID, async_echo)
        ready()
        await asyncio.Event().wait()


def caller(url: str) -> None:
    from iii_zmq import Worker

    with Worker("caller", url, threads=0) as worker:
        worker.wait_for(FUNCTION_ID, timeout=READY_S)
        submit, clock = worker.submit, time.monotonic_ns

        def many(payload: bytes, window: int, until_ns: int) -> int:
            """Futures in order: the oldest call is the next to be answered, or soon."""
            open_calls = deque(submit(FUNCTION_ID, payload) for _ in range(window))
            count = 0
            while clock() < until_ns:
                open_calls.popleft().result()
                open_calls.append(submit(FUNCTION_ID, payload))
                count += 1
            for future in open_calls:
                assert len(future.result()) == len(payload)
            return count + window

        lanes.serve(lambda payload: worker.call(FUNCTION_ID, payload), many)


def async_caller(url: str) -> None:
    _run(_async_caller(url))


async def _async_caller(url: str) -> None:
    from iii_zmq import AsyncWorker

    async with AsyncWorker("caller", url) as worker:
        await worker.wait_for(FUNCTION_ID, timeout=READY_S)
        await lanes.serve_async(lambda payload: worker.call(FUNCTION_ID, payload))


# The registry --------------------------------------------------------------------------------


def _follow(worker: Any, member: watching.Member) -> None:
    signs = {"function_added": "+", "function_removed": "-"}

    def note(change: Any) -> None:
        if sign := signs.get(change.kind):
            member.note(sign + change.function_id.removeprefix("bench::"))

    worker.on_change("*")(note)


def observers(url: str, number: int) -> None:
    """Workers with a thread each, as `start()` makes them."""
    from iii_zmq import Worker

    pool = ThreadPoolExecutor(JOINING_MAX)

    async def in_thread(do: Any, *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(pool, do, *arguments)

    async def join(member: watching.Member, at: int, is_observer: bool = True) -> Any:
        name = f"observer-{number}-{at}"
        worker = Worker(name, url, threads=0, connect_timeout=CONNECT_S, observer=is_observer)
        if is_observer:
            _follow(worker, member)
        await in_thread(worker.start)
        return worker

    async def join_storm(member: watching.Member, at: int) -> Any:
        return await join(member, at, is_observer=False)

    async def enter(worker: Any, name: str) -> None:
        await in_thread(worker.register, f"bench::{name}", echo)

    asyncio.run(watching.serve(join, enter, _count, _digest, join_storm))


def async_observers(url: str, number: int) -> None:
    from iii_zmq import AsyncWorker

    async def join(member: watching.Member, at: int, is_observer: bool = True) -> Any:
        name = f"observer-{number}-{at}"
        worker = AsyncWorker(name, url, threads=0, connect_timeout=CONNECT_S, observer=is_observer)
        if is_observer:
            _follow(worker, member)
        await worker.start()
        return worker

    async def join_storm(member: watching.Member, at: int) -> Any:
        return await join(member, at, is_observer=False)

    async def enter(worker: Any, name: str) -> None:
        await worker.register(f"bench::{name}", echo)

    _run(watching.serve(join, enter, _count, _digest, join_storm))


def _count(worker: Any) -> int:
    return len(worker.functions)


def _digest(worker: Any) -> str:
    found: str = worker.digest
    return found


def changer(url: str) -> None:
    from iii_zmq import Worker

    with Worker("changer", url, threads=0) as worker:

        def change(name: str) -> int:
            began = time.monotonic_ns()
            worker.register(f"bench::{name}", echo)
            return began

        ready()
        answer(change=change)


def async_changer(url: str) -> None:
    _run(_async_changer(url))


async def _async_changer(url: str) -> None:
    from iii_zmq import AsyncWorker

    async with AsyncWorker("changer", url) as worker:
        await watching.change(lambda name: worker.register(f"bench::{name}", echo))


def victim(url: str, name: str) -> None:
    from iii_zmq import Worker

    worker = Worker("victim", url, threads=0)
    worker.register(f"bench::{name}", echo)
    worker.start()
    ready(name)
    threading.Event().wait()


def loader(url: str) -> None:
    from iii_zmq import Worker

    crowd = [Worker(f"loader-{number}", url, threads=0) for number in range(LOADERS)]
    for worker in crowd:
        worker.start()
    made = 0
    ready()

    def load(total: int) -> int:
        nonlocal made
        while made < total:
            until = min(made + BATCH, total)
            batch = [(f"bench::f{number:07d}", echo) for number in range(made, until)]
            crowd[made // BATCH % LOADERS].register_many(batch)
            made = until
        return made

    answer(load=load)


def joiner(url: str) -> None:
    from iii_zmq import Worker

    worker = Worker("joiner", url, threads=0)  # no I/O before start()
    ready()

    def join(total: int) -> dict[str, float]:
        before, began = memory_mib(os.getpid()), time.monotonic_ns()
        worker.start()
        ended = time.monotonic_ns()
        assert len(worker.functions) == total, f"{len(worker.functions)} of {total}"
        return {"began": began, "ended": ended, "bytes": tcp_bytes_received(), "mib": memory_mib(os.getpid()) - before}

    answer(join=join)
