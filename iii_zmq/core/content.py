"""The registry's content as a replica keeps it: packed rows, found by worker and by function, and their digest.

Invariant: `total` is the sum of the hashes of exactly the rows held, and a function id is in `_holders` if and only if
some worker's row offers it. Rows stay packed as they came: 100,000 of them cost memory, but no object that Python's
cyclic collector would have to visit. It knows nothing of positions, answers or gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from .. import wire
from ..errors import ProtocolError
from ..wire import ProviderRow, RowKey, WorkerRow

Edit = tuple[RowKey, "bytes | None", "bytes | None"]
"""What happens to one row: (key, before, after). `before` is None for a new one, `after` for one that goes."""


@dataclass(slots=True, frozen=True)
class Step:
    """One delta, read and checked: what leads from one content to the next."""

    seq: int
    digest: bytes
    reason: str
    puts: dict[RowKey, bytes]
    drops: tuple[RowKey, ...]
    size: int


def read_step(data: bytes) -> Step:
    """The packed delta, its rows checked and keyed. Raises: ProtocolError."""
    delta = wire.decode_delta(data)
    puts = {wire.row_key(row): row for row in delta.puts}
    if len(puts) != len(delta.puts) or not puts.keys().isdisjoint(delta.drops):
        raise ProtocolError(f"delta {delta.seq} names a row more than once")
    return Step(delta.seq, delta.digest, delta.reason, puts, delta.drops, len(data))


def read_worker(data: bytes) -> WorkerRow:
    """The worker's own row, which was checked when it was put here."""
    row = wire.decode_row(data)
    assert isinstance(row, WorkerRow)
    return row


def read_offer(data: bytes) -> ProviderRow:
    """The provider row, which was checked when it was put here."""
    row = wire.decode_row(data)
    assert isinstance(row, ProviderRow)
    return row


class Content:
    """Rows by key. One thread writes; others may read at any time, and may then see a part of a change."""

    __slots__ = ("_holders", "_ids", "_offers", "_shares", "_workers", "total")

    def __init__(self) -> None:
        self.total = 0
        self._workers: dict[str, bytes] = {}  # worker id -> its row
        self._shares: dict[str, int] = {}  # worker id -> the part of `total` that its rows make
        self._offers: dict[str, dict[str, bytes]] = {}  # worker id -> function id -> provider row
        # Function id -> its only provider's worker id, or several in the order in which they came. A dict for each of
        # 100,000 functions would cost as much again as all the rest.
        self._holders: dict[str, str | dict[str, None]] = {}
        self._ids: dict[str, str] = {}  # every worker id once: each row that is unpacked brings a copy of its own

    @property
    def digest(self) -> bytes:
        """16 bytes over the rows."""
        return wire.digest_bytes(self.total)

    # -- reading: safe while another thread writes ---------------------------------------------------------------------

    def worker_ids(self) -> list[str]:
        return list(self._workers)

    def function_ids(self) -> list[str]:
        return list(self._holders)

    def worker_count(self) -> int:
        return len(self._workers)

    def function_count(self) -> int:
        return len(self._holders)

    def is_offered(self, function_id: str) -> bool:
        return function_id in self._holders

    def holders(self, function_id: str) -> list[str]:
        """The ids of the workers that offer the function, those who came first first."""
        holder = self._holders.get(function_id, {})
        return [holder] if isinstance(holder, str) else list(holder)

    def holder_count(self, function_id: str) -> int:
        holder = self._holders.get(function_id)
        if holder is None:
            return 0
        return 1 if isinstance(holder, str) else len(holder)

    def offers(self, worker_id: str) -> list[str]:
        """The ids of the functions that the worker offers."""
        return list(self._offers.get(worker_id, ()))

    def get(self, key: RowKey) -> bytes | None:
        """The row's bytes, None when there is none."""
        worker_id, function_id = key
        return self._offers.get(worker_id, {}).get(function_id) if function_id else self._workers.get(worker_id)

    def items(self) -> Iterator[tuple[RowKey, bytes]]:
        """All rows, the workers' own ones first. Not while another thread writes."""
        for worker_id, row in self._workers.items():
            yield (worker_id, ""), row
        for worker_id, offers in self._offers.items():
            for function_id, row in offers.items():
                yield (worker_id, function_id), row

    # -- writing -------------------------------------------------------------------------------------------------------

    def load(self, rows: Iterable[bytes]) -> None:
        """Adds rows that are not here yet, as they come in a snapshot, in one tight loop.

        Raises: ProtocolError for a malformed or a repeated row; the content is of no use then.
        """
        row_key, from_bytes, holders = wire.row_key, int.from_bytes, self._holders
        previous, worker_id, shares = None, "", self._shares
        offers: dict[str, bytes] = {}
        for row in rows:
            owner, function_id = row_key(row)
            share = from_bytes(blake2b(row, digest_size=wire.DIGEST_BYTES).digest(), "big")
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

    def apply(self, step: Step) -> list[Edit] | None:
        """Applies the delta and returns what it did, or None when the digest would then not be the delta's.

        In that case nothing is changed: the state before was checked once, and is better than one that never was.
        """
        leaver = self._leaver(step)
        drops = () if leaver is not None else dict.fromkeys(step.drops)
        edits: list[Edit] = [(key, self.get(key), None) for key in drops]
        edits += [(key, self.get(key), row) for key, row in step.puts.items()]
        edits = [edit for edit in edits if edit[1] != edit[2]]
        shares = self._shares_after(edits)
        if leaver is not None:
            shares[leaver] = 0
        total = self.total + sum(share - self._shares.get(owner, 0) for owner, share in shares.items())
        if wire.digest_bytes(total) != step.digest:
            return None
        self.total = total
        gone = [] if leaver is None else self._drop_worker(leaver)
        for key, _, after in edits:
            if after is None:
                self._drop(key)
            else:
                self._put(key, after)
        self._keep(shares)
        return gone + edits

    def edits_to(self, other: Content) -> list[Edit]:
        """What turns this content into the other one."""
        edits: list[Edit] = [(key, row, None) for key, row in self.items() if other.get(key) is None]
        edits += [(key, self.get(key), row) for key, row in other.items() if self.get(key) != row]
        return edits

    # -- private -------------------------------------------------------------------------------------------------------

    def _leaver(self, step: Step) -> str | None:
        """The worker whose rows, all of them and no others, the delta drops: its share goes, and nothing is hashed."""
        drops = step.drops
        if not drops or drops[-1][1] or drops[-1][0] not in self._workers:
            return None
        leaver = drops[-1][0]
        offers = self._offers[leaver]
        if len(drops) != len(offers) + 1 or any(owner == leaver for owner, _ in step.puts):
            return None
        names = {name for owner, name in drops if owner == leaver}
        return leaver if names >= offers.keys() | {""} else None

    def _drop_worker(self, worker_id: str) -> list[Edit]:
        """Every row of the worker goes. What that did."""
        row, offers, holders = self._workers.pop(worker_id), self._offers.pop(worker_id), self._holders
        del self._ids[worker_id]
        for function_id in offers:
            if isinstance(holders[function_id], str):
                del holders[function_id]
            else:
                self._drop_holder(function_id, worker_id)
        edits: list[Edit] = [((worker_id, function_id), before, None) for function_id, before in offers.items()]
        return [*edits, ((worker_id, ""), row, None)]

    def _shares_after(self, edits: list[Edit]) -> dict[str, int]:
        """What the workers that the edits concern will have in `total`."""
        shares = {owner: self._shares.get(owner, 0) for (owner, _), _, _ in edits}
        for (owner, _), before, after in edits:
            if before is not None:
                shares[owner] -= wire.row_hash(before)
            if after is not None:
                shares[owner] += wire.row_hash(after)
        return shares

    def _keep(self, shares: dict[str, int]) -> None:
        """Remembers the shares of those who still have rows."""
        for owner, share in shares.items():
            if owner in self._offers:
                self._shares[owner] = share
            else:
                self._shares.pop(owner, None)

    def _shelf(self, worker_id: str) -> tuple[str, dict[str, bytes]]:
        """The one copy of the worker's id, and its offers; both are there while the worker has any row."""
        worker_id = self._ids.setdefault(worker_id, worker_id)
        return worker_id, self._offers.setdefault(worker_id, {})

    def _put(self, key: RowKey, row: bytes) -> None:
        worker_id, offers = self._shelf(key[0])
        if key[1]:
            offers[key[1]] = row
            self._add_holder(key[1], worker_id)
        else:
            self._workers[worker_id] = row

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
        """It may be one already."""
        holder = self._holders.setdefault(function_id, worker_id)
        if isinstance(holder, dict):
            holder[worker_id] = None
        elif holder != worker_id:
            self._holders[function_id] = {holder: None, worker_id: None}

    def _drop_holder(self, function_id: str, worker_id: str) -> None:
        holder = self._holders[function_id]
        if not isinstance(holder, str):
            del holder[worker_id]
        if isinstance(holder, str) or not holder:
            del self._holders[function_id]
