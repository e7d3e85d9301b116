"""The registry's content in a replica: packed rows, found by worker and by function, and their digest.

Invariant: `total` is the sum of the hashes of exactly the rows held. A function id is in `_holders` if and only if a
worker's row offers it, or that of a worker in `_gone`. Rows stay packed as they came: 100,000 of them cost memory, but
no object that Python's cyclic collector must visit. This module knows nothing of positions, answers or gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from ... import wire
from ...errors import ProtocolError
from ...wire import ProviderRow, RowKey, WorkerRow

Edit = tuple[RowKey, "bytes | None", "bytes | None"]
"""One edited row: (key, before, after). `before` is None for a new row, `after` for a dropped one."""


_NONE: dict[str, bytes] = {}


@dataclass(slots=True, frozen=True)
class Step:
    """One delta, read and checked: it leads from one content to the next.

    If a worker left, `drops` is not read: every row we hold of that worker goes, and the digest verifies it.
    """

    seq: int
    digest: bytes
    reason: str
    puts: dict[RowKey, bytes]
    hashes: dict[RowKey, int]  # of the rows in `puts`
    drops: tuple[RowKey, ...]
    leaver: str
    size: int


RowRead = tuple[bytes, str, str, int]
"""A row, its worker, its function (or ""), and its part of the digest."""


class Leave(NamedTuple):
    """A worker that left with all its rows: its own and those of its functions."""

    worker_id: str
    row: bytes
    offers: dict[str, bytes]


class Applied(NamedTuple):
    """The result of a step."""

    edits: list[Edit]
    leave: Leave | None


def read_step(data: bytes) -> Step:
    """Reads a packed delta; its rows are checked and keyed. Raises: ProtocolError."""
    seq, digest, reason, rows, packed, leaver = wire.delta_fields(data)
    drops = () if leaver else tuple(dict.fromkeys(wire.decode_drops(packed)))
    puts = {wire.row_key(row): row for row in rows}
    if len(puts) != len(rows) or not puts.keys().isdisjoint(drops):
        raise ProtocolError(f"delta {seq} names a row more than once")
    if leaver and leaver in [owner for owner, _ in puts]:
        raise ProtocolError(f"delta {seq} puts a row of {leaver!r:.100} and says that this worker left")
    hashes = {key: wire.row_hash(row) for key, row in puts.items()}
    return Step(seq, digest, reason, puts, hashes, drops, leaver, len(data))


def read_row(row: bytes) -> RowRead:
    """Reads and checks a packed row. Raises: ProtocolError."""
    worker_id, function_id = wire.row_key(row)
    return row, worker_id, function_id, int.from_bytes(blake2b(row, digest_size=wire.DIGEST_BYTES).digest(), "big")


def read_worker(data: bytes) -> WorkerRow:
    """Decodes a worker's own row, which was checked when it was stored."""
    row = wire.decode_row(data)
    assert isinstance(row, WorkerRow)
    return row


def read_offer(data: bytes) -> ProviderRow:
    """Decodes a provider row, which was checked when it was stored."""
    row = wire.decode_row(data)
    assert isinstance(row, ProviderRow)
    return row


class Content:
    """Rows by key. One thread writes; others may read at any time, and may then see part of a change."""

    __slots__ = ("_gone", "_holders", "_ids", "_offers", "_several", "_shares", "_workers", "total")

    def __init__(self) -> None:
        self.total = 0
        self._workers: dict[str, bytes] = {}  # worker id -> its row
        self._shares: dict[str, int] = {}  # worker id -> its rows' part of `total`
        self._offers: dict[str, dict[str, bytes]] = {}  # worker id -> function id -> provider row
        # Function id -> the worker id of its only provider, or several ids in order of arrival. A dict for each of
        # 100,000 functions would cost as much as everything else together.
        self._holders: dict[str, str | dict[str, None]] = {}
        # Workers that left, with their functions: `_holders` still names them until `tidy`. When a host dies, the users
        # of a hundred replicas hear of it first; its rows are removed from memory afterwards.
        self._gone: dict[str, dict[str, bytes]] = {}
        self._several = 0  # number of functions whose holders are a dict
        self._ids: dict[str, str] = {}  # one copy of every worker id: each unpacked row brings another one

    @property
    def digest(self) -> bytes:
        """16 bytes over the rows."""
        return wire.digest_bytes(self.total)

    # -- reading: safe while another thread writes ---------------------------------------------------------------------

    def worker_ids(self) -> list[str]:
        return list(self._workers)

    def function_ids(self) -> list[str]:
        ids = list(self._holders)
        return [function_id for function_id in ids if self.is_offered(function_id)] if self._gone else ids

    def worker_count(self) -> int:
        return len(self._workers)

    def function_count(self) -> int:
        return len(self.function_ids()) if self._gone else len(self._holders)

    def is_offered(self, function_id: str) -> bool:
        return self.holder_count(function_id) > 0

    def holders(self, function_id: str) -> list[str]:
        """The ids of the workers that offer the function, in order of arrival."""
        holder = self._holders.get(function_id, {})
        holders = [holder] if isinstance(holder, str) else list(holder)
        return [worker_id for worker_id in holders if worker_id not in self._gone] if self._gone else holders

    def holder_count(self, function_id: str) -> int:
        """How many workers offer the function."""
        if self._gone:
            return len(self.holders(function_id))
        holder = self._holders.get(function_id)
        if holder is None:
            return 0
        return 1 if isinstance(holder, str) else len(holder)

    def others(self, leave: Leave) -> dict[str, int]:
        """Of the functions that left: function id -> how many workers still offer it, if any do."""
        if not self._several:
            return {}
        holders, own = self._holders, leave.worker_id
        shared = [function_id for function_id in leave.offers if holders[function_id] is not own]
        counts = {function_id: self.holder_count(function_id) for function_id in shared}
        return {function_id: count for function_id, count in counts.items() if count}

    def offers(self, worker_id: str) -> list[str]:
        """The ids of the functions that the worker offers."""
        return list(self._offers.get(worker_id, ()))

    def get(self, key: RowKey) -> bytes | None:
        """The row's bytes, or None."""
        worker_id, function_id = key
        return self._offers.get(worker_id, {}).get(function_id) if function_id else self._workers.get(worker_id)

    def items(self) -> Iterator[tuple[RowKey, bytes]]:
        """All rows, the workers' own first. Do not call it while another thread writes."""
        for worker_id, row in self._workers.items():
            yield (worker_id, ""), row
        for worker_id, offers in self._offers.items():
            for function_id, row in offers.items():
                yield (worker_id, function_id), row

    # -- writing -------------------------------------------------------------------------------------------------------

    def load(self, rows: Iterable[bytes], read: Callable[[bytes], RowRead] = read_row) -> None:
        """Adds the new rows of a snapshot, in one tight loop.

        Raises: ProtocolError for a malformed or repeated row; the content is then useless.
        """
        holders, shares = self._holders, self._shares
        previous, worker_id = None, ""
        offers: dict[str, bytes] = {}
        for row, owner, function_id, share in map(read, rows):
            self.total += share
            if owner != previous:  # rows of one worker mostly come together
                previous = owner
                worker_id, offers = self._shelf(owner)
            shares[worker_id] = shares.get(worker_id, 0) + share
            if function_id in offers or (not function_id and worker_id in self._workers):
                raise ProtocolError(f"a snapshot has two rows of worker {worker_id!r:.100} {function_id!r:.250}")
            if not function_id:
                self._workers[worker_id] = row
                continue
            offers[function_id] = row
            if holders.setdefault(function_id, worker_id) is not worker_id:
                self._add_holder(function_id, worker_id)

    def apply(self, step: Step) -> Applied | None:
        """Applies the delta and returns its result, or None if the digest would not match the delta's.

        Then nothing is changed: the old state was verified once, and is better than one that never was.
        """
        edits, shares = self._edits_of(step)
        if step.leaver:
            if step.leaver not in self._workers:
                return None
            shares[step.leaver] = -self._shares[step.leaver]
        total = self.total + sum(shares.values())
        if wire.digest_bytes(total) != step.digest:
            return None
        self.total = total
        if edits:
            self.tidy()
            self._edit(edits)
        leave = self._drop_worker(step.leaver) if step.leaver else None
        for owner, share in shares.items():
            if owner in self._offers:
                self._shares[owner] = self._shares.get(owner, 0) + share
            else:
                self._shares.pop(owner, None)
        return Applied(edits, leave)

    def tidy(self) -> None:
        """Forgets the functions of workers that have left."""
        if not self._gone:
            return
        for worker_id, offers in self._gone.items():
            for function_id in offers:
                self._drop_holder(function_id, worker_id)
        self._gone = {}

    def edits_to(self, other: Content) -> list[Edit]:
        """The edits that turn this content into the other one."""
        edits: list[Edit] = [(key, row, None) for key, row in self.items() if other.get(key) is None]
        edits += [(key, self.get(key), row) for key, row in other.items() if self.get(key) != row]
        return edits

    # -- private -------------------------------------------------------------------------------------------------------

    def _drop_worker(self, worker_id: str) -> Leave:
        """Drops every row of the worker."""
        own = self._ids.pop(worker_id)
        offers = self._gone[own] = self._offers[own]  # before the next line: a reader must find it in one of the two
        del self._offers[own]
        return Leave(own, self._workers.pop(own), offers)

    def _edits_of(self, step: Step) -> tuple[list[Edit], dict[str, int]]:
        """The edits that the step's drops and puts make here, and by how much they change each worker's share."""
        edits: list[Edit] = []
        shares: dict[str, int] = {}
        row_hash, workers, offers = wire.row_hash, self._workers, self._offers
        for key in step.drops:
            before = self.get(key)
            if before is not None:
                edits.append((key, before, None))
                shares[key[0]] = shares.get(key[0], 0) - row_hash(before)
        for key, row in step.puts.items():
            owner, function_id = key
            before = offers.get(owner, _NONE).get(function_id) if function_id else workers.get(owner)
            if before != row:
                edits.append((key, before, row))
                share = step.hashes[key] if before is None else step.hashes[key] - row_hash(before)
                shares[owner] = shares.get(owner, 0) + share
        return edits, shares

    def _edit(self, edits: list[Edit]) -> None:
        previous, offers, worker_id = None, _NONE, ""
        for key, before, after in edits:
            owner, function_id = key
            if after is None:
                self._drop(key)
                previous = None
                continue
            if owner != previous:  # rows of one worker mostly come together
                previous = owner
                worker_id, offers = self._shelf(owner)
            if not function_id:
                self._workers[worker_id] = after
            else:
                offers[function_id] = after
                if before is None:
                    self._add_holder(function_id, worker_id)

    def _shelf(self, worker_id: str) -> tuple[str, dict[str, bytes]]:
        """The one copy of the worker's id, and its offers; both exist while the worker has any row."""
        worker_id = self._ids.setdefault(worker_id, worker_id)
        return worker_id, self._offers.setdefault(worker_id, {})

    def _drop(self, key: RowKey) -> None:
        worker_id, function_id = key
        offers = self._offers[worker_id]
        if function_id:
            del offers[function_id]
            self._drop_holder(function_id, worker_id)
        else:
            del self._workers[worker_id]
        if not offers and worker_id not in self._workers:
            del self._offers[worker_id], self._ids[worker_id]

    def _add_holder(self, function_id: str, worker_id: str) -> None:
        """Adds a worker that is not yet a holder."""
        holder = self._holders.setdefault(function_id, worker_id)
        if isinstance(holder, dict):
            holder[worker_id] = None
        elif holder is not worker_id:
            self._holders[function_id] = {holder: None, worker_id: None}
            self._several += 1

    def _drop_holder(self, function_id: str, worker_id: str) -> None:
        holder = self._holders[function_id]
        if isinstance(holder, str):
            del self._holders[function_id]
            return
        del holder[worker_id]
        if len(holder) == 1:
            self._holders[function_id] = next(iter(holder))
            self._several -= 1
