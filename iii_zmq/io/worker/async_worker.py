"""`AsyncWorker`: the same face with await, on the loop that started it. It checks, asks its driver, and awaits."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ... import errors, wire
from ...core.worker.changes import Change
from ...core.worker.membership import IDLE
from ...core.worker.offers import Refusal, first_refusal
from . import arguments, hub, payloads
from .arguments import Handler, HandlerOptions
from .async_driver import AsyncDriver
from .coroutines import CoroutineCallbacks, wait
from .lifecycle import CLOSE_S, DRAIN_S, LEFT_S
from .listeners import Buffer, Listeners
from .run_signals import told_of_signals
from .view import View

if TYPE_CHECKING:
    from typing_extensions import Unpack

_F = TypeVar("_F", bound=Handler)


class AsyncWorker(View):
    """A process's place in the system, for programs with an event loop. Arguments as for `Worker`.

    `async def` handlers run as tasks, and are cancelled when nobody waits for them any more; plain ones run in threads,
    or, with `threads=0`, on the loop itself.
    """

    _driver: AsyncDriver | None
    _joining: AsyncDriver | None

    def _prepare(self) -> Listeners:
        self._starting = asyncio.Lock()
        self._over: asyncio.Event | None = None
        self._callbacks = CoroutineCallbacks()
        return Listeners(self._callbacks.call)

    # -- offering ------------------------------------------------------------------------------------------------------

    def function(self, function_id: str, **options: Unpack[HandlerOptions]) -> Callable[[_F], _F]:
        """A decorator: records the decorated function as handler; for use before the start."""
        arguments.check_own_id(function_id)

        def decorate(handler: _F) -> _F:
            if self._driver is not None or self._joining is not None:
                raise errors.Closed(f"{function_id}: the worker is started: use `await worker.register(...)`")
            self._record([(function_id, handler, {})], options)
            return handler

        return decorate

    async def register(
        self,
        function_id: str,
        handler: Handler,
        *,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        request_schema: Mapping[str, Any] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        exclusive: bool = False,
        idempotent: bool = False,
        internal: bool = False,
        replace: bool = False,
    ) -> None:
        """Offers a function. Before the start it is only recorded; afterwards this returns when everybody can call it.

        Raises: TypeError, ValueError for what is malformed or registered already; Refused when the broker says no.
        """
        await self.register_many(
            [(function_id, handler)], description=description, metadata=metadata, request_schema=request_schema,
            response_schema=response_schema, exclusive=exclusive, idempotent=idempotent, internal=internal,
            replace=replace,
        )  # fmt: skip

    async def register_many(
        self, batch: Mapping[str, Handler] | Iterable[Any], **options: Unpack[HandlerOptions]
    ) -> None:
        """Offers several functions: {id: handler}, or (id, handler), or (id, handler, options of its own).

        Up to `wire.BATCH_MAX` (1,024) functions are one atomic change, more go as several. `options` hold for all.
        """
        items = arguments.read_batch(batch)
        self._check_not_closed()
        async with self._starting:
            self._check_not_closed()
            entries, before = self._record(items, options)
            driver = self._driver
        if driver is not None and entries:
            refusals = await self._settle(driver, driver.stay.register(entries))
            if refusals:
                self._handlers.put_back(before, [name for name, _, _ in refusals])
                raise first_refusal(refusals, len(entries))

    async def unregister(self, *function_ids: str) -> None:
        """Offers these no longer; returns when everybody knows. Raises: ValueError for what was not registered."""
        self._check_not_closed()
        async with self._starting:
            self._check_registered(function_ids)
            driver = self._driver
            if driver is None:
                self._handlers.remove(list(function_ids))
        if driver is not None:
            await self._settle(driver, driver.stay.unregister(function_ids))

    # -- calling -------------------------------------------------------------------------------------------------------

    async def call(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> Any:
        """The function's answer; `worker` (an id) asks for that provider. Raises: CallFailed, see errors.py."""
        driver = self._driver or self._check_started()
        number, answer = driver.call(function_id, payload, timeout, worker)
        try:
            return await answer
        except asyncio.CancelledError:
            driver.give_up(number)
            raise

    def submit(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> asyncio.Future[Any]:
        """As `call`, but returns a future at once. Cancelling it gives the call up."""
        driver = self._driver or self._check_started()
        return driver.submit(function_id, payload, timeout, worker)

    async def send(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> None:
        """As `call`, but wants no answer. What fails later is only counted. Raises: Busy, see `Worker.send`."""
        driver = self._check_started()
        data = payloads.check_call(function_id, payload, timeout, worker)
        timeout = payloads.inherit_deadline(timeout)
        self._core.call(function_id, data, timeout, time.monotonic(), worker or "", wire.NO_ANSWER)
        driver.turn_soon()

    # -- the registry --------------------------------------------------------------------------------------------------

    async def wait_for(self, *function_ids: str, timeout: float | None = 30.0) -> None:
        """Returns once each function has a provider. Raises: WaitTimeout, which names what is missing."""
        wanted = arguments.check_wanted(function_ids)
        if timeout is not None:
            payloads.check_timeout(timeout)
        driver = self._check_started()
        if not await wait(driver, lambda: not self._missing(wanted), timeout):
            self._check_started()
            raise errors.WaitTimeout(self._missing(wanted))

    def changes(self, pattern: str = "*", *, timeout: float | None = None) -> AsyncIterator[Change]:
        """Every change from now on, as it comes, until the worker is closed or `timeout` seconds have passed."""
        fresh = asyncio.Event()
        buffer = Buffer(pattern, fresh.set)
        self._listeners.add_buffer(buffer)
        until = None if timeout is None else time.monotonic() + payloads.check_timeout(timeout)
        return self._iterate(buffer, fresh, until)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins; the loop serves from then on. Returns when the view is complete and all functions are registered.

        Raises: BrokerUnreachable after `connect_timeout` (unless `retry`); Refused; Closed.
        """
        self._move_in()
        async with self._starting:
            self._check_not_closed()
            if self._driver is not None:
                return
            if self._core.membership.phase != IDLE:  # a failed start is behind us
                self._core = self._new_core()
            driver = self._joining = AsyncDriver(self._core, self._handlers, self._listeners, self._threads)
            try:
                await self._join(driver)
                self._check_not_closed()
            except BaseException as error:
                driver.end()
                if isinstance(error, Exception):
                    self._check_not_closed()  # then that is what happened, whatever followed from it
                raise
            finally:
                self._joining = None
            self._driver = driver
            hub.shared().ring(driver)

    async def run(self) -> None:
        """Joins and serves until Ctrl-C, SIGTERM or `close()`; then drains. Raises: as `start`.

        Signal handlers of the user's own are left as they are. When its task is cancelled the worker is closed.
        """
        self._check_not_closed()
        self._over = asyncio.Event()
        start = asyncio.ensure_future(self.start())
        over = asyncio.ensure_future(self._over.wait())
        try:
            with told_of_signals(self._over.set):
                await self._serve_until(start, over)
        except asyncio.CancelledError:
            start.cancel()
            await self.close()
            raise
        finally:
            if not over.get_loop().is_closed():
                over.cancel()

    async def drain(self, timeout: float = DRAIN_S) -> bool:
        """Leaves without a gap: no new calls are taken, what runs and waits ends, then the worker is closed.

        Returns False when something was still open after `timeout` seconds; it is then left to itself.
        """
        payloads.check_timeout(timeout)
        driver = self._check_started()
        driver.stay.drain()
        driver.turn_soon()
        try:
            return await wait(driver, lambda: driver.stay.has_drained() and not driver.has_open_calls, timeout)
        finally:
            await self.close()

    async def close(self) -> None:
        """Leaves at once. Calls that are still open fail. May be repeated, and ends a `start()` of another task."""
        self._closed = True
        if self._over is not None:
            self._over.set()
        if self._joining is not None:
            self._joining.end()
        driver = self._driver
        if driver is not None and driver.unusable is None:
            try:
                driver.check()
            except errors.Closed:
                return
            await self._leave(driver)
            hub.shared().ring(driver)  # to find that it has ended
            hub.ended(driver)

    async def __aenter__(self) -> AsyncWorker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._driver is not None and self._driver.unusable is None:
            await self.drain()
        else:
            await self.close()

    # -- private -------------------------------------------------------------------------------------------------------

    def _resets(self) -> int:
        return self._callbacks.resets

    def _unusable(self) -> str | None:
        return None if self._driver is None else self._driver.unusable

    async def _serve_until(self, start: asyncio.Future[None], over: asyncio.Future[Any]) -> None:
        await asyncio.wait([start, over], return_when=asyncio.FIRST_COMPLETED)
        if not over.done():
            start.result()
            await over
        else:
            start.cancel()
            await asyncio.wait([start])
            if not start.cancelled():
                start.exception()  # of no interest: it was told to end
        if self._driver is not None and self._driver.unusable is None:
            await self.drain()

    async def _join(self, driver: AsyncDriver) -> None:
        """Raises: BrokerUnreachable, Refused."""
        stay = driver.stay
        stay.join(self._patience_s)
        driver.turn_soon()
        while not await wait(driver, stay.has_joined, stay.slice_s):
            stay.check_patience(driver.unusable is not None)
        stay.check_joined()

    async def _leave(self, driver: AsyncDriver) -> None:
        """Bye, a moment for results that are about to be sent, and the end."""
        self._core.leave()
        driver.turn_soon()
        if not driver.is_handlers_task(asyncio.current_task()):
            await wait(driver, lambda: not len(self._core.incoming), CLOSE_S)
            await wait(driver, lambda: self._core.has_left, LEFT_S)
        driver.end()

    async def _settle(self, driver: AsyncDriver, ticket: int) -> list[Refusal]:
        """Waits until the broker answered and the replica shows it. Raises: Closed, BrokerUnreachable."""
        driver.turn_soon()
        while not await wait(driver, lambda: driver.stay.is_settled(ticket), self._patience_s):
            self._check_started()
            driver.stay.check_session(ticket)
        return driver.stay.pop_refusals(ticket)

    async def _iterate(self, buffer: Buffer, fresh: asyncio.Event, until: float | None) -> AsyncIterator[Change]:
        driver = self._check_started()
        while True:
            fresh.clear()
            while buffer.waiting:
                yield buffer.waiting.popleft()
            left = None if until is None else until - time.monotonic()
            if driver.unusable is not None or (left is not None and left <= 0):
                return
            await wait(driver, lambda: bool(buffer.waiting), left)

    def _move_in(self) -> None:
        if self._driver is None and self._profile.pid != os.getpid():
            super()._move_in()
            self._joining, self._starting = None, asyncio.Lock()

    def _check_not_closed(self) -> None:
        super()._check_not_closed()
        if self._driver is not None:
            self._driver.check()

    def _check_started(self) -> AsyncDriver:
        driver = self._driver
        if driver is None:
            text = "closed" if self._closed else "not started: use `await start()`, `await run()` or `async with`"
            raise errors.Closed(f"the worker was {text}")
        driver.check()
        return driver
