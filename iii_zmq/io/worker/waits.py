"""What the threads of a sync worker share: the right to touch its link, and what they wait for.

A signal handler may raise between any two steps of plain Python in the main thread. So locks are taken with a literal
`with`, which CPython never leaves half done, and whatever an exception cuts short under the lock is noticed and mended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from ... import errors, wire
from .hub import Bell

ALONE_S: Final = 0.005  # after a message of the control socket an answer may follow: it alone is waited for so long
OTHERS_S: Final = 0.1  # but not for so long after another thread had to wait for that

CallOutcome = wire.Payload | errors.CallFailed

_T = TypeVar("_T")
_clock: Final = time.monotonic
_ident: Final = threading.get_ident


class Exclusive:
    """Runs one job at a time. `mend` is called before the next job when an exception cut one short."""

    def __init__(self, mend: Callable[[], None]) -> None:
        self._mend = mend
        self._lock = threading.RLock()  # reentrant: a signal handler of the thread that has it may use the worker, too
        self._is_busy = False
        self._is_torn = False
        self._owner = 0  # the thread of the latest job

    @property
    def is_inside(self) -> bool:
        """This thread is in the middle of a job."""
        return self._is_busy and self._owner == _ident()

    def run(self, job: Callable[[], _T]) -> _T:
        """Returns what the job returns. Raises: what it raises; an IIIError is a refusal, and leaves nothing torn."""
        with self._lock:
            if self._is_busy:  # in the middle of a job of this very thread, which will send what this one leaves
                return job()
            try:
                self._owner = _ident()
                self._is_busy = True
                if self._is_torn:
                    self._is_torn = False
                    self._mend()
                value = job()
                self._is_busy = False
                return value
            except errors.IIIError:
                self._is_busy = False
                raise
            except BaseException:
                self._is_busy = False
                self._is_torn = True
                raise


class Waiter(Protocol):
    """Waits for the outcome of a call: a Slot of the call's own thread, or a CallFuture."""

    number: int | None  # once the core knows the call

    @property
    def is_open(self) -> bool: ...
    def end(self, outcome: CallOutcome) -> None: ...


class Slot:
    """The outcome of a call whose own thread waits for it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.outcome: CallOutcome | None = None

    @property
    def is_open(self) -> bool:
        return self.outcome is None

    def end(self, outcome: CallOutcome) -> None:
        self.outcome = outcome


class Parked:
    """A thread that waits while others drive; with `is_true`, for a condition that the driver looks at."""

    def __init__(self, is_true: Callable[[], bool] | None = None) -> None:
        self.is_true = is_true
        self._gate = threading.Lock()  # no Event: that is made of Python, and takes longer than all the rest
        self._gate.acquire()

    def wait(self, timeout: float) -> None:
        """Until `wake`, at most so long. May end early."""
        self._gate.acquire(timeout=timeout)

    def wake(self) -> None:
        """From any thread, or a signal handler."""
        try:
            self._gate.release()
        except RuntimeError:
            pass  # it is awake


class Waiting:
    """The threads of one worker that wait, and the one of them that borrows the link.

    Changed under the lock; but a thread that stops waiting, for whatever reason, takes itself out by one step.
    """

    def __init__(self) -> None:
        self.calls: dict[int, Waiter] = {}  # by the call's number
        self.borrower: Waiter | None = None
        self.bell = Bell()  # ends the borrower's wait
        self.parked: dict[Waiter, Parked] = {}
        self.conditions: dict[Parked, None] = {}

    @property
    def is_shared(self) -> bool:
        """Somebody is parked, so that the hub drives at once."""
        return bool(self.parked or self.conditions)

    def park(self, waiter: Waiter) -> None:
        self.parked[waiter] = Parked()
        if self.borrower is waiter:
            self.borrower = None

    def end_call(self, number: int, outcome: CallOutcome) -> None:
        waiter = self.calls.pop(number, None)
        if waiter is None:
            return
        if isinstance(waiter, Slot):
            waiter.outcome = outcome
        else:
            waiter.end(outcome)
        if self.parked and waiter in self.parked:
            self.parked[waiter].wake()
        elif waiter is self.borrower and self.bell.is_awaited:
            self.bell.ring()

    def give_up(self, waiter: Waiter) -> None:
        """The waiter was cancelled: whoever waits for it looks up."""
        if waiter in self.parked:
            self.parked[waiter].wake()
        elif waiter is self.borrower:
            self.bell.ring()
        self.look()

    def look(self) -> None:
        """Wakes threads whose condition has come true."""
        for parked in list(self.conditions):
            if parked.is_true is None or parked.is_true():
                parked.wake()

    def wake(self) -> None:
        """All conditions are looked at again by their own threads. From any thread, or a signal handler."""
        for parked in list(self.conditions):
            parked.wake()

    def close(self) -> None:
        """The worker has ended."""
        for parked in (*list(self.conditions), *list(self.parked.values())):
            parked.wake()
        self.bell.ring()
        self.bell.close()


class Conversation:
    """Whether the next answer may be waited for alone, in one receive instead of a poll and a receive.

    While a thread does so it has the link to itself. A thread that comes in between says so, and ends the conversation.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._others_at = -OTHERS_S
        self.is_waiting = False

    def may_go_on(self) -> bool:
        return self._until > 0.0 and _clock() < self._until

    def heard(self, now: float) -> None:
        """A message came by the control socket."""
        if now - self._others_at > OTHERS_S:
            self._until = now + ALONE_S

    def end(self) -> None:
        """Nothing came."""
        self._until = 0.0

    def interrupt(self) -> None:
        """Another thread is about to wait for the link."""
        self._others_at = _clock()
        self._until = 0.0
