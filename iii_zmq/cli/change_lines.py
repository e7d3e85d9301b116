"""Changes out of the bare deltas of the past, for `watch --from`, without the content that they changed.

A delta says which rows were put and which dropped, not whether a put row was new. That is told by

    what the earlier deltas of the stretch say of the row             if they mention it
    what they say of its worker: who joined here had no rows before   if they do
    the delta's drops: whoever goes leaves only promotions behind     if it has any
    digest after = digest before + hashes of put rows - hashes of the rows they replace and of those dropped
                                                                      so that nothing replaced means: all are new

That leaves a doubt where one delta puts several rows, of which some are new and some replaced, and none was mentioned
before: then all are told as changed. Who meets a doubt tells the whole history of the epoch instead, from its empty
beginning, in which there is none; that fails only where the broker no longer holds all of it. Names of workers who had
gone by the end and came before the start are not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from .. import wire
from ..core.worker.changes import (
    FUNCTION_ADDED,
    FUNCTION_CHANGED,
    FUNCTION_REMOVED,
    WORKER_CHANGED,
    WORKER_JOINED,
    WORKER_LEFT,
    Change,
)
from ..wire import Delta, RowKey, WorkerRow

_MODULUS = 1 << (8 * wire.DIGEST_BYTES)
# Kind by (was there before, is there now), in the order in which one delta's changes are told.
_WORKER = {(False, True): WORKER_JOINED, (True, True): WORKER_CHANGED, (True, False): WORKER_LEFT}
_FUNCTION = {(False, True): FUNCTION_ADDED, (True, True): FUNCTION_CHANGED, (True, False): FUNCTION_REMOVED}
_ORDER = (WORKER_JOINED, FUNCTION_ADDED, FUNCTION_CHANGED, FUNCTION_REMOVED, WORKER_CHANGED, WORKER_LEFT)


@dataclass(slots=True, frozen=True)
class Present:
    """What is known of the registry at `seq`, from which the past's names and numbers of providers follow."""

    seq: int
    names: Mapping[str, str]
    providers: Mapping[str, int]


@dataclass(slots=True, frozen=True)
class _Event:
    seq: int
    kind: str
    key: RowKey
    reason: str | None


def retell(epoch: str, deltas: Sequence[Delta], digest: bytes | None, present: Present) -> list[Change]:
    """The changes that the deltas amount to; `digest` is the content's before the first, if known."""
    events = _events(deltas, digest)
    names = {**present.names, **_names(deltas)}
    counts = _counts_before(events, present)
    changes: list[Change] = []
    for _, batch in groupby(events, lambda event: event.seq):
        together = list(batch)
        for event in together:
            counts[event.key[1]] += _step(event)
        changes += [_change(event, names, counts, epoch) for event in together]
    return changes


def leaves_doubt(deltas: Iterable[Delta], digest: bytes | None) -> bool:
    """Whether some row may be told as changed that was new, or as new that was changed."""
    past = _Past()
    for delta in deltas:
        unsure = past.unsure(delta)
        if unsure and not delta.drops and (digest is None or (len(unsure) > 1 and past.were_there(delta, digest))):
            return True
        past.take(delta, past.were_there(delta, digest))
        digest = delta.digest
    return False


def _change(event: _Event, names: Mapping[str, str], counts: Mapping[str, int], epoch: str) -> Change:
    worker_id, function_id = event.key
    count = counts[function_id] if function_id else None
    return Change(
        event.kind, function_id or None, worker_id, names.get(worker_id), event.reason, epoch, event.seq, count
    )


def _events(deltas: Iterable[Delta], digest: bytes | None) -> list[_Event]:
    """All that happened, in the order in which it is told."""
    past = _Past()
    events: list[_Event] = []
    for delta in deltas:
        were_there = past.were_there(delta, digest)
        told = [_event(delta, key, True, False) for key in delta.drops]
        told += [_event(delta, key, key in were_there, True) for key in map(wire.row_key, delta.puts)]
        events += sorted(told, key=lambda event: _ORDER.index(event.kind))
        past.take(delta, were_there)
        digest = delta.digest
    return events


class _Past:
    """What the deltas so far tell of rows: `known` holds the rows that they mention, None where one is not there."""

    def __init__(self) -> None:
        self._known: dict[RowKey, bytes | None] = {}
        self._arrived: set[str] = set()  # workers that joined in this stretch: all their rows are known

    def unsure(self, delta: Delta) -> list[RowKey]:
        """The put rows of which nothing is known yet."""
        keys = map(wire.row_key, delta.puts)
        return [key for key in keys if key not in self._known and key[0] not in self._arrived]

    def were_there(self, delta: Delta, digest: bytes | None) -> set[RowKey]:
        """Which of the put rows were there before."""
        keys = [wire.row_key(row) for row in delta.puts]
        replaced = [self._known.get(key) for key in keys]
        there = {key for key, row in zip(keys, replaced, strict=True) if row is not None}
        unsure = self.unsure(delta)
        if unsure and (delta.drops or _replaces_unknown_rows(delta, replaced, digest)):
            there.update(unsure)
        return there

    def take(self, delta: Delta, were_there: set[RowKey]) -> None:
        """The next one is told."""
        put = {wire.row_key(row): row for row in delta.puts}
        self._arrived.update(key[0] for key in put if not key[1] and key not in were_there)
        self._known.update(dict.fromkeys(delta.drops))
        self._known.update(put)


def _replaces_unknown_rows(delta: Delta, replaced: Iterable[bytes | None], digest: bytes | None) -> bool:
    """Whether more than these rows were replaced. Only for a delta that drops none."""
    if digest is None:
        return False
    before, after = int.from_bytes(digest, "big"), int.from_bytes(delta.digest, "big")
    put = sum(map(wire.row_hash, delta.puts))
    return (before + put - after - sum(wire.row_hash(row) for row in replaced if row is not None)) % _MODULUS != 0


def _event(delta: Delta, key: RowKey, was: bool, is_: bool) -> _Event:
    kinds = _FUNCTION if key[1] else _WORKER
    return _Event(delta.seq, kinds[was, is_], key, None if is_ else delta.reason or None)


def _names(deltas: Iterable[Delta]) -> dict[str, str]:
    rows = [wire.decode_row(row) for delta in deltas for row in delta.puts]
    return {row.worker_id: row.name for row in rows if isinstance(row, WorkerRow)}


def _counts_before(events: Iterable[_Event], present: Present) -> Counter[str]:
    """How many providers each function had before the first event: those at present, less what came since."""
    counts = Counter(present.providers)
    for event in events:
        if event.seq <= present.seq:
            counts[event.key[1]] -= _step(event)
    return counts


def _step(event: _Event) -> int:
    return {FUNCTION_ADDED: 1, FUNCTION_REMOVED: -1}.get(event.kind, 0)
