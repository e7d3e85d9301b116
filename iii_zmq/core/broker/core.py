"""BrokerCore: one branch per message; everything else is straight leaves beside it.

receive(sender, message, now)   `sender` a routing id, or EVERYONE for what the stream's socket tells
tick(now)                       what is due: verdicts, deadlines, parts of answers, the beacon
next_deadline()                 when `tick` is next due
take_outbox()                   what to send, in order; the deltas of this turn first

attendance     who is here and who is alive          registrations  who offers what
calls          calls between acceptance and outcome  draining       who is about to leave
answers        what replicas lack                    engine         `engine::`, answered right here
refusing       what is no message of ours
"""

from __future__ import annotations

import math
from typing import Any, Final

from ... import errors, wire
from ...errors import assert_never
from ..counters import BROKER_COUNTERS, BROKER_GAUGES, new_counters
from ..deadlines import Alarm
from .answers import Answers
from .attendance import Attendance
from .calls import Calls
from .draining import Draining
from .engine import Engine
from .refusing import Refusing
from .registrations import Registrations
from .registry import Registry
from .session import (
    EVENTS,
    EVERYONE,
    Event,
    Malformed,
    NewId,
    NewToken,
    Outbox,
    Peer,
    Session,
    Settings,
    Subscribed,
    Undelivered,
    Unsubscribed,
)
from .sessions import Sessions

_EVENT_TYPES: Final = frozenset(EVENTS)
PROMPT_IN_A_ROW = 5  # publications that follow each other at once, however many workers are to be woken
DELTAS_BYTES_MAX = 1024 * 1024  # of one message on the stream; a single larger delta travels alone


class BrokerCore:
    """The whole broker without a socket or a clock."""

    def __init__(
        self, epoch: str, settings: Settings, *, new_token: NewToken, new_id: NewId, registry: Registry | None = None
    ) -> None:
        self.settings = settings
        self.counters = new_counters(BROKER_COUNTERS)
        self.gauges: dict[str, float] = dict.fromkeys(BROKER_GAUGES, 0)  # the shell measures them
        self.registry = registry or Registry(epoch)
        self._outbox: Outbox = []
        self._sessions = Sessions()
        self._alarm = Alarm()
        self._calls = Calls(self.registry, self._sessions.by_worker, self._outbox, self.counters, self._alarm)
        self._answers = Answers(self.registry, self._outbox, self.counters, self._alarm)
        self._draining = Draining(self.registry, self._calls, self._outbox)
        self._registrations = Registrations(self.registry, self._calls, self._outbox, self.counters)
        self._attendance = Attendance(
            settings, self.registry, self._sessions, self._outbox, self.counters,
            calls=self._calls, answers=self._answers, draining=self._draining, alarm=self._alarm,
            new_token=new_token, new_id=new_id,
        )  # fmt: skip
        self._refusing = Refusing(self._sessions, self._outbox, self.counters)
        self.news = self._attendance.news
        self._engine = Engine(self)
        self._started_at: float | None = None
        self._beacon_at = 0.0
        self._paid_until = -math.inf  # publications so far are paid for by then
        self._publish_at = 0.0  # not before this, unless a beacon is due: it must not tell of what was not published
        self._now = 0.0
        self._due_at: float | None = None  # when the shell was to call at the latest

    # -- the one interface ---------------------------------------------------------------------------------------------

    def receive(self, sender: Peer, message: wire.Message | Event, now: float) -> None:
        """Handles one message, or one event of the shell's sockets."""
        if self._due_at is not None or self._started_at is None:
            self._notice_pause(now)
        if type(message) in _EVENT_TYPES:
            self._on_event(sender, message, now)  # type: ignore[arg-type]
            return
        session = self._sessions.by_peer.get(sender)
        if session is None:
            self._on_stranger(sender, message, now)  # type: ignore[arg-type]
            return
        session.heard_at = now
        if session.stalled:
            self._attendance.set_stalled(session, False)
        self._on_message(session, message, now)  # type: ignore[arg-type]

    def tick(self, now: float) -> None:
        """Does what is due."""
        self._notice_pause(now)
        self._now = now
        if now >= self._alarm.at or self._draining:
            self._do_what_is_due(now)
            self._alarm.at = self._earliest()
        self._due_at = max(now, self._alarm.at)

    def next_deadline(self) -> float:
        """When `tick` is next due, or a little earlier; the beacon sees to it that there is always such a moment."""
        return self._alarm.at

    def take_outbox(self) -> Outbox:
        """What to send, in order. Deltas go first: what is acknowledged was published before, or soon is."""
        sent = [*self._publish(), *self._outbox]
        self._outbox.clear()
        return sent

    def takes_bundles(self, peer: Peer) -> bool:
        """Whether this peer said so."""
        session = self._sessions.by_peer.get(peer)
        return session is not None and wire.BUNDLES in session.hello.capabilities

    def take_news(self) -> list[str]:
        """A line for the log for each worker that joined or left since this was last asked."""
        news = list(self.news)
        self.news.clear()
        return news

    def close(self, text: str = "the broker is closing") -> None:
        """Fails all open calls with their fate and tells everyone. Nothing is accepted afterwards."""
        self._attendance.closing = True
        self._publish_at = 0.0
        self._calls.fail_all(text)
        self._outbox.append((EVERYONE, wire.Closing(0, self.registry.epoch)))

    # -- for the engine functions and the log --------------------------------------------------------------------------

    def session_of(self, worker_id: str) -> Session | None:
        return self._sessions.by_worker.get(worker_id)

    def session_at(self, peer: Peer) -> Session | None:
        return self._sessions.by_peer.get(peer)

    def status(self, now: float) -> dict[str, Any]:
        """`status --json` of DESIGN: the broker at a glance."""
        return {
            "version": self.settings.version,
            "epoch": self.registry.epoch,
            "seq": self.registry.seq,
            "digest": self.registry.digest.hex(),
            "uptime_s": round(now - (now if self._started_at is None else self._started_at), 3),
            "workers": len(self.registry.workers),
            "functions": len(self.registry.providers),
            "in_flight": sum(len(session.in_flight) for session in self._sessions.by_worker.values()),
            "sessions": len(self._sessions),
            "counters": {**self.counters, **self.gauges},
        }

    # -- messages ------------------------------------------------------------------------------------------------------

    def _on_message(self, session: Session, message: wire.Message, now: float) -> None:
        if isinstance(message, wire.Call):  # these two are most; compiled, a class is found faster so than in a match
            self._on_call(session, message, now)
            return
        if isinstance(message, wire.Result):
            self._calls.on_result(session, message, now)
            self._after_answer(session, now)
            return
        match message:
            case wire.Failure():
                self._calls.on_failure(session, message, now)
                self._after_answer(session, now)
            case wire.Cancel():
                self._calls.cancel(session, message.number)
            case wire.Heartbeat():
                self._sessions.joining.discard(session)
                session.load, session.lag_ms = message.load, message.lag_ms
            case wire.Hello():
                self._attendance.on_hello(session.peer, message, now)
            case wire.Register():
                self._registrations.on_register(session, message, now)
            case wire.Unregister():
                self._registrations.on_unregister(session, message, now)
            case wire.Sync():
                self._on_sync(session, message, now)
            case wire.Received():
                if not self._calls.has_read(session, message.number):
                    self._answers.acknowledge(session, message.number, now)
            case wire.Drain():
                self._draining.begin(session, message.number, now)
            case wire.Bye():
                self._attendance.on_bye(session, now)
            case (
                wire.Welcome() | wire.Ack() | wire.Snapshot() | wire.Replay() | wire.Invite() | wire.Unknown()
                | wire.Refuse() | wire.Probe() | wire.Closing() | wire.Deltas() | wire.Beacon()
                | wire.Bundle()  # one inside another: the shell opens those that stand alone
            ):  # fmt: skip
                self.counters["unexpected"] += 1
            case _:
                assert_never(message)

    def _on_event(self, sender: Peer, event: Event, now: float) -> None:
        match event:
            case Subscribed():
                self._attendance.on_subscribed(event.topic, now)
            case Unsubscribed():
                self._attendance.on_unsubscribed(event.topic, now)
            case Undelivered():
                self._attendance.on_undelivered(sender, event.message, event.overflow, now)
            case Malformed():
                self._refusing.on_malformed(sender, event)
            case _:
                assert_never(event)

    def _on_stranger(self, peer: Peer, message: wire.Message, now: float) -> None:
        """Anything but Hello from a connection without a session: it may be a worker that reconnected unawares."""
        if isinstance(message, wire.Hello):
            self._attendance.on_hello(peer, message, now)
            return
        self.counters["unknown_peers"] += 1
        if not isinstance(message, wire.Bye):
            self._outbox.append((peer, wire.Unknown(message.number, wire.KIND[type(message)])))

    def _on_call(self, session: Session, call: wire.Call, now: float) -> None:
        if session.joined and not session.leaving and not self._attendance.closing:
            if call.function_id.startswith("engine") and wire.is_reserved(call.function_id):
                self._on_engine_call(session, call, now)
            else:
                self._calls.accept(session, call, now)
            return
        code, text = errors.NOT_JOINED, "not joined: before the presence was heard, or after Bye"
        if self._attendance.closing:
            code, text = errors.CLOSING, "the broker is closing"
        self._outbox.append((session.peer, wire.Failure(call.number, code, "not_handed_over", "", text)))

    def _on_engine_call(self, session: Session, call: wire.Call, now: float) -> None:
        self.counters["calls"] += 1
        answer = self._engine.answer(call, now)
        wants_answer = not call.flags & wire.NO_ANSWER
        if isinstance(answer, wire.Result):
            if wants_answer:
                self._calls.answer(session, answer)
        elif wants_answer or answer.fate == "not_handed_over":
            self._outbox.append((session.peer, answer))

    def _after_answer(self, session: Session, now: float) -> None:
        """Who said Bye is gone with the last answer; who drains may have come to the end."""
        if session.leaving and not session.in_flight:
            self._attendance.end(session, "bye", now)
        elif session.draining:
            self._draining.advance(now)

    def _on_sync(self, session: Session, sync: wire.Sync, now: float) -> None:
        if not session.joined or session.leaving:
            self._registrations.refuse(
                session, sync, errors.NOT_JOINED, "sync before the presence was heard, or after Bye"
            )
            return
        name = f"syncs_{sync.reason}"
        self.counters[name if name in self.counters else "unexpected"] += 1
        self._answers.answer(session, sync.number, (sync.epoch, sync.seq), now)

    # -- time and the stream -------------------------------------------------------------------------------------------

    def _notice_pause(self, now: float) -> None:
        """Whether our own turn is late by more than half the TTL: we slept, and so did everybody's connections."""
        if self._due_at is None:
            if self._started_at is None:
                self._started_at = now
            return
        late_s, self._due_at = now - self._due_at, None
        if late_s > self.settings.ttl_s / 2:
            self.counters["pauses"] += 1
            self._attendance.on_pause(late_s, now)

    def _do_what_is_due(self, now: float) -> None:
        self._attendance.tick(now)
        if self._attendance.pop_more_dying() and self._publish_at <= now:
            self._publish_at = now + self.settings.gather_s  # all that a process had is told in one message
        self._calls.tick(now)
        self._draining.advance(now)
        self._answers.tick(now)
        if now >= self._beacon_at:
            self._publish_at = now
            beacon = wire.Beacon(0, self.registry.epoch, self.registry.seq, self.registry.digest)
            self._outbox.append((EVERYONE, beacon))
            self._beacon_at = now + self.settings.heartbeat_s

    def _earliest(self) -> float:
        first = self._beacon_at
        for at in (self._attendance.next_deadline(), self._calls.next_deadline(), self._answers.next_deadline()):
            if at is not None and at < first:
                first = at
        return first

    def _publish(self) -> Outbox:
        """The fresh deltas in one message, or in a few when they are many.

        Under a flood of changes they are gathered for a moment: each message wakes every worker there is. A few may
        follow each other at once; if the flood goes on, the moment is as long as it takes so many workers to read one.
        """
        if not self.registry.history.has_fresh:
            return []
        if self._now < self._publish_at:
            self._alarm.no_later_than(self._publish_at)
            return []
        cost_s = self.settings.wake_s * len(self._sessions)
        self._paid_until = max(self._paid_until, self._now - (PROMPT_IN_A_ROW - 1) * cost_s) + cost_s
        self._publish_at = max(self._now + self.settings.gather_s, self._paid_until)
        published: Outbox = []
        batch: list[bytes] = []
        size = 0
        for delta in self.registry.history.take_fresh():
            if batch and size + len(delta) > DELTAS_BYTES_MAX:
                published.append((EVERYONE, wire.Deltas(0, self.registry.epoch, batch)))
                batch, size = [], 0
            batch.append(delta)
            size += len(delta)
        published.append((EVERYONE, wire.Deltas(0, self.registry.epoch, batch)))
        return published
