"""A change as users see it, and the changes that result from a set of edited rows.

Invariant: all changes of one delta share its seq; replayed over the old content they give the new content. This module
does not decide about positions: the caller who applied the edits passes the new position.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .content import Content, Edit, Leave, read_worker

WORKER_JOINED = "worker_joined"
WORKER_LEFT = "worker_left"
WORKER_CHANGED = "worker_changed"
FUNCTION_ADDED = "function_added"
FUNCTION_REMOVED = "function_removed"
FUNCTION_CHANGED = "function_changed"
RESET = "reset"

# How changes of one delta are told: a worker joins before its functions are added, and leaves after they are removed.
ORDER = (WORKER_JOINED, FUNCTION_ADDED, FUNCTION_CHANGED, FUNCTION_REMOVED, WORKER_CHANGED, WORKER_LEFT)
_RANK = {kind: rank for rank, kind in enumerate(ORDER)}
_new = tuple.__new__


class Position(NamedTuple):
    """How far a replica is: `seq` counts the changes in one broker's `epoch`. ("", 0) while nothing is known."""

    epoch: str
    seq: int


class Change(NamedTuple):
    """One change of the registry. Changes that happened together share their `seq`.

    A `function_*` change concerns one provider, the worker named here; `providers` is how many the function has now.
    `reset` says that a snapshot replaced the replica; the differences follow as changes at the same position.
    """

    kind: str
    function_id: str | None
    worker_id: str | None
    worker_name: str | None
    reason: str | None
    epoch: str
    seq: int
    providers: int | None

    def __str__(self) -> str:
        words = [f"{self.seq} {self.kind}"]
        if self.function_id is not None:
            words.append(f"{self.function_id} by")
        if self.worker_id is not None:
            words.append(f"{self.worker_name or 'worker'} ({self.worker_id})")
        if self.reason is not None:
            words.append(f"[{self.reason}]")
        if self.providers is not None:
            words.append(f"providers: {self.providers}")
        return " ".join(words)

    def to_json(self) -> dict[str, Any]:
        """The change as `watch --json` prints it."""
        return self._asdict()


def reset_at(position: Position) -> Change:
    """The change that says that a snapshot replaced the replica."""
    return Change(RESET, None, None, None, None, *position, None)


def changes_of(
    edits: list[Edit], leave: Leave | None, content: Content, position: Position, reason: str | None
) -> list[Change]:
    """The changes that edits and a worker's leave mean to users.

    `content` is the content after them; `reason` says why rows were dropped, if any were.
    """
    ranks: list[list[Change]] = [[] for _ in ORDER]
    names = _Names(content, edits)
    count, (epoch, seq) = content.holder_count, position
    added = ranks[_RANK[FUNCTION_ADDED]]
    for (worker_id, function_id), before, after in edits:
        name = names[worker_id]
        if function_id and before is None:  # by far the most frequent while many workers join
            change = _new(Change, (FUNCTION_ADDED, function_id, worker_id, name, None, epoch, seq, count(function_id)))
            added.append(change)
            continue
        why = reason if after is None else None
        if function_id:
            kind = FUNCTION_REMOVED if after is None else FUNCTION_CHANGED
            change = Change(kind, function_id, worker_id, name, why, epoch, seq, count(function_id))
        else:
            kind = WORKER_LEFT if after is None else WORKER_JOINED if before is None else WORKER_CHANGED
            change = Change(kind, None, worker_id, name, why, epoch, seq, None)
        ranks[_RANK[kind]].append(change)
    if leave is not None:
        name = read_worker(leave.row).name
        ranks[_RANK[FUNCTION_REMOVED]] += _removed(leave, content.others(leave), name, position, reason)
        ranks[_RANK[WORKER_LEFT]].append(Change(WORKER_LEFT, None, leave.worker_id, name, reason, epoch, seq, None))
    return [change for rank in ranks for change in rank]


def _removed(leave: Leave, others: dict[str, int], name: str, position: Position, reason: str | None) -> list[Change]:
    """The removed functions of a worker that left. If a host dies there are thousands: no function call for each."""
    worker_id, _, offers = leave
    epoch, seq = position
    changes = [
        _new(Change, (FUNCTION_REMOVED, function_id, worker_id, name, reason, epoch, seq, 0)) for function_id in offers
    ]
    if not others:
        return changes
    return [change._replace(providers=others.get(id, 0)) for id, change in zip(offers, changes, strict=True)]


class _Names(dict[str, "str | None"]):
    """Worker id -> its name in the row after the edits, or before them if they drop it. Decodes each row once."""

    def __init__(self, content: Content, edits: list[Edit]) -> None:
        self._content = content
        self._edits = edits

    def __missing__(self, worker_id: str) -> str | None:
        key = (worker_id, "")
        row = self._content.get(key)
        if row is None:
            row = next((before for edited, before, after in self._edits if edited == key and after is None), None)
        name = self[worker_id] = None if row is None else read_worker(row).name
        return name
