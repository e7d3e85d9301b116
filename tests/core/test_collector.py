"""The past, as `iii-broker watch --from` asks for it: deltas are kept in order, a snapshot is no answer."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.worker.changes import Position
from iii_zmq.core.worker.collector import Collector

START = Position("e", 4)


def packed(seq: int) -> bytes:
    return wire.encode_delta(wire.Delta(seq, bytes(wire.DIGEST_BYTES), "", (), (), ""))


def test_it_keeps_what_it_is_told_and_applies_nothing() -> None:
    collector = Collector(START)
    assert collector.sync_position() == START
    assert collector.on_replay(wire.Replay(1, "e", 0, False, [packed(5), packed(6)])) == []
    assert not collector.done
    assert collector.on_replay(wire.Replay(1, "e", 1, True, [packed(7)])) == []
    assert (collector.done, collector.is_snapshot) == (True, False)
    assert [delta.seq for delta in collector.deltas] == [5, 6, 7]
    assert (collector.sync_position(), len(collector.functions)) == (START, 0)


@pytest.mark.parametrize("way", ["snapshot", "invitation"])
def test_a_broker_that_no_longer_holds_the_deltas_answers_with_everything(way: str) -> None:
    collector = Collector(START)
    if way == "snapshot":
        assert collector.on_snapshot(wire.Snapshot(1, "e", 9, bytes(wire.DIGEST_BYTES), 0, True, [])) == []
    else:
        collector.invited(7)
    assert (collector.done, collector.is_snapshot, collector.deltas) == (True, True, [])
