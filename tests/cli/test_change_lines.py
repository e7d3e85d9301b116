"""The past out of bare deltas is what a replica that was there was told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iii_zmq import wire
from iii_zmq.cli.change_lines import Present, leaves_doubt, retell
from iii_zmq.core.worker.changes import Change
from iii_zmq.core.worker.replica import Replica
from tests.core.truth import Rows, Truth, offer, worker

WORKERS = ("w1", "w2", "w3")
FUNCTIONS = ("a::x", "a::y", "b::z")


def test_a_put_is_told_as_new_or_as_changed_by_its_digest() -> None:
    truth = Truth()
    truth.change(worker("w1"))
    truth.change(offer("w1", "a::x"))
    truth.change(offer("w1", "a::x", "described"))
    truth.change(worker("w1", wire.STALLED))
    assert [change.kind for change in _retold(truth, 2)] == ["function_changed", "worker_changed"]


def test_promotions_are_no_news_of_a_function() -> None:
    truth = Truth()
    truth.change(worker("w1"))
    truth.change(worker("w2"))
    truth.change(offer("w1", "a::x"))
    truth.change(offer("w2", "a::x", active=False))
    truth.change(offer("w2", "a::x"), drops=[("w1", "a::x"), ("w1", "")], reason="died")
    told = [(change.kind, change.worker_name, change.reason, change.providers) for change in _retold(truth, 4)]
    assert told == [
        ("function_changed", "W2", None, 1),
        ("function_removed", None, "died", 1),
        ("worker_left", None, "died", None),
    ]


def test_without_a_digest_the_first_put_is_taken_for_new() -> None:
    truth = Truth()
    truth.change(worker("w1"))
    (told,) = retell("e", [wire.decode_delta(truth.deltas[1])], None, Present(1, {"w1": "W1"}, {}))
    assert told == Change("worker_joined", None, "w1", "W1", None, "e", 1, None)


def test_of_who_joined_in_the_stretch_all_rows_are_known() -> None:
    truth = Truth()
    truth.change(worker("w1"))
    truth.change(offer("w1", "a::x"))
    truth.change(offer("w1", "a::x", "described"), offer("w1", "b::z"))
    assert [change.kind for change in _retold(truth, 0)][2:] == ["function_added", "function_changed"]


def test_a_batch_of_new_and_of_replaced_rows_leaves_a_doubt_that_the_whole_history_settles() -> None:
    """Both were told as changed: the digest says that a row was replaced, not which."""
    truth = Truth()
    truth.change(worker("w1"))
    truth.change(offer("w1", "a::x"))
    truth.change(offer("w1", "a::x", "described"), offer("w1", "b::z"))
    deltas = [wire.decode_delta(delta) for delta in truth.deltas[1:]]
    assert leaves_doubt(deltas[2:], truth.digest(2))
    assert not leaves_doubt(deltas, truth.digest(0))
    assert leaves_doubt(deltas[2:], None)
    assert [change.kind for change in _retold(truth, 0) if change.seq > 2] == ["function_added", "function_changed"]


@given(st.data())
def test_the_past_is_retold_as_it_was_heard(data: st.DataObject) -> None:
    truth = Truth()
    heard = _listen(truth, data)
    start = data.draw(st.integers(0, truth.seq))
    present = data.draw(st.integers(start, truth.seq))
    deltas = [wire.decode_delta(delta) for delta in truth.deltas[1:]]
    begun = 0 if leaves_doubt(deltas[start:], truth.digest(start)) else start
    assert not leaves_doubt(deltas[begun:], truth.digest(begun))
    expected = [change for change in heard if change.seq > begun]
    assert _in_order(_retold(truth, begun, present)) == _in_order(_named(expected, truth.past[present]))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _retold(truth: Truth, start: int, at: int | None = None) -> list[Change]:
    at = truth.seq if at is None else at
    rows = [wire.decode_row(row) for row in truth.past[at].values()]
    names = {row.worker_id: row.name for row in rows if isinstance(row, wire.WorkerRow)}
    functions = [row.function_id for row in rows if isinstance(row, wire.ProviderRow)]
    present = Present(at, names, {one: functions.count(one) for one in functions})
    deltas = [wire.decode_delta(delta) for delta in truth.deltas[start + 1 :]]
    return retell(truth.epoch, deltas, truth.digest(start), present)


def _named(changes: list[Change], present: Rows) -> list[Change]:
    """Names are known of who is there at present, and of whoever joined or changed in the stretch."""
    known = {worker_id for worker_id, _ in present}
    known |= {change.worker_id for change in changes if change.kind in ("worker_joined", "worker_changed")}
    return [change if change.worker_id in known else change._replace(worker_name=None) for change in changes]


def _listen(truth: Truth, data: st.DataObject) -> list[Change]:
    """Lets things happen, and returns what a replica that was there from the start was told."""
    replica = Replica()
    replica.expect(1)
    for part in truth.rows_parts(1):
        replica.on_snapshot(part)
    replica.on_replay(truth.replay(1, 0, index=1))
    heard: list[Change] = []
    for _ in range(data.draw(st.integers(0, 12))):
        if _happen(truth, data):
            heard += replica.on_deltas(truth.message())
    assert replica.digest == truth.digest()
    return heard


def _happen(truth: Truth, data: st.DataObject) -> bool:
    """One change of a kind that a registry makes; whether it was possible."""
    worker_id = data.draw(st.sampled_from(WORKERS))
    here = (worker_id, "") in truth.rows
    offered = [key for key in truth.rows if key[0] == worker_id and key[1]]
    if not here:
        truth.change(worker(worker_id))
        return True
    match data.draw(st.sampled_from(("state", "offer", "describe", "both", "withdraw", "leave"))):
        case "state":
            state = data.draw(st.sampled_from(sorted(wire.STATES)))
            row = worker(worker_id, state)
            return truth.rows[worker_id, ""] != wire.encode_row(row) and bool(truth.change(row))
        case "offer":
            free = [one for one in FUNCTIONS if (worker_id, one) not in truth.rows]
            chosen = data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []
            return bool(chosen) and bool(truth.change(*[offer(worker_id, one) for one in chosen]))
        case "describe":
            text = f"version {truth.seq}"
            return bool(offered) and bool(truth.change(offer(worker_id, offered[0][1], text)))
        case "both":  # in one batch
            free = [one for one in FUNCTIONS if (worker_id, one) not in truth.rows]
            again = [offer(worker_id, key[1], f"version {truth.seq}") for key in offered[:1]]
            return bool(free and again) and bool(truth.change(*again, *[offer(worker_id, one) for one in free]))
        case "withdraw":
            return bool(offered) and bool(truth.change(drops=offered[:1], reason="unregistered"))
        case _:
            heirs = [
                offer(key[0], key[1], f"since {truth.seq}") for key in truth.rows if key[1] and key[0] != worker_id
            ]
            return bool(truth.change(*heirs[:1], drops=[*offered, (worker_id, "")], reason="died"))


def _in_order(changes: list[Change]) -> list[Change]:
    """Within one seq the order of changes of one kind is nobody's business."""
    return sorted(changes, key=lambda one: (one.seq, one.kind, one.function_id or "", one.worker_id or ""))
