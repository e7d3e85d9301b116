"""The broker's own log, epoch by epoch: the truth that all else is compared with, and the rules for itself.

Invariant: `deltas[seq - 1]` led to the content at `seq`. Contents are rebuilt from the nearest checkpoint before them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..records import Record
from .verdict import Verdict

LEAVING = ("bye", "died", "silent", "replaced")
NEVER = ("malformed", "forged")  # counters of the broker
CHECKPOINT_EVERY = 64
DIGESTS = 1 << 128

Key = tuple[str, str]
"""(worker id, function id); the function id is "" for a worker's own row."""

Told = tuple[str, "str | None", str, "str | None", "str | None", "int | None"]
"""One change as users hear it: (kind, function, worker id, worker name, reason, providers left)."""


class Row(NamedTuple):
    digest: str
    name: str  # of a worker, "" for a provider
    active: bool
    exclusive: bool


Rows = dict[Key, Row]


class _Delta(NamedTuple):
    puts: Rows
    drops: list[Key]
    digest: str
    told: list[Told]


class History:
    """One epoch."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.deltas: list[_Delta] = []
        self.handed: dict[str, int] = {}  # exclusive function -> the highest fence that left with a call
        self._rows: Rows = {}
        self._holders: dict[str, set[str]] = defaultdict(set)  # function id -> worker ids
        self._total = 0
        self._checkpoints: list[Rows] = [{}]

    @property
    def seq(self) -> int:
        return len(self.deltas)

    def digest_at(self, seq: int) -> str:
        return self.deltas[seq - 1].digest if seq else f"{0:032x}"

    def told_at(self, seq: int) -> list[Told]:
        """What everybody is to hear of this delta."""
        return self.deltas[seq - 1].told

    def holds(self, seq: int) -> bool:
        return 0 <= seq <= self.seq

    def rows_at(self, seq: int) -> Rows:
        rows = dict(self._checkpoints[seq // CHECKPOINT_EVERY])
        for delta in self.deltas[seq // CHECKPOINT_EVERY * CHECKPOINT_EVERY : seq]:
            _apply(rows, delta)
        return rows


class Log:
    """All epochs, and what the rules about calls and registrations ask of them."""

    def __init__(self, verdict: Verdict) -> None:
        self.histories: dict[str, History] = {}
        self.promotions: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)  # (function, worker name)
        self.exclusive: set[str] = set()  # functions
        self._added: dict[tuple[str, str], list[float]] = defaultdict(list)  # (worker name, function) -> when
        self._verdict = verdict

    def times_added(self, name: str, function: str, until: float) -> int:
        """How often a worker of this name had got the function into the registry by then."""
        return bisect_right(self._added[name, function], until)

    def read(self, records: Iterable[Record]) -> None:
        """One broker's life."""
        history: History | None = None
        for record in records:
            if record["what"] == "serving":
                history = self.histories[record["epoch"]] = History(record["epoch"])
                self._verdict.counts["lives of the broker"] += 1
            elif record["what"] == "delta":
                assert history is not None
                self._take(history, record)
            elif record["what"] == "handed":
                assert history is not None
                self._check_fence(history, record)
            elif record["what"] == "closing":
                self._check_counters(record)

    # -- one delta -----------------------------------------------------------------------------------------------------

    def _take(self, history: History, record: Record) -> None:
        offend = self._verdict.offend
        if record["seq"] != history.seq + 1:
            offend("log numbered", f"delta {record['seq']} follows {history.seq}", record)
            return
        puts = {(put[0], put[1]): _row(put) for put in record["puts"]}
        drops = [(drop[0], drop[1]) for drop in record["drops"]]
        before = {key: row for key in (*puts, *drops) if (row := history._rows.get(key)) is not None}
        for key in drops:
            if key not in before:
                offend("log numbered", f"{key} is dropped, and was not there", record)
        self._check_ownership(history, record, puts, drops, before)
        names = _names(history._rows, puts, {worker_id for worker_id, _ in (*puts, *drops)})
        self._apply(history, puts, drops, before)
        digest = f"{history._total % DIGESTS:032x}"
        if digest != record["digest"]:
            offend("log numbered", f"the digest of the content at {record['seq']} is {digest}", record)
        told = _told(puts, drops, before, names, history._holders, record["reason"] or None)
        history.deltas.append(_Delta(puts, drops, record["digest"], told))
        if history.seq % CHECKPOINT_EVERY == 0:
            history._checkpoints.append(dict(history._rows))
        self._note(history, record, puts, before, names)
        self._verdict.counts["changes committed"] += 1

    def _apply(self, history: History, puts: Rows, drops: list[Key], before: Rows) -> None:
        history._total += sum(int(row.digest, 16) for row in puts.values())
        history._total -= sum(int(row.digest, 16) for row in before.values())
        _apply(history._rows, _Delta(puts, drops, "", []))
        for worker_id, function in drops:
            history._holders[function].discard(worker_id)
        for worker_id, function in puts:
            history._holders[function].add(worker_id)

    def _check_ownership(self, history: History, record: Record, puts: Rows, drops: list[Key], before: Rows) -> None:
        def offend(text: str) -> None:
            self._verdict.offend("owned", text, record)

        owners = {worker_id for worker_id, _ in drops}
        reason = record["reason"]
        if not reason:
            if drops:
                offend("rows are dropped without a reason")
            return
        if len(owners) != 1:
            offend(f"rows of {len(owners)} workers are dropped at once")
            return
        (owner,) = owners
        if reason in LEAVING:
            left = [key for key in history._rows if key[0] == owner and key not in drops]
            if left:
                offend(f"{owner} leaves {left} behind")
            self._verdict.counts[f"left: {reason}"] += 1
        elif reason != "unregistered" or (owner, "") in drops:
            offend(f"the reason {reason!r} does not fit")
        dropped = {function for _, function in drops}
        for key, row in puts.items():
            was = before.get(key)
            is_promotion = was is not None and row.exclusive and not was.active and row.active and key[1] in dropped
            if not is_promotion:
                offend(f"{owner} goes, and {key} is changed")

    def _note(self, history: History, record: Record, puts: Rows, before: Rows, names: dict[str, str]) -> None:
        """Remembers what became active, and checks that each function touched has the providers it should have."""
        touched = {function for _, function in (*puts, *before) if function}
        for (worker_id, function), row in puts.items():
            was = before.get((worker_id, function))
            name = names.get(worker_id, "")
            if function and was is None:
                self._added[name, function].append(record["at"])
            if row.exclusive:
                self.exclusive.add(function)
                if row.active and not (was is not None and was.active and was.exclusive):
                    self.promotions[function, name].add((history.epoch, record["seq"]))
                    self._verdict.counts["promotions"] += 1
        for function in touched:
            rows = [history._rows[worker_id, function] for worker_id in history._holders[function]]
            active = sum(row.active for row in rows)
            kinds = {row.exclusive for row in rows}
            if kinds == {True} and active != 1:
                self._verdict.offend("one active", f"{function} has {active} active providers", record)
            elif kinds == {True, False}:
                self._verdict.offend("one active", f"providers of {function} disagree about `exclusive`", record)
            elif kinds == {False} and active != len(rows):
                self._verdict.offend("one active", f"{function} is not exclusive, and a provider stands by", record)

    def _check_fence(self, history: History, record: Record) -> None:
        function, fence = record["function"], record["fence"]
        self._verdict.counts["calls handed over with a fence"] += 1
        if fence < history.handed.get(function, 0):
            text = f"{function}: a call left with fence {fence} after one with {history.handed[function]}"
            self._verdict.offend("fences", text, record)
        history.handed[function] = max(fence, history.handed.get(function, 0))

    def _check_counters(self, record: Record) -> None:
        """Nobody sends anything but what the library makes."""
        counters = record["counters"]
        for name in NEVER:
            if counters[name]:
                self._verdict.offend("no accident", f"the broker counted {counters[name]} {name}", record)
        for name in ("kept", "pauses", "resumes", "snapshots", "calls_rerouted", "results_late", "renewals"):
            self._verdict.counts[f"counted by brokers that closed: {name}"] += counters[name]


def differences(before: Rows, after: Rows) -> list[Told]:
    """What a `reset` that leads from one content to the other is to be followed by."""
    puts = {key: row for key, row in after.items() if before.get(key) != row}
    drops = [key for key in before if key not in after]
    holders: dict[str, set[str]] = defaultdict(set)
    for worker_id, function in after:
        holders[function].add(worker_id)
    touched = {key: row for key, row in before.items() if key in puts or key not in after}
    names = _names(before, after, {worker_id for worker_id, _ in (*puts, *drops)})
    return _told(puts, drops, touched, names, holders, None)


def _told(
    puts: Rows, drops: list[Key], before: Rows, names: dict[str, str], holders: dict[str, set[str]], reason: str | None
) -> list[Told]:
    told: list[Told] = []
    for worker_id, function in drops:
        name = names.get(worker_id)
        if function:
            told.append(("function_removed", function, worker_id, name, reason, len(holders[function])))
        else:
            told.append(("worker_left", None, worker_id, name, reason, None))
    for (worker_id, function), row in puts.items():
        was, name = before.get((worker_id, function)), names.get(worker_id)
        if was == row:
            continue
        if function:
            kind = "function_added" if was is None else "function_changed"
            told.append((kind, function, worker_id, name, None, len(holders[function])))
        else:
            told.append(("worker_joined" if was is None else "worker_changed", None, worker_id, name, None, None))
    return told


def _names(before: Rows, puts: Rows, worker_ids: set[str]) -> dict[str, str]:
    """Worker id -> the name in its row after the change, or before it."""
    found = {worker_id: puts.get((worker_id, "")) or before.get((worker_id, "")) for worker_id in worker_ids}
    return {worker_id: row.name for worker_id, row in found.items() if row is not None}


def _apply(rows: Rows, delta: _Delta) -> None:
    for key in delta.drops:
        rows.pop(key, None)
    rows.update(delta.puts)


def _row(put: list[Any]) -> Row:
    if put[1]:
        return Row(put[2], "", put[3], put[4])
    return Row(put[2], put[3], True, False)
