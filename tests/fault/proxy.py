"""A TCP link that a test can break: a proxy on the loopback, one thread each, in front of one port.

    with Proxy(broker.url) as proxy:            workers use `proxy.url`: all that they say goes through
        proxy.blackhole()                       swallow every byte, close nothing (or one direction: up=, down=)
        proxy.hold()                            read nothing: bytes wait, and TCP pushes back
        proxy.forward()                         as in the beginning; what was swallowed is lost, what was held comes
        proxy.cut()                             close both ends of every connection
        proxy.cut_worker_side()                 close the worker's end, hold the broker's open until `drop_halves()`
        proxy.cut_broker_side()                 the other way round
        proxy.refuse(), proxy.accept()          nobody listens, and again somebody does
        proxy.lead_to(url)                      new connections go elsewhere

    with Proxies(broker) as proxies:            `proxies.control` and `proxies.stream`; `proxies.each(Proxy.cut)`: both

The proxies of a broker listen on another address of the loopback under the broker's own port numbers. So Welcome leads
workers to the stream's proxy by itself: its host is the one that they used for the broker.

Every order has been carried out when it returns. `up` is towards the broker, `down` towards the worker.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from tests.net.brokers import RunningBroker

CHUNK_BYTES = 65_536
BUFFERED_BYTES_MAX = 1_048_576  # of one direction of one connection; beyond it nothing is read, so TCP pushes back
ORDER_S = 10.0  # for an order to be carried out: milliseconds, on an idle machine
PROXY_HOST = "127.0.0.2"  # where the proxies of a broker on 127.0.0.1 listen

FORWARD, SWALLOW, HOLD = "forward", "swallow", "hold"
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass(slots=True, eq=False)
class _End:
    """One socket of a connection; `unsent` is what it is still to be given."""

    socket: socket.socket
    direction: str  # of what is read here
    peer: _End | None = None  # None once that was closed: this one is half of a connection
    unsent: bytearray = field(default_factory=bytearray)


class Proxy:
    """Between `host:port` (0: a free port) and where `target_url` leads."""

    def __init__(self, target_url: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = address(target_url)
        self._selector = selectors.DefaultSelector()
        self._ends: dict[_End, None] = {}
        self._modes = {"up": FORWARD, "down": FORWARD}
        self._orders: list[tuple[Callable[[], None], Future[None]]] = []
        self._ended = False
        self.accepted = 0  # connections, ever
        self.forwarded_bytes = {"up": 0, "down": 0}
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_in, _READ)
        self._listener: socket.socket | None = None
        self.host, self.port = host, port
        self._listen()
        self._thread = threading.Thread(target=self._run, name=f"proxy to {target_url}", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """Connections that stand, halves included."""
        return (len(self._ends) + 1) // 2

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- orders --------------------------------------------------------------------------------------------------------

    def forward(self) -> None:
        self._do(lambda: self._set_modes(FORWARD, True, True))

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        self._do(lambda: self._set_modes(SWALLOW, up, down))

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        self._do(lambda: self._set_modes(HOLD, up, down))

    def cut(self, *, reset: bool = False) -> None:
        """`reset` ends them as a crashed machine does, without a FIN."""
        self._do(lambda: self._close_ends(lambda end: True, reset))

    def cut_worker_side(self, *, reset: bool = False) -> None:
        self._do(lambda: self._close_ends(lambda end: end.direction == "up" and end.peer is not None, reset))

    def cut_broker_side(self, *, reset: bool = False) -> None:
        self._do(lambda: self._close_ends(lambda end: end.direction == "down" and end.peer is not None, reset))

    def drop_halves(self) -> None:
        """Closes what was left open when its other side was cut."""
        self._do(lambda: self._close_ends(lambda end: end.peer is None, False))

    def refuse(self) -> None:
        """Connections that stand are left alone."""
        self._do(self._stop_listening)

    def accept(self) -> None:
        self._do(self._listen)

    def lead_to(self, target_url: str) -> None:
        """Where connections go from now on; those that stand are left alone."""
        self.target = address(target_url)

    def close(self) -> None:
        if not self._ended:
            self._do(self._end)
            self._thread.join(ORDER_S)
            self._wake_out.close()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _do(self, order: Callable[[], None]) -> None:
        done: Future[None] = Future()
        self._orders.append((order, done))
        self._wake_out.send(b"x")
        done.result(ORDER_S)

    def _run(self) -> None:
        while not self._ended:
            for key, events in self._selector.select():
                if key.fileobj is self._wake_in:
                    self._carry_out()
                elif key.fileobj is self._listener:
                    self._take()
                elif key.data in self._ends:  # else it was closed in this very round
                    self._on_end(key.data, events)

    def _carry_out(self) -> None:
        self._wake_in.recv(4096)
        while self._orders:
            order, done = self._orders.pop(0)
            try:
                order()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _take(self) -> None:
        assert self._listener is not None
        try:
            worker, _ = self._listener.accept()
        except BlockingIOError:
            return  # it went again before we came
        try:
            broker = socket.create_connection(self.target, timeout=ORDER_S)
        except OSError:
            worker.close()  # nobody there: the worker sees its connection end at once
            return
        self.accepted += 1
        near, far = _End(worker, "up"), _End(broker, "down")
        near.peer, far.peer = far, near
        for end in (near, far):
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends[end] = None
            self._selector.register(end.socket, _READ, end)
            self._watch(end)

    def _on_end(self, end: _End, events: int) -> None:
        try:
            if events & _WRITE:
                self._write(end)
            if events & _READ:
                self._read(end)
        except BlockingIOError:
            pass
        except OSError:
            self._close_pair(end)

    def _read(self, end: _End) -> None:
        data = end.socket.recv(CHUNK_BYTES)
        if not data:
            self._close_pair(end)
        elif end.peer is not None and self._modes[end.direction] == FORWARD:
            self.forwarded_bytes[end.direction] += len(data)
            end.peer.unsent += data
            self._write(end.peer)

    def _write(self, end: _End) -> None:
        try:
            while end.unsent:
                del end.unsent[: end.socket.send(end.unsent)]
        except BlockingIOError:
            pass
        self._watch(end)
        if end.peer is not None:
            self._watch(end.peer)

    def _watch(self, end: _End) -> None:
        """What to wait for, at one end: nothing at all while its bytes are held, or while too many wait behind it."""
        is_full = end.peer is not None and len(end.peer.unsent) >= BUFFERED_BYTES_MAX
        reads = self._modes[end.direction] != HOLD and not is_full
        events = (_READ if reads else 0) | (_WRITE if end.unsent else 0)
        with contextlib.suppress(KeyError):
            self._selector.unregister(end.socket)
        if events:
            self._selector.register(end.socket, events, end)

    def _close_pair(self, end: _End) -> None:
        """One end was closed by its owner: the other one too, with what it was still to be given."""
        for one in (end, end.peer):
            if one is not None:
                self._close_end(one, False)

    def _close_ends(self, is_it: Callable[[_End], bool], reset: bool) -> None:
        for end in [end for end in self._ends if is_it(end)]:
            self._close_end(end, reset)

    def _close_end(self, end: _End, reset: bool) -> None:
        if end not in self._ends:
            return
        del self._ends[end]
        if end.peer is not None:
            end.peer.peer = None
        with contextlib.suppress(KeyError):
            self._selector.unregister(end.socket)
        if reset:
            end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.socket.close()

    def _set_modes(self, mode: str, up: bool, down: bool) -> None:
        self._modes = {"up": mode if up else FORWARD, "down": mode if down else FORWARD}
        for end in self._ends:
            self._watch(end)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port), backlog=1024)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._selector.register(self._listener, _READ)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _end(self) -> None:
        self._ended = True
        self._stop_listening()
        self._close_ends(lambda end: True, False)
        self._selector.close()
        self._wake_in.close()


class Proxies:
    """The two proxies of one broker. Workers use `url`."""

    def __init__(self, broker: RunningBroker, *, host: str = PROXY_HOST) -> None:
        self.control = Proxy(broker.url, host=host, port=address(broker.url)[1])
        self.stream = Proxy(broker.stream_url, host=host, port=address(broker.stream_url)[1])
        self.both = (self.control, self.stream)

    @property
    def url(self) -> str:
        return self.control.url

    def each(self, order: Callable[[Proxy], None]) -> None:
        """Such as `proxies.each(Proxy.cut)`."""
        for proxy in self.both:
            order(proxy)

    def __enter__(self) -> Proxies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.each(Proxy.close)


def address(url: str) -> tuple[str, int]:
    """Host and port of a tcp URL."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return host, int(port)
