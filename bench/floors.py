"""Roles in bare pyzmq: what ZeroMQ itself costs for the product's jobs.

Nothing of iii_zmq is used here. All sends and receives are plain `send` and `recv` with
integer flags, blocking, because that is the cheapest way through pyzmq; the floor is to be as
low as it honestly gets. The one exception is asked for by name: `multipart` callers and
providers use pyzmq's `*_multipart`, the way most programs are written.
"""

from __future__ import annotations

import base64
import threading
import time
from typing import Any

import zmq

from bench.measure import cpu_seconds, percentile
from bench.roles import answer, ready

PAYLOAD = b"x" * 100
ANY_PORT = "tcp://127.0.0.1:0"
CHUNK_BYTES = 64 * 1024
TAP_MESSAGES_MAX = 1_000
SNDMORE = int(zmq.SNDMORE)


def proxy() -> None:
    """A broker in C: `zmq.proxy` between a ROUTER (callers) and a DEALER (providers)."""
    front, front_url = _bound(zmq.ROUTER)
    back, back_url = _bound(zmq.DEALER)
    ready({"front": front_url, "back": back_url})
    zmq.proxy(front, back)


def proxied_echo(url: str, multipart: bool = False) -> None:
    """A provider behind the proxy: [caller, payload] goes back as it came."""
    sock = _connected(zmq.DEALER, url)
    ready()
    if multipart:
        _echo_multipart(sock)
    _echo(sock)


def direct_echo() -> None:
    """A ROUTER that answers its callers itself: no broker between."""
    router, url = _bound(zmq.ROUTER)
    ready({"url": url})
    _echo(router)


def caller(url: str, multipart: bool = False) -> None:
    """A DEALER that calls whatever `url` leads to."""
    sock = _connected(zmq.DEALER, url)
    if multipart:
        sock = _Multipart(sock)
    ready()
    answer(calls=lambda **asked: _calls(sock, **asked))


def _calls(sock: Any, window: int, count: int, cpu_of: int) -> dict[str, float]:
    """One round: `count` calls with `window` in flight; `cpu_of` is the broker's pid."""
    cpu, began = cpu_seconds(cpu_of), time.perf_counter()
    spans = _one_by_one(sock, count) if window == 1 else _windowed(sock, window, count)
    took, cpu = time.perf_counter() - began, cpu_seconds(cpu_of) - cpu
    return {
        "p50_us": percentile(spans, 50) / 1e3,
        "p99_us": percentile(spans, 99) / 1e3,
        "calls_per_s": count / took,
        "broker_cpu_us": cpu / count * 1e6,
    }


def _one_by_one(sock: Any, count: int) -> list[int]:
    send, recv, clock, spans = sock.send, sock.recv, time.perf_counter_ns, []
    for _ in range(count):
        began = clock()
        send(PAYLOAD, 0)
        recv(0)
        spans.append(clock() - began)
    return spans


def _windowed(sock: Any, window: int, count: int) -> list[int]:
    send, recv = sock.send, sock.recv
    for _ in range(window):
        send(PAYLOAD, 0)
    for _ in range(count - window):
        recv(0)
        send(PAYLOAD, 0)
    for _ in range(window):
        recv(0)
    return []


def publisher() -> None:
    """An XPUB that publishes given bytes once and says when it began."""
    xpub, url = _bound(zmq.XPUB, {zmq.XPUB_VERBOSE: 1, zmq.SNDHWM: 0})
    ready({"url": url})

    def await_subscribers(count: int) -> None:
        for _ in range(count):
            xpub.recv(0)

    def publish(data: str) -> int:
        message = base64.b64decode(data)
        began = time.monotonic_ns()
        xpub.send(message, 0)
        return began

    answer(await_subscribers=await_subscribers, publish=publish)


def subscribers(url: str, count: int) -> None:
    """`count` SUBs in one process, read by one thread, that note when each got a message."""
    subs = [_connected(zmq.SUB, url, {zmq.SUBSCRIBE: b"", zmq.RCVHWM: 0}) for _ in range(count)]
    seen: list[int] = []
    threading.Thread(target=_note_arrivals, args=(subs, seen), daemon=True).start()
    ready()

    def take() -> list[int]:
        """The moments since the last `take`, in monotonic nanoseconds."""
        taken = seen[:]
        seen.clear()
        return taken

    answer(take=take)


def tap(url: str) -> None:
    """A SUB on the product's stream, to learn which bytes a change is."""
    sub = _connected(zmq.SUB, url, {zmq.SUBSCRIBE: b""})
    ready()

    def find(text: str, timeout_s: float) -> str | None:
        """The frames of the first message that holds `text`, joined and in base64."""
        deadline = time.monotonic() + timeout_s
        for _ in range(TAP_MESSAGES_MAX):
            left_ms = (deadline - time.monotonic()) * 1e3
            if left_ms <= 0 or not sub.poll(left_ms):
                break
            message = b"".join(sub.recv_multipart())
            if text.encode() in message:
                return base64.b64encode(message).decode()
        return None

    answer(find=find)


def sender() -> None:
    """A ROUTER that answers a number with so many bytes, in chunks."""
    router, url = _bound(zmq.ROUTER, {zmq.SNDHWM: 0})
    ready({"url": url})
    chunk = b"x" * CHUNK_BYTES
    while True:
        peer, wanted = router.recv(0), int(router.recv(0))
        for at in range(0, wanted, CHUNK_BYTES):
            router.send(peer, SNDMORE)
            router.send(chunk[: wanted - at], 0)


def receiver(url: str) -> None:
    """A DEALER that connects, asks for so many bytes, and times both together."""
    ready()

    def fetch(wanted: int) -> float:
        """Seconds from making the socket to the last of `wanted` bytes."""
        began = time.perf_counter()
        sock, got = _connected(zmq.DEALER, url, {zmq.RCVHWM: 0}), 0
        sock.send(b"%d" % wanted, 0)
        while got < wanted:
            got += len(sock.recv(0))
        took = time.perf_counter() - began
        sock.close()
        return took

    answer(fetch=fetch)


class _Multipart:
    """`send` and `recv` of one frame by way of pyzmq's `*_multipart`."""

    def __init__(self, sock: Any) -> None:
        self._send_multipart, self._recv_multipart = sock.send_multipart, sock.recv_multipart

    def send(self, payload: bytes, flags: int) -> None:
        self._send_multipart([payload], flags)

    def recv(self, flags: int) -> list[bytes]:
        frames: list[bytes] = self._recv_multipart(flags)
        return frames


def _echo_multipart(sock: Any) -> None:
    while True:
        sock.send_multipart(sock.recv_multipart())


def _echo(sock: Any) -> None:
    send, recv = sock.send, sock.recv
    while True:
        peer, payload = recv(0), recv(0)
        send(peer, SNDMORE)
        send(payload, 0)


def _note_arrivals(subs: list[Any], seen: list[int]) -> None:
    poller = zmq.Poller()
    for sub in subs:
        poller.register(sub, zmq.POLLIN)
    while True:
        for sub, _ in poller.poll():
            sub.recv(0)
            seen.append(time.monotonic_ns())


def _bound(kind: int, options: dict[int, int] | None = None) -> tuple[Any, str]:
    sock = _made(kind, options)
    sock.bind(ANY_PORT)
    return sock, sock.getsockopt_string(zmq.LAST_ENDPOINT)


def _connected(kind: int, url: str, options: dict[int, Any] | None = None) -> Any:
    sock = _made(kind, options)
    sock.connect(url)
    return sock


def _made(kind: int, options: dict[int, Any] | None) -> Any:
    context: zmq.Context[Any] = zmq.Context.instance()
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    for option, value in (options or {}).items():
        sock.setsockopt(option, value)
    return sock
