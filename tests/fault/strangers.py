"""Who comes to a broker's ports and is no client: bytes of other protocols, half handshakes, and frames that are none.

Plus the neighbour, a worker that calls another one all the while, whom none of it may concern.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iii_zmq import Worker, wire
from tests.fault.programs import program, until
from tests.net.brokers import RunningBroker
from tests.net.raw import RawPeer

PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine
ECHO = "neighbour::echo"
MIB = 1024 * 1024

# -- other protocols ---------------------------------------------------------------------------------------------------


def tls_hello() -> bytes:
    """What a browser says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="broker")
    try:
        talk.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


HTTP = b"GET / HTTP/1.1\r\nHost: broker\r\nUser-Agent: scanner\r\nAccept: */*\r\n\r\n"
OTHER_PROTOCOLS: dict[str, bytes] = {
    "http": HTTP,
    "http, long": b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000,
    "tls": tls_hello(),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "random": random.Random(8).randbytes(5000),
    "random after a signature": b"\xff" + bytes(8) + b"\x7f" + random.Random(9).randbytes(5000),
}

# -- ZMTP, spoken by hand (https://rfc.zeromq.org/spec/23/) ------------------------------------------------------------

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting(major: int = 3, mechanism: bytes = b"NULL") -> bytes:
    return SIGNATURE + bytes([major, 0]) + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    content = bytes([len(name)]) + name + body
    return b"\x06" + len(content).to_bytes(8, "big") + content


def ready(socket_type: bytes, **properties: bytes) -> bytes:
    given = {"Socket-Type": socket_type, "Identity": b"", **properties}
    return command(b"READY", b"".join(_property(name.encode(), value) for name, value in given.items()))


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


FAILED_HANDSHAKES: dict[str, bytes] = {
    "no such mechanism": greeting(mechanism=b"EVIL") + ready(b"DEALER"),
    "PLAIN": greeting(mechanism=b"PLAIN") + command(b"HELLO", b"\x01u\x01p"),
    "CURVE": greeting(mechanism=b"CURVE") + command(b"HELLO", b"\x01\x00" + bytes(192)),
    "no such socket type": greeting() + ready(b"TELEPHONE"),
    "PUSH": greeting() + ready(b"PUSH"),
    "PAIR": greeting() + ready(b"PAIR"),
    "PUB": greeting() + ready(b"PUB"),
    "another command": greeting() + command(b"STEADY", b""),
    "a message before READY": greeting() + b"\x00\x05hello",
    "a property longer than its command": greeting() + command(b"READY", b"\x0bSocket-Type\xff\xff\xff\xffDEALER"),
    "a command of 2^63 bytes": greeting() + b"\x06\x80" + bytes(7) + b"READY",
    "an ERROR": greeting() + command(b"ERROR", b"\x03no!"),
}
HALF_HANDSHAKES: dict[str, bytes] = {
    "nothing": b"",
    "one byte": SIGNATURE[:1],
    "the signature": SIGNATURE,
    "half a greeting": greeting()[:30],
    "a greeting": greeting(),
    "half a READY": greeting() + ready(b"DEALER")[:20],
}
OLD_VERSIONS: dict[str, bytes] = {  # libzmq takes them; what they send is a frame like any other
    "ZMTP 1": b"\x01\x00" + b"\x08\x00garbage",
    "ZMTP 2": SIGNATURE + b"\x01\x05" + b"\x00\x00" + b"\x00\x07garbage",
}

# -- frames of which none is a message ---------------------------------------------------------------------------------


def framed(kind: int, header: bytes, rest: bytes = b"", *, version: int = wire.VERSION) -> bytes:
    return wire.PREFIX.pack(wire.MAGIC, version, kind, len(header), 7) + header + rest


def array(item: bytes, header_bytes: int = MIB) -> bytes:
    """A header of this size: an array of as many of the item as fit."""
    count = (header_bytes - 5) // len(item)
    return b"\xdd" + count.to_bytes(4, "big") + item * count


BOMBS: dict[str, bytes] = {
    "a megabyte of empty maps": framed(3, array(b"\x80")),
    "a megabyte of empty arrays": framed(3, array(b"\x90")),
    "a megabyte of timestamps": framed(3, array(b"\xd6\xff\0\0\0\0")),
    "a megabyte of strings": framed(4, b"\x91" + array(b"\xa1a", MIB - 1)[:-1]),
    "a million levels": framed(3, b"\x91" * (MIB - 1) + b"\x90"),
    "levels of maps": framed(1, b"\x81\xa1a" * 300_000 + b"\x80"),
    "an array of 2^32": framed(3, b"\xdd\xff\xff\xff\xff"),
    "a map of 2^32": framed(3, b"\xdf\xff\xff\xff\xff"),
    "bytes of 4 GiB": framed(3, b"\x91\xc6\xff\xff\xff\xff"),
    "a header of 4 GiB": wire.PREFIX.pack(wire.MAGIC, wire.VERSION, 3, 2**32 - 1, 7),
    "a header above its limit": framed(3, bytes(wire.CONTROL_BYTES_MAX + 1)),
    "no utf-8": framed(4, b"\x91\x91\xa4\xff\xfe\xfd\xfc"),
}


def hello(**fields: Any) -> wire.Hello:
    given: dict[str, Any] = {
        "number": 7, "capabilities": [], "name": "stranger", "host": "host", "pid": 1, "metadata": b"\x80",
        "credit": 1, "observer": False, "epoch": "", "seq": 0, "token": b"", "functions": b"",
    } | fields  # fmt: skip
    return wire.Hello(**given)


# -- connections -------------------------------------------------------------------------------------------------------


def host_and_port(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


def connected(url: str) -> socket.socket:
    return socket.create_connection(host_and_port(url), timeout=PATIENCE_S)


def is_cut(stranger: socket.socket, within_s: float = PATIENCE_S) -> bool:
    """Whether the other side ends the connection; what it says before that is of no interest."""
    end = time.monotonic() + within_s
    try:
        while (left_s := end - time.monotonic()) > 0:
            stranger.settimeout(left_s)
            if not stranger.recv(65_536):
                return True
    except ConnectionError:
        return True
    except TimeoutError:
        pass
    return False


def say(stranger: socket.socket, data: bytes) -> None:
    """As much of it as the other side listens to."""
    try:
        stranger.sendall(data)
    except ConnectionError:
        pass


# -- the neighbour -----------------------------------------------------------------------------------------------------


PROVIDER = f"""
    import sys
    from iii_zmq import Worker

    worker = Worker("provider", sys.argv[1], threads=0)
    worker.register("{ECHO}", lambda value: value)
    worker.start()
    print("ready", flush=True)
    sys.stdin.read()
    worker.close()
"""


class Neighbour:
    """Calls without a pause. `watcher` is a peer of its own, to ask the broker what it counted."""

    def __init__(self, broker: RunningBroker, watcher: RawPeer) -> None:
        self.broker = broker
        self.watcher = watcher
        self.calls = 0
        self.slowest_s = 0.0
        self.failed: BaseException | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        try:
            with Worker("neighbour", self.broker.url) as worker:
                while not self._is_over:
                    began = time.monotonic()
                    assert worker.call(ECHO, self.calls, timeout=PATIENCE_S) == self.calls
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                    self.calls += 1
        except BaseException as error:
            self.failed = error

    def goes_on(self, calls: int = 20) -> None:
        """That the next calls are answered as all before, by the broker that was there before."""
        before = self.calls
        until(lambda: self.failed is not None or self.calls >= before + calls)
        assert self.failed is None, repr(self.failed)
        assert self.broker.process.poll() is None

    def count(self, name: str) -> int:
        """One of the broker's counters or gauges."""
        return int(self.watcher.status()["counters"][name])

    def wait_for(self, name: str, count: int) -> None:
        """That a counter reaches this, and does not pass it."""
        until(lambda: self.count(name) >= count)
        assert self.count(name) == count

    def end(self) -> None:
        self._is_over = True
        self._thread.join(PATIENCE_S)


@contextmanager
def neighbour(broker: RunningBroker) -> Iterator[Neighbour]:
    with program(PROVIDER, broker.url) as provider, RawPeer(broker.url) as watcher:
        provider.expect("ready")
        one = Neighbour(broker, watcher.join("watcher", observer=True))
        try:
            one.goes_on()
            yield one
            one.goes_on()
        finally:
            one.end()
