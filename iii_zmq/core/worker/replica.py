"""A worker's copy of the registry: ordered, without gaps, verified, and aware of what it lacks.

    not awaiting    delta mine+1 -> applied       lower -> ignored       higher -> held back, `wanted` = "gap"
        | expect(number)                          other epoch -> `wanted` = "epoch"
    awaiting        deltas of the stream are held back; the answer's parts come, index by index:
        |             [Snapshot 0 .. Snapshot n (last)]  Replay .. Replay (last)
        |             a hole, a malformed part or a wrong digest ends the answer without a result: `wanted` says so
        | the last Replay part
    not awaiting    held deltas that now follow are applied; if one does not follow, that is a gap again

Invariant: once the replica was complete, it shows content that the broker had at `position`, checked by digest. So a
delta whose digest would not match is *not* applied: the state before it was right once, while the state after it never
was and would be shown until it is repaired. A snapshot is collected beside the content. It replaces the content in one
assignment when its digest matches and it is not older. (The broker may answer with an older snapshot that it has at
hand, plus the deltas since; these are then applied to the new content before it is shown.)

The replica sends nothing and knows no time: its owner looks at `wanted` after each call, and asks again if an answer
takes too long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ... import wire
from ...errors import ProtocolError
from ..counters import new_counters
from .changes import Change, Position, changes_of, reset_at
from .content import Content, Step, read_row
from .shared import SHARED_PARTS, Shared
from .views import Function, Functions, WorkerInfo, Workers

__all__ = ["HELD_BYTES_MAX", "HELD_MAX", "Change", "Position", "Replica"]

HELD_MAX = 10_000  # deltas held back while a snapshot loads: ten seconds of 1,000 changes a second
HELD_BYTES_MAX = 64 * 1024 * 1024  # as much as the broker keeps for those who resume

Wanted = Literal["gap", "overrun", "digest", "epoch"]
_WEIGHT: dict[str | None, int] = {None: 0, "gap": 1, "overrun": 2, "digest": 3, "epoch": 4}
_COUNTERS = {"gap": "gaps", "overrun": "overruns", "digest": "digest_mismatches", "epoch": "foreign_epochs"}

NOWHERE = Position("", 0)


@dataclass(slots=True)
class _Answer:
    """The awaited answer, as far as it has come. `at` is the position of its content: staged, or the replica's."""

    number: int
    broadcast: int | None = None
    next_index: int = 0
    at: Position = NOWHERE
    digest: bytes = b""
    staged: Content | None = None  # a snapshot's rows, until they replace the old content
    has_rows: bool = False  # True after a Snapshot part
    rows_done: bool = False  # True after the last Snapshot part or a Replay part

    def is_called(self, number: int) -> bool:
        return number in (self.number, self.broadcast)

    def add_rows(self, part: wire.Snapshot, shared: Shared) -> Content | None:
        """Adds the part's rows; returns the content after the last part. Raises: ProtocolError."""
        if self.rows_done:
            raise ProtocolError("rows after the last row of an answer")
        if self.staged is None:
            self.staged, self.has_rows = Content(), True
            self.at, self.digest = Position(part.epoch, part.seq), part.digest
        elif (part.epoch, part.seq, part.digest) != (*self.at, self.digest):
            raise ProtocolError(f"a part of snapshot {part.epoch:.100}:{part.seq} in that of {self.at}")
        self.staged.load(part.rows, shared.row if part.index < SHARED_PARTS else read_row)
        self.rows_done = part.last
        return self.staged if part.last else None

    def read_deltas(self, part: wire.Replay, position: Position, shared: Shared) -> list[Step]:
        """The deltas in the part, for a replica at `position`. Raises: ProtocolError."""
        if self.has_rows and not self.rows_done:
            raise ProtocolError("deltas before the last row of a snapshot")
        epoch = (self.at if self.has_rows else position).epoch
        if part.epoch != epoch:
            raise ProtocolError(f"deltas of epoch {part.epoch!r:.100} where {epoch!r:.100} is expected")
        self.rows_done = True
        return [shared.read(data) for data in part.deltas]


class Replica:
    """The registry as this worker knows it. Each `on_` returns the changes to report to users, in order."""

    def __init__(
        self,
        *,
        held_max: int = HELD_MAX,
        held_bytes_max: int = HELD_BYTES_MAX,
        is_watched: Callable[[], bool] = lambda: True,
        shared: Shared | None = None,
    ) -> None:
        self._shared = shared or Shared()
        self._shared.join()
        self._is_watched = is_watched  # True if anybody listens: naming changes costs more than applying them
        self.wanted: Wanted | None = None
        self.resumed: bool | None = None
        self.counters = new_counters()
        self.functions: Mapping[str, Function] = Functions(lambda: self._content)
        self.workers: Mapping[str, WorkerInfo] = Workers(lambda: self._content)
        self._content = Content()
        self.position = NOWHERE  # the content's; within an epoch it never goes backwards
        self._is_loaded = False  # True once a snapshot is in place
        self._was_complete = False  # once True, changes are reported
        self._is_snapshot_needed = False  # True if deltas can't repair the content
        self._is_thrown_away = False  # True if stream messages were discarded since the awaited answer was requested
        self._answer: _Answer | None = None
        self._held = _Held(held_max, held_bytes_max)

    # -- queries -------------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> bytes:
        """16 bytes over the content, kept up to date row by row."""
        return self._content.digest

    @property
    def complete(self) -> bool:
        """True if an answer has ended and nothing is known to be missing since."""
        return self._is_loaded and self.wanted is None and self._answer is None

    def has_provider(self, function_id: str) -> bool:
        """True if any worker offers the function."""
        return self._content.is_offered(function_id)

    def provider_count(self, function_id: str) -> int:
        """How many workers offer the function, stand-bys included."""
        return self._content.holder_count(function_id)

    # -- asking --------------------------------------------------------------------------------------------------------

    def sync_position(self) -> Position:
        """The position for Hello and Sync: the replica's own, or ("", 0) if only a snapshot helps."""
        return NOWHERE if self._is_snapshot_needed else self.position

    def expect(self, number: int) -> None:
        """Hello or Sync `number` is on its way: from now on its answer is awaited, and no other."""
        self._answer = _Answer(number)
        self._is_thrown_away = False  # the answer to a later question covers everything discarded before
        self.wanted = None

    def invited(self, broadcast: int) -> None:
        """The awaited answer will come as broadcast `broadcast`."""
        if self._answer is not None:
            self._answer.broadcast = broadcast

    def discard(self) -> None:
        """Stream messages were discarded unread. An answer that does not come by the stream goes on: it cost more."""
        self._held.clear()
        if self._answer is None or self._answer.broadcast is not None:
            self._give_up("overrun")
        else:
            self._is_thrown_away = True

    # -- the stream ----------------------------------------------------------------------------------------------------

    def on_deltas(self, message: wire.Deltas) -> list[Change]:
        """Raises: ProtocolError, before any of the deltas is applied."""
        steps = [self._shared.read(data) for data in message.deltas]
        changes = []
        for step in steps:
            changes += self._on_step(message.epoch, step)
        return self._audible(changes)

    def on_beacon(self, beacon: wire.Beacon) -> list[Change]:
        """Compares positions and digests, which shows a lost last delta. Never changes anything."""
        self._content.tidy()
        if not self._is_loaded or self._answer is not None:
            return []  # the answer's own digests and the next beacon will show it
        if beacon.epoch != self.position.epoch:
            self._want("epoch")
        elif beacon.seq > self.position.seq:
            self._want("gap")
        elif beacon.seq < self.position.seq:
            self.counters["stale_ignored"] += 1
        elif beacon.digest != self.digest:
            self._mismatch()
        return []

    def _on_step(self, epoch: str, step: Step) -> list[Change]:
        at = self.position
        if epoch == at.epoch and step.seq <= at.seq:
            self.counters["stale_ignored"] += 1
        elif not self._is_loaded or self._answer is not None:
            self._hold(epoch, step)
        elif epoch != at.epoch:
            self._want("epoch")
        elif step.seq == at.seq + 1:
            changes = self._advance(step)
            return changes + self._drain() if self._held else changes
        else:
            self._hold(epoch, step)
            self._want("gap")
        return []

    def _hold(self, epoch: str, step: Step) -> None:
        if not self._held.put(epoch, step):
            self.discard()

    # -- the answer ----------------------------------------------------------------------------------------------------

    def on_snapshot(self, part: wire.Snapshot) -> list[Change]:
        """Raises: ProtocolError; the answer then ends without a result."""
        answer = self._pop_turn(part)
        if answer is None:
            return []
        try:
            staged = answer.add_rows(part, self._shared)
        except ProtocolError:
            self._break_off()
            raise
        if staged is None:
            return []
        if staged.digest == answer.digest:
            return self._audible(self._put_in_place(answer, staged))
        self._mismatch()
        return []

    def on_replay(self, part: wire.Replay) -> list[Change]:
        """Raises: ProtocolError; the answer then ends without a result, and none of the part's deltas is applied."""
        answer = self._pop_turn(part)
        if answer is None:
            return []
        try:
            steps = answer.read_deltas(part, self.position, self._shared)
        except ProtocolError:
            self._break_off()
            raise
        return self._audible(self._on_missed(answer, steps, part.last))

    def _pop_turn(self, part: wire.Snapshot | wire.Replay) -> _Answer | None:
        """The awaited answer if this is its next part, else None."""
        answer = self._answer
        if answer is None or not answer.is_called(part.number) or part.index < answer.next_index:
            self.counters["stale_ignored"] += 1
            return None
        if part.index > answer.next_index:
            self._give_up("gap")
            return None
        answer.next_index += 1
        return answer

    def _put_in_place(self, answer: _Answer, staged: Content) -> list[Change]:
        """Shows the staged content, unless it is older than the current one: then the next deltas bring it closer."""
        at = answer.at
        if at.epoch == self.position.epoch and at.seq < self.position.seq:
            return []
        before, self._content, answer.staged = self._content, staged, None
        self.position = at
        self._is_loaded = True
        self._is_snapshot_needed = False
        self.counters["snapshots"] += 1
        if not self._was_complete or not self._is_watched():  # nobody listens, so there is no need to compare
            return []
        return [reset_at(at), *changes_of(before.edits_to(staged), None, staged, at, None)]

    def _on_missed(self, answer: _Answer, steps: list[Step], is_last: bool) -> list[Change]:
        changes = []
        for step in steps:
            changes += self._on_missed_step(answer, step)
            if self._answer is None:  # the answer was given up
                return changes
        return changes + self._finish(answer) if is_last else changes

    def _on_missed_step(self, answer: _Answer, step: Step) -> list[Change]:
        at = self.position if answer.staged is None else answer.at
        if step.seq <= at.seq:
            self.counters["stale_ignored"] += 1
        elif step.seq > at.seq + 1:
            self._give_up("gap")
        elif answer.staged is None:
            return self._advance(step)
        elif answer.staged.apply(step) is None:
            self._mismatch()
        else:
            answer.at = at._replace(seq=step.seq)
            return self._put_in_place(answer, answer.staged)
        return []

    def _finish(self, answer: _Answer) -> list[Change]:
        self._answer = None
        if answer.staged is not None:  # it stayed older than the current content
            self.counters["snapshots_refused"] += 1
            self._want("gap")
            return []
        self.resumed = not answer.has_rows
        self.counters["resumes"] += self.resumed
        if self._is_snapshot_needed:  # a snapshot was requested, and is still needed
            self._want("digest")
        if self._is_thrown_away:
            self._want("overrun")
        return self._drain()

    # -- both ----------------------------------------------------------------------------------------------------------

    def _advance(self, step: Step) -> list[Change]:
        """Applies the delta that follows the position, if its digest matches."""
        applied = self._content.apply(step)
        if applied is None:
            self._mismatch()
            return []
        self.position = Position(self.position.epoch, step.seq)  # takes a third of the time of `_replace`
        self.counters["deltas"] += 1
        if not self._is_watched():
            return []
        changes = self._shared.changes(self.position, step)
        if changes is None:
            changes = changes_of(*applied, self._content, self.position, step.reason or None)
            self._shared.keep(self.position, step, changes)
        return changes

    def _drain(self) -> list[Change]:
        """Applies held deltas that now follow. Those beyond a hole stay until an answer fills it."""
        changes: list[Change] = []
        while (step := self._held.pop(*self.position)) is not None:
            changes += self._advance(step)
        if self._held.keep_beyond(self.position):
            self._want("gap")
        return changes

    def _audible(self, changes: list[Change]) -> list[Change]:
        """Reports nothing until the replica is complete for the first time: that is the users' starting point."""
        if self._was_complete:
            return changes
        self._was_complete = self.complete
        return []

    def _want(self, reason: Wanted) -> None:
        """Keeps the weightiest reason: each one requires at least what the lighter ones require."""
        if _WEIGHT[reason] > _WEIGHT[self.wanted]:
            self.wanted = reason
            self.counters[_COUNTERS[reason]] += 1

    def _mismatch(self) -> None:
        self._is_snapshot_needed = True
        self._give_up("digest")

    def _break_off(self) -> None:
        """Ends a malformed answer. The same question would bring the same answer; a snapshot may be better."""
        self.counters["broken_answers"] += 1
        self._is_snapshot_needed = True
        self._give_up("gap")

    def _give_up(self, reason: Wanted) -> None:
        self._answer = None
        self._want(reason)


class _Held:
    """Deltas that came too early, by position; bounded in number and bytes."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._steps: dict[tuple[str, int], Step] = {}

    def __bool__(self) -> bool:
        """True if any delta is held."""
        return bool(self._steps)

    def put(self, epoch: str, step: Step) -> bool:
        """Holds the delta; False if that exceeds a limit."""
        if (epoch, step.seq) not in self._steps:
            self._steps[epoch, step.seq] = step
            self._bytes += step.size
        return len(self._steps) <= self._count_max and self._bytes <= self._bytes_max

    def pop(self, epoch: str, seq: int) -> Step | None:
        """Removes and returns the delta that follows this position, or None."""
        step = self._steps.pop((epoch, seq + 1), None)
        if step is not None:
            self._bytes -= step.size
        return step

    def keep_beyond(self, position: Position) -> bool:
        """Forgets deltas that are useless at this position; True if any are left."""
        if self._steps:
            steps = {(e, s): step for (e, s), step in self._steps.items() if e == position.epoch and s > position.seq}
            self._steps, self._bytes = steps, sum(step.size for step in steps.values())
        return bool(self._steps)

    def clear(self) -> None:
        self._steps.clear()
        self._bytes = 0
