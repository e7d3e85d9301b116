"""Draining workers, which get no new calls: notices when they are done, and hands over their exclusive functions.

An exclusive function is handed over when its last call at the draining worker has ended. This goes on while the session
lasts: a stand-by may come after the Drain, and a draining worker may be promoted if there is no other.
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
        """The session sent Drain `number`. The Ack comes when no call runs there and none waits for it alone."""
        session.drain_number = number
        self._sessions[session] = None
        if session.worker_id not in self._registry.workers or session.draining:
            return
        session.draining = True
        self._registry.set_state(session.worker_id, session.state)
        for function_id in list(session.waiting):  # perhaps only draining workers are left to serve it
            self._calls.review(function_id, now)

    def forget(self, session: Session) -> None:
        """Forgets a session that has ended or gives up its rows."""
        self._sessions.pop(session, None)

    def __bool__(self) -> bool:
        """True if any session is draining."""
        return bool(self._sessions)

    def advance(self, now: float) -> None:
        """Hands over functions and sends Acks where that is possible now."""
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
