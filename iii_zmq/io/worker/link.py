"""The sockets of one worker around one WorkerCore: `pump()` reads, ticks and sends, and never waits.

    whoever waits:  link.wait(link.wait_ms())                       or an event loop, which calls link.readable(fd)
                    link.pump()                                     monitors, then messages, then what is due
                    ... link.core.take_events() ...
                    link.flush()                                    what the core wants sent or done

The sockets' own descriptors are waited for, not the sockets: zmq_poll asks each socket for its events before and after,
some 25 system calls for one message. The price: a descriptor tells of news once, and any use of its socket may take
them in. So a socket is read until nothing is left, or stays in `_news`; the control socket, which is read one message
at a time and sent on as well, is asked before the next wait.

Invariants: what a connection carried is handed to the core before the news that the connection is gone. A socket that
may hold something is in `_news`, or `_is_touched` is set, or its descriptor will tell. One thread at a time may use a
Link; it has no lock of its own. It decides nothing, except that too much unread is thrown away.
"""

from __future__ import annotations

import logging
import os
import select
import struct
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
    Connected,
    Disconnect,
    Disconnected,
    DropControl,
    Failed,
    OpenStream,
    Order,
    Reached,
    StreamConnected,
    StreamDisconnected,
    StreamFailed,
    Subscribe,
    Unsent,
    Unsubscribe,
)
from .. import sockets

log = logging.getLogger("iii_zmq.worker")

Socket = zmq.Socket[bytes]

BURST_MAX: Final = 128  # messages of one socket a turn, so that the other one and the timers get their time
STREAM_WAITING_MAX = 10_000  # stream messages unread: more are worth less than a snapshot
WAIT_MAX_MS: Final = 60_000
ALONE_MS: Final = 5  # how long the control socket may be waited for alone; see io/broker
SOCKETS_MAX = 16_384  # of one process; a worker takes six

# Then mostly the others are on it as well, and a bundle that is sent early is not worked on early.
_IS_ON_ONE_CPU = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
_POLLIN: Final = int(zmq.POLLIN)
_RCVMORE: Final = int(zmq.RCVMORE)
_EVENTS: Final = int(zmq.EVENTS)
_MONITOR_EVENT = struct.Struct("=HI")
_CONNECTED = int(zmq.EVENT_CONNECTED)
_SUCCEEDED, _DISCONNECTED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED), int(zmq.EVENT_DISCONNECTED)
_FAILURES = {
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the peer ended the handshake",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the peer does not speak ZMTP, or is no such socket",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the peer refused to authenticate this worker",
}

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


class Link:
    """DEALER, SUB and a monitor for each. `wake_fd`, if given, is waited for, too."""

    def __init__(self, core: WorkerCore, wake_fd: int | None = None) -> None:
        self.core = core
        self.descriptors: list[int] = []  # of the sockets
        self.generation = 0  # counts the changes of `descriptors`
        self._wake_fd = wake_fd
        self._dealer: Socket | None = None
        self._dealer_monitor: Socket | None = None
        self._sub: Socket | None = None
        self._sub_monitor: Socket | None = None
        self._dealer_fd = self._sub_fd = -1
        self._monitors: list[tuple[int, Socket]] = []
        self._news: set[int] = set()  # descriptors of sockets that may hold something
        self._is_touched = False  # the control socket was used since it was last asked
        self.is_heavy = False  # the last message that was pumped is large: it is dealt with before the next is read
        self._backlog = False  # it held something before anybody waited: many at once are read
        self._unread: deque[bytes] = deque()  # stream frames, at most STREAM_WAITING_MAX
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
        if self._is_touched:
            self._is_touched = False
            dealer = self._dealer
            if dealer is not None and dealer.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]  # an int here
                self._news.add(self._dealer_fd)
        self._backlog = self._dealer_fd in self._news
        return bool(self._unread or self._news)

    def wait(self, wait_ms: int) -> bool:
        """Waits until there may be something to pump, at most so long; whether `wake_fd` is readable."""
        is_woken = False
        for fd, _ in self._poll.poll(wait_ms):
            if fd == self._wake_fd:
                is_woken = True
            else:
                self._news.add(fd)
        return is_woken

    def readable(self, fd: int) -> None:
        """One of the descriptors told of news, to somebody else who waits for them."""
        self._news.add(fd)

    def pump(self) -> bool:
        """Hands what there is to the core, and ticks; whether the control socket had anything."""
        now = _clock()
        core, news = self.core, self._news
        self._debug = log.isEnabledFor(logging.DEBUG)
        is_heard = self.is_heavy = False
        if news:
            for fd, monitor in self._monitors:
                if fd in news:
                    self._read_monitor(fd, monitor, now)
            if self._dealer_fd in news:
                is_heard = True
                self._read_dealer(now, BURST_MAX if self._backlog else 1)
            if self._sub_fd in news:
                self._collect_stream(now)
        if self._unread:
            self._read_stream(now)
        due = core.next_deadline()
        if due is not None and now >= due:
            core.tick(now)
        return is_heard

    def answer_alone(self, number: int) -> bytes | None:
        """As `pump_alone`, for who waits for the Result of call `number`: its payload, past core and events.

        None when something else came (the core has it then), or nothing.
        """
        dealer = self._dealer
        if dealer is None:
            return None
        self._is_touched = True
        try:
            frame = dealer.recv(0)
        except zmq.Again:
            return None
        is_answer = (
            frame[:8] == wire.SMALL_RESULT
            and int.from_bytes(frame[8:16], "big") == number
            and len(frame) > wire.RESULT_BYTES
        )
        if is_answer and self.core.outgoing.pop_answered(number):
            if self._debug:
                log.debug("%s: Result from the broker, number %d", self.name, number)
            return frame[wire.RESULT_BYTES :]
        self._receive(dealer, frame)
        return None

    def pump_alone(self) -> bool:
        """Waits up to ALONE_MS for one message of the control socket; whether one came. Nothing else is looked at.

        A receive that waits costs 5 us less than a poll of five descriptors and a receive: what the next answer of a
        conversation is worth. False when the socket is gone, too.
        """
        dealer = self._dealer
        if dealer is None:
            return False
        self._is_touched = True
        try:
            frame = dealer.recv(0)
        except zmq.Again:
            return False
        self._receive(dealer, frame)
        return True

    def _receive(self, dealer: Socket, frame: bytes) -> None:
        now = _clock()
        try:
            message = wire.decode(frame, None, header_bytes_max=wire.STREAM_BYTES_MAX)
        except errors.ProtocolError as error:
            self._read_odd(dealer, frame, error, now)
        else:
            self._hand_over(message, now)

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

    def _read_dealer(self, now: float, burst: int) -> bool:
        """Whether nothing is left."""
        dealer = self._dealer
        if dealer is None:
            return True
        self._news.discard(self._dealer_fd)
        for _ in range(burst):
            try:
                frame = dealer.recv(_NOBLOCK)
            except zmq.Again:
                return True
            try:
                message = wire.decode(frame, None, header_bytes_max=wire.STREAM_BYTES_MAX)
            except errors.ProtocolError as error:
                self._read_odd(dealer, frame, error, now)
                if self.is_heavy:
                    break
            else:
                if self._hand_over(message, now) >= PORTION_MIN:
                    break  # and on to what follows from these: it leaves while the next ones come
        self._is_touched = True
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

    def _collect_stream(self, now: float) -> None:
        """Takes everything that waits: only so can it be told when it is too much."""
        sub, unread = self._sub, self._unread
        assert sub is not None
        self._news.discard(self._sub_fd)
        try:
            while len(unread) < STREAM_WAITING_MAX:
                unread.append(sub.recv(_NOBLOCK))
                if not sub.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]  # an int here
                    return  # asking costs 1 us, an Again 3
        except zmq.Again:
            return
        self._discard(sub, now)

    def _discard(self, sub: Socket, now: float) -> None:
        """We were away for long: what waits is thrown away, and asked for as a whole."""
        self._unread.clear()
        try:
            while True:
                sub.recv(_NOBLOCK)
        except zmq.Again:
            self.core.overrun(now)

    def _read_stream(self, now: float) -> None:
        unread, receive, decode = self._unread, self.core.receive, self.core.shared.decode
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

    def _read_monitor(self, fd: int, monitor: Socket, now: float) -> None:
        is_stream = monitor is self._sub_monitor
        for _ in range(BURST_MAX):
            try:
                frames = monitor.recv_multipart(_NOBLOCK)
            except zmq.Again:
                self._news.discard(fd)
                return
            event, _value = _MONITOR_EVENT.unpack(frames[0])
            if event == _SUCCEEDED:
                self.core.receive(LINK, StreamConnected() if is_stream else Connected(), now)
            elif event == _DISCONNECTED:
                self._read_last_words(is_stream, now)
                self.core.receive(LINK, StreamDisconnected() if is_stream else Disconnected(), now)
            elif event == _CONNECTED and not is_stream:
                self.core.receive(LINK, Reached(), now)
            elif event in _FAILURES:
                text = _FAILURES[event]
                self.core.receive(LINK, StreamFailed(text) if is_stream else Failed(text), now)

    def _read_last_words(self, is_stream: bool, now: float) -> None:
        """What arrived before the connection went."""
        if is_stream:
            self._collect_stream(now)
            while self._unread:
                self._read_stream(now)
        else:
            while not self._read_dealer(now, BURST_MAX):
                pass

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
        self._is_touched = True
        try:
            if dealer is None:
                raise zmq.Again
            if payload is None:
                dealer.send(frame, _NOBLOCK)
            else:
                dealer.send(frame, _MORE)
                sockets.send_payload(dealer, payload)
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
                        self._sub.setsockopt(zmq.SUBSCRIBE, order.topic)
                        self._news.add(self._sub_fd)
                case Unsubscribe():
                    if self._sub is not None:
                        self._sub.setsockopt(zmq.UNSUBSCRIBE, order.topic)
                        self._news.add(self._sub_fd)
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
        self._dealer = sockets.dealer(context(), order.heartbeat_ms, order.ttl_ms)
        self._dealer.setsockopt(zmq.RCVTIMEO, ALONE_MS)
        self._dealer_monitor = sockets.monitor(context(), self._dealer)
        self._renew()
        self._dealer.connect(order.url)

    def _open_stream(self, order: OpenStream) -> None:
        self._close_stream()
        self._sub = sockets.sub(context(), order.heartbeat_ms, order.ttl_ms)
        self._sub_monitor = sockets.monitor(context(), self._sub)
        self._renew()
        for topic in order.topics:
            self._sub.setsockopt(zmq.SUBSCRIBE, topic)
        self._sub.connect(order.url)

    def _close_dealer(self) -> None:
        dealer, monitor = self._dealer, self._dealer_monitor
        self._dealer = self._dealer_monitor = None
        self._renew()
        _close(dealer, monitor)

    def _close_stream(self) -> None:
        sub, monitor = self._sub, self._sub_monitor
        self._sub = self._sub_monitor = None
        self._unread.clear()
        self._renew()
        _close(sub, monitor)

    def _renew(self) -> None:
        """The sockets are others now: what they may have told already counts as news."""
        self._dealer_fd, self._sub_fd = _descriptor(self._dealer), _descriptor(self._sub)
        monitors = [one for one in (self._dealer_monitor, self._sub_monitor) if one is not None]
        self._monitors = [(_descriptor(monitor), monitor) for monitor in monitors]
        self.descriptors = [fd for fd in (self._dealer_fd, self._sub_fd, *dict(self._monitors)) if fd >= 0]
        self._news = set(self.descriptors)
        self.generation += 1
        self._poll = select.poll()
        for fd in self.descriptors if self._wake_fd is None else [*self.descriptors, self._wake_fd]:
            self._poll.register(fd, select.POLLIN)


def _descriptor(socket: Socket | None) -> int:
    return -1 if socket is None else int(socket.getsockopt(zmq.FD))


def _close(socket: Socket | None, monitor: Socket | None) -> None:
    if socket is not None:
        if not socket.closed:
            socket.disable_monitor()
        socket.close()
    if monitor is not None:
        monitor.close()
