"""What the workers of one process need not do twice: to decode and read a delta or a row, and to name what it changed.

Ten workers in a process hear each delta ten times. The first one reads it and names its changes; the others take all
of it from here. Nothing depends on it: whatever is not here is made anew, and what is here is what would be made. For a
delta that is so because its bytes are the same; for changes because epoch, seq and the delta are, whose digest came
out: so the content before was the same as well.

How long they are kept: in a crowd one replica reads a hundred deltas in a row, and the next one then begins with the
first of them. So there are two generations, and the older one goes when the younger is full.

Threads use it without a lock: whatever one of them puts in is right, and a generation that another one has just given
up is read once more, or filled in vain.
"""

from __future__ import annotations

from ... import wire
from .changes import Change, Position
from .content import RowRead, Step, read_row, read_step

SHARED_MAX = 2048  # deltas of one generation: more than a storm of 1,000 joins makes of them
SHARED_ALL_BYTES_MAX = 512 * 1024  # and their bytes: with both generations and all changes at most some 10 MB
SHARED_BYTES_MAX = 16 * 1024  # of a delta that is kept
SHARED_ROWS_MAX = 8192  # rows of one generation, with which a storm's joiners begin; their bytes replicas hold anyway
SHARED_PARTS = 4  # of a snapshot: some 4,000 rows; those of a larger one would only push out one another


class _Generation:
    """What was read and named since a moment."""

    __slots__ = ("_deltas_max", "changes", "rows", "size", "steps")

    def __init__(self, deltas_max: int) -> None:
        self._deltas_max = deltas_max
        self.steps: dict[bytes, Step] = {}
        self.changes: dict[Position, tuple[Step, list[Change]]] = {}
        self.rows: dict[bytes, RowRead] = {}
        self.size = 0  # bytes of the deltas; threads may count one too little

    @property
    def is_full(self) -> bool:
        kept = max(len(self.steps), len(self.changes))
        return self.size >= SHARED_ALL_BYTES_MAX or kept >= self._deltas_max or len(self.rows) >= SHARED_ROWS_MAX


class Shared:
    """Of one process; bounded by its generations, of `deltas_max` deltas each."""

    def __init__(self, deltas_max: int = SHARED_MAX) -> None:
        self._deltas_max = deltas_max
        self._is_for_many = False  # one replica alone would keep everything for nobody
        self._users = 0  # ever
        self._young = _Generation(deltas_max)
        self._old = _Generation(deltas_max)
        self._message: tuple[bytes, wire.OnStream] = (b"", wire.Closing(0, ""))

    def join(self) -> None:
        """Another replica is here, and hears the same deltas as the others."""
        self._users += 1
        self._is_for_many = self._users > 1

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
        step = self._young.steps.get(data) or self._old.steps.get(data)
        if step is None:
            step = read_step(data)
            if len(data) <= SHARED_BYTES_MAX and self._is_for_many:
                young = self._growing()
                young.steps[data] = step
                young.size += len(data)
        return step

    def row(self, row: bytes) -> RowRead:
        """The packed row, read: with the bytes that the other replicas hold, too. Raises: ProtocolError."""
        found = self._young.rows.get(row) or self._old.rows.get(row)
        if found is None:
            found = read_row(row)
            if self._is_for_many:
                self._growing().rows[row] = found
        return found

    def changes(self, position: Position, step: Step) -> list[Change] | None:
        """What this step to this position meant to another replica. The same step object: so the same bytes."""
        kept = self._young.changes.get(position) or self._old.changes.get(position)
        return kept[1] if kept is not None and kept[0] is step else None

    def keep(self, position: Position, step: Step, changes: list[Change]) -> None:
        """What it meant to this one. Nobody alters the list."""
        if step.size <= SHARED_BYTES_MAX and self._is_for_many:
            self._growing().changes[position] = (step, changes)

    def _growing(self) -> _Generation:
        if self._young.is_full:
            self._old, self._young = self._young, _Generation(self._deltas_max)
        return self._young
