"""A virtual clock: what is due happens in the order of its moment, and at equal moments in the order it was set.

Nothing here reads the real time, so that a run depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Timer:
    """Something that is due at `at`, unless it is cancelled before."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Action) -> None:
        self.at = at
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Clock:
    """`now` in seconds; it only moves in `run_until`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._order = 0
        self._heap: list[tuple[float, int, Timer]] = []

    def at(self, moment: float, action: Action) -> Timer:
        timer = Timer(max(moment, self.now), action)
        self._order += 1
        heappush(self._heap, (timer.at, self._order, timer))
        return timer

    def after(self, wait_s: float, action: Action) -> Timer:
        return self.at(self.now + wait_s, action)

    def run_until(self, moment: float) -> None:
        """Lets everything happen that is due by then."""
        heap = self._heap
        while heap and heap[0][0] <= moment:
            at, _, timer = heappop(heap)
            self.now = at
            if timer.action is not None:
                timer.action()
        self.now = moment

    def run_for(self, span_s: float) -> None:
        self.run_until(self.now + span_s)
