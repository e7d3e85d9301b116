"""The sockets of one worker around one WorkerCore: `pump()` reads, ticks and sends, and never waits.

    whoever waits:  link.wait(link.wait_ms())                       or an event loop, which calls link.readable(fd)
                    link.pump()                                     monitors, then messages, then what is due
                    ... link.core.take_events() ...
                    link.flush()                                    what the core wants sent or done

The sockets' own descriptors are waited for, not the sockets (io/edge).

Invariant: what a connection carried is handed to the core before the news that the connection is gone. One thread at a
time may use a Link; it has no lock of its own. It decides nothing, except that too much unread is thrown away.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import zmq

from ... import errors, wire
from ...core.bundles import PORTION_MIN, packed, portion
from ...core.worker.core import WorkerCore
from ...core.worker.events import (
    BROKER,
    LINK,
    STREAM,
    Connect,
    Disconnect,
    Disconnected,
    DropControl,
    Failed,
    OpenStream,
    Order,
    StreamDisconnected,
    Subscribe,
    Unsent,
    Unsubscribe,
)
from .. import sockets
from ..edge import Edge, Edges, Socket
from .monitor import OF_CONTROL, OF_STREAM, Monitor

log = logging.getLogger("iii_zmq.worker")

BURST_MAX: Final = 128  # messages of one socket a turn, so that the other one and the timers get their time
STREAM_WAITING_MAX = 10_000  # stream messages unread: more are worth less than a snapshot
WAIT_MAX_MS: Final = 60_000
SOCKETS_MAX = 16_384  # of one process; a worker takes six

# Then mostly the others are on it as well, and a bundle that is sent early is not worked on early.
_IS_ON_ONE_CPU = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)

_clock: Final = time.monotonic

_contexts: dict[int, zmq.Context[Socket]] = {}


def context() -> zmq.Context[Socket]:
    """The one context of this process: one I/O thread serves all its workers. A fork's child gets its own."""
    pid = os.getpid()
    if pid not in _contexts:
        made = sockets.new_context()
        made.set(zmq.MAX_SOCKETS, min(SOCKETS_MAX, int(made.get(zmq.SOCKET_LIMIT))))
        _contexts[pid] = made
    return _contexts[pid]


class Unread:
    """Stream frames that were taken and not decoded yet: only who takes everything can tell when it is too much."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()  # at most STREAM_WAITING_MAX

    def collect(self, sub: Edge) -> bool:
        """Takes all that waits. False if that was too much: all is thrown away, to be asked for as a whole."""
        frames = self.frames
        while len(frames) < STREAM_WAITING_MAX:
            frame = sub.recv()
            if frame is None:
                return True
            frames.append(frame)
            if not sub.may_hold():
                return True
        frames.clear()
        while sub.recv() is not None:
            pass
        return False


class Link:
    """DEALER, SUB and a monitor for each.

    A thread that waits for a call uses the control socket alone (`wait_control`, `pump_control`, `pump_alone`), and
    `wake_fd` ends its wait. The stream, and what is due, belong to whoever calls `pump`.
    """

    def __init__(self, core: WorkerCore, wake_fd: int | None = None) -> None:
        self.core = core
        self.generation = 0
        self._wake_fd = wake_fd
        self._dealer: Edge | None = None
        self._dealer_monitor: Monitor | None = None
        self._sub: Edge | None = None
        self._sub_monitor: Monitor | None = None
        self.is_heavy = False  # the last message that was pumped is large: it is dealt with before the next is read
        self._backlog = False  # it held something before anybody waited: many at once are read
        self._unread = Unread()
        self._warned = False
        self._debug = False  # whether every message gets a line in the log: asked once a turn
        self._renew()

    # -- what the one who waits uses -----------------------------------------------------------------------------------

    def wait_ms(self) -> int:
        """How long nothing is due; rounded up, so that no timer spins."""
        if self.may_hold():
            return 0
        due = self.core.next_deadline()
        if due is None:
            return WAIT_MAX_MS
        return min(WAIT_MAX_MS, max(0, -int((_clock() - due) * 1000 // 1)))

    def may_hold(self) -> bool:
        """Whether a socket may hold something; to be asked before anybody waits for descriptors."""
        self._backlog = self._dealer is not None and self._dealer.may_hold()
        return self._backlog or bool(self._unread.frames) or self._edges.may_hold()

    def wait(self, wait_ms: int) -> bool:
        """Waits until there may be something to pump, at most so long; whether `wake_fd` is readable."""
        return self._edges.wait(wait_ms)

    def readable(self, fd: int) -> None:
        """One of the descriptors told of news, to somebody else who waits for them."""
        self._edges.told(fd)

    def pump(self) -> bool:
        """Hands what there is to the core, and ticks; whether the control socket had anything."""
        now = _clock()
        core, dealer, sub = self.core, self._dealer, self._sub
        self._debug = log.isEnabledFor(logging.DEBUG)
        is_heard = self.is_heavy = False
        for monitor in self._monitors:
            if monitor.edge.is_told:
                self._read_monitor(monitor, now)
        if dealer is not None and dealer.is_told:
            is_heard = True
            self._read_dealer(dealer, now, BURST_MAX if self._backlog else 1)
        if sub is not None and sub.is_told:
            self._collect_stream(sub, now)
        if self._unread.frames:
            self._read_stream(now)
        due = core.next_deadline()
        if due is not None and now >= due:
            core.tick(now)
        return is_heard

    def control_may_hold(self) -> bool:
        """As `may_hold`, of the control socket."""
        self._backlog = self._dealer is not None and self._dealer.may_hold()
        return self._backlog

    def wait_control(self, wait_ms: int) -> bool:
        """Waits until the control socket may hold something, at most so long; whether `wake_fd` is readable."""
        return self._control.wait(wait_ms)

    def pump_control(self) -> bool:
        """Hands the core what the control socket has; whether that was anything."""
        dealer = self._dealer
        if dealer is None or not dealer.is_told:
            return False
        self.is_heavy = False
        self._read_dealer(dealer, _clock(), BURST_MAX if self._backlog else 1)
        return True

    def pump_alone(self) -> bool:
        """Waits up to ALONE_MS for one message of the control socket; whether one came. Nothing else is looked at.

        False when the socket is gone, too.
        """
        dealer = self._dealer
        frame = None if dealer is None else dealer.recv_alone()
        if dealer is None or frame is None:
            return False
        self._receive(dealer.socket, frame, _clock())
        return True

    def _receive(self, dealer: Socket, frame: bytes, now: float) -> int:
        """Hands a message to the core; how many it was, or 0 for what is none by itself."""
        try:
            message = wire.decode(frame, None, header_bytes_max=wire.STREAM_BYTES_MAX)
        except errors.ProtocolError as error:
            self._read_odd(dealer, frame, error, now)
            return 0
        return self._hand_over(message, now)

    def _hand_over(self, message: wire.Message, now: float) -> int:
        """How many messages it was."""
        if type(message) is not wire.Bundle:
            if self._debug:
                self._tell("from the broker", message)
            self.core.receive(BROKER, message, now)
            return 1
        for frame in message.frames:
            try:
                one = wire.decode(frame)
            except errors.ProtocolError as error:
                self._drop(error)
                continue
            if self._debug:
                self._tell("from the broker", one)
            self.core.receive(BROKER, one, now)
        return len(message.frames)

    def flush(self) -> bool:
        """Sends and does what the core wants, in order; whether there was anything."""
        core = self.core
        outbox = core.take_outbox()
        if not outbox:
            return False
        while outbox:
            messages: list[wire.Message] = []
            for to, message in outbox:
                if to is BROKER:
                    messages.append(message)  # type: ignore[arg-type]
                    continue
                self._send(messages)
                messages = []
                self._obey(message)  # type: ignore[arg-type]
            self._send(messages)
            outbox = core.take_outbox()
        return True

    def close(self) -> None:
        """Closes the sockets; what was sent has LINGER_MS to leave."""
        self._close_stream()
        self._close_dealer()

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read_dealer(self, dealer: Edge, now: float, burst: int) -> bool:
        """Whether nothing is left."""
        for _ in range(burst):
            frame = dealer.recv()
            if frame is None:
                return True
            if self._receive(dealer.socket, frame, now) >= PORTION_MIN or self.is_heavy:
                break  # and on to what follows from these: it leaves while the next ones come
        return False

    def _read_odd(self, dealer: Socket, frame: bytes, error: errors.ProtocolError, now: float) -> None:
        """A frame that is no message: the first of several, as large payloads come, or not of this protocol."""
        if not dealer.getsockopt(_RCVMORE):
            self._drop(error)
            return
        self.is_heavy = True
        payload = sockets.receive_payload(dealer)
        while dealer.getsockopt(_RCVMORE):
            dealer.recv(_NOBLOCK)
        try:
            self.core.receive(BROKER, wire.decode(frame, payload), now)
        except errors.ProtocolError as second:
            self._drop(second)

    def _collect_stream(self, sub: Edge, now: float) -> None:
        if not self._unread.collect(sub):
            self.core.overrun(now)

    def _read_stream(self, now: float) -> None:
        unread, receive, decode = self._unread.frames, self.core.receive, self.core.shared.decode
        for _ in range(min(BURST_MAX, len(unread))):
            try:
                message = decode(unread.popleft())
            except errors.ProtocolError as error:
                self._drop(error)
            else:
                if self._debug:
                    self._tell("from the stream", message)
                receive(STREAM, message, now)

    def _drop(self, error: errors.ProtocolError) -> None:
        self.core.counters["malformed"] += 1
        if not self._warned:
            self._warned = True
            log.warning("%s: dropped what is no message (further ones are only counted): %s", self.name, error)

    def _tell(self, way: str, message: wire.Message) -> None:
        """Kind and number, and nothing else: tokens are secrets, payloads the users'."""
        log.debug("%s: %s %s, number %d", self.name, type(message).__name__, way, message.number)

    @property
    def name(self) -> str:
        """For logs."""
        return self.core.profile.name

    def _read_monitor(self, monitor: Monitor, now: float) -> None:
        """What a connection carried is handed over before the news that it is gone."""
        for _ in range(BURST_MAX):
            happening = monitor.pop()
            if happening is None:
                return
            if isinstance(happening, Disconnected) and self._dealer is not None:
                while not self._read_dealer(self._dealer, now, BURST_MAX):
                    pass
            elif isinstance(happening, StreamDisconnected) and self._sub is not None:
                self._collect_stream(self._sub, now)
                while self._unread.frames:
                    self._read_stream(now)
            self.core.receive(LINK, happening, now)

    # -- sending and obeying -------------------------------------------------------------------------------------------

    def _send(self, messages: list[wire.Message]) -> None:
        if len(messages) == 1:
            frame, payload = wire.encode(messages[0])
            self._send_frame(frame, payload, messages)
        else:
            for frame, payload, carried in packed(messages, self.portion()):
                self._send_frame(frame, payload, carried)

    def portion(self) -> int:
        """How many messages leave together at most."""
        return wire.BUNDLE_MAX if _IS_ON_ONE_CPU else portion(len(self.core.outgoing))

    def _send_frame(self, frame: bytes, payload: wire.Payload | None, carried: Sequence[wire.Message]) -> None:
        dealer = self._dealer
        if self._debug:
            for message in carried:
                self._tell("to the broker", message)
        try:
            if dealer is None:
                raise zmq.Again
            dealer.touched()
            if payload is None:
                dealer.socket.send(frame, _NOBLOCK)
            else:
                dealer.socket.send(frame, _MORE)
                sockets.send_payload(dealer.socket, payload)
        except zmq.Again:
            for message in carried:
                self.core.receive(LINK, Unsent(message), _clock())

    def _obey(self, order: Order) -> None:
        try:
            match order:
                case Connect():
                    self._connect(order)
                case OpenStream():
                    self._open_stream(order)
                case Subscribe():
                    if self._sub is not None:
                        self._sub.touched()
                        self._sub.socket.setsockopt(zmq.SUBSCRIBE, order.topic)
                case Unsubscribe():
                    if self._sub is not None:
                        self._sub.touched()
                        self._sub.socket.setsockopt(zmq.UNSUBSCRIBE, order.topic)
                case DropControl():
                    self._close_dealer()
                case Disconnect():
                    self.close()
                case _:
                    errors.assert_never(order)
        except sockets.IO_ERRORS as error:  # no descriptors left, a host that can't be resolved: try again later
            log.warning("%s: %s", self.name, error)
            self.core.receive(LINK, Failed(str(error)), _clock())

    def _connect(self, order: Connect) -> None:
        self._close_dealer()
        dealer = sockets.dealer(context(), order.heartbeat_ms, order.ttl_ms)
        self._dealer, self._dealer_monitor = Edge(dealer), Monitor(context(), dealer, OF_CONTROL)
        self._renew()
        dealer.connect(order.url)

    def _open_stream(self, order: OpenStream) -> None:
        self._close_stream()
        sub = sockets.sub(context(), order.heartbeat_ms, order.ttl_ms)
        self._sub, self._sub_monitor = Edge(sub), Monitor(context(), sub, OF_STREAM)
        self._renew()
        for topic in order.topics:
            sub.setsockopt(zmq.SUBSCRIBE, topic)
        sub.connect(order.url)

    def _close_dealer(self) -> None:
        monitor, self._dealer, self._dealer_monitor = self._dealer_monitor, None, None
        self._renew()
        if monitor is not None:
            monitor.close()

    def _close_stream(self) -> None:
        monitor, self._sub, self._sub_monitor = self._sub_monitor, None, None
        self._unread.frames.clear()
        self._renew()
        if monitor is not None:
            monitor.close()

    def _renew(self) -> None:
        """The sockets are others now."""
        self._monitors = [one for one in (self._dealer_monitor, self._sub_monitor) if one is not None]
        both = [one for one in (self._dealer, self._sub) if one is not None]
        self._edges = Edges([*both, *(one.edge for one in self._monitors)], self._wake_fd)
        self._control = Edges(both[:1] if self._dealer is not None else [], self._wake_fd)
        self.control_fd = -1 if self._dealer is None else self._dealer.fd
        self.descriptors = self._edges.descriptors
        self.generation += 1  # counts the changes of `descriptors`
