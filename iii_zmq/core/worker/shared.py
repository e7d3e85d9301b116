"""Shares work between the workers of one process: decoded deltas and rows, and the changes that a delta makes.

Ten workers in a process hear each delta ten times. The first one reads it and names its changes; the others take the
result from here. Nothing depends on this cache: a missing item is made again, and a cached item equals the one that
would be made. For a delta this holds because its bytes are the same. For changes it holds because epoch, seq and delta
are the same and the digest matched, so that the content before was the same, too.

Lifetime: in a crowd one replica reads a hundred deltas in a row, and then the next one starts with the first of them.
So there are two generations; when the younger one is full, the older one is dropped.

Threads use it without a lock: every item that a thread puts in is right. At worst an item that another thread has just
dropped is made again, or one is put into a dropped generation in vain.
"""

from __future__ import annotations

from ... import wire
from .changes import Change, Position
from .content import RowRead, Step, read_row, read_step

SHARED_MAX = 2048  # deltas per generation: more than a storm of 1,000 joins makes
SHARED_ALL_BYTES_MAX = 512 * 1024  # and their bytes: both generations with all changes take about 10 MB at most
SHARED_BYTES_MAX = 16 * 1024  # bytes of a delta that is kept
SHARED_ROWS_MAX = 8192  # rows per generation, for the joiners of a storm; the replicas hold the rows' bytes anyway
SHARED_PARTS = 4  # parts of a snapshot, about 4,000 rows: rows of a larger one would only push out one another


class _Generation:
    """Deltas, changes and rows that were read since some moment."""

    __slots__ = ("_deltas_max", "changes", "rows", "size", "steps")

    def __init__(self, deltas_max: int) -> None:
        self._deltas_max = deltas_max
        self.steps: dict[bytes, Step] = {}
        self.changes: dict[Position, tuple[Step, list[Change]]] = {}
        self.rows: dict[bytes, RowRead] = {}
        self.size = 0  # bytes of the deltas; with several threads one may not be counted

    @property
    def is_full(self) -> bool:
        kept = max(len(self.steps), len(self.changes))
        return self.size >= SHARED_ALL_BYTES_MAX or kept >= self._deltas_max or len(self.rows) >= SHARED_ROWS_MAX


class Shared:
    """The cache of one process, bounded by its two generations of `deltas_max` deltas each."""

    def __init__(self, deltas_max: int = SHARED_MAX) -> None:
        self._deltas_max = deltas_max
        self._is_for_many = False  # a single replica has nobody to share with
        self._users = 0  # since the process started
        self._young = _Generation(deltas_max)
        self._old = _Generation(deltas_max)
        self._message: tuple[bytes, wire.OnStream] = (b"", wire.Closing(0, ""))

    def join(self) -> None:
        """Adds a replica, which hears the same deltas as the others."""
        self._users += 1
        self._is_for_many = self._users > 1

    def decode(self, frame: bytes) -> wire.OnStream:
        """The message in a frame of the stream; do not change it. Raises: ProtocolError."""
        known, message = self._message
        if frame == known:
            return message
        message = wire.decode_on_stream(frame)
        if len(frame) <= SHARED_BYTES_MAX:
            self._message = (frame, message)
        return message

    def read(self, data: bytes) -> Step:
        """Reads a packed delta. Raises: ProtocolError."""
        step = self._young.steps.get(data) or self._old.steps.get(data)
        if step is None:
            step = read_step(data)
            if len(data) <= SHARED_BYTES_MAX and self._is_for_many:
                young = self._growing()
                young.steps[data] = step
                young.size += len(data)
        return step

    def row(self, row: bytes) -> RowRead:
        """Reads a packed row; all replicas then hold the same bytes object. Raises: ProtocolError."""
        found = self._young.rows.get(row) or self._old.rows.get(row)
        if found is None:
            found = read_row(row)
            if self._is_for_many:
                self._growing().rows[row] = found
        return found

    def changes(self, position: Position, step: Step) -> list[Change] | None:
        """The changes that another replica named for this step to this position, or None."""
        kept = self._young.changes.get(position) or self._old.changes.get(position)
        return kept[1] if kept is not None and kept[0] is step else None  # the same object has the same bytes

    def keep(self, position: Position, step: Step, changes: list[Change]) -> None:
        """Keeps the changes that a replica named for this step. Nobody may change the list."""
        if step.size <= SHARED_BYTES_MAX and self._is_for_many:
            self._growing().changes[position] = (step, changes)

    def _growing(self) -> _Generation:
        if self._young.is_full:
            self._old, self._young = self._young, _Generation(self._deltas_max)
        return self._young
