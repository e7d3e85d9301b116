"""Checks that nobody missed anything: compares what each worker heard with what happened. Pure.

`happened` is the whole history: seq -> its changes. A record holds what one worker heard, in order. A record is right
if it is a stretch of that history without a hole, a repetition or an invention. It begins where the worker joined; if
the worker is still alive, it ends where the history ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Changes = list[dict[str, Any]]
History = Mapping[int, Changes]


@dataclass(slots=True)
class Record:
    """What one worker heard. `start` is its position when it had joined; it need not report earlier changes."""

    worker: str
    start: int | None = None
    told: list[tuple[int, Changes]] = field(default_factory=list)
    end: str = "alive"
    digest: str | None = None
    position: tuple[str, int] | None = None


def problems(happened: History, records: Iterable[Record], epoch: str, digest: str) -> list[str]:
    """One line for each problem. `epoch` and `digest` are the broker's at the end."""
    last = max(happened, default=0)
    found = _holes("the history itself", sorted(happened), 0, last)
    for record in records:
        found += _problems_of(record, happened, last)
        if record.end == "alive":
            found += _differences(record, (epoch, last), digest)
    return found


def missed(happened: History, record: Record) -> int:
    """How many changes the worker should have reported and did not."""
    if record.start is None:
        return len(happened)
    seqs = [seq for seq, _ in record.told]
    end = max(happened, default=0) if record.end == "alive" else max(seqs, default=record.start)
    due = [seq for seq in happened if record.start < seq <= end]
    return sum(len(happened[seq]) for seq in due if seq not in seqs)


def _problems_of(record: Record, happened: History, last: int) -> list[str]:
    if record.start is None:
        return [f"{record.worker} never joined"]
    seqs = [seq for seq, _ in record.told]
    first = min([record.start, *[seq - 1 for seq in seqs[:1]]])
    end = last if record.end == "alive" else max(seqs, default=record.start)
    found = _holes(record.worker, seqs, first, end)
    for seq, changes in record.told:
        if _sorted(changes) != _sorted(happened.get(seq, [])):
            found.append(f"{record.worker} reported change {seq} differently from what happened")
    return found


def _holes(who: str, seqs: list[int], first: int, last: int) -> list[str]:
    """`seqs` must be exactly first + 1 .. last, in this order."""
    wanted = list(range(first + 1, last + 1))
    if seqs == wanted:
        return []
    lost = sorted(set(wanted) - set(seqs))
    if lost:
        return [f"{who} missed {', '.join(map(str, lost))}"]
    return [f"{who} reported changes twice, out of order, or from the future: {seqs}"]


def _differences(record: Record, position: tuple[str, int], digest: str) -> list[str]:
    if record.position != position:
        return [f"{record.worker} ends at {record.position}, the broker at {position}"]
    if record.digest != digest:
        return [f"{record.worker} has the digest {record.digest}, the broker {digest}"]
    return []


def _sorted(changes: Changes) -> Changes:
    return sorted(changes, key=lambda change: (change["kind"], change["function_id"] or "", change["worker_id"] or ""))
