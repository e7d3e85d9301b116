"""Measures how long to wait for a broker before giving up.

Only time in which this process ran counts: a process that was stopped, or got no CPU, could not have heard anything. So
the wait is cut into short slices, and a slice that took too long counts only as its planned length. Any progress
restarts the timeout: a large registry takes its time.
"""

from __future__ import annotations

SLICES = 40  # per timeout: it wakes that often and finds nothing, however slow the machine is
SLICE_MIN_S = 0.005


class Patience:
    """One wait for something that shows progress: wait for `slice_s`, then for another slice unless `is_over`."""

    def __init__(self, timeout_s: float | None, progress: object) -> None:
        self._timeout_s = timeout_s
        self._left_s = timeout_s or 0.0
        self._progress = progress

    @property
    def slice_s(self) -> float | None:
        """The length of the next slice; None without a timeout."""
        if self._timeout_s is None:
            return None
        return min(self._left_s, max(SLICE_MIN_S, self._timeout_s / SLICES))

    def is_over(self, took_s: float, progress: object) -> bool:
        """True if the timeout is used up, after a slice that took `took_s` and brought nothing."""
        slice_s = self.slice_s
        if progress != self._progress:
            self._progress, self._left_s = progress, self._timeout_s or 0.0
            return False
        if slice_s is None:
            return True  # a wait without a timeout ended by itself: there is nothing left to wait for
        self._left_s -= min(took_s, slice_s)
        return self._left_s <= 0
