"""The AsyncWorker against a real broker process: the same promises, with await."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iii_zmq import (
    AsyncWorker,
    BrokerLost,
    BrokerUnreachable,
    CallTimeout,
    Closed,
    NoProvider,
    Refused,
    RemoteError,
    WaitTimeout,
    current_call,
)
from tests.net.brokers import RunningBroker, environment, running_broker

pytestmark = pytest.mark.net

QUICK = ("--heartbeat", "0.1", "--ttl", "0.5")


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def url(broker: RunningBroker) -> str:
    return broker.url


async def echo(payload: Any) -> Any:
    return payload


async def until(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "value", [b"b" * 65_537, "ü" * 500_000, {"image": b"b" * 1_000_000}], ids=["bytes", "str", "map"]
)
def test_large_values_go_and_come_back(url: str, value: Any) -> None:
    async def main() -> None:
        async with AsyncWorker("provider", url) as provider, AsyncWorker("caller", url) as caller:
            await provider.register("large::echo", echo)
            assert await caller.call("large::echo", value) == value
            assert await asyncio.gather(*(caller.call("large::echo", value) for _ in range(4))) == [value] * 4

    asyncio.run(main())


@pytest.mark.parametrize("threads", [0, 2])
def test_handlers_of_both_kinds_answer(url: str, threads: int) -> None:
    async def main() -> None:
        provider = AsyncWorker("provider", url, threads=threads)

        @provider.function("kinds::async", description="awaits")
        async def awaiting(payload: Any) -> list[Any]:
            await asyncio.sleep(0)
            return [payload, current_call().function_id, current_call().remaining() > 20]

        @provider.function("kinds::plain")
        def plain(payload: Any) -> list[Any]:
            return [payload, current_call().function_id]

        await provider.register("kinds::fail", lambda payload: payload["missing"])
        await provider.start()
        async with AsyncWorker("caller", url) as caller:
            assert await caller.call("kinds::async", 1) == [1, "kinds::async", True]
            assert await caller.call("kinds::plain", 2, worker=provider.id) == [2, "kinds::plain"]
            with pytest.raises(RemoteError) as raised:
                await caller.call("kinds::fail", {})
            assert (raised.value.type, raised.value.text) == ("KeyError", "'missing'")
            with pytest.raises(NoProvider):
                await caller.call("kinds::absent")
            big = os.urandom(2_000_000)
            assert (await caller.call("kinds::plain", big))[0] == big
            assert caller.functions["kinds::async"].description == "awaits"
            assert len(caller.workers) >= 2
            await until(lambda: caller.position == provider.position)
            assert caller.digest == provider.digest
            assert caller.replica.complete
        await provider.close()

    asyncio.run(main())


def test_many_calls_at_once(url: str) -> None:
    async def main() -> None:
        async with AsyncWorker("provider", url) as provider, AsyncWorker("caller", url) as caller:
            await provider.register_many({"many::echo": echo, "many::plain": lambda payload: payload})
            await caller.wait_for("many::echo", "many::plain")
            for name in ("many::echo", "many::plain"):
                results = await asyncio.gather(*[caller.call(name, i) for i in range(500)])
                assert results == list(range(500))

    asyncio.run(main())


def test_workers_that_call_each_other_back(url: str) -> None:
    async def main() -> None:
        async with AsyncWorker("one", url) as one, AsyncWorker("two", url) as two:

            async def first(n: int) -> Any:
                return n if n == 0 else [await one.call("aring::two", n - 1)]

            async def second(n: int) -> Any:
                return n if n == 0 else [await two.call("aring::one", n - 1)]

            await one.register("aring::one", first)
            await two.register("aring::two", second)
            await one.wait_for("aring::two")
            assert await two.call("aring::one", 3) == [[[0]]]

    asyncio.run(main())


def test_a_handler_is_cancelled_when_its_caller_gave_up(url: str) -> None:
    async def main() -> None:
        started: list[Any] = []
        ended: list[str] = []

        async def slow(_: Any) -> None:
            started.append(None)
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                ended.append(f"cancelled {current_call().cancelled}")
                raise

        async with AsyncWorker("provider", url) as provider, AsyncWorker("caller", url) as caller:
            await provider.register("cancel::slow", slow)
            await caller.wait_for("cancel::slow")
            began = time.monotonic()
            with pytest.raises(CallTimeout):
                await caller.call("cancel::slow", timeout=0.25)
            assert 0.25 <= time.monotonic() - began < 4  # the handler would take 5 s
            await until(lambda: len(ended) == 1)
            future = caller.submit("cancel::slow")
            await until(lambda: len(started) == 2)
            assert future.cancel()
            await until(lambda: len(ended) == 2)
            task = asyncio.ensure_future(caller.call("cancel::slow"))
            await until(lambda: len(started) == 3)
            task.cancel()
            await until(lambda: len(ended) == 3)
            assert set(ended) == {"cancelled True"}
            assert caller.counters["calls_given_up"] == 2
            assert provider.counters["results_orphaned"] == 0

    asyncio.run(main())


def test_a_nested_call_has_what_is_left(url: str) -> None:
    async def main() -> None:
        spent: list[float] = []
        async with AsyncWorker("provider", url) as provider, AsyncWorker("caller", url) as caller:

            async def outer(_: Any) -> None:
                began = time.monotonic()
                try:
                    await provider.call("nested::inner", timeout=10)
                finally:
                    spent.append(time.monotonic() - began)

            async def inner(_: Any) -> None:
                await asyncio.sleep(5)

            await provider.register_many([("nested::outer", outer), ("nested::inner", inner)])
            await caller.wait_for("nested::outer")
            with pytest.raises(CallTimeout):
                await caller.call("nested::outer", timeout=0.3)
            await until(lambda: spent)
            assert spent[0] < 4  # without it, 5

    asyncio.run(main())


def test_registering_after_the_start(url: str) -> None:
    async def main() -> None:
        async with AsyncWorker("a", url) as one, AsyncWorker("b", url) as two:
            await one.register("areg::f", echo, exclusive=True)
            assert "areg::f" in one.functions
            with pytest.raises(ValueError, match="registered"):
                await one.register("areg::f", echo)
            await one.register("areg::f", echo, exclusive=True, description="new", replace=True)
            with pytest.raises(Refused) as raised:
                await two.register("areg::f", echo)
            assert raised.value.code == "conflict"
            with pytest.raises(Closed, match="started"):
                one.function("areg::g")(echo)
            await one.unregister("areg::f")
            assert "areg::f" not in one.functions
            with pytest.raises(ValueError, match="not registered"):
                await one.unregister("areg::f")
            await two.register("areg::f", echo)

    asyncio.run(main())


def test_watching(url: str) -> None:
    async def main() -> None:
        watcher = AsyncWorker("watcher", url)
        told: list[str] = []
        states: list[str] = []
        watcher.on_state(states.append)

        @watcher.on_change("awatch::*")
        async def on_change(change: Any) -> None:
            await asyncio.sleep(0)
            told.append(change.kind)
            raise ValueError("logged, and no more")

        everything: list[str] = []
        watcher.on_change(lambda change: everything.append(change.kind))
        async with watcher, AsyncWorker("shop", url) as shop:
            changes = watcher.changes("awatch::*", timeout=5)
            waiting = asyncio.ensure_future(watcher.wait_for("awatch::f", timeout=5))
            await asyncio.sleep(0.02)
            await shop.register("awatch::f", echo)
            await waiting
            assert (await anext(changes)).kind == "function_added"
            with pytest.raises(WaitTimeout) as raised:
                await watcher.wait_for("awatch::f", "awatch::never", timeout=0.05)
            assert raised.value.missing == ["awatch::never"]
            assert [change async for change in watcher.changes(timeout=0.01)] == []
            reading = asyncio.ensure_future(_count(watcher.changes()))
            await asyncio.sleep(0.01)
            await shop.close()
            await until(lambda: "function_removed" in told)
            await watcher.close()
            assert await asyncio.wait_for(reading, 5) >= 2
        assert "worker_left" in everything
        assert states == ["connecting", "connected", "closed"]

    asyncio.run(main())


async def _count(changes: Any) -> int:
    return len([change async for change in changes])


def test_an_absent_broker_and_a_second_start() -> None:
    async def main() -> None:
        worker = AsyncWorker("a", "tcp://127.0.0.1:9", connect_timeout=0.3)
        for _ in range(2):
            with pytest.raises(BrokerUnreachable, match="tcp:"):
                await worker.start()
        with pytest.raises(Closed, match="not started"):
            await worker.call("a::b")
        await worker.close()
        with pytest.raises(Closed, match="closed"):
            await worker.start()

    asyncio.run(main())


def test_after_close_everything_says_so(url: str) -> None:
    async def main() -> None:
        worker = AsyncWorker("a", url)
        await worker.start()
        await worker.start()
        await worker.close()
        await worker.close()
        assert worker.state == "closed"
        for use in (
            lambda: worker.call("a::b"),
            lambda: worker.send("a::b"),
            lambda: worker.register("a::b", echo),
            lambda: worker.unregister("a::b"),
            lambda: worker.wait_for("a::b"),
            worker.start,
            worker.run,
            worker.drain,
        ):
            with pytest.raises(Closed, match="closed"):
                await use()

    asyncio.run(main())


def test_sends_and_drain(url: str) -> None:
    async def main() -> None:
        heard: list[Any] = []

        async def slow(payload: Any) -> str:
            await asyncio.sleep(0.2)
            heard.append(payload)
            return "done"

        provider = AsyncWorker("provider", url, credit=1)
        await provider.register("adrain::slow", slow)
        await provider.start()
        async with AsyncWorker("caller", url) as caller:
            await caller.wait_for("adrain::slow")
            futures = [caller.submit("adrain::slow", i) for i in range(3)]
            await caller.send("adrain::slow", "sent")
            await caller.send("adrain::absent")
            await caller.call("engine::ping")  # what was asked before it has reached the broker, too
            assert await provider.drain(20)
            assert await asyncio.gather(*futures) == ["done"] * 3
            assert heard == [0, 1, 2, "sent"]
            assert caller.counters["sends_failed"] == 1

    asyncio.run(main())


def test_close_fails_what_is_open_and_cancels_what_runs(url: str) -> None:
    async def main() -> None:
        started = asyncio.Event()
        ended: list[str] = []

        async def slow(_: Any) -> None:
            started.set()
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        caller = AsyncWorker("caller", url)
        async with AsyncWorker("provider", url) as provider:
            await provider.register("aclose::slow", slow)
            await caller.start()
            await caller.wait_for("aclose::slow")
            future = caller.submit("aclose::slow")
            await started.wait()
            await caller.close()
            with pytest.raises(BrokerLost):
                await future
            await until(lambda: ended)

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_by_signal_and_drains(url: str, number: int) -> None:
    code = """
        import asyncio, sys
        from iii_zmq import AsyncWorker
        worker = AsyncWorker("runner", sys.argv[1])
        @worker.function("arun::sleep")
        async def sleep(seconds):
            await asyncio.sleep(seconds)
            return "done"
        asyncio.run(worker.run())
        print("after", worker.state)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), url]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    async def main() -> None:
        async with AsyncWorker("caller", url) as caller:
            await caller.wait_for("arun::sleep", timeout=10)
            future = caller.submit("arun::sleep", 0.4)
            await caller.call("engine::ping")
            process.send_signal(number)
            assert await asyncio.wait_for(future, 10) == "done"

    asyncio.run(main())
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out, err) == (0, "after closed\n", "")


def test_over_ipc(tmp_path: Path) -> None:
    async def main() -> None:
        with running_broker(url=f"ipc://{tmp_path}/b") as ipc:
            async with AsyncWorker("a", ipc.url) as worker:
                await worker.register("aipc::echo", echo)
                assert await worker.call("aipc::echo", 5) == 5

    asyncio.run(main())


@pytest.mark.fault
def test_after_the_death_of_the_broker_all_comes_back() -> None:
    async def main() -> None:
        with running_broker(*QUICK) as first:
            served = first.url
            worker = AsyncWorker("a", served)
            await worker.register("aback::echo", echo)
            await worker.register("aback::slow", lambda seconds: time.sleep(seconds))
            await worker.start()
            epoch = worker.position.epoch
            future = worker.submit("aback::slow", 6)
            await worker.call("engine::ping")
            first.process.kill()
            with pytest.raises(BrokerLost):
                await asyncio.wait_for(future, 5)
            first.process.wait()
            with running_broker(*QUICK, url=served):
                assert await worker.call("aback::echo", "again") == "again"
                await until(lambda: worker.state == "connected")
                assert worker.position.epoch != epoch
                assert len(worker.functions) == 2
                await worker.close()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["call", "submit", "send"])
def test_a_worker_is_used_in_its_own_loop_only(url: str, how: str) -> None:
    """Also where the same thread runs another one: what is asked would wait for a loop that stands still."""

    async def ask(worker: AsyncWorker) -> None:
        answer = getattr(worker, how)("engine::ping", timeout=5.0)
        await answer

    loop = asyncio.new_event_loop()
    try:
        worker = AsyncWorker("worker", url)
        loop.run_until_complete(worker.start())
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(ask(worker))
        loop.run_until_complete(ask(worker))
        loop.run_until_complete(worker.close())
    finally:
        loop.close()
    with pytest.raises(Closed, match="closed"):
        asyncio.run(ask(worker))
