"""Follows every session from its Hello to its end: what its presence, its silence and its Bye mean.

Invariants: a worker has a row exactly while its session is joined or has taken over rows; it is routable only while its
presence is heard. An old session is retired completely before anything of its successor is applied.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ... import errors, wire
from ...errors import assert_never
from ...wire import WorkerRow
from ..counters import Counters
from .answers import Answers
from .calls import Calls
from .draining import Draining
from .events import Address, NewId, NewToken, Outbox, Peer, Settings
from .liveness import HOLD_S, PRESENCE_WAIT_S, Liveness, Verdict
from .registrations import hello_refusal
from .registry import Registry
from .session import CREDIT_MAX, OPEN_CALLS_MAX, Session
from .sessions import Sessions

NEWS_MAX = 10_000  # lines for the log that nobody takes; a turn makes far fewer


@dataclass(slots=True, eq=False)
class Attendance:
    """Opens, joins, renews and ends sessions."""

    _settings: Settings
    _registry: Registry
    _sessions: Sessions
    _outbox: Outbox
    _counters: Counters
    _calls: Calls
    _answers: Answers
    _draining: Draining
    _liveness: Liveness
    _new_token: NewToken
    _new_id: NewId
    _hold_until: float = 0.0
    closing: bool = False
    _died: set[tuple[str, int]] = field(default_factory=set)  # processes with a session that died in this turn
    news: deque[str] = field(default_factory=lambda: deque(maxlen=NEWS_MAX))  # a line for each worker that came or went

    # -- Hello and Bye -------------------------------------------------------------------------------------------------

    def on_hello(self, peer: Peer, hello: wire.Hello, now: float) -> None:
        """Opens a session, or continues the one that the token names, on its own connection or on another."""
        self._counters["hellos"] += 1
        refusal = self._refusal(peer, hello)
        if refusal is not None:
            self._counters["refused"] += 1
            self._outbox.append((peer.address, wire.Refuse(hello.number, wire.KIND[type(hello)], *refusal)))
            return
        hello.credit = min(hello.credit, CREDIT_MAX)
        here = self._sessions.by_address.get(peer.address)
        old = self._named_by(hello)
        kept = old is not None and self._keeps_rows(old, peer, hello)
        if old is not None and old is here and kept:
            session = self._renew(old, hello, now)
        else:
            session = self._open(peer, hello, here, old, kept, now)
        if kept:
            self._liveness.probe_now_and_then(session, now)
        self._liveness.watch(session, now)
        self._welcome(session, hello.number, kept)

    def on_bye(self, session: Session, now: float) -> None:
        """Removes its functions at once; the session stays for the results of the calls that it still runs."""
        session.leaving = True
        function_ids = self._leave(session, "bye")
        session.waiting.clear()
        self._draining.forget(session)
        self._answers.forget(session)
        self._calls.caller_gone(session)
        self._calls.review_all(function_ids, now)
        if session.in_flight:
            self._liveness.watch(session, now)
        else:
            self.end(session, "bye", now)

    def end(self, session: Session, reason: str, now: float) -> None:
        """Ends the session and everything it owned, once."""
        self._forget(session)
        if reason in ("died", "silent"):
            self._died.add(session.process)
        function_ids = self._leave(session, reason)
        self._calls.caller_gone(session)
        self._calls.provider_gone(session, now)
        self._calls.review_all(function_ids, now)

    # -- presence ------------------------------------------------------------------------------------------------------

    def on_subscribed(self, topic: bytes, now: float) -> None:
        """A topic was subscribed: a presence, a receipt for an invitation, or an unknown topic."""
        session = self._sessions.by_presence.get(topic)
        if session is None:
            self._answers.heard_receipt(topic)
        elif not session.joined:
            self._join(session, now)
        elif session.suspect_since is not None and session.reachable:
            # The same topic over a new stream connection: the session is whole again. A missed delta shows as a gap.
            session.suspect_since = None
            self._liveness.watch(session, now)
            self._calls.dispatch(session, now)

    def on_unsubscribed(self, topic: bytes, now: float) -> None:
        """A topic was unsubscribed. If it was a presence, its session died, or its stream connection broke."""
        session = self._sessions.by_presence.get(topic)
        if session is not None and session.joined and session.suspect_since is None:
            self._counters["presence_lost"] += 1
            self._liveness.presence_lost(session, now)

    def on_undelivered(self, address: Address, message: wire.Message, overflow: bool, now: float) -> None:
        """The peer's connection is gone, or its queue is full: it is then reset, and returns with an empty queue."""
        session = self._sessions.by_address.get(address)
        if session is None:
            return
        self._counters["overflows" if overflow else "undelivered"] += 1
        if overflow:
            session.overflowed = True
            session.suspect_since = now if session.suspect_since is None else session.suspect_since
        self._liveness.send_failed(session, now)
        if isinstance(message, wire.Call):
            self._calls.undelivered(session, message, now)

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Acts on every verdict that is due."""
        while (judged := self._liveness.pop_verdict(now)) is not None:
            self._on_verdict(*judged, now)

    def pop_more_dying(self) -> bool:
        """True if a session died in this turn whose process has others: these will end in a moment."""
        died, self._died = self._died, set()
        return any(map(self._sessions.has_any_of, died))

    def next_deadline(self) -> float | None:
        return self._liveness.next_deadline()

    def on_pause(self, late_s: float, now: float) -> None:
        """The broker itself slept, nobody was silent: moves all moments of the sessions, and holds lost sessions."""
        self._hold_until = now + HOLD_S
        for session in self._sessions.by_address.values():
            session.heard_at += late_s
            session.presence_by += late_s
            session.probe_at += late_s
            if session.suspect_since is not None:
                session.suspect_since += late_s
            if session.held_until is not None:
                session.held_until += late_s

    def set_stalled(self, session: Session, stalled: bool) -> None:
        """Shows to everybody whether the worker's own loop runs."""
        session.stalled = stalled
        self._sessions.joining.discard(session)  # nobody need wait any longer for it to join
        self._counters["stalled"] += stalled
        if session.worker_id in self._registry.workers:
            self._registry.set_state(session.worker_id, session.state)

    # -- private: opening ----------------------------------------------------------------------------------------------

    def _refusal(self, peer: Peer, hello: wire.Hello) -> tuple[str, str] | None:
        if self.closing:
            return errors.CLOSING, "the broker is closing"
        if self._sessions.is_full_for(peer.address, self._settings.sessions_max):
            return errors.LIMIT, f"the broker holds {len(self._sessions)} sessions, which is its limit"
        return hello_refusal(hello)

    def _named_by(self, hello: wire.Hello) -> Session | None:
        """The session that the token names. The previous token counts only in a newer Hello: if two Hellos are read in
        the wrong order, the one from the connection that the worker has left must not take the session back there."""
        old = self._sessions.by_token.get(hello.token)
        if old is not None and hello.token == old.token_before and hello.number < old.hello.number:
            return None
        return old

    def _keeps_rows(self, old: Session, peer: Peer, hello: wire.Hello) -> bool:
        """True if the session's rows can stay as they are for its successor."""
        row = self._registry.workers.get(old.worker_id)
        if old.overflowed and old.address == peer.address:
            return False  # it would wait for ever for the messages that were never sent
        if old.leaving or hello.observer or row is None:
            return not old.leaving and hello.observer and old.hello.observer
        same = (row.name, row.host, row.pid, row.metadata) == (hello.name, hello.host, hello.pid, hello.metadata)
        return same and self._registry.functions_digest(old.worker_id) == hello.functions

    def _renew(self, session: Session, hello: wire.Hello, now: float) -> Session:
        """Renews a session on its own connection with a new stream: calls go on, a new presence must be heard."""
        self._counters["renewals"] += 1
        self._answers.forget(session)
        self._sessions.rename(session, self._new_token(), hello.token)
        session.hello = hello
        session.joined, session.reachable = False, True
        session.suspect_since = session.held_until = None
        session.presence_by = now + PRESENCE_WAIT_S
        return session

    def _open(
        self, peer: Peer, hello: wire.Hello, here: Session | None, old: Session | None, kept: bool, now: float
    ) -> Session:
        if here is not None and here is not old:
            self.end(here, "replaced", now)
        if old is not None and not kept:
            self.end(old, "replaced", now)
            old = None
        worker_id = self._new_id() if old is None else old.worker_id
        session = Session(peer, peer.address, worker_id, hello, self._new_token(), now, now + PRESENCE_WAIT_S)
        if old is None:
            self._sessions.add(session)
        else:
            self._take_over(old, session, now)
        return session

    def _take_over(self, old: Session, session: Session, now: float) -> None:
        """Retires the old session; its rows stay. Its calls are failed once the new one has taken its place.

        A drain ends with its session: the worker asks again if it still wants to leave.
        """
        self._counters["kept"] += 1
        self._forget(old)
        session.waiting = old.waiting
        session.token_before = session.hello.token
        self._sessions.add(session)
        if session.worker_id in self._registry.workers:
            self._registry.set_state(session.worker_id, session.state)
        self._calls.caller_gone(old)
        self._calls.provider_gone(old, now)

    def _welcome(self, session: Session, number: int, kept: bool) -> None:
        settings = self._settings
        welcome = wire.Welcome(
            number, session.worker_id, session.token, self._registry.epoch, settings.stream_url,
            round(settings.heartbeat_s * 1000), round(settings.ttl_s * 1000),
            OPEN_CALLS_MAX, wire.BATCH_MAX, wire.PAYLOAD_BYTES_MAX, kept, settings.version,
        )  # fmt: skip
        self._outbox.append((session.address, welcome))

    def _join(self, session: Session, now: float) -> None:
        """From now on no delta can miss this worker; the earlier ones that it lacks are sent over the ROUTER."""
        session.joined = True
        session.heard_at = now
        self._sessions.forget_token_before(session)
        self._counters["joined"] += 1
        hello = session.hello
        if not hello.observer and session.worker_id not in self._registry.workers:
            row = WorkerRow(session.worker_id, hello.name, hello.host, hello.pid, hello.metadata, session.state)
            self._registry.join(row)
            self.news.append(f"joined: {_described(session)}, pid {hello.pid}")
        self._liveness.watch(session, now)
        self._answers.answer(session, hello.number, (hello.epoch, hello.seq), now)
        self._calls.dispatch(session, now)

    # -- private: ending -----------------------------------------------------------------------------------------------

    def _on_verdict(self, session: Session, verdict: Verdict, now: float) -> None:
        match verdict:
            case "probe":
                self._counters["probes"] += 1
                self._outbox.append((session.address, wire.Probe(0)))
            case "stalled":
                self.set_stalled(session, True)
            case "never_present":
                self._counters["never_present"] += 1
                self.end(session, "died", now)
            case "died" | "silent":
                self._on_lost(session, verdict, now)
            case _:
                assert_never(verdict)

    def _on_lost(self, session: Session, reason: str, now: float) -> None:
        """Ends the session, unless the broker itself slept: then its connections were cut, and it will be back.

        The calls that it made stay open: if only its stream was cut, it returns on the same connection and still waits.
        """
        if now >= self._hold_until or session.held_until is not None or session.worker_id not in self._registry.workers:
            self.end(session, reason, now)
            return
        session.reachable = False
        session.held_until = self._hold_until
        self._answers.forget(session)
        self._calls.provider_gone(session, now)
        self._liveness.watch(session, now)

    def _forget(self, session: Session) -> None:
        self._sessions.remove(session)
        self._draining.forget(session)
        self._answers.forget(session)
        self._liveness.forget(session)

    def _leave(self, session: Session, reason: str) -> list[str]:
        if session.worker_id not in self._registry.workers:
            return []
        self._counters[f"left_{reason}"] += 1
        self.news.append(f"left ({reason}): {_described(session)}")
        return self._registry.leave(session.worker_id, reason)


def _described(session: Session) -> str:
    return f"{session.hello.name} ({session.worker_id}) at {session.hello.host or 'an unnamed host'}"
