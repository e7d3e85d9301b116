"""A BrokerCore with peers that are plain names, for tests: tokens and ids count up, time is what a test says it is.

    broker = Brokerage()
    a, b = broker.worker("a"), broker.worker("b", "f")      joined; b offers f
    broker.send("a", a.call(7, "f"))
    broker.to("b")                                          what b was sent since it was last asked

`turn` ends each step as a shell would: bad news is told by the test, `tick` runs, and the outbox is delivered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

from iii_zmq import wire
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import (
    BROADCAST,
    EVERYONE,
    Event,
    Outbox,
    Settings,
    Subscribed,
    Undelivered,
    Unsubscribed,
)
from iii_zmq.core.broker.registry import Registry
from iii_zmq.core.broker.session import Session

NIL = wire.pack(None)


def entry(function_id: str, *, exclusive: bool = False, idempotent: bool = False, **fields: Any) -> bytes:
    flags = wire.EXCLUSIVE * exclusive | wire.IDEMPOTENT * idempotent
    return wire.encode_entry(wire.FunctionEntry(function_id, flags=flags, **fields))


def call(number: int, function_id: str, caller: str, **fields: Any) -> wire.Call:
    given: dict[str, Any] = {"remaining_ms": 30_000, "target": "", "flags": 0, "fence": 0, "payload": NIL} | fields
    return wire.Call(number, function_id, caller, **given)


@dataclass(slots=True)
class Member:
    """One peer that was welcomed."""

    peer: bytes
    worker_id: str
    token: bytes

    def call(self, number: int, function_id: str, **fields: Any) -> wire.Call:
        return call(number, function_id, self.worker_id, **fields)


class Brokerage:
    """One broker and what it has sent to whom. `now` moves only in `at` and `wait`."""

    def __init__(self, registry: Registry | None = None, *, settings: Settings | None = None) -> None:
        tokens, ids = count(1), count(1)
        self.core = BrokerCore(
            "e", settings or Settings(), registry=registry,
            new_token=lambda: next(tokens).to_bytes(wire.TOKEN_BYTES, "big"), new_id=lambda: f"w{next(ids)}",
        )  # fmt: skip
        self.now = 100.0
        self._sent: dict[bytes, list[wire.Message]] = defaultdict(list)
        self.turn()

    # -- driving -------------------------------------------------------------------------------------------------------

    def send(self, peer: str, *messages: wire.Message | Event) -> None:
        """The peer's messages arrive in one turn."""
        for message in messages:
            self.core.receive(peer.encode(), message, self.now)
        self.turn()

    def hear(self, *events: Event) -> None:
        """The stream's socket tells something."""
        for event in events:
            self.core.receive(EVERYONE, event, self.now)
        self.turn()

    def turn(self) -> None:
        self.core.tick(self.now)
        self.deliver(self.core.take_outbox())

    def deliver(self, outbox: Outbox) -> None:
        for to, message in outbox:
            self._sent[to].append(message)

    def wait(self, seconds: float) -> None:
        """Time passes, with a turn at every deadline."""
        until = self.now + seconds
        while (at := self.core.next_deadline()) <= until:
            self.now = max(self.now, at)
            self.turn()
        self.now = until

    def sleep(self, seconds: float) -> None:
        """The broker itself is stopped for so long."""
        self.now += seconds

    # -- peers ---------------------------------------------------------------------------------------------------------

    def hello(self, peer: str, **fields: Any) -> wire.Hello:
        given: dict[str, Any] = {
            "number": 1, "capabilities": [], "name": peer, "host": "host", "pid": 7, "metadata": b"\x80",
            "credit": 128, "observer": False, "epoch": "", "seq": 0, "token": b"", "functions": b"",
        } | fields  # fmt: skip
        return wire.Hello(**given)

    def greet(self, peer: str, **fields: Any) -> Member:
        """A Hello that is welcomed, without a presence yet."""
        self.send(peer, self.hello(peer, **fields))
        welcome = self.last(peer, wire.Welcome)
        return Member(peer.encode(), welcome.worker_id, welcome.token)

    def join(self, peer: str, **fields: Any) -> Member:
        """A Hello and the presence; what it lacks is sent and acknowledged."""
        member = self.greet(peer, **fields)
        self.hear(Subscribed(wire.presence_topic(member.token)))
        self.read_all(peer)
        return member

    def read_all(self, peer: str) -> list[wire.Message]:
        """Acknowledges parts until no more come; returns all that came to the peer."""
        got: list[wire.Message] = []
        while sent := self.to(peer):
            got += sent
            parts = [one for one in sent if isinstance(one, wire.Snapshot | wire.Replay)]
            self.send(peer, *[wire.Received(part.number, part.index) for part in parts])
        return got

    def worker(self, peer: str, *functions: str | bytes, **fields: Any) -> Member:
        """A worker that has joined and offers these functions."""
        member = self.join(peer, **fields)
        if functions:
            self.register(peer, *functions)
        return member

    def register(self, peer: str, *functions: str | bytes) -> wire.Ack:
        entries = [entry(one) if isinstance(one, str) else one for one in functions]
        self.send(peer, wire.Register(2, entries))
        ack: wire.Ack = self.last(peer, wire.Ack)
        return ack

    def lose(self, member: Member) -> None:
        """Its stream connection is gone."""
        self.hear(Unsubscribed(wire.presence_topic(member.token)))

    def fail(self, peer: str, message: wire.Message, *, overflow: bool = False) -> None:
        """This could not be sent to the peer."""
        self.core.receive(peer.encode(), Undelivered(message, overflow), self.now)
        self.turn()

    def die(self, member: Member) -> None:
        """Both connections are gone: a killed process."""
        self.core.receive(EVERYONE, Unsubscribed(wire.presence_topic(member.token)), self.now)
        self.core.tick(self.now)
        for to, message in self.core.take_outbox():
            if to == member.peer:
                self.core.receive(to, Undelivered(message), self.now)
            else:
                self._sent[to].append(message)
        self.wait(0.01)

    # -- looking -------------------------------------------------------------------------------------------------------

    def to(self, peer: str) -> list[wire.Message]:
        """What this peer was sent since it was last asked."""
        return self._sent.pop(peer.encode(), [])

    def last(self, peer: str, kind: type[Any]) -> Any:
        """The latest message of this kind to the peer; everything before it is forgotten."""
        return [one for one in self.to(peer) if isinstance(one, kind)][-1]

    def stream(self) -> list[wire.Delta]:
        """The deltas published since this was last asked."""
        messages = self._sent.pop(EVERYONE, [])
        batches = [message.deltas for message in messages if isinstance(message, wire.Deltas)]
        return [wire.decode_delta(data) for batch in batches for data in batch]

    def broadcast(self) -> list[wire.Message]:
        return self._sent.pop(BROADCAST, [])

    def calls(self, peer: str) -> list[wire.Call]:
        """The calls that the peer was handed since it was last asked."""
        return [one for one in self.to(peer) if isinstance(one, wire.Call)]

    def failures(self, peer: str) -> list[tuple[int, str, str]]:
        """(number, code, fate) of what failed since the peer was last asked."""
        return [(one.number, one.code, one.fate) for one in self.to(peer) if isinstance(one, wire.Failure)]

    def session(self, member: Member) -> Session | None:
        return self.core.sessions.by_worker.get(member.worker_id)

    def id_of(self, name: str) -> str:
        """The worker id of the worker of this name."""
        return next(row.worker_id for row in self.core.registry.workers.values() if row.name == name)

    def workers(self) -> dict[str, str]:
        """Name and state of all who have a row."""
        return {row.name: row.state for row in self.core.registry.workers.values()}

    def offered(self) -> dict[str, list[tuple[str, bool]]]:
        """Function id -> (worker's name, active) of its providers, in their order."""
        registry = self.core.registry
        return {
            function_id: [(registry.workers[one.worker_id].name, one.active) for one in providers]
            for function_id, providers in registry.providers.items()
        }

    def count(self, *names: str) -> list[int]:
        return [self.core.counters[name] for name in names]


def leftovers(core: BrokerCore) -> dict[str, object]:
    """Every table of the core that is not empty, by name: nothing, when all sessions are gone."""
    sessions, calls, answers = core.sessions, core._calls, core._answers
    attendance, draining = core._attendance, core._draining
    tables: dict[str, object] = {
        "by_peer": sessions.by_address, "by_worker": sessions.by_worker,
        "by_token": sessions.by_token, "by_presence": sessions.by_presence, "processes": sessions._processes,
        "checks": attendance._liveness._checks._orders, "draining": draining._sessions,
        "queues": calls._queues._queues, "queued_bytes": sum(calls._queues._bytes.values()),
        "kept_bytes": calls._outcomes._kept_bytes, "large_bytes": calls._large_bytes, "unread": calls._unread._bytes,
        "turns": calls._choice._turns, "deadlines": calls._deadlines._orders,
        "line": answers._line, "snapshots": answers._snapshots, "progress": answers._progress._orders,
        "invited": answers._invited, "receipts": answers._receipts, "gathered": answers._gathered,
        "workers": core.registry.workers, "providers": core.registry.providers, "offered": core.registry.offered,
        "leads": core.registry.leads, "provider_rows": core.registry.provider_rows,
        "rows": core.registry._rows, "rows_bytes": core.registry.rows_bytes, "total": core.registry._total,
        "outbox": core._outbox,
    }  # fmt: skip
    return {name: table for name, table in tables.items() if table}


def all_deltas(outbox: Iterable[tuple[bytes, wire.Message]]) -> list[bytes]:
    """The packed deltas in an outbox, in order."""
    return [delta for _, message in outbox if isinstance(message, wire.Deltas) for delta in message.deltas]
