"""The registry's stream: decides when the fresh deltas are published, in few messages, and when the beacon is due.

Each message wakes every worker, so in a flood of changes the deltas are gathered for a moment. A few publications may
follow each other at once; if the flood goes on, the moment is as long as all workers take to read one.

Invariant: a beacon never covers a delta that is not yet published.
"""

from __future__ import annotations

import math

from ... import wire
from ..deadlines import Alarm
from .events import EVERYONE, Outbox, Settings
from .history import chunks
from .registry import Registry
from .sessions import Sessions

PROMPT_IN_A_ROW = 5  # publications that may follow each other at once, however many workers they wake
DELTAS_BYTES_MAX = 1024 * 1024  # bytes of deltas in one stream message; a larger delta travels alone


class Stream:
    """The deltas and beacons for everybody."""

    def __init__(self, registry: Registry, settings: Settings, sessions: Sessions, alarm: Alarm) -> None:
        self._registry = registry
        self._settings = settings
        self._sessions = sessions  # each publication wakes all of them
        self._alarm = alarm
        self._paid_until = -math.inf  # by then all workers have had time to read the publications so far
        self._publish_at = 0.0  # no publication before this
        self.beacon_at = 0.0

    def gather(self, now: float) -> None:
        """More changes will follow in a moment: gathers them all for one message."""
        if self._publish_at <= now:
            self._publish_at = now + self._settings.gather_s

    def hurry(self) -> None:
        """Makes the next publication leave at once."""
        self._publish_at = 0.0

    def pop_beacon(self, now: float) -> wire.Beacon | None:
        """The beacon if it is due; the deltas that it covers are published before it."""
        if now < self.beacon_at:
            return None
        self._publish_at = now
        self.beacon_at = now + self._settings.heartbeat_s
        return wire.Beacon(0, self._registry.epoch, self._registry.seq, self._registry.digest)

    def publish(self, now: float) -> Outbox:
        """The fresh deltas in one message, or in a few if there are many; none if they wait for more."""
        history = self._registry.history
        if not history.fresh:
            return []
        if now < self._publish_at:
            self._alarm.no_later_than(self._publish_at)
            return []
        cost_s = self._settings.wake_s * len(self._sessions)
        self._paid_until = max(self._paid_until, now - (PROMPT_IN_A_ROW - 1) * cost_s) + cost_s
        self._publish_at = max(now + self._settings.gather_s, self._paid_until)
        batches = chunks(history.take_fresh(), DELTAS_BYTES_MAX)
        return [(EVERYONE, wire.Deltas(0, self._registry.epoch, batch)) for batch, _ in batches]
