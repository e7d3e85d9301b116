"""The truth: all workers and their functions, as numbered, atomic changes with a digest.

Invariant: `digest` is the sum of the hashes of exactly the rows in `_rows`, and delta `seq` leads from the content at
`seq - 1` to the content at `seq`. Every public method that changes something makes one delta, or none if nothing
differs. It knows nothing of sessions, sockets or liveness: the caller decides who left and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ... import errors, wire
from ...wire import FunctionEntry, ProviderRow, RowKey, WorkerRow
from .history import HISTORY_BYTES_MAX, HISTORY_MAX, History
from .ordered import Ordered

FUNCTIONS_MAX = 2_000_000  # provider rows in all: about 2 GB of memory
CONTENT_BYTES_MAX = 1024 * 1024 * 1024  # bytes of all rows: few entries near their own limit would fill the memory
IMAGE_DELTAS_MAX = 1024  # a cached snapshot that is older than this many deltas is made again,
IMAGE_REPLAY_SHARE = 0.125  # and so is one if the deltas since have more bytes than this share of the content

_FITNESS = {wire.READY: 0, wire.STALLED: 1, wire.DRAINING: 2}  # for promotion; the lowest comes first


@dataclass(slots=True)
class Provider:
    """One worker's offer of one function, for routing. `fence` is the seq of its promotion if it is exclusive."""

    worker_id: str
    flags: int
    active: bool
    fence: int
    entry: bytes


@dataclass(slots=True, frozen=True)
class Image:
    """The content at one position, for a snapshot: its rows were encoded once and are shared by all."""

    seq: int
    digest: bytes
    rows: list[bytes]
    recorded: int  # `history.bytes_ever` at that position


@dataclass(slots=True)
class _Draft:
    """A change in preparation; `Registry._commit` applies it. A key is in `puts` or in `drops`, never in both."""

    puts: dict[RowKey, bytes] = field(default_factory=dict)
    drops: dict[RowKey, None] = field(default_factory=dict)
    leaver: str = ""  # if set, the drops are all rows of this worker


class Registry:
    """The content and the numbered changes of one epoch."""

    def __init__(
        self, epoch: str, *, history_max: int = HISTORY_MAX, history_bytes_max: int = HISTORY_BYTES_MAX
    ) -> None:
        self.epoch = epoch
        self.history = History(history_max, history_bytes_max)
        self.workers: dict[str, WorkerRow] = {}
        self.providers: dict[str, list[Provider]] = {}  # in the order of registration: the order of promotion
        self.worker_ids = Ordered()  # the keys of `workers`
        self.function_ids = Ordered()  # the keys of `providers`
        self.offered: dict[str, dict[str, Provider]] = {}  # worker id -> function id -> its provider
        self.leads: dict[str, dict[str, None]] = {}  # worker id -> exclusive functions in which it is active
        self.provider_rows = 0
        self._rows: dict[RowKey, bytes] = {}
        self.rows_bytes = 0  # the size of all rows
        self._shares: dict[str, int] = {}  # worker id -> the sum of its rows' hashes
        self._total = 0  # the sum of all shares
        self._image: Image | None = None

    @property
    def seq(self) -> int:
        """The number of the last change."""
        return self.history.seq

    @property
    def digest(self) -> bytes:
        """16 bytes over the content now."""
        return wire.digest_bytes(self._total)

    # -- changes -------------------------------------------------------------------------------------------------------

    def join(self, row: WorkerRow) -> None:
        """Adds a worker, which must not exist yet."""
        assert row.worker_id not in self.workers
        self.workers[row.worker_id] = row
        self.worker_ids.add(row.worker_id)
        self.offered[row.worker_id] = {}
        self.leads[row.worker_id] = {}
        draft = _Draft()
        draft.puts[row.worker_id, ""] = wire.encode_row(row)
        self._commit("", draft)

    def leave(self, worker_id: str, reason: str) -> list[str]:
        """Removes the worker and its functions and promotes stand-bys; returns the ids of its functions."""
        del self.workers[worker_id]
        self.worker_ids.remove(worker_id)
        function_ids = list(self.offered.pop(worker_id))
        draft = _Draft(leaver=worker_id)
        alone = [function_id for function_id in function_ids if len(self.providers[function_id]) == 1]
        for function_id in alone:
            del self.providers[function_id]
        self.function_ids.remove_all(alone)  # all at once, since there may be 100,000
        self.provider_rows -= len(alone)
        if len(alone) < len(function_ids):
            for function_id in function_ids:
                if function_id in self.providers:
                    self._remove(draft, worker_id, function_id)
        del self.leads[worker_id]
        draft.drops = dict.fromkeys([*[(worker_id, function_id) for function_id in function_ids], (worker_id, "")])
        self._commit(reason, draft)
        return function_ids

    def set_state(self, worker_id: str, state: str) -> None:
        """Sets the worker's state: ready, stalled or draining."""
        row = self.workers[worker_id]
        if row.state == state:
            return
        row = self.workers[worker_id] = replace(row, state=state)
        draft = _Draft()
        draft.puts[worker_id, ""] = wire.encode_row(row)
        self._commit("", draft)

    def register(self, worker_id: str, batch: Iterable[tuple[int, FunctionEntry, bytes]]) -> list[wire.Refusal]:
        """Adds or changes functions of the worker, in one change. `batch` is (index, entry, the entry's bytes).

        Returns the refusals: `conflict` if others offer the function with a different `exclusive`, or `limit`.
        """
        draft = _Draft()
        refusals = []
        for index, entry, data in batch:
            refusal = self._refusal(worker_id, entry, data)
            if refusal is None:
                self._offer(draft, worker_id, entry, data)
            else:
                refusals.append((index, *refusal))
        self._commit("", draft)
        return refusals

    def unregister(self, worker_id: str, function_ids: list[str]) -> list[wire.Refusal]:
        """Removes functions of the worker, in one change. Returns the refusals: `not_registered`."""
        draft = _Draft()
        refusals = []
        for index, function_id in enumerate(function_ids):
            if self.offered[worker_id].pop(function_id, None) is None:
                text = f"{function_id[:200]!r} is not registered by this worker"
                refusals.append((index, errors.NOT_REGISTERED, text))
            else:
                self._remove(draft, worker_id, function_id)
        self._commit("unregistered", draft)
        return refusals

    def hand_over(self, worker_id: str, function_ids: Iterable[str]) -> list[str]:
        """Makes the active provider of these exclusive functions step back if another can take over, in one change.

        Returns the ids of the functions that were handed over. A draining worker takes nothing over.
        """
        draft = _Draft()
        handed_over = []
        for function_id in function_ids:
            providers = self.providers[function_id]
            heirs = [one for one in providers if not one.active and self._state_of(one) != wire.DRAINING]
            if heirs:
                active = self.offered[worker_id][function_id]
                active.active = False
                del self.leads[worker_id][function_id]
                self._put(draft, function_id, active)
                self._promote(draft, function_id, self._heir(heirs))
                handed_over.append(function_id)
        self._commit("", draft)
        return handed_over

    # -- what others read ----------------------------------------------------------------------------------------------

    def image(self) -> Image:
        """A snapshot of the current content or a slightly older one: `history.since(image.seq)` is held and short."""
        cached = self._image
        if cached is None or self._is_outdated(cached):
            cached = self._image = Image(self.seq, self.digest, list(self._rows.values()), self.history.bytes_ever)
        return cached

    def functions_digest(self, worker_id: str) -> bytes:
        """The digest in the Hello of a worker that still offers exactly its rows here."""
        return wire.functions_digest([provider.entry for provider in self.offered[worker_id].values()])

    # -- private -------------------------------------------------------------------------------------------------------

    def _is_outdated(self, image: Image) -> bool:
        """True if replaying the deltas since would take longer than a new copy; copying a small content is cheap."""
        replayed = self.history.bytes_ever - image.recorded
        too_many = self.seq - image.seq > IMAGE_DELTAS_MAX or not self.history.holds(image.seq)
        return too_many or replayed > self.rows_bytes * IMAGE_REPLAY_SHARE

    def _refusal(self, worker_id: str, entry: FunctionEntry, data: bytes) -> tuple[str, str] | None:
        providers = self.providers.get(entry.id, ())
        other = next((one for one in providers if one.worker_id != worker_id), None)
        if other is not None and bool(other.flags & wire.EXCLUSIVE) != entry.exclusive:
            theirs = "exclusive" if other.flags & wire.EXCLUSIVE else "not exclusive"
            return errors.CONFLICT, f"{entry.id!r} is registered as {theirs} by worker {other.worker_id}"
        known = self.offered[worker_id].get(entry.id)
        if known is None and self.provider_rows >= FUNCTIONS_MAX:
            return errors.LIMIT, f"the registry holds {FUNCTIONS_MAX} functions, which is its limit"
        if self.rows_bytes >= CONTENT_BYTES_MAX and (known is None or len(data) > len(known.entry)):
            return errors.LIMIT, f"the registry holds {CONTENT_BYTES_MAX} bytes, which is its limit"
        return None

    def _offer(self, draft: _Draft, worker_id: str, entry: FunctionEntry, data: bytes) -> None:
        known = self.offered[worker_id].get(entry.id)
        if known is None:
            known = Provider(worker_id, entry.flags, not entry.exclusive, 0, data)
            if entry.id not in self.providers:
                self.providers[entry.id] = []
                self.function_ids.add(entry.id)
            self.providers[entry.id].append(known)
            self.offered[worker_id][entry.id] = known
            self.provider_rows += 1
        elif (known.flags ^ entry.flags) & wire.EXCLUSIVE:  # its only provider changes the bit
            known.active, known.fence = not entry.exclusive, 0
            self.leads[worker_id].pop(entry.id, None)
        known.flags, known.entry = entry.flags, data
        if not known.active and not any(one.active for one in self.providers[entry.id]):
            self._promote(draft, entry.id, known)
        else:
            self._put(draft, entry.id, known)

    def _remove(self, draft: _Draft, worker_id: str, function_id: str) -> None:
        providers = self.providers[function_id]
        gone = next(one for one in providers if one.worker_id == worker_id)
        providers.remove(gone)
        self.provider_rows -= 1
        self.leads[worker_id].pop(function_id, None)
        draft.drops[worker_id, function_id] = None
        if not providers:
            del self.providers[function_id]
            self.function_ids.remove(function_id)
        elif gone.active and gone.flags & wire.EXCLUSIVE:
            self._promote(draft, function_id, self._heir(providers))

    def _promote(self, draft: _Draft, function_id: str, heir: Provider) -> None:
        heir.active = True
        heir.fence = self.seq + 1  # the seq of the delta that this draft becomes
        self.leads[heir.worker_id][function_id] = None
        self._put(draft, function_id, heir)

    def _heir(self, stand_bys: list[Provider]) -> Provider:
        """The first ready stand-by, else the first stalled one, else the first of all."""
        return min(stand_bys, key=lambda one: _FITNESS[self._state_of(one)])

    def _state_of(self, provider: Provider) -> str:
        return self.workers[provider.worker_id].state

    def _put(self, draft: _Draft, function_id: str, provider: Provider) -> None:
        key = (provider.worker_id, function_id)
        draft.puts[key] = wire.encode_row(ProviderRow(*key, provider.active, provider.entry))

    def _commit(self, reason: str, draft: _Draft) -> None:
        """Applies the draft as one delta; ignores rows that stay the same."""
        puts = {key: row for key, row in draft.puts.items() if self._rows.get(key) != row}
        if not puts and not draft.drops:
            return
        dropped = [self._rows.pop(key) for key in draft.drops]
        self.rows_bytes -= sum(map(len, dropped))
        if draft.leaver:  # its share is removed as a whole, so none of its rows is hashed
            self._total -= self._shares.pop(draft.leaver)
        else:
            for (worker_id, _), row in zip(draft.drops, dropped, strict=True):
                self._add_share(worker_id, -wire.row_hash(row))
        for key, row in puts.items():
            self._put_row(key, row)
        delta = wire.Delta(self.seq + 1, self.digest, reason, tuple(puts.values()), tuple(draft.drops), draft.leaver)
        self.history.record(wire.encode_delta(delta))

    def _put_row(self, key: RowKey, row: bytes) -> None:
        before = self._rows.get(key)
        share = wire.row_hash(row)
        if before is not None:
            share -= wire.row_hash(before)
            self.rows_bytes -= len(before)
        self._rows[key] = row
        self.rows_bytes += len(row)
        self._add_share(key[0], share)

    def _add_share(self, worker_id: str, share: int) -> None:
        self._total += share
        self._shares[worker_id] = self._shares.get(worker_id, 0) + share
