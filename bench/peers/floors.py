"""Floors: the same jobs by bare sockets, which nothing that rests on them can beat.

The pyzmq roles use plain `send` and `recv` with integer flags, as cheap as pyzmq gets; payloads over 64 KiB are
neither copied on the way in nor on the way out. Bytes go back as they came: nothing is packed, named or numbered.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import zmq

from bench.floors import SNDMORE, _bound, _connected
from bench.peers import install, lanes, watching
from bench.peers.peer import CALLS, CHANGES, Peer
from bench.processes import Child
from bench.roles import answer, ready

# A ROUTER drops what is beyond its high-water mark, and 1,000 in flight are at the default one.
_UNBOUND = {int(zmq.SNDHWM): 0, int(zmq.RCVHWM): 0}
LARGE = 64 * 1024  # from here on a frame is not copied


class Floor(Peer):
    key = "floors"
    kind = "floor"
    does = frozenset({CALLS})

    def start(self) -> None:
        pass  # no server

    def role(self, role: str, **details: Any) -> Child:
        return super().role(f"{type(self).__name__.lower()}_{role}", **details)


class Proxy(Floor):
    """A broker in C: every caller and every provider is connected to it."""

    name = "zmq.proxy"
    what = "libzmq's own proxy as the broker, bare pyzmq DEALERs on both sides, plain `send` and `recv`"

    def start(self) -> None:
        server = self.children.start("peers.floors.proxy")
        urls = server.answer()
        self.servers, self.address = [server], {"front": urls["front"], "back": urls["back"]}


class Direct(Floor):
    name = "DEALER-ROUTER (no broker)"
    what = "a bare pyzmq round trip"


class Tcp(Floor):
    name = "TCP ping-pong (no broker)"
    what = "Python's plain sockets, Nagle's algorithm off"
    window_max = 4
    window_why = "a ping-pong has no call numbers: with many in flight it measures only how fast bytes can be copied"


class Fanout(Floor):
    """The change itself, as bytes, to all at once."""

    name = "XPUB"
    what = "250 bytes from one bare XPUB to SUBs that share an event loop (uvloop) in each process"
    does = frozenset({CHANGES})

    @classmethod
    def install(cls) -> None:
        install.uvloop_venv()

    @classmethod
    def python(cls) -> str:
        return str(install.uvloop_venv())

    def watch(self, shares: list[int]) -> tuple[Child, list[Child]]:
        changer = self.role("changer")
        self.address, self.servers = changer.answer(), [changer]
        crews = self.observe(shares)
        changer.ask("await_subscribers", count=sum(shares))
        return changer, crews


def proxy() -> None:
    front, front_url = _bound(zmq.ROUTER, _UNBOUND)
    back, back_url = _bound(zmq.DEALER, _UNBOUND)
    ready({"front": front_url, "back": back_url})
    zmq.proxy(front, back)


def proxy_provider(front: str, back: str, number: int) -> None:
    sock = _connected(zmq.DEALER, back, _UNBOUND)
    ready()
    _echo(sock)


def proxy_caller(front: str, back: str) -> None:
    _call(_connected(zmq.DEALER, front, _UNBOUND))


def direct_provider(number: int) -> None:
    sock, url = _bound(zmq.ROUTER, _UNBOUND)
    ready({"url": url})
    _echo(sock)


def direct_caller(url: str) -> None:
    _call(_connected(zmq.DEALER, url, _UNBOUND))


def _echo(sock: Any) -> None:
    """What is cheaper depends on the size, and the last message's tells: rounds are all of one size."""
    send, recv, copy = sock.send, sock.recv, True
    while True:
        peer, payload = recv(0), recv(0, copy=copy)
        copy = len(payload) < LARGE
        send(peer, SNDMORE)
        send(payload, 0, copy=copy)


def _call(sock: Any) -> None:
    send, recv, clock = sock.send, sock.recv, time.monotonic_ns

    def call(payload: bytes) -> int:
        copy = len(payload) < LARGE
        send(payload, 0, copy=copy)
        return len(recv(0, copy=copy))

    def many(payload: bytes, window: int, until_ns: int) -> int:
        copy, count = len(payload) < LARGE, 0
        for _ in range(window):
            send(payload, 0, copy=copy)
        while clock() < until_ns:
            recv(0, copy=copy)
            send(payload, 0, copy=copy)
            count += 1
        for _ in range(window):
            assert len(recv(0)) == len(payload)
        return count + window

    lanes.serve(call, many)


def tcp_provider(number: int) -> None:
    """Whatever comes goes back; Nagle's algorithm is off."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready({"port": listener.getsockname()[1]})
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := sock.recv(LARGE):
        sock.sendall(data)


def tcp_caller(port: int) -> None:
    """One thread that fills the window and drains it, whatever the sockets hold meanwhile."""
    import select

    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer, clock = bytearray(1 << 20), time.monotonic_ns

    def exchange(payload: bytes, window: int, until_ns: int) -> int:
        """Calls are counted by bytes: there is no framing. At least one is made."""
        size, sent, got, owed = len(payload), 0, 0, memoryview(b"")
        sock.setblocking(False)
        while True:
            room = window - (sent - got // size)
            if not owed and room > 0 and (clock() < until_ns or not sent):
                room = min(room, max(1, LARGE // size))
                owed, sent = memoryview(payload * room if room > 1 else payload), sent + room
            if not owed and got == sent * size:
                break
            readable, writable, _ = select.select([sock], [sock] if owed else [], [])
            if writable:
                owed = owed[sock.send(owed) :]
            if readable:
                got += sock.recv_into(buffer)
        sock.setblocking(True)
        return sent

    def call(payload: bytes) -> None:
        if len(payload) > LARGE:
            exchange(payload, 1, 0)  # more than the sockets hold: read while writing
        else:
            _ping(sock, payload, buffer)

    lanes.serve(call, exchange)


def _ping(sock: socket.socket, payload: bytes, buffer: bytearray) -> None:
    sock.sendall(payload)
    left = len(payload)
    while left:
        left -= sock.recv_into(buffer, left)


# The registry --------------------------------------------------------------------------------


def fanout_changer() -> None:
    """An XPUB that counts its subscribers, so that nobody is missed."""
    xpub, url = _bound(zmq.XPUB, {zmq.XPUB_VERBOSE: 1, zmq.SNDHWM: 0})
    ready({"url": url})

    def await_subscribers(count: int) -> None:
        for _ in range(count):
            xpub.recv(0)

    def change(name: str) -> int:
        message = b"+" + name.encode() + b" " + bytes(CHANGE_BYTES - len(name))
        began = time.monotonic_ns()
        xpub.send(message, 0)
        return began

    answer(await_subscribers=await_subscribers, change=change)


CHANGE_BYTES = 250  # about what a registration is on the product's stream


def fanout_observers(url: str, number: int) -> None:
    """SUBs in one process, read by its event loop: no thread each."""
    import uvloop

    async def join(member: watching.Member, _: int) -> Any:
        sub = _connected(zmq.SUB, url, {zmq.SUBSCRIBE: b"", zmq.RCVHWM: 0})

        def read() -> None:
            while sub.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                member.note(sub.recv(0).partition(b" ")[0].decode())

        asyncio.get_running_loop().add_reader(sub.getsockopt(zmq.FD), read)
        read()
        return sub

    uvloop.run(watching.serve(join))
