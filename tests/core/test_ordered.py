"""Ids in order: against a sorted list, with buckets so small that they split and go all the time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_zmq.core.broker import ordered
from iii_zmq.core.broker.ordered import Ordered

IDS = st.text("abc", min_size=1, max_size=3)
STEPS = st.lists(st.tuples(st.booleans(), IDS), max_size=60)


def filled(*ids: str) -> Ordered:
    one = Ordered()
    for each in ids:
        one.add(each)
    return one


@given(STEPS, st.text("abcd", max_size=3), st.integers(0, 10), st.text("abcd", max_size=2))
def test_a_page_is_that_of_a_sorted_list(steps: list[tuple[bool, str]], cursor: str, count: int, prefix: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "BUCKET_MAX", 3)
        one, twin = Ordered(), set()
        for comes, each in steps:
            if comes and each not in twin:
                one.add(each)
                twin.add(each)
            elif not comes and each in twin:
                one.remove(each)
                twin.remove(each)
            assert one.after("", 1000) == sorted(twin)
            assert all(0 < len(bucket) <= 3 for bucket in one._buckets)
            assert one._lasts == [bucket[-1] for bucket in one._buckets]
    behind = [each for each in sorted(twin) if each > cursor and each.startswith(prefix)]
    assert one.after(cursor, count, prefix) == behind[:count]


@given(st.sets(IDS), st.randoms(use_true_random=False))
def test_many_that_go_at_once_leave_what_a_sorted_list_would_keep(ids: set[str], random: Random) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "BUCKET_MAX", 3)
        one = filled(*sorted(ids, key=lambda _: random.random()))
        gone = {each for each in ids if random.random() < 0.5}
        one.remove_all(gone)
        assert one.after("", 1000) == sorted(ids - gone)
        assert one._lasts == [bucket[-1] for bucket in one._buckets]


def test_an_empty_one_has_no_pages() -> None:
    assert filled().after("a", 10) == []


def test_what_has_gone_leaves_nothing_behind() -> None:
    one = filled("b", "a")
    one.remove("a")
    one.remove("b")
    assert (one._buckets, one._lasts) == ([], [])


def test_a_page_goes_on_in_the_next_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered, "BUCKET_MAX", 2)
    assert filled("c", "a", "e", "b", "d").after("a", 3) == ["b", "c", "d"]
