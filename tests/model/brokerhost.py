"""A broker with connections that can be cut, for random tests: what a shell does, and a record of every call's fate.

The twin knows nothing of queues, choice or liveness. It only writes down what went over the connections:

    open       a call that its caller was not told the outcome of yet, by (connection, number)
    handed     connections that were really sent it and have not said that they did not start it
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count

from iii_zmq import wire
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import EVERYONE, Address, Settings, Undelivered, Unsubscribed
from iii_zmq.core.broker.session import IN_FLIGHT_BYTES_MAX, KEEP_BYTES_MAX, Route, Session
from tests.core.brokerage import all_deltas

CREDIT = 2


@dataclass(eq=False)
class Asked:
    """One call as its caller made it."""

    peer: Address
    number: int
    payload: bytes
    function_id: str
    deadline: float
    no_answer: bool
    ever_sent: bool = False
    sent_too_late: bool = False  # to a provider whose session ended in the same turn: nobody is told what became of it
    handed: list[Address] = field(default_factory=list)


@dataclass(eq=False)
class Connection:
    """One worker's two sockets. `token` is that of its session, b"" before a Welcome."""

    peer: Address
    name: str
    alive: bool = True
    token: bytes = b""
    worker_id: str = ""
    session: Session | None = None  # what the broker welcomed it to
    entries: dict[str, bytes] = field(default_factory=dict)
    calls: list[tuple[int, bytes]] = field(default_factory=list)  # route number, payload: handed to it, not answered


class BrokerHost:
    """Drives a BrokerCore; every message that it sends is checked against the record."""

    def __init__(self) -> None:
        tokens, ids = count(1), count(1)
        self.core = BrokerCore(
            "e", Settings(), new_token=lambda: next(tokens).to_bytes(16, "big"), new_id=lambda: f"w{next(ids)}"
        )
        self.now = 100.0
        self.peers = count(1)
        self.numbers = count(1)
        self.connections: list[Connection] = []
        self.asked: dict[bytes, Asked] = {}  # by payload
        self.open: dict[tuple[Address, int], Asked] = {}
        self.undelivered: list[tuple[Address, wire.Message]] = []
        self.lost: list[bytes] = []
        self.rows: dict[wire.RowKey, bytes] = {}
        self.seq = 0

    # -- a shell -------------------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, message: wire.Message) -> None:
        self.core.receive(connection.peer, message, self.now)
        self.turn()

    def turn(self) -> None:
        """Bad news, what is due, and what is to be sent; like io/broker.py, after the ROUTER was read empty."""
        lost, self.lost = self.lost, []
        undelivered, self.undelivered = self.undelivered, []
        for topic in lost:
            self.core.receive(EVERYONE, Unsubscribed(topic), self.now)
        for peer, message in undelivered:
            self.core.receive(peer, Undelivered(message), self.now)
        self.core.tick(self.now)
        outbox = self.core.take_outbox()
        self.follow(all_deltas(outbox))
        for to, message in outbox:
            self.send(to, message)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.core.next_deadline()) <= until:
            self.now = max(self.now, at)
            self.turn()
        self.now = until
        self.turn()
        self.forget_the_gone()
        for asked in self.open.values():
            assert asked.no_answer or self.now < asked.deadline, f"{asked} is open beyond its deadline"

    def send(self, to: Address, message: wire.Message) -> None:
        connection = next((one for one in self.connections if one.peer == to), None)
        if connection is None:
            return
        if not connection.alive:
            self.undelivered.append((to, message))
            if isinstance(message, wire.Call) and self.core.sessions.by_address.get(to) is None:
                self.asked[bytes(message.payload)].sent_too_late = True
            if isinstance(message, wire.Result | wire.Failure):
                self.open.pop((to, message.number))
            return
        match message:
            case wire.Welcome():
                self.on_welcome(connection, message)
            case wire.Call():
                self.on_handed(connection, message)
            case wire.Result():
                asked = self.pop_open(to, message.number)
                assert bytes(message.payload) == b"r" + asked.payload
                assert not asked.no_answer
            case wire.Failure():
                self.on_failed(self.pop_open(to, message.number), message)
            case wire.Snapshot() | wire.Replay():
                self.core.receive(to, wire.Received(message.number, message.index), self.now)
            case _:
                pass

    def on_welcome(self, connection: Connection, welcome: wire.Welcome) -> None:
        connection.token, connection.worker_id = welcome.token, welcome.worker_id
        session = self.core.sessions.by_worker.get(welcome.worker_id)
        if connection.session is not session:  # calls and answers of the session before mean nothing any more
            connection.session = session
            connection.calls.clear()
            self.forget_calls_of(connection)
        if not welcome.kept:
            connection.entries = {}

    def follow(self, deltas: list[bytes]) -> None:
        """A replica that hears everything."""
        for data in deltas:
            delta = wire.decode_delta(data)
            assert delta.seq == self.seq + 1
            self.seq = delta.seq
            for key in delta.drops:
                del self.rows[key]
            self.rows.update((wire.row_key(row), row) for row in delta.puts)
            assert delta.digest == wire.digest_bytes(sum(map(wire.row_hash, self.rows.values())))

    # -- the record ----------------------------------------------------------------------------------------------------

    def ask(self, connection: Connection, function_id: str, timeout_s: float, target: str, flags: int) -> None:
        number = next(self.numbers)
        payload = number.to_bytes(4, "big")
        asked = Asked(connection.peer, number, payload, function_id, self.now + timeout_s, bool(flags & wire.NO_ANSWER))
        self.asked[payload] = self.open[connection.peer, number] = asked
        remaining_ms = int(timeout_s * 1000)
        call = wire.Call(number, function_id, connection.worker_id, remaining_ms, target, flags, 0, payload)
        self.receive(connection, call)

    def on_handed(self, connection: Connection, call: wire.Call) -> None:
        asked = self.asked[bytes(call.payload)]
        asked.ever_sent = True
        assert asked.function_id == "i" or not asked.handed, "only what is idempotent may be handed over twice"
        asked.handed.append(connection.peer)
        connection.calls.append((call.number, asked.payload))
        session = self.core.sessions.by_worker.get(connection.worker_id)
        assert session is not None
        assert len(session.in_flight) <= CREDIT

    def on_failed(self, asked: Asked, failure: wire.Failure) -> None:
        assert not asked.no_answer or failure.fate == "not_handed_over"
        if failure.fate == "not_handed_over":
            assert not asked.handed, "somebody was handed it"
        elif failure.fate == "possibly_executed":
            is_known = not asked.sent_too_late and not self.is_undelivered(asked)
            assert asked.ever_sent or not is_known, "nobody was ever sent it"

    def is_undelivered(self, asked: Asked) -> bool:
        """It was sent to a connection that is gone, and the broker had not been told so yet."""
        return asked.payload in self.lost_calls

    @property
    def lost_calls(self) -> list[bytes]:
        return [bytes(message.payload) for _, message in self.undelivered if isinstance(message, wire.Call)]

    def answered(self, connection: Connection, payload: bytes, *, was_started: bool) -> None:
        """The connection has answered: if it never started it, it has not seen it."""
        asked = self.asked[payload]
        if not was_started:
            asked.handed.remove(connection.peer)

    def pop_open(self, peer: Address, number: int) -> Asked:
        assert (peer, number) in self.open, "an outcome for a call that is not open: told twice, or never asked"
        return self.open.pop((peer, number))

    def forget_calls_of(self, connection: Connection) -> None:
        """Its session is over: nobody waits for these."""
        self.open = {key: asked for key, asked in self.open.items() if key[0] != connection.peer}

    def forget_the_gone(self) -> None:
        for connection in self.connections:
            session = connection.session
            if session is None or session.ended:
                self.forget_calls_of(connection)

    # -- what always holds ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.check_rows()
        routes = self.check_routes()
        self.check_queues(routes)

    def check_rows(self) -> None:
        registry, sessions = self.core.registry, self.core.sessions
        assert self.rows == registry._rows
        assert set(registry.workers) <= set(sessions.by_worker)
        tables = [sessions.by_address, sessions.by_worker, sessions.by_token, sessions.by_presence]
        assert len({frozenset(map(id, table.values())) for table in tables}) == 1  # type: ignore[attr-defined]

    def check_routes(self) -> list[Route]:
        """Every route is where it belongs, and nowhere else."""
        calls, sessions = self.core._calls, self.core.sessions.by_worker
        queued = [route for queue in calls._queues._queues.values() for route in queue]
        flying = [route for session in sessions.values() for route in session.in_flight.values()]
        assert len({id(route) for route in queued + flying}) == len(queued) + len(flying)
        waited_for = [route for session in sessions.values() for route in session.open.values()]
        assert {id(route) for route in waited_for} == {id(one) for one in queued + flying if one.caller is not None}
        assert set(calls._deadlines._orders) == set(waited_for)
        assert sum(calls._queues._bytes.values()) == sum(route.queued_bytes for route in queued)
        assert calls._outcomes._kept_bytes == sum(route.kept_bytes for route in queued + flying)
        assert calls._large_bytes == sum(route.size for route in flying if route.size > KEEP_BYTES_MAX)
        for session in sessions.values():
            assert session.in_flight_bytes == sum(route.size for route in session.in_flight.values())
            assert all(route.provider is session for route in session.in_flight.values())
            assert all(route.caller is session for route in session.open.values())
        told = {
            (route.caller.address, route.caller_number) for route in waited_for if route.caller and not route.no_answer
        }
        assert told == {key for key, asked in self.open.items() if not asked.no_answer}
        return queued

    def check_queues(self, queued: list[Route]) -> None:
        """Nothing waits that somebody with room may have; nobody is to look at a queue that does not concern it."""
        registry, sessions = self.core.registry, self.core.sessions.by_worker
        for route in queued:
            assert route.queued_bytes
            providers = [sessions[one.worker_id] for one in registry.providers[route.function_id] if one.active]
            for session in providers:
                assert not self.may_have(session, route), f"{route} waits, and {session} could have it"
        waiting: dict[str, set[str]] = defaultdict(set)
        for route in queued:
            for one in registry.providers[route.function_id]:
                waiting[one.worker_id].add(route.function_id)
        for worker_id, session in sessions.items():
            assert set(session.waiting) == waiting[worker_id]

    def may_have(self, session: Session, route: Route) -> bool:
        if not session.routable or len(session.in_flight) >= session.hello.credit:
            return False
        if session.in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
            return False
        if route.target not in ("", session.worker_id) or session.worker_id in route.tried:
            return False
        others = [self.core.sessions.by_worker[one.worker_id] for one in self.providers_of(route)]
        return not session.draining or bool(route.target) or all(one.draining for one in others)

    def providers_of(self, route: Route) -> list[wire.ProviderRow]:
        """Those who offer the function and have not tried it."""
        rows = [wire.decode_row(data) for data in self.rows.values()]
        providers = [row for row in rows if isinstance(row, wire.ProviderRow) and row.function_id == route.function_id]
        return [row for row in providers if row.worker_id not in route.tried]
