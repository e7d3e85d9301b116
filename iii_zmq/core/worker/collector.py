"""Collects the deltas that a replica lacks instead of applying them: `iii-broker watch --from` reads the past so."""

from __future__ import annotations

from ... import wire
from .changes import Change, Position
from .replica import Replica


class Collector(Replica):
    """Claims to be at `start`, and keeps the deltas that the broker then sends."""

    def __init__(self, start: Position) -> None:
        super().__init__()
        self._start = start
        self.deltas: list[wire.Delta] = []
        self.is_snapshot = False
        self.done = False

    def sync_position(self) -> Position:
        return self._start

    def invited(self, broadcast: int) -> None:
        self._give_up_on_it()

    def on_snapshot(self, part: wire.Snapshot) -> list[Change]:
        self._give_up_on_it()
        return []

    def on_replay(self, part: wire.Replay) -> list[Change]:
        self.deltas += map(wire.decode_delta, part.deltas)
        self.done = part.last
        return []

    def _give_up_on_it(self) -> None:
        self.is_snapshot = self.done = True
