"""What the threads of a sync worker share: the right to touch its link, and what they wait for.

A signal handler may raise between any two steps of plain Python in the main thread. So locks are taken with a literal
`with`, which CPython never leaves half done, and whatever an exception cuts short under the lock is noticed and mended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ... import errors, wire

ALONE_S: Final = 0.005  # after a message of the control socket an answer may follow: it alone is waited for so long
OTHERS_S: Final = 0.1  # but not for so long after another thread had to wait for that

CallOutcome = wire.Payload | errors.CallFailed

_T = TypeVar("_T")
_clock: Final = time.monotonic


class Exclusive:
    """Runs one job at a time. `mend` is called before the next job when an exception cut one short."""

    def __init__(self, mend: Callable[[], None]) -> None:
        self._mend = mend
        self._lock = threading.RLock()  # reentrant: a signal handler of the thread that has it may use the worker, too
        self._is_busy = False
        self._is_torn = False

    def run(self, job: Callable[[], _T]) -> _T:
        """Returns what the job returns. Raises: what it raises; an IIIError is a refusal, and leaves nothing torn."""
        with self._lock:
            if self._is_busy:  # in the middle of a job of this very thread, which will send what this one leaves
                return job()
            try:
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


class Slot:
    """The outcome of a call whose own thread waits for it."""

    def __init__(self) -> None:
        self.number: int | None = None  # once the core knows the call
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


class Held:
    """Calls of a thread that asks futures for their results one after another: those that follow answers which came
    together are held for each other, one message instead of thirty."""

    def __init__(self) -> None:
        self.count = 0  # held now
        self.count_max = 1  # as many as answers came together last

    def add(self) -> bool:
        """One more; False if all are to leave now."""
        self.count += 1
        if self.count < self.count_max:
            return True
        self.count = 0
        return False
