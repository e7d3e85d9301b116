"""`Worker`: the face for programs without an event loop. It checks, asks its driver, and raises what came of it.

Before `start()`, `run()` or `with`, it only records. Any thread may use it; a handler or callback may, too. Who drives
its link is told in sync_driver.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ... import errors
from ...core.worker.changes import Change
from ...core.worker.membership import IDLE
from ...core.worker.offers import Refusal, first_refusal
from . import arguments, payloads
from .arguments import Handler, HandlerOptions
from .futures import CallFuture
from .lifecycle import CLOSE_S, DRAIN_S
from .listeners import Buffer, Listeners
from .run_signals import RunSignals
from .sync_driver import Driver
from .view import View

if TYPE_CHECKING:
    from typing_extensions import Unpack

_F = TypeVar("_F", bound=Handler)


class Worker(View):
    """A process's place in the system: offers functions, calls others', watches the registry.

    `threads`: how many handlers may run at once, each in a thread; 0 runs them inline, one after the other, for the
    lowest latency. `credit`: how many calls the broker hands over before it queues. `retry`: wait for a broker that is
    not there yet, instead of raising after `connect_timeout` seconds. `observer`: join without a row in the registry.

    Handlers run in threads of the worker, or with `threads=0` in one thread of its own; callbacks run in a few threads
    that all workers of the process share. One thread of the process, the hub, does all the rest.

    Raises: TypeError, ValueError. Does no I/O.
    """

    _driver: Driver | None
    _joining: Driver | None
    _starting: threading.RLock  # held for a moment only; reentrant for signal handlers

    def _prepare(self) -> Listeners:
        self._starting = threading.RLock()
        return Listeners()

    # -- offering ------------------------------------------------------------------------------------------------------

    def function(self, function_id: str, **options: Unpack[HandlerOptions]) -> Callable[[_F], _F]:
        """A decorator: `register` with the decorated function as handler."""
        arguments.check_own_id(function_id)

        def decorate(handler: _F) -> _F:
            self.register(function_id, handler, **options)
            return handler

        return decorate

    def register(
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
        self.register_many(
            [(function_id, handler)], description=description, metadata=metadata, request_schema=request_schema,
            response_schema=response_schema, exclusive=exclusive, idempotent=idempotent, internal=internal,
            replace=replace,
        )  # fmt: skip

    def register_many(self, batch: Mapping[str, Handler] | Iterable[Any], **options: Unpack[HandlerOptions]) -> None:
        """Offers several functions: {id: handler}, or (id, handler), or (id, handler, options of its own).

        Up to `wire.BATCH_MAX` (1,024) functions are one atomic change, more go as several. `options` hold for all.
        """
        items = arguments.read_batch(batch)
        for function_id, handler, _ in items:
            if inspect.iscoroutinefunction(handler):
                raise TypeError(f"{function_id}: an `async def` handler needs an AsyncWorker")
        self._check_not_closed()
        self._move_in()
        with self._starting:
            self._check_not_closed()  # meanwhile
            entries, before = self._record(items, options)
            driver = self._driver or self._joining
        if driver is not None and entries:
            refusals = self._settle(driver, lambda: driver.guest.stay.register(entries))
            if refusals:
                self._handlers.put_back(before, [name for name, _, _ in refusals])
                raise first_refusal(refusals, len(entries))

    def unregister(self, *function_ids: str) -> None:
        """Offers these no longer; returns when everybody knows. Raises: ValueError for what was not registered."""
        self._check_not_closed()
        with self._starting:
            self._check_registered(function_ids)
            driver = self._driver or self._joining
            if driver is None:
                self._handlers.remove(list(function_ids))
        if driver is not None:
            self._settle(driver, lambda: driver.guest.stay.unregister(function_ids))

    # -- calling -------------------------------------------------------------------------------------------------------

    def call(self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None) -> Any:
        """The function's answer; `worker` (an id) asks for that provider. Raises: CallFailed, see errors.py."""
        driver = self._check_started()
        data = payloads.check_call(function_id, payload, timeout, worker)
        return payloads.unpack_result(driver.call(function_id, data, payloads.inherit_deadline(timeout), worker or ""))

    def submit(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> CallFuture:
        """As `call`, but returns a `concurrent.futures.Future` at once. Cancelling it gives the call up."""
        driver = self._driver or self._check_started()
        return driver.submit(function_id, payload, timeout, worker)

    def send(self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None) -> None:
        """As `call`, but wants no answer: returns when it is on its way. What fails later is only counted.

        Raises: Busy when more is on its way already than the broker has read.
        """
        driver = self._check_started()
        data = payloads.check_call(function_id, payload, timeout, worker)
        driver.send(function_id, data, payloads.inherit_deadline(timeout), worker or "")

    # -- the registry --------------------------------------------------------------------------------------------------

    def wait_for(self, *function_ids: str, timeout: float | None = 30.0) -> None:
        """Returns once each function has a provider. Raises: WaitTimeout, which names what is missing."""
        wanted = arguments.check_wanted(function_ids)
        if timeout is not None:
            payloads.check_timeout(timeout)
        driver = self._check_started()
        if not driver.wait(lambda: not self._missing(wanted), timeout):
            self._check_started()
            raise errors.WaitTimeout(self._missing(wanted))

    def changes(self, pattern: str = "*", *, timeout: float | None = None) -> Iterator[Change]:
        """Every change from now on, as it comes, until the worker is closed or `timeout` seconds have passed."""
        buffer = Buffer(pattern)
        self._listeners.add_buffer(buffer)
        return self._iterate(buffer, None if timeout is None else time.monotonic() + payloads.check_timeout(timeout))

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Joins, and serves in the background. Returns when the view is complete and all functions are registered.

        Raises: BrokerUnreachable after `connect_timeout` (unless `retry`); Refused; Closed.
        """
        self._open()

    def run(self) -> None:
        """Joins and serves in this thread until Ctrl-C, SIGTERM or `close()`; then drains. Raises: as `start`."""
        with RunSignals() as signals:
            driver = self._open(signals)
            try:
                driver.wait(lambda: signals.came)
                self._drain(DRAIN_S)
            except BaseException:
                self.close()
                raise

    def drain(self, timeout: float = DRAIN_S) -> bool:
        """Leaves without a gap: no new calls are taken, what runs and waits ends, then the worker is closed.

        Returns False when something was still open after `timeout` seconds; it is then left to itself.
        """
        payloads.check_timeout(timeout)
        self._check_started()
        return self._drain(timeout)

    def close(self) -> None:
        """Leaves at once. Calls that are still open fail. May be repeated, and end a `start()` of another thread."""
        self._closed = True
        driver, joining = self._driver, self._joining
        if driver is not None:
            driver.leave(CLOSE_S)
        elif joining is not None:
            joining.waiting.wake()

    def __enter__(self) -> Worker:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        driver = self._driver
        if kind is None and driver is not None and driver.guest.unusable is None:
            self._drain(DRAIN_S)
        else:
            self.close()

    # -- private -------------------------------------------------------------------------------------------------------

    def _resets(self) -> int:
        return 0 if self._driver is None else self._driver.callbacks.resets

    def _unusable(self) -> str | None:
        return None if self._driver is None else self._driver.guest.unusable

    def _open(self, signals: RunSignals | None = None) -> Driver:
        """Joins, unless that was done before. A thread that finds another one joining waits for that."""
        self._move_in()
        while True:
            with self._starting:
                self._check_not_closed()
                if self._driver is not None:
                    return self._driver
                joining = self._joining
                driver = joining or self._begin()
            if joining is None:
                return self._join(driver, signals)
            self._wait_for_other(joining)

    def _wait_for_other(self, joining: Driver) -> None:
        joining.wait(lambda: self._joining is not joining or self._closed)

    def _begin(self) -> Driver:
        if self._core.membership.phase != IDLE:  # a failed start is behind us
            self._core = self._new_core()
        driver = self._joining = Driver(self._core, self._handlers, self._listeners, self._threads)
        try:
            driver.guest.do(lambda: driver.guest.stay.join(self._patience_s))
        except BaseException:
            self._joining = None
            driver.leave(0.0)
            raise
        return driver

    def _join(self, driver: Driver, signals: RunSignals | None) -> Driver:
        stay = driver.guest.stay
        try:
            if signals is not None:
                signals.then = driver.waiting.wake
            while not driver.wait(
                lambda: stay.has_joined() or self._closed or (signals is not None and signals.came), stay.slice_s
            ):
                stay.check_patience(driver.guest.ended)
            stay.check_joined()
            self._driver = driver
        except BaseException:
            self._joining = None
            driver.leave(0.0)
            raise
        finally:
            self._joining = None
        driver.waiting.wake()
        if self._closed:  # by another thread, which saw no driver that it could end
            driver.leave(0.0)
            if signals is None:
                raise errors.Closed("the worker was closed")
        return driver

    def _drain(self, timeout: float) -> bool:
        driver = self._driver
        try:
            if driver is None or driver.guest.unusable is not None:
                return True
            driver.guest.do(driver.guest.stay.drain)
            return driver.wait(lambda: driver.guest.stay.has_drained() and not driver.waiting.calls, timeout)
        finally:
            self.close()

    def _settle(self, driver: Driver, ask: Callable[[], int]) -> list[Refusal]:
        """Waits until the broker answered and the replica shows it. Raises: Closed, BrokerUnreachable."""
        guest = driver.guest
        ticket = guest.do(ask)
        while not driver.wait(lambda: guest.stay.is_settled(ticket), self._patience_s):
            if guest.unusable is not None:
                raise errors.Closed(guest.unusable)
            guest.stay.check_session(ticket)
        return guest.stay.pop_refusals(ticket)

    def _iterate(self, buffer: Buffer, until: float | None) -> Iterator[Change]:
        driver = self._check_started()
        while True:
            while buffer.waiting:
                yield buffer.waiting.popleft()
            left = None if until is None else until - time.monotonic()
            if driver.guest.unusable is not None or (left is not None and left <= 0):
                return
            driver.wait(lambda: bool(buffer.waiting), left)

    def _move_in(self) -> None:
        if self._driver is None and self._profile.pid != os.getpid():
            super()._move_in()
            self._joining, self._starting = None, threading.RLock()

    def _check_started(self) -> Driver:
        driver = self._driver
        if driver is None:
            text = "the worker was closed" if self._closed else "the worker was not started: start(), run() or 'with'"
            raise errors.Closed(text)
        if driver.guest.unusable is not None:
            raise errors.Closed(driver.guest.unusable)
        return driver
