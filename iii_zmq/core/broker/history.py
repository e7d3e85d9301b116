"""The latest deltas of the registry, packed as published, for workers that resume and for the stream.

Invariant: `_deltas` holds the deltas up to the latest without a hole, so that a seq alone locates each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

HISTORY_MAX = 32_768  # deltas kept: half a minute of 1,000 changes a second
HISTORY_BYTES_MAX = 64 * 1024 * 1024


class History:
    """Deltas, bounded in number and bytes: the oldest are dropped."""

    def __init__(self, deltas_max: int, bytes_max: int) -> None:
        self.seq = 0  # of the latest delta
        self.bytes_ever = 0  # bytes ever recorded; the difference of two moments is the cost of a replay between them
        self._deltas: deque[bytes] = deque()
        self._deltas_max = deltas_max
        self._bytes = 0
        self._bytes_max = bytes_max
        self.fresh: list[bytes] = []  # the deltas that `take_fresh` returns

    def record(self, delta: bytes) -> None:
        """Adds the next delta."""
        self.seq += 1
        self.fresh.append(delta)
        self._deltas.append(delta)
        self._bytes += len(delta)
        self.bytes_ever += len(delta)
        while len(self._deltas) > self._deltas_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._deltas.popleft())

    def holds(self, seq: int) -> bool:
        """True if `since(seq)` has an answer."""
        return 0 <= self.seq - seq <= len(self._deltas)

    def since(self, seq: int) -> list[bytes] | None:
        """The packed deltas after `seq`, oldest first, or None if they are no longer (or not yet) held."""
        if not self.holds(seq):
            return None
        return list(islice(self._deltas, len(self._deltas) - (self.seq - seq), None))

    def take_fresh(self) -> list[bytes]:
        """The packed deltas since the last call, to publish in this order."""
        fresh, self.fresh = self.fresh, []
        return fresh


def chunks(items: list[bytes], bytes_max: int) -> Iterator[tuple[list[bytes], bool]]:
    """(items of at most `bytes_max` together, or one larger item; True for the last ones): there is at least one."""
    start = size = 0
    for end, item in enumerate(items):
        if size and size + len(item) > bytes_max:
            yield items[start:end], False
            start, size = end, 0
        size += len(item)
    yield items[start:], True
