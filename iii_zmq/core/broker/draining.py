"""Workers that are handed no new calls: when they have nothing left to do, and who takes over what they lead.

An exclusive function is handed over when its last call here has ended, for as long as the session lasts: the stand-by
may come after the Drain, and who drains may be promoted because nobody else was there.
"""

from __future__ import annotations

from ... import wire
from .calls import Calls
from .events import Outbox
from .registry import Registry
from .session import Session


class Draining:
    """The sessions that said Drain and have not ended."""

    def __init__(self, registry: Registry, calls: Calls, outbox: Outbox) -> None:
        self._registry = registry
        self._calls = calls
        self._outbox = outbox
        self._sessions: dict[Session, None] = {}

    def begin(self, session: Session, number: int, now: float) -> None:
        """Drain `number` was said: it is acknowledged when nothing runs here, nor waits for this worker alone."""
        session.drain_number = number
        self._sessions[session] = None
        if session.worker_id not in self._registry.workers or session.draining:
            return
        session.draining = True
        self._registry.set_state(session.worker_id, session.state)
        for function_id in list(session.waiting):  # those who drain already may be the only ones left to serve it
            self._calls.review(function_id, now)

    def forget(self, session: Session) -> None:
        """The session has ended, or gives up its rows."""
        self._sessions.pop(session, None)

    def __bool__(self) -> bool:
        """Whether anybody drains."""
        return bool(self._sessions)

    def advance(self, now: float) -> None:
        """Does what has become possible."""
        for session in list(self._sessions):
            self._hand_over(session, now)
            if session.drain_number is not None and not self._calls.has_work_for(session):
                ack = wire.Ack(session.drain_number, self._registry.epoch, self._registry.seq, [])
                session.drain_number = None
                self._outbox.append((session.address, ack))

    def _hand_over(self, session: Session, now: float) -> None:
        leads = self._registry.leads.get(session.worker_id)
        if not leads:
            return
        busy = {route.function_id for route in session.in_flight.values()}
        idle = [function_id for function_id in leads if function_id not in busy]
        for function_id in self._registry.hand_over(session.worker_id, idle):
            self._calls.review(function_id, now)
