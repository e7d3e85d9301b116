"""Calls through a broker whose workers come, go, die, drain and return at random, against a record of what was sent.

Each call that is accepted has exactly one outcome, by its deadline at the latest; none of the fates is a lie; nothing
waits that somebody could have; and when all sessions have gone, every table is empty.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iii_zmq import wire
from iii_zmq.core.session import EVERYONE, Subscribed
from tests.core.brokerage import entry, leftovers
from tests.model.brokerhost import CREDIT, BrokerHost, Connection

WHICH = st.integers(0, 30)
FUNCTIONS = st.sampled_from(["f", "i", "x"])  # plain, idempotent, exclusive
TIMEOUTS = st.sampled_from([0.0, 0.3, 5.0, 30.0])


def entry_of(function_id: str) -> bytes:
    return entry(function_id, idempotent=function_id == "i", exclusive=function_id == "x")


class CallsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.host = BrokerHost()

    # -- who is there --------------------------------------------------------------------------------------------------

    def alive(self) -> list[Connection]:
        return [one for one in self.host.connections if one.alive]

    def joined(self) -> list[Connection]:
        by_peer = self.host.core._sessions.by_peer
        return [one for one in self.alive() if one.peer in by_peer and by_peer[one.peer].joined]

    def pick(self, which: int, connections: list[Connection]) -> Connection:
        return connections[which % len(connections)]

    def hello(self, connection: Connection, token: bytes, entries: dict[str, bytes]) -> None:
        functions = wire.functions_digest(list(entries.values()))
        connection.entries = dict(entries)
        name = connection.name
        hello = wire.Hello(1, [], name, "h", 1, b"\x80", CREDIT, False, "", 0, token, functions if token else b"")
        self.host.receive(connection, hello)

    # -- coming and going ----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.alive()) < 6)
    @rule(offers=st.sets(FUNCTIONS))
    def join(self, offers: set[str]) -> None:
        peer = b"p%d" % next(self.host.peers)
        connection = Connection(peer, peer.decode())
        self.host.connections.append(connection)
        self.hello(connection, b"", {})
        self.subscribe_(connection)
        self.register_(connection, offers)

    @rule()
    def greet(self) -> None:
        peer = b"p%d" % next(self.host.peers)
        self.host.connections.append(Connection(peer, peer.decode()))
        self.hello(self.host.connections[-1], b"", {})

    @precondition(lambda self: self.alive())
    @rule(which=WHICH)
    def subscribe(self, which: int) -> None:
        self.subscribe_(self.pick(which, self.alive()))

    def subscribe_(self, connection: Connection) -> None:
        self.host.core.receive(EVERYONE, Subscribed(wire.presence_topic(connection.token)), self.host.now)
        self.host.turn()

    @precondition(lambda self: self.joined())
    @rule(which=WHICH, functions=st.sets(FUNCTIONS, min_size=1))
    def register(self, which: int, functions: set[str]) -> None:
        self.register_(self.pick(which, self.joined()), functions)

    def register_(self, connection: Connection, functions: set[str]) -> None:
        entries = {function_id: entry_of(function_id) for function_id in sorted(functions)}
        connection.entries.update(entries)
        self.host.receive(connection, wire.Register(2, list(entries.values())))

    @precondition(lambda self: self.joined())
    @rule(which=WHICH, functions=st.lists(FUNCTIONS, min_size=1, max_size=2))
    def unregister(self, which: int, functions: list[str]) -> None:
        connection = self.pick(which, self.joined())
        for function_id in functions:
            connection.entries.pop(function_id, None)
        self.host.receive(connection, wire.Unregister(3, functions))

    @precondition(lambda self: self.joined())
    @rule(which=WHICH)
    def drain(self, which: int) -> None:
        self.host.receive(self.pick(which, self.joined()), wire.Drain(4))

    @precondition(lambda self: self.alive())
    @rule(which=WHICH)
    def bye(self, which: int) -> None:
        connection = self.pick(which, self.alive())
        self.host.receive(connection, wire.Bye(5))
        self.host.forget_calls_of(connection)

    @precondition(lambda self: self.alive())
    @rule(which=WHICH)
    def renew(self, which: int) -> None:
        """A Hello with the token, on the same connection."""
        connection = self.pick(which, self.alive())
        self.hello(connection, connection.token, connection.entries)

    @precondition(lambda self: self.host.connections)
    @rule(which=WHICH, kill=st.booleans(), subscribe=st.booleans())
    def return_(self, which: int, kill: bool, subscribe: bool) -> None:
        """A Hello with the token of another connection's session: of one that is dead, or will be."""
        old = self.pick(which, self.host.connections)
        if kill:
            self.cut(old)
        connection = Connection(b"p%d" % next(self.host.peers), old.name)
        self.host.connections.append(connection)
        self.hello(connection, old.token, old.entries)
        if subscribe:
            self.subscribe_(connection)

    @precondition(lambda self: self.alive())
    @rule(which=WHICH)
    def die(self, which: int) -> None:
        self.cut(self.pick(which, self.alive()))

    def cut(self, connection: Connection) -> None:
        """Both connections are gone. The broker hears of one now, and of the other when it next sends."""
        if connection.alive:
            connection.alive = False
            self.host.lost.append(wire.presence_topic(connection.token))

    @precondition(lambda self: self.alive())
    @rule(which=WHICH)
    def break_control(self, which: int) -> None:
        """The control connection alone is gone."""
        self.pick(which, self.alive()).alive = False

    @precondition(lambda self: self.joined())
    @rule(which=WHICH)
    def break_stream(self, which: int) -> None:
        self.host.lost.append(wire.presence_topic(self.pick(which, self.joined()).token))
        self.host.turn()

    @rule(which=st.lists(WHICH, max_size=3), seconds=st.sampled_from([3.0, 10.0]))
    def pause(self, which: list[int], seconds: float) -> None:
        """The broker itself sleeps, and finds some connections cut on waking."""
        self.host.now += seconds
        for one in which:
            if self.alive():
                self.cut(self.pick(one, self.alive()))
        self.host.turn()

    # -- calls ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.joined())
    @rule(which=WHICH, function=FUNCTIONS, timeout=TIMEOUTS, times=st.integers(1, 4), no_answer=st.booleans())
    def call(self, which: int, function: str, timeout: float, times: int, no_answer: bool) -> None:
        flags = wire.NO_ANSWER if no_answer else 0
        for _ in range(times):
            connections = self.joined()
            if connections:
                self.host.ask(self.pick(which, connections), function, timeout, "", flags)

    @precondition(lambda self: self.joined())
    @rule(which=WHICH, at=WHICH, function=FUNCTIONS)
    def call_one(self, which: int, at: int, function: str) -> None:
        self.host.ask(self.pick(which, self.joined()), function, 30.0, self.pick(at, self.joined()).worker_id, 0)

    @precondition(lambda self: any(one.calls for one in self.alive()))
    @rule(which=WHICH, answer=st.sampled_from(["result", "result", "executed", "no_provider", "timeout"]))
    def answer(self, which: int, answer: str) -> None:
        connection = self.pick(which, [one for one in self.alive() if one.calls])
        number, payload = connection.calls.pop(which % len(connection.calls))
        self.host.answered(connection, payload, was_started=answer in ("result", "executed"))
        message: wire.Message
        if answer == "result":
            message = wire.Result(number, b"r" + payload)
        elif answer == "executed":
            message = wire.Failure(number, "handler_failed", "executed", "E", "")
        else:
            message = wire.Failure(number, answer, "not_handed_over", "", "")
        self.host.receive(connection, message)

    @precondition(lambda self: self.alive())
    @rule(which=WHICH, number=st.integers(1, 200))
    def forge(self, which: int, number: int) -> None:
        """An answer to a call that this connection was not handed."""
        connection = self.pick(which, self.alive())
        if number not in [own for own, _ in connection.calls]:
            self.host.receive(connection, wire.Result(number, b"forged"))

    @precondition(lambda self: self.host.open)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        asked = list(self.host.open.values())[which % len(self.host.open)]
        connection = next(one for one in self.host.connections if one.peer == asked.peer)
        if connection.alive:
            del self.host.open[asked.peer, asked.number]
            self.host.receive(connection, wire.Cancel(asked.number))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.4, 1.0, 3.0]), talking=st.booleans())
    def wait(self, seconds: float, talking: bool) -> None:
        if talking:
            for connection in self.alive():
                self.host.receive(connection, wire.Heartbeat(1, "e", 0, 0, 0))
        self.host.pass_time(seconds)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_in_its_place(self) -> None:
        self.host.turn()
        self.host.forget_the_gone()
        self.host.check()

    def teardown(self) -> None:
        for connection in self.host.connections:
            connection.alive = False
            self.host.lost.append(wire.presence_topic(connection.token))
        self.host.turn()
        for _ in range(8):
            self.host.forget_the_gone()
            self.host.pass_time(1.0)
        assert leftovers(self.host.core) == {}


TestCalls = CallsMachine.TestCase
TestCalls.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
