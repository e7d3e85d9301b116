"""Peers that are no broker, on a port where a worker expects one: a thread each, in plain sockets or pyzmq.

with impostor("http") as peer:      `peer.url`; `peer.met` is set once it did to a connection what it does
"""

from __future__ import annotations

import contextlib
import math
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import zmq

from iii_zmq import wire

PATIENCE_S = 10.0  # no connection of a test is looked after for longer
POLL_S = 0.02  # how often an impostor sees that it was told to end
REACT_S = 0.2  # for the other side to close the connection, if it does: then what this one said was understood

# -- ZMTP by hand: RFC 23 (3.0), 15 (2.0), 13 (1.0) --------------------------------------------------------------------


def greeting(mechanism: bytes = b"NULL", version: bytes = b"\x03\x01") -> bytes:
    return b"\xff" + bytes(8) + b"\x7f" + version + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    body = bytes([len(name)]) + name + body
    return bytes([4, len(body)]) + body


def ready(socket_type: bytes) -> bytes:
    return command(b"READY", b"\x0bSocket-Type" + struct.pack(">I", len(socket_type)) + socket_type)


def frame(size: int) -> bytes:
    """The beginning of one with so many bytes."""
    return b"\x02" + struct.pack(">Q", size) + b"x" * 99


# -- on plain sockets: each is given a connection, and the answer is whether it closes it ------------------------------

Keep = bool
Manners = Callable[[socket.socket], Keep]


def http(one: socket.socket) -> Keep:
    one.recv(64)
    one.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return False


def says(*words: bytes, keep: bool = True) -> Manners:
    """Says this unasked."""

    def say(one: socket.socket) -> Keep:
        one.sendall(b"".join(words))
        return keep

    return say


def hears_then_says(*words: bytes, keep: bool = True) -> Manners:
    """Waits for the greeting and the READY of the other side in between."""

    def say(one: socket.socket) -> Keep:
        for word in words:
            one.sendall(word)
            one.recv(4096)
        return keep

    return say


def echo(one: socket.socket) -> Keep:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and (data := one.recv(4096)):
        one.sendall(data)
    return False


PLAIN_SOCKETS: dict[str, Manners] = {
    "http": http,
    "tls": hears_then_says(b"\x15\x03\x01\x00\x02\x02\x46", keep=False),
    "ssh": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "zeros": says(bytes(64)),
    "random": says(secrets.token_bytes(300)),
    "mute": says(),
    "slams the door": says(keep=False),
    "half a greeting": says(greeting()[:12]),
    "echo": echo,
    "ZMTP 1": says(b"\x01\x00"),
    "ZMTP 2": says(b"\xff" + bytes(8) + b"\x7f\x01\x06", b"\x00\x00"),
    "ZMTP 9": says(greeting(version=b"\x09\x00"), ready(b"ROUTER")),
    "PLAIN": says(greeting(b"PLAIN")),
    "unknown mechanism": says(greeting(b"NOSUCH")),
    "READY of nothing": says(greeting(), command(b"READY", b"")),
    "broken READY": says(greeting(), command(b"READY", b"\x0bSocket-Type\x7f\xff\xff\xff")),
    "ERROR 300": hears_then_says(greeting(), command(b"ERROR", b"\x03300")),
    "ERROR 400": hears_then_says(greeting(), command(b"ERROR", b"\x03400")),
    "ERROR 500": hears_then_says(greeting(), command(b"ERROR", b"\x03500")),
    "ERROR of words": hears_then_says(greeting(), command(b"ERROR", b"\x05sorry")),
    "broken ERROR": hears_then_says(greeting(), command(b"ERROR", b"\xff1")),
    "a message before READY": says(greeting(), b"\x00\x05hello"),
    "a frame of 8 EiB": hears_then_says(greeting(), ready(b"ROUTER"), frame(2**63 - 1)),
    "a frame of 16 EiB": hears_then_says(greeting(), ready(b"ROUTER"), frame(2**64 - 1)),
    "an endless frame": hears_then_says(greeting(), ready(b"ROUTER"), frame(2**38)),
    "a broken command": hears_then_says(greeting(), ready(b"ROUTER"), b"\x04\x02\xff\xff"),
    "a late ERROR": hears_then_says(greeting(), ready(b"ROUTER"), command(b"ERROR", b"\x03400")),
    "a broken PING": hears_then_says(greeting(), ready(b"ROUTER"), command(b"PING", b"")),
    "reserved flags": hears_then_says(greeting(), ready(b"ROUTER"), b"\xf8\x01x"),
}


@dataclass(slots=True)
class Impostor:
    url: str
    met: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def impostor(kind: str) -> Iterator[Impostor]:
    """Serves until the end of the `with`."""
    serve = _plain_server(PLAIN_SOCKETS[kind]) if kind in PLAIN_SOCKETS else _zmq_server(ZMQ_SOCKETS[kind])
    with serve as peer:
        yield peer


@contextlib.contextmanager
def _plain_server(manners: Manners) -> Iterator[Impostor]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Impostor(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        listener.settimeout(POLL_S)
        thread = threading.Thread(target=_accept, args=(listener, manners, peer), daemon=True)
        thread.start()
        try:
            yield peer
        finally:
            peer.ended.set()
            thread.join(PATIENCE_S)


def _accept(listener: socket.socket, manners: Manners, peer: Impostor) -> None:
    kept: list[socket.socket] = []
    while not peer.ended.is_set():
        try:
            one, _ = listener.accept()
        except TimeoutError:
            continue
        one.settimeout(REACT_S)
        try:
            if manners(one) and one.recv(4096) != b"":
                kept.append(one)
            else:
                one.close()
        except TimeoutError:
            kept.append(one)
        except OSError:
            one.close()
        peer.met.set()
    for one in kept:
        one.close()


# -- in pyzmq ----------------------------------------------------------------------------------------------------------

Context = zmq.Context[zmq.Socket[bytes]]
Life = Callable[[Context, Impostor, threading.Event], None]


def of_type(socket_type: int, answers: Callable[[bytes], bytes] | None = None, **options: object) -> Life:
    """A socket of this type, which answers messages, if at all, with one frame."""

    def live(context: Context, peer: Impostor, bound: threading.Event) -> None:
        one = context.socket(socket_type)
        one.linger = 0
        for name, value in options.items():
            setattr(one, name, value)
        monitor = one.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        port = one.bind_to_random_port("tcp://127.0.0.1")
        peer.url = f"tcp://127.0.0.1:{port}"
        bound.set()
        met_at = math.inf
        while not peer.ended.is_set():
            if monitor.poll(int(POLL_S * 1000)):
                (event,) = struct.unpack_from("=H", monitor.recv_multipart()[0])
                met_at = min(met_at, time.monotonic() + (REACT_S if event == zmq.EVENT_ACCEPTED else 0.0))
            while answers is not None and one.poll(0):
                sender, frame = one.recv_multipart()[:2]
                one.send_multipart([sender, answers(frame)])
            if time.monotonic() >= met_at:
                peer.met.set()
        one.disable_monitor()
        monitor.close(0)
        one.close(0)

    return live


def zap(code: bytes) -> Life:
    """A ROUTER whose ZAP handler answers everybody with this code."""
    router = of_type(zmq.ROUTER, zap_domain=b"lan")

    def live(context: Context, peer: Impostor, bound: threading.Event) -> None:
        handler = context.socket(zmq.REP)
        handler.linger = 0
        handler.bind("inproc://zeromq.zap.01")

        def answer() -> None:
            while not peer.ended.is_set():
                if handler.poll(int(POLL_S * 1000)):
                    version, request, *_ = handler.recv_multipart()
                    handler.send_multipart([version, request, code, b"because", b"", b""])
            handler.close(0)

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        router(context, peer, bound)
        answering.join(PATIENCE_S)

    return live


def welcomes(stream_url: str) -> Callable[[bytes], bytes]:
    """Answers every Hello with a Welcome that leads nowhere."""

    def answer(frame: bytes) -> bytes:
        message = wire.decode(frame, None)
        welcome = wire.Welcome(
            message.number, "w", secrets.token_bytes(16), "e", stream_url, 500, 2000, 64, 64, 1000, False, "0"
        )
        return wire.encode(welcome)[0]

    return answer


ZMQ_SOCKETS: dict[str, Life] = {
    "PUB": of_type(zmq.PUB),
    "PULL": of_type(zmq.PULL),
    "SUB": of_type(zmq.SUB),
    "CURVE": of_type(zmq.ROUTER, curve_server=1, curve_secretkey=zmq.curve_keypair()[1]),
    "ZAP 300": zap(b"300"),
    "ZAP 400": zap(b"400"),
    "ZAP 500": zap(b"500"),
    "a silent ROUTER": of_type(zmq.ROUTER),
    "a ROUTER that talks nonsense": of_type(zmq.ROUTER, lambda frame: secrets.token_bytes(40)),
    "a ROUTER that echoes": of_type(zmq.ROUTER, lambda frame: frame),
    "a ROUTER with huge frames": of_type(zmq.ROUTER, lambda frame: bytes(80_000_000)),
    "a stream that is no URL": of_type(zmq.ROUTER, welcomes("nonsense")),
    "a stream that is nowhere": of_type(zmq.ROUTER, welcomes("tcp://no.such.host.invalid:1")),
}


@contextlib.contextmanager
def _zmq_server(life: Life) -> Iterator[Impostor]:
    peer, bound = Impostor(""), threading.Event()

    def live() -> None:
        context: Context = zmq.Context()
        life(context, peer, bound)
        context.term()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        assert bound.wait(PATIENCE_S)
        yield peer
    finally:
        peer.ended.set()
        thread.join(PATIENCE_S)


KINDS = (*PLAIN_SOCKETS, *ZMQ_SOCKETS)
