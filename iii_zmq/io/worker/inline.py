"""The inline handlers of a sync worker with `threads=0`: they run in the thread of the worker's own hub.

A handler that calls drives the link while it waits, and may so come to run another one inside: up to NESTING_MAX,
beyond which calls wait until an outer one has ended. Answers that are ready within HOLD_S leave together. None waits
for a handler that may take long: one that is not known to be quick begins only when what is ready has left.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...core.worker.events import RunCall
from .handlers import HOLD_S, Handlers, hand_back

if TYPE_CHECKING:
    from ...core.worker.core import WorkerCore
    from .link import Link
    from .waits import Conversation

NESTING_MAX = 16  # inline handlers that wait for calls of their own, one inside the other
LOOK_S: Final = 0.1  # between handlers the sockets are looked at this often, so that heartbeats go on

_clock: Final = time.monotonic


class Driven(Protocol):
    """What inline handlers need of the worker that they belong to."""

    core: WorkerCore
    link: Link
    talk: Conversation

    @property
    def is_here(self) -> bool: ...
    def locked(self, job: Callable[[], Any]) -> Any: ...
    def pump(self) -> None: ...
    def converse(self) -> None: ...
    def flush(self) -> None: ...


class Inline:
    """The calls that wait, and the ones that run, one inside the other."""

    def __init__(self, handlers: Handlers, guest: Driven) -> None:
        self._handlers = handlers
        self._guest = guest
        self._waiting: deque[RunCall] = deque()  # bounded by the worker's credit
        self._ready_at = math.inf  # since then an answer may wait to be sent
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
            guest.locked(guest.converse)
            self._run_all()

    def serve_nested(self, wait_s: float) -> None:
        """While a handler waits: what the hub would do, and other handlers inside it."""
        guest = self._guest
        wait_ms = guest.locked(guest.link.wait_ms)
        if wait_ms:
            guest.link.wait(min(wait_ms, int(wait_s * 1000) + 1))
        guest.locked(guest.pump)
        self._run_all()

    def _run_all(self) -> None:
        while self._waiting and self.depth < NESTING_MAX:
            self._run(self._waiting.popleft())
        if self._ready_at != math.inf:
            self._send()

    def _run(self, run: RunCall) -> None:
        guest, began = self._guest, _clock()
        held_s = began - self._ready_at
        if held_s > HOLD_S or (held_s >= 0 and not self._handlers.is_quick(run.function_id)):
            self._send()
        self.depth += 1
        try:
            outcome = self._handlers.run_here(run, began)
        finally:
            self.depth -= 1
        guest.locked(lambda: hand_back(guest.core.incoming, run, outcome))
        ended = _clock()
        self._handlers.note_pace(run.function_id, ended - began)
        self._ready_at = min(ended, self._ready_at)
        if ended - self._looked_at > LOOK_S:
            self._looked_at = ended
            guest.locked(guest.pump)

    def _send(self) -> None:
        self._ready_at = math.inf
        self._guest.locked(self._guest.flush)
