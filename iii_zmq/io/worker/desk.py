"""What the core tells besides calls: kept for who asks, logged, or passed on to listeners; alike for both workers."""

from __future__ import annotations

import logging

from ... import errors
from ...core.worker.events import (
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
    Troubled,
)
from .listeners import Listeners

log = logging.getLogger("iii_zmq.worker")


class Desk:
    """One started worker's."""

    def __init__(self, name: str, listeners: Listeners) -> None:
        self._name = name
        self._listeners = listeners
        self.settled: dict[int, list[tuple[str, str, str]]] = {}  # tickets whose end somebody will fetch
        self.refused: JoinRefused | None = None
        self.drained = False

    def take(self, event: Event) -> None:
        """Calls are none of its business."""
        match event:
            case Changes():
                self._listeners.tell_changes(event.changes)
            case Settled():
                self.settled[event.ticket] = event.refusals
            case StateChanged():
                log.info("%s is %s %s", self._name, event.state, event.text)
                self._listeners.tell_state(event.state)
            case Troubled():
                log.warning("%s has no session: %s", self._name, event.text)
            case JoinRefused():
                self.refused = event
            case NotOffered():
                for function_id, code, text in event.refusals:
                    log.warning("%s: the broker no longer takes %s: %s (%s)", self._name, function_id, text, code)
            case Drained():
                self.drained = True
            case CallEnded() | RunCall() | CancelCall():
                pass
            case _:
                errors.assert_never(event)
