"""How the link of a sync worker is driven: by the hub, or by the one thread that waits for a call of its own.

    state      who reads the control socket                          until
    watched    the hub, woken by its descriptor                      a thread waits for a call: it borrows the link
    lent       the borrower; the hub looks again every LOOK_S        nobody has driven for LOOK_S
    shared     the hub at once: several threads wait, or one waits   no thread is parked any more
               for something else than a call; they are parked
    inline     a handler runs in the worker's own hub; a call that   the handler has ended
               the handler makes is driven there, all others wait

The stream, timers and joining are always the hub's. Any thread may do a short job on core and link (`do`): under the
lock, never waiting there, and telling the hub if something is left unread, because a libzmq descriptor tells of news
only once. Every thread that waits has a bound of its own. User code never runs under the lock or in the shared hub:
handlers run in the pool or inline in a hub of the worker's own, callbacks in the callback threads.

When an exception of a signal handler cuts a job short, nobody knows what of it was done: the session is given up for
lost and made anew, so that all who wait are told the truth (`_mend`). The replica is safe: no user's thread touches it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ... import errors, wire
from ...core.worker.core import WorkerCore
from ...core.worker.events import CallEnded, CancelCall, RunCall
from ...core.worker.outgoing import GRACE_S
from . import hub
from .callbacks import CallbackQueue
from .futures import CallFuture
from .handlers import Handlers, Inline, Outcome, Pool, hand_back
from .hub import LOOK_S, Bell, Hub
from .lifecycle import CLOSED, LEFT_S, Stay
from .link import Link
from .listeners import Listeners
from .payloads import check_call, inherit_deadline
from .run_signals import heed
from .waits import Conversation, Exclusive, Held, Parked, Slot

log = logging.getLogger("iii_zmq.worker")

# How often a waiting thread looks up. A signal that comes just before the main thread begins to wait does not end that
# wait, and compiled code never looks for signals by itself.
OVER_S: Final = 0.2
HOLD_S: Final = 0.0005  # calls that follow each other so soon may leave together, after answers that came together
LATE_S: Final = 0.001  # past the deadline of a call: by then the core says what became of it
CALLBACKS_S: Final = 0.2  # what `close()` gives to callbacks that wait for their turn

_T = TypeVar("_T")
_clock: Final = time.monotonic


class Driver:
    """Link, lock, waiting threads and hub of one started worker. A guest of its hub (see hub.Guest)."""

    def __init__(self, core: WorkerCore, handlers: Handlers, listeners: Listeners, threads: int) -> None:
        name = core.profile.name
        self.core = core
        self.callbacks = CallbackQueue()
        self.stay = Stay(core, handlers, listeners, self.callbacks)
        self.hub: Hub = hub.shared()
        self._has_own_hub = False  # from its first inline call on
        self._bell = Bell()  # ends the borrower's wait
        self.link = Link(core, self._bell.fd)
        self.ended = False
        self.unusable: str | None = None  # why nothing can be asked any more
        self.is_lent = False  # the hub looks again by itself, and watches no descriptors
        self._exclusive = Exclusive(self._mend)
        self._waiters: dict[int, Slot | CallFuture] = {}  # by the number of the call
        self._borrower: Slot | CallFuture | None = None
        self._parked: dict[Slot | CallFuture, Parked] = {}
        self._conditions: dict[Parked, None] = {}
        self._driven_at = 0.0  # when a borrower last did
        self._due_at = 0.0  # when the hub looks next without being told
        self._seen = -1  # the generation of the descriptors that the hub watches
        self._talk = Conversation()
        self._held = Held()
        self._inline = Inline(handlers, self)
        self._pool = Pool(f"iii-{name}", threads, handlers, self.hand_back) if threads else None
        self._on: dict[type[Any], Callable[[Any], None]] = {
            CallEnded: self._on_call_ended, RunCall: self._on_run, CancelCall: _on_cancel, **self.stay.on,
        }  # fmt: skip

    # -- for any thread ------------------------------------------------------------------------------------------------

    def do(self, job: Callable[[], _T]) -> _T:
        """Runs a short `job` where link and core may be touched; returns or raises what it does."""

        def done() -> _T:
            value = job()
            self._settle()
            return value

        return self._locked(done)

    def call(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> wire.Payload:
        """The packed result. Raises: CallFailed, Closed."""
        slot = Slot()
        until = _clock() + timeout + GRACE_S + LATE_S
        try:
            self._locked(lambda: self._begin(slot, function_id, payload, timeout, target))
            self._await(slot, until)
        except BaseException:
            self._give_up(slot)
            raise
        finally:
            if self._borrower is slot:
                self._borrower = None
            self._parked.pop(slot, None)
        outcome = slot.outcome
        if outcome is None:
            text = f"{function_id}: no answer within its timeout"
            raise errors.CallTimeout(text, "possibly_executed", errors.TIMEOUT)
        if isinstance(outcome, errors.CallFailed):
            raise outcome
        return outcome

    def submit(self, function_id: Any, payload: Any, timeout: Any, worker: Any) -> CallFuture:
        """A future that the answer ends. Raises: TypeError, ValueError, Closed."""
        if self.unusable is not None:
            raise errors.Closed(self.unusable)
        data = check_call(function_id, payload, timeout, worker)
        future = CallFuture(self)
        self._locked(lambda: self._submit(future, function_id, data, inherit_deadline(timeout), worker or ""))
        return future

    def send(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> None:
        """No answer comes back. Raises: Busy, Closed."""
        self.do(lambda: self.core.call(function_id, payload, timeout, _clock(), target, wire.NO_ANSWER))

    def wait_for(self, future: CallFuture, timeout: float | None) -> None:
        """Until the future is done or the timeout."""
        until = None if timeout is None else _clock() + timeout
        if future in self._parked:  # another thread waits for the same one
            self.wait(lambda: not future.is_open, timeout)
            return
        open_before = len(self._waiters)
        try:
            self._locked(lambda: self._lend(future))
            self._await(future, until)
        finally:
            if self._borrower is future:
                self._borrower = None
            self._parked.pop(future, None)
        self._held.count_max = min(open_before - len(self._waiters), self.link.portion())

    def forget(self, future: CallFuture) -> None:
        """The future was cancelled."""
        self._give_up(future)

    def wait(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        """Until `is_true` or the timeout, while the hub drives; the last word of `is_true`."""
        until = None if timeout is None else _clock() + timeout
        parked = Parked(is_true)
        try:
            self._locked(lambda: self._park_for(parked))
            while not self.ended and not is_true():
                wait_s = OVER_S if until is None else min(OVER_S, until - _clock())
                if wait_s <= 0:
                    break
                heed()
                if self._is_own_thread():
                    self._serve_nested(wait_s)
                else:
                    parked.wait(wait_s)
        finally:
            self._conditions.pop(parked, None)
        return is_true()

    def wake(self) -> None:
        """Threads in `wait` look again. From any thread, or a signal handler."""
        for parked in list(self._conditions):
            parked.wake()

    @property
    def has_open_calls(self) -> bool:
        """Somebody waits for the outcome of a call."""
        return bool(self._waiters)

    def hand_back(self) -> None:
        """Handlers have ended in the pool. Results that are ready at the same moment leave together."""
        self._locked(self._send_done)

    def leave(self, results_s: float) -> None:
        """Bye, a moment for results that are about to be sent, and the end. May be repeated."""
        if self.unusable is not None:
            return
        self.unusable = CLOSED
        self.do(self.core.leave)
        if results_s and not (self._inline.depth and self._is_own_thread()):
            self.wait(lambda: not len(self.core.incoming), results_s)
            self.wait(lambda: self.core.has_left, LEFT_S)
        self.do(self.end)
        self.callbacks.wait_until_empty(CALLBACKS_S)

    # -- for the hub ---------------------------------------------------------------------------------------------------

    def take_turn(self, told: list[int]) -> float | None:
        """See hub.Guest."""
        if not self._is_guest():
            return None
        now = _clock()
        if self._talk.is_waiting or self._is_left_alone(told, now):
            self.is_lent = True
            if self._held.count:
                self._locked(self._send_held)
            return now + LOOK_S
        try:
            due_at = self._locked(self._turn)
            if self._is_own_thread():
                due_at = self._serve_inline()
        except BaseException:
            self._fail()
            return None
        return due_at if self._is_guest() else None

    def _is_left_alone(self, told: list[int], now: float) -> bool:
        """Nothing is to be done here, and a borrower reads the control socket, or did a moment ago."""
        if self._parked or self._conditions or any(fd != self.link.control_fd for fd in told):
            return False
        due_at = self.core.next_deadline()
        if due_at is not None and due_at <= now:
            return False
        return now - self._driven_at < LOOK_S or (bool(told) and self._borrower is not None)

    def _is_guest(self) -> bool:
        """Not ended, and not moved to a hub of its own, whose thread is another one."""
        return not self.ended and self.hub.is_here

    @property
    def watched(self) -> Link:
        return self.link

    def forked(self) -> None:
        """In the child: link, lock and threads are the parent's."""
        self.unusable = hub.FORKED
        self.ended = True

    def end_quickly(self, until: float) -> None:
        """The interpreter ends: Bye, if that can be said at once."""
        if self.unusable is None and _clock() < until:
            self.unusable = "the interpreter is ending"
            self._locked(self._say_bye)

    def _say_bye(self) -> None:
        self.core.leave()
        self.end()

    def _turn(self) -> float:
        """Reads, does what is due and sends; when the next turn is due."""
        self.is_lent = False
        self._pump()
        self._seen = self.link.generation
        wait_ms = self.link.wait_ms()
        self._due_at = _clock() + wait_ms / 1000
        return self._due_at

    def _serve_inline(self) -> float:
        """Runs handlers, and goes on while a conversation does."""
        self._inline.run_waiting()
        while self._talk.may_go_on() and not self.ended:
            self._locked(self._converse)
            self._inline.run_waiting()
        return self._locked(self._turn)

    def _serve_nested(self, wait_s: float) -> None:
        """While an inline handler waits: what the hub would do, and handlers inside it."""
        wait_ms = self._locked(self.link.wait_ms)
        if wait_ms:
            self.link.wait(min(wait_ms, int(wait_s * 1000) + 1))
        self._locked(self._pump)
        self._inline.run_waiting()

    def _converse(self) -> None:
        self._pump_alone()
        self._deal()

    def _fail(self) -> None:
        log.critical("%s: the worker's loop failed: this is a bug in iii_zmq", self.core.profile.name, exc_info=True)
        self._locked(self.end)

    # -- for inline handlers, in the worker's own hub ------------------------------------------------------------------

    def hand_back_soon(self, run: RunCall, outcome: Outcome) -> None:
        """The result is sent by the next `flush`."""
        self._locked(lambda: hand_back(self.core.incoming, run, outcome))

    def flush(self) -> None:
        """Sends what is ready."""
        self._locked(self.link.flush)

    def look_in(self) -> None:
        """Between two handlers: reads what came, and lets heartbeats go on."""
        self._locked(self._pump)

    def _is_own_thread(self) -> bool:
        """This is the thread of the worker's own hub: nobody else drives while it runs a handler."""
        return self._has_own_hub and self.hub.is_here

    def _on_run(self, run: RunCall) -> None:
        if self._pool is not None:
            self._pool.put(run)
            return
        self._inline.put(run)
        if not self._has_own_hub:
            self._has_own_hub = True
            left, self.hub = self.hub, Hub(f"iii-{self.core.profile.name}")
            left.ring(self)  # and goes from there
            self._seen = -1
        if not self.hub.is_here:
            self.hub.ring(self)

    # -- waiting for a call --------------------------------------------------------------------------------------------

    def _await(self, waiter: Slot | CallFuture, until: float | None) -> None:
        """Until the call has ended or the time is over: as the borrower, or parked while others drive."""
        while waiter.is_open:
            wait_s = OVER_S if until is None else min(OVER_S, until - _clock())
            if wait_s <= 0:
                self._locked(self._expire)
                return
            if self._is_own_thread():
                self._serve_nested(wait_s)
            elif self._borrower is waiter and self._inline.is_idle:
                self._step(wait_s)
            elif waiter in self._parked:
                heed()
                self._parked[waiter].wait(wait_s)
            else:
                self._locked(lambda: self._park(waiter))

    def _step(self, wait_s: float) -> None:
        """Waits for news, and deals with it."""
        if self._talk.may_go_on():
            self._locked(self._borrow_alone)
            return
        if not self._locked(self.link.control_may_hold):
            heed()
            bell = self._bell
            bell.is_awaited = True
            if self.link.wait_control(int(wait_s * 1000) + 1):
                bell.hear()
            bell.is_awaited = False
        self._locked(self._borrow)

    # -- under the lock ------------------------------------------------------------------------------------------------

    def _locked(self, job: Callable[[], _T]) -> _T:
        if self._talk.is_waiting:
            self._talk.interrupt()
        return self._exclusive.run(job)

    def _begin(self, slot: Slot, function_id: str, payload: wire.Payload, timeout: float, target: str) -> None:
        slot.number = number = self.core.call(function_id, payload, timeout, _clock(), target)
        self._waiters[number] = slot
        self._lend(slot)

    def _lend(self, waiter: Slot | CallFuture) -> None:
        """The thread of this waiter borrows the link if nobody else waits, or is parked."""
        self._held.count = 0
        is_free = self._borrower is None and not self._parked and not self._conditions and self._inline.is_idle
        if is_free and self.core.is_level:
            self._borrower = waiter
            self.link.flush()
        else:
            self._park(waiter)

    def _park(self, waiter: Slot | CallFuture) -> None:
        self._parked[waiter] = Parked()
        if self._borrower is waiter:
            self._borrower = None
        self._settle()
        if not waiter.is_open:
            self._parked[waiter].wake()

    def _park_for(self, parked: Parked) -> None:
        self._conditions[parked] = None
        self._settle()

    def _submit(self, future: CallFuture, function_id: str, payload: wire.Payload, timeout: float, target: str) -> None:
        now = _clock()
        try:
            future.number = number = self.core.call(function_id, payload, timeout, now, target)
        except errors.CallFailed as error:
            future.end(error)
            return
        except errors.Closed as error:
            future.set_exception(error)
            return
        self._waiters[number] = future
        if now - self._driven_at > HOLD_S or not self._held.add():
            self._settle()
            return
        self._driven_at = now
        if not self.is_lent:  # the hub is to send it, should nothing follow
            self.is_lent = True
            self.hub.ring(self)

    def _send_held(self) -> None:
        self._held.count = 0
        self.link.flush()

    def _send_done(self) -> None:
        pool = self._pool
        assert pool is not None
        while pool.done:
            hand_back(self.core.incoming, *pool.done.popleft())
        self._settle()

    def _give_up(self, waiter: Slot | CallFuture) -> None:
        """Nobody waits for this call any more."""

        def give_up() -> None:
            if waiter.number is not None and self._waiters.pop(waiter.number, None) is not None:
                self.core.outgoing.give_up(waiter.number)

        self.do(give_up)

    def _settle(self) -> None:
        """Sends; then whatever this thread leaves undone is the hub's."""
        self._deal()
        self._tell_hub()

    def _tell_hub(self) -> None:
        """Rings if the hub looks later than it has to, or would not be told of something."""
        due_at = self.core.next_deadline()
        is_late = due_at is not None and due_at < self._due_at
        is_unread = bool(self._parked or self._conditions) if self.is_lent else self.link.control_may_hold()
        if (is_late or is_unread or self._seen != self.link.generation) and not self.hub.is_here and not self.ended:
            self.hub.ring(self)

    def _expire(self) -> None:
        self.core.tick(_clock())
        self._settle()

    def _borrow(self) -> None:
        borrower = self._borrower
        if borrower is not None and not self.core.is_level:
            self._park(borrower)  # what comes may be for the replica
            return
        now = _clock()
        if self.link.pump_control():
            self._talk.heard(now)
        self._after_borrowing()

    def _borrow_alone(self) -> None:
        self._pump_alone()
        self._after_borrowing()

    def _after_borrowing(self) -> None:
        """A thread that gets what it waited for gives the link back."""
        self._deal()
        self._driven_at = _clock()
        borrower = self._borrower
        if borrower is not None and not borrower.is_open:
            self._borrower = None
            self._tell_hub()

    def _pump(self) -> None:
        """Reads what there is, does what is due, and sends."""
        self._inline.looked_at = now = _clock()
        if self.link.pump():
            self._talk.heard(now)
        self._deal()

    def _pump_alone(self) -> None:
        """Waits for one message of the control socket, for a few milliseconds at most."""
        talk = self._talk
        try:
            talk.is_waiting = True
            if not self.link.pump_alone():
                talk.end()
        finally:
            talk.is_waiting = False

    def _deal(self) -> None:
        """Deals with what the core tells, and sends what follows."""
        core, on = self.core, self._on
        events = core.take_events()
        while events:
            for event in events:
                on[type(event)](event)
            events = core.take_events()
        self.link.flush()
        for parked in list(self._conditions):
            if parked.is_true is None or parked.is_true():
                parked.wake()

    def _on_call_ended(self, event: CallEnded) -> None:
        waiter = self._waiters.pop(event.number, None)
        if waiter is None:
            return
        waiter.end(event.outcome)
        if waiter in self._parked:
            self._parked[waiter].wake()
        elif waiter is self._borrower and self._bell.is_awaited:
            self._bell.ring()

    def _mend(self) -> None:
        """An exception cut a job short: messages and events may be lost, so the session is given up for lost."""
        self.core.distrust(_clock())
        self._deal()
        self.stay.mend()
        for number in list(self._waiters):
            if not self.core.outgoing.is_open(number):
                text = "a signal handler raised while the worker read or sent: what became of the call is not known"
                self._on_call_ended(CallEnded(number, errors.BrokerLost(text, "possibly_executed", errors.BROKER_LOST)))
        self._tell_hub()

    def end(self) -> None:
        """The worker is over: everybody who waits is told. Through `do`."""
        if self.ended:
            return
        self.unusable = self.unusable or CLOSED
        self.core.end(CLOSED)
        self._deal()
        self.ended = True
        self.wake()
        for parked in list(self._parked.values()):
            parked.wake()
        self._bell.ring()
        self.link.close()
        self._bell.close()
        if self._pool is not None:
            self._pool.close()
        self.hub.ring(self)
        hub.ended(self)


def _on_cancel(_: CancelCall) -> None:
    """A thread can't be interrupted: a handler finds out by `current_call().cancelled`."""
