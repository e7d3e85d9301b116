"""Latencies and floods against a real broker, with plain peers: what is measured before a fault and while it lasts.

Timings scatter by factors on a machine that others use too. So nothing is bounded in seconds: a median is compared with
the round trips that were measured in between, or what overtook is counted. The figures are printed (`pytest -s`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import count

from iii_zmq import wire
from tests.net.raw import RawPeer

WINDOW = 256  # changes on their way: far more than the broker handles in one turn
PAUSE_S = 0.004  # twice the time for which the broker gathers deltas behind others
PATIENCE_S = 60.0
# So many round trips to the broker a median may take: two to five on an idle machine.
ROUND_TRIPS_MAX = 20

_versions = count(1)


def entry(function_id: str, size: int = 0) -> bytes:
    """One that differs from all before it: registering it is a change."""
    description = f"{next(_versions)} ".ljust(size, ".")
    return wire.encode_entry(wire.FunctionEntry(function_id, description))


def flood_changes(peer: RawPeer, changes: int, size: int = 0) -> None:
    """So many changes, each of one function, as fast as the broker takes them; all of them are acknowledged."""
    asked = answered = 0
    while answered < changes:
        while asked < changes and asked - answered < WINDOW:
            peer.send(wire.Register(peer.number(), [entry(f"flood::f{asked % 50}", size)]))
            asked += 1
        assert peer.read(wire.Ack, within_s=PATIENCE_S).refusals == []
        answered += 1


def change_s(peer: RawPeer, observer: RawPeer) -> float:
    """From a registration to its delta at somebody else."""
    time.sleep(PAUSE_S)  # not gathered behind deltas that went before: that would be measured, too
    data = entry("measured::change")
    began = time.monotonic()
    peer.send(wire.Register(peer.number(), [data]))
    observer.next_delta(lambda delta: any(data in row for row in delta.puts), within_s=PATIENCE_S)
    took_s = time.monotonic() - began
    peer.read(wire.Ack, within_s=PATIENCE_S)
    return took_s


def call_s(peer: RawPeer, function_id: str) -> float:
    """From a call to its result."""
    began = time.monotonic()
    number = peer.call(function_id)
    while peer.read(wire.Result, within_s=PATIENCE_S).number != number:
        pass
    return time.monotonic() - began


def ping_s(peer: RawPeer) -> float:
    """A round trip to the broker: how fast the machine is just now."""
    return call_s(peer, "engine::ping")


def told(what: str, seconds: Sequence[float]) -> float:
    """Their median; printed with the worst."""
    median = statistics.median(seconds)
    print(f"{what}: median {median * 1000:.2f} ms, worst {max(seconds) * 1000:.2f} ms of {len(seconds)}")
    return median
