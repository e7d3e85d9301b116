"""Judges who is alive, after a lost presence, a failed send or a long silence.

    joined --presence lost--> suspect --probe failed, or silent for one TTL, or no new presence for 5 s--> dead
    joined --send failed--> unreachable --presence lost too, or silent for one TTL--> dead
    joined --three heartbeats missed--> stalled (not dead while its connections live) --probe failed--> dead
    with rows, not joined yet --probe failed--> dead
    lost in any of these ways while the broker itself slept --> held for a while, then dead

A probe that can be sent proves nothing: libzmq keeps a busy connection that falls silent. So a suspect session is
probed again after 1, 2, 4 ... ms, and is dead at the latest when nothing has been heard from it for one TTL.
"""

from __future__ import annotations

import math
from typing import Literal

from ..deadlines import Alarm, Deadlines
from .events import Settings
from .session import Session
from .sessions import Sessions

PRESENCE_WAIT_S = 5.0  # from Hello to the presence subscription, and from a lost presence to a new one
LATE_EACH_S = 0.01  # additional time for joining, for each session that exists: a thousand may join at once
LATE_MAX_S = 25.0  # the most additional time, however many sessions there are
HOLD_S = 2.0  # how long lost sessions keep their rows after the broker itself slept
PROBE_FIRST_S = 0.001
PROBE_MAX_S = 0.25
STALLED_AFTER = 3.5  # heartbeats: three missed ones, and half of one as grace

Verdict = Literal["probe", "stalled", "died", "silent", "never_present"]


class Liveness:
    """Decides when to look at a session again, and judges it then."""

    def __init__(self, settings: Settings, alarm: Alarm, sessions: Sessions) -> None:
        self._sessions = sessions
        self._ttl_s = settings.ttl_s
        self._stalled_s = settings.heartbeat_s * STALLED_AFTER
        self._checks: Deadlines[Session] = Deadlines(alarm)

    def watch(self, session: Session, now: float) -> None:
        """From now on looks at the session at the right moments."""
        self._checks.set(session, self._next_check(session, now))

    def forget(self, session: Session) -> None:
        self._checks.cancel(session)

    def probe_now_and_then(self, session: Session, now: float) -> None:
        """Probes a session that has rows but no presence yet, whose loss would show that it is gone."""
        session.probe_wait_s = PROBE_MAX_S
        session.probe_at = now + PROBE_MAX_S

    def presence_lost(self, session: Session, now: float) -> None:
        """The session's stream connection is gone: its process died, or only that connection broke."""
        session.suspect_since = now
        session.probe_at = now
        session.probe_wait_s = PROBE_FIRST_S
        self._checks.set(session, now)

    def send_failed(self, session: Session, now: float) -> None:
        """The session's control connection is gone."""
        session.reachable = False
        self._checks.set(session, now)

    def next_deadline(self) -> float | None:
        return self._checks.next()

    def pop_verdict(self, now: float) -> tuple[Session, Verdict] | None:
        """The next session that needs action now, with the verdict."""
        while (session := self._checks.pop_due(now)) is not None:
            verdict = self._judge(session, now)
            self._checks.set(session, self._next_check(session, now))
            if verdict is not None:
                return session, verdict
        return None

    def _judge(self, session: Session, now: float) -> Verdict | None:
        silent = now - session.heard_at >= self._ttl_s
        if session.held_until is not None:
            return self._cause(session, now) if now >= session.held_until else None
        if not session.joined and session.reachable:
            return "never_present" if now >= self._presence_by(session) else self._probe(session, now)
        if session.suspect_since is not None and not session.reachable:
            return self._cause(session, now)
        if session.suspect_since is not None or not session.reachable:
            # One that talks and takes probes, but has had no stream for long, would be passed over for ever.
            suspect_s = now - (now if session.suspect_since is None else session.suspect_since)
            if silent or not session.joined or suspect_s >= PRESENCE_WAIT_S:
                return self._cause(session, now)
            return self._probe(session, now) if session.reachable else None
        if session.leaving:
            return self._cause(session, now) if silent else None
        if session.stalled:
            return "probe"  # nothing is sent to it, so its control connection may be gone without notice
        return "stalled" if now - session.heard_at >= self._stalled_after_s(session) else None

    def _presence_by(self, session: Session) -> float:
        """The deadline for its presence. With rows there is no more time: it may be gone, and it is probed, too."""
        return session.presence_by + (self._late_s() if session.probe_at == math.inf else 0.0)

    def _stalled_after_s(self, session: Session) -> float:
        """A joining worker has much to do at once, and many joining workers keep all others busy. In a storm of joins,
        showing many as stalled and as ready again makes more deltas for everybody, and delays them even more."""
        joining = self._sessions.joining
        return self._stalled_s + (self._late_s() if session in joining else min(LATE_MAX_S, LATE_EACH_S * len(joining)))

    def _late_s(self) -> float:
        """The additional time for joining with this many sessions."""
        return min(LATE_MAX_S, LATE_EACH_S * len(self._sessions))

    def _probe(self, session: Session, now: float) -> Verdict | None:
        if now < session.probe_at:
            return None
        session.probe_at = now + session.probe_wait_s
        session.probe_wait_s = min(2 * session.probe_wait_s, PROBE_MAX_S)
        return "probe"

    def _cause(self, session: Session, now: float) -> Verdict:
        """The verdict "died" if the session was heard shortly before its presence ended, else "silent"."""
        lost_at = session.suspect_since if session.suspect_since is not None else now
        return "silent" if lost_at - session.heard_at >= 0.6 * self._ttl_s else "died"

    def _next_check(self, session: Session, now: float) -> float:
        silent_at = session.heard_at + self._ttl_s
        if session.held_until is not None:
            at = session.held_until
        elif not session.joined and session.reachable:
            at = min(self._presence_by(session), session.probe_at)
        elif session.suspect_since is not None:
            at = min(session.probe_at, silent_at)
        elif session.leaving or not session.reachable:
            at = silent_at
        elif session.stalled:
            at = now + self._ttl_s  # a message from it ends this state; meanwhile it is probed now and then
        else:
            at = session.heard_at + self._stalled_after_s(session)
        return max(at, now + PROBE_FIRST_S)
