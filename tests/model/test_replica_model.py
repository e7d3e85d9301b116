"""A replica on a bad network, against an obvious twin that keeps every content that the broker ever had.

The stream loses, repeats and reorders its messages; answers come in parts, of which some are lost, repeated or old; the
broker restarts; bytes are wrong, on the way or in the replica itself. At every step the replica must show content that
the broker had at the replica's position, and what it told must be exactly what led there.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iii_zmq import wire
from iii_zmq.core.worker.changes import Change
from iii_zmq.core.worker.content import read_step
from iii_zmq.core.worker.replica import Position, Replica
from iii_zmq.errors import ProtocolError
from tests.core.truth import Rows, Truth, digest_of, offer, worker

HISTORY_MAX = 4  # deltas that the broker still holds for those who resume
HELD_MAX = 5

WORKERS = st.sampled_from(["a", "b", "c"])
FUNCTIONS = st.sampled_from(["", "f", "g"])  # "" is the worker's own row
VARIANTS = st.sampled_from([0, 0, 1, 2, 3, 4])  # 0 drops the row
EDITS = st.lists(st.tuples(WORKERS, FUNCTIONS, VARIANTS), min_size=1, max_size=5)
WHICH = st.integers(0, 30)  # picks from what is on its way
ORDER = [
    "reset", "worker_joined", "function_added", "function_changed", "function_removed", "worker_changed", "worker_left",
]  # fmt: skip

Part = wire.Snapshot | wire.Replay
Told = tuple[str, str | None, str, str | None, str | None, int | None]


def row_of(worker_id: str, function_id: str, variant: int) -> wire.Row:
    if not function_id:
        return worker(worker_id, [wire.READY, wire.STALLED, wire.DRAINING][variant % 3], version=variant)
    return offer(worker_id, function_id, f"version {variant}", active=variant % 2 == 0)


def differences(before: Rows, after: Rows, reason: str | None) -> list[Told]:
    """What a user is to be told when `before` became `after`, in no order."""
    told: list[Told] = []
    for worker_id, function_id in before.keys() | after.keys():
        key = (worker_id, function_id)
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        verb = ("added" if function_id else "joined") if old is None else "changed"
        if new is None:
            verb = "removed" if function_id else "left"
        has_name = (worker_id, "") in before or (worker_id, "") in after
        providers = sum(1 for _, name in after if name == function_id) if function_id else None
        told.append((
            f"{'function' if function_id else 'worker'}_{verb}",
            function_id or None,
            worker_id,
            worker_id.upper() if has_name else None,
            reason if new is None else None,
            providers,
        ))  # fmt: skip
    return told


def fields(change: Change) -> Told:
    assert change.worker_id is not None
    return (
        change.kind, change.function_id, change.worker_id, change.worker_name, change.reason, change.providers
    )  # fmt: skip


class ReplicaOnABadNetwork(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth("e0")
        self.truths = {"e0": self.truth}
        self.replica = Replica(held_max=HELD_MAX)
        self.stream: list[wire.Deltas | wire.Beacon] = []
        self.parts: list[Part] = []
        self.old_parts: list[Part] = []
        self.number = 0
        self.is_corrupt = False  # the replica's own content was tampered with
        self.told_at: Position | None = None  # None until the replica was complete
        self.seen: dict[str, int] = {}  # the newest seq that came to the replica, by epoch
        self.thrown_away_at = 0  # the number of the last question before stream messages were thrown away

    @initialize(edits=EDITS, is_joined=st.booleans())
    def start(self, edits: list[tuple[str, str, int]], is_joined: bool) -> None:
        self.change(edits, "", is_heard=False)
        if is_joined:
            self.ask(age=0, size=4, broadcast=False, is_whole=True)

    # -- the registry changes ------------------------------------------------------------------------------------------

    @rule(
        edits=EDITS,
        reason=st.sampled_from(["", "died", "unregistered"]),
        is_heard=st.booleans(),
    )
    def change(self, edits: list[tuple[str, str, int]], reason: str, is_heard: bool) -> None:
        """Variant 0 drops the row, or the worker with all it offers; its own row then comes last, as from a broker."""
        puts = {(worker_id, name): row_of(worker_id, name, variant) for worker_id, name, variant in edits if variant}
        goes = {(worker_id, name) for worker_id, name, variant in edits if not variant}
        drops = [key for key in self.truth.rows if (key in goes or (key[0], "") in goes) and key not in puts]
        drops.sort(key=lambda key: not key[1])
        news = [row for key, row in puts.items() if self.truth.rows.get(key) != wire.encode_row(row)]
        if news or drops:
            self.truth.change(*news, drops=drops, reason=reason)
            if is_heard:
                self.receive(self.truth.message())
            else:
                self.stream.append(self.truth.message())

    @rule(count=st.integers(1, 3))
    def publish_together(self, count: int) -> None:
        """The last changes once more, in one message."""
        first = max(1, self.truth.seq - count)
        if self.truth.seq:
            self.stream.append(self.truth.message(*range(first, self.truth.seq + 1)))

    @rule()
    def quiet(self) -> None:
        self.stream.append(self.truth.beacon())

    @precondition(lambda self: len(self.truths) < 4)
    @rule()
    def broker_restarts(self) -> None:
        self.truth = Truth(f"e{len(self.truths)}")
        self.truths[self.truth.epoch] = self.truth

    # -- the stream ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.stream)
    @rule(which=st.just(0) | WHICH, fate=st.sampled_from(["arrives", "arrives", "arrives and comes again", "is lost"]))
    def on_its_way(self, which: int, fate: str) -> None:
        at = which % len(self.stream)
        message = self.stream[at] if fate == "arrives and comes again" else self.stream.pop(at)
        if fate != "is lost":
            self.receive(message)

    @precondition(lambda self: self.stream)
    @rule(which=WHICH, cut=st.integers(0, 200))
    def is_damaged(self, which: int, cut: int) -> None:
        """A delta that was cut off, or one with another digest: neither may be applied."""
        message = copy.deepcopy(self.stream.pop(which % len(self.stream)))
        if isinstance(message, wire.Deltas):
            delta = message.deltas[-1]
            wrong = wire.encode_delta(replace(wire.decode_delta(delta), digest=bytes(16)))
            message.deltas[-1] = delta[:cut] if cut < len(delta) else wrong
            self.receive(message, is_damaged=True)

    @rule()
    def too_much_waits_unread(self) -> None:
        self.stream.clear()
        self.replica.discard()
        self.thrown_away_at = self.number

    # -- answers -------------------------------------------------------------------------------------------------------

    @rule(age=st.integers(0, 3), size=st.integers(1, 4), broadcast=st.booleans(), is_whole=st.booleans())
    def ask(self, age: int, size: int, broadcast: bool, is_whole: bool) -> None:
        self.old_parts = self.parts or self.old_parts
        self.number += 1
        epoch, seq = self.replica.sync_position()
        self.replica.expect(self.number)
        number = self.number
        if broadcast:
            number += 1000
            self.replica.invited(number)
        self.parts = self.answer(number, epoch, seq, age, size)
        while is_whole and self.parts:
            self.receive(self.parts.pop(0))

    @precondition(lambda self: self.parts)
    @rule(which=WHICH, fate=st.sampled_from(["arrives", "arrives", "arrives and comes again", "is lost"]))
    def next_part(self, which: int, fate: str) -> None:
        if fate == "is lost":
            self.parts.pop(which % len(self.parts))
        else:
            self.receive(self.parts[0] if fate == "arrives and comes again" else self.parts.pop(0))

    @precondition(lambda self: self.old_parts)
    @rule(which=WHICH)
    def part_of_an_old_answer(self, which: int) -> None:
        self.receive(self.old_parts[which % len(self.old_parts)])

    @precondition(lambda self: self.parts)
    @rule(cut=st.integers(0, 80), how=st.sampled_from(["cut", "digest", "last"]))
    def damaged_part(self, cut: int, how: str) -> None:
        """Only what can be told from a part: that a broker lies about its own position, or ends too soon, can't be."""
        part = copy.deepcopy(self.parts.pop(0))
        items = part.rows if isinstance(part, wire.Snapshot) else part.deltas
        if isinstance(part, wire.Snapshot) and how == "last":
            part.last = True
        elif isinstance(part, wire.Snapshot) and how == "digest":
            part.digest = bytes(16)
        elif items:
            items[-1] = items[-1][:cut]
        self.receive(part)

    # -- the replica itself --------------------------------------------------------------------------------------------

    @rule(worker_id=WORKERS, function_id=FUNCTIONS, variant=st.integers(5, 7))
    def tamper(self, worker_id: str, function_id: str, variant: int) -> None:
        """Puts a row there that the broker never had."""
        row = wire.encode_row(row_of(worker_id, function_id, variant))
        rows = dict(self.replica._content.items())
        rows[worker_id, function_id] = row
        delta = wire.encode_delta(wire.Delta(1, digest_of(rows.values()), "", (row,), ()))
        assert self.replica._content.apply(read_step(delta)) is not None
        self.is_corrupt = True

    # -- what must hold ------------------------------------------------------------------------------------------------

    @rule()
    def the_newest_beacon_finds_whatever_is_wrong(self) -> None:
        self.receive(self.truth.beacon())
        if self.replica.complete and self.replica.wanted is None:
            assert self.replica.position == (self.truth.epoch, self.truth.seq)
            assert dict(self.replica._content.items()) == self.truth.rows

    @invariant()
    def it_shows_what_the_broker_had_at_this_position(self) -> None:
        rows = dict(self.replica._content.items())
        assert self.replica.digest == digest_of(rows.values())
        if not self.is_corrupt:
            assert rows == self.truth_at(self.replica.position)
        assert set(self.replica.workers) == {worker_id for worker_id, name in rows if not name}
        offers = sorted((name, worker_id) for worker_id, name in rows if name)
        for function_id, function in self.replica.functions.items():
            holders = sorted(provider.worker_id for provider in function.providers)
            assert holders == [worker_id for name, worker_id in offers if name == function_id]
            assert self.replica.provider_count(function_id) == len(holders)
        assert set(self.replica.functions) == {name for name, _ in offers}
        for worker_id, info in self.replica.workers.items():
            assert sorted(info.functions) == [name for name, owner in offers if owner == worker_id]

    @invariant()
    def nothing_is_kept_of_who_left(self) -> None:
        content = self.replica._content
        owners = {worker_id for (worker_id, _), _ in content.items()}
        assert set(content._offers) == set(content._ids) == set(content._shares) == owners
        assert all(
            share == sum(wire.row_hash(row) for (worker_id, _), row in content.items() if worker_id == owner)
            for owner, share in content._shares.items()
        )

    @invariant()
    def it_is_complete_only_when_it_has_seen_nothing_to_the_contrary(self) -> None:
        if self.replica.complete:
            epoch, seq = self.replica.position
            assert self.replica.wanted is None
            assert seq >= self.seen.get(epoch, 0)
            assert not self.thrown_away_at or self.number > self.thrown_away_at

    @invariant()
    def what_it_holds_back_is_bounded(self) -> None:
        assert len(self.replica._held._steps) <= HELD_MAX
        assert self.replica._held._bytes == sum(step.size for step in self.replica._held._steps.values())

    def teardown(self) -> None:
        """On a good network again, two questions are always enough: one for a snapshot may turn out to be needed."""
        for _ in range(2):
            self.ask(age=0, size=3, broadcast=False, is_whole=True)
            self.receive(self.truth.beacon())
            if self.replica.complete:
                break
        assert self.replica.complete
        assert self.replica.position == (self.truth.epoch, self.truth.seq)
        assert dict(self.replica._content.items()) == self.truth.rows

    # -- private -------------------------------------------------------------------------------------------------------

    def truth_at(self, position: Position) -> Rows:
        return self.truths[position.epoch].past[position.seq] if position.epoch else {}

    def answer(self, number: int, epoch: str, seq: int, age: int, size: int) -> list[Part]:
        """As the broker would: the missing deltas while it holds them, else a snapshot of `age` changes ago."""
        truth = self.truth
        rows: list[wire.Snapshot] = []
        if epoch != truth.epoch or truth.seq - seq > HISTORY_MAX:
            seq = max(0, truth.seq - age)
            rows = truth.rows_parts(number, seq=seq, size=size)
        deltas = truth.deltas[seq + 1 :]
        chunks = [deltas[at : at + size] for at in range(0, len(deltas), size)] or [[]]
        replays = [
            wire.Replay(number, truth.epoch, len(rows) + at, at == len(chunks) - 1, chunk)
            for at, chunk in enumerate(chunks)
        ]
        return [*rows, *replays]

    def receive(self, message: wire.Deltas | wire.Beacon | Part, *, is_damaged: bool = False) -> None:
        is_well = self.replica.complete and not self.is_corrupt and not is_damaged
        before, was_at = dict(self.replica._content.items()), self.replica.position
        try:
            changes = self.feed(message)
        except ProtocolError:
            changes = []
        at = self.replica.position
        assert at.epoch != was_at.epoch or at.seq >= was_at.seq, "the position went backwards"
        if is_well and isinstance(message, wire.Deltas) and message.epoch == at.epoch:
            seqs = [wire.decode_delta(delta).seq for delta in message.deltas]
            assert seqs[0] > was_at.seq + 1 or at.seq == max(was_at.seq, seqs[-1]), "a delta was not applied"
        if self.is_corrupt:  # a snapshot repairs, and so does a delta that overwrites the wrong row
            self.is_corrupt = dict(self.replica._content.items()) != self.truth_at(at)
        if self.told_at is not None:
            self.check_changes(changes, before, was_at)
        else:
            assert not changes
            self.told_at = at if self.replica.complete else None

    def feed(self, message: wire.Deltas | wire.Beacon | Part) -> list[Change]:
        message = copy.deepcopy(message)
        match message:
            case wire.Deltas():
                changes = self.replica.on_deltas(message)
                newest = max(wire.decode_delta(delta).seq for delta in message.deltas)
                self.seen[message.epoch] = max(self.seen.get(message.epoch, 0), newest)
                return changes
            case wire.Beacon():
                return self.replica.on_beacon(message)
            case wire.Snapshot():
                return self.replica.on_snapshot(message)
            case wire.Replay():
                return self.replica.on_replay(message)

    def check_changes(self, changes: list[Change], before: Rows, at: Position) -> None:
        """From position to position, each as the twin's contents differ, and up to where the replica is now."""
        for (epoch, seq), group in groupby(changes, lambda change: (change.epoch, change.seq)):
            some = list(group)
            after = self.truths[epoch].past[seq]
            reason = None
            if some[0].kind == "reset":
                del some[0]
            else:
                assert (epoch, seq) == (at.epoch, at.seq + 1), "a change was skipped, doubled or invented"
                reason = wire.decode_delta(self.truths[epoch].deltas[seq]).reason or None
            assert [ORDER.index(change.kind) for change in some] == sorted(ORDER.index(change.kind) for change in some)
            assert sorted(map(str, map(fields, some))) == sorted(map(str, differences(before, after, reason)))
            before, at = after, Position(epoch, seq)
        assert at == self.replica.position


TestReplicaOnABadNetwork = pytest.mark.slow(ReplicaOnABadNetwork.TestCase)
TestReplicaOnABadNetwork.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
