"""A worker's copy of the registry: what it applies, what it refuses, what it asks for, what it tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from iii_zmq import wire
from iii_zmq.core.worker.changes import Change
from iii_zmq.core.worker.replica import Position, Replica
from iii_zmq.errors import ProtocolError
from tests.core.truth import Truth, digest_of, offer, worker

Part = wire.Snapshot | wire.Replay


def give(replica: Replica, parts: Iterable[Part]) -> list[Change]:
    changes = []
    for part in parts:
        changes += replica.on_snapshot(part) if isinstance(part, wire.Snapshot) else replica.on_replay(part)
    return changes


def joined(truth: Truth, **options: Any) -> Replica:
    """A replica that is where the truth is."""
    replica = Replica(**options)
    replica.expect(1)
    give(replica, truth.snapshot(1))
    assert replica.complete
    return replica


def kinds(changes: list[Change]) -> list[tuple[str, str | None, str | None]]:
    return [(change.kind, change.worker_id, change.function_id) for change in changes]


def is_at(replica: Replica, truth: Truth) -> bool:
    return replica.position == (truth.epoch, truth.seq) and replica.digest == truth.digest()


@pytest.fixture
def truth() -> Truth:
    """Worker a offers f and g, worker b offers f."""
    truth = Truth()
    truth.change(worker("a"))
    truth.change(offer("a", "f"), offer("a", "g"))
    truth.change(worker("b"))
    truth.change(offer("b", "f"))
    return truth


# -- before anything is known ------------------------------------------------------------------------------------------


def test_a_new_replica_is_nowhere_and_asks_for_everything() -> None:
    replica = Replica()
    assert replica.position == Position("", 0) == replica.sync_position()
    assert (replica.complete, replica.wanted, replica.resumed) == (False, None, None)
    assert (dict(replica.functions), dict(replica.workers), replica.digest) == ({}, {}, bytes(16))


def test_a_beacon_before_the_first_answer_says_nothing(truth: Truth) -> None:
    replica = Replica()
    assert replica.on_beacon(truth.beacon()) == []
    assert replica.wanted is None


# -- the first answer --------------------------------------------------------------------------------------------------


def test_a_snapshot_in_parts_completes_the_replica_with_the_last_replay_part(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    *parts, last = truth.snapshot(1, size=2)
    give(replica, parts)
    assert not replica.complete
    give(replica, [last])
    assert replica.complete
    assert is_at(replica, truth)
    assert replica.resumed is False


def test_an_empty_registry_is_a_complete_one_too() -> None:
    replica = joined(Truth())
    assert replica.position == Position("e", 0)


def test_the_first_snapshot_and_what_was_held_back_for_it_tell_no_changes(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    parts = truth.snapshot(1)
    truth.change(offer("b", "h"))
    assert replica.on_deltas(truth.message()) == []
    assert give(replica, parts) == []
    assert is_at(replica, truth)
    truth.change(offer("b", "i"))
    assert kinds(replica.on_deltas(truth.message())) == [("function_added", "b", "i")]


def test_rows_are_not_shown_before_their_last_part(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    give(replica, truth.rows_parts(1, size=2)[:-1])
    assert (len(replica.functions), replica.position) == (0, ("", 0))


def test_an_older_snapshot_is_brought_up_to_date_by_the_deltas_behind_it(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    assert give(replica, truth.snapshot(1, seq=2)) == []
    assert is_at(replica, truth)
    assert replica.complete


def test_parts_of_another_answer_are_ignored(truth: Truth) -> None:
    replica = Replica()
    replica.expect(2)
    give(replica, truth.snapshot(1))
    assert (replica.complete, replica.wanted) == (False, None)
    give(replica, truth.snapshot(2))
    assert replica.complete


def test_a_repeated_part_is_ignored(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    give(replica, [part for part in truth.snapshot(1, size=1) for _ in range(2)])
    assert is_at(replica, truth)


def test_a_missing_part_is_a_gap(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    first, _, *rest = truth.snapshot(1, size=1)
    give(replica, [first, *rest])
    assert (replica.complete, replica.wanted) == (False, "gap")


def test_a_second_question_starts_the_answer_anew(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    give(replica, truth.rows_parts(1, size=2)[:1])
    replica.expect(2)
    give(replica, truth.snapshot(2, size=2))
    assert is_at(replica, truth)


def test_an_invited_replica_takes_the_parts_of_the_broadcast(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    give(replica, truth.snapshot(77))
    assert not replica.complete
    replica.invited(77)
    give(replica, truth.snapshot(77))
    assert replica.complete


def test_an_invitation_that_nobody_waits_for_is_ignored(truth: Truth) -> None:
    replica = joined(truth)
    replica.invited(77)
    truth.change(worker("c"))
    give(replica, truth.snapshot(77))
    assert replica.position.seq == truth.seq - 1


# -- the stream --------------------------------------------------------------------------------------------------------


def test_deltas_of_one_message_are_applied_in_their_order(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    truth.change(offer("c", "h"))
    changes = replica.on_deltas(truth.message(truth.seq - 1, truth.seq))
    assert [(change.kind, change.seq) for change in changes] == [("worker_joined", 5), ("function_added", 6)]
    assert is_at(replica, truth)


def test_a_repeated_delta_is_ignored(truth: Truth) -> None:
    replica = joined(truth)
    assert replica.on_deltas(truth.message()) == []
    assert (replica.wanted, replica.counters["stale_ignored"]) == (None, 1)


def test_a_lost_delta_is_a_gap_and_what_follows_is_not_shown(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    truth.change(worker("d"))
    assert replica.on_deltas(truth.message()) == []
    assert (replica.wanted, replica.complete, "d" in replica.workers) == ("gap", False, False)
    assert replica.sync_position() == Position("e", 4)
    assert replica.counters["gaps"] == 1


def test_the_missing_deltas_fill_the_gap_and_what_was_held_back_follows(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    truth.change(worker("d"))
    replica.on_deltas(truth.message())
    replica.expect(2)
    changes = give(replica, [truth.replay(2, 4, until=5)])
    assert kinds(changes) == [("worker_joined", "c", None), ("worker_joined", "d", None)]
    assert (replica.resumed, replica.complete) == (True, True)
    assert is_at(replica, truth)


def test_deltas_that_overtake_the_answer_are_applied_after_it(truth: Truth) -> None:
    replica = joined(truth)
    replica.expect(2)
    answer = truth.replay(2, 4)
    truth.change(worker("c"))
    assert replica.on_deltas(truth.message()) == []
    assert kinds(give(replica, [answer])) == [("worker_joined", "c", None)]


def test_a_delta_that_overtakes_the_answer_twice_is_held_back_once(truth: Truth) -> None:
    replica = joined(truth, held_bytes_max=150)
    replica.expect(2)
    answer = truth.replay(2, 4)
    truth.change(worker("c"))
    for _ in range(5):
        replica.on_deltas(truth.message())
    assert kinds(give(replica, [answer])) == [("worker_joined", "c", None)]
    assert replica.complete


def test_a_hole_behind_the_answer_is_a_gap_again(truth: Truth) -> None:
    replica = joined(truth)
    replica.expect(2)
    answer = truth.replay(2, 4)
    truth.change(worker("c"))
    truth.change(worker("d"))
    replica.on_deltas(truth.message())
    give(replica, [answer])
    assert (replica.wanted, replica.complete) == ("gap", False)


def test_a_late_delta_closes_its_gap_by_itself(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    truth.change(worker("d"))
    replica.on_deltas(truth.message())
    replica.on_deltas(truth.message(5))
    assert is_at(replica, truth)


def test_a_delta_of_another_epoch_asks_for_a_hello(truth: Truth) -> None:
    replica = joined(truth)
    other = Truth("other")
    other.change(worker("x"))
    assert replica.on_deltas(other.message()) == []
    assert (replica.wanted, replica.counters["foreign_epochs"]) == ("epoch", 1)
    assert is_at(replica, truth)


def test_a_malformed_delta_spoils_its_message_before_anything_is_applied(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    with pytest.raises(ProtocolError):
        replica.on_deltas(wire.Deltas(0, "e", [truth.deltas[-1], b"\x93"]))
    assert replica.position.seq == truth.seq - 1


def test_a_malformed_row_spoils_its_message_before_anything_is_applied(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    bad = wire.encode_delta(wire.Delta(6, bytes(16), "", (b"\x90",), ()))
    with pytest.raises(ProtocolError):
        replica.on_deltas(wire.Deltas(0, "e", [truth.deltas[-1], bad]))
    assert replica.position.seq == truth.seq - 1


@pytest.mark.parametrize("drops", [(), (("c", ""),)], ids=["put twice", "put and dropped"])
def test_a_delta_that_names_a_row_twice_is_malformed(truth: Truth, drops: tuple[wire.RowKey, ...]) -> None:
    replica = joined(truth)
    row = wire.encode_row(worker("c"))
    delta = wire.Delta(5, bytes(16), "", (row,) if drops else (row, row), drops)
    with pytest.raises(ProtocolError, match="delta 5 names a row more than once"):
        replica.on_deltas(wire.Deltas(0, "e", [wire.encode_delta(delta)]))


def test_a_row_that_was_dropped_twice_or_never_there_does_no_harm(truth: Truth) -> None:
    replica = joined(truth)
    digest = digest_of(row for key, row in truth.rows.items() if key != ("a", "g"))
    drops = (("a", "g"), ("a", "g"), ("nobody", ""))
    delta = wire.encode_delta(wire.Delta(5, digest, "unregistered", (), drops))
    assert kinds(replica.on_deltas(wire.Deltas(0, "e", [delta]))) == [("function_removed", "a", "g")]


# -- the digest --------------------------------------------------------------------------------------------------------


def test_a_delta_whose_digest_does_not_come_out_right_is_not_applied(truth: Truth) -> None:
    replica = joined(truth)
    wrong = wire.encode_delta(wire.Delta(5, bytes(16), "", (wire.encode_row(worker("c")),), ()))
    assert replica.on_deltas(wire.Deltas(0, "e", [wrong])) == []
    assert is_at(replica, truth)
    assert (replica.wanted, replica.sync_position()) == ("digest", ("", 0))
    assert replica.counters["digest_mismatches"] == 1


def with_a_wrong_entry(truth: Truth) -> Replica:
    """A replica at the truth's position whose worker b has an entry that it never registered."""
    wrong = Truth()
    for seq in range(1, truth.seq):
        wrong.past.append(truth.past[seq])
        wrong.deltas.append(truth.deltas[seq])
    wrong.change(offer("b", "wrong"))
    return joined(wrong)


def test_a_wrong_entry_is_noticed_by_the_beacon_and_repaired_by_a_snapshot(truth: Truth) -> None:
    replica = with_a_wrong_entry(truth)
    assert replica.on_beacon(truth.beacon()) == []
    assert (replica.wanted, replica.sync_position()) == ("digest", ("", 0))
    replica.expect(2)
    changes = give(replica, truth.snapshot(2))
    assert kinds(changes) == [("reset", None, None), ("function_added", "b", "f"), ("function_removed", "b", "wrong")]
    assert is_at(replica, truth)
    assert (replica.complete, replica.wanted, replica.sync_position()) == (True, None, ("e", 4))


def test_a_wrong_entry_is_noticed_by_the_next_delta(truth: Truth) -> None:
    replica = with_a_wrong_entry(truth)
    truth.change(worker("c"))
    replica.on_deltas(truth.message())
    assert (replica.wanted, replica.position.seq) == ("digest", 4)


def test_a_wrong_entry_is_repaired_by_an_older_snapshot_and_the_deltas_since(truth: Truth) -> None:
    replica = with_a_wrong_entry(truth)
    replica.on_beacon(truth.beacon())
    truth.change(worker("c"))
    replica.expect(2)
    changes = give(replica, truth.snapshot(2, seq=1))
    assert [(change.kind, change.seq) for change in changes] == [
        ("reset", 4),
        ("function_added", 4),
        ("function_removed", 4),
        ("worker_joined", 5),
    ]
    assert is_at(replica, truth)


def test_where_a_snapshot_is_needed_deltas_alone_are_not_enough(truth: Truth) -> None:
    replica = with_a_wrong_entry(truth)
    replica.on_beacon(truth.beacon())
    replica.expect(2)
    give(replica, [truth.replay(2, 4)])
    assert (replica.wanted, replica.complete, replica.sync_position()) == ("digest", False, ("", 0))


def test_a_snapshot_with_a_wrong_digest_is_not_shown(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    replica.expect(2)
    (part,) = truth.rows_parts(2)
    part.digest = bytes(16)
    assert give(replica, [part]) == []
    assert (replica.wanted, replica.position.seq) == ("digest", 4)


def test_a_wrong_delta_behind_an_older_snapshot_spoils_the_answer(truth: Truth) -> None:
    replica = joined(truth)
    replica.expect(2)
    parts = truth.rows_parts(2, seq=2)
    wrong = wire.encode_delta(wire.Delta(3, bytes(16), "", (), ()))
    give(replica, [*parts, wire.Replay(2, "e", 1, True, [wrong, *truth.deltas[4:]])])
    assert (replica.wanted, replica.complete) == ("digest", False)
    assert is_at(replica, truth)


# -- beacons -----------------------------------------------------------------------------------------------------------


def test_a_beacon_at_the_same_position_confirms(truth: Truth) -> None:
    replica = joined(truth)
    assert replica.on_beacon(truth.beacon()) == []
    assert (replica.complete, replica.wanted) == (True, None)


def test_a_beacon_ahead_shows_that_the_last_delta_was_lost(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    replica.on_beacon(truth.beacon())
    assert (replica.wanted, replica.sync_position()) == ("gap", ("e", 4))


def test_an_old_beacon_is_ignored(truth: Truth) -> None:
    replica = joined(truth)
    beacon = truth.beacon()
    truth.change(worker("c"))
    replica.on_deltas(truth.message())
    replica.on_beacon(beacon)
    assert (replica.wanted, replica.counters["stale_ignored"]) == (None, 1)


def test_a_beacon_of_another_epoch_asks_for_a_hello(truth: Truth) -> None:
    replica = joined(truth)
    replica.on_beacon(Truth("other").beacon())
    assert replica.wanted == "epoch"


def test_a_beacon_changes_nothing_while_an_answer_is_awaited(truth: Truth) -> None:
    replica = joined(truth)
    replica.expect(2)
    replica.on_beacon(Truth("other").beacon())
    assert replica.wanted is None


def test_the_weightiest_reason_to_ask_stays(truth: Truth) -> None:
    replica = joined(truth)
    replica.on_beacon(Truth("other").beacon())
    truth.change(worker("c"))
    replica.on_beacon(truth.beacon())
    assert replica.wanted == "epoch"
    assert replica.counters["gaps"] == 0


def test_asking_clears_the_reason(truth: Truth) -> None:
    replica = joined(truth)
    replica.on_beacon(Truth("other").beacon())
    replica.expect(2)
    assert (replica.wanted, replica.complete) == (None, False)


# -- later answers -----------------------------------------------------------------------------------------------------


def test_a_replay_in_parts_is_told_delta_by_delta(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    truth.change(offer("c", "h"))
    truth.change(drops=[("c", ""), ("c", "h")], reason="died")
    replica.expect(2)
    parts = [wire.Replay(2, "e", at, at == 2, [truth.deltas[5 + at]]) for at in range(3)]
    assert [(change.kind, change.seq) for change in give(replica, parts)] == [
        ("worker_joined", 5),
        ("function_added", 6),
        ("function_removed", 7),
        ("worker_left", 7),
    ]
    assert replica.resumed is True


def test_an_empty_replay_says_that_nothing_was_missed(truth: Truth) -> None:
    replica = joined(truth)
    replica.expect(2)
    assert give(replica, [truth.replay(2, truth.seq)]) == []
    assert (replica.complete, replica.resumed, replica.counters["resumes"]) == (True, True, 1)


def test_a_replay_with_deltas_that_are_known_gives_the_rest(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    replica.expect(2)
    assert kinds(give(replica, [truth.replay(2, 2)])) == [("worker_joined", "c", None)]


def test_a_replay_that_does_not_follow_the_position_is_a_gap(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"))
    truth.change(worker("d"))
    replica.expect(2)
    assert give(replica, [truth.replay(2, 5)]) == []
    assert (replica.wanted, replica.complete) == ("gap", False)
    assert replica.counters["resumes"] == 0


def test_a_snapshot_that_replaces_content_tells_reset_and_then_the_differences(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("c"), offer("c", "f"))
    truth.change(drops=[("a", ""), ("a", "f"), ("a", "g")], reason="died")
    truth.change(worker("b", wire.STALLED), offer("b", "f", "other"))
    replica.expect(2)
    changes = give(replica, truth.snapshot(2))
    assert kinds(changes) == [
        ("reset", None, None),
        ("worker_joined", "c", None),
        ("function_added", "c", "f"),
        ("function_changed", "b", "f"),
        ("function_removed", "a", "f"),
        ("function_removed", "a", "g"),
        ("worker_changed", "b", None),
        ("worker_left", "a", None),
    ]
    assert {(change.epoch, change.seq, change.reason) for change in changes} == {("e", 7, None)}
    assert (replica.resumed, replica.counters["snapshots"]) == (False, 2)


def test_the_old_content_stays_until_the_new_is_whole(truth: Truth) -> None:
    replica = joined(truth)
    other = Truth("other")
    other.change(worker("x"), worker("y"))
    replica.expect(2)
    first, second, end = other.snapshot(2, size=1)
    assert give(replica, [first]) == []
    assert is_at(replica, truth)
    assert kinds(give(replica, [second]))[0] == ("reset", None, None)
    assert is_at(replica, other)
    assert not replica.complete
    give(replica, [end])
    assert replica.complete


def test_a_restarted_brokers_deltas_that_overtake_its_snapshot_are_kept(truth: Truth) -> None:
    replica = joined(truth)
    replica.expect(2)
    other = Truth("other")
    other.change(worker("x"))
    parts = other.snapshot(2)
    other.change(worker("y"))
    truth.change(worker("z"))
    replica.on_deltas(truth.message())  # a last one of the old broker
    replica.on_deltas(other.message())
    give(replica, parts)
    assert is_at(replica, other)
    assert replica.complete


def test_the_position_never_goes_backwards_within_an_epoch(truth: Truth) -> None:
    replica = joined(truth)
    old = Truth()
    for seq in (1, 2):
        old.past.append(truth.past[seq])
        old.deltas.append(truth.deltas[seq])
    replica.expect(2)
    assert give(replica, old.snapshot(2)) == []
    assert is_at(replica, truth)
    assert (replica.wanted, replica.counters["snapshots_refused"], replica.resumed) == ("gap", 1, False)


@pytest.mark.parametrize("fault", ["row", "twice", "worker twice", "mixed", "early", "late", "epoch", "delta"])
def test_a_malformed_answer_ends_without_a_result_and_asks_for_a_snapshot(truth: Truth, fault: str) -> None:
    replica = joined(truth)
    replica.expect(2)
    parts: list[Part] = list(truth.snapshot(2, size=2))
    match fault:
        case "row":
            parts[0].rows[0] = b"\x90"  # type: ignore[union-attr]
        case "twice":
            parts[1].rows[0] = parts[0].rows[1]  # type: ignore[union-attr]
        case "worker twice":
            parts[1].rows[0] = parts[0].rows[0]  # type: ignore[union-attr]
        case "mixed":
            parts[1].seq += 1  # type: ignore[union-attr]
        case "early":
            parts[1:] = [truth.replay(2, 4, index=1)]
        case "late":
            parts[-1] = wire.Snapshot(2, "e", 4, truth.digest(), len(parts) - 1, True, [])
        case "epoch":
            parts[-1].epoch = "other"
        case "delta":
            parts[-1].deltas.append(b"")  # type: ignore[union-attr]
    with pytest.raises(ProtocolError):
        give(replica, parts)
    assert (replica.wanted, replica.sync_position(), replica.complete) == ("gap", ("", 0), False)
    assert is_at(replica, truth)
    assert replica.counters["broken_answers"] == 1
    replica.expect(3)
    give(replica, truth.snapshot(3))
    assert replica.complete


def test_a_replay_for_a_replica_that_has_nothing_is_malformed(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    with pytest.raises(ProtocolError, match="deltas of epoch 'e' where '' is expected"):
        give(replica, [truth.replay(1, 0)])
    assert replica.wanted == "gap"


def test_a_broken_first_answer_leaves_what_came_to_resume_from_but_tells_nothing(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    give(replica, truth.rows_parts(1, seq=2))
    replica.expect(2)
    assert replica.sync_position() == Position("e", 2)
    assert give(replica, [truth.replay(2, 2)]) == []
    assert (replica.complete, replica.resumed) == (True, True)


# -- limits ------------------------------------------------------------------------------------------------------------


def overrun(truth: Truth, replica: Replica, count: int) -> None:
    """Deltas for the replica, one after the other, the first one lost."""
    for _ in range(count + 1):
        truth.change(worker(f"w{truth.seq}"))
    replica.on_deltas(truth.message(*range(truth.seq - count + 1, truth.seq + 1)))


def test_up_to_the_limit_deltas_are_held_back(truth: Truth) -> None:
    replica = joined(truth, held_max=3)
    overrun(truth, replica, 3)
    assert replica.wanted == "gap"
    replica.expect(2)
    give(replica, [truth.replay(2, 4, until=5)])
    assert is_at(replica, truth)


@pytest.mark.parametrize("limits", [{"held_max": 3}, {"held_bytes_max": 150}], ids=["count", "bytes"])
def test_beyond_the_limit_deltas_are_thrown_away(truth: Truth, limits: dict[str, int]) -> None:
    replica = joined(truth, **limits)
    overrun(truth, replica, 4)
    assert (replica.wanted, replica.counters["overruns"]) == ("overrun", 1)
    replica.expect(2)
    give(replica, [truth.replay(2, 4)])
    assert is_at(replica, truth)
    assert replica.complete


def test_a_snapshot_under_way_goes_on_when_deltas_are_thrown_away_and_then_asks_again(truth: Truth) -> None:
    replica = Replica(held_max=3)
    replica.expect(1)
    first, *rest = truth.snapshot(1, size=2)
    give(replica, [first])
    overrun(truth, replica, 4)
    assert replica.wanted is None
    give(replica, rest)
    assert (replica.wanted, replica.sync_position()) == ("overrun", ("e", 4))
    replica.expect(2)
    give(replica, [truth.replay(2, 4)])
    assert (replica.complete, is_at(replica, truth)) == (True, True)


def test_what_the_shell_threw_away_is_asked_for(truth: Truth) -> None:
    replica = joined(truth)
    replica.discard()
    assert (replica.wanted, replica.complete) == ("overrun", False)


def test_what_the_shell_threw_away_may_have_held_parts_of_a_broadcast(truth: Truth) -> None:
    replica = Replica()
    replica.expect(1)
    replica.invited(77)
    replica.discard()
    assert replica.wanted == "overrun"
    give(replica, truth.snapshot(77))
    assert replica.position == Position("", 0)


# -- what a delta tells ------------------------------------------------------------------------------------------------


def test_a_delta_tells_joining_first_and_leaving_last_all_with_one_seq(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(
        offer("c", "h"),
        worker("b", wire.STALLED),
        offer("b", "f", "other"),
        worker("c"),
        drops=[("a", ""), ("a", "g"), ("a", "f")],
        reason="replaced",
    )
    assert replica.on_deltas(truth.message()) == [
        Change("worker_joined", None, "c", "C", None, "e", 5, None),
        Change("function_added", "h", "c", "C", None, "e", 5, 1),
        Change("function_changed", "f", "b", "B", None, "e", 5, 1),
        Change("function_removed", "f", "a", "A", "replaced", "e", 5, 1),
        Change("function_removed", "g", "a", "A", "replaced", "e", 5, 0),
        Change("worker_changed", None, "b", "B", None, "e", 5, None),
        Change("worker_left", None, "a", "A", "replaced", "e", 5, None),
    ]


def test_a_worker_that_leaves_and_a_drop_of_what_was_never_there_are_two_things(truth: Truth) -> None:
    """The delta has as many drops as the worker has rows, and the last is its own row: but one of them is not its."""
    replica = joined(truth)
    digest = digest_of(row for key, row in truth.rows.items() if key not in {("a", "f"), ("a", "")})
    delta = wire.encode_delta(wire.Delta(5, digest, "died", (), (("a", "f"), ("a", "x"), ("a", ""))))
    changes = replica.on_deltas(wire.Deltas(0, "e", [delta]))
    assert kinds(changes) == [("function_removed", "a", "f"), ("worker_left", "a", None)]
    assert sorted(replica.functions) == ["f", "g"]


def test_a_worker_whose_only_row_was_exchanged_for_another_may_leave(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(offer("c", "x"))
    truth.change(offer("c", "y"), drops=[("c", "x")])
    truth.change(worker("c"))
    truth.change(drops=[("c", "y"), ("c", "")], reason="bye")
    replica.on_deltas(truth.message(5, 6, 7, 8))
    assert is_at(replica, truth)


A_F, A_G, A_ROW = ("a", "f"), ("a", "g"), ("a", "")


@pytest.mark.parametrize(
    "drops",
    [(A_F, A_G, A_ROW), (A_G, A_F, A_ROW), (A_ROW, A_F, A_G)],
    ids=["as the broker names them", "in another order", "the worker first"],
)
def test_a_worker_leaves_with_all_its_rows_and_no_others(truth: Truth, drops: tuple[wire.RowKey, ...]) -> None:
    replica = joined(truth)
    truth.change(drops=drops, reason="died")
    changes = replica.on_deltas(truth.message())
    assert sorted(change[:6] for change in changes) == [
        ("function_removed", "f", "a", "A", "died", "e"),
        ("function_removed", "g", "a", "A", "died", "e"),
        ("worker_left", None, "a", "A", "died", "e"),
    ]
    assert changes[-1].kind == "worker_left"
    assert is_at(replica, truth)
    assert (set(replica.functions), set(replica.workers)) == ({"f"}, {"b"})
    truth.change(worker("a"), offer("a", "g"))
    assert kinds(replica.on_deltas(truth.message())) == [("worker_joined", "a", None), ("function_added", "a", "g")]


@pytest.mark.parametrize(
    ("drops", "puts"),
    [
        ((A_F, A_ROW), ()),
        ((("b", "f"), A_F, A_ROW), ()),
        ((("b", "f"), A_F, A_G, A_ROW), ()),
        ((A_F, A_G, A_ROW), (offer("a", "h"),)),
        ((A_F, A_G, A_ROW), (worker("c"), offer("b", "f", "promoted"))),
    ],
    ids=["not all", "as many of others too", "others too", "a new one comes", "others get new ones"],
)
def test_dropping_a_workers_row_drops_what_the_delta_names_and_no_more(
    truth: Truth, drops: tuple[wire.RowKey, ...], puts: tuple[wire.Row, ...]
) -> None:
    replica = joined(truth)
    truth.change(*puts, drops=drops, reason="died")
    assert len(replica.on_deltas(truth.message())) == len(drops) + len(puts)
    assert is_at(replica, truth)
    offers = {(worker_id, name) for worker_id, name in truth.rows if name}
    shown = {(one.worker_id, name) for name, function in replica.functions.items() for one in function.providers}
    assert shown == offers


def test_a_promotion_is_a_change_of_the_function(truth: Truth) -> None:
    truth.change(offer("a", "x", active=True), offer("b", "x", active=False))
    replica = joined(truth)
    truth.change(offer("b", "x", active=True), drops=[("a", "x")], reason="unregistered")
    assert kinds(replica.on_deltas(truth.message())) == [("function_changed", "b", "x"), ("function_removed", "a", "x")]


def test_a_row_put_as_it_was_is_no_change(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(worker("a"))
    assert replica.on_deltas(truth.message()) == []
    assert is_at(replica, truth)


def test_a_drop_without_a_reason_tells_none(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(drops=[("a", "g")])
    (change,) = replica.on_deltas(truth.message())
    assert change.reason is None


def test_a_function_of_a_worker_without_a_row_has_no_worker_name(truth: Truth) -> None:
    replica = joined(truth)
    truth.change(offer("ghost", "f"))
    (change,) = replica.on_deltas(truth.message())
    assert (change.worker_name, change.providers) == (None, 3)


# -- changes as text and JSON ------------------------------------------------------------------------------------------


def test_a_change_reads_as_a_line_with_its_ids() -> None:
    change = Change("function_removed", "pay::charge", "w-1", "payments", "died", "e", 12, 0)
    assert str(change) == "12 function_removed pay::charge by payments (w-1) [died] providers: 0"
    assert str(Change("worker_left", None, "w-1", None, "bye", "e", 12, None)) == "12 worker_left worker (w-1) [bye]"
    assert str(Change("reset", None, None, None, None, "e", 9, None)) == "9 reset"


def test_a_change_has_exactly_the_documented_json_fields() -> None:
    change = Change("function_added", "f", "w-1", "payments", None, "e", 12, 1)
    assert change.to_json() == {
        "kind": "function_added",
        "function_id": "f",
        "worker_id": "w-1",
        "worker_name": "payments",
        "reason": None,
        "epoch": "e",
        "seq": 12,
        "providers": 1,
    }


# -- nobody listens ----------------------------------------------------------------------------------------------------


def test_where_nobody_listens_changes_are_applied_and_not_named(truth: Truth) -> None:
    heard: list[bool] = []
    replica = joined(truth, is_watched=lambda: bool(heard))
    truth.change(offer("c", "h"))
    assert replica.on_deltas(truth.message()) == []
    assert is_at(replica, truth)
    heard.append(True)
    truth.change(drops=[("c", "h")], reason="unregistered")
    assert kinds(replica.on_deltas(truth.message())) == [("function_removed", "c", "h")]


def test_where_nobody_listens_a_snapshot_is_not_compared(truth: Truth) -> None:
    replica = joined(truth, is_watched=lambda: False)
    truth.change(offer("c", "h"))
    replica.expect(9)
    assert give(replica, truth.snapshot(9)) == []
    assert is_at(replica, truth)
