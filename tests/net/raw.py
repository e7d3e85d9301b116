"""A peer of the broker in plain pyzmq: it says what a test tells it to say, at the moment it is told, and nothing else.

As a program it is a worker that a test can kill or stop: `raw.py URL FUNCTION [SECONDS]` joins, offers the function and
answers its calls; with SECONDS it takes that long for each.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from iii_zmq import wire
from iii_zmq.core.worker.membership import resolve_stream_url
from iii_zmq.io import sockets
from tests.net.brokers import RunningBroker, end, environment

PATIENCE_S = 5.0  # for what takes milliseconds on an idle machine
HEARTBEAT_MS, TTL_MS = 500, 2000
NIL = wire.pack(None)


class RawPeer:
    """A DEALER and, once joined, a SUB. `with` closes both at once."""

    def __init__(self, url: str, *, ttl_ms: int = TTL_MS, routing_id: bytes | None = None) -> None:
        self.url = url
        self.ttl_ms = ttl_ms
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.dealer = sockets.dealer(self.context, HEARTBEAT_MS, ttl_ms)
        self.dealer.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1000))
        if routing_id is not None:
            self.dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        self.dealer.connect(url)
        self.sub: zmq.Socket[bytes] | None = None
        self.welcome: wire.Welcome | None = None
        self.numbers = 0

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for socket in (self.dealer, self.sub):
            if socket is not None:
                socket.close(linger=0)
        self.context.term()

    # -- saying --------------------------------------------------------------------------------------------------------

    def send(self, message: wire.Message) -> None:
        frame, payload = wire.encode(message)
        if isinstance(payload, wire.Split):
            self.send_frames(frame, payload.head, payload.rest)
        else:
            self.send_frames(frame, *([] if payload is None else [payload]))

    def send_frames(self, *frames: wire.Buffer) -> None:
        self.dealer.send_multipart(frames)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def hello(
        self, name: str = "raw", *, functions: bytes = b"", observer: bool = False, credit: int = 1000,
        capabilities: tuple[str, ...] = (),
    ) -> wire.Welcome:  # fmt: skip
        """With the token of the session before, if there was one."""
        token = self.welcome.token if self.welcome is not None else b""
        number = self.number()
        said = list(capabilities)
        self.send(wire.Hello(number, said, name, "host", 1, b"\x80", credit, observer, "", 0, token, functions))
        welcome: wire.Welcome = self.read(wire.Welcome)
        self.welcome = welcome
        return welcome

    def subscribe(self) -> None:
        """Makes the presence heard, on a new stream; returns when the first part of the answer came."""
        assert self.welcome is not None
        if self.sub is not None:
            self.sub.close(linger=0)
        self.sub = sockets.sub(self.context, HEARTBEAT_MS, self.ttl_ms)
        self.sub.connect(resolve_stream_url(self.url, self.welcome.stream_url))
        for topic in (wire.STREAM_TOPIC, wire.presence_topic(self.welcome.token)):
            self.sub.setsockopt(zmq.SUBSCRIBE, topic)
        self.read(wire.Snapshot)

    def join(self, name: str = "raw", *functions: str, observer: bool = False, credit: int = 1000) -> RawPeer:
        self.hello(name, observer=observer, credit=credit)
        self.subscribe()
        if functions:
            entries = [wire.encode_entry(wire.FunctionEntry(one)) for one in functions]
            self.send(wire.Register(self.number(), entries))
            assert self.read(wire.Ack).refusals == []
        return self

    def call(self, function_id: str, payload: wire.Payload = NIL, timeout_s: float = 30.0) -> int:
        """Its number."""
        assert self.welcome is not None
        number = self.number()
        self.send(wire.Call(number, function_id, self.welcome.worker_id, int(timeout_s * 1000), "", 0, 0, payload))
        return number

    def status(self) -> Any:
        """What the broker says of itself. Other messages that come before are lost."""
        number = self.call("engine::status")
        while (result := self.read(wire.Result)).number != number:
            pass
        return wire.unpack(result.payload)

    def counters(self, *names: str) -> list[int]:
        counters = self.status()["counters"]
        return [counters[name] for name in names]

    # -- hearing -------------------------------------------------------------------------------------------------------

    def read(self, *kinds: type[Any], within_s: float = PATIENCE_S) -> Any:
        """The next message of one of these kinds; others are lost, what is to be acknowledged is."""
        until = time.monotonic() + within_s
        while True:
            message = self.read_any(until - time.monotonic())
            assert message is not None, f"no {[kind.__name__ for kind in kinds]} within {within_s} s"
            if isinstance(message, kinds):
                return message

    def read_any(self, within_s: float) -> wire.Message | None:
        if not self.dealer.poll(max(0, int(within_s * 1000))):
            return None
        frame, *rest = self.dealer.recv_multipart()
        payload = wire.Split(*rest) if len(rest) == 2 else rest[0] if rest else None
        message = wire.decode(frame, payload, header_bytes_max=wire.STREAM_BYTES_MAX)
        if isinstance(message, wire.Snapshot | wire.Replay):
            self.send(wire.Received(message.number, message.index))
        elif isinstance(message, wire.Result) and len(message.payload) > wire.INLINE_BYTES_MAX:
            self.send(wire.Received(message.number, 0))
        return message

    def read_stream(self, within_s: float) -> wire.OnStream | None:
        assert self.sub is not None
        if not self.sub.poll(max(0, int(within_s * 1000))):
            return None
        return wire.decode_on_stream(self.sub.recv())

    def next_delta(self, is_it: Callable[[wire.Delta], bool], within_s: float = PATIENCE_S) -> wire.Delta:
        """The first delta on the stream that is the one; those before are lost."""
        until = time.monotonic() + within_s
        while True:
            message = self.read_stream(until - time.monotonic())
            assert message is not None or time.monotonic() < until, f"no such delta within {within_s} s"
            for data in message.deltas if isinstance(message, wire.Deltas) else ():
                delta = wire.decode_delta(data)
                if is_it(delta):
                    return delta


def has_left(delta: wire.Delta) -> bool:
    """Whether a worker goes with this delta."""
    return any(not function_id for _, function_id in delta.drops)


@contextmanager
def raw_worker(broker: RunningBroker, function_id: str, seconds: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """This file as a process, from the moment it has joined. It is killed at the end, if it still lives."""
    command = [sys.executable, str(Path(__file__)), broker.url, function_id, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        yield process
    finally:
        process.kill()
        end(process)


def main(url: str, function_id: str, seconds: str) -> None:
    peer = RawPeer(url).join("child", function_id)
    print("joined", flush=True)
    while True:
        message = peer.read_any(0.2)
        if message is None:
            peer.send(wire.Heartbeat(0, "", 0, 0, 0))
        elif isinstance(message, wire.Call):
            time.sleep(float(seconds))
            peer.send(wire.Result(message.number, message.payload))
            print("answered", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
