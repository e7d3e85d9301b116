"""A broker's registry as tests write it: rows in one dict, every digest from scratch, every answer on demand.

Slow and obvious on purpose: what the replica does with care, this does by copying everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from iii_zmq import wire
from iii_zmq.wire import Row, RowKey

Rows = dict[RowKey, bytes]


def worker(worker_id: str, state: str = wire.READY, **metadata: Any) -> wire.WorkerRow:
    return wire.WorkerRow(worker_id, worker_id.upper(), "host", 7, wire.pack(metadata), state)


def offer(worker_id: str, function_id: str, description: str = "", *, active: bool = True) -> wire.ProviderRow:
    entry = wire.FunctionEntry(function_id, description, flags=0 if active else wire.EXCLUSIVE)
    return wire.ProviderRow(worker_id, function_id, active, wire.encode_entry(entry))


def key_of(row: Row) -> RowKey:
    return row.worker_id, row.function_id if isinstance(row, wire.ProviderRow) else ""


def digest_of(rows: Iterable[bytes]) -> bytes:
    return wire.digest_bytes(sum(wire.row_hash(row) for row in rows))


class Truth:
    """The registry of one epoch and its past: `past[seq]` is the content at `seq`, `deltas[seq]` what led there."""

    def __init__(self, epoch: str = "e") -> None:
        self.epoch = epoch
        self.past: list[Rows] = [{}]
        self.deltas: list[bytes] = [b""]

    @property
    def seq(self) -> int:
        return len(self.past) - 1

    @property
    def rows(self) -> Rows:
        return self.past[-1]

    def digest(self, seq: int | None = None) -> bytes:
        return digest_of(self.past[self.seq if seq is None else seq].values())

    def change(self, *puts: Row, drops: Iterable[RowKey] = (), reason: str = "") -> bytes:
        """The next change, as a packed delta."""
        rows = dict(self.rows)
        for key in drops:
            del rows[key]
        rows.update((key_of(row), wire.encode_row(row)) for row in puts)
        leaver = self._leaver(tuple(drops), {key_of(row) for row in puts})
        self.past.append(rows)
        packed = tuple(wire.encode_row(row) for row in puts)
        self.deltas.append(wire.encode_delta(wire.Delta(self.seq, self.digest(), reason, packed, tuple(drops), leaver)))
        return self.deltas[-1]

    def _leaver(self, drops: tuple[RowKey, ...], puts: set[RowKey]) -> str:
        """The worker of which exactly all rows go, and none comes."""
        leaver = drops[0][0] if drops else ""
        of_it = {key for key in self.rows if key[0] == leaver}
        is_all = (leaver, "") in of_it and set(drops) == of_it
        return leaver if is_all and leaver not in {owner for owner, _ in puts} else ""

    def message(self, *seqs: int) -> wire.Deltas:
        """What the stream carries: these deltas, by default the last one."""
        return wire.Deltas(0, self.epoch, [self.deltas[seq] for seq in seqs or (self.seq,)])

    def beacon(self) -> wire.Beacon:
        return wire.Beacon(0, self.epoch, self.seq, self.digest())

    def replay(self, number: int, since: int, *, index: int = 0, until: int | None = None) -> wire.Replay:
        """One part with all deltas after `since`, which ends the answer."""
        return wire.Replay(number, self.epoch, index, True, self.deltas[since + 1 : until and until + 1])

    def rows_parts(self, number: int, *, seq: int | None = None, size: int = 1000) -> list[wire.Snapshot]:
        """The rows at `seq` (by default now), `size` to a part."""
        seq = self.seq if seq is None else seq
        rows = list(self.past[seq].values())
        chunks = [rows[at : at + size] for at in range(0, len(rows), size)] or [[]]
        return [
            wire.Snapshot(number, self.epoch, seq, self.digest(seq), index, chunk is chunks[-1], chunk)
            for index, chunk in enumerate(chunks)
        ]

    def snapshot(self, number: int, *, seq: int | None = None, size: int = 1000) -> list[wire.Snapshot | wire.Replay]:
        """A whole answer: the rows at `seq`, then the deltas since."""
        seq = self.seq if seq is None else seq
        parts = self.rows_parts(number, seq=seq, size=size)
        return [*parts, self.replay(number, seq, index=len(parts))]
