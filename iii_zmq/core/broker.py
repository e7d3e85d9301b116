"""BrokerCore: one branch per message; registry, calls, liveness and answers are straight leaves beside it.

    receive(sender, message, now)   `sender` a routing id, or EVERYONE for what the stream's socket tells
    tick(now)                       what is due: verdicts, deadlines, parts of answers, the beacon
    next_deadline()                 when `tick` is next due
    take_outbox()                   what to send, in order; the deltas of this turn first

Invariant: a worker has a row exactly while its session is joined or kept, and is routable only while its presence is
heard. Everything of an old session is retired before anything of the new one is applied.
"""

from __future__ import annotations

from typing import Any

from .. import errors, wire
from ..errors import ProtocolError, assert_never
from ..wire import FunctionEntry, WorkerRow
from .answers import Answers
from .calls import CREDIT_MAX, OPEN_CALLS_MAX, Calls
from .engine import Engine
from .liveness import HOLD_S, Liveness, Verdict
from .registry import Registry
from .session import (
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
    new_counters,
)

SESSIONS_MAX = 20_000
FUNCTIONS_PER_WORKER_MAX = 1_000_000
DELTAS_BYTES_MAX = 1024 * 1024  # of one message on the stream; a single larger delta travels alone


class BrokerCore:
    """The whole broker without a socket or a clock."""

    def __init__(
        self, epoch: str, settings: Settings, *, new_token: NewToken, new_id: NewId, registry: Registry | None = None
    ) -> None:
        self.settings = settings
        self.counters = new_counters()
        self.gauges: dict[str, float] = {"turn_max_ms": 0.0}  # what the shell measures, told beside the counters
        self.registry = registry or Registry(epoch)
        self._new_token = new_token
        self._new_id = new_id
        self._outbox: Outbox = []
        self._peers: dict[Peer, Session] = {}
        self._by_worker: dict[str, Session] = {}
        self._by_token: dict[bytes, Session] = {}
        self._by_presence: dict[bytes, Session] = {}
        self._draining: set[Session] = set()
        self._handing_over: dict[Session, list[str]] = {}
        self._calls = Calls(self.registry, self._by_worker, self._outbox, self.counters)
        self._answers = Answers(self.registry, self._outbox, self.counters)
        self._liveness = Liveness(settings)
        self._engine = Engine(self)
        self._started_at: float | None = None
        self._beacon_at = 0.0
        self._due_at: float | None = None  # when the shell was to call at the latest
        self._hold_until = 0.0
        self.closing = False

    # -- the one interface ---------------------------------------------------------------------------------------------

    def receive(self, sender: Peer, message: wire.Message | Event, now: float) -> None:
        """Handles one message, or one event of the shell's sockets."""
        self._notice_pause(now)
        if isinstance(message, Subscribed | Unsubscribed | Undelivered | Malformed):
            self._on_event(sender, message, now)
            return
        session = self._peers.get(sender)
        if session is None:
            self._on_stranger(sender, message, now)
            return
        session.heard_at = now
        if session.stalled:
            self._set_stalled(session, False)
        self._on_message(session, message, now)

    def tick(self, now: float) -> None:
        """Does what is due."""
        self._notice_pause(now)
        while (judged := self._liveness.pop_verdict(now)) is not None:
            self._on_verdict(*judged, now)
        self._calls.tick(now)
        for session in list(self._draining):
            self._advance_drain(session, now)
        self._answers.tick(now)
        if now >= self._beacon_at and not self.closing:
            beacon = wire.Beacon(0, self.registry.epoch, self.registry.seq, self.registry.digest)
            self._outbox.append((EVERYONE, beacon))
            self._beacon_at = now + self.settings.heartbeat_s
        self._due_at = max(now, self.next_deadline())

    def next_deadline(self) -> float:
        """When `tick` is next due; the beacon sees to it that there is always such a moment."""
        first = self._beacon_at
        for at in (self._liveness.next_deadline(), self._calls.next_deadline(), self._answers.next_deadline()):
            if at is not None and at < first:
                first = at
        return first

    def take_outbox(self) -> Outbox:
        """What to send, in order. The deltas of this turn go first: what is acknowledged was published before."""
        sent = [*self._publish(), *self._outbox]
        self._outbox.clear()
        return sent

    def close(self, text: str = "the broker is closing") -> None:
        """Fails all open calls with their fate and tells everyone. Nothing is accepted afterwards."""
        self.closing = True
        self._calls.fail_all(text)
        self._outbox.append((EVERYONE, wire.Closing(0, self.registry.epoch)))

    # -- for the engine functions --------------------------------------------------------------------------------------

    def session_of(self, worker_id: str) -> Session | None:
        return self._by_worker.get(worker_id)

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
            "in_flight": sum(len(session.in_flight) for session in self._by_worker.values()),
            "sessions": len(self._peers),
            "counters": {**self.counters, **self.gauges},
        }

    # -- messages ------------------------------------------------------------------------------------------------------

    def _on_message(self, session: Session, message: wire.Message, now: float) -> None:
        match message:
            case wire.Call():
                self._on_call(session, message, now)
            case wire.Result():
                self._calls.on_result(session, message, now)
            case wire.Failure():
                self._calls.on_failure(session, message, now)
            case wire.Cancel():
                self._calls.cancel(session, message.number)
            case wire.Heartbeat():
                session.load, session.lag_ms = message.load, message.lag_ms
            case wire.Hello():
                self._on_hello(session.peer, message, now)
            case wire.Register():
                self._on_register(session, message, now)
            case wire.Unregister():
                self._on_unregister(session, message, now)
            case wire.Sync():
                self._on_sync(session, message, now)
            case wire.Received():
                self._answers.acknowledge(session, message.number)
            case wire.Drain():
                self._on_drain(session, message, now)
            case wire.Bye():
                self._on_bye(session, now)
            case (
                wire.Welcome() | wire.Ack() | wire.Snapshot() | wire.Replay() | wire.Invite() | wire.Unknown()
                | wire.Refuse() | wire.Probe() | wire.Closing() | wire.Deltas() | wire.Beacon()
            ):  # fmt: skip
                self.counters["unexpected"] += 1
            case _:
                assert_never(message)

    def _on_event(self, sender: Peer, event: Event, now: float) -> None:
        match event:
            case Subscribed():
                self._on_subscribed(event.topic, now)
            case Unsubscribed():
                self._on_unsubscribed(event.topic, now)
            case Undelivered():
                self._on_undelivered(sender, event, now)
            case Malformed():
                self.counters["malformed"] += 1
            case _:
                assert_never(event)

    def _on_stranger(self, peer: Peer, message: wire.Message, now: float) -> None:
        """Anything but Hello from a connection without a session: it may be a worker that reconnected unawares."""
        if isinstance(message, wire.Hello):
            self._on_hello(peer, message, now)
            return
        self.counters["unknown_peers"] += 1
        if not isinstance(message, wire.Bye):
            self._outbox.append((peer, wire.Unknown(message.number, message.KIND)))

    # -- sessions ------------------------------------------------------------------------------------------------------

    def _on_hello(self, peer: Peer, hello: wire.Hello, now: float) -> None:
        self.counters["hellos"] += 1
        refusal = self._hello_refusal(peer, hello)
        if refusal is not None:
            self._refuse(peer, hello, *refusal)
            return
        hello.credit = min(hello.credit, CREDIT_MAX)
        old = self._by_token.get(hello.token) if hello.token else None
        here = self._peers.get(peer)
        kept = old is not None and self._keeps_rows(old, hello)
        if here is not None and here is old and kept:
            session = self._renew(here, hello, now)
        else:
            session = self._open(peer, hello, here, old, kept, now)
        self._welcome(session, hello.number, kept)

    def _hello_refusal(self, peer: Peer, hello: wire.Hello) -> tuple[str, str] | None:
        if self.closing:
            return errors.CLOSING, "the broker is closing"
        if len(self._peers) >= SESSIONS_MAX and peer not in self._peers:
            return errors.LIMIT, f"the broker holds {SESSIONS_MAX} sessions, which is its limit"
        if not hello.name.isprintable() or not hello.name or not hello.host.isprintable():
            return errors.INVALID, "name and host must be printable, and the name not empty"
        if hello.credit < 1:
            return errors.INVALID, f"credit is {hello.credit}; expected at least 1"
        try:
            wire.unpack_map(hello.metadata)
        except ProtocolError as error:
            return errors.INVALID, str(error)
        return None

    def _keeps_rows(self, old: Session, hello: wire.Hello) -> bool:
        """Whether the rows of the session can stay as they are for the one that follows it."""
        row = self.registry.workers.get(old.worker_id)
        if row is None or old.leaving or hello.observer:
            return bool(old.hello.observer and hello.observer)
        same = (row.name, row.host, row.pid, row.metadata) == (hello.name, hello.host, hello.pid, hello.metadata)
        return same and self.registry.functions_digest(old.worker_id) == hello.functions

    def _renew(self, session: Session, hello: wire.Hello, now: float) -> Session:
        """The same connection with a new stream: calls go on, the presence is heard anew."""
        self.counters["renewals"] += 1
        self._forget_names(session)
        session.token = self._new_token()
        session.hello = hello
        session.joined, session.suspect_since, session.held_until = False, None, None
        session.reachable = True
        session.said_hello_at = now
        self._remember(session, now)
        return session

    def _open(
        self, peer: Peer, hello: wire.Hello, here: Session | None, old: Session | None, kept: bool, now: float
    ) -> Session:
        if here is not None and here is not old:
            self._end(here, "replaced", now)
        if old is not None and not kept:
            self._end(old, "replaced", now)
        worker_id = old.worker_id if old is not None and kept else self._new_id()
        session = Session(peer, worker_id, hello, self._new_token(), now, now)
        if old is not None and kept:
            self._take_over(old, session, now)
        self._remember(session, now)
        if old is not None and kept:
            self._calls.caller_gone(old)
            self._calls.provider_gone(old, now)
        return session

    def _take_over(self, old: Session, session: Session, now: float) -> None:
        """The old session is retired, its rows stay. Its calls are failed once the new one stands in its place."""
        self.counters["kept"] += 1
        self._forget(old)
        session.waiting, session.draining = old.waiting, old.draining
        if session.draining:  # a drain ends with its session; the worker asks again if it still wants to leave
            session.draining = False
            self.registry.set_state(session.worker_id, session.state)
        session.stalled = old.stalled
        if session.stalled:
            self._set_stalled(session, False)

    def _remember(self, session: Session, now: float) -> None:
        self._peers[session.peer] = session
        self._by_worker[session.worker_id] = session
        self._by_token[session.token] = session
        self._by_presence[session.presence] = session
        self._liveness.watch(session, now)

    def _forget_names(self, session: Session) -> None:
        del self._by_token[session.token]
        del self._by_presence[session.presence]
        self._answers.forget(session)

    def _forget(self, session: Session) -> None:
        session.ended = True
        self._forget_names(session)
        del self._by_worker[session.worker_id]
        if self._peers.get(session.peer) is session:
            del self._peers[session.peer]
        self._draining.discard(session)
        self._handing_over.pop(session, None)
        self._liveness.forget(session)

    def _end(self, session: Session, reason: str, now: float) -> None:
        """The session ends, and everything it owned with it, once."""
        self._forget(session)
        function_ids = self._leave(session, reason)
        self._calls.caller_gone(session)
        self._calls.provider_gone(session, now)
        for function_id in function_ids:
            self._calls.review(function_id, now)

    def _leave(self, session: Session, reason: str) -> list[str]:
        if session.worker_id not in self.registry.workers:
            return []
        self.counters[f"left_{reason}"] += 1
        return self.registry.leave(session.worker_id, reason)

    def _welcome(self, session: Session, number: int, kept: bool) -> None:
        settings = self.settings
        welcome = wire.Welcome(
            number, session.worker_id, session.token, self.registry.epoch, settings.stream_url,
            round(settings.heartbeat_s * 1000), round(settings.ttl_s * 1000),
            OPEN_CALLS_MAX, wire.BATCH_MAX, wire.PAYLOAD_BYTES_MAX, kept, settings.version,
        )  # fmt: skip
        self._outbox.append((session.peer, welcome))

    # -- presence ------------------------------------------------------------------------------------------------------

    def _on_subscribed(self, topic: bytes, now: float) -> None:
        session = self._by_presence.get(topic)
        if session is None:
            self._answers.heard_receipt(topic)
        elif not session.joined:
            self._join(session, now)

    def _join(self, session: Session, now: float) -> None:
        """From now on no delta can miss this worker; what it lacks until here is sent over the ROUTER."""
        session.joined = True
        session.heard_at = now
        self.counters["joined"] += 1
        hello = session.hello
        if not hello.observer and session.worker_id not in self.registry.workers:
            self.registry.join(
                WorkerRow(session.worker_id, hello.name, hello.host, hello.pid, hello.metadata, session.state)
            )
        self._liveness.watch(session, now)
        self._answers.answer(session, hello.number, (hello.epoch, hello.seq), now)
        self._calls.dispatch(session, now)

    def _on_unsubscribed(self, topic: bytes, now: float) -> None:
        session = self._by_presence.get(topic)
        if session is not None and session.joined and session.suspect_since is None:
            self.counters["presence_lost"] += 1
            self._liveness.presence_lost(session, now)

    def _on_undelivered(self, peer: Peer, event: Undelivered, now: float) -> None:
        session = self._peers.get(peer)
        if session is None:
            return
        self.counters["overflows" if event.overflow else "undelivered"] += 1
        if isinstance(event.message, wire.Call):
            self._calls.undelivered(session, event.message)
        if event.overflow and session.suspect_since is None:
            session.suspect_since = now  # reset: it returns by Hello, with a queue that is empty
        self._liveness.send_failed(session, now)

    # -- liveness ------------------------------------------------------------------------------------------------------

    def _on_verdict(self, session: Session, verdict: Verdict, now: float) -> None:
        match verdict:
            case "probe":
                self.counters["probes"] += 1
                self._outbox.append((session.peer, wire.Probe(0)))
            case "stalled":
                self._set_stalled(session, True)
            case "never_present":
                self.counters["never_present"] += 1
                self._end(session, "died", now)
            case "died" | "silent":
                self._on_lost(session, verdict, now)
            case _:
                assert_never(verdict)

    def _on_lost(self, session: Session, reason: str, now: float) -> None:
        """Dead, unless the broker itself had slept: then its connections were cut, and it will be back."""
        if now >= self._hold_until or session.held_until is not None or session.hello.observer:
            self._end(session, reason, now)
            return
        session.reachable = False
        session.held_until = self._hold_until
        self._calls.caller_gone(session)
        self._calls.provider_gone(session, now)
        self._liveness.watch(session, now)

    def _set_stalled(self, session: Session, stalled: bool) -> None:
        session.stalled = stalled
        if stalled:
            self.counters["stalled"] += 1
        if session.worker_id in self.registry.workers:
            self.registry.set_state(session.worker_id, session.state)

    def _notice_pause(self, now: float) -> None:
        """A pause of our own is nobody's silence: the moments at which others were heard move along."""
        if self._started_at is None:
            self._started_at = now
        late_s = now - self._due_at if self._due_at is not None else 0.0
        if late_s > self.settings.ttl_s / 2:
            self.counters["pauses"] += 1
            self._hold_until = now + HOLD_S
            for session in self._peers.values():
                session.heard_at += late_s
        self._due_at = None

    # -- functions -----------------------------------------------------------------------------------------------------

    def _on_register(self, session: Session, register: wire.Register, now: float) -> None:
        refusal = self._register_refusal(session, register)
        if refusal is not None:
            self._refuse(session.peer, register, *refusal)
            return
        refusals: list[wire.Refusal] = []
        batch: dict[str, tuple[int, FunctionEntry, bytes]] = {}
        for index, data in enumerate(register.entries):
            entry = self._checked_entry(index, data, refusals)
            if entry is not None:
                batch[entry.id] = (index, entry, data)
        refusals += self.registry.register(session.worker_id, batch.values())
        self.counters["registered"] += len(register.entries) - len(refusals)
        self.counters["refused"] += len(refusals)
        self._acknowledge(session, register.number, sorted(refusals))
        for function_id in batch:
            self._calls.review(function_id, now)

    def _register_refusal(self, session: Session, register: wire.Register) -> tuple[str, str] | None:
        if not session.joined or session.worker_id not in self.registry.workers:
            return errors.NOT_JOINED, "register before the presence was heard, after Bye, or by an observer"
        if len(register.entries) > wire.BATCH_MAX:
            return errors.TOO_LARGE, f"batch of {len(register.entries)} functions; at most {wire.BATCH_MAX}"
        if len(self.registry.offered[session.worker_id]) + len(register.entries) > FUNCTIONS_PER_WORKER_MAX:
            return errors.LIMIT, f"more than {FUNCTIONS_PER_WORKER_MAX} functions in one worker"
        return None

    def _checked_entry(self, index: int, data: bytes, refusals: list[wire.Refusal]) -> FunctionEntry | None:
        if len(data) > wire.ENTRY_BYTES_MAX:
            refusals.append((index, errors.TOO_LARGE, f"entry of {len(data)} bytes; at most {wire.ENTRY_BYTES_MAX}"))
            return None
        try:
            entry = wire.decode_entry(data)
            wire.check_function_id(entry.id)
        except (ProtocolError, ValueError) as error:
            refusals.append((index, errors.INVALID, str(error)[: wire.TEXT_CHARS_MAX]))
            return None
        if wire.is_reserved(entry.id):
            refusals.append((index, errors.RESERVED, f"{entry.id!r} is reserved for the broker"))
            return None
        return entry

    def _on_unregister(self, session: Session, unregister: wire.Unregister, now: float) -> None:
        if session.worker_id not in self.registry.workers:
            self._refuse(session.peer, unregister, errors.NOT_JOINED, "unregister without a row")
            return
        refusals = self.registry.unregister(session.worker_id, unregister.function_ids)
        self.counters["unregistered"] += len(unregister.function_ids) - len(refusals)
        self._acknowledge(session, unregister.number, refusals)
        for function_id in unregister.function_ids:
            self._calls.review(function_id, now)

    def _acknowledge(self, session: Session, number: int, refusals: list[wire.Refusal]) -> None:
        self._outbox.append((session.peer, wire.Ack(number, self.registry.epoch, self.registry.seq, refusals)))

    def _refuse(self, peer: Peer, message: wire.Message, code: str, text: str) -> None:
        self.counters["refused"] += 1
        self._outbox.append((peer, wire.Refuse(message.number, message.KIND, code, text[: wire.TEXT_CHARS_MAX])))

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _on_call(self, session: Session, call: wire.Call, now: float) -> None:
        if self.closing or not session.joined:
            code = errors.CLOSING if self.closing else errors.NOT_JOINED
            text = "the broker is closing" if self.closing else "call before the presence was heard"
            self._outbox.append((session.peer, wire.Failure(call.number, code, "not_handed_over", "", text)))
        elif wire.is_reserved(call.function_id):
            self.counters["calls"] += 1
            self._outbox.append((session.peer, self._engine.answer(call, now)))
        else:
            self._calls.accept(session, call, now)

    def _on_sync(self, session: Session, sync: wire.Sync, now: float) -> None:
        if not session.joined:
            self._refuse(session.peer, sync, errors.NOT_JOINED, "sync before the presence was heard")
            return
        name = f"syncs_{sync.reason}"
        self.counters[name if name in self.counters else "unexpected"] += 1
        self._answers.answer(session, sync.number, (sync.epoch, sync.seq), now)

    def _on_drain(self, session: Session, drain: wire.Drain, now: float) -> None:
        session.drain_number = drain.number
        self._draining.add(session)
        if session.draining or session.worker_id not in self.registry.workers:
            return
        session.draining = True
        self.registry.set_state(session.worker_id, session.state)
        offered = self.registry.offered[session.worker_id]
        self._handing_over[session] = [
            function_id for function_id, offer in offered.items() if offer.flags & wire.EXCLUSIVE and offer.active
        ]

    def _advance_drain(self, session: Session, now: float) -> None:
        """Exclusive functions are handed over as their last call ends; the drain is done when nothing runs or waits."""
        mine = self._handing_over.get(session, [])
        for function_id in [one for one in mine if not self._calls.in_flight_of(session, one)]:
            offer = self.registry.offered[session.worker_id].get(function_id)
            if offer is None or not offer.active or self.registry.hand_over(session.worker_id, function_id):
                mine.remove(function_id)
                self._calls.review(function_id, now)
        if session.drain_number is not None and not self._calls.has_work_for(session):
            self._acknowledge(session, session.drain_number, [])
            session.drain_number = None
            if not mine:
                self._draining.discard(session)

    def _on_bye(self, session: Session, now: float) -> None:
        """Its functions go at once; the session stays for the results of what it is still running."""
        function_ids = self._leave(session, "bye")
        session.leaving = True
        self._draining.discard(session)
        self._handing_over.pop(session, None)
        self._calls.caller_gone(session)
        for function_id in function_ids:
            self._calls.review(function_id, now)
        self._liveness.watch(session, now)
        if not session.in_flight:
            self._forget(session)

    def _publish(self) -> Outbox:
        """The fresh deltas in one message, or in a few when they are many."""
        published: Outbox = []
        batch: list[bytes] = []
        size = 0
        for delta in self.registry.take_fresh():
            if batch and size + len(delta) > DELTAS_BYTES_MAX:
                published.append((EVERYONE, wire.Deltas(0, self.registry.epoch, batch)))
                batch, size = [], 0
            batch.append(delta)
            size += len(delta)
        if batch:
            published.append((EVERYONE, wire.Deltas(0, self.registry.epoch, batch)))
        return published
