"""Where a sync worker's handlers run: in a few threads, or inline, in the thread that drives.

An inline handler that calls drives by itself while it waits, and may so come to run another one inside: up to
NESTING_MAX, beyond which calls wait until an outer one has ended. Results of threads come back as notes.

Answers of inline handlers that are ready within HOLD_S leave together. None waits for a handler that may take long:
one that is not known to be quick is begun only when what is ready has left.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ...core.worker.events import RunCall
from ...core.worker.incoming import Incoming
from .handlers import Handlers, Outcome, Raised, hand_back
from .notes import Note
from .pool import Pool

NESTING_MAX = 16  # inline handlers that wait for calls of their own, one inside the other
HOLD_S: Final = 0.0002  # how long an answer that is ready waits for those of quick handlers

_clock: Final = time.monotonic


class Runner:
    """`post` takes a note for the driver; `flush` sends what is ready, `ran` is called after each inline handler."""

    def __init__(
        self,
        name: str,
        threads: int,
        handlers: Handlers,
        incoming: Incoming,
        post: Callable[[Note], None],
        flush: Callable[[], bool],
        ran: Callable[[float], None],
    ) -> None:
        self._pool = Pool(f"iii-{name}", threads) if threads else None
        self._handlers = handlers
        self._incoming = incoming
        self._post = post
        self._flush = flush
        self._ran = ran
        self._ready_at = math.inf  # since then an answer may wait to be sent
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
        began = _clock()
        held_s = began - self._ready_at
        if held_s > HOLD_S or (held_s >= 0 and not self._handlers.is_quick(run.function_id)):
            self._flush()
            self._ready_at = math.inf
        self.depth += 1
        try:
            outcome = self._handlers.run_here(run, began)
        except BaseException as error:  # Ctrl-C: the handler did run, and its caller is told
            hand_back(self._incoming, run, Raised(error))
            self._flush()
            raise
        finally:
            self.depth -= 1
        if type(outcome) is bytes:
            self._incoming.finish(run, outcome)
        else:
            hand_back(self._incoming, run, outcome)
        ended = _clock()
        self._handlers.note_pace(run.function_id, ended - began)
        if ended < self._ready_at:
            self._ready_at = ended
        self._ran(ended)

    def _run_in_pool(self, run: RunCall) -> None:
        outcome: Outcome = self._handlers.run_here(run, _clock())
        self._post(lambda: hand_back(self._incoming, run, outcome))
