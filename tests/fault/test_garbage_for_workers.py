"""Garbage for a worker: from a broker gone mad, from what is no broker at all, and from a system without descriptors.

The worker is a process of its own. What is asserted is the user's goal: its function can be called, again or still.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from iii_zmq import Worker, errors, wire
from tests.fault import strangers
from tests.fault.programs import Program, descriptors, memory_kib, program, until
from tests.fault.strangers import framed, say
from tests.net.brokers import running_broker
from tests.plain import plain

pytestmark = [pytest.mark.net, pytest.mark.fault]

PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine
VICTIM = """
    import sys
    from iii_zmq import Worker

    worker = Worker("victim", sys.argv[1], threads=0, retry=True)
    worker.register("victim::echo", lambda value: value)
    worker.register("victim::counters", lambda _: worker.counters)
    worker.on_state(lambda state: print(state, flush=True))
    worker.start()
    sys.stdin.read()
    worker.close()
"""


# -- a broker gone mad -------------------------------------------------------------------------------------------------


class MadBroker(plain("io.broker").Broker):  # type: ignore[misc]  # mypy can't see what it is
    """A broker that serves, and besides sends all its peers what a test tells it to."""

    def __init__(self) -> None:
        super().__init__("tcp://127.0.0.1:0")
        self._said: queue.SimpleQueue[tuple[bool, list[bytes]]] = queue.SimpleQueue()

    def say(self, *frames: bytes, on_stream: bool = False) -> None:
        """From any thread."""
        self._said.put((on_stream, list(frames)))
        self._wake_out.send(b"x")

    def _turn(self) -> None:
        while not self._said.empty():
            on_stream, frames = self._said.get()
            if on_stream:
                self._xpub.socket.send_multipart(frames)
            else:
                for peer in list(self.core.sessions.by_address):
                    self._router.socket.send_multipart([peer, *frames])
            self._router.touched()
            self._xpub.touched()
        super()._turn()


class Madhouse:
    """A mad broker, the victim, and a caller, who hears all of the garbage too."""

    def __init__(self, broker: MadBroker, victim: Program, caller: Worker) -> None:
        self.broker = broker
        self.victim = victim
        self.caller = caller
        self.calls = 0

    def goes_on(self) -> None:
        for _ in range(5):
            self.calls += 1
            assert self.caller.call("victim::echo", self.calls, timeout=PATIENCE_S) == self.calls

    def count(self, name: str) -> int:
        counters = self.caller.call("victim::counters", timeout=PATIENCE_S)
        return int(counters.get(name, 0))


@pytest.fixture(scope="module")
def mad() -> Iterator[Madhouse]:
    broker = MadBroker()
    broker.bind()
    thread = threading.Thread(target=broker.run)
    thread.start()
    try:
        with program(VICTIM, broker.url) as victim, Worker("caller", broker.url) as caller:
            caller.wait_for("victim::counters", timeout=PATIENCE_S)
            yield Madhouse(broker, victim, caller)
    finally:
        broker.stop()
        thread.join()


def packed(message: wire.Message) -> bytes:
    return wire.encode(message)[0]


DIGEST = bytes(16)
FROM_MAD: dict[str, tuple[list[bytes], str]] = {
    "nothing": ([b""], "malformed"),
    "http": ([strangers.HTTP], "malformed"),
    "another version": ([framed(2, b"\x90", version=9)], "malformed"),
    "an unknown kind": ([framed(99, b"\x90")], "malformed"),
    "a wrong field": ([framed(5, b"\x93\x01\x02\x03")], "malformed"),
    "a payload where there is none": ([packed(wire.Probe(0)), b"x"], "malformed"),
    "a hundred frames": ([b"x"] * 100, "malformed"),
    "a bomb": ([strangers.BOMBS["a megabyte of empty arrays"]], "malformed"),
    "a deep one": ([strangers.BOMBS["a million levels"]], "malformed"),
    "a bundle with garbage in it": ([packed(wire.Bundle(0, [b"x", packed(wire.Probe(0))]))], "malformed"),
    "a bundle in a bundle": ([packed(wire.Bundle(0, [packed(wire.Bundle(0, []))]))], "unexpected"),
    "a Hello": ([packed(strangers.hello())], "unexpected"),
    "a Welcome that nobody waits for": (
        [packed(wire.Welcome(0, "w", DIGEST, "e", "tcp://*:1", 1, 1, 1, 1, 1, False, ""))], "unexpected",
    ),
    "a refusal of a Hello that nobody said": ([packed(wire.Refuse(0, 1, "version", "no"))], "unexpected"),
    "a part of no answer": ([packed(wire.Snapshot(0, "e", 1, DIGEST, 0, True, []))], "parts_late"),
    "an invitation to nothing": ([packed(wire.Invite(0, b"t|", 1))], "parts_late"),
    "an outcome of no call": ([packed(wire.Result(2**60, b"\xc0"))], "answers_late"),
    "that it is unknown": ([packed(wire.Unknown(0, 6))], "sessions_unknown"),
}  # fmt: skip
ON_STREAM: dict[str, tuple[bytes, str]] = {
    "nothing": (b"s|", "malformed"),
    "random bytes": (b"s|" + strangers.OTHER_PROTOCOLS["random"], "malformed"),
    "a bomb": (b"s|" + strangers.BOMBS["a megabyte of empty maps"], "malformed"),
    "a Call": (b"s|" + packed(wire.Call(1, "f", "", 1, "", 0, 0, b"\xc0")), "malformed"),
    "another broker's beacon": (b"s|" + packed(wire.Beacon(0, "another epoch", 1, DIGEST)), "foreign_epochs"),
}


@pytest.mark.parametrize("name", FROM_MAD)
def test_garbage_from_its_broker_is_counted_and_the_worker_serves_on(mad: Madhouse, name: str) -> None:
    frames, counter = FROM_MAD[name]
    before = mad.count(counter)
    mad.broker.say(*frames)
    until(lambda: mad.count(counter) > before)
    mad.goes_on()


@pytest.mark.parametrize("name", ON_STREAM)
def test_garbage_on_the_stream_is_counted_and_the_worker_serves_on(mad: Madhouse, name: str) -> None:
    frame, counter = ON_STREAM[name]
    before = mad.count(counter)
    mad.broker.say(frame, on_stream=True)
    until(lambda: mad.count(counter) > before)
    mad.goes_on()


@pytest.mark.parametrize("delta", [b"", b"\xc1", b"\x95\x01\x02\x03\x04\x05"])
def test_a_delta_that_is_none_does_no_harm_to_the_replica(mad: Madhouse, delta: bytes) -> None:
    before = mad.count("malformed")
    mad.broker.say(b"s|" + packed(wire.Deltas(0, mad.broker.epoch, [delta])), on_stream=True)
    until(lambda: mad.count("malformed") > before)
    mad.goes_on()
    assert "victim::echo" in mad.caller.functions


def test_a_wrong_digest_is_repaired(mad: Madhouse) -> None:
    before = mad.count("syncs_digest")
    position = mad.caller.position
    mad.broker.say(b"s|" + packed(wire.Beacon(0, position.epoch, position.seq, DIGEST)), on_stream=True)
    until(lambda: mad.count("syncs_digest") > before)
    mad.goes_on()
    assert "victim::echo" in mad.caller.functions


def test_memory_is_level_whatever_its_broker_sends(mad: Madhouse) -> None:
    def flood() -> None:
        """2 MB, and read to its end: what waits unread is no leak."""
        before = mad.count("malformed")
        for _ in range(500):
            mad.broker.say(framed(99, bytes(2_000)))
            mad.broker.say(b"s|" + bytes(2_000), on_stream=True)
        until(lambda: mad.count("malformed") >= before + 1_000)

    for _ in range(4):
        flood()
    kib = memory_kib(mad.victim.pid)
    for _ in range(12):
        flood()
    assert memory_kib(mad.victim.pid) < kib + 12 * 1024  # of 24 MB
    mad.goes_on()


# -- what is no broker -------------------------------------------------------------------------------------------------


NO_BROKERS: dict[str, bytes] = {
    "http": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "random": strangers.OTHER_PROTOCOLS["random after a signature"],
    "nothing": b"",
    "half a greeting": strangers.greeting()[:20],
    "another kind of socket": strangers.greeting() + strangers.ready(b"PUB"),
    "another mechanism": strangers.greeting(mechanism=b"CURVE"),
    "an ERROR": strangers.greeting() + strangers.command(b"ERROR", b"\x03no!"),
}


@contextmanager
def no_broker(port: int) -> Iterator[Callable[[], int]]:
    """Something that answers each connection with the next of NO_BROKERS, and closes it; how many there were."""
    listening = socket.create_server(("127.0.0.1", port))
    answered: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                stranger, _ = listening.accept()
            except OSError:
                return
            with stranger:
                say(stranger, list(NO_BROKERS.values())[len(answered) % len(NO_BROKERS)])
                stranger.settimeout(0.05)
                try:
                    while stranger.recv(4096):
                        pass
                except OSError:
                    pass
            answered.append(b"")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield lambda: len(answered)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(PATIENCE_S)


def free_port() -> int:
    """Of two in a row: the stream's is the one after it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = int(one.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


@pytest.mark.slow
def test_a_worker_that_met_anything_but_a_broker_joins_the_broker_that_comes_there() -> None:
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    with program(VICTIM, url) as victim:
        with no_broker(port) as answered:
            until(lambda: answered() >= len(NO_BROKERS), 60.0)
        victim.expect("connecting")
        with running_broker("--log-level", "error", url=url), Worker("caller", url) as caller:
            victim.expect("connected")
            assert caller.call("victim::echo", 1, timeout=PATIENCE_S) == 1
            assert caller.call("victim::counters", timeout=PATIENCE_S)["handshakes_failed"] > 0


def test_what_is_no_broker_is_an_error_within_the_connect_timeout() -> None:
    port = free_port()
    with no_broker(port), pytest.raises(errors.BrokerUnreachable):
        Worker("victim", f"tcp://127.0.0.1:{port}", connect_timeout=0.5).start()


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A ROUTER that answers the first frame of each message."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                if router.poll(50):
                    peer, frame, *_ = router.recv_multipart()
                    router.send_multipart([peer, answer(frame)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            over.set()
            thread.join()


# A broker of another version did not answer, and a worker said that nobody was there.


def test_a_broker_of_another_version_is_an_error_that_says_so() -> None:
    def refuse(frame: bytes) -> bytes:
        heading = wire.read_heading(frame)
        assert heading is not None
        text = "this broker speaks version 2 of the protocol, not version 1"
        return packed(wire.Refuse(heading.number, heading.kind, errors.VERSION, text, heading.version))

    with answering(refuse) as url, pytest.raises(errors.Refused) as refused:
        Worker("old", url).start()
    assert refused.value.code == errors.VERSION
    assert str(refused.value).endswith(
        "this broker speaks version 2 of the protocol, not version 1; this worker speaks version 1"
    )


# -- no descriptors left -----------------------------------------------------------------------------------------------

TIGHT = """
    import os, resource, sys
    from iii_zmq import Worker
    import iii_zmq.io.worker.sync_worker

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []

    def leave(count):
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for _ in range(count):
            os.close(held.pop())
"""


# libzmq ended the process (SIGABRT) when its threads found no descriptor for their epolls.


def test_a_worker_without_descriptors_is_an_error_and_later_joins() -> None:
    code = (
        TIGHT
        + """
    for count in (0, 4, 5, 6, 8):
        leave(count)
        try:
            Worker("victim", sys.argv[1], connect_timeout=0.1).start()
            print(count, "started", flush=True)
        except OSError as error:
            print("no", flush=True)
    for one in held:
        os.close(one)
    with Worker("victim", sys.argv[1]) as worker:
        print(worker.state, flush=True)
    """
    )
    with running_broker("--log-level", "error") as broker, program(code, broker.url) as victim:
        done = victim.finish()
    assert (done.code, done.out.split()) == (0, ["no"] * 5 + ["connected"])


@pytest.mark.slow
def test_a_worker_whose_descriptors_are_used_up_comes_back_once_there_are_some() -> None:
    code = (
        TIGHT
        + """
    import threading, time

    worker = Worker("victim", sys.argv[1], threads=0)
    worker.register("victim::echo", lambda value: value)
    worker.on_state(lambda state: print(state, flush=True))
    worker.start()
    is_over = threading.Event()

    def use_up():
        while not is_over.wait(0.001):
            leave(0)

    sys.stdin.readline()
    user = threading.Thread(target=use_up)
    user.start()
    sys.stdin.readline()
    is_over.set()
    user.join()
    for one in held:
        os.close(one)
    sys.stdin.read()
    worker.close()
    """
    )
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    with program(code, url) as victim:
        with running_broker("--log-level", "error", url=url) as first:
            victim.expect("connecting", "connected")
            victim.say("use up")
            until(lambda: descriptors(victim.pid) == 64)
            first.process.kill()
            first.process.wait()
        assert victim.line() != "connected"
        with running_broker("--log-level", "error", url=url), Worker("caller", url) as caller:
            with pytest.raises(errors.WaitTimeout):
                caller.wait_for("victim::echo", timeout=1.0)
            victim.say("free")
            caller.wait_for("victim::echo", timeout=PATIENCE_S)
            assert caller.call("victim::echo", 1, timeout=PATIENCE_S) == 1
