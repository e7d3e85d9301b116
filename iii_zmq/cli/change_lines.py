"""Makes changes out of bare past deltas, for `watch --from`, without the content that the deltas changed.

A delta says which rows were put and which were dropped, but not whether a put row was new. That follows from

    earlier deltas of this stretch                             if they mention the row
    earlier deltas of this stretch                             if the worker joined in it: it had no rows before
    the delta's drops                                          if there are any: then all puts are promotions
    digest after = digest before + hashes of put rows - hashes of replaced and of dropped rows
                                                               if nothing was replaced: then all put rows are new

A doubt remains if one delta puts several rows, some new and some replaced, and none was mentioned before: then all of
them count as changed. In that case the caller reads the whole history of the epoch, from its empty beginning, where no
doubt can arise; that fails only if the broker no longer holds all of it. The names of workers that joined before the
stretch and left in it are not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from .. import wire
from ..core.worker.changes import ORDER, Change
from ..wire import Delta, RowKey, WorkerRow

_MODULUS = 1 << (8 * wire.DIGEST_BYTES)
# Kind by (existed before, exists now).
_WORKER = {(False, True): "worker_joined", (True, True): "worker_changed", (True, False): "worker_left"}
_FUNCTION = {(False, True): "function_added", (True, True): "function_changed", (True, False): "function_removed"}


@dataclass(slots=True, frozen=True)
class Present:
    """The registry at `seq`, from which the names and numbers of providers in the past follow."""

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
    """The changes that these deltas make; `digest` is the content's digest before the first one, if known."""
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
    """True if a new row may be taken for a changed one, or a changed row for a new one."""
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
    name = names.get(worker_id)
    return Change(event.kind, function_id or None, worker_id, name, event.reason, epoch, event.seq, count)


def _events(deltas: Iterable[Delta], digest: bytes | None) -> list[_Event]:
    """All events, in the order in which they are printed."""
    past = _Past()
    events: list[_Event] = []
    for delta in deltas:
        were_there = past.were_there(delta, digest)
        told = [_event(delta, key, True, False) for key in delta.drops]
        told += [_event(delta, key, key in were_there, True) for key in map(wire.row_key, delta.puts)]
        events += sorted(told, key=lambda event: ORDER.index(event.kind))
        past.take(delta, were_there)
        digest = delta.digest
    return events


class _Past:
    """The rows as far as the deltas so far show them: `_known` holds every mentioned row, or None if it is gone."""

    def __init__(self) -> None:
        self._known: dict[RowKey, bytes | None] = {}
        self._arrived: set[str] = set()  # workers that joined in this stretch: all their rows are known

    def unsure(self, delta: Delta) -> list[RowKey]:
        """The put rows about which nothing is known yet."""
        keys = map(wire.row_key, delta.puts)
        return [key for key in keys if key not in self._known and key[0] not in self._arrived]

    def were_there(self, delta: Delta, digest: bytes | None) -> set[RowKey]:
        """The keys of the put rows that existed before."""
        keys = [wire.row_key(row) for row in delta.puts]
        replaced = [self._known.get(key) for key in keys]
        there = {key for key, row in zip(keys, replaced, strict=True) if row is not None}
        unsure = self.unsure(delta)
        if unsure and (delta.drops or _replaces_unknown_rows(delta, replaced, digest)):
            there.update(unsure)
        return there

    def take(self, delta: Delta, were_there: set[RowKey]) -> None:
        """Notes the rows of a delta, before the next one."""
        put = {wire.row_key(row): row for row in delta.puts}
        self._arrived.update(key[0] for key in put if not key[1] and key not in were_there)
        self._known.update(dict.fromkeys(delta.drops))
        self._known.update(put)


def _replaces_unknown_rows(delta: Delta, replaced: Iterable[bytes | None], digest: bytes | None) -> bool:
    """True if more than these rows were replaced. Only for a delta that drops none."""
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
    """How many providers each function had before the first event: the present number minus the changes since."""
    counts = Counter(present.providers)
    for event in events:
        if event.seq <= present.seq:
            counts[event.key[1]] -= _step(event)
    return counts


def _step(event: _Event) -> int:
    return {"function_added": 1, "function_removed": -1}.get(event.kind, 0)
