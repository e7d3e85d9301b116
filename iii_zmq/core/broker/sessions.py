"""The table of sessions, by each of their four names.

Invariants: a session is in all four tables under its current names, or (ended) in none. When a session replaces
another, the old one is removed before the new one is added, so no name ever leads to two sessions.
"""

from __future__ import annotations

from collections import Counter

from .events import Address
from .session import Session

SESSIONS_MAX = 20_000


class Sessions:
    """All sessions."""

    def __init__(self) -> None:
        self.by_address: dict[Address, Session] = {}
        self.by_worker: dict[str, Session] = {}
        self.by_token: dict[bytes, Session] = {}
        self.by_presence: dict[bytes, Session] = {}
        self.joining: set[Session] = set()  # sessions without a Heartbeat yet: their replicas may be loading
        self._processes: Counter[tuple[str, int]] = Counter()  # (host, pid) -> number of its sessions

    def __len__(self) -> int:
        return len(self.by_address)

    def is_full_for(self, address: Address, room: int) -> bool:
        """True if a session at this address would exceed SESSIONS_MAX, or the `room` that the system has."""
        return len(self.by_address) >= min(SESSIONS_MAX, room) and address not in self.by_address

    def add(self, session: Session) -> None:
        """Adds the session under its names."""
        if session.address not in self.by_address:
            session.process = (session.hello.host, session.hello.pid)
            self._processes[session.process] += 1
            self.joining.add(session)
        self.by_address[session.address] = session
        self.by_worker[session.worker_id] = session
        self.by_token[session.token] = session
        if session.token_before:
            self.by_token[session.token_before] = session
        self.by_presence[session.presence] = session

    def remove(self, session: Session) -> None:
        """Removes a session, which has ended."""
        session.ended = True
        session.reachable = False
        self.joining.discard(session)
        self._processes[session.process] -= 1
        if not self._processes[session.process]:
            del self._processes[session.process]
        del self.by_address[session.address]
        del self.by_worker[session.worker_id]
        del self.by_token[session.token]
        self.forget_token_before(session)
        del self.by_presence[session.presence]

    def rename(self, session: Session, token: bytes, known_as: bytes) -> None:
        """Gives the session a fresh token; until its worker knows it, the one it used (`known_as`) is valid, too."""
        del self.by_token[session.token]
        del self.by_presence[session.presence]
        self.forget_token_before(session)
        session.token, session.token_before = token, known_as
        self.add(session)

    def has_any_of(self, process: tuple[str, int]) -> bool:
        """True if the process, (host, pid), has a session."""
        return process in self._processes

    def forget_token_before(self, session: Session) -> None:
        """Forgets the previous token: the worker knows the current one."""
        if session.token_before:
            del self.by_token[session.token_before]
            session.token_before = b""
