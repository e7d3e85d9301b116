"""The broker's shell: a loop around BrokerCore with a ROUTER, an XPUB and a way to wake it. It decides nothing.

    wait until a socket is readable or the core's next deadline comes
    read the stream's subscriptions, then at most a burst from the ROUTER; pass each message to the core
    only after the ROUTER is read empty: tell the core of messages that could not be sent and of lost presences
    tick; send the outbox

The reason for this order: a result or a Bye sent just before the end may still wait in the ROUTER when the peer is
already unreachable.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket as stdlib_socket
import time
from collections.abc import Sequence
from typing import Final

import zmq

from .. import wire
from .._version import __version__
from ..core.broker import events
from ..core.broker.core import BrokerCore
from ..core.broker.events import BROADCAST, EVERYONE, Address, Event, Malformed, Settings
from ..core.bundles import by_peer, packed
from ..errors import ProtocolError
from . import addresses, sockets
from .edge import Edge, Edges
from .gauges import Complaints, Descriptors, Strangers, Turns

log = logging.getLogger("iii_zmq.broker")

DEFAULT_URL = "tcp://127.0.0.1:5570"
BURST_MAX: Final = 1024  # messages per turn, so that ticks, deltas and parts of snapshots get their time
BURST_S: Final = 0.005  # and no further message after this time: a batch of 1,024 functions alone takes 8 ms
CLOSING_S = 0.1  # for peers to read the last messages: a DEALER with IMMEDIATE drops unread ones with its connection
# The core makes no cycles that outlive a session, so the collector finds little; but a full scan of 100,000 rows takes
# longer than a turn may. New containers before a young collection, young ones before a middle one, and so on.
GC_THRESHOLDS = (50_000, 20, 100)
GATHER_S = 0.002  # deltas that come sooner after a publication wait for more; in an idle registry they never wait
# The time for one worker to wake and read a message, if all share two CPUs: a flood that reaches 1,000 of them every
# 0.2 s takes half of that time. A publication after a pause, and a few in a row, never wait for it.
WAKE_S = 0.0002
SKIPPED_MAX = 1_000  # frames of one message that are dropped per turn: 2 ms
LOOK_S: Final = 0.5  # between two checks for a free descriptor and for the log level
DESCRIPTORS_SPARE = 64  # not for sessions: our own (about 15), the log's, and connections without a session yet
ALONE_S: Final = 0.002  # how long after a message to wait for the ROUTER alone, and so how late all else is noticed
TALK_S: Final = 0.001  # messages that follow each other this soon, one at a time, are a conversation,
TALKS_MIN: Final = 4  # if there are this many: a caller that dies after a single call must not be noticed later
AT_ONCE_S: Final = 0.000_01  # a receive that took less did not wait: more may have come with its message
UNDRAINED_TURNS_MAX: Final = 20  # in a flood the ROUTER is never empty: bad news waits no longer than this

_NOBLOCK: Final = int(zmq.NOBLOCK)
_SNDMORE_NOBLOCK: Final = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)
_clock: Final = time.monotonic


class Conversation:
    """Messages that follow each other one at a time: meanwhile the loop waits for the ROUTER alone."""

    def __init__(self) -> None:
        self.alone_until = 0.0
        self.talked_at = 0.0
        self._talks = 0  # messages so far

    def go_on(self, began: float, ended: float, due_at: float) -> None:
        """A turn read one message and nothing else happened; at `due_at` something else is due."""
        self._talks = self._talks + 1 if began - self.talked_at < TALK_S else 0
        self.talked_at = began
        if self._talks >= TALKS_MIN:
            self.alone_until = min(ended + ALONE_S, due_at - sockets.ALONE_MS / 1000)


class BadNews:
    """Lost presences and messages that could not be sent; reported only after the ROUTER is read empty."""

    def __init__(self) -> None:
        self._lost: dict[bytes, None] = {}  # topics unsubscribed
        self._undelivered: list[tuple[Address, Event]] = []
        self._undrained_turns = 0

    def __bool__(self) -> bool:
        return bool(self._lost or self._undelivered)

    def lose(self, topic: bytes) -> None:
        """The topic was unsubscribed."""
        self._lost[topic] = None

    def regain(self, topic: bytes) -> None:
        """The topic was subscribed again: a loss that is reported later would be final."""
        self._lost.pop(topic, None)

    def not_sent(self, to: Address, messages: Sequence[wire.Message], overflow: bool) -> None:
        """The peer is gone, or its queue is full."""
        self._undelivered += [(to, events.Undelivered(message, overflow)) for message in messages]

    def may_be_told(self, router: Edge) -> bool:
        """True if the ROUTER is empty, or was not empty for so many turns that the news can't wait any longer."""
        self._undrained_turns += 1
        if self._undrained_turns < UNDRAINED_TURNS_MAX and router.may_hold():
            return False
        self._undrained_turns = 0
        return True

    def pop(self) -> list[tuple[Address, Event]]:
        """Takes all the news, with its senders."""
        news = [*[(EVERYONE, events.Unsubscribed(topic)) for topic in self._lost], *self._undelivered]
        self._lost, self._undelivered = {}, []
        return news


class Broker:
    """One broker on two bound sockets: `bind()`, then `run()` until `stop()`, which any thread may call."""

    def __init__(
        self, url: str = DEFAULT_URL, stream_url: str | None = None, *, heartbeat_s: float = 0.5, ttl_s: float = 2.0
    ) -> None:
        self.url = url
        self.stream_url = stream_url or addresses.default_stream_url(url)
        self._advertised = stream_url
        self.epoch = secrets.token_hex(8)
        self._settings = Settings(
            heartbeat_s=heartbeat_s, ttl_s=ttl_s, version=__version__, gather_s=GATHER_S, wake_s=WAKE_S
        )
        self._context = sockets.new_context()
        ttl_ms = round(ttl_s * 1000)
        self._router = Edge(sockets.router(self._context, ttl_ms))
        self._xpub = Edge(sockets.xpub(self._context, round(heartbeat_s * 1000), ttl_ms))
        self._wake_in, self._wake_out = stdlib_socket.socketpair()
        self._wake_in.setblocking(False)
        self._locks: list[int] = []
        self._unskipped: set[Edge] = set()  # sockets in the middle of a message whose rest is dropped
        self._stopping = False
        self._debug = False  # True if every message gets a line in the log
        self._is_heavy = False  # True if a large message was read: it is passed on before more is read
        self._look_at = 0.0  # when to check again what seldom changes
        self.core = BrokerCore(
            self.epoch, self._settings,
            new_token=lambda: secrets.token_bytes(wire.TOKEN_BYTES), new_id=lambda: secrets.token_hex(5),
        )  # fmt: skip
        self._strangers = Strangers(self._context, (self._router, self._xpub), self.core.gauges)
        self._descriptors = Descriptors(self._xpub.fd, self.core.gauges)
        self._turns = Turns(self.core.gauges)
        self._complaints = Complaints()
        self._conversation = Conversation()
        self._bad_news = BadNews()
        self._edges = Edges([self._router, self._xpub, *self._strangers.monitors], self._wake_in.fileno())

    # -- life ----------------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Binds both addresses. Raises: addresses.AddressInUse, ValueError for a malformed address, OSError."""
        self._settings.sessions_max = max(1, (sockets.raise_descriptor_limit() - DESCRIPTORS_SPARE) // 2)
        self.url = addresses.bind(self._router.socket, self.url, self._locks)
        self.stream_url = addresses.bind(self._xpub.socket, self.stream_url, self._locks)
        self._settings.stream_url = addresses.advertised(self.stream_url, self._advertised)

    def run(self) -> None:
        """Serves until `stop()`; then tells everybody and closes the sockets."""
        log.info("serving %s, stream %s, epoch %s", self.url, self.stream_url, self.epoch)
        gc.collect()
        gc.freeze()  # everything made so far lives as long as the process: the collector can ignore it
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            while not self._stopping:
                if _clock() < self._conversation.alone_until:
                    self._turn_alone()
                else:
                    self._turn()
            log.info("closing, with %d workers here", len(self.core.registry.workers))
            self.core.close()
            self._send_outbox()
            time.sleep(CLOSING_S)
        finally:
            self.close()

    def stop(self) -> None:
        """Ends `run` soon. May be called from a signal handler or any thread."""
        self._stopping = True
        try:
            self._wake_out.send(b"x")
        except OSError:
            pass  # already closed: there is nothing to wake

    def close(self) -> None:
        """Closes the sockets; sent messages get LINGER_MS to leave."""
        for each in (self._router, self._xpub):
            each.socket.disable_monitor()
            each.socket.close()
        self._strangers.close()
        self._wake_in.close()
        self._wake_out.close()
        self._context.term()
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()

    # -- one turn ------------------------------------------------------------------------------------------------------
    # In a conversation, with one message at a time, a receive that waits saves two polls per message.

    def _wait_ms(self) -> int:
        if self._edges.may_hold() or self._bad_news:
            return 0
        wait_s = self.core.next_deadline() - _clock()
        return max(0, -int(-wait_s * 1000 // 1))  # rounded up: a timer that is early by a fraction would spin

    def _turn(self) -> None:
        router = self._router
        backlog = router.may_hold()
        if self._edges.wait(self._wait_ms()):
            self._wake_in.recv(4096)
        began = _clock()
        self._strangers.count()
        if began >= self._look_at:
            self._look_at = began + LOOK_S
            self._debug = log.isEnabledFor(logging.DEBUG)
            self._descriptors.look()
        if self._xpub.may_hold():
            self._read_subscriptions(began)
        bad_news = bool(self._bad_news)
        if bad_news or router.may_hold():
            self._read_router(began, BURST_MAX if backlog or bad_news else 1)
        if bad_news:
            self._tell_bad_news(began)
        self.core.tick(began)
        self._send_outbox()
        if self.core.news:
            self._tell_log()
        ended = _clock()
        if router.is_touched and not (backlog or bad_news or self._xpub.is_touched or self._unskipped):
            self._conversation.go_on(began, ended, self.core.next_deadline())
        self._turns.note(began, ended - began)

    def _turn_alone(self) -> None:
        """Handles one message of the ROUTER, if one comes within ALONE_MS. Looks at nothing else."""
        conversation = self._conversation
        asked_at = _clock()
        peer = self._router.recv_alone()
        if peer is None:
            conversation.alone_until = 0.0
            return
        began = _clock()
        self._take(peer, self._read_message(), began)
        self._is_heavy = False
        self.core.tick(began)
        self._send_outbox()
        conversation.talked_at = began
        if began - asked_at < AT_ONCE_S or self._xpub.is_touched or self._bad_news or self._unskipped:
            conversation.alone_until = 0.0
        if self.core.news:
            self._tell_log()
        self._turns.note(began, _clock() - began)

    def _read_subscriptions(self, now: float) -> None:
        """Reports heard presences at once; lost ones wait until the ROUTER is read empty."""
        xpub = self._xpub
        if self._unskipped and not self._skip_rest(xpub):
            return
        for _ in range(BURST_MAX):
            frame = xpub.recv()
            if frame is None:
                return
            if xpub.socket.getsockopt(_RCVMORE):
                self.core.receive(EVERYONE, self._complaints.about("more than one frame"), now)
                if not self._skip_rest(xpub):
                    return
            elif frame[:1] == b"\x01":
                self._bad_news.regain(frame[1:])
                self.core.receive(EVERYONE, events.Subscribed(frame[1:]), now)
            elif frame[:1] == b"\x00":
                self._bad_news.lose(frame[1:])
            else:
                self.core.receive(EVERYONE, self._complaints.about("not a subscription"), now)

    def _read_router(self, now: float, burst: int) -> None:
        """Reads at most `burst` messages: without a backlog one per turn, and the results are sent before the next."""
        router = self._router
        if self._unskipped and not self._skip_rest(router):
            return
        while burst > 0:
            peer = router.recv()
            if peer is None:
                return
            burst -= self._take(peer, self._read_message(), now)
            if self._unskipped:
                return
            if self._is_heavy:
                self._is_heavy = False
                if not self._bad_news:  # which waits for the ROUTER to be empty
                    return
            if (burst > 0 and not router.may_hold()) or _clock() - now > BURST_S:
                return

    def _read_message(self) -> wire.Message | Malformed:
        """The message behind the address: one frame, two or three with a large payload; anything else is malformed."""
        router = self._router.socket
        frame = router.recv(_NOBLOCK)
        payload: wire.Payload | None = None
        if router.getsockopt(_RCVMORE):
            self._is_heavy = True
            payload = sockets.receive_payload(router)
            if router.getsockopt(_RCVMORE):
                self._skip_rest(self._router)
                return self._complaints.about("more than three frames")
        return self._decoded(frame, payload)

    def _take(self, peer: Address, message: wire.Message | Malformed, now: float) -> int:
        """Passes a message to the core; returns how many it was. Each one in a bundle counts as if it came alone."""
        if self._debug:
            self._tell_message("from", peer, message)
        if type(message) is not wire.Bundle:
            self.core.receive(peer, message, now)
            return 1
        for frame in message.frames:
            one = self._decoded(frame, None)
            if self._debug:
                self._tell_message("from", peer, one)
            self.core.receive(peer, one, now)
        return len(message.frames)

    def _decoded(self, frame: bytes, payload: wire.Payload | None) -> wire.Message | Malformed:
        try:
            return wire.decode(frame, payload)
        except ProtocolError as error:
            return self._complaints.about(f"{len(frame)} bytes: {error}", wire.read_heading(frame))

    def _skip_rest(self, edge: Edge) -> bool:
        """Drops the rest of a message; False if some is left for the next turn. It may have a million frames, and its
        rest must not be read as a message of its own."""
        edge.touched()
        for _ in range(SKIPPED_MAX):
            if not edge.socket.getsockopt(_RCVMORE):
                self._unskipped.discard(edge)
                return True
            edge.socket.recv(_NOBLOCK)
        self._unskipped.add(edge)
        return False

    def _tell_bad_news(self, now: float) -> None:
        if not self._bad_news.may_be_told(self._router):
            return
        for sender, event in self._bad_news.pop():
            self.core.receive(sender, event, now)
        self._router.ask()  # so that libzmq sees ends of connections before the next probe is sent

    def _send_outbox(self) -> None:
        """Sends the stream's messages first, in their order; there is no order between sockets."""
        core, controls = self.core, []
        for to, message in core.take_outbox():
            if self._debug:
                self._tell_message("to", to, message)
            if to is EVERYONE or to is BROADCAST:
                self._xpub.touched()
                self._xpub.socket.send(to + wire.encode(message)[0], _NOBLOCK)
            else:
                controls.append((to, message))
        if len(controls) == 1:
            to, message = controls[0]
            frame, payload = wire.encode(message)
            self._send(to, frame, payload, (message,))
            return
        for to, messages in by_peer(controls).items():
            most = wire.BUNDLE_MAX if len(messages) > 1 and core.takes_bundles(to) else 1
            for frame, payload, carried in packed(messages, most):
                self._send(to, frame, payload, carried)

    def _send(self, to: Address, frame: bytes, payload: wire.Payload | None, carried: Sequence[wire.Message]) -> None:
        """Sends to one peer; messages that can't be sent are reported with the bad news."""
        self._router.touched()
        router = self._router.socket
        try:
            router.send(to, _SNDMORE_NOBLOCK)
            if payload is None:
                router.send(frame, _NOBLOCK)
            else:
                router.send(frame, _SNDMORE_NOBLOCK)
                sockets.send_payload(router, payload)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._bad_news.not_sent(to, carried, overflow=error.errno == zmq.EAGAIN)

    def _tell_message(self, way: str, peer: Address, message: wire.Message | Malformed) -> None:
        """Logs kind, number and worker id only: routing ids and tokens are secrets, payloads belong to the users."""
        if peer is EVERYONE or peer is BROADCAST:
            name = "everyone"
        else:
            session = self.core.sessions.by_address.get(peer)
            name = "a stranger" if session is None else session.worker_id
        log.debug("%s %s %s, number %d", type(message).__name__, way, name, getattr(message, "number", 0))

    def _tell_log(self) -> None:
        for line in self.core.take_news():
            log.info(line)
