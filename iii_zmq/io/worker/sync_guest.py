"""One sync worker as its hub serves it: core and link under one lock, and what follows from what the core tells.

Any thread may do a short job on core and link (`do`): under the lock, never waiting there, and telling the hub if
something is left unread, because a libzmq descriptor tells of news only once. User code never runs under the lock or in
the shared hub: handlers run in the pool or inline in a hub of the worker's own (Inline), callbacks in their threads.

When an exception of a signal handler cuts a job short, nobody knows what of it was done: the session is given up for
lost and made anew, so that all who wait are told the truth (`_mend`). The replica is safe: only the hub touches it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ... import errors
from ...core.worker.core import WorkerCore
from ...core.worker.events import CallEnded, CancelCall, RunCall
from . import hub
from .callbacks import CallbackQueue
from .handlers import HOLD_S, Handlers, Outcome, Pool, hand_back
from .hub import LOOK_S, Hub
from .lifecycle import CLOSED, Stay
from .link import Link
from .listeners import Listeners
from .waits import Conversation, Exclusive, Waiting

log = logging.getLogger("iii_zmq.worker")

ASKED_S: Final = 0.05  # a thread that asked a future for its result soon asks the next one, and drives by itself
NESTING_MAX = 16  # inline handlers that wait for calls of their own, one inside the other
PUMP_S: Final = 0.1  # between inline handlers the sockets are looked at this often, so that heartbeats go on

_T = TypeVar("_T")
_clock: Final = time.monotonic


class SyncGuest:
    """See hub.Guest."""

    def __init__(self, core: WorkerCore, handlers: Handlers, listeners: Listeners, threads: int) -> None:
        self.core = core
        self.callbacks = CallbackQueue()
        self.stay = Stay(core, handlers, listeners, self.callbacks)
        self.hub = hub.shared()
        self.waiting = Waiting()
        self.link = Link(core, self.waiting.bell.fd)
        self.talk = Conversation()
        self.ended = False
        self.unusable: str | None = None  # why nothing can be asked any more
        self.is_lent = False  # the hub looks again by itself, and does not watch the control socket
        self.driven_at = 0.0  # when a borrower last drove
        self.asked_at = -ASKED_S  # when a thread last drove for the result of a future
        self.held = 0  # calls that were not sent yet
        self._exclusive = Exclusive(self._mend)
        self._due_at = 0.0  # when the hub looks next without being told
        self._seen = -1  # the generation of the descriptors that the hub watches
        self.inline = Inline(handlers, self)
        self._pool = Pool(f"iii-{core.profile.name}", threads, handlers, self._hand_back) if threads else None
        self._on: dict[type[Any], Callable[[Any], None]] = {
            RunCall: self._on_run, CancelCall: self._on_cancel, **self.stay.on,
        }  # fmt: skip

    # -- for any thread ------------------------------------------------------------------------------------------------

    def locked(self, job: Callable[[], _T]) -> _T:
        """Runs a short `job` under the lock; returns or raises what it does."""
        if self.talk.is_waiting:
            self.talk.interrupt()
        return self._exclusive.run(job)

    @property
    def is_inside(self) -> bool:
        """A signal handler's code, in the middle of a job of this very thread: nobody else can drive meanwhile."""
        return self._exclusive.is_inside

    def do(self, job: Callable[[], _T]) -> _T:
        """Runs a short `job` that leaves something to send."""

        def done() -> _T:
            value = job()
            self.settle()
            return value

        return self.locked(done)

    def _hand_back(self) -> None:
        """Handlers have ended in the pool. Results that are ready at the same moment leave together."""

        def hand_back_all() -> None:
            assert self._pool is not None
            done = self._pool.done
            while done:
                hand_back(self.core.incoming, *done.popleft())

        self.do(hand_back_all)

    # -- for the hub ---------------------------------------------------------------------------------------------------

    @property
    def watched(self) -> Link:
        return self.link

    @property
    def is_here(self) -> bool:
        """Not ended, and this is the hub's thread: not that of the shared hub after the move to a hub of its own."""
        return not self.ended and self.hub.is_here

    def take_turn(self, told: list[int]) -> float | None:
        if not self.is_here:
            return None
        now = _clock()
        if self.talk.is_waiting or self._is_left_alone(told, now):
            self.is_lent = True
            return now + LOOK_S
        try:
            due_at = self.locked(self.turn)
            while not self.inline.is_idle and self.inline.is_here:
                self.inline.serve()
                due_at = self.locked(self.turn)
        except BaseException:
            self._fail()
            return None
        return due_at

    def _fail(self) -> None:
        log.critical("%s: the worker's loop failed: this is a bug in iii_zmq", self.core.profile.name, exc_info=True)
        self.locked(self.end)

    def _is_left_alone(self, told: list[int], now: float) -> bool:
        """Nothing is to be done here, and a borrower reads the control socket, or did a moment ago."""
        if self.waiting.is_shared or not self.inline.is_idle or any(fd != self.link.control_fd for fd in told):
            return False
        due_at = self.core.next_deadline()
        if due_at is not None and due_at <= now:
            return False
        if now - self.driven_at < LOOK_S:
            return True
        is_asked = self.waiting.borrower is not None or (self.waiting.calls and now - self.asked_at < ASKED_S)
        return bool(told and is_asked)

    def forked(self) -> None:
        """In the child: link, lock and threads are the parent's."""
        self.unusable = hub.FORKED
        self.ended = True

    def end_quickly(self, until: float) -> None:
        """The interpreter ends: Bye, if that can be said at once."""
        if self.unusable is None and _clock() < until:
            self.unusable = "the interpreter is ending"
            self.locked(self.core.leave)
            self.locked(self.end)

    # -- under the lock ------------------------------------------------------------------------------------------------

    def turn(self) -> float:
        """The hub's: reads, does what is due and sends; when the next turn is due."""
        self.is_lent = False
        borrower = self.waiting.borrower
        if borrower is not None and not borrower.is_open and not self.waiting.bell.is_awaited:
            self.waiting.borrower = None  # its thread was interrupted as it took the link, or is about to give it back
        self.pump()
        self._seen = self.link.generation
        due_at = self.core.next_deadline()
        self._due_at = math.inf if due_at is None else due_at
        return _clock() if self.link.may_hold() else self._due_at

    def pump(self) -> None:
        """Reads what there is, does what is due, and sends."""
        now = _clock()
        if self.link.pump():
            self.talk.heard(now)
        self.deal()

    def drive(self, wait_s: float) -> None:
        """Not under the lock: waits for news of any kind, and deals with it, for a thread that nobody drives for."""
        wait_ms = self.locked(self.link.wait_ms)
        if wait_ms and self.link.wait(min(wait_ms, int(wait_s * 1000) + 1)):
            self.waiting.bell.hear()
        self.locked(self.pump)

    def converse(self) -> None:
        """Waits for one message of the control socket, for a few milliseconds at most."""
        talk = self.talk
        try:
            talk.is_waiting = True
            if not self.link.pump_alone():
                talk.end()
        finally:
            talk.is_waiting = False
        self.deal()

    def deal(self) -> None:
        """Deals with what the core tells, and sends what follows."""
        core, on = self.core, self._on
        while core.events:
            for event in core.take_events():
                if isinstance(event, CallEnded):  # most are; compiled, a class is found faster so than in a table
                    self.waiting.end_call(event.number, event.outcome)
                else:
                    on[type(event)](event)
        if core.outbox:
            self.flush()
        if self.waiting.conditions:
            self.waiting.look()

    def flush(self) -> None:
        """Sends what the core wants sent."""
        self.held = 0
        self.link.flush()

    def settle(self) -> None:
        """Deals with what there is; what this thread leaves undone is the hub's."""
        self.deal()
        self.tell_hub()

    def tell_hub(self) -> None:
        """Rings if the hub would not look by itself as soon as it has to; at a guest that is lent it looks anyway."""
        if self.is_lent:
            return
        if self._seen != self.link.generation or self.link.control_may_hold():
            is_due = True
        else:
            due_at = self.core.next_deadline()
            is_due = due_at is not None and due_at < self._due_at
        if is_due and not self.ended and not self.hub.is_here:
            self.hub.ring(self)
            if self.inline.depth:  # the hub's thread may wait inside a handler
                self.waiting.bell.ring()

    def _on_run(self, run: RunCall) -> None:
        if self._pool is not None:
            self._pool.put(run)
            return
        self.inline.put(run)
        if not self.inline.has_own_hub:
            self.inline.has_own_hub = True
            left, self.hub = self.hub, Hub(f"iii-{self.core.profile.name}")
            left.ring(self)  # to find that this guest has left
            self._seen = -1
        if not self.hub.is_here:
            self.hub.ring(self)

    def _on_cancel(self, _: CancelCall) -> None:
        """A thread can't be interrupted: a handler finds out by `current_call().cancelled`."""

    def _mend(self) -> None:
        """An exception cut a job short: messages and events may be lost, so the session is given up for lost."""
        self.core.distrust(_clock())
        self.deal()
        self.stay.mend()
        text = "a signal handler raised while the worker read or sent: what became of the call is not known"
        for number in list(self.waiting.calls):
            if not self.core.outgoing.is_open(number):
                error = errors.BrokerLost(text, "possibly_executed", errors.BROKER_LOST)
                self.waiting.end_call(number, error)
        self.settle()

    def end(self) -> None:
        """The worker is over: everybody who waits is told."""
        if self.ended:
            return
        self.unusable = self.unusable or CLOSED
        self.core.end(CLOSED)
        self.deal()
        self.ended = True
        self.waiting.close()
        self.link.close()
        if self._pool is not None:
            self._pool.close()
        self.hub.ring(self)
        hub.ended(self)


class Inline:
    """The inline handlers of a worker with `threads=0`. They run in the thread of the worker's own hub.

    A handler that calls drives the link while it waits, and may so come to run another one inside: up to NESTING_MAX,
    beyond which calls wait until an outer one has ended. Answers that are ready within HOLD_S leave together. None
    waits for a handler that may take long: one that is not known to be quick begins only when what is ready has left.
    """

    def __init__(self, handlers: Handlers, guest: SyncGuest) -> None:
        self._handlers = handlers
        self._guest = guest
        self._waiting: deque[RunCall] = deque()  # bounded by the worker's credit
        self._done: deque[tuple[RunCall, Outcome]] = deque()  # to be handed back and sent
        self._ready_at = 0.0  # since then the first of them is ready
        self._looked_at = 0.0
        self.depth = 0
        self.has_own_hub = False  # from the first inline call on

    def put(self, run: RunCall) -> None:
        self._waiting.append(run)

    @property
    def is_idle(self) -> bool:
        """No handler runs, and no call waits: other threads may borrow the link."""
        return not self.depth and not self._waiting

    @property
    def is_here(self) -> bool:
        """This is the thread that runs the handlers: while it waits, nobody else drives."""
        return self.has_own_hub and self._guest.is_here

    def serve(self) -> None:
        """Runs what waits, and goes on for as long as a conversation does."""
        guest = self._guest
        self._looked_at = _clock()
        self._run_all()
        while guest.talk.may_go_on() and guest.is_here:
            guest.locked(self._converse)
            self._run_all()
        if self._done:
            guest.locked(self._send)

    def serve_nested(self, wait_s: float) -> None:
        """While a handler waits: what the hub would do, and other handlers inside it."""
        guest = self._guest
        guest.drive(wait_s)
        self._run_all()
        if self._done:
            guest.locked(self._send)

    def _run_all(self) -> None:
        while self._waiting and self.depth < NESTING_MAX:
            self._run(self._waiting.popleft())

    def _run(self, run: RunCall) -> None:
        guest, handlers, began = self._guest, self._handlers, _clock()
        if self._done and (began - self._ready_at > HOLD_S or not handlers.is_quick(run.function_id)):
            guest.locked(self._send)
        self.depth += 1
        try:
            outcome = handlers.run_here(run, began)
        finally:
            self.depth -= 1
        ended = _clock()
        if not self._done:
            self._ready_at = ended
        self._done.append((run, outcome))
        handlers.note_pace(run.function_id, ended - began)
        if ended - self._looked_at > PUMP_S:
            self._looked_at = ended
            guest.locked(guest.pump)

    def _converse(self) -> None:
        if self._done:
            self._send()
        self._guest.converse()

    def _send(self) -> None:
        done, incoming = self._done, self._guest.core.incoming
        while done:
            hand_back(incoming, *done.popleft())
        self._guest.flush()
