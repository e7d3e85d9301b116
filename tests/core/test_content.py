"""The rows that a replica holds: when a whole worker leaves at once, what is left is as if its rows had gone singly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iii_zmq import wire
from iii_zmq.core.worker.content import Applied, Content, Step, read_step
from iii_zmq.errors import ProtocolError
from iii_zmq.wire import RowKey
from tests.core.truth import Truth, key_of, offer, worker


@pytest.fixture
def truth() -> Truth:
    """Workers a, b and c offer f; a offers g too, and h alone."""
    truth = Truth()
    truth.change(
        *map(worker, "abc"), offer("a", "f"), offer("b", "f"), offer("c", "f"), offer("a", "g"), offer("b", "g"),
        offer("a", "h"),
    )  # fmt: skip
    return truth


def content_of(truth: Truth) -> Content:
    content = Content()
    content.load(truth.rows.values())
    return content


def step(truth: Truth, *puts: wire.Row, drops: list[RowKey]) -> Step:
    return read_step(truth.change(*puts, drops=drops, reason="bye"))


def rows(content: Content) -> dict[RowKey, bytes]:
    return dict(content.items())


def holders(content: Content) -> dict[str, list[str]]:
    return {function_id: content.holders(function_id) for function_id in content.function_ids()}


def dropped(applied: Applied | None) -> list[RowKey]:
    assert applied is not None
    edits, leave = applied
    keys = [key for key, _, after in edits if after is None]
    return keys if leave is None else keys + [(leave.worker_id, name) for name in (*leave.offers, "")]


ALL_OF_A: list[RowKey] = [("a", "f"), ("a", "g"), ("a", "h"), ("a", "")]


def test_a_worker_that_leaves_at_once_is_taken_from_what_others_offer_too(truth: Truth) -> None:
    content = content_of(truth)
    assert dropped(content.apply(step(truth, drops=ALL_OF_A))) == ALL_OF_A
    assert (rows(content), content.digest) == (truth.rows, truth.digest())
    assert holders(content) == {"f": ["b", "c"], "g": ["b"]}


def test_the_last_of_several_providers_takes_the_function_along(truth: Truth) -> None:
    content = content_of(truth)
    for worker_id, drops in {
        "a": ALL_OF_A,
        "b": [("b", "f"), ("b", "g"), ("b", "")],
        "c": [("c", "f"), ("c", "")],
    }.items():
        content.apply(step(truth, drops=drops))
        assert worker_id not in content.worker_ids()
    assert (rows(content), holders(content), content.total) == ({}, {}, 0)


@pytest.mark.parametrize(
    "drops",
    [
        [("a", "f"), ("a", "g"), ("a", "")],
        [("b", "f"), ("a", "f"), ("a", "g"), ("a", "")],
        [("b", "f"), *ALL_OF_A],
    ],
    ids=["h stays", "b's in place of one", "b's besides"],
)
def test_a_delta_that_drops_less_or_more_than_one_whole_worker_does_just_that(
    truth: Truth, drops: list[RowKey]
) -> None:
    content = content_of(truth)
    assert dropped(content.apply(step(truth, drops=drops))) == drops
    assert (rows(content), content.digest) == (truth.rows, truth.digest())


def test_a_row_put_for_the_worker_that_leaves_stays(truth: Truth) -> None:
    content, new = content_of(truth), offer("a", "new")
    content.apply(step(truth, new, drops=ALL_OF_A))
    assert rows(content)[key_of(new)] == wire.encode_row(new)
    assert (rows(content), content.digest) == (truth.rows, truth.digest())


def test_a_row_that_is_dropped_twice_is_counted_once(truth: Truth) -> None:
    content = content_of(truth)
    data = truth.change(drops=[("a", "f"), ("a", "g"), ("a", "")], reason="bye")
    delta = wire.decode_delta(data)
    content.apply(read_step(wire.encode_delta(replace(delta, drops=(("a", "f"), *delta.drops)))))
    assert (rows(content), content.digest) == (truth.rows, truth.digest())


def test_what_others_put_in_the_delta_of_a_leaver_is_there(truth: Truth) -> None:
    content, promoted = content_of(truth), offer("b", "h")
    content.apply(step(truth, promoted, drops=ALL_OF_A))
    assert holders(content) == {"f": ["b", "c"], "g": ["b"], "h": ["b"]}
    assert (rows(content), content.digest) == (truth.rows, truth.digest())


@pytest.mark.parametrize("drops", [ALL_OF_A, [("a", "h")]], ids=["a whole worker", "one row"])
def test_a_delta_with_another_digest_changes_nothing(truth: Truth, drops: list[RowKey]) -> None:
    content = content_of(truth)
    before, held, total = rows(content), holders(content), content.total
    good = step(truth, drops=drops)
    assert content.apply(replace(good, digest=bytes(wire.DIGEST_BYTES))) is None
    assert (rows(content), holders(content), content.total) == (before, held, total)


def test_the_names_in_the_delta_of_a_leaver_are_not_read(truth: Truth) -> None:
    content = content_of(truth)
    delta = wire.delta_fields(truth.change(drops=ALL_OF_A, reason="died"))
    content.apply(read_step(wire.pack([*delta[:4], b"\xc1", "a"])))
    assert (rows(content), content.digest) == (truth.rows, truth.digest())


def test_a_leaver_that_is_not_here_changes_nothing(truth: Truth) -> None:
    content, before = content_of(truth), truth.rows
    stranger = Step(9, truth.digest(), "died", {}, {}, (), "nobody", 0)
    assert content.apply(stranger) is None
    assert rows(content) == before


def test_a_delta_that_puts_a_row_of_its_leaver_is_refused() -> None:
    row = wire.encode_row(offer("a", "f"))
    delta = wire.Delta(1, bytes(wire.DIGEST_BYTES), "died", (row,), (("a", ""),), "a")
    with pytest.raises(ProtocolError, match="puts a row of 'a' and says that this worker left"):
        read_step(wire.encode_delta(delta))


def views(content: Content) -> dict[str, object]:
    """All that others read."""
    ids = content.function_ids()
    return {
        "workers": content.worker_ids(),
        "functions": {function_id: content.holders(function_id) for function_id in ids},
        "counts": {function_id: content.holder_count(function_id) for function_id in "fgh"},
        "offered": {function_id: content.is_offered(function_id) for function_id in "fgh"},
        "count": content.function_count(),
    }


@pytest.mark.parametrize("leavers", ["a", "ab", "abc", "c"])
def test_who_left_is_seen_no_more_before_and_after_its_functions_are_forgotten(truth: Truth, leavers: str) -> None:
    content = content_of(truth)
    for leaver in leavers:
        gone = [key for key in truth.rows if key[0] == leaver]
        content.apply(step(truth, drops=[*[key for key in gone if key[1]], (leaver, "")]))
    expected = views(content_of(truth))
    assert views(content) == expected
    content.tidy()
    assert views(content) == expected
    assert (content._gone, set(content._holders)) == ({}, set(content.function_ids()))
    assert content._several == sum(isinstance(holder, dict) for holder in content._holders.values())


def test_what_comes_after_a_leave_finds_nothing_of_it(truth: Truth) -> None:
    """The same id again, which no broker gives, and the same functions."""
    content = content_of(truth)
    content.apply(step(truth, drops=ALL_OF_A))
    content.apply(read_step(truth.change(worker("a"), offer("a", "g"), offer("c", "h"))))
    assert views(content) == views(content_of(truth))
    content.tidy()
    assert views(content) == views(content_of(truth))


def test_others_are_counted_without_those_who_left_in_the_same_message(truth: Truth) -> None:
    content = content_of(truth)
    content.apply(step(truth, drops=ALL_OF_A))
    applied = content.apply(step(truth, drops=[("b", "f"), ("b", "g"), ("b", "")]))
    assert applied is not None
    assert applied.leave is not None
    assert content.others(applied.leave) == {"f": 1}
