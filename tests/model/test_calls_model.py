"""Calls through a broker whose workers come, go, die, drain and return at random, against a record of what was sent.

Each call that is accepted has exactly one outcome, by its deadline at the latest; none of the fates is a lie; nothing
waits that somebody could have; and when all sessions have gone, every table is empty.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iii_zmq import wire
from iii_zmq.core.broker.events import EVERYONE, Subscribed
from tests.core.brokerage import entry, leftovers
from tests.model.brokerhost import CREDIT, BrokerHost, Connection

WHICH = st.integers(0, 30)
FUNCTIONS = st.sampled_from(["f", "i", "x"])  # plain, idempotent, exclusive
ANSWERS = st.sampled_from(["result", "result", "result", "executed", "no_provider", "timeout"])
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
        by_peer = self.host.core.sessions.by_address
        return [one for one in self.alive() if one.peer in by_peer and by_peer[one.peer].joined]

    def pick(self, which: int, connections: list[Connection]) -> Connection:
        return connections[which % len(connections)]

    def hello(self, connection: Connection, token: bytes, entries: dict[str, bytes]) -> None:
        functions = wire.functions_digest(list(entries.values()))
        connection.entries = dict(entries)
        name = connection.name
        hello = wire.Hello(1, [], name, "h", 1, b"\x80", CREDIT, False, "", 0, token, functions if token else b"")
        self.host.receive(connection, hello)

    # -- calls ---------------------------------------------------------------------------------------------------------

    @initialize()
    def a_caller_and_providers_are_here(self) -> None:
        for offers in (set(), {"f", "i", "x"}, {"f", "i", "x"}):
            self.join(offers)

    @precondition(lambda self: self.joined())
    @rule(which=WHICH, function=FUNCTIONS, timeout=TIMEOUTS, times=st.integers(1, 6), no_answer=st.booleans())
    def call(self, which: int, function: str, timeout: float, times: int, no_answer: bool) -> None:
        flags = wire.NO_ANSWER if no_answer else 0
        caller = self.pick(which, self.joined())
        for _ in range(times):
            self.host.ask(caller, function, timeout, "", flags)

    @precondition(lambda self: self.joined())
    @rule(which=WHICH, at=WHICH, function=FUNCTIONS, times=st.integers(1, 4))
    def call_one(self, which: int, at: int, function: str, times: int) -> None:
        caller, worker = self.pick(which, self.joined()), self.pick(at, self.joined()).worker_id
        for _ in range(times):
            self.host.ask(caller, function, 30.0, worker, 0)

    @precondition(lambda self: any(one.calls for one in self.alive()))
    @rule(which=WHICH, answers=st.lists(ANSWERS, min_size=1, max_size=4))
    def answer(self, which: int, answers: list[str]) -> None:
        connection = self.pick(which, [one for one in self.alive() if one.calls])
        for answer in answers:
            if connection.calls:
                self.answer_one(connection, which % len(connection.calls), answer)

    def answer_one(self, connection: Connection, at: int, answer: str) -> None:
        number, payload = connection.calls.pop(at)
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
    @rule(which=WHICH, back=st.integers(0, 4))
    def forge(self, which: int, back: int) -> None:
        """An answer to a call that this connection was not handed: most likely one that somebody else was."""
        connection = self.pick(which, self.alive())
        number = max(0, self.host.core._calls._numbers - back)
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

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.4, 1.0, 3.0]), talking=st.sampled_from([True, True, False]))
    def wait(self, seconds: float, talking: bool) -> None:
        if talking:
            for connection in self.alive():
                self.host.receive(connection, wire.Heartbeat(1, "e", 0, 0, 0))
        self.host.pass_time(seconds)

    # -- functions -----------------------------------------------------------------------------------------------------

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

    # -- coming and going ----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.alive()) < 6)
    @rule(offers=st.sets(FUNCTIONS))
    def join(self, offers: set[str]) -> None:
        connection = self.connect("")
        self.hello(connection, b"", {})
        self.subscribe(connection)
        self.register_(connection, offers)

    def connect(self, name: str) -> Connection:
        peer = b"p%d" % next(self.host.peers)
        connection = Connection(peer, name or peer.decode())
        self.host.connections.append(connection)
        return connection

    def subscribe(self, connection: Connection) -> None:
        self.host.core.receive(EVERYONE, Subscribed(wire.presence_topic(connection.token)), self.host.now)
        self.host.turn()

    @rule(kind=st.sampled_from(["drain", "bye", "renew", "resubscribe", "break stream", "greet"]), which=WHICH)
    def something_unusual(self, kind: str, which: int) -> None:
        if kind == "greet":  # and never a presence
            self.hello(self.connect(""), b"", {})
            return
        if not self.alive():
            return
        connection = self.pick(which, self.alive())
        match kind:
            case "drain":
                self.host.receive(connection, wire.Drain(4))
            case "bye":
                self.host.receive(connection, wire.Bye(5))
                self.host.forget_calls_of(connection)
            case "renew":  # a Hello with the token, on the same connection
                self.hello(connection, connection.token, connection.entries)
            case "resubscribe":
                self.subscribe(connection)
            case _:
                self.host.lost.append(wire.presence_topic(connection.token))
                self.host.turn()

    @rule(which=WHICH, silent_s=st.sampled_from([0.0, 1.0, 1.9]), back=st.booleans())
    def sleep_and_lose_a_stream(self, which: int, silent_s: float, back: bool) -> None:
        """The broker slept, and one stream was cut. Who says nothing for a while is held; it may be back as it was."""
        if not self.alive():
            return
        connection = self.pick(which, self.alive())
        self.host.now += 10.0
        self.host.lost.append(wire.presence_topic(connection.token))
        self.host.turn()
        self.host.pass_time(silent_s)
        if back:
            self.hello(connection, connection.token, connection.entries)
            self.subscribe(connection)

    @rule(kind=st.sampled_from(["die", "break control", "pause"]), which=WHICH, back=st.booleans())
    def something_bad(self, kind: str, which: int, back: bool) -> None:
        """A connection is cut: by death, alone, or after a pause of the broker's own. It may be back on another."""
        if not self.alive():
            return
        connection = self.pick(which, self.alive())
        if kind == "pause":
            self.host.now += 10.0
        if kind != "break control":
            self.host.lost.append(wire.presence_topic(connection.token))
        connection.alive = False
        if back:
            if kind == "pause":
                self.host.turn()
            again = self.connect(connection.name)
            self.hello(again, connection.token, connection.entries)
            self.subscribe(again)

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


TestCalls = pytest.mark.slow(CallsMachine.TestCase)
TestCalls.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
