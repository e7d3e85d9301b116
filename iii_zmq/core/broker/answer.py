"""One answer to a worker that lacks something: makes its parts one at a time, and counts the unacknowledged ones."""

from __future__ import annotations

from collections.abc import Iterator

from ... import wire

Part = wire.Snapshot | wire.Replay


class Answer:
    """The parts of one answer, made on demand; there is at least one."""

    __slots__ = ("_parts", "has_part", "is_snapshot", "number", "unacknowledged")

    def __init__(self, number: int, parts: Iterator[Part], *, is_snapshot: bool) -> None:
        self.number = number
        self.is_snapshot = is_snapshot
        self.unacknowledged = 0
        self.has_part = True  # until the last part, a Replay, is popped
        self._parts = parts

    def is_open(self) -> bool:
        """True if another part may be sent now."""
        return self.unacknowledged < wire.PARTS_OPEN_MAX and self.has_part

    def pop_part(self) -> Part:
        """The next part; call it only while `has_part`."""
        part = next(self._parts)
        self.has_part = not (isinstance(part, wire.Replay) and part.last)
        self.unacknowledged += 1
        return part
