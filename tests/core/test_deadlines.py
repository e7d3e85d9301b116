"""Deadlines: what is due, in which order, and that what is stale doesn't pile up."""

from __future__ import annotations

import pytest

from iii_zmq.core.deadlines import STALE_MAX, Deadlines, whole_ms


def all_due(deadlines: Deadlines[str], now: float) -> list[str]:
    due = []
    while (key := deadlines.pop_due(now)) is not None:
        due.append(key)
    return due


def test_an_empty_table_has_no_next_moment() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert (deadlines.next(), deadlines.pop_due(1e9), len(deadlines)) == (None, None, 0)


def test_what_is_due_comes_out_earliest_first_and_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, at in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        deadlines.set(key, at)
    assert (deadlines.next(), all_due(deadlines, 2.0), deadlines.next()) == (1.0, ["a", "b"], 3.0)


def test_equal_moments_come_out_in_the_order_they_were_set() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key in "bca":
        deadlines.set(key, 1.0)
    assert all_due(deadlines, 1.0) == ["b", "c", "a"]


def test_a_moment_set_again_replaces_the_first() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 5.0)
    assert (all_due(deadlines, 4.0), all_due(deadlines, 5.0)) == ([], ["a"])


def test_a_cancelled_key_is_due_no_more() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.cancel("a")
    deadlines.cancel("never set")
    assert (all_due(deadlines, 9.0), len(deadlines), deadlines.next()) == ([], 0, None)


def test_stale_pairs_are_dropped_once_they_are_many() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for at in range(10 * STALE_MAX):
        deadlines.set("a", float(at))
    assert len(deadlines._heap) <= STALE_MAX + 3


def test_a_key_set_many_times_to_one_moment_leaves_one_living_pair() -> None:
    # A burst of Hellos in one turn sets the same check to the same moment over and over. When stale was told by the
    # moment, all of these pairs counted as living: no rebuild got rid of them, and every further `set` rebuilt again.
    deadlines: Deadlines[str] = Deadlines()
    for _ in range(10 * STALE_MAX):
        deadlines.set("a", 1.0)
    assert len(deadlines._heap) <= STALE_MAX + 3
    assert all_due(deadlines, 1.0) == ["a"]


@pytest.mark.parametrize(("left_s", "told"), [(-1.0, 0), (0.0, 0), (0.0004, 1), (0.2991, 300), (0.3, 300), (2.3, 2300)])
def test_what_is_left_is_told_in_whole_milliseconds_rounded_up(left_s: float, told: int) -> None:
    """Rounded down, a nested call's time was over before its caller's, who was told that the handler had failed."""
    assert whole_ms(left_s) == told
