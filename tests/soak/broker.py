"""A broker as `iii-broker serve` runs it, that writes down what its registry commits, before anybody hears of it.

Only the core is listened to: after each step its history tells what was committed, and its outbox holds each call that
is handed over. Nothing of the product is changed but how many deltas are held for those who resume; where it is
compiled, the broker's shell is plain Python here.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from iii_zmq import wire
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import Address, Event, Outbox
from tests.plain import plain

from .director import HISTORY
from .processes import die_with_parent
from .records import Recorder


def main() -> int:
    die_with_parent()
    options = _options()
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    urls = options.url, options.stream_url
    broker = plain("io.broker").Broker(*urls, heartbeat_s=options.heartbeat, ttl_s=options.ttl)
    recorder = Recorder(options.records)
    recorder.write("serving", epoch=broker.epoch)
    broker.core = Listening(broker.core, recorder)
    if options.history:
        broker.core.registry.history._deltas_max = options.history
    signal.signal(signal.SIGTERM, lambda *_: broker.stop())
    broker.bind()
    print(f"listening {os.getpid()}", flush=True)
    broker.run()
    recorder.write("closing", counters=dict(broker.core.counters))
    return 0


class Listening:
    """The core as the shell sees it: what is committed, and each call to an exclusive function, is written down.

    Around the core instead of inside: where it is compiled, its methods can't be replaced.
    """

    def __init__(self, core: BrokerCore, recorder: Recorder) -> None:
        self._core = core
        self._recorder = recorder
        self._seq = core.registry.history.seq

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def receive(self, peer: Address, message: wire.FromWorker | Event, now: float) -> None:
        self._core.receive(peer, message, now)
        self._write_deltas()

    def tick(self, now: float) -> None:
        self._core.tick(now)
        self._write_deltas()

    def close(self) -> None:
        self._core.close()
        self._write_deltas()

    def take_outbox(self) -> Outbox:
        outbox = self._core.take_outbox()
        for _, message in outbox:
            if isinstance(message, wire.Call) and message.fence:
                epoch = self._core.registry.epoch
                self._recorder.write("handed", epoch=epoch, function=message.function_id, fence=message.fence)
        return outbox

    def _write_deltas(self) -> None:
        registry = self._core.registry
        if registry.seq != self._seq:
            deltas = registry.history.since(self._seq)
            assert deltas is not None, f"more than {HISTORY} deltas at once"
            for delta in deltas:
                self._recorder.write("delta", epoch=registry.epoch, **_plain(delta))
            self._seq = registry.seq


def _plain(data: bytes) -> dict[str, Any]:
    delta = wire.decode_delta(data)
    drops = [list(key) for key in delta.drops]
    return {
        "seq": delta.seq,
        "digest": delta.digest.hex(),
        "reason": delta.reason,
        "puts": [_row(row) for row in delta.puts],
        "drops": drops,
    }


def _row(data: bytes) -> list[Any]:
    """[worker id, function id, hash, name] for a worker, [worker id, function id, hash, active, exclusive] else."""
    row = wire.decode_row(data)
    digest = f"{wire.row_hash(data):032x}"
    if isinstance(row, wire.WorkerRow):
        return [row.worker_id, "", digest, row.name]
    return [row.worker_id, row.function_id, digest, row.active, wire.decode_entry(row.entry).exclusive]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--stream-url", required=True)
    parser.add_argument("--heartbeat", type=float, required=True)
    parser.add_argument("--ttl", type=float, required=True)
    parser.add_argument("--history", type=int, default=0, help="deltas held, if not as many as usual")
    parser.add_argument("--records", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
