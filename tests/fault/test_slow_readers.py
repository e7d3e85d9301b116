"""Workers that do not read, and deltas that do not arrive: everybody comes back to the truth, and no neighbour notices.

A reader here is a program of its own whose one callback stops its event loop, as a debugger would, until told to go on.
It notes every seq that its callback hears, and whether one is missing.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import zmq

from iii_zmq import Worker, wire
from iii_zmq.core.worker.content import read_step
from iii_zmq.io import sockets
from iii_zmq.io.broker import Broker
from tests.fault.measuring import PATIENCE_S, ROUND_TRIPS_MAX, change_s, entry, flood_changes, ping_s, told
from tests.fault.programs import Program, program, until
from tests.fault.relay import Relay
from tests.net.brokers import running_broker
from tests.net.raw import HEARTBEAT_MS, RawPeer

pytestmark = [pytest.mark.net, pytest.mark.fault]

CHANGES = 20_000  # in some 400 messages
ROUNDS = 100  # changes are measured between the others

READER = """
    import asyncio, json, sys, threading
    import iii_zmq.io.worker.link
    from iii_zmq import AsyncWorker

    assert iii_zmq.io.worker.link.STREAM_WAITING_MAX == 10_000
    iii_zmq.io.worker.link.STREAM_WAITING_MAX = int(sys.argv[2])
    go_on = threading.Event()
    seen = {"gaps": [], "resets": 0, "last": None}

    def note(change):
        last = seen["last"]
        if change.kind == "reset":
            seen["resets"] += 1
        elif last is not None and change.seq not in (last, last + 1):
            seen["gaps"].append([last, change.seq])
        seen["last"] = change.seq
        if change.function_id == "reader::stop":
            print("stopped", flush=True)
            go_on.wait()  # in the event loop, which reads nothing meanwhile

    def hear(lines, loop):
        for line in sys.stdin:
            go_on.set()
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    async def main():
        lines = asyncio.Queue()
        async with AsyncWorker("reader", sys.argv[1]) as worker:
            worker.on_change("*")(note)
            threading.Thread(target=hear, args=(lines, asyncio.get_running_loop()), daemon=True).start()
            print("joined", flush=True)
            while line := await lines.get():
                while worker.position.seq < int(line):
                    await asyncio.sleep(0.005)
                told = {"digest": worker.digest, "seq": worker.position.seq, "counters": worker.counters}
                print(json.dumps(seen | told), flush=True)

    asyncio.run(main())
"""


def stop(reader: Program, peer: RawPeer) -> None:
    """From here on it reads nothing."""
    reader.expect("joined")
    peer.send(wire.Register(peer.number(), [entry("reader::stop")]))
    assert peer.read(wire.Ack).refusals == []
    reader.expect("stopped")


def go_on(reader: Program, peer: RawPeer) -> tuple[Any, Any]:
    """What it has seen once it has caught up, and the broker's status at the same position."""
    for _ in range(100):  # it is shown as stalled and as ready again meanwhile: those are changes, too
        status = peer.status()
        reader.say(str(status["seq"]))
        seen = json.loads(reader.line(PATIENCE_S))
        if seen["seq"] == status["seq"]:
            return seen, status
    raise AssertionError("the registry does not come to rest")


# -- who does not read -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_does_not_read_while_20000_changes_go_by_has_no_gap_and_no_neighbour_notices() -> None:
    with (
        running_broker() as broker,
        RawPeer(broker.url) as peer,
        RawPeer(broker.url) as neighbour,
        program(READER, broker.url, "100") as reader,
    ):
        peer.join("changer")
        neighbour.join("neighbour", observer=True)
        told("a change at a neighbour", [change_s(peer, neighbour) for _ in range(ROUNDS)])
        stop(reader, peer)
        while_stopped, pings = [], []
        for _ in range(ROUNDS):
            flood_changes(peer, CHANGES // ROUNDS)
            while_stopped.append(change_s(peer, neighbour))
            pings.append(ping_s(neighbour))
        seen, status = go_on(reader, peer)
    assert (seen["gaps"], seen["digest"], seen["seq"] > CHANGES) == ([], status["digest"], True)
    counters = seen["counters"]
    assert (counters["streams_discarded"] >= 1, counters["syncs_overrun"] >= 1, counters["malformed"]) == (
        True,
        True,
        0,
    )
    assert [status["counters"][name] for name in ("left_died", "left_silent")] == [0, 0]
    median = told("the same while another does not read", while_stopped)
    assert median < ROUND_TRIPS_MAX * told("a round trip", pings)


@pytest.mark.slow
def test_who_missed_more_than_the_history_holds_gets_a_snapshot_and_is_told() -> None:
    with (
        running_broker() as broker,
        RawPeer(broker.url) as peer,
        program(READER, broker.url, "20") as reader,
    ):
        peer.join("changer")
        stop(reader, peer)
        flood_changes(peer, 1_200, size=60_000)  # 72 MB: the history has 64 MiB
        seen, status = go_on(reader, peer)
    assert (seen["gaps"], seen["digest"]) == ([], status["digest"])
    assert seen["resets"] == 1
    assert (seen["counters"]["snapshots"], seen["counters"]["syncs_overrun"] >= 1) == (2, True)


@pytest.mark.slow
def test_a_reader_whose_queue_at_the_broker_is_full_loses_deltas_and_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A peer reads so little that TCP pushes back, and its queue at the broker fills: libzmq drops what is too much,
    # without a word.  2. What it reads later has a hole.  3. It syncs, and gets exactly what it missed.
    monkeypatch.setattr(sockets, "STREAM_SNDHWM", 50)
    broker = Broker("tcp://127.0.0.1:0", ttl_s=30.0)
    broker.bind()
    thread = threading.Thread(target=broker.run)
    thread.start()
    try:
        with RawPeer(broker.url) as peer, RawPeer(broker.url) as slow:
            peer.join("changer")
            slow.hello("slow", observer=True)
            subscribe_slowly(slow)
            for _ in range(1_500):
                flood_changes(peer, 1, size=20_000)  # one by one, so that each is a message
            seqs = read_to_a_hole(slow)
            last = peer.status()["seq"]
            number = slow.number()
            slow.send(wire.Sync(number, broker.epoch, seqs[-1], "gap"))
            replayed: list[int] = []
            while True:
                part = slow.read(wire.Replay, within_s=PATIENCE_S)
                replayed += [wire.decode_delta(data).seq for data in part.deltas]
                if part.last:
                    break
            heard = [*seqs, *replayed]
            assert heard == list(range(heard[0], heard[-1] + 1))
            assert heard[-1] >= last > 1_500
    finally:
        broker.stop()
        thread.join()


def subscribe_slowly(peer: RawPeer) -> None:
    """A stream with next to no buffers."""
    assert peer.welcome is not None
    peer.sub = peer.context.socket(zmq.SUB)
    peer.sub.linger = 0
    peer.sub.setsockopt(zmq.RCVHWM, 1)
    peer.sub.setsockopt(zmq.RCVBUF, 4096)
    for topic in (wire.STREAM_TOPIC, wire.presence_topic(peer.welcome.token)):
        peer.sub.setsockopt(zmq.SUBSCRIBE, topic)
    peer.sub.connect(peer.welcome.stream_url.replace("*", "127.0.0.1"))
    peer.read(wire.Replay)


def read_to_a_hole(peer: RawPeer) -> list[int]:
    """The seqs before the first hole."""
    seqs: list[int] = []
    while True:
        message = peer.read_stream(PATIENCE_S)
        assert message is not None, f"no hole after {len(seqs)} deltas"
        for data in message.deltas if isinstance(message, wire.Deltas) else ():
            seq = wire.decode_delta(data).seq
            if seqs and seq != seqs[-1] + 1:
                assert seq > seqs[-1]
                return seqs
            seqs.append(seq)


# -- what does not arrive ----------------------------------------------------------------------------------------------


def test_a_lost_last_change_is_repaired_by_the_beacon() -> None:
    with (
        running_broker() as broker,
        Relay(broker.stream_url) as relay,
        RawPeer(broker.url) as peer,
        Worker("reader", broker.url, stream_url=relay.url) as worker,
    ):
        peer.join("changer", "last::known")
        worker.wait_for("last::known")
        relay.lose(lambda frame: b"last::lost" in frame)
        peer.send(wire.Register(peer.number(), [entry("last::lost")]))
        lost_at = time.monotonic()
        worker.wait_for("last::lost", timeout=PATIENCE_S)
        print(f"repaired after {time.monotonic() - lost_at:.3f} s, of a beacon every {HEARTBEAT_MS} ms")
        counters = worker.counters
    assert relay.lost == 1
    assert [counters[name] for name in ("gaps", "syncs_gap", "resumes", "snapshots")] == [1, 1, 1, 1]


def test_a_change_that_was_falsified_on_its_way_is_never_shown_and_is_repaired_by_a_snapshot() -> None:
    with (
        running_broker() as broker,
        Relay(broker.stream_url) as relay,
        RawPeer(broker.url) as peer,
        Worker("reader", broker.url, stream_url=relay.url) as worker,
    ):
        peer.join("changer")
        shown: list[str | None] = []
        worker.on_change("mail::*")(lambda change: shown.append(worker.replica.functions["mail::send"].description))
        relay.replace(b"as it was said", b"AS IT WAS SAID")
        peer.send(wire.Register(peer.number(), [wire.encode_entry(wire.FunctionEntry("mail::send", "as it was said"))]))
        worker.wait_for("mail::send", timeout=PATIENCE_S)
        until(lambda: shown)
        counters = worker.counters
        assert worker.digest == peer.status()["digest"]
    assert set(shown) == {"as it was said"}
    assert [counters[name] for name in ("digest_mismatches", "syncs_digest", "snapshots")] == [1, 1, 2]


def test_a_wrong_entry_in_a_replica_is_found_by_the_digest_and_repaired() -> None:
    with (
        running_broker() as broker,
        RawPeer(broker.url) as peer,
        Worker("reader", broker.url) as worker,
    ):
        peer.join("changer", "right::one")
        worker.wait_for("right::one")
        worker.start()
        kinds: list[str] = []
        worker.on_change("*")(lambda change: kinds.append(change.kind))
        assert worker._driver is not None
        worker._driver.guest.do(lambda: put_a_wrong_entry(worker))
        assert "wrong::one" in worker.functions
        until(lambda: "wrong::one" not in worker.functions)
        until(lambda: worker.digest == peer.status()["digest"])
        until(lambda: "reset" in kinds)
        assert list(worker.functions) == ["right::one"]
        counters = worker.counters
    assert [counters[name] for name in ("digest_mismatches", "syncs_digest", "snapshots")] == [1, 1, 2]


def put_a_wrong_entry(worker: Worker) -> None:
    """A row that the broker never had, as a broken memory or a bug of ours would."""
    content = worker.replica._content
    rows = dict(content.items())
    (owner,) = {worker_id for worker_id, function_id in rows if function_id == "right::one"}
    row = wire.encode_row(wire.ProviderRow(owner, "wrong::one", True, entry("wrong::one")))
    rows[owner, "wrong::one"] = row
    digest = wire.digest_bytes(sum(map(wire.row_hash, rows.values())))
    assert content.apply(read_step(wire.encode_delta(wire.Delta(1, digest, "", (row,), ())))) is not None
