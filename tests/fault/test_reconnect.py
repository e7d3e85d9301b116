"""Whatever ends a connection, the worker is back by itself as soon as its broker is; and until then it says why not.

libzmq connects again by itself after some ends and rests for good, without a word, after others. The workers here live
in a process of their own, with a proxy between them and the broker: it leads them to somebody who is no broker, and
later back. A test waits for what a user wants: that the worker's function can be called again.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import zmq

from iii_zmq import CallFailed, ProviderLost, Worker, wire
from tests.fault.impostors import PLAIN_SOCKETS, ZMQ_SOCKETS, Impostor, impostor
from tests.fault.proxy import Proxies, Proxy, address
from tests.fault.victim import Victim, victim
from tests.net.brokers import RunningBroker, free_url, running_broker
from tests.net.raw import RawPeer

pytestmark = pytest.mark.fault

HELD_S = float(os.environ.get("III_TEST_HELD_S", "0.12"))  # how long a connection is half open; by hand also 1 s
PATIENCE_S = 20.0  # for what takes half a second at most on an idle machine
# What makes libzmq rest for good, and others that might: each end of a handshake or of a connection once.
SAME = {"ERROR 500", "ZAP 500", "tls", "half a greeting", "SUB", "PULL", "ssh"}  # as others, for libzmq
STRANGERS = sorted({*PLAIN_SOCKETS, *ZMQ_SOCKETS} - SAME)
# At the stream's address; who is mute in the same way as another one is left out.
STREAM_STRANGERS = (
    "zeros", "http", "echo", "PLAIN", "ERROR 400", "a frame of 8 EiB", "a broken command", "PULL", "CURVE", "ZAP 400",
)  # fmt: skip


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture(scope="module")
def watcher(broker: RunningBroker) -> Iterator[Worker]:
    """Sees and calls past the proxies."""
    with Worker("watcher", broker.url, observer=True) as watcher:
        yield watcher


@pytest.fixture(scope="module")
def proxies(broker: RunningBroker) -> Iterator[Proxies]:
    with Proxies(broker) as proxies:
        yield proxies


@pytest.fixture(scope="module")
def process() -> Iterator[Victim]:
    with victim() as process:
        yield process


def until(condition: Callable[[], Any], timeout: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.002)


def until_callable(watcher: Worker, name: str) -> None:
    """Who waits for the function to come does not see that a call is still handed to the connection that has gone."""

    def answers() -> bool:
        try:
            return bool(watcher.call(f"victim::{name}", "still there?", timeout=1.0))
        except CallFailed:
            return False

    until(answers)


def mislead(proxy: Proxy, stranger: Impostor) -> None:
    """The worker loses its connection, and meets the stranger in the broker's place."""
    proxy.lead_to(stranger.url)
    proxy.cut()
    assert stranger.met.wait(PATIENCE_S)


# -- somebody else at the broker's address -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_worker_that_met_a_stranger_is_back_with_its_broker(
    kind: str, broker: RunningBroker, watcher: Worker, proxies: Proxies, process: Victim
) -> None:
    """The other promise, "half a second after it is back", is for an idle machine."""
    name = f"c{STRANGERS.index(kind)}"
    assert process.join("sync", name, proxies.url) == "joined"
    with impostor(kind) as stranger:
        mislead(proxies.control, stranger)
        proxies.control.lead_to(broker.url)
    proxies.control.cut()
    until_callable(watcher, name)
    process.leave(name)


@pytest.mark.parametrize("kind", STREAM_STRANGERS)
def test_a_worker_whose_stream_met_a_stranger_is_back_whole(
    kind: str, broker: RunningBroker, watcher: Worker, proxies: Proxies, process: Victim
) -> None:
    """It has a control connection all the while: whole is who sees changes again."""
    name = f"s{STREAM_STRANGERS.index(kind)}"
    assert process.join("async", name, proxies.url) == "joined"
    with impostor(kind) as stranger:
        mislead(proxies.stream, stranger)
        proxies.stream.lead_to(broker.stream_url)
    proxies.stream.cut()
    deltas = process.tell(name)["counters"]["deltas"]
    with Worker("news", broker.url):
        until(lambda: process.tell(name)["counters"]["deltas"] > deltas)
    until_callable(watcher, name)
    process.leave(name)


# What a user reads who looks for a broker there. Where both sides end the handshake, it depends on who is first.
NO_HANDSHAKE = "|".join(
    (
        "the peer ended the handshake",
        "the program at that address is not a broker: the handshake failed",
        "the peer does not speak ZMTP, or is no such socket",
    )
)
NO_GREETING = "a program accepts connections there, but it does not greet as a broker does"
NO_ANSWER = "a program is there, but it does not answer as a broker does"
SEEN = {
    "mute": NO_GREETING,
    "ZMTP 1": NO_GREETING,
    "ZMTP 2": NO_GREETING,
    "http": NO_HANDSHAKE,
    "CURVE": NO_HANDSHAKE,
    "zeros": NO_HANDSHAKE,
    "PUB": NO_HANDSHAKE,
    "PLAIN": NO_HANDSHAKE,
    "ZAP 400": "the peer refused to authenticate this worker",
    "a silent ROUTER": NO_ANSWER,
    "a ROUTER that talks nonsense": NO_ANSWER,
    "echo": "the program at that address echoes what it receives: it is not a broker",
    "a stream that is no URL": "the broker answers, but its stream at nonsense does not",
    "a stream that is nowhere": r"the broker answers, but its stream at tcp://no\.such\.host\.invalid:1 does not",
}


def test_who_finds_no_broker_reads_what_is_there_instead(process: Victim) -> None:
    with ExitStack() as stack:
        urls = {kind: stack.enter_context(impostor(kind)).url for kind in SEEN}
        told = process.errors(list(urls.values()), connect_timeout=1.5)
    for (kind, url), text in zip(urls.items(), told, strict=True):
        assert re.match(f"BrokerUnreachable: no broker at {url} within [0-9.]+ s: ({SEEN[kind]})", text), (kind, text)


def test_where_nobody_listens_there_is_nothing_more_to_tell(process: Victim) -> None:
    url = free_url()
    (text,) = process.errors([url], connect_timeout=0.3)
    assert re.fullmatch(f"BrokerUnreachable: no broker at {url} within [0-9.]+ s", text)


@pytest.mark.parametrize("bytes_max", [2_000])
def test_a_worker_that_takes_no_large_messages_is_back_after_one(
    bytes_max: int, broker: RunningBroker, watcher: Worker
) -> None:
    """A message above the client's own MAXMSGSIZE ends its connection, and libzmq never makes it again."""
    with victim(MAXMSGSIZE=str(bytes_max)) as process:
        assert process.join("sync", "small", broker.url) == "joined"
        watcher.wait_for("victim::small")
        with pytest.raises(ProviderLost) as lost:
            watcher.call("victim::small", bytes(bytes_max))
        assert lost.value.fate == "possibly_executed"
        until_callable(watcher, "small")


# -- connections that end ----------------------------------------------------------------------------------------------


def whole(process: Victim, name: str) -> bool:
    return bool(process.tell(name)["state"] == "connected")


def rows(watcher: Worker, *names: str) -> set[tuple[str, str]]:
    """Who offers what, worker by worker, of these functions."""
    ids = {f"victim::{name}" for name in names}
    return {
        (provider.worker_id, id) for id in ids & set(watcher.functions) for provider in watcher.functions[id].providers
    }


Comings = Callable[[str], list[str]]


@pytest.fixture
def comings(broker: RunningBroker) -> Iterator[Comings]:
    """How often the victim of this name joined and left, as a witness of its own sees it from now on."""
    seen: list[tuple[str, str]] = []
    with Worker("witness", broker.url, observer=True) as witness:
        witness.on_change("*")(lambda change: seen.append((change.kind, change.worker_name)))
        yield lambda name: [
            kind
            for kind, worker in list(seen)
            if worker == f"victim {name}" and kind in ("worker_joined", "worker_left")
        ]


@pytest.mark.slow
def test_half_open_connections_leave_the_registrations_as_they_are(
    broker: RunningBroker, watcher: Worker, proxies: Proxies, process: Victim, comings: Comings
) -> None:
    """Fifty times the worker's ends are closed while the broker's stay open, for longer than it takes to come back.

    The broker believes in both connections: the old one must neither hold the rows back nor take them along. That it
    does so for a second each time would change nothing: it is below the TTL of 2 s, after which the broker would know.
    """
    for name in ("half1", "half2"):
        assert process.join("sync" if name == "half1" else "async", name, proxies.url) == "joined"
    watcher.wait_for("victim::half1", "victim::half2")
    before = rows(watcher, "half1", "half2")
    assert len(before) == 2
    for _ in range(50):
        taken = proxies.control.accepted
        proxies.each(Proxy.cut_worker_side)
        until(lambda taken=taken: proxies.control.accepted >= taken + 2)
        until(lambda: whole(process, "half1") and whole(process, "half2"))
        time.sleep(random.uniform(0.9, 1.1) * HELD_S)  # the time for which they are half open, not a wait for anything
        proxies.each(Proxy.drop_halves)
    for name in ("half1", "half2"):
        until_callable(watcher, name)
    assert rows(watcher, "half1", "half2") == before
    for name in ("half1", "half2"):
        process.leave(name)
        until(lambda name=name: "worker_left" in comings(name))
        assert comings(name) == ["worker_joined", "worker_left"]
    assert watcher.call("engine::status")["workers"] == 0


def test_a_worker_whose_own_ends_stay_open_is_dropped_at_once_and_back_without_a_ghost(
    watcher: Worker, proxies: Proxies, process: Victim
) -> None:
    """The other way round: the broker's ends are closed, as when it is the worker that a firewall forgot to tell."""
    assert process.join("sync", "deaf", proxies.url) == "joined"
    watcher.wait_for("victim::deaf")
    for _ in range(5):
        proxies.each(Proxy.cut_broker_side)
        until(lambda: "victim::deaf" not in watcher.functions)
        proxies.each(Proxy.drop_halves)
        until_callable(watcher, "deaf")
        until(lambda: len(rows(watcher, "deaf")) > 0)  # calls find it at once; deltas may be gathered for a moment
        assert len(rows(watcher, "deaf")) == 1
    assert [worker.name for worker in watcher.workers.values()].count("victim deaf") == 1
    process.leave("deaf")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("side", ["control", "stream"])
def test_one_of_the_two_connections_cut_again_and_again_changes_no_row(
    side: str, kind: str, watcher: Worker, proxies: Proxies, process: Victim, comings: Comings
) -> None:
    """The control connection is cut: a takeover. The stream is cut: a renewal. Five times each."""
    name = f"{side}-{kind}"
    assert process.join(kind, name, proxies.url) == "joined"
    watcher.wait_for(f"victim::{name}")
    before = rows(watcher, name)
    assert len(before) == 1
    proxy: Proxy = getattr(proxies, side)
    for _ in range(5):
        sessions = process.tell(name)["counters"]["sessions"]
        proxy.cut()
        until(lambda sessions=sessions: process.tell(name)["counters"]["sessions"] > sessions)
        until(lambda: whole(process, name))
        until_callable(watcher, name)
    assert rows(watcher, name) == before
    process.leave(name)
    until(lambda: "worker_left" in comings(name))
    assert comings(name) == ["worker_joined", "worker_left"]


def test_a_worker_whose_presence_is_lost_and_heard_again_at_once_is_whole() -> None:
    """1. The broker is stopped. 2. A worker's presence is unsubscribed and subscribed again. 3. The broker reads both
    in one turn. A broker that told its core of the loss after the return passed the worker over from then on, and
    dropped it after five seconds."""
    with running_broker() as broker, RawPeer(broker.url) as worker:
        worker.join("worker", "worker::f")
        assert worker.welcome is not None
        assert worker.sub is not None
        presence = wire.presence_topic(worker.welcome.token)
        for _ in range(10):
            broker.process.send_signal(signal.SIGSTOP)
            worker.sub.setsockopt(zmq.UNSUBSCRIBE, presence)
            worker.sub.setsockopt(zmq.SUBSCRIBE, presence)
            time.sleep(0.02)  # for libzmq's own thread to hand them to the system
            broker.process.send_signal(signal.SIGCONT)
            worker.status()
            worker.call("worker::f")
            worker.read(wire.Call, within_s=PATIENCE_S)
        assert worker.counters("left_died") == [0]


class _NoBroker(BaseHTTPRequestHandler):
    """As web servers are: who asks for nothing is left alone for a while, and then let go."""

    timeout = 0.1
    asked = threading.Event()

    def setup(self) -> None:
        super().setup()
        self.asked.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_web_server_may_have_the_address_for_a_while(process: Victim) -> None:
    url = free_url()
    web = [address(url), (address(url)[0], address(url)[1] + 1)]
    with running_broker(url=url):
        assert process.join("sync", "web", url) == "joined"
    for _ in range(2):
        with ExitStack() as stack:
            _NoBroker.asked.clear()
            for one in web:
                server = stack.enter_context(ThreadingHTTPServer(one, _NoBroker))
                thread = threading.Thread(target=server.serve_forever, args=(0.01,))
                thread.start()
                stack.callback(thread.join)
                stack.callback(server.shutdown)
            assert _NoBroker.asked.wait(PATIENCE_S)
        with running_broker(url=url), Worker("watcher", url, observer=True) as watcher:
            until_callable(watcher, "web")
    process.leave("web")
