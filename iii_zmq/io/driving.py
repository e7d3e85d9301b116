"""Who drives a sync worker's Link: exactly one thread at a time, and whoever else wants something leaves it a note.

    a thread that waits for something, and nobody drives      drives by itself: no switch of threads, no future
    a thread that finds somebody driving                      posts a note, wakes the driver, waits for its own event
    nobody waits                                              the serve thread drives, if there is a reason for one;
                                                              else the keeper looks in, so that heartbeats go on

Reasons for a serve thread: `start()`, functions on offer, callbacks, or open futures. For the last it parks again when
all are done, so that a script's later calls are direct again.

Invariant: `_lock` is held by whoever touches link, core, waiters or events; the serve thread holds it while it serves,
handlers and callbacks included. So no heartbeat leaves while an inline handler runs: that worker shows as stalled, as
it is. A note that was posted is read: by the driver of the moment, or by the serve thread, which `post` calls up first.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar, cast

from .. import errors, wire
from ..core.signals import (
    CONNECTED,
    CallEnded,
    CancelCall,
    Changes,
    Drained,
    Event,
    JoinRefused,
    NotOffered,
    RunCall,
    Settled,
    StateChanged,
)
from ..core.worker import WorkerCore
from . import keeper
from .face import unpack_result
from .handlers import Handlers, Outcome, hand_back
from .link import Link, Ready, zmq_poll
from .listeners import Listeners
from .pool import Pool

log = logging.getLogger("iii_zmq.worker")

STUCK_S = 2.0  # how long one waits for a serve thread that is inside a handler
TIMEOUTS = (TimeoutError, FutureTimeout)  # the second is the first from Python 3.11 on
NESTING_MAX = 16  # inline handlers that wait for calls of their own, one inside the other; further calls wait
OVER_S = 0.2  # how often a thread that waits for another one's serving looks whether it was told to end
QUICK_S = 0.00002  # a poll that returned faster than this found messages that had been waiting: read many at once
ALONE_S = 0.005  # after a look at everything, the control socket alone is waited for so long
NOTES_S = 0.1  # after a note, everything is waited for so long: more notes may come
PATIENCE_S = 0.002  # for the keeper to leave again, before a second thread is taken for a reason to serve
PUMP_S = 0.1  # between inline handlers the sockets are looked at this often

_T = TypeVar("_T")
_clock = time.monotonic


class Slot:
    """Where the outcome of a call goes that its own thread drives."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: wire.Buffer | errors.CallFailed | None = None

    def end(self, outcome: wire.Buffer | errors.CallFailed) -> None:
        self.outcome = outcome


class CallFuture(Future[Any]):
    """What `submit` returns. Cancelling it tells the broker that nobody waits any more."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver
        self.number: int | None = None  # once the core knows the call
        self.is_given_up = False

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self.is_given_up = True
        self.set_running_or_notify_cancel()
        self._driver.post(self._give_up)
        return True

    def _give_up(self) -> None:
        if self.number is not None:
            self._driver.give_up(self.number)

    def end(self, outcome: wire.Buffer | errors.CallFailed) -> None:
        """Called by the driver."""
        try:
            if isinstance(outcome, errors.CallFailed):
                self.set_exception(outcome)
            else:
                self.set_result(unpack_result(outcome))
        except InvalidStateError:
            pass  # cancelled meanwhile
        except errors.RemoteError as error:
            self.set_exception(error)

    def wait(self) -> Any:
        """The result; whoever is interrupted while waiting for it gives the call up."""
        try:
            return self.result()
        except BaseException:
            self.cancel()
            raise


class _Condition:
    """What a thread that does not drive waits for; the driver looks whether it has come."""

    def __init__(self, is_true: Callable[[], bool]) -> None:
        self.is_true = is_true
        self.came = threading.Event()


class Driver:
    """Link, lock, notes and the serve thread of one started worker."""

    def __init__(self, core: WorkerCore, handlers: Handlers, listeners: Listeners, threads: int) -> None:
        self.core = core
        self._handlers = handlers
        self._listeners = listeners
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._wake_fd = self._wake_in.fileno()
        self.link = Link(core, self._wake_fd)
        self._pool = Pool(f"iii-{core.profile.name}", threads) if threads else None
        self._lock = threading.RLock()
        self._waiters: dict[int, Slot | CallFuture] = {}
        self._events: deque[Event] = deque()
        self._conditions: list[_Condition] = []
        self.settled: dict[int, list[tuple[str, str, str]]] = {}  # tickets whose end somebody will fetch
        self.refused: JoinRefused | None = None
        self.drained = False
        self.ended = False
        self.unusable: str | None = None  # why nothing can be asked any more
        self.pumped_at = 0.0
        self._alone_from = 0.0  # not before this
        self._alone_until = 0.0  # the control socket may be waited for alone
        self._later: deque[RunCall] = deque()  # inline handlers beyond NESTING_MAX
        self._depth = 0
        # Notes, and who is called up to read them.
        self._notes: deque[Callable[[], None]] = deque()
        self._woken = False
        self._gate = threading.Lock()  # guards `serving`, `_permanent` and the start of the thread
        self._park = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.serving = False  # the serve thread drives, or is about to
        self._permanent = False
        self._serve_ident = 0

    # -- for the thread that wants something ---------------------------------------------------------------------------

    def enter(self) -> bool:
        """Whether this thread may drive now; it must `leave` then."""
        if self.serving and threading.get_ident() != self._serve_ident:
            return False
        if self._lock.acquire(False):
            return True
        return not self.serving and self._lock.acquire(timeout=PATIENCE_S)

    def leave(self) -> None:
        self._lock.release()

    def call_here(self, function_id: str, payload: bytes, timeout: float, target: str) -> wire.Buffer:
        """Between `enter` and `leave`: the packed result. Raises: CallFailed."""
        slot = Slot()
        number = self.core.call(function_id, payload, timeout, _clock(), target)
        self._waiters[number] = slot
        self.link.flush()
        try:
            if not self._events and _clock() < self._alone_until:
                answer = self.link.answer_alone(number)
                if answer is not None:
                    del self._waiters[number]
                    return answer
                self._fetch_events()
            while slot.outcome is None:
                self.turn()
        except BaseException:
            self.give_up(number)
            self.link.flush()
            raise
        if isinstance(slot.outcome, errors.CallFailed):
            raise slot.outcome
        return slot.outcome

    def submit(self, function_id: str, payload: bytes, timeout: float, target: str) -> CallFuture:
        """From any thread."""
        future = CallFuture(self)
        asked_at = _clock()

        def begin() -> None:
            if future.is_given_up:
                return
            now = _clock()
            try:
                number = self.core.call(function_id, payload, max(0.0, timeout - (now - asked_at)), now, target)
            except errors.CallFailed as error:
                future.end(error)
            except errors.Closed as error:
                future.set_exception(error)
            else:
                future.number = number
                self._waiters[number] = future

        self.post(begin)
        return future

    def send(self, function_id: str, payload: bytes, timeout: float, target: str) -> None:
        """From any thread; no answer comes back. Raises: Busy."""
        self.do(lambda: self.core.call(function_id, payload, timeout, _clock(), target, wire.NO_ANSWER))

    def give_up(self, number: int) -> None:
        """For the driver."""
        self._waiters.pop(number, None)
        self.core.outgoing.give_up(number)

    def do(self, job: Callable[[], _T], timeout: float | None = None) -> _T:
        """Runs `job` where link and core may be touched; returns or raises what it does. Raises: TimeoutError."""
        if self.enter():
            try:
                value = job()
                self.link.flush()
                self._fetch_events()
                return value
            finally:
                self.leave()
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

        self.post(run)
        return future.result(timeout)

    def wait(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        """Drives, or waits for the driver, until `is_true` or the timeout; the last word of `is_true`."""
        until = None if timeout is None else _clock() + timeout
        if self.enter():
            try:
                return self._drive_until(is_true, until)
            finally:
                self.leave()
        condition = _Condition(lambda: is_true() or self.ended)
        self.post(lambda: self._conditions.append(condition))
        try:
            condition.came.wait(timeout)
        finally:
            if not condition.came.is_set():
                self.post(lambda: self._forget(condition))
        return is_true()

    def look(self) -> None:
        """If nobody drives, read what has come, so that what the user is about to look at is of now."""
        if self.serving or not self._lock.acquire(False):
            return
        try:
            if not self.ended:
                self.turn(0.0)
        finally:
            self._lock.release()

    def post(self, note: Callable[[], None]) -> None:
        """Leaves a note for whoever drives, and sees to it that somebody does."""
        self._notes.append(note)
        if not self.serving:
            self._call_up()
        if self.ended:
            with self._lock:
                self._read_notes()
        elif not self._woken:
            self._woken = True
            self.wake()

    def wake(self) -> None:
        """Ends the driver's wait. From any thread, or a signal handler."""
        try:
            self._wake_out.send(b"\0")
        except OSError:
            pass  # full: then it is awake already; or closed: then there is nobody to wake

    # -- life ----------------------------------------------------------------------------------------------------------

    def join(self, timeout: float | None, is_over: Callable[[], bool] | None) -> list[tuple[str, str, str]]:
        """Connects and registers what is there; what the broker refused. Raises: BrokerUnreachable, Refused."""
        began = _clock()
        tickets: list[int] = []
        core = self.core

        def ask() -> None:
            if self._handlers.entries:
                tickets.append(core.offers.register(self._handlers.entries))
            core.connect(_clock())

        def is_settled() -> bool:
            return core.membership.state == CONNECTED or self.refused is not None or (is_over is not None and is_over())

        self.do(ask)
        progress = core.progress
        while not self.wait(is_settled, timeout):
            if core.progress != progress:
                progress = core.progress
                continue
            trouble = f": {core.membership.trouble}" if core.membership.trouble else ""
            spent = f"{_clock() - began:.1f} s"
            raise errors.BrokerUnreachable(f"no broker at {core.profile.url} within {spent}{trouble}")
        if self.refused is not None:
            raise errors.Refused(f"the broker at {core.profile.url} refused: {self.refused.text}", self.refused.code)
        keeper.keep(self)
        return self.settled.pop(tickets[0], []) if tickets else []

    def drain(self, timeout: float) -> bool:
        """No new calls; whether those that run here, and our own, ended in time."""
        if self.unusable is not None:
            return True
        core = self.core
        try:
            if self._handlers.entries:
                self.do(core.drain, STUCK_S)
            else:
                self.drained = True
            return self.wait(lambda: self.drained and not len(core.incoming) and not self._waiters, timeout)
        except TIMEOUTS:
            return False

    def leave_broker(self, results_s: float) -> None:
        """Bye, a moment for results that are about to be sent, and the end. May be repeated."""
        if self.unusable is None:
            self.unusable = "the worker was closed"
            keeper.drop(self)
            try:
                self.do(self.core.leave, STUCK_S)
                if results_s and not self._depth:
                    self.wait(lambda: not len(self.core.incoming), results_s)
                self.do(self.end, STUCK_S)
            except TIMEOUTS:
                log.warning("%s: closed while a handler still runs; it leaves when that ends", self.core.profile.name)
                self.post(self.end)

    # -- for the keeper ------------------------------------------------------------------------------------------------

    def look_s(self) -> float:
        """How often to look in."""
        return keeper.LOOK_S if self.serving else self.core.membership.heartbeat_s / 2

    def look_in(self) -> None:
        """Drives for a moment, unless somebody does or just did."""
        if not self.serving and _clock() - self.pumped_at >= self.look_s() / 2:
            self.look()

    def forked(self) -> None:
        """In the child: link, lock and threads are the parent's."""
        self.unusable = "the worker belongs to the parent process: make a new one after fork"
        self.ended = True

    def end_quickly(self, until: float) -> None:
        """The interpreter ends: Bye if that can be said at once."""
        if self.unusable is None:
            self.unusable = "the interpreter is ending"
            try:
                self.do(self._say_bye, max(0.0, until - _clock()))
            except TIMEOUTS:
                pass

    def _say_bye(self) -> None:
        self.core.leave()
        self.end()

    # -- the serve thread ----------------------------------------------------------------------------------------------

    def serve_always(self) -> None:
        """There is a reason to serve that does not end: a thread of its own drives from now on."""
        if not self._permanent:
            self._permanent = True
            self._call_up()

    def serve_here(self, is_over: Callable[[], bool]) -> None:
        """This thread is the serve thread until `is_over`, or the end."""
        with self._gate:
            taken = self._thread is not None
            if not taken:
                self._thread = threading.current_thread()
                self._serve_ident = threading.get_ident()
                self.serving = self._permanent = True
        if taken:
            while not is_over() and not self.ended:
                self.wait(is_over, OVER_S)
            return
        with self._lock:
            self._drive_until(lambda: is_over() or self.ended, None)
        with self._gate:
            self._thread, self._serve_ident = None, 0
            self.serving = self._permanent = False

    def _call_up(self) -> None:
        with self._gate:
            if self.serving or self.ended:
                return
            self.serving = True
            if self._thread is not None:
                self._park.release()
                return
            name = f"iii-{self.core.profile.name}"
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._serve_ident = threading.get_ident()
        try:
            while not self.ended:
                with self._lock:
                    while not self._may_park():
                        self.turn()
                self._park.acquire()
        except BaseException:
            log.critical(
                "%s: the worker's loop failed: this is a bug in iii_zmq", self.core.profile.name, exc_info=True
            )
            with self._lock:
                self.end()
            raise

    def _may_park(self) -> bool:
        """Parks if there is no reason to serve; the gate sees to it that no note is overlooked."""
        if self.ended:
            return True
        if self._permanent or self._waiters or self._conditions or self._events:
            return False
        with self._gate:
            if self._notes or self._permanent:
                return False
            self.serving = False
            return True

    # -- driving (under the lock) --------------------------------------------------------------------------------------

    def turn(self, wait_s: float | None = None) -> None:
        """Waits until something is to be done, for at most `wait_s`, and does it."""
        link = self.link
        events = self._events
        if not events and (wait_s is not None or _clock() > self._alone_until or not link.pump_alone()):
            self._poll(wait_s)
        if self._notes:
            self._read_notes()
        events.extend(link.core.take_events())
        while events:
            self._on_event(events.popleft())
            if not events:
                events.extend(link.core.take_events())
        link.flush()

    def _poll(self, wait_s: float | None) -> None:
        """Waits for everything. After a message of the control socket, the next one may be waited for alone."""
        link = self.link
        wait_ms = 0 if self._notes else link.wait_ms()
        if wait_s is not None:
            wait_ms = min(wait_ms, int(wait_s * 1000) + 1 if wait_s > 0 else 0)
        began = _clock()
        ready: Ready = zmq_poll(link.pollset, wait_ms)
        self.pumped_at = now = _clock()
        if ready and ready[-1][0] == self._wake_fd:
            self._hear_wake()
            self._alone_from = now + NOTES_S
        elif now > self._alone_from:
            self._alone_until = now + ALONE_S
        link.pump(ready, now - began < QUICK_S)

    def end(self) -> None:
        """The worker is over: everybody who waits is told."""
        if self.ended:
            return
        self.unusable = self.unusable or "the worker was closed"
        self.core.end("the worker was closed")
        self.link.flush()
        self._fetch_events()
        self.ended = True
        while self._events:
            self._on_event(self._events.popleft())
        self._read_notes()
        self._look_at_conditions()
        self.link.close()
        self._wake_in.close()
        self._wake_out.close()
        if self._pool is not None:
            self._pool.close()
        self._park.release()

    def _drive_until(self, is_true: Callable[[], bool], until: float | None) -> bool:
        while not is_true():
            if self.ended:
                return is_true()
            wait_s = None if until is None else until - _clock()
            if wait_s is not None and wait_s <= 0:
                return False
            self.turn(wait_s)
        return True

    def _fetch_events(self) -> None:
        self._events.extend(self.core.take_events())

    def _hear_wake(self) -> None:
        self._woken = False  # before the notes are read: who posts after this wakes again
        try:
            self._wake_in.recv(4096)
        except BlockingIOError:
            pass

    def _read_notes(self) -> None:
        notes = self._notes
        self._woken = False
        while notes:
            notes.popleft()()
        if self._conditions:
            self._look_at_conditions()
        self.link.flush()

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        kind = type(event)
        if kind is CallEnded:
            ended = cast(CallEnded, event)
            waiter = self._waiters.pop(ended.number, None)
            if waiter is not None:
                waiter.end(ended.outcome)
        elif kind is RunCall:
            self._run(cast(RunCall, event))
        else:
            self._on_rare(event)

    def _on_rare(self, event: Event) -> None:
        match event:
            case Changes():
                self._listeners.tell_changes(event.changes)
            case Settled():
                self.settled[event.ticket] = event.refusals
            case StateChanged():
                log.info("%s is %s %s", self.core.profile.name, event.state, event.text)
                self._listeners.tell_state(event.state)
            case JoinRefused():
                self.refused = event
            case NotOffered():
                for name, code, text in event.refusals:
                    log.warning("%s: the broker no longer takes %s: %s (%s)", self.core.profile.name, name, text, code)
            case Drained():
                self.drained = True
            case CancelCall() | CallEnded() | RunCall():
                pass  # plain handlers see it by `current_call().cancelled`
            case _:
                errors.assert_never(event)
        if self._conditions:
            self._look_at_conditions()

    def _look_at_conditions(self) -> None:
        for condition in [one for one in self._conditions if one.is_true()]:
            self._conditions.remove(condition)
            condition.came.set()

    def _forget(self, condition: _Condition) -> None:
        if condition in self._conditions:
            self._conditions.remove(condition)

    # -- handlers ------------------------------------------------------------------------------------------------------

    def _run(self, run: RunCall) -> None:
        if self._pool is not None:
            self._pool.submit(lambda: self._run_in_pool(run))
        elif self._depth >= NESTING_MAX:
            self._later.append(run)
        else:
            self._run_inline(run)
            while self._later and self._depth < NESTING_MAX:
                self._run_inline(self._later.popleft())

    def _run_inline(self, run: RunCall) -> None:
        self._depth += 1
        try:
            outcome = self._handlers.run_here(run)
        finally:
            self._depth -= 1
        if type(outcome) is bytes:
            self.core.incoming.finish(run, outcome)
        else:
            hand_back(self.core.incoming, run, outcome)
        self.link.flush()
        if self._events and _clock() - self.pumped_at > PUMP_S:
            self.pumped_at = _clock()
            self.link.pump(zmq_poll(self.link.pollset, 0))
            self._fetch_events()

    def _run_in_pool(self, run: RunCall) -> None:
        outcome: Outcome = self._handlers.run_here(run)
        self.post(lambda: self._hand_back(run, outcome))

    def _hand_back(self, run: RunCall, outcome: Outcome) -> None:
        hand_back(self.core.incoming, run, outcome)
