"""The broker's shell over real sockets: strangers' bytes, deaths, pauses, addresses and its own end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import zmq
import zmq.utils.garbage as zmq_garbage

from iii_zmq import wire
from iii_zmq.io import sockets
from iii_zmq.io.addresses import AddressInUse, default_stream_url
from iii_zmq.io.broker import Broker
from iii_zmq.io.edge import Edge
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import NIL, RawPeer, raw_worker
from tests.plain import plain

pytestmark = pytest.mark.net

SLACK_S = 0.5  # for a busy machine


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as served:
        yield served


@pytest.fixture
def peer(broker: RunningBroker) -> Iterator[RawPeer]:
    with RawPeer(broker.url) as one:
        yield one.join("peer", f"f-{time.monotonic_ns()}", observer=False)


def host_and_port(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


def wait_until_counted(peer: RawPeer, name: str, count: int) -> None:
    until = time.monotonic() + 5.0
    while peer.counters(name)[0] < count:
        assert time.monotonic() < until, f"{name} is {peer.counters(name)}, not {count}"
        time.sleep(0.005)


# -- strangers ---------------------------------------------------------------------------------------------------------

GARBAGE: list[list[bytes]] = [
    [b""],
    [b"", b"what a REQ sends"],
    [b"i3"],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [os.urandom(300)],
    [b"i3\x02\x01" + bytes(12)],  # another version
    [b"i3\x01\xff" + bytes(12)],  # an unknown kind
    [b"i3\x01\x01\xff\xff\xff\xff" + bytes(8)],  # a Hello's header longer than the frame
    [wire.encode(wire.Bye(1))[0], b"a payload where there is none"],
    [wire.encode(wire.Result(1, NIL))[0], b"a second payload"],
    [wire.encode(wire.Result(1, bytes(70_000)))[0], b"a payload", b"in three", b"parts"],
    [b"1", b"2", b"3"],
    [bytes([number]) for number in range(200)],
]


@pytest.mark.parametrize("frames", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_counted_and_the_rest_goes_on(broker: RunningBroker, peer: RawPeer, frames: list[bytes]) -> None:
    (before,) = peer.counters("malformed")
    with RawPeer(broker.url) as stranger:
        stranger.send_frames(*frames)
        stranger.send(wire.Heartbeat(7, "", 0, 0, 0))
        expected = wire.encode(wire.Unknown(7, wire.KIND[wire.Heartbeat]))[0]  # it was read as a message of its own
        stranger.dealer.rcvtimeo = 5_000
        while stranger.dealer.recv() != expected:
            pass  # a refusal of the garbage, where one is due
    assert peer.counters("malformed") == [before + 1]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\xff" * 1000])
def test_bytes_that_are_no_zmtp_are_cut_off(broker: RunningBroker, peer: RawPeer, data: bytes) -> None:
    for url in (broker.url, broker.stream_url):
        with socket.create_connection(host_and_port(url), timeout=5.0) as stranger:
            stranger.sendall(data)
    assert peer.status()["epoch"] == broker.epoch


def test_a_frame_above_the_limit_costs_its_sender_the_connection(broker: RunningBroker, peer: RawPeer) -> None:
    with RawPeer(broker.url) as stranger:
        stranger.join("large", observer=True)
        stranger.send_frames(bytes(wire.PAYLOAD_BYTES_MAX + wire.INLINE_BYTES_MAX + 1))
        time.sleep(0.3)
        stranger.send(wire.Heartbeat(7, "", 0, 0, 0))
        assert stranger.read(wire.Unknown).number == 7  # it is a stranger again
    assert peer.status()["epoch"] == broker.epoch


def test_garbage_on_the_stream_is_counted_and_the_rest_goes_on(broker: RunningBroker, peer: RawPeer) -> None:
    (before,) = peer.counters("malformed")
    with zmq.Context() as context, context.socket(zmq.XSUB) as stranger:
        stranger.linger = 0
        stranger.connect(broker.stream_url)
        for data in (b"\x01", b"\x01" + bytes(500), b"\x01w|\xff", b"\x00w|nobody", b"\x02what?", b"what?"):
            stranger.send(data)
        stranger.send_multipart([b"\x01w|a", b"b"])
        wait_until_counted(peer, "malformed", before + 3)
    assert peer.status()["epoch"] == broker.epoch


def test_a_peer_that_names_itself_like_the_stream_is_a_peer(broker: RunningBroker) -> None:
    with RawPeer(broker.url, routing_id=wire.STREAM_TOPIC) as stranger:
        assert stranger.join("named").status()["epoch"] == broker.epoch


def test_a_large_payload_comes_back_as_it_was_sent(broker: RunningBroker, peer: RawPeer) -> None:
    payload = wire.pack(os.urandom(1_000_000))
    with raw_worker(broker, "large"):
        peer.call("large", payload)
        assert bytes(peer.read(wire.Result).payload) == payload


@pytest.mark.parametrize("at", [1, 5, 999_999])
def test_a_payload_in_two_frames_comes_back_in_these_frames(broker: RunningBroker, peer: RawPeer, at: int) -> None:
    packed = wire.pack(os.urandom(1_000_000))
    with raw_worker(broker, "parts"):
        peer.call("parts", wire.Split(packed[:at], packed[at:]))
        assert peer.read(wire.Result).payload == wire.Split(packed[:at], packed[at:])


def test_a_large_message_is_passed_on_before_the_next_is_read() -> None:
    """Calls of 16 MB that waited for the broker were all read, into memory of their own, before one was sent on."""
    broker, heard = plain("io.broker").Broker("tcp://127.0.0.1:0"), list[int]()
    core, broker.core = broker.core, SimpleNamespace(receive=lambda _, message, now: heard.append(message.number))
    here, there = broker._context.socket(zmq.PAIR), broker._context.socket(zmq.PAIR)
    here.bind("inproc://burst")
    there.connect("inproc://burst")
    router, broker._router = broker._router, Edge(here)
    for number, payload in enumerate([b"1", b"2", bytes(100_000), bytes(100_000), b"3"]):
        frame, attached = wire.encode(wire.Result(number, payload))
        there.send_multipart([b"peer", frame] if attached is None else [b"peer", frame, bytes(attached)])
    broker._read_router(time.monotonic() + 60, 100)
    assert heard == [0, 1, 2]
    broker._bad_news.lose(b"a presence")
    broker._read_router(time.monotonic() + 60, 100)
    assert heard == [0, 1, 2, 3, 4]  # what a lost one sent in its last moment counts, so all is read first
    broker._router, broker.core = router, core
    here.close()
    there.close()
    broker.close()


def test_so_many_events_of_a_monitor_are_read_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gauges = plain("io.gauges")
    monkeypatch.setattr(gauges, "EVENTS_MAX", 3)
    counted = {"strangers": 0.0}
    with zmq.Context() as context, sockets.router(context, 2000) as router:
        strangers = gauges.Strangers(context, (Edge(router),), counted)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        time.sleep(SLACK_S)
        told = []
        for _ in range(2):
            strangers.count()
            assert strangers.monitors[0].may_hold() == (not told)  # if not, nobody would look again
            told.append(counted["strangers"])
        for connection in connections:
            connection.close()
        router.disable_monitor()
        strangers.close()
    assert told == [3, 5]


def test_what_came_as_a_frame_goes_on_as_that_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyzmq has a thread that keeps alive what is sent without copying: a wake-up for each payload that passes the
    broker, who holds a frame of libzmq's anyway. And a part of a frame is not the frame."""
    kept: list[object] = []
    with RawPeer("tcp://127.0.0.1:1") as any_peer:
        one, other = any_peer.context.socket(zmq.PAIR), any_peer.context.socket(zmq.PAIR)
        one.bind("inproc://frames")
        other.connect("inproc://frames")
        one.send_multipart([b"head", bytes(100_000)])
        came = sockets.receive_payload(other)
        assert isinstance(came, wire.Split)
        store = zmq_garbage.gc.store
        monkeypatch.setattr(zmq_garbage.gc, "store", lambda *some: kept.append(some) or store(*some))
        sockets.send_payload(other, came)
        assert (one.recv_multipart(), kept) == ([b"head", bytes(100_000)], [])
        assert isinstance(came.rest, memoryview)
        sockets.send_payload(other, came.rest[1:])
        assert (one.recv(), len(kept)) == (bytes(99_999), 1)
        one.close()
        other.close()


# -- deaths and pauses -------------------------------------------------------------------------------------------------


def test_a_result_sent_just_before_the_process_died_counts(peer: RawPeer, broker: RunningBroker) -> None:
    # 1. The broker is stopped.  2. The worker answers, and is killed.  3. The broker goes on: both connections are
    # gone, and the result lies unread in its ROUTER.
    with raw_worker(broker, "last-words", 0.2) as worker:
        peer.call("last-words", b"\x05")
        time.sleep(0.1)  # the worker has it, and works
        os.kill(broker.pid, signal.SIGSTOP)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "answered\n"
        time.sleep(0.1)
        worker.kill()
        worker.wait()
        time.sleep(0.1)
        os.kill(broker.pid, signal.SIGCONT)
        answer = peer.read(wire.Result, wire.Failure)
    assert answer == wire.Result(answer.number, b"\x05")


def test_a_killed_provider_is_known_at_once_with_the_fate_of_its_calls(peer: RawPeer, broker: RunningBroker) -> None:
    with raw_worker(broker, "killed", 10.0) as worker:
        peer.call("killed")
        time.sleep(0.1)
        worker.kill()
        began = time.monotonic()
        failure = peer.read(wire.Failure)
        took_s = time.monotonic() - began
    assert (failure.code, failure.fate) == ("provider_lost", "possibly_executed")
    assert took_s < 0.05 + SLACK_S


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_port_0_takes_free_ports_and_tells_them(broker: RunningBroker) -> None:
    ports = [host_and_port(url)[1] for url in (broker.url, broker.stream_url)]
    assert ports[0] != ports[1]
    assert min(ports) > 0


def test_a_port_that_is_taken_is_told(broker: RunningBroker) -> None:
    second = Broker(broker.url, "tcp://127.0.0.1:0")
    with pytest.raises(AddressInUse, match="is in use"):
        second.bind()
    second.close()


def test_an_ipc_path_that_is_served_is_not_stolen_and_one_of_a_dead_broker_is_free(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/broker"
    with running_broker(url=url) as first:
        second = Broker(url)
        with pytest.raises(AddressInUse, match="another broker serves it"):
            second.bind()
        second.close()
        with RawPeer(url) as peer:
            assert peer.join("peer").status()["epoch"] == first.epoch
        first.process.kill()
        first.process.wait()
        with running_broker(url=url) as third, RawPeer(url) as peer:
            assert peer.join("peer").status()["epoch"] == third.epoch


def test_a_stream_that_can_not_be_bound_frees_the_first_address(broker: RunningBroker, tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/broker"
    second = Broker(url, broker.stream_url)
    with pytest.raises(AddressInUse):
        second.bind()
    second.close()
    third = Broker(url)
    third.bind()
    third.close()


@pytest.mark.parametrize("url", ["tcp://127.0.0.1", "tcp://:5570", "http://x:1", "ipc://", "tcp://127.0.0.1:65535", ""])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"(is not an address to serve on|give --stream-url)"):
        default_stream_url(url)


@pytest.mark.parametrize(
    ("url", "stream_url"),
    [
        ("tcp://127.0.0.1:5570", "tcp://127.0.0.1:5571"),
        ("tcp://*:0", "tcp://*:0"),
        ("ipc:///tmp/x", "ipc:///tmp/x.stream"),
    ],
)
def test_the_streams_default_address(url: str, stream_url: str) -> None:
    assert default_stream_url(url) == stream_url


# -- its own end -------------------------------------------------------------------------------------------------------


def test_sigterm_tells_everyone_fails_open_calls_and_ends() -> None:
    # The sockets were closed at once. A DEALER with IMMEDIATE drops what is unread with its connection, so that every
    # other caller never heard of the fate of its call, although it had arrived.
    with running_broker() as broker, RawPeer(broker.url) as peer:
        peer.join("peer", "mine")
        peer.call("mine")
        peer.read(wire.Call)
        broker.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        failure = peer.read(wire.Failure)
        assert (failure.code, failure.fate) == ("broker_lost", "possibly_executed")
        while not isinstance(heard := peer.read_stream(5.0), wire.Closing):
            assert heard is not None
        assert (heard.epoch, broker.process.wait(5.0)) == (broker.epoch, 0)


def test_the_log_tells_of_its_life_and_of_workers_but_not_of_every_bit_of_garbage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker("tcp://127.0.0.1:0")
    broker.bind()
    with caplog.at_level("INFO", "iii_zmq.broker"):
        thread = Thread(target=broker.run)
        thread.start()
        with RawPeer(broker.url) as peer:
            peer.join("logged")
            for _ in range(20):
                peer.send_frames(b"garbage")
            peer.send(wire.Bye(1))
            peer.send(wire.Heartbeat(2, "", 0, 0, 0))
            peer.read(wire.Unknown)
        broker.stop()
        thread.join()
    told = [record.getMessage().split(" ")[0] for record in caplog.records]
    assert told == ["serving", "joined:", "dropped", "left", "closing,"]


def test_at_debug_the_log_has_a_line_for_each_message_without_payloads_and_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker("tcp://127.0.0.1:0")
    broker.bind()
    with caplog.at_level("DEBUG", "iii_zmq.broker"):
        thread = Thread(target=broker.run)
        thread.start()
        with RawPeer(broker.url, routing_id=b"routing id") as peer:
            peer.join("debugged", "f")
            assert peer.welcome is not None
            worker_id, token = peer.welcome.worker_id, peer.welcome.token
            number = peer.call("engine::ping", wire.pack("a payload"))
            peer.read(wire.Result)
            peer.send_frames(b"garbage of a client")
            peer.call("engine::ping")
            peer.read(wire.Result)
        broker.stop()
        thread.join()
    lines = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    for expected in (
        "Hello from a stranger, number 1",
        f"Welcome to {worker_id}, number 1",
        f"Call from {worker_id}, number {number}",
        f"Result to {worker_id}, number {number}",
        f"Malformed from {worker_id}, number 0",
        "Deltas to everyone, number 0",
        "Closing to everyone, number 0",
    ):
        assert expected in lines
    told = caplog.text
    for secret in ("a payload", "garbage of", "routing id", token.hex(), repr(token), wire.presence_topic(token)):
        assert str(secret) not in told


def test_a_broker_that_nobody_uses_sleeps(broker: RunningBroker) -> None:
    def cpu_s() -> float:
        fields = Path(f"/proc/{broker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu_s()
    time.sleep(1.0)
    assert cpu_s() - before < 0.1
