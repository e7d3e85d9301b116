"""What each worker heard, change by change, against the broker's log."""

from __future__ import annotations

from typing import Any

from ..records import Record
from .log import Log, Told, differences
from .verdict import Verdict

RESET = "reset"


class Stream:
    """One worker's. Changes are gathered into groups of one position each; a `reset` begins a group of its own."""

    def __init__(self, worker: str, log: Log, verdict: Verdict) -> None:
        self._worker = worker
        self._log = log
        self._verdict = verdict
        self._position: tuple[str, int] | None = None  # after the last group that ended
        self._first: tuple[str, int] | None = None  # of the first group; None as well when that is a reset
        self._joined: Record | None = None
        self._level: Record | None = None
        self._group: list[Record] = []

    # -- records, in the order in which they were written --------------------------------------------------------------

    def joined(self, record: Record) -> None:
        self._joined = record

    def level(self, record: Record) -> None:
        self._level = record

    def heard(self, record: Record) -> None:
        self._verdict.counts["changes heard"] += 1
        group = self._group
        is_next = bool(group) and group[0]["change"][:2] == record["change"][:2] and record["change"][2] != RESET
        if group and not is_next:
            self._end_group(is_whole=True)
        self._group.append(record)

    def end(self, *, was_killed: bool) -> None:
        """No more records. Who was killed may have been so between two changes of one group."""
        if self._group:
            self._end_group(is_whole=not was_killed)
        self._check_start()
        self._check_end()

    # -- groups --------------------------------------------------------------------------------------------------------

    def _end_group(self, *, is_whole: bool) -> None:
        group, self._group = self._group, []
        epoch, seq, kind = group[0]["change"][:3]
        history = self._log.histories.get(epoch)
        if history is None or not history.holds(seq):
            self._offend("ordered", f"heard of {epoch}:{seq}, which the broker's log does not hold", group[0])
            return
        if kind == RESET:
            self._verdict.counts["resets"] += 1
            expected = self._differences(epoch, seq)
            group = group[1:]
        else:
            self._check_order(epoch, seq, group[0])
            expected = history.told_at(seq) if seq else []
        self._position = (epoch, seq)
        if expected is not None:
            self._compare([_told(record) for record in group], expected, is_whole, (epoch, seq), group)

    def _check_order(self, epoch: str, seq: int, record: Record) -> None:
        if self._position is None:
            self._first = (epoch, seq)
        elif self._position != (epoch, seq - 1):
            self._offend("ordered", f"heard {epoch}:{seq} after {self._position[0]}:{self._position[1]}", record)

    def _differences(self, epoch: str, seq: int) -> list[Told] | None:
        """What is to follow a reset to this position; None when it is not known what it replaced."""
        after = self._log.histories[epoch].rows_at(seq)
        if self._position is None:
            return None
        before = self._log.histories[self._position[0]].rows_at(self._position[1])
        return differences(before, after)

    def _compare(
        self, told: list[Told], expected: list[Told], is_whole: bool, at: tuple[str, int], group: list[Record]
    ) -> None:
        """The order within a group is not promised."""
        missing, invented = _without(expected, told), _without(told, expected)
        if (missing and is_whole) or invented:
            text = f"at {at[0]}:{at[1]} {missing} missed, {invented} invented"
            self._offend("atomic", text, *group[:10])

    # -- both ends -----------------------------------------------------------------------------------------------------

    def _check_start(self) -> None:
        """Nothing is told before the replica is complete; from then on everything is."""
        joined, first = self._joined, self._first
        if joined is not None and first is not None and first[0] == joined["epoch"] and first[1] > joined["seq"] + 1:
            self._offend("complete", f"the first change heard is {first[1]}, after joining at {joined['seq']}", joined)

    def _check_end(self) -> None:
        level, joined = self._level, self._joined
        if level is None:
            return
        position = self._position
        if position is None and joined is not None:
            position = (joined["epoch"], joined["seq"])
        if position is None or position[0] != level["epoch"] or position[1] < level["seq"]:
            self._offend("complete", f"stands at {level['epoch']}:{level['seq']}, and heard up to {position}", level)

    def _offend(self, rule: str, text: str, *records: Record) -> None:
        self._verdict.offend(f"streams {rule}", f"{self._worker} {text}", *records)


def _told(record: Record) -> Told:
    _, _, kind, function, worker_id, name, reason, left = record["change"]
    return kind, function, worker_id, name, reason, left


def _without(some: list[Told], others: list[Told]) -> list[Any]:
    """What is in the first list more often than in the second."""
    rest = list(some)
    for other in others:
        if other in rest:
            rest.remove(other)
    return rest
