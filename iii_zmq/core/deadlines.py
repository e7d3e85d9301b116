"""Deadlines by key: a heap with lazy deletion. It knows no clock.

Invariant: a key is due at the moment of the pair whose order is `_orders[key]`; other pairs of the key are stale and
are skipped. (Comparing moments instead would not do: two pairs with the same key and moment would both count as live,
and a rebuild would never remove them.)
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

STALE_MAX: Final = 1024  # beyond twice the live pairs plus this many, the heap is rebuilt


def whole_ms(left_s: float) -> int:
    """The remaining time in ms for others, rounded up so that a nested call never expires before its caller."""
    return max(0, ceil(left_s * 1000))


class Alarm:
    """The moment before which no table that shares it has anything to do: it may be early, never late.

    So a turn in which nothing is due costs one comparison, however many tables there are.
    """

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = 0.0

    def no_later_than(self, at: float) -> None:
        if at < self.at:
            self.at = at


class Deadlines(Generic[K]):
    """`set` and `cancel` take O(log n), `next` O(1). A stale pair keeps its key alive until it is skipped."""

    def __init__(self, alarm: Alarm | None = None) -> None:
        self._alarm = alarm or Alarm()
        self._orders: dict[K, int] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0  # equal moments come out in the order in which they were set; keys need no order

    def __len__(self) -> int:
        return len(self._orders)

    def set(self, key: K, at: float) -> None:
        """Makes `key` due at `at`, whatever was set before."""
        self._order += 1
        self._orders[key] = self._order
        heappush(self._heap, (at, self._order, key))
        if at < self._alarm.at:
            self._alarm.at = at
        if len(self._heap) > 2 * len(self._orders) + STALE_MAX:
            self._heap = [pair for pair in self._heap if self._orders.get(pair[2]) == pair[1]]
            heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Makes `key` no longer due; does nothing if it was not."""
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
