"""The same as member.py, with the face for event loops: all of a process's workers on one loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from iii_zmq import AsyncWorker, Closed, IIIError

from .deeds import Deeds, Refusing
from .member import DRAIN_S, MUST_S
from .plan import ANY, FAIL, RELAY, Will, Wish, lead, offers, own
from .records import Recorder


class AsyncMember:
    """All of it belongs to the loop's thread. Handlers are `async def`, or, of every other worker, plain ones."""

    def __init__(self, name: str, index: int, url: str, will: Will, recorder: Recorder) -> None:
        self.deeds = Deeds(name, recorder)
        self.index = index
        self._will = will
        self._worker = AsyncWorker(name, url, retry=True, threads=0 if index % 5 == 0 else 4, credit=8)
        self._is_calm = asyncio.Event()
        self._joined = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._offered = offers(index)
        self._worker.on_change("*")(self.deeds.heard)
        self._worker.on_state(lambda state: self.deeds.state(state, self._worker.id))
        for function_id, options in self._offered.items():
            self._worker.function(function_id, **options)(self._handler(function_id))

    # -- orders of the host --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._begin(self._live())
        self._begin(self._churn())

    def calm(self) -> None:
        self._is_calm.set()

    def flood(self, count: int) -> None:
        self._begin(self._flood(count))

    def tell(self) -> dict[str, Any]:
        worker = self._worker
        is_idle = self._joined.is_set() and not self.deeds.open_calls and all(task.done() for task in self._tasks)
        return {
            "worker": self.deeds.name, "id": worker.id, "state": worker.state, "idle": is_idle,
            "position": list(worker.position), "digest": worker.digest, "workers": len(worker.workers),
        }  # fmt: skip

    async def finish(self, workers: int) -> None:
        for function_id in (own((self.index + 1) % workers), ANY, lead(0)):
            wish = Wish(function_id, MUST_S, "call")
            call = self.deeds.begin_call(wish, must=True)
            await self._call(call, wish, None)
        self.deeds.level(self._worker.id, *self._worker.position, self._worker.digest)

    async def leave(self, *, must: bool) -> None:
        self.calm()
        self.deeds.leaving()
        try:
            is_drained = await self._worker.drain(MUST_S if must else DRAIN_S)
            if must and not is_drained:
                self.deeds.trouble(f"something is still open after a drain of {MUST_S:g} s")
        except Closed:
            await self._worker.close()
        await asyncio.wait(self._tasks, timeout=DRAIN_S)
        until = time.monotonic() + DRAIN_S
        while self.deeds.open_calls and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.deeds.left()

    # -- its own acts --------------------------------------------------------------------------------------------------

    def _begin(self, act: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._watched(act)))

    async def _watched(self, act: Coroutine[Any, Any, None]) -> None:
        try:
            await act
        except Exception as error:
            self.deeds.trouble(f"{getattr(act, '__qualname__', act)}: {error!r}")

    async def _is_over(self, pause_s: float) -> bool:
        try:
            await asyncio.wait_for(self._is_calm.wait(), pause_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def _live(self) -> None:
        self.deeds.joining(list(self._offered))
        try:
            await self._worker.start()
        except Closed:
            return
        self.deeds.joined(*self._worker.position)
        self._joined.set()
        while not await self._is_over(self._will.pause_s()):
            await self._act(self._will.wishes())

    async def _act(self, wishes: list[Wish]) -> None:
        calls = []
        for wish in wishes:
            if wish.style == "send":
                await self._send(wish)
            elif wish.style == "cancel":
                calls.append(self._cancelled(wish))
            else:
                calls.append(self._call(self.deeds.begin_call(wish), wish, self._target(wish)))
        await asyncio.gather(*calls)

    def _target(self, wish: Wish) -> str | None:
        function = self._worker.functions.get(wish.function_id) if wish.aimed else None
        return None if function is None else self._will.choice([one.worker_id for one in function.providers])

    async def _call(self, call: str, wish: Wish, target: str | None) -> None:
        payload = {"call": call, **wish.asks}
        try:
            answer = await self._worker.call(wish.function_id, payload, timeout=wish.timeout, worker=target)
        except IIIError as error:
            self.deeds.end_call(call, error=error)
        except asyncio.CancelledError:  # a handler whose own caller gave up
            self.deeds.give_call_up(call)
            raise
        else:
            self.deeds.end_call(call, answer)

    async def _cancelled(self, wish: Wish) -> None:
        call = self.deeds.begin_call(wish)
        try:
            future = self._worker.submit(wish.function_id, {"call": call, **wish.asks}, timeout=wish.timeout)
        except IIIError as error:
            self.deeds.end_call(call, error=error)
            return
        await asyncio.wait([future], timeout=self._will.pause_s() / 20)
        if future.cancel():
            self.deeds.give_call_up(call)
        elif (failure := future.exception()) is not None:
            self.deeds.end_call(call, error=failure)
        else:
            self.deeds.end_call(call, future.result())

    async def _send(self, wish: Wish) -> None:
        call = self.deeds.begin_send(wish)
        try:
            await self._worker.send(wish.function_id, {"call": call, **wish.asks}, timeout=wish.timeout)
        except IIIError:
            pass  # whether it runs or not: at most once

    async def _churn(self) -> None:
        await self._joined.wait()
        while not await self._is_over(self._will.churn_pause_s()):
            await self._register(self._will.batch())
            await self._unregister(self._will.gone())

    async def _flood(self, count: int) -> None:
        await self._joined.wait()  # before, registering waits too, or only records
        function_id = self._will.flooding()
        for _ in range(count):
            if self._is_calm.is_set():
                return
            await self._register([function_id])
            await self._unregister([function_id])

    async def _register(self, functions: list[str]) -> None:
        self.deeds.registering(functions)
        try:
            batch = [(one, self._handler(one)) for one in functions]
            await self._worker.register_many(batch, description=self._will.description())
        except IIIError as error:
            self.deeds.registered(functions, error)
        else:
            self.deeds.registered(functions)

    async def _unregister(self, functions: list[str]) -> None:
        if not functions:
            return
        self.deeds.unregistering(functions)
        try:
            await self._worker.unregister(*functions)
        except IIIError as error:
            self.deeds.unregistered(functions, error)
        else:
            self.deeds.unregistered(functions)

    def _handler(self, function_id: str) -> Callable[[dict[str, Any]], Any]:
        async def echo(payload: dict[str, Any]) -> str:
            call = self.deeds.run(payload)
            await asyncio.sleep(payload.get("nap", 0.0))
            return call

        def plain_echo(payload: dict[str, Any]) -> str:
            call = self.deeds.run(payload)
            time.sleep(payload.get("nap", 0.0))
            return call

        async def fail(payload: dict[str, Any]) -> str:
            raise Refusing(await echo(payload))

        async def relay(payload: dict[str, Any]) -> str:
            call = self.deeds.run(payload)
            wish = Wish(payload["next"], MUST_S, "call")
            await self._call(self.deeds.begin_call(wish), wish, None)
            return call

        return {FAIL: fail, RELAY: relay}.get(function_id, plain_echo if self.index % 2 else echo)


def run_on(loop: asyncio.AbstractEventLoop) -> threading.Thread:
    """The loop, in a thread of its own."""
    thread = threading.Thread(target=loop.run_forever, name="loop", daemon=True)
    thread.start()
    return thread
