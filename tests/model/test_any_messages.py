"""Any messages, in any order, from anybody: the broker never raises, and nothing grows beyond its named limit.

All messages went through `encode` and `decode`, so they are what the network can bring: kinds that only a broker sends,
repeated numbers, huge values, garbage where rows, entries and payloads should be. Limits are set so low that they are
reached all the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from iii_zmq import wire
from iii_zmq.core.broker import answers, attendance, calls, engine, outcomes, queues, registrations, registry, sessions
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import EVERYONE, Malformed, Settings, Subscribed, Undelivered, Unsubscribed
from iii_zmq.core.broker.registry import Registry
from iii_zmq.core.broker.session import Session
from tests.core.brokerage import entry

SESSIONS_MAX, OPEN_MAX, CREDIT_MAX, QUEUE_MAX, ROWS_MAX, HISTORY_MAX, OFFERS_MAX = 4, 3, 2, 2, 6, 4, 3
QUEUED_BYTES_MAX = 300

PEERS = [b"p1", b"p2", b"p3", b"p4", b"p5"]
TOKENS = [number.to_bytes(16, "big") for number in range(12)]
IDS = [f"w{number}" for number in range(1, 12)]
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, wire.NUMBER_MAX])
INTS = st.sampled_from([0, 1, 2, 3, 50, 5000, wire.INT_MAX])
FUNCTIONS = ["f", "i", "x", "engine::ping", "engine::functions::list", "engine::workers::list", "engine::status", ""]
TEXTS = st.sampled_from([*FUNCTIONS, *IDS, "e", "gap", "no_provider", "\x00", "\N{SNOWMAN}" * 300])
DEEP = b"\x91" * 1000 + b"\x80"
BYTES = st.sampled_from([b"", b"\xc1", b"\x80", b"\xc0", bytes(16), DEEP, b"\x81\xa6prefix" + DEEP, bytes(200)])
PAYLOADS = st.sampled_from([b"\xc0", b"\xc1", DEEP, b"\x81\xa6prefix" + DEEP, bytes(200), b"\x81\xa3all\xc3", b"\x80"])
ENTRIES = st.one_of(
    BYTES,
    st.builds(
        entry,
        st.sampled_from(["f", "i", "x", "g", "engine::f", "", "\x00", "a::" * 9]),
        exclusive=st.booleans(),
        idempotent=st.booleans(),
        description=st.sampled_from([None, "d" * 300]),
    ),
)
TOPICS = st.one_of(
    st.sampled_from([wire.STREAM_TOPIC, wire.SNAPSHOT_TOPIC, b"", b"w|", b"garbage"]),
    st.sampled_from(TOKENS).map(wire.presence_topic),
    st.sampled_from(TOKENS).map(wire.receipt_topic),
)
BY_TYPE = {
    str: TEXTS,
    int: INTS,
    bool: st.booleans(),
    bytes: BYTES,
    wire.BYTES_LIST: st.lists(ENTRIES, max_size=4),
    wire.STRINGS: st.lists(TEXTS, max_size=4),
    wire.REFUSALS: st.lists(st.tuples(INTS, TEXTS, TEXTS), max_size=2),
}


@st.composite
def any_message(draw: st.DrawFn) -> wire.Message:
    kind = draw(st.sampled_from(wire.MESSAGES))
    fields = [draw(BY_TYPE[one]) for one in wire.FIELDS[kind]]
    if kind in (wire.Call, wire.Result):
        fields.append(draw(PAYLOADS))
    message = kind(draw(NUMBERS), *fields)
    if isinstance(message, wire.Failure):
        message.fate = draw(st.sampled_from(["executed", "not_handed_over", "possibly_executed"]))
    if isinstance(message, wire.Snapshot | wire.Beacon):
        message.digest = bytes(16)
    if isinstance(message, wire.Welcome):
        message.token = bytes(16)
    if isinstance(message, wire.Hello):
        message.token = draw(st.sampled_from([b"", *TOKENS]))
        message.functions = draw(st.sampled_from([b"", bytes(16)]))
        message.name, message.host = draw(st.sampled_from(["", "a", "b", "\n"])), "h"
        message.metadata = draw(st.sampled_from([b"\x80", b"\x80", b"\xc1", b"\x81\xa1a" * 200 + b"\x80"]))
    return wire.decode(*wire.encode(message))


@contextmanager
def low_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "SESSIONS_MAX", SESSIONS_MAX)
        patch.setattr(calls, "OPEN_CALLS_MAX", OPEN_MAX)
        patch.setattr(attendance, "CREDIT_MAX", CREDIT_MAX)
        patch.setattr(queues, "QUEUE_MAX", QUEUE_MAX)
        patch.setattr(queues, "QUEUED_BYTES_MAX", QUEUED_BYTES_MAX)
        patch.setattr(outcomes, "KEPT_BYTES_MAX", 150)
        patch.setattr(calls, "KEEP_BYTES_MAX", 100)
        patch.setattr(registry, "FUNCTIONS_MAX", ROWS_MAX)
        patch.setattr(registrations, "FUNCTIONS_PER_WORKER_MAX", OFFERS_MAX)
        patch.setattr(wire, "BATCH_MAX", 3)
        patch.setattr(wire, "ENTRY_BYTES_MAX", 250)
        patch.setattr(answers, "BROADCAST_FROM", 1)
        patch.setattr(answers, "BROADCAST_BYTES_MIN", 0)
        patch.setattr(answers, "PART_BYTES_MAX", 60)
        patch.setattr(engine, "EXAMINED_MAX", 2)
        yield


class AnyMessages(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        tokens, ids = iter(TOKENS * 1000), (f"w{number}" for number in range(1, 1000))
        self.core = BrokerCore(
            "e", Settings(), registry=Registry("e", history_max=HISTORY_MAX),
            new_token=lambda: self.unused(next(tokens)), new_id=lambda: next(ids),
        )  # fmt: skip
        self.extra = 0
        self.now = 50.0
        self.handed: list[tuple[bytes, int]] = []
        self.sent: list[tuple[bytes, wire.Message]] = []
        self.limits = low_limits()
        self.limits.__enter__()

    def teardown(self) -> None:
        self.limits.__exit__(None, None, None)

    def unused(self, token: bytes) -> bytes:
        """Tokens come from a small pool, so that messages can name them, but no two sessions have the same."""
        while token in self.core.sessions.by_token:
            self.extra += 1
            token = (10_000 + self.extra).to_bytes(16, "big")
        return token

    @initialize()
    def a_caller_and_providers_are_here(self) -> None:
        for peer in PEERS[:3]:
            self.hello(peer, "")
        self.receive(b"p2", wire.Register(1, [entry("f"), entry("i", idempotent=True)]))
        self.receive(b"p1", wire.Register(1, [entry("i", idempotent=True)]))
        self.receive(b"p3", wire.Register(1, [entry("x", exclusive=True)]))

    def hello(self, peer: bytes, epoch: str) -> None:
        self.receive(peer, wire.Hello(1, [], "a", "h", 1, b"\x80", 2, False, epoch, 0, b"", b""))
        session = self.core.sessions.by_address.get(peer)
        if session is not None:
            self.core.receive(EVERYONE, Subscribed(session.presence), self.now)

    def receive(self, peer: bytes, message: wire.Message) -> None:
        self.core.receive(peer, message, self.now)

    @rule(peer=st.sampled_from(PEERS), messages=st.lists(any_message(), min_size=1, max_size=8))
    def anything(self, peer: bytes, messages: list[wire.Message]) -> None:
        for message in messages:
            self.receive(peer, message)

    @rule(peer=st.sampled_from(PEERS), epoch=st.sampled_from(["", "e"]))
    def join(self, peer: bytes, epoch: str) -> None:
        self.hello(peer, epoch)

    @rule(peer=st.sampled_from(PEERS), which=st.integers(0, 9))
    def return_(self, peer: bytes, which: int) -> None:
        """A Hello that names somebody's session and the functions that it has."""
        sessions_ = list(self.core.sessions.by_address.values())
        if sessions_:
            old = sessions_[which % len(sessions_)]
            functions = bytes(16)
            if old.worker_id in self.core.registry.offered:
                functions = self.core.registry.functions_digest(old.worker_id)
            hello = wire.Hello(1, [], "a", "h", 1, b"\x80", 2, False, "e", 0, old.token, functions)
            self.receive(peer, hello)

    @rule(which=st.integers(0, 9), subscribed=st.booleans(), receipt=st.booleans())
    def live_topic(self, which: int, subscribed: bool, receipt: bool) -> None:
        sessions_ = list(self.core.sessions.by_address.values())
        if sessions_:
            token = sessions_[which % len(sessions_)].token
            self.topic(wire.receipt_topic(token) if receipt else wire.presence_topic(token), subscribed)

    @rule(peer=st.sampled_from(PEERS), epoch=st.sampled_from(["", "e"]), behind=st.integers(-1, 9))
    def sync(self, peer: bytes, epoch: str, behind: int) -> None:
        self.receive(peer, wire.Sync(3, epoch, max(0, self.core.registry.seq - behind), "gap"))

    @rule(peer=st.sampled_from(PEERS), numbers=st.lists(NUMBERS, max_size=5))
    def acknowledge(self, peer: bytes, numbers: list[int]) -> None:
        for number in numbers:
            self.receive(peer, wire.Received(number, 0))

    @rule(peer=st.sampled_from(PEERS), number=NUMBERS)
    def cancel(self, peer: bytes, number: int) -> None:
        self.receive(peer, wire.Cancel(number))

    @rule(peer=st.sampled_from(PEERS), functions=st.lists(st.sampled_from(FUNCTIONS), max_size=4))
    def unregister(self, peer: bytes, functions: list[str]) -> None:
        self.receive(peer, wire.Unregister(1, functions))

    @rule(peer=st.sampled_from(PEERS))
    def drain(self, peer: bytes) -> None:
        self.receive(peer, wire.Drain(1))

    @rule(peer=st.sampled_from(PEERS), entries=st.lists(ENTRIES, max_size=4))
    def register(self, peer: bytes, entries: list[bytes]) -> None:
        self.receive(peer, wire.decode(*wire.encode(wire.Register(1, entries))))

    @rule(
        peer=st.sampled_from(PEERS),
        function=st.sampled_from(["f", "i", "x", "f", "i", "x", *FUNCTIONS]),
        number=NUMBERS,
        payload=PAYLOADS,
        worker=st.sampled_from(["", "", "", *IDS[:3]]),
        remaining=st.sampled_from([0, 50, 9000, 9000, wire.INT_MAX]),
        times=st.integers(1, 4),
    )
    def call(
        self, peer: bytes, function: str, number: int, payload: bytes, worker: str, remaining: int, times: int
    ) -> None:
        session = self.core.sessions.by_address.get(peer)
        caller = session.worker_id if session is not None else "w1"
        for more in range(times):
            number_ = min(number + more, wire.NUMBER_MAX)
            message = wire.Call(number_, function, caller, remaining, worker, 0, 7, payload)
            self.receive(peer, wire.decode(*wire.encode(message)))

    @rule(which=st.integers(0, 30), fate=st.sampled_from(["", "executed", "not_handed_over", "possibly_executed"]))
    def answer(self, which: int, fate: str) -> None:
        if self.handed:
            peer, number = self.handed.pop(which % len(self.handed))
            answer: wire.Message = wire.Result(number, b"\xc0")
            if fate:
                answer = wire.Failure(number, "no_provider", fate, "", "")  # type: ignore[arg-type]
            self.receive(peer, answer)

    @rule(topic=TOPICS, subscribed=st.booleans())
    def topic(self, topic: bytes, subscribed: bool) -> None:
        self.core.receive(EVERYONE, Subscribed(topic) if subscribed else Unsubscribed(topic), self.now)

    @rule(which=st.integers(0, 100), overflow=st.booleans())
    def undelivered(self, which: int, overflow: bool) -> None:
        if self.sent:
            peer, message = self.sent[which % len(self.sent)]
            self.core.receive(peer, Undelivered(message, overflow), self.now)

    @rule(
        peer=st.sampled_from([*PEERS, EVERYONE]),
        version=st.sampled_from([wire.VERSION, wire.VERSION, 2]),
        kind=st.sampled_from([*wire.KINDS, 99]),
        number=NUMBERS,
    )
    def malformed(self, peer: bytes, version: int, kind: int, number: int) -> None:
        heading = None if peer == EVERYONE else wire.Heading(version, kind, number)
        self.core.receive(peer, Malformed("garbage", heading), self.now)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.11, 0.5, 2.0, 20.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def whatever_is_sent_can_be_read(self) -> None:
        self.core.tick(self.now)
        for to, message in self.core.take_outbox():
            if isinstance(message, wire.Refuse):
                message.version = wire.VERSION  # in another one it is for others to read
            frame, payload = wire.encode(message)
            wire.decode(frame, payload, header_bytes_max=wire.STREAM_BYTES_MAX)
            if to in PEERS:
                self.sent.append((to, message))
                if isinstance(message, wire.Call):
                    self.handed.append((to, message.number))
        del self.sent[:-100]

    @invariant()
    def no_table_is_larger_than_its_limit(self) -> None:
        core = self.core
        here = core.sessions.by_address
        assert len(here) <= SESSIONS_MAX
        for session in here.values():
            assert len(session.open) <= OPEN_MAX
            assert len(session.in_flight) <= CREDIT_MAX
            assert set(session.waiting) <= set(core.registry.providers)
        for queue in core._calls._queues._queues.values():
            assert 0 < len(queue) <= QUEUE_MAX
        assert max(core._calls._queues._bytes.values()) <= QUEUED_BYTES_MAX
        assert core._calls._outcomes._kept_bytes <= 150
        assert len(core._calls._deadlines) <= SESSIONS_MAX * OPEN_MAX
        assert set(core._calls._choice._turns) <= set(core.registry.providers)
        assert core.registry.provider_rows <= ROWS_MAX
        assert all(len(offered) <= OFFERS_MAX for offered in core.registry.offered.values())
        assert len(core.registry.history._deltas) <= HISTORY_MAX
        assert len(core.registry.workers) <= SESSIONS_MAX
        assert len(core._draining._sessions) <= SESSIONS_MAX
        assert len(core._attendance._liveness._checks) == len(here)

    @invariant()
    def whoever_is_owed_something_is_here(self) -> None:
        parts, here = self.core._answers, set(self.core.sessions.by_address.values())
        owed: list[Iterable[Session]] = [
            parts._line,
            parts._snapshots,
            parts._progress._orders,
            parts._invited,
            parts._gathered,
        ]
        assert all(set(table) <= here for table in owed)
        assert set(parts._receipts.values()) == set(parts._invited)
        assert set(parts._progress._orders) == {session for session in here if session.answer is not None}
        for session in here:
            if session.answer is not None:
                assert session.answer.unacknowledged <= wire.PARTS_OPEN_MAX


TestAnyMessages = pytest.mark.slow(AnyMessages.TestCase)
TestAnyMessages.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
