"""`Worker`: the face for programs without an event loop. It checks, asks its Driver, and raises what came of it.

Before `start()`, `run()` or `with`, it only records. Any thread may use it; a handler may, too. Where its Link is
driven, and by whom, is told in driving.py. More than 20 methods, because it is one word for each thing that users do.
"""

from __future__ import annotations

import inspect
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ... import errors
from ...core.worker.changes import Change, Position
from ...core.worker.core import WorkerCore
from ...core.worker.events import CLOSED, CONNECTED
from ...core.worker.membership import IDLE
from ...core.worker.offers import first_refusal
from ...core.worker.replica import Replica
from ...core.worker.views import Function, WorkerInfo
from . import arguments, keeper, payloads
from .arguments import Handler, HandlerOptions
from .futures import CallFuture
from .handlers import Handlers
from .lifecycle import Stay, no_session
from .listeners import Buffer, Callback, Listeners, call_in_place, check_pattern
from .sync_driver import Driver

if TYPE_CHECKING:
    from typing_extensions import Unpack

CLOSE_S = 0.5  # what `close()` gives to results that are about to be sent

_F = TypeVar("_F", bound=Handler)
_C = TypeVar("_C", bound=Callback)


class Worker:
    """A process's place in the system: offers functions, calls others', watches the registry.

    `threads`: how many handlers may run at once, each in a thread; 0 runs them inline, one after the other, for the
    lowest latency. `credit`: how many calls the broker hands over before it queues. `retry`: wait for a broker that is
    not there yet, instead of raising after `connect_timeout` seconds. `observer`: join without a row in the registry.

    Callbacks and inline handlers of one worker run one after the other, but not always in the same thread: where a
    process has eight workers or more, one thread serves them all, and another one goes on when it is kept for long.

    Raises: TypeError, ValueError. Does no I/O.
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
        self._listeners = Listeners(call_in_place)
        self._core = self._new_core()
        self._driver: Driver | None = None
        self._stay: Stay | None = None  # as long as there is a driver
        self._joining: Driver | None = None  # while there is none yet: for `close()` to wake
        self._closed = False
        self._starting = threading.RLock()  # reentrant: callbacks of the start itself may register

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
        options: HandlerOptions = {
            "description": description, "metadata": metadata, "request_schema": request_schema,
            "response_schema": response_schema, "exclusive": exclusive, "idempotent": idempotent,
            "internal": internal, "replace": replace,
        }  # fmt: skip
        self.register_many([(function_id, handler)], **options)

    def register_many(self, batch: Mapping[str, Handler] | Iterable[Any], **options: Unpack[HandlerOptions]) -> None:
        """Offers several functions: {id: handler}, or (id, handler), or (id, handler, options of its own).

        Up to `wire.BATCH_MAX` (1,024) functions are one atomic change, more go as several. `options` hold for all.
        """
        items = arguments.read_batch(batch)
        for function_id, handler, _ in items:
            if inspect.iscoroutinefunction(handler):
                raise TypeError(f"{function_id}: an `async def` handler needs an AsyncWorker")
        if self._profile.observer:
            raise ValueError("an observer offers no functions")
        self._check_not_closed()
        self._move_in()
        with self._starting:
            self._check_not_closed()  # meanwhile
            prepared = self._handlers.prepare(items, options)
            before = self._handlers.put(prepared)
            driver = self._driver or self._joining
        if driver is not None and prepared:
            if driver is self._driver:
                driver.serve_always()
            entries = {name: entry for name, (_, entry) in prepared.items()}
            refusals = self._settle(driver, lambda: self._core.offers.register(entries))
            if refusals:
                self._handlers.put_back(before, [name for name, _, _ in refusals])
                raise first_refusal(refusals, len(prepared))

    def unregister(self, *function_ids: str) -> None:
        """Offers these no longer; returns when everybody knows. Raises: ValueError for what was not registered."""
        self._check_not_closed()
        with self._starting:
            for function_id in function_ids:
                arguments.check_own_id(function_id)
                if function_id not in self._handlers:
                    raise ValueError(f"{function_id} is not registered by this worker")
            driver = self._driver or self._joining
            if driver is None:
                self._handlers.remove(list(function_ids))
        if driver is not None:
            self._settle(driver, lambda: self._withdraw(function_ids))

    # -- calling -------------------------------------------------------------------------------------------------------

    def call(self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None) -> Any:
        """The function's answer; `worker` (an id) asks for that provider. Raises: CallFailed, see errors.py."""
        driver = self._check_started()
        data = payloads.check_call(function_id, payload, timeout, worker)
        timeout = payloads.inherit_deadline(timeout)
        if not driver.enter():
            return driver.submit(function_id, data, timeout, worker or "").wait()
        try:
            answer = driver.call_here(function_id, data, timeout, worker or "")
        finally:
            driver.leave()
        return payloads.unpack_result(answer)

    def submit(
        self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None
    ) -> CallFuture:
        """As `call`, but returns a `concurrent.futures.Future` at once. Cancelling it gives the call up."""
        driver = self._driver or self._check_started()
        return driver.ask(function_id, payload, timeout, worker)

    def send(self, function_id: str, payload: Any = None, *, timeout: float = 30.0, worker: str | None = None) -> None:
        """As `call`, but wants no answer: returns when it is on its way. What fails later is only counted.

        Raises: Busy when more is on its way already than the broker has read.
        """
        driver = self._check_started()
        data = payloads.check_call(function_id, payload, timeout, worker)
        driver.send(function_id, data, payloads.inherit_deadline(timeout), worker or "")

    # -- the registry --------------------------------------------------------------------------------------------------

    @property
    def functions(self) -> Mapping[str, Function]:
        """All functions of the system by id: live, read-only."""
        self._look()
        return self._core.replica.functions

    @property
    def workers(self) -> Mapping[str, WorkerInfo]:
        """All workers of the system by worker id: live, read-only."""
        self._look()
        return self._core.replica.workers

    @property
    def replica(self) -> Replica:
        """This worker's copy of the registry, for those who want to know more of it."""
        return self._core.replica

    @property
    def position(self) -> Position:
        """How far this worker's view is: `.epoch` and `.seq`."""
        self._look()
        return self._core.replica.position

    @property
    def digest(self) -> str:
        """Hex digest of this worker's view; equal to the broker's at the same position."""
        self._look()
        return self._core.replica.digest.hex()

    def wait_for(self, *function_ids: str, timeout: float | None = 30.0) -> None:
        """Returns once each function has a provider. Raises: WaitTimeout, which names what is missing."""
        wanted = arguments.check_wanted(function_ids)
        if timeout is not None:
            payloads.check_timeout(timeout)
        driver = self._check_started()
        has_provider = self._core.replica.has_provider
        if not driver.wait(lambda: all(map(has_provider, wanted)), timeout):
            self._check_started()
            raise errors.WaitTimeout([one for one in wanted if not has_provider(one)])

    def changes(self, pattern: str = "*", *, timeout: float | None = None) -> Iterator[Change]:
        """Every change from now on, as it comes, until the worker is closed or `timeout` seconds have passed."""
        buffer = Buffer(pattern)
        self._listeners.add_buffer(buffer)
        return self._iterate(buffer, None if timeout is None else time.monotonic() + payloads.check_timeout(timeout))

    def on_change(self, pattern: str | _C = "*") -> Any:
        """A decorator: calls the function with each Change whose function id matches (worker changes only with "*")."""
        if not isinstance(pattern, str) and callable(pattern):
            return self.on_change("*")(pattern)
        checked = check_pattern(pattern)

        def decorate(callback: _C) -> _C:
            self._listeners.add_on_change(checked, callback)
            self._serve_if_needed()
            return callback

        return decorate

    def on_state(self, callback: _C) -> _C:
        """Calls the function with each new `state`; also a decorator."""
        self._listeners.add_on_state(callback)
        self._serve_if_needed()
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
        self._look()
        return self._core.membership.state

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far, by name; each is told in docs/protocol.md."""
        return self._core.counted() | {"readers_reset": self._listeners.resets}

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Joins, and serves in the background. Returns when the view is complete and all functions are registered.

        Raises: BrokerUnreachable after `connect_timeout` (unless `retry`); Refused; Closed.
        """
        self._open().serve_always()

    def run(self) -> None:
        """Joins and serves in this thread until Ctrl-C, SIGTERM or `close()`; then drains. Raises: as `start`."""
        with _Signals() as signals:
            driver = self._open(signals)
            try:
                driver.serve_here(signals.came)
                self._drain(arguments.DRAIN_S)
            except BaseException:
                self.close()
                raise

    def drain(self, timeout: float = arguments.DRAIN_S) -> bool:
        """Leaves without a gap: no new calls are taken, what runs and waits ends, then the worker is closed.

        Returns False when something was still open after `timeout` seconds; it is then left to itself.
        """
        payloads.check_timeout(timeout)
        self._check_started()
        return self._drain(timeout)

    def close(self) -> None:
        """Leaves at once. Calls that are still open fail. May be repeated, and end a `start()` of another thread."""
        self._closed = True
        joining = self._joining
        if self._stay is not None:
            self._stay.leave(CLOSE_S)
        elif joining is not None:
            joining.wake()

    def __enter__(self) -> Worker:
        driver = self._open()
        if len(self._handlers) or self._listeners:
            driver.serve_always()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        driver = self._driver
        if kind is None and driver is not None and driver.unusable is None:
            self._drain(arguments.DRAIN_S)
        else:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.name}: a worker can't be sent to another process: make a new one there")

    # -- private -------------------------------------------------------------------------------------------------------

    def _new_core(self) -> WorkerCore:
        return WorkerCore(
            self._profile, random=random.random, patience_s=self._connect_timeout,
            is_watched=self._listeners.hear_changes, shared=arguments.shared,
        )  # fmt: skip

    def _open(self, signals: _Signals | None = None) -> Driver:
        """Joins, unless that was done before."""
        self._move_in()
        with self._starting:
            self._check_not_closed()
            if self._driver is not None:
                return self._check_started()
            if self._joining is not None:
                raise RuntimeError("the worker is starting already: this is one of its own callbacks")
            if self._core.membership.phase != IDLE:  # a failed start is behind us
                self._core = self._new_core()
            driver = self._joining = Driver(self._core, self._handlers, self._listeners, self._threads)
            stay = Stay(driver, self._handlers)
            if signals is not None:
                signals.driver = driver
            try:
                refusals = stay.join(
                    None if self._retry else self._connect_timeout,
                    lambda: self._closed or (signals is not None and signals.came()),
                )
                if refusals:
                    raise first_refusal(refusals, len(self._handlers))
            except BaseException:
                stay.leave(0.0)
                raise
            finally:
                self._joining = None
            self._driver, self._stay = driver, stay
            if self._closed:  # by another thread or a callback, which saw no stay that it could end
                stay.leave(0.0)
                if signals is None:
                    raise errors.Closed("the worker was closed")
            return driver

    def _drain(self, timeout: float) -> bool:
        done = self._stay is None or self._stay.drain(timeout)
        self.close()
        return done

    def _withdraw(self, function_ids: tuple[str, ...]) -> int:
        """The handlers go after the Unregister: what they are not run for any more finds the heir promoted."""
        ticket = self._core.offers.unregister(function_ids)
        self._handlers.remove(list(function_ids))
        return ticket

    def _settle(self, driver: Driver, ask: Callable[[], int]) -> list[tuple[str, str, str]]:
        """Waits until the broker answered and the replica shows it. Raises: Closed, BrokerUnreachable."""
        ticket = driver.do(ask)
        while not driver.wait(lambda: ticket in driver.desk.settled, None if self._retry else self._connect_timeout):
            if driver is self._driver:
                self._check_started()
            if self._core.membership.state != CONNECTED:
                driver.do(lambda: self._core.offers.abandon(ticket))
                raise no_session(self._profile.url, self._core.membership.trouble)
        return driver.desk.settled.pop(ticket)

    def _iterate(self, buffer: Buffer, until: float | None) -> Iterator[Change]:
        driver = self._check_started()
        while True:
            while buffer.waiting:
                yield buffer.waiting.popleft()
            left = None if until is None else until - time.monotonic()
            if driver.unusable is not None or (left is not None and left <= 0):
                return
            driver.wait(lambda: bool(buffer.waiting), left)

    def _look(self) -> None:
        """Raises: Closed in a fork's child, where nothing would ever change."""
        if self._is_forked():
            raise errors.Closed(keeper.FORKED)
        if self._driver is not None:
            self._driver.look()

    def _serve_if_needed(self) -> None:
        if self._is_forked():
            raise errors.Closed(keeper.FORKED)
        if self._driver is not None:
            self._driver.serve_always()

    def _is_forked(self) -> bool:
        return self._driver is not None and self._driver.unusable is keeper.FORKED

    def _move_in(self) -> None:
        """A worker that was made before a fork, and not started, is the child's own."""
        if self._driver is None and self._profile.pid != os.getpid():
            self._profile = replace(self._profile, pid=os.getpid())
            self._core, self._joining, self._starting = self._new_core(), None, threading.RLock()

    def _check_not_closed(self) -> None:
        if self._closed:
            raise errors.Closed("the worker was closed")
        if self._driver is not None and self._driver.unusable is not None:
            raise errors.Closed(self._driver.unusable)

    def _check_started(self) -> Driver:
        driver = self._driver
        if driver is None:
            text = "the worker was closed" if self._closed else "the worker was not started: start(), run() or 'with'"
            raise errors.Closed(text)
        if driver.unusable is not None:
            raise errors.Closed(driver.unusable)
        return driver


class _Signals:
    """While `run()` runs in the main thread, Ctrl-C and SIGTERM end it; a second one interrupts the draining.

    Handlers of the user's own are left as they are.
    """

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self._came = False
        self._before: dict[int, Any] = {}

    def came(self) -> bool:
        return self._came

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is usual or signal.getsignal(number) == usual:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        if self.driver is not None:
            self.driver.wake()
