"""Replicas of one process that share what they read: each goes through the same as if it were alone."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.worker import replica as replica_module
from iii_zmq.core.worker import shared as shared_module
from iii_zmq.core.worker.replica import Replica
from iii_zmq.core.worker.shared import SHARED_BYTES_MAX, SHARED_PARTS, Shared
from iii_zmq.errors import ProtocolError
from tests.core.truth import Truth, offer, worker

BEHIND = 300  # deltas; in the storm below each was 100 and more behind


def joined(truth: Truth, shared: Shared) -> Replica:
    replica = Replica(shared=shared)
    replica.expect(1)
    for part in truth.snapshot(1):
        _ = replica.on_snapshot(part) if isinstance(part, wire.Snapshot) else replica.on_replay(part)
    return replica


def copied(message: wire.Deltas) -> wire.Deltas:
    """As another socket hears it: equal bytes, and other objects."""
    return wire.Deltas(0, message.epoch, [bytes(bytearray(delta)) for delta in message.deltas])


@pytest.fixture
def truth() -> Truth:
    truth = Truth()
    truth.change(worker("a"), offer("a", "f"))
    return truth


def test_the_second_replica_reads_and_names_nothing_anew(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared()
    first, second = joined(truth, shared), joined(truth, shared)
    truth.change(worker("b"), offer("b", "f"))
    heard = first.on_deltas(copied(truth.message()))
    for module, name in ((shared_module, "read_step"), (replica_module, "changes_of")):
        monkeypatch.delattr(module, name)
    assert second.on_deltas(copied(truth.message())) == heard != []
    assert (second.position, second.digest) == (first.position, first.digest) == ((truth.epoch, 2), truth.digest())


def test_a_replica_whose_content_is_another_does_not_take_anothers_changes(truth: Truth) -> None:
    """Its content was tampered with: the delta's digest does not come out, and nothing is told."""
    shared = Shared()
    first, second = joined(truth, shared), joined(truth, shared)
    second._content.load([wire.encode_row(worker("wrong"))])
    truth.change(offer("a", "g"))
    assert first.on_deltas(truth.message()) != []
    assert second.on_deltas(truth.message()) == []
    assert second.wanted == "digest"


def test_the_same_delta_in_another_epoch_is_told_with_that_epoch(truth: Truth) -> None:
    shared, other = Shared(), Truth("later")
    other.change(worker("a"), offer("a", "f"))
    for one in (truth, other):
        replica = joined(one, shared)
        one.change(offer("a", "g"))
        (change,) = replica.on_deltas(copied(one.message()))
        assert change.epoch == one.epoch
    assert truth.deltas[-1] == other.deltas[-1]


def test_another_delta_at_the_same_position_is_named_for_itself(truth: Truth) -> None:
    """No two brokers give one epoch; a program with workers at two brokers is not to depend on that."""
    shared, other = Shared(), Truth()
    other.change(worker("a"), offer("a", "f"))
    for one, name in ((truth, "g"), (other, "h")):
        replica = joined(one, shared)
        one.change(offer("a", name))
        (change,) = replica.on_deltas(one.message())
        assert change.function_id == name


def test_a_replica_that_is_a_storm_behind_reads_nothing_anew(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: 1,000 workers joined at once, 100 in each process. Each of them was 100 and more deltas behind when
    its turn came, and read them from the first to the last; only 64 were kept, so that nobody ever found one. Reading
    deltas took more than half of all time, sessions timed out and joined again, and the storm never ended."""
    shared = Shared()
    crowd = [joined(truth, shared) for _ in range(3)]
    for number in range(BEHIND):
        truth.change(offer("a", f"f{number}"))
    seqs = range(2, truth.seq + 1)
    crowd[0].on_deltas(truth.message(*seqs))
    monkeypatch.delattr(shared_module, "read_step")
    for replica in crowd[1:]:
        replica.on_deltas(copied(truth.message(*seqs)))
        assert (replica.position.seq, replica.digest) == (truth.seq, truth.digest())


def test_what_was_given_up_is_read_anew(truth: Truth) -> None:
    shared = Shared(deltas_max=10)
    first, second = joined(truth, shared), joined(truth, shared)
    for number in range(30):
        truth.change(offer("a", f"f{number}"))
    seqs = range(2, truth.seq + 1)
    heard = first.on_deltas(truth.message(*seqs))
    assert second.on_deltas(copied(truth.message(*seqs))) == heard
    assert len(heard) == 30


def test_two_generations_are_kept_and_no_more(truth: Truth) -> None:
    shared = Shared(deltas_max=10)
    _, _ = joined(truth, shared), joined(truth, shared)
    for number in range(35):
        truth.change(offer("a", f"f{number}"))
    steps = {delta: shared.read(delta) for delta in truth.deltas[2:]}
    latest_first = [shared.read(delta) is steps[delta] for delta in reversed(truth.deltas[2:])]
    assert 10 <= latest_first.index(False) <= 20


def test_one_alone_keeps_nothing_for_others(truth: Truth) -> None:
    shared = Shared()
    _ = joined(truth, shared)
    assert shared.read(truth.deltas[1]) is not shared.read(truth.deltas[1])
    row = wire.encode_row(worker("a"))
    assert shared.row(copy := bytes(bytearray(row)))[0] is copy


def test_the_second_replica_reads_no_row_anew_and_holds_the_same_bytes(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared()
    first, second = Replica(shared=shared), Replica(shared=shared)
    for replica in (first, second):
        replica.expect(1)
        for part in truth.snapshot(1):
            if isinstance(part, wire.Snapshot):
                part.rows = [bytes(bytearray(row)) for row in part.rows]
                replica.on_snapshot(part)
            else:
                replica.on_replay(part)
        monkeypatch.setattr(shared_module, "read_row", None)
    assert first.digest == second.digest == truth.digest()
    key = ("a", "f")
    assert first._content.get(key) is second._content.get(key)


def test_rows_of_a_large_snapshot_are_kept_up_to_a_limit(truth: Truth) -> None:
    shared = Shared()
    first, second = Replica(shared=shared), Replica(shared=shared)
    rows = [wire.encode_row(offer("a", f"f{number}")) for number in range(SHARED_PARTS + 2)]
    first.expect(1)
    for index, row in enumerate(rows):
        first.on_snapshot(wire.Snapshot(1, truth.epoch, 1, bytes(16), index, False, [row]))
    assert [shared.row(bytes(bytearray(row)))[0] is row for row in rows] == [True] * SHARED_PARTS + [False] * 2
    assert second is not first


def test_a_large_delta_is_not_kept(truth: Truth) -> None:
    shared = Shared()
    first, second = joined(truth, shared), joined(truth, shared)
    truth.change(*[offer("a", f"function{number:04}") for number in range(1000)])
    assert len(truth.deltas[-1]) > SHARED_BYTES_MAX
    assert first.on_deltas(truth.message()) == second.on_deltas(truth.message()) != []
    assert shared.read(truth.deltas[-1]) is not shared.read(truth.deltas[-1])


def test_a_malformed_delta_is_refused_each_time() -> None:
    shared = Shared()
    for _ in range(2):
        with pytest.raises(ProtocolError):
            shared.read(b"\x90")
