"""How long one waits for a broker before one says that there is none.

Only time in which this process got to run counts: one that was stopped, or got no CPU, could not have heard anything.
So the wait goes in short slices, and a slice that took longer than it was meant to counts as what it was meant to be.
Whatever comes of it (`progress`) begins the timeout anew: a large registry takes its time.
"""

from __future__ import annotations

SLICES = 40  # of one timeout: so many times it wakes up and finds nothing, however slow the machine
SLICE_MIN_S = 0.005


class Patience:
    """One wait for something that shows progress: for `slice_s`, then for another one unless `is_over`."""

    def __init__(self, timeout_s: float | None, progress: object) -> None:
        self._timeout_s = timeout_s
        self._left_s = timeout_s or 0.0
        self._progress = progress

    @property
    def slice_s(self) -> float | None:
        """None: without a timeout there is nothing to count."""
        if self._timeout_s is None:
            return None
        return min(self._left_s, max(SLICE_MIN_S, self._timeout_s / SLICES))

    def is_over(self, took_s: float, progress: object) -> bool:
        """After a slice that brought nothing, and took so long: whether that was all."""
        slice_s = self.slice_s
        if progress != self._progress:
            self._progress, self._left_s = progress, self._timeout_s or 0.0
            return False
        if slice_s is None:
            return True  # the wait ended by itself: there is nothing left to wait for
        self._left_s -= min(took_s, slice_s)
        return self._left_s <= 0
