"""`AsyncWorker`: the same face with await, on the event loop that started it.

    the loop watches the descriptors of the Link's sockets, and one timer stands for the core's next deadline
    `_turn`: poll, pump, events, flush, and again until a poll finds nothing

Invariant: a libzmq descriptor tells only of edges, and any send or receive may swallow one. So a turn ends with a poll
that found nothing, or calls for the next turn itself. All methods belong to the loop's thread, except where a pool
thread hands a result back through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ... import errors, wire
from ...core.worker.changes import Change, Position
from ...core.worker.core import WorkerCore
from ...core.worker.events import CLOSED, CONNECTED
from ...core.worker.membership import IDLE
from ...core.worker.offers import first_refusal
from ...core.worker.replica import Replica
from ...core.worker.views import Function, WorkerInfo
from . import arguments, keeper, payloads, tasks
from .arguments import Handler, HandlerOptions
from .async_driver import Loop
from .callbacks import Callbacks
from .handlers import Handlers
from .lifecycle import no_session
from .listeners import Buffer, Callback, Listeners, check_pattern
from .run_signals import told_of_signals

if TYPE_CHECKING:
    from typing_extensions import Unpack

CLOSE_S = 0.5  # what `close()` gives to results that are about to be sent

_F = TypeVar("_F", bound=Handler)
_C = TypeVar("_C", bound=Callback)


class AsyncWorker:
    """A process's place in the system, for programs with an event loop. Arguments as for `Worker`.

    `async def` handlers run as tasks, and are cancelled when nobody waits for them any more; plain ones run in threads,
    or, with `threads=0`, on the loop itself.
    """

    def __init__(
        self,
        name: str,
        url: str | None = None,
        *,
        stream_url: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        threads: int = 8,
        credit: int = 128,
        connect_timeout: float = 5.0,
        retry: bool = False,
        observer: bool = False,
    ) -> None:
        self._profile = arguments.make_profile(name, url, stream_url, metadata, credit, observer)
        self._threads = arguments.check_threads(threads)
        self._connect_timeout = payloads.check_timeout(connect_timeout)
        self._retry = retry
        self._handlers = Handlers()
        self._callbacks = Callbacks()
        self._listeners = Listeners(self._callbacks.call)
        self._core = self._new_core()
        self._loop: Loop | None = None
        self._joining: Loop | None = None  # while there is none yet: for `close()` to end
        self._closed = False
        self._starting = asyncio.Lock()
        self._over: asyncio.Event | None = None

    # -- offering ------------------------------------------------------------------------------------------------------

    def function(self, function_id: str, **options: Unpack[HandlerOptions]) -> Callable[[_F], _F]:
        """A decorator: records the decorated function as handler; for use before the start."""
        arguments.check_own_id(function_id)

        def decorate(handler: _F) -> _F:
            if self._loop is not None or self._joining is not None:
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
        options: HandlerOptions = {
            "description": description, "metadata": metadata, "request_schema": request_schema,
            "response_schema": response_schema, "exclusive": exclusive, "idempotent": idempotent,
            "internal": internal, "replace": replace,
        }  # fmt: skip
        await self.register_many([(function_id, handler)], **options)

    async def register_many(
        self, batch: Mapping[str, Handler] | Iterable[Any], **options: Unpack[HandlerOptions]
    ) -> None:
        """Offers several functions: {id: handler}, or (id, handler), or (id, handler, options of its own).

        Up to `wire.BATCH_MAX` (1,024) functions are one atomic change, more go as several. `options` hold for all.
        """
        items = arguments.read_batch(batch)
        self._check_not_closed()
        async with self._starting:
            prepared, before = self._record(items, options)
            loop = self._loop
        if loop is not None and prepared:
            entries = {name: entry for name, (_, entry) in prepared.items()}
            refusals = await self._settle(loop, self._core.offers.register(entries))
            if refusals:
                self._handlers.put_back(before, [name for name, _, _ in refusals])
                raise first_refusal(refusals, len(prepared))

    async def unregister(self, *function_ids: str) -> None:
        """Offers these no longer; returns when everybody knows. Raises: ValueError for what was not registered."""
        self._check_not_closed()
        async with self._starting:
            for function_id in function_ids:
                arguments.check_own_id(function_id)
                if function_id not in self._handlers:
                    raise ValueError(f"{function_id} is not registered by this worker")
            self._handlers.remove(list(function_ids))
            loop = self._loop
        if loop is not None:
            await self._settle(loop, self._core.offers.unregister(function_ids))

    # -- calling -------------------------------------------------------------------------------------------------------

    async def call(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> Any:
        """The function's answer; `worker` (an id) asks for that provider. Raises: CallFailed, see errors.py."""
        loop = self._loop or self._check_started()
        number, answer = loop.call(function_id, payload, timeout, worker)
        try:
            return await answer
        except asyncio.CancelledError:
            loop.give_up(number)
            raise

    def submit(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> asyncio.Future[Any]:
        """As `call`, but returns a future at once. Cancelling it gives the call up."""
        loop = self._loop or self._check_started()
        return loop.submit(function_id, payload, timeout, worker)

    async def send(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> None:
        """As `call`, but wants no answer. What fails later is only counted. Raises: Busy, see `Worker.send`."""
        loop = self._check_started()
        data = payloads.check_call(function_id, payload, timeout, worker)
        timeout = payloads.inherit_deadline(timeout)
        self._core.call(function_id, data, timeout, time.monotonic(), worker or "", wire.NO_ANSWER)
        loop.turn_soon()

    # -- the registry --------------------------------------------------------------------------------------------------

    @property
    def functions(self) -> Mapping[str, Function]:
        """All functions of the system by id: live, read-only."""
        self._check_not_forked()
        return self._core.replica.functions

    @property
    def workers(self) -> Mapping[str, WorkerInfo]:
        """All workers of the system by worker id: live, read-only."""
        self._check_not_forked()
        return self._core.replica.workers

    @property
    def replica(self) -> Replica:
        """This worker's copy of the registry, for those who want to know more of it."""
        return self._core.replica

    @property
    def position(self) -> Position:
        """How far this worker's view is: `.epoch` and `.seq`."""
        self._check_not_forked()
        return self._core.replica.position

    @property
    def digest(self) -> str:
        """Hex digest of this worker's view; equal to the broker's at the same position."""
        self._check_not_forked()
        return self._core.replica.digest.hex()

    async def wait_for(self, *function_ids: str, timeout: float | None = 30.0) -> None:
        """Returns once each function has a provider. Raises: WaitTimeout, which names what is missing."""
        wanted = arguments.check_wanted(function_ids)
        if timeout is not None:
            payloads.check_timeout(timeout)
        loop = self._check_started()
        has_provider = self._core.replica.has_provider
        if not await tasks.wait(loop, lambda: all(map(has_provider, wanted)), timeout):
            self._check_started()
            raise errors.WaitTimeout([one for one in wanted if not has_provider(one)])

    def changes(self, pattern: str = "*", *, timeout: float | None = None) -> AsyncIterator[Change]:
        """Every change from now on, as it comes, until the worker is closed or `timeout` seconds have passed."""
        fresh = asyncio.Event()
        buffer = Buffer(pattern, fresh.set)
        self._listeners.add_buffer(buffer)
        until = None if timeout is None else time.monotonic() + payloads.check_timeout(timeout)
        return self._iterate(buffer, fresh, until)

    def on_change(self, pattern: str | _C = "*") -> Any:
        """A decorator: calls the function with each Change whose function id matches (worker changes only with "*").

        An `async def` function becomes a task of its own for each change.
        """
        if not isinstance(pattern, str) and callable(pattern):
            return self.on_change("*")(pattern)
        checked = check_pattern(pattern)

        def decorate(callback: _C) -> _C:
            self._listeners.add_on_change(checked, callback)
            return callback

        return decorate

    def on_state(self, callback: _C) -> _C:
        """Calls the function with each new `state`; also a decorator."""
        self._listeners.add_on_state(callback)
        return callback

    # -- itself --------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._profile.name

    @property
    def id(self) -> str | None:
        """The worker id that the broker gave; None before the start. A new one after a lost session."""
        welcome = self._core.membership.welcome
        return None if welcome is None else welcome.worker_id

    @property
    def state(self) -> str:
        """connecting, connected, stale or closed; "new" before the start."""
        if self._is_forked():
            return CLOSED
        return self._core.membership.state

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far, by name; each is told in docs/protocol.md."""
        return self._core.counted() | {"readers_reset": self._listeners.resets + self._callbacks.resets}

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins; the loop serves from then on. Returns when the view is complete and all functions are registered.

        Raises: BrokerUnreachable after `connect_timeout` (unless `retry`); Refused; Closed.
        """
        self._move_in()
        async with self._starting:
            self._check_not_closed()
            if self._loop is not None:
                return
            if self._core.membership.phase != IDLE:  # a failed start is behind us
                self._core = self._new_core()
            loop = self._joining = Loop(self._core, self._handlers, self._listeners, self._threads)
            try:
                refusals = await tasks.join(loop, None if self._retry else self._connect_timeout)
                if refusals:
                    raise first_refusal(refusals, len(self._handlers))
                self._check_not_closed()
            except BaseException as error:
                loop.end()
                if isinstance(error, Exception):
                    self._check_not_closed()  # then that is what happened, whatever followed from it
                raise
            finally:
                self._joining = None
            self._loop = loop
            loop.watch = keeper.keep(loop)

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

    async def drain(self, timeout: float = arguments.DRAIN_S) -> bool:
        """Leaves without a gap: no new calls are taken, what runs and waits ends, then the worker is closed.

        Returns False when something was still open after `timeout` seconds; it is then left to itself.
        """
        payloads.check_timeout(timeout)
        loop = self._check_started()
        try:
            return await tasks.drain(loop, timeout)
        finally:
            await self.close()

    async def close(self) -> None:
        """Leaves at once. Calls that are still open fail. May be repeated, and ends a `start()` of another task."""
        self._closed = True
        if self._over is not None:
            self._over.set()
        if self._joining is not None:
            self._joining.end()
        if self._loop is not None and self._loop.unusable is None:
            try:
                self._loop.check()
            except errors.Closed:
                return
            keeper.drop(self._loop.watch)
            await tasks.leave(self._loop, CLOSE_S)

    async def __aenter__(self) -> AsyncWorker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._loop is not None and self._loop.unusable is None:
            await self.drain()
        else:
            await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.name}: a worker can't be sent to another process: make a new one there")

    # -- private -------------------------------------------------------------------------------------------------------

    def _new_core(self) -> WorkerCore:
        return WorkerCore(
            self._profile, random=random.random, patience_s=self._connect_timeout,
            is_watched=self._listeners.hear_changes, shared=arguments.shared,
        )  # fmt: skip

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
        if self._loop is not None and self._loop.unusable is None:
            await self.drain()

    def _is_forked(self) -> bool:
        return self._loop is not None and self._loop.unusable is keeper.FORKED

    def _check_not_forked(self) -> None:
        if self._is_forked():
            raise errors.Closed(keeper.FORKED)

    def _move_in(self) -> None:
        """A worker that was made before a fork, and not started, is the child's own."""
        if self._loop is None and self._profile.pid != os.getpid():
            self._profile = replace(self._profile, pid=os.getpid())
            self._core, self._joining, self._starting = self._new_core(), None, asyncio.Lock()

    def _record(self, items: list[Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Checked and taken over: what is new, and what was there before."""
        if self._profile.observer:
            raise ValueError("an observer offers no functions")
        self._check_not_closed()
        prepared = self._handlers.prepare(items, options)
        return prepared, self._handlers.put(prepared)

    async def _settle(self, loop: Loop, ticket: int) -> list[tuple[str, str, str]]:
        """Waits until the broker answered and the replica shows it. Raises: Closed, BrokerUnreachable."""
        loop.turn_soon()
        timeout = None if self._retry else self._connect_timeout
        while not await tasks.wait(loop, lambda: ticket in loop.desk.settled, timeout):
            self._check_started()
            if self._core.membership.state != CONNECTED:
                self._core.offers.abandon(ticket)
                raise no_session(self._profile.url, self._core.membership.trouble)
        return loop.desk.settled.pop(ticket)

    async def _iterate(self, buffer: Buffer, fresh: asyncio.Event, until: float | None) -> AsyncIterator[Change]:
        loop = self._check_started()
        while True:
            fresh.clear()
            while buffer.waiting:
                yield buffer.waiting.popleft()
            left = None if until is None else until - time.monotonic()
            if loop.unusable is not None or (left is not None and left <= 0):
                return
            await tasks.wait(loop, lambda: bool(buffer.waiting), left)

    def _check_not_closed(self) -> None:
        if self._closed:
            raise errors.Closed("the worker was closed")
        if self._loop is not None:
            self._loop.check()

    def _check_started(self) -> Loop:
        loop = self._loop
        if loop is None:
            text = "closed" if self._closed else "not started: use `await start()`, `await run()` or `async with`"
            raise errors.Closed(f"the worker was {text}")
        loop.check()
        return loop
