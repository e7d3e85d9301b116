"""The demo fails when a worker missed a change, told one twice, or ends elsewhere than the broker."""

from __future__ import annotations

from typing import Any

import pytest

from iii_zmq.cli.demo.verdict import Changes, Record, missed, problems


def _changes(seq: int) -> Changes:
    return [{"kind": "function_added", "function_id": f"a::{seq}", "worker_id": "w", "seq": seq}]


HAPPENED = {seq: _changes(seq) for seq in range(1, 6)}


def _record(*seqs: int, start: int | None = 2, end: str = "alive", **details: Any) -> Record:
    told = [(seq, _changes(seq)) for seq in seqs]
    return Record("a", start, told, end, **{"digest": "d", "position": ("e", 5), **details})


def _problems(*records: Record) -> list[str]:
    return problems(HAPPENED, records, "e", "d")


def test_whole_stretches_are_right() -> None:
    watcher = _record(1, 2, 3, 4, 5, start=0)
    early = _record(2, 3, 4, 5)  # it was told of a change before it had joined completely
    killed = _record(3, 4, end="killed", digest=None, position=None)
    assert _problems(watcher, early, killed, _record(3, 4, 5)) == []


@pytest.mark.parametrize(
    "record",
    [
        _record(3, 5),
        _record(3, 4),
        _record(4, 5),
        _record(3, 4, 4, 5),
        _record(3, 5, 4),
        _record(3, 5, end="killed"),
        _record(3, 4, 5, start=None),
        _record(3, 4, 5, digest="other"),
        _record(3, 4, 5, position=("e", 4)),
        _record(3, 4, 5, position=("f", 5)),
        Record("a", 4, [(5, _changes(4))], digest="d", position=("e", 5)),
    ],
)
def test_anything_else_is_not(record: Record) -> None:
    assert len(_problems(record)) == 1


def test_a_history_with_a_hole_proves_nothing() -> None:
    assert problems({1: _changes(1), 3: _changes(3)}, [], "e", "d") == ["the history itself missed 2"]


def test_missed_changes_are_counted() -> None:
    assert [missed(HAPPENED, record) for record in (_record(3, 4, 5), _record(3, 5), _record(3, end="left"))] == [
        0,
        1,
        0,
    ]
