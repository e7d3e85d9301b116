"""Who drives a sync worker's Link: exactly one thread at a time, and whoever else wants something leaves it a note.

    a thread that waits for something, and nobody drives      drives by itself: no switch of threads, no future
    a thread that finds somebody driving                      posts a note, wakes the driver, waits for its own event
    nobody waits                                              the serve thread drives, if there is a reason for one;
                                                              else the keeper looks in, so that heartbeats go on

Reasons for a serve thread: `start()`, functions on offer, callbacks, or open futures. For the last it parks again when
all are done, so that a script's later calls are direct again. And it steps aside for a thread that asks one future
after another for its result: that one drives by itself then, submits included, and the serve thread only watches, to
take over when nobody has driven for WATCH_S. Where many workers are in one process, a serve thread that has a lasting
reason leaves its place to the host of all of them (io/worker/hosting), and sleeps.

Invariant: `_lock` is held by whoever touches link, core, waiters or events; the serve thread holds it while it serves,
handlers and callbacks included. So no heartbeat leaves while an inline handler runs: that worker shows as stalled, as
it is. A note that was posted is read: by the driver of the moment, or by the serve thread, which `post` calls up first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar, cast

from ... import errors, wire
from ...core.worker.core import WorkerCore
from ...core.worker.events import CallEnded, Event, RunCall
from . import hosting
from .desk import Desk
from .futures import CallFuture
from .handlers import Handlers
from .link import Link
from .listeners import Listeners
from .notes import Note, Notes
from .payloads import check_call, inherit_deadline
from .running import Runner
from .waiting import Condition, Conditions, Slot

log = logging.getLogger("iii_zmq.worker")

# How often a thread that waits for another one's serving looks whether it was told to end. A signal that comes just
# before the main thread begins to wait does not end that wait: a Ctrl-C would be heard of with the next change.
OVER_S: Final = 0.2
ALONE_S: Final = 0.005  # after a message of the control socket, it alone is waited for so long: an answer may follow
NOTES_MAX = 8192  # that wait for the driver: twice the calls that may be open; so many can only come from `submit`
NOTES_S: Final = 0.1  # after a note, everything is waited for so long: more notes may come
HOLD_S: Final = 0.0005  # calls that follow each other so soon may leave together, after answers that came together
WATCH_S: Final = 0.002  # while futures are open, and their own thread drives: for so long nobody else need
PATIENCE_S: Final = 0.002  # for the keeper to leave again, before a second thread is taken for a reason to serve
PUMP_S: Final = 0.1  # between inline handlers the sockets are looked at this often

_T = TypeVar("_T")
_clock: Final = time.monotonic
_ident: Final = threading.get_ident


class Driver:
    """Link, lock, notes and the serve thread of one started worker."""

    def __init__(self, core: WorkerCore, handlers: Handlers, listeners: Listeners, threads: int) -> None:
        self.core = core
        self.desk = Desk(core.profile.name, listeners)
        self._notes = Notes()
        self.link = Link(core, self._notes.fd)
        self._guest = hosting.Guest(self.link, self._notes.fd, self.take_turn)
        self.runner = Runner(core.profile.name, threads, handlers, core.incoming, self.post, self.link.flush, self._ran)
        self.ended = False
        self.unusable: str | None = None  # why nothing can be asked any more
        # Under the lock.
        self._lock = threading.RLock()
        self._waiters: dict[int, Slot | CallFuture] = {}
        self._events: deque[Event] = deque()
        self._conditions = Conditions()
        self.polled_at = 0.0
        self._alone_from = 0.0  # not before this
        self._alone_until = 0.0  # the control socket may be waited for alone
        # Under the gate.
        self._gate = threading.Lock()
        self._park = threading.Lock()  # free when the serve thread is to look what there is to do; no Semaphore, which
        self._park.acquire()  # is made of Python, and took more than looking does, 500 times a second
        self._server: threading.Thread | None = None
        self._serve_ident = 0
        self._permanent = False
        self.serving = False  # the serve thread drives, or is about to
        self._watching = False  # it is about to look whether somebody drives
        self._is_hosted = False  # it sleeps to the end, and io/worker/hosting drives instead
        # Of a thread that asks futures for their results.
        self._may_step_aside = True  # there is only one, and no future ever had a callback
        self._stepped_aside = False  # for that thread, which drives by itself
        self._asker = 0
        self._asked_for: CallFuture | None = None
        self._driven_at = 0.0  # when it last did
        self._held = 0  # calls it made that were not sent yet: as many answers came at once as it may make calls,
        self._hold_max = 1  # and those leave together if they follow

    # -- for the thread that wants something ---------------------------------------------------------------------------

    def enter(self) -> bool:
        """Whether this thread may drive now; it must `leave` then."""
        if self.serving and _ident() != self._serve_ident:
            return False
        if self._lock.acquire(False):
            return True
        return not self.serving and self._lock.acquire(timeout=PATIENCE_S)

    def leave(self) -> None:
        self._lock.release()

    def call_here(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> wire.Payload:
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

    def ask(self, function_id: Any, payload: Any, timeout: Any, worker: Any) -> CallFuture:
        """From any thread. Raises: TypeError, ValueError, Closed."""
        if self.unusable is not None:
            raise errors.Closed(self.unusable)
        data = check_call(function_id, payload, timeout, worker)
        return self.submit(function_id, data, inherit_deadline(timeout), worker or "")

    def submit(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> CallFuture:
        """From any thread."""
        future = CallFuture(self)
        if self._stepped_aside and self.enter():
            try:
                now = _clock()
                self._begin(future, function_id, payload, timeout, target, now)
                self._held += 1
                if self._held >= self._hold_max or now - self._driven_at > HOLD_S:
                    self.link.flush()
                    self._held = 0
                self._driven_at = now
            finally:
                self.leave()
            if not self._watching:
                self._watch()
            return future
        if len(self._notes) >= NOTES_MAX:
            self.core.counters["calls_refused"] += 1
            text = f"{function_id}: {NOTES_MAX} notes wait already for the thread that serves this worker"
            future.end(errors.Busy(text, "not_handed_over", errors.BUSY))
            return future
        asked_at = _clock()

        def begin() -> None:
            if not future.is_given_up:
                now = _clock()
                self._begin(future, function_id, payload, max(0.0, timeout - (now - asked_at)), target, now)

        self.post(begin)
        return future

    def _begin(
        self, future: CallFuture, function_id: str, payload: wire.Payload, timeout: float, target: str, now: float
    ) -> None:
        """For the driver."""
        try:
            number = self.core.call(function_id, payload, timeout, now, target)
        except errors.CallFailed as error:
            future.end(error)
        except errors.Closed as error:
            future.set_exception(error)
        else:
            future.number = number
            self._waiters[number] = future

    def finish(self, future: CallFuture, timeout: float | None) -> None:
        """Drives until it is done or the timeout, if this thread may."""
        if not self._stepped_aside or not self.enter():
            return
        try:
            self._send_held()
            open_before = len(self._waiters)
            self._drive_until(lambda: not future.is_open, None if timeout is None else _clock() + timeout)
            self._hold_max = min(open_before - len(self._waiters), self.link.portion())
        finally:
            self._driven_at = _clock()
            self.leave()

    def _send_held(self) -> None:
        """Sends the calls that were held."""
        if self._held:
            self._held = 0
            self.link.flush()

    def block(self, future: CallFuture) -> None:
        """A thread is about to wait for this future without driving."""
        ident = _ident()
        if self._asker not in (0, ident):
            self._may_step_aside = False
        self._asker = ident
        self._asked_for = future
        if not self.serving:
            self._call_up()

    def forget(self, future: CallFuture) -> None:
        """It was cancelled."""
        self.post(lambda: self._forget_call(future))

    def serve_callbacks(self) -> None:
        """A future has a callback, which is not to run in whichever thread waits for another one."""
        self._may_step_aside = False
        if not self.serving:
            self._call_up()

    def send(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> None:
        """From any thread; no answer comes back. Raises: Busy."""
        self.do(lambda: self.core.call(function_id, payload, timeout, _clock(), target, wire.NO_ANSWER))

    def give_up(self, number: int) -> None:
        """For the driver."""
        self._waiters.pop(number, None)
        self.core.outgoing.give_up(number)

    @property
    def has_open_calls(self) -> bool:
        """Somebody waits for the outcome of a call."""
        return bool(self._waiters)

    def _forget_call(self, future: CallFuture) -> None:
        if future.number is not None:
            self.give_up(future.number)

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
        condition = Condition(lambda: is_true() or self.ended)
        self.post(lambda: self._conditions.add(condition))
        try:
            left = OVER_S if until is None else until - _clock()
            while left > 0 and not condition.came.wait(min(left, OVER_S)):  # see OVER_S
                left = OVER_S if until is None else until - _clock()
        finally:
            if not condition.came.is_set():
                self.post(lambda: self._conditions.forget(condition))
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

    def post(self, note: Note) -> None:
        """Leaves a note for whoever drives, and sees to it that somebody does."""
        self._notes.put(note)
        if not self.serving:
            self._call_up()
        if self.ended:
            with self._lock:
                self._read_notes()
        else:
            self._notes.wake()

    def wake(self) -> None:
        """Ends the driver's wait. From any thread, or a signal handler."""
        self._notes.ring()

    # -- the serve thread ----------------------------------------------------------------------------------------------

    def serve_always(self) -> None:
        """There is a reason to serve that does not end: a thread of its own drives from now on."""
        if not self._permanent:
            self._permanent = True
            self._call_up()

    def serve_here(self, is_over: Callable[[], bool]) -> None:
        """This thread is the serve thread until `is_over`, or the end."""
        with self._gate:
            taken = self._server is not None
            if not taken:
                self._server = threading.current_thread()
                self._serve_ident = _ident()
                self.serving = self._permanent = True
        if taken:
            while not is_over() and not self.ended:
                self.wait(is_over, OVER_S)
            return
        with self._lock:
            self._drive_until(lambda: is_over() or self.ended, None)
        with self._gate:
            self._server, self._serve_ident = None, 0
            self.serving = self._permanent = False

    def _call_up(self) -> None:
        with self._gate:
            if self.serving or self.ended:
                return
            self.serving = True
            self._stepped_aside = False
            if self._server is not None:
                self._unpark()
                return
            name = f"iii-{self.core.profile.name}"
            self._server = threading.Thread(target=self._serve, name=name, daemon=True)
        self._server.start()

    def _serve(self) -> None:
        self._serve_ident = _ident()
        try:
            while not self.ended:
                if self.serving and not self._is_hosted:
                    self._serve_on()
                if not self.ended:  # in the child of a callback that forked, nobody is there to call us up
                    self._park.acquire()
                if self._watching:
                    self._watch_over()
        except BaseException:
            self._fail()
            raise

    def _serve_on(self) -> None:
        """Until there is no reason to, or one thread had better serve all the workers that are here."""
        with self._lock:
            while not self._may_park():
                if self._permanent and hosting.many():
                    self._is_hosted = True
                    self._serve_ident = 0
                    break
                self.turn()
        if self._is_hosted:
            hosting.host().take_in(self._guest)

    def take_turn(self) -> float | None:
        """For the host: one turn. For how long nothing is due then; None when this worker has ended."""
        with self._lock:
            self._serve_ident = _ident()
            try:
                self.turn(0.0)
            except BaseException:
                self._fail()
            finally:
                self._serve_ident = 0
            return None if self.ended else self.link.wait_ms() / 1000

    def _fail(self) -> None:
        log.critical("%s: the worker's loop failed: this is a bug in iii_zmq", self.core.profile.name, exc_info=True)
        with self._lock:
            self.end()

    def _may_park(self) -> bool:
        """Parks if there is no reason to serve; the gate sees to it that no note is overlooked."""
        if self.ended:
            return True
        if self._permanent or self._conditions or self._events:
            return False
        steps_aside = self._may_step_aside and self._asked_for is not None and not self._asked_for.is_open
        if self._waiters and not steps_aside:
            return False
        with self._gate:
            if self._notes or self._permanent:
                return False
            self.serving = False
            self._asked_for = None
            if steps_aside:
                self._stepped_aside = self._watching = True
                self._unpark()
            return True

    def _watch(self) -> None:
        """Somebody who drives by itself has open futures: the serve thread is to take over should it stop."""
        with self._gate:
            if not (self.serving or self.ended or self._watching):
                self._watching = True
                self._unpark()

    def _unpark(self) -> None:
        """Under the gate."""
        if self._park.locked():
            self._park.release()

    def _watch_over(self) -> None:
        """Until there are no open futures, or this thread is to drive."""
        while not (self.serving or self.ended):
            if self._park.acquire(timeout=WATCH_S):
                continue
            if self._held and self._lock.acquire(False):
                try:
                    self._send_held()
                finally:
                    self._lock.release()
            if not self._waiters:
                self._watching = False
                if not self._waiters:  # none came in between, which would have found us watching
                    return
                self._watching = True
            with self._gate:
                if _clock() - self._driven_at > WATCH_S and self._lock.acquire(False):
                    self._lock.release()
                    self.serving = True
                    self._stepped_aside = False
        self._watching = False

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
        is_noted = link.wait(wait_ms)
        self.polled_at = now = _clock()
        if is_noted:
            self._notes.hear()
            self._alone_from = now + NOTES_S
        if link.pump() and now > self._alone_from:
            self._alone_until = now + ALONE_S

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
        self._conditions.look()
        self.link.close()
        self._guest.leave()
        self._notes.close()
        self.runner.close()
        with self._gate:
            self._unpark()

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

    def _read_notes(self) -> None:
        self._notes.read()
        if self._conditions:
            self._conditions.look()
        self.link.flush()

    def _on_event(self, event: Event) -> None:
        kind = type(event)
        if kind is CallEnded:
            ended = cast(CallEnded, event)
            waiter = self._waiters.pop(ended.number, None)
            if waiter is not None:
                waiter.end(ended.outcome)
        elif kind is RunCall:
            self.runner.run(cast(RunCall, event))
        else:
            self.desk.take(event)
        if self._conditions:
            self._conditions.look()

    def _ran(self, now: float) -> None:
        """After an inline handler: however many there are to run, heartbeats go on."""
        if self._events and now - self.polled_at > PUMP_S:
            self.polled_at = now
            self.link.wait(0)
            self.link.pump()
            self._fetch_events()
