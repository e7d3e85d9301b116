"""What the workers of one process need not do twice: to decode and read a delta, and to name what it changed.

Ten workers in a process hear each delta ten times. The first one reads it and names its changes; the others take all
of it from here. Nothing depends on it: whatever is not here is made anew, and what is here is what would be made. For a
delta that is so because its bytes are the same; for changes because epoch, seq and the delta are, whose digest came
out: so the content before was the same as well.

Threads use it without a lock: a slot is one tuple, put and read as a whole.
"""

from __future__ import annotations

from .. import wire
from .changes import Change, Position
from .content import Step, read_step

SLOTS = 64  # deltas of a moment: the workers of a process hear the same ones within milliseconds
SHARED_BYTES_MAX = 16 * 1024  # of a delta that is kept: at most some 5 MB with its changes, whatever comes

BEGINNING = 40  # bytes of a delta that tell it from others well enough: they hold its seq and its digest


class Shared:
    """Of one process; bounded by its slots."""

    def __init__(self) -> None:
        self._steps: list[tuple[bytes, Step] | None] = [None] * SLOTS
        self._message: tuple[bytes, wire.OnStream] = (b"", wire.Closing(0, ""))
        self._changes: list[tuple[Position, Step, list[Change]] | None] = [None] * SLOTS

    def decode(self, frame: bytes) -> wire.OnStream:
        """The message in a frame of the stream; nobody alters it. Raises: ProtocolError."""
        known, message = self._message
        if frame == known:
            return message
        message = wire.decode_on_stream(frame)
        if len(frame) <= SHARED_BYTES_MAX:
            self._message = (frame, message)
        return message

    def read(self, data: bytes) -> Step:
        """The packed delta, read. Raises: ProtocolError."""
        if len(data) > SHARED_BYTES_MAX:
            return read_step(data)
        slot = hash(data[:BEGINNING]) % SLOTS
        kept = self._steps[slot]
        if kept is not None and kept[0] == data:
            return kept[1]
        step = read_step(data)
        self._steps[slot] = (data, step)
        return step

    def changes(self, position: Position, step: Step) -> list[Change] | None:
        """What this step to this position meant to another replica. The same step object: so the same bytes."""
        kept = self._changes[position.seq % SLOTS]
        return kept[2] if kept is not None and kept[1] is step and kept[0] == position else None

    def keep(self, position: Position, step: Step, changes: list[Change]) -> None:
        """What it meant to this one. Nobody alters the list."""
        if step.size <= SHARED_BYTES_MAX:
            self._changes[position.seq % SLOTS] = (position, step, changes)
