"""The table of sessions, by each of their four names.

Invariants: every session stands in all four tables under its present names, or (ended) in none. While somebody is being
replaced, the old one is out before the new one is in, so no name ever leads to two sessions.
"""

from __future__ import annotations

from collections import Counter

from .events import Address
from .session import Session

SESSIONS_MAX = 20_000


class Sessions:
    """Who is here."""

    def __init__(self) -> None:
        self.by_address: dict[Address, Session] = {}
        self.by_worker: dict[str, Session] = {}
        self.by_token: dict[bytes, Session] = {}
        self.by_presence: dict[bytes, Session] = {}
        self.joining: set[Session] = set()  # no Heartbeat yet: their replicas may be loading
        self._processes: Counter[tuple[str, int]] = Counter()  # (host, pid) -> how many sessions it has

    def __len__(self) -> int:
        return len(self.by_address)

    def is_full_for(self, address: Address, room: int) -> bool:
        """Whether a session at this address would be one too many, where the system has room for so many."""
        return len(self.by_address) >= min(SESSIONS_MAX, room) and address not in self.by_address

    def add(self, session: Session) -> None:
        """The session is here, under its names."""
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
        """The session has ended."""
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
        """The session goes on under a fresh token; until its worker has heard of it, under the one that it said too."""
        del self.by_token[session.token]
        del self.by_presence[session.presence]
        self.forget_token_before(session)
        session.token, session.token_before = token, known_as
        self.add(session)

    def has_any_of(self, process: tuple[str, int]) -> bool:
        """Whether the process, (host, pid), has a session."""
        return process in self._processes

    def forget_token_before(self, session: Session) -> None:
        """Its worker knows the present token."""
        if session.token_before:
            del self.by_token[session.token_before]
            session.token_before = b""
