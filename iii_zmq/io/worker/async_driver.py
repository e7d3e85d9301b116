"""How the link of an AsyncWorker is driven: by its event loop, with a watcher for each descriptor and one timer.

Without a lock, because everything happens in the loop's thread, except where a pool thread hands a result back through
`call_soon_threadsafe`. Invariant: a turn ends when no socket may hold anything, or calls for the next turn itself,
because a libzmq descriptor tells of news only once.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ... import errors, wire
from ...core.worker.core import WorkerCore
from ...core.worker.events import CallEnded, CancelCall, RunCall
from . import hub
from .coroutines import run_handler
from .futures import AsyncCallFuture
from .handlers import NOT_STARTED, Handlers, Outcome, Pool, Raised, hand_back
from .lifecycle import CLOSED, Stay
from .link import Link
from .listeners import Listeners
from .payloads import check_call, inherit_deadline, unpack_result

TURNS_MAX: Final = 4  # bursts in a row before the loop's other tasks get a chance
LOOK_S: Final = 0.25  # how often the hub looks whether the event loop was closed

_clock: Final = time.monotonic
_ident: Final = threading.get_ident


class AsyncDriver:
    """Link, timer and tasks of one started AsyncWorker. A guest of the hub (see hub.Guest)."""

    def __init__(self, core: WorkerCore, handlers: Handlers, listeners: Listeners, threads: int) -> None:
        self.core = core
        self.link = Link(core)
        self._loop = asyncio.get_running_loop()
        self._thread_ident = _ident()
        self.handlers = handlers
        self._pool = Pool(f"iii-{core.profile.name}", threads, handlers, self._hand_back_soon) if threads else None
        self._waiters: dict[int, asyncio.Future[Any]] = {}
        self.conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks: dict[RunCall, asyncio.Task[None]] = {}
        self._watched: list[int] = []
        self._generation = -1
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_due = True  # something may be due: the core is to look
        self._is_turn_due = False
        self._is_told = False  # by a descriptor, that a socket holds something: one message, unless it was asked
        self.stay = Stay(core, handlers, listeners)
        self.unusable: str | None = None
        self.is_lent = False
        self._abandoning = threading.Lock()
        self._on: dict[type[Any], Callable[[Any], None]] = {
            CallEnded: self._on_call_ended, RunCall: self._run, CancelCall: self._on_cancel, **self.stay.on,
        }  # fmt: skip

    # -- what the face asks for ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises: Closed; RuntimeError in another loop than the one that started the worker."""
        if self.unusable is None and _ident() == self._thread_ident and self._loop.is_running():
            return  # as mostly; to ask for the running loop costs a system call
        if self.unusable is None and self._loop.is_closed():
            self._look_at_loop()
        if self.unusable is not None:
            raise errors.Closed(self.unusable)
        running = asyncio._get_running_loop()
        if running is not self._loop and running is not None:
            raise RuntimeError("the worker belongs to another event loop: make one in this loop")

    def call(self, function_id: Any, payload: Any, timeout: Any, worker: Any) -> tuple[int, asyncio.Future[Any]]:
        """The call's number, and what it ends; who does not wait for that any more is to `give_up`.

        A future of asyncio's own: a task that waits for one of another class takes longer to wake.
        Raises: TypeError, ValueError, Busy, Closed, RuntimeError as `check`.
        """
        self.check()
        data = check_call(function_id, payload, timeout, worker)
        future: asyncio.Future[Any] = self._loop.create_future()
        return self._begin(function_id, data, timeout, worker, future), future

    def submit(self, function_id: Any, payload: Any, timeout: Any, worker: Any) -> AsyncCallFuture:
        """A future that gives the call up by itself. Raises: as `call`."""
        self.check()
        data = check_call(function_id, payload, timeout, worker)
        future = AsyncCallFuture(loop=self._loop)
        number = self._begin(function_id, data, timeout, worker, future)
        future.give_up = lambda: self.give_up(number)
        return future

    def _begin(
        self, function_id: str, data: wire.Payload, timeout: float, worker: str | None, future: asyncio.Future[Any]
    ) -> int:
        number = self.core.call(function_id, data, inherit_deadline(timeout), _clock(), worker or "")
        self._waiters[number] = future
        self.turn_soon()
        return number

    def give_up(self, number: int) -> None:
        """Nobody waits for this call any more."""
        if self._waiters.pop(number, None) is not None:
            self.core.outgoing.give_up(number)
            self.turn_soon()

    @property
    def has_open_calls(self) -> bool:
        """Somebody waits for the outcome of a call."""
        return bool(self._waiters)

    def end(self) -> None:
        """The worker is over: everybody who waits is told."""
        self.unusable = self.unusable or CLOSED
        self.core.end(CLOSED)
        self.link.flush()
        for event in self.core.take_events():
            self._on[type(event)](event)
        for _, came in self.conditions:
            if not came.done():
                came.set_result(None)
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        self.link.close()
        if self._pool is not None:
            self._pool.close()

    # -- for the hub ---------------------------------------------------------------------------------------------------

    def take_turn(self, told: list[int]) -> float | None:
        """See hub.Guest. A worker that was left open in a loop that is closed would be a ghost."""
        self._look_at_loop()
        return None if self.unusable is not None else _clock() + LOOK_S

    def _look_at_loop(self) -> None:
        if self._loop.is_closed():
            self._abandon("the worker's event loop was closed")

    @property
    def watched(self) -> None:
        """The event loop watches the descriptors."""

    def forked(self) -> None:
        """In the child: the link and the loop are the parent's."""
        self.unusable = hub.FORKED

    def end_quickly(self, until: float) -> None:
        """The interpreter ends; the loop does not run any more, so nobody else uses the link."""
        if not self._loop.is_running():
            self._abandon("the interpreter is ending")

    def _abandon(self, text: str) -> None:
        """Nobody is there any more who could be told: a quick Bye, from whichever thread sees it first."""
        with self._abandoning:
            if self.unusable is None:
                self.unusable = text
                hub.ended(self)
                self.core.leave()
                self.core.end(text)
                self.link.flush()
                self.link.close()
                if self._pool is not None:
                    self._pool.close()

    # -- driving -------------------------------------------------------------------------------------------------------

    def turn_soon(self) -> None:
        """After something was asked of the core: what is asked in this round of the loop goes out together."""
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Sends what is to be sent, and reads until nothing is left; see the invariant above."""
        self._is_turn_due = False
        if self.unusable is not None and self._watched == []:
            return
        link = self.link
        self._handle_events()
        for _ in range(TURNS_MAX):
            if self._is_told:
                self._is_told = False
            elif not link.may_hold() and not self._is_due:
                break
            self._is_due = False
            is_answered = link.pump()
            self._handle_events()
            if is_answered or link.is_heavy:
                self.turn_soon()  # after the tasks that this woke: what they ask for leaves with it
                break
        else:
            self.turn_soon()
        if link.generation != self._generation:
            self._watch()
        self._set_timer()

    def _handle_events(self) -> bool:
        """Whether something was sent or done."""
        core = self.core
        events = core.take_events()
        while events:
            for event in events:
                self._on[type(event)](event)
            if self.conditions:
                self._look_at_conditions()
            events = core.take_events()
        return self.link.flush()

    def _watch(self) -> None:
        """The sockets are others now. A turn follows: an edge may have passed unseen."""
        self._unwatch()
        self._generation = self.link.generation
        self._watched = list(self.link.descriptors)
        for fd in self._watched:
            self._loop.add_reader(fd, self._on_readable, fd)
        self.turn_soon()

    def _unwatch(self) -> None:
        for fd in self._watched:
            self._loop.remove_reader(fd)
        self._watched = []

    def _on_readable(self, fd: int) -> None:
        self.link.readable(fd)
        self._is_told = True
        self._turn()

    def _set_timer(self) -> None:
        """One that rings too early does no harm: only an earlier deadline needs a new one."""
        due = self.core.next_deadline()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - _clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._is_due = True
        self._turn()

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_call_ended(self, event: CallEnded) -> None:
        waiter = self._waiters.pop(event.number, None)
        if waiter is not None:
            _end(waiter, event.outcome)

    def _on_cancel(self, event: CancelCall) -> None:
        """A task that is cancelled before its first step never gets to its `finally`: it is answered for here."""
        run = event.run
        task = self._tasks.get(run)
        if task is None:
            return
        task.cancel()
        if inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED:  # type: ignore[arg-type]  # it is one
            del self._tasks[run]
            self._hand_back(run, NOT_STARTED)

    def _look_at_conditions(self) -> None:
        for is_true, came in self.conditions:
            if not came.done() and is_true():
                came.set_result(None)

    # -- handlers ------------------------------------------------------------------------------------------------------

    def _run(self, run: RunCall) -> None:
        handler = self.handlers.coroutine(run.function_id)
        if handler is not None:
            self._tasks[run] = self._loop.create_task(run_handler(self.ran, run, handler))
        elif self._pool is not None:
            self._pool.put(run)
        else:
            self._run_inline(run)

    def _run_inline(self, run: RunCall) -> None:
        outcome: Outcome = NOT_STARTED
        try:
            outcome = self.handlers.run_here(run, _clock())
        except BaseException as error:  # Ctrl-C: the handler did run
            outcome = Raised(error)
            raise
        finally:
            hand_back(self.core.incoming, run, outcome)

    def ran(self, run: RunCall, outcome: Outcome) -> None:
        """Its handler's task has ended, or is only collected because the loop was closed."""
        self._tasks.pop(run, None)
        if not self._loop.is_closed():
            self._hand_back(run, outcome)

    def is_handlers_task(self, task: asyncio.Task[object] | None) -> bool:
        """Whether this is the task of a handler."""
        return task in self._tasks.values()

    def _hand_back_soon(self) -> None:
        """In a thread of the pool."""
        try:
            self._loop.call_soon_threadsafe(self._hand_back_done)
        except RuntimeError:
            pass  # the loop is closed: nobody is there to send it

    def _hand_back_done(self) -> None:
        pool = self._pool
        assert pool is not None
        while pool.done:
            self._hand_back(*pool.done.popleft())

    def _hand_back(self, run: RunCall, outcome: Outcome) -> None:
        hand_back(self.core.incoming, run, outcome)
        if self.unusable is None or self.conditions:
            self._look_at_conditions()
            self.turn_soon()


def _end(waiter: asyncio.Future[Any], outcome: wire.Payload | errors.CallFailed) -> None:
    if waiter.done():
        return
    if type(outcome) is not bytes and isinstance(outcome, errors.CallFailed):
        waiter.set_exception(outcome)
        return
    try:
        waiter.set_result(unpack_result(outcome))
    except errors.RemoteError as error:
        waiter.set_exception(error)
