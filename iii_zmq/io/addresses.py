"""The broker's addresses: binds them, derives the stream's default, and the one that workers are told."""

from __future__ import annotations

import fcntl
import os

import zmq


class AddressInUse(OSError):
    """Another broker or program already listens on this address."""


def bind(socket: zmq.Socket[bytes], url: str, locks: list[int]) -> str:
    """Binds the address; returns it with the port that was chosen for port 0.

    An ipc path is locked while a descriptor that is added to `locks` is open: otherwise binding a path that another
    process owns would succeed and steal it. Raises: AddressInUse, ValueError for a malformed address.
    """
    if url.startswith("ipc://"):
        locks.append(_lock(url.removeprefix("ipc://")))
    try:
        socket.bind(url[:-1] + "*" if url.startswith("tcp://") and url.endswith(":0") else url)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUse(f"{url} is in use: another broker or program listens on it") from error
        raise ValueError(f"can't serve {url!r}: {error.strerror}; expected tcp://HOST:PORT or ipc://PATH") from error
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    return bytes(bound).rstrip(b"\0").decode()


def _lock(path: str) -> int:
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise AddressInUse(f"ipc://{path} is in use: another broker serves it") from error
    return lock


def default_stream_url(url: str) -> str:
    """The next port; port 0 for port 0; for ipc the path + `.stream`. Raises: ValueError."""
    if url.startswith("ipc://") and len(url) > len("ipc://"):
        return url + ".stream"
    host, _, port = url.rpartition(":")
    if not url.startswith("tcp://") or not port.isdigit() or not host.removeprefix("tcp://"):
        raise ValueError(f"{url!r} is not an address to serve on; expected tcp://HOST:PORT or ipc://PATH")
    if int(port) > 65534:
        raise ValueError(f"{url!r}: there is no next port for the stream; give --stream-url")
    return f"{host}:{int(port) + 1 if int(port) else 0}"


def advertised(bound: str, asked_for: str | None) -> str:
    """The stream's address for Welcome: the host `*` means the host that the worker used to reach the broker.

    `asked_for` is the stream address that was given, if any; if it names a host, that host is used.
    """
    if not bound.startswith("tcp://"):
        return bound
    host = (asked_for or "*:").removeprefix("tcp://").rsplit(":", 1)[0]
    wildcards = ("*", "0.0.0.0", "[::]", "::")
    return f"tcp://{'*' if host in wildcards else host}:{bound.rsplit(':', 1)[1]}"
