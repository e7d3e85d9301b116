"""Moments at which something is due: a heap with lazy deletion, one entry a key. It knows no clock.

Invariant: a key is due at the moment of the pair whose order is `_orders[key]`; other pairs of the key are stale and
skipped. (Comparing moments instead would take two pairs of one key and one moment both for living, and a rebuild
would never get rid of them.)
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

STALE_MAX: Final = 1024  # stale pairs beyond twice the living ones: then the heap is built anew


def whole_ms(left_s: float) -> int:
    """What is left, as it is told to others: rounded up, lest a nested call's deadline comes before its caller's."""
    return max(0, ceil(left_s * 1000))


class Alarm:
    """The moment before which none of the tables that share it has anything to do: at times early, never late.

    So a turn in which nothing is due costs one comparison, however many tables there are.
    """

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = 0.0

    def no_later_than(self, at: float) -> None:
        if at < self.at:
            self.at = at


class Deadlines(Generic[K]):
    """`set` and `cancel` in O(log n); the next moment in O(1). A stale pair keeps its key alive until it is skipped."""

    def __init__(self, alarm: Alarm | None = None) -> None:
        self._alarm = alarm or Alarm()
        self._orders: dict[K, int] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0  # equal moments come out in the order they were set; keys need no order of their own

    def __len__(self) -> int:
        return len(self._orders)

    def set(self, key: K, at: float) -> None:
        """`key` is due at `at`, whatever was set before."""
        self._order += 1
        self._orders[key] = self._order
        heappush(self._heap, (at, self._order, key))
        if at < self._alarm.at:
            self._alarm.at = at
        if len(self._heap) > 2 * len(self._orders) + STALE_MAX:
            self._rebuild()

    def cancel(self, key: K) -> None:
        """`key` is due no more; nothing happens when it was not."""
        self._orders.pop(key, None)

    def next(self) -> float | None:
        """When the earliest key is due."""
        self._skip_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> K | None:
        """Forgets and returns a key that is due at `now`, the earliest first."""
        self._skip_stale()
        if not self._heap or self._heap[0][0] > now:
            return None
        key = heappop(self._heap)[2]
        del self._orders[key]
        return key

    def _skip_stale(self) -> None:
        heap, orders = self._heap, self._orders
        while heap and orders.get(heap[0][2]) != heap[0][1]:
            heappop(heap)

    def _rebuild(self) -> None:
        self._heap = [pair for pair in self._heap if self._orders.get(pair[2]) == pair[1]]
        heapify(self._heap)
