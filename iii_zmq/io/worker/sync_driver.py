"""How a sync worker's threads get what they ask for: by a short job under the lock, and by waiting for the outcome.

    state      who reads the control socket                          until
    watched    the hub, woken by its descriptor                      a thread waits for a call: it borrows the link
    lent       the borrower; the hub looks again every LOOK_S        nobody has driven for LOOK_S
    shared     the hub at once: several threads wait, or one waits   no thread is parked any more
               for something else than a call; they are parked
    inline     a handler runs in the worker's own hub; a call that   the handler has ended
               the handler makes is driven there, all others wait

The stream, timers and joining are always the hub's (sync_guest). Every thread that waits has a bound of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ... import errors, wire
from ...core.worker.core import WorkerCore
from ...core.worker.outgoing import GRACE_S
from .futures import CallFuture
from .handlers import Handlers
from .lifecycle import CLOSED, LEFT_S
from .listeners import Listeners
from .payloads import check_call, inherit_deadline
from .run_signals import heed
from .sync_guest import SyncGuest
from .waits import Parked, Slot, Waiter

# How often a waiting thread looks up. A signal that comes just before the main thread begins to wait does not end that
# wait, and compiled code never looks for signals by itself.
OVER_S: Final = 0.2
HOLD_S: Final = 0.0005  # calls that follow each other so soon may leave together, after answers that came together
LATE_S: Final = 0.001  # past the deadline of a call: by then the core says what became of it
CALLBACKS_S: Final = 0.2  # what `close()` gives to callbacks that wait for their turn

_T = TypeVar("_T")
_clock: Final = time.monotonic


class Driver:
    """What the face of one started worker asks for. From any thread, also from handlers and callbacks."""

    def __init__(self, core: WorkerCore, handlers: Handlers, listeners: Listeners, threads: int) -> None:
        self.guest = guest = SyncGuest(core, handlers, listeners, threads)
        self.callbacks = guest.callbacks
        self.waiting = guest.waiting
        self._core = core
        self._hold_max = 1  # calls that are held for each other: as many as answers came together last

    def call(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> wire.Payload:
        """The packed result. Raises: CallFailed, Closed."""
        slot = Slot()
        until = _clock() + timeout + GRACE_S + LATE_S

        def begin() -> None:
            slot.number = number = self._core.call(function_id, payload, timeout, _clock(), target)
            self.waiting.calls[number] = slot
            if self._lend(slot) and self.guest.talk.may_go_on():
                self._converse()

        try:
            self.guest.locked(begin)
            if slot.outcome is None:
                self._await(slot, until)
        except BaseException:
            self.forget(slot)
            raise
        finally:
            if self.waiting.borrower is slot:
                self.waiting.borrower = None
            self.waiting.parked.pop(slot, None)
        outcome = slot.outcome
        if outcome is None:
            text = f"{function_id}: no answer within its timeout"
            raise errors.CallTimeout(text, "possibly_executed", errors.TIMEOUT)
        if isinstance(outcome, errors.CallFailed):
            raise outcome
        return outcome

    def submit(self, function_id: Any, payload: Any, timeout: Any, worker: Any) -> CallFuture:
        """A future that the answer ends. Raises: TypeError, ValueError, Closed."""
        if self.guest.unusable is not None:
            raise errors.Closed(self.guest.unusable)
        data = check_call(function_id, payload, timeout, worker)
        timeout = inherit_deadline(timeout)
        future = CallFuture(self)

        def begin() -> None:
            now = _clock()
            try:
                future.number = number = self._core.call(function_id, data, timeout, now, worker or "")
            except errors.CallFailed as error:
                future.end(error)
            except errors.Closed as error:
                future.set_exception(error)
            else:
                self.waiting.calls[number] = future
                self._send_or_hold(now)

        self.guest.locked(begin)
        return future

    def send(self, function_id: str, payload: wire.Payload, timeout: float, target: str) -> None:
        """No answer comes back. Raises: Busy, Closed."""
        self.guest.do(lambda: self._core.call(function_id, payload, timeout, _clock(), target, wire.NO_ANSWER))

    def forget(self, waiter: Waiter) -> None:
        """Nobody waits for this call any more."""

        def give_up() -> None:
            if waiter.number is not None and self.waiting.calls.pop(waiter.number, None) is not None:
                self._core.outgoing.give_up(waiter.number)
            self.waiting.give_up(waiter)

        self.guest.do(give_up)

    def wait_for(self, future: CallFuture, timeout: float | None) -> None:
        """Until the future is done or the timeout."""
        waiting, open_before, is_mine = self.waiting, len(self.waiting.calls), False

        def claim() -> bool:
            if future in waiting.parked or waiting.borrower is future:  # another thread waits for the same one
                return False
            self._lend(future)
            return True

        try:
            is_mine = self.guest.locked(claim)
            if is_mine:
                self._await(future, None if timeout is None else _clock() + timeout)
        finally:
            if is_mine:
                if waiting.borrower is future:
                    waiting.borrower = None
                waiting.parked.pop(future, None)
        if not is_mine:
            self.wait(lambda: not future.is_open, timeout)
            return
        self.guest.asked_at = _clock()
        self._hold_max = min(open_before - len(self.waiting.calls), self.guest.link.portion())

    def wait(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        """Until `is_true`, the timeout or the end, while the hub drives; the last word of `is_true`."""
        until = None if timeout is None else _clock() + timeout
        parked = Parked(is_true)

        def park() -> None:
            self.waiting.conditions[parked] = None
            self.guest.settle()

        try:
            self.guest.locked(park)
            while not self.guest.ended and not is_true():
                wait_s = OVER_S if until is None else min(OVER_S, until - _clock())
                if wait_s <= 0:
                    break
                heed()
                if self.guest.inline.is_here:
                    self.guest.inline.serve_nested(wait_s)
                elif self.guest.is_inside:
                    self.guest.drive(wait_s)
                else:
                    parked.wait(wait_s)
        finally:
            self.waiting.conditions.pop(parked, None)
        return is_true()

    def leave(self, results_s: float) -> None:
        """Bye, a moment for results that are about to be sent, and the end. May be repeated."""
        guest = self.guest
        if guest.ended:
            return
        guest.unusable = guest.unusable or CLOSED
        try:
            guest.do(self._core.leave)
            if results_s and not self.guest.inline.is_here:
                self.wait(lambda: not len(self._core.incoming), results_s)
                self.wait(lambda: self._core.has_left, LEFT_S)
        finally:
            guest.locked(guest.end)
        self.callbacks.wait_until_empty(CALLBACKS_S)

    # -- waiting for a call --------------------------------------------------------------------------------------------

    def _await(self, waiter: Waiter, until: float | None) -> None:
        """Until the call has ended or the time is over: as the borrower, or parked while others drive."""
        waiting = self.waiting
        while waiter.is_open:
            wait_s = OVER_S if until is None else min(OVER_S, until - _clock())
            if wait_s <= 0:
                self.guest.do(lambda: self._core.tick(_clock()))  # ends what has expired
                return
            parked = waiting.parked.get(waiter)
            if self.guest.inline.is_here:
                self.guest.inline.serve_nested(wait_s)
            elif self.guest.is_inside:
                self.guest.drive(wait_s)
            elif waiting.borrower is waiter and self.guest.inline.is_idle:
                self._step(waiter, wait_s)
            elif parked is not None:
                heed()
                parked.wait(wait_s)
            else:
                self.guest.locked(lambda: self._park(waiter))

    def _step(self, waiter: Waiter, wait_s: float) -> None:
        """The borrower waits for news, and deals with it."""
        guest, bell = self.guest, self.waiting.bell
        if guest.talk.may_go_on() and self._core.is_level:
            guest.locked(self._converse)
            return
        bell.is_awaited = True  # before the look: whoever ends the call after it rings
        if waiter.is_open and not guest.locked(guest.link.control_may_hold):
            heed()
            if guest.link.wait_control(int(wait_s * 1000) + 1):
                bell.hear()
        bell.is_awaited = False
        guest.locked(self._pump)

    # -- under the lock ------------------------------------------------------------------------------------------------

    def _lend(self, waiter: Waiter) -> bool:
        """True if the thread of this waiter borrows the link, because nobody else waits; else it is parked."""
        waiting = self.waiting
        is_free = waiting.borrower is None and not waiting.is_shared and self.guest.inline.is_idle
        if is_free and self._core.is_level:
            waiting.borrower = waiter
            self.guest.flush()
            return True
        self._park(waiter)
        return False

    def _park(self, waiter: Waiter) -> None:
        self.waiting.park(waiter)
        self.guest.settle()
        if not waiter.is_open:
            self.waiting.parked[waiter].wake()

    def _send_or_hold(self, now: float) -> None:
        """Calls of a thread that asks futures for their results one after another leave together: those that follow
        answers which came together are one message instead of thirty. The hub sends them, should nothing follow."""
        guest = self.guest
        guest.held += 1
        if now - guest.driven_at > HOLD_S or guest.held >= self._hold_max or not guest.inline.is_idle:
            guest.settle()
            return
        guest.driven_at = now
        if not guest.is_lent:
            guest.is_lent = True
            guest.hub.ring(guest)

    def _pump(self) -> None:
        borrower = self.waiting.borrower
        if borrower is not None and not self._core.is_level:
            self._park(borrower)  # what comes may be for the replica
            return
        now = _clock()
        if self.guest.link.pump_control():
            self.guest.talk.heard(now)
        self.guest.deal()
        self._after_step()

    def _converse(self) -> None:
        self.guest.converse()
        self._after_step()

    def _after_step(self) -> None:
        """A thread that gets what it waited for gives the link back."""
        borrower = self.waiting.borrower
        self.guest.driven_at = _clock()
        is_open = borrower.outcome is None if isinstance(borrower, Slot) else borrower is None or borrower.is_open
        if not is_open:
            self.waiting.borrower = None
            self.guest.tell_hub()
