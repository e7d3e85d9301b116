"""Time by the broker's own clock: how many beacons it sends between two moments.

A bound on seconds must be far above what a busy machine needs, and then lets anything pass. Beacons come from the loop
that decides about the living and the dead: where that loop is late, they are late, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.fault.programs import Program, program

COUNTER = """
    import sys
    from iii_zmq import wire
    from tests.net.raw import RawPeer

    def shows(message, worker_id):
        deltas = map(wire.decode_delta, message.deltas) if isinstance(message, wire.Deltas) else ()
        return any(worker_id == delta.leaver or (worker_id, "") in delta.drops for delta in deltas)

    with RawPeer(sys.argv[1]) as peer:
        peer.join("counter", observer=True)
        print("joined", flush=True)
        worker_id = sys.stdin.readline().strip()
        while peer.read_stream(0) is not None:
            pass
        print("counting", flush=True)
        beacons = 0
        while not shows(message := peer.read_stream(60), worker_id):
            assert message is not None
            beacons += isinstance(message, wire.Beacon)
    print(beacons, flush=True)
"""


class Counter:
    """`start` just before what may end the worker, then `beacons` waits until the stream shows its end."""

    def __init__(self, process: Program) -> None:
        self._process = process

    def start(self, worker_id: str) -> None:
        self._process.say(worker_id)
        self._process.expect("counting")

    def beacons(self) -> int:
        count = int(self._process.line())
        print("BEACONS", count)
        return count


@contextmanager
def counting(url: str, *, command: tuple[str, ...] = ()) -> Iterator[Counter]:
    """An observer in a process of its own; once it has counted, it is gone."""
    with program(COUNTER, url, command=command) as process:
        process.expect("joined")
        yield Counter(process)
