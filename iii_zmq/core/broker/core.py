"""BrokerCore: one branch per message; the work is done in straight leaves beside it.

attendance     sessions and liveness                 registrations  the workers' functions
stream         deltas and the beacon, for everybody
calls          calls between acceptance and outcome  draining       workers that are about to leave
answers        sends what replicas lack              engine         answers `engine::` calls itself
refusing       answers malformed messages
"""

from __future__ import annotations

from typing import Any, Final

from ... import errors, wire
from ...errors import assert_never
from ..counters import BROKER_COUNTERS, BROKER_GAUGES, new_counters
from ..deadlines import Alarm
from . import events
from .answers import Answers
from .attendance import Attendance
from .calls import Calls
from .draining import Draining
from .engine import Engine
from .events import EVERYONE, Address, Event, NewId, NewToken, Outbox, Peer, Settings
from .liveness import Liveness
from .refusing import Refusing
from .registrations import Registrations
from .registry import Registry
from .session import Session
from .sessions import Sessions
from .stream import Stream

_EVENT_TYPES: Final = frozenset(events.EVENTS)


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
        self.sessions = Sessions()
        self._alarm = Alarm()
        self._calls = Calls(self.registry, self.sessions.by_worker, self._outbox, self.counters, self._alarm)
        self._answers = Answers(self.registry, self._outbox, self.counters, self._alarm)
        self._draining = Draining(self.registry, self._calls, self._outbox)
        self._registrations = Registrations(self.registry, self._calls, self._outbox, self.counters)
        self._attendance = Attendance(
            settings, self.registry, self.sessions, self._outbox, self.counters, self._calls, self._answers,
            self._draining, Liveness(settings, self._alarm, self.sessions), new_token, new_id,
        )  # fmt: skip
        self._stream = Stream(self.registry, settings, self.sessions, self._alarm)
        self._refusing = Refusing(self.sessions, self._outbox, self.counters)
        self.news = self._attendance.news
        self._engine = Engine(self.registry, self.sessions.by_worker, self.status)
        self._started_at: float | None = None
        self._now = 0.0
        self._due_at: float | None = None  # the latest moment at which the shell should have called

    # -- the one interface ---------------------------------------------------------------------------------------------

    def receive(self, sender: Address, message: wire.Message | Event, now: float) -> None:
        """Handles one message, or one event. `sender` is a routing id, or EVERYONE for the stream's socket."""
        if self._due_at is not None or self._started_at is None:
            self._notice_pause(now)
        if type(message) in _EVENT_TYPES:
            self._on_event(sender, message, now)  # type: ignore[arg-type]
            return
        session = self.sessions.by_address.get(sender)
        if session is None:
            self._on_stranger(Peer(sender), message, now)  # type: ignore[arg-type]
            return
        session.heard_at = now
        if session.stalled:
            self._attendance.set_stalled(session, False)
        self._on_message(session, message, now)  # type: ignore[arg-type]

    def tick(self, now: float) -> None:
        """Does what is due: verdicts, deadlines, parts of answers, the beacon."""
        self._notice_pause(now)
        self._now = now
        if now >= self._alarm.at or self._draining:
            self._do_what_is_due(now)
            self._alarm.at = self._earliest()
        self._due_at = max(now, self._alarm.at)

    def next_deadline(self) -> float:
        """When `tick` is next due, or a little earlier; because of the beacon there is always such a moment."""
        return self._alarm.at

    def take_outbox(self) -> Outbox:
        """Messages to send, in order. Deltas go first, so that a change is published before its Ack, or soon after."""
        sent = [*self._stream.publish(self._now), *self._outbox]
        self._outbox.clear()
        return sent

    def takes_bundles(self, address: Address) -> bool:
        """Whether the worker there said so."""
        session = self.sessions.by_address.get(address)
        return session is not None and wire.BUNDLES in session.hello.capabilities

    def take_news(self) -> list[str]:
        """One line for the log for each worker that joined or left since the last call."""
        news = list(self.news)
        self.news.clear()
        return news

    def close(self, text: str = "the broker is closing") -> None:
        """Fails all open calls with their fate and publishes Closing. Nothing is accepted afterwards."""
        self._attendance.closing = True
        self._stream.hurry()
        self._calls.fail_all(text)
        self._outbox.append((EVERYONE, wire.Closing(0, self.registry.epoch)))

    def status(self, now: float) -> dict[str, Any]:
        """The result of `engine::status`: the broker at a glance."""
        return {
            "version": self.settings.version,
            "epoch": self.registry.epoch,
            "seq": self.registry.seq,
            "digest": self.registry.digest.hex(),
            "uptime_s": round(now - (now if self._started_at is None else self._started_at), 3),
            "workers": len(self.registry.workers),
            "functions": len(self.registry.providers),
            "in_flight": sum(len(session.in_flight) for session in self.sessions.by_worker.values()),
            "sessions": len(self.sessions),
            "counters": {**self.counters, **self.gauges},
        }

    # -- messages ------------------------------------------------------------------------------------------------------

    def _on_message(self, session: Session, message: wire.Message, now: float) -> None:
        if isinstance(message, wire.Call):  # the two most frequent: compiled, isinstance is faster than a match
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
                self.sessions.joining.discard(session)
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
                | wire.Bundle()  # a bundle inside a bundle: the shell opens the outer one
            ):  # fmt: skip
                self.counters["unexpected"] += 1
            case _:
                assert_never(message)

    def _on_event(self, sender: Address, event: Event, now: float) -> None:
        match event:
            case events.Subscribed():
                self._attendance.on_subscribed(event.topic, now)
            case events.Unsubscribed():
                self._attendance.on_unsubscribed(event.topic, now)
            case events.Undelivered():
                self._attendance.on_undelivered(sender, event.message, event.overflow, now)
            case events.Malformed():
                self._refusing.on_malformed(sender, event)
            case _:
                assert_never(event)

    def _on_stranger(self, peer: Peer, message: wire.Message, now: float) -> None:
        """Handles a message from a connection without a session: it may be a worker that reconnected unawares."""
        if isinstance(message, wire.Hello):
            self._attendance.on_hello(peer, message, now)
            return
        self.counters["unknown_peers"] += 1
        if not isinstance(message, wire.Bye):
            self._outbox.append((peer.address, wire.Unknown(message.number, wire.KIND[type(message)])))

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
        self._outbox.append((session.address, wire.Failure(call.number, code, "not_handed_over", "", text)))

    def _on_engine_call(self, session: Session, call: wire.Call, now: float) -> None:
        self.counters["calls"] += 1
        answer = self._engine.answer(call, now)
        wants_answer = not call.flags & wire.NO_ANSWER
        if isinstance(answer, wire.Result):
            if wants_answer:
                self._calls.answer(session, answer)
        elif wants_answer or answer.fate == "not_handed_over":
            self._outbox.append((session.address, answer))

    def _after_answer(self, session: Session, now: float) -> None:
        """After the last answer a session that said Bye ends; a draining one may be done."""
        if session.leaving and not session.in_flight:
            self._attendance.end(session, "bye", now)
        elif session.draining:
            self._draining.advance(now)

    def _on_sync(self, session: Session, sync: wire.Sync, now: float) -> None:
        if not session.joined or session.leaving:
            text = "sync before the presence was heard, or after Bye"
            self._registrations.refuse(session, sync, errors.NOT_JOINED, text)
            return
        name = f"syncs_{sync.reason}"
        self.counters[name if name in self.counters else "unexpected"] += 1
        self._answers.answer(session, sync.number, (sync.epoch, sync.seq), now)

    # -- time ------------------------------------------------------------------------------------------------------

    def _notice_pause(self, now: float) -> None:
        """Notices if our own turn is late by more than half the TTL: we slept, and so did everybody's connections."""
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
        if self._attendance.pop_more_dying():
            self._stream.gather(now)  # all that a process had is told in one message
        self._calls.tick(now)
        self._draining.advance(now)
        self._answers.tick(now)
        beacon = self._stream.pop_beacon(now)
        if beacon is not None:
            self._outbox.append((EVERYONE, beacon))

    def _earliest(self) -> float:
        first = self._stream.beacon_at
        for at in (self._attendance.next_deadline(), self._calls.next_deadline(), self._answers.next_deadline()):
            if at is not None and at < first:
                first = at
        return first
