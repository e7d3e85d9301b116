"""Where a sync worker's handlers run: in a few threads, or inline, in the thread that drives.

An inline handler that calls drives by itself while it waits, and may so come to run another one inside: up to
NESTING_MAX, beyond which calls wait until an outer one has ended. Results of threads come back as notes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..core.incoming import Incoming
from ..core.signals import RunCall
from .handlers import Handlers, Outcome, Raised, hand_back
from .notes import Note
from .pool import Pool

NESTING_MAX = 16  # inline handlers that wait for calls of their own, one inside the other


class Runner:
    """`post` takes a note for the driver, `ran` is called after each inline handler: its answer is to leave."""

    def __init__(
        self,
        name: str,
        threads: int,
        handlers: Handlers,
        incoming: Incoming,
        post: Callable[[Note], None],
        ran: Callable[[], None],
    ) -> None:
        self._pool = Pool(f"iii-{name}", threads) if threads else None
        self._handlers = handlers
        self._incoming = incoming
        self._post = post
        self._ran = ran
        self._later: deque[RunCall] = deque()  # bounded by the worker's credit
        self.depth = 0

    def run(self, run: RunCall) -> None:
        """For the driver."""
        if self._pool is not None:
            self._pool.submit(lambda: self._run_in_pool(run))
        elif self.depth >= NESTING_MAX:
            self._later.append(run)
        else:
            self._run_inline(run)
            while self._later and self.depth < NESTING_MAX:
                self._run_inline(self._later.popleft())

    def close(self) -> None:
        """The threads end when they are done; nobody waits for that."""
        if self._pool is not None:
            self._pool.close()

    def _run_inline(self, run: RunCall) -> None:
        self.depth += 1
        try:
            outcome = self._handlers.run_here(run)
        except BaseException as error:  # Ctrl-C: the handler did run, and its caller is told
            hand_back(self._incoming, run, Raised(error))
            self._ran()
            raise
        finally:
            self.depth -= 1
        if type(outcome) is bytes:
            self._incoming.finish(run, outcome)
        else:
            hand_back(self._incoming, run, outcome)
        self._ran()

    def _run_in_pool(self, run: RunCall) -> None:
        outcome: Outcome = self._handlers.run_here(run)
        self._post(lambda: hand_back(self._incoming, run, outcome))
