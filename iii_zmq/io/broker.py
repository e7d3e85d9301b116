"""The broker's shell: a loop around BrokerCore with a ROUTER, an XPUB and a way to wake it. It decides nothing.

    wait until readable or the core's next deadline
    read the stream's subscriptions, then at most a burst from the ROUTER; each message goes to the core
    only once the ROUTER was read empty: tell the core what could not be sent and whose presence is gone
    tick; send the outbox

A result or a Bye that was sent just before the end waits in the ROUTER while the peer is already unreachable: hence the
order.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket as stdlib_socket
import struct
import time
from collections.abc import Sequence
from typing import Final

import zmq

from .. import wire
from .._version import __version__
from ..core.broker.core import BrokerCore
from ..core.broker.events import (
    BROADCAST,
    EVERYONE,
    Address,
    Malformed,
    Settings,
    Subscribed,
    Undelivered,
    Unsubscribed,
)
from ..core.bundles import by_peer, packed
from ..errors import ProtocolError
from . import addresses, sockets
from .edge import Edge, Edges

log = logging.getLogger("iii_zmq.broker")

DEFAULT_URL = "tcp://127.0.0.1:5570"
BURST_MAX: Final = 1024  # messages a turn, so that ticks, deltas and parts of snapshots get their time;
BURST_S: Final = 0.005  # and no further one after this: a batch of 1,024 functions alone takes 8 ms
CLOSING_S = 0.1  # for peers to read the last words: a DEALER with IMMEDIATE drops what is unread with its connection
COMPLAIN_S: Final = 1.0  # between two lines about dropped messages
# The core makes no cycles that outlive a session, so the collector finds little; but a full look at 100,000 rows takes
# longer than a turn may. New containers before a young collection, young ones before a middle one, and so on.
GC_THRESHOLDS = (50_000, 20, 100)
GATHER_S = 0.002  # deltas published sooner after the last ones wait for more: an idle registry's never wait
# For one worker to be woken and to read a message, where all share two CPUs: a flood that reaches 1,000 of them every
# 0.2 s takes half of that. A publication after a pause, and a few in a row, never wait for it.
WAKE_S = 0.0002
TURN_WINDOW_S: Final = 5.0  # the recent longest turn is of the last 5 to 10 s
SKIPPED_MAX = 1_000  # frames of one message that are dropped in one turn: 2 ms
LOOK_S: Final = 0.5  # between two looks at whether a descriptor is left, and at the level of the log
DESCRIPTORS_SPARE = 64  # not for sessions: our own (some 15), the log's, and connections that are no session yet
ALONE_S: Final = 0.002  # after a message the ROUTER alone may be waited for so long: so late may all else be noticed
TALK_S: Final = 0.001  # messages that follow each other so soon, one at a time, are a conversation,
TALKS_MIN: Final = 4  # if there are so many: who dies after a single call is not to be noticed later for it
AT_ONCE_S: Final = 0.000_01  # a receive that took less did not wait: more may have come with its message
UNDRAINED_TURNS_MAX: Final = 20  # under a flood the ROUTER is never empty: bad news waits no longer than this

_NOBLOCK: Final = int(zmq.NOBLOCK)
_SNDMORE_NOBLOCK: Final = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)
_MONITOR_EVENT = struct.Struct("=HI")
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_clock: Final = time.monotonic


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
        self._monitors = [
            Edge(sockets.monitor(self._context, each.socket, sockets.ARRIVALS)) for each in (self._router, self._xpub)
        ]
        self._wake_in, self._wake_out = stdlib_socket.socketpair()
        self._wake_in.setblocking(False)
        self._edges = Edges([self._router, self._xpub, *self._monitors], self._wake_in.fileno())
        self._locks: list[int] = []
        self._lost: dict[bytes, None] = {}  # topics unsubscribed, to be told once the ROUTER was read empty
        self._undelivered: list[tuple[Address, Undelivered]] = []
        self._undrained_turns = 0
        self._alone_until = 0.0
        self._talks = 0  # messages of the conversation so far
        self._talked_at = 0.0
        self._unskipped: set[Edge] = set()  # in the middle of a message whose rest is dropped
        self._stopping = False
        self._turn_max_s = self._turn_window_s = self._turn_window_before_s = 0.0
        self._turn_window_until = 0.0
        self._debug = False  # whether every message gets a line in the log
        self._is_heavy = False  # what was read is large: it is passed on before more is read
        self._look_at = 0.0  # when to look again at what seldom changes
        self._lacks_descriptors = False
        self._complain_at = 0.0
        self._complaints_held_back = 0
        self.core = BrokerCore(
            self.epoch, self._settings,
            new_token=lambda: secrets.token_bytes(wire.TOKEN_BYTES), new_id=lambda: secrets.token_hex(5),
        )  # fmt: skip

    # -- life ----------------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Takes both addresses. Raises: addresses.AddressInUse, ValueError for what is no address, OSError."""
        self._settings.sessions_max = max(1, (sockets.raise_descriptor_limit() - DESCRIPTORS_SPARE) // 2)
        self.url = addresses.bind(self._router.socket, self.url, self._locks)
        self.stream_url = addresses.bind(self._xpub.socket, self.stream_url, self._locks)
        self._settings.stream_url = addresses.advertised(self.stream_url, self._advertised)

    def run(self) -> None:
        """Serves until `stop()`; then everybody is told, and the sockets are closed."""
        log.info("serving %s, stream %s, epoch %s", self.url, self.stream_url, self.epoch)
        gc.collect()
        gc.freeze()  # what was made until now lives as long as the process: the collector need not look at it
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            while not self._stopping:
                if _clock() < self._alone_until:
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
            pass  # closed already: there is nothing left to wake

    def close(self) -> None:
        """Closes the sockets after what was sent has had LINGER_MS to leave."""
        for each in (self._router, self._xpub):
            each.socket.disable_monitor()
            each.socket.close()
        for monitor in self._monitors:
            monitor.socket.close()
        self._wake_in.close()
        self._wake_out.close()
        self._context.term()
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()

    # -- one turn ------------------------------------------------------------------------------------------------------
    # In a conversation, with one message at a time, a receive that waits saves another two polls a message.

    def _wait_ms(self) -> int:
        if self._edges.may_hold() or self._lost or self._undelivered:
            return 0
        wait_s = self.core.next_deadline() - _clock()
        return max(0, -int(-wait_s * 1000 // 1))  # rounded up: a timer that is early by a fraction would spin

    def _turn(self) -> None:
        router = self._router
        backlog = router.may_hold()
        if self._edges.wait(self._wait_ms()):
            self._wake_in.recv(4096)
        began = _clock()
        for monitor in self._monitors:
            if monitor.is_told:
                self._count_strangers(monitor)
        if began >= self._look_at:
            self._look_at = began + LOOK_S
            self._debug = log.isEnabledFor(logging.DEBUG)
            self._look_at_descriptors()
        if self._xpub.may_hold():
            self._read_subscriptions(began)
        bad_news = bool(self._lost or self._undelivered)
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
            self._talks = self._talks + 1 if began - self._talked_at < TALK_S else 0
            self._talked_at = began
            if self._talks >= TALKS_MIN:
                self._alone_until = min(ended + ALONE_S, self.core.next_deadline() - sockets.ALONE_MS / 1000)
        self._note_turn(began, ended - began)

    def _turn_alone(self) -> None:
        """One message of the ROUTER's, if one comes within ALONE_MS. Nothing else is looked at."""
        asked_at = _clock()
        peer = self._router.recv_alone()
        if peer is None:
            self._alone_until = 0.0
            return
        began = _clock()
        self._take(peer, self._read_message(), began)
        self._is_heavy = False
        self.core.tick(began)
        self._send_outbox()
        self._talked_at = began
        if began - asked_at < AT_ONCE_S or self._xpub.is_touched or self._undelivered or self._unskipped:
            self._alone_until = 0.0
        if self.core.news:
            self._tell_log()
        self._note_turn(began, _clock() - began)

    def _count_strangers(self, monitor: Edge) -> None:
        """Connections that were accepted, less those whose handshake was completed. A worker's is one for a moment."""
        for _ in range(BURST_MAX):
            frame = monitor.recv()
            if frame is None:
                return
            event, _ = _MONITOR_EVENT.unpack(frame)
            monitor.socket.recv(_NOBLOCK)  # the address, a frame of its own
            self.core.gauges["strangers"] += 1 if event == _ACCEPTED else -1

    def _look_at_descriptors(self) -> None:
        """Without a free descriptor libzmq accepts nobody, and says nothing: newcomers wait in the system's queue."""
        try:
            os.close(os.dup(self._xpub.fd))
        except OSError:
            self.core.gauges["descriptors_lacking"] += 1
            if not self._lacks_descriptors:
                log.warning("no descriptor is left (see ulimit -n): who connects now waits until there is one again")
            self._lacks_descriptors = True
        else:
            if self._lacks_descriptors:
                log.warning("there are descriptors again")
            self._lacks_descriptors = False

    def _read_subscriptions(self, now: float) -> None:
        """Presences heard are told at once; presences lost wait until the ROUTER was read empty."""
        xpub = self._xpub
        if self._unskipped and not self._skip_rest(xpub):
            return
        for _ in range(BURST_MAX):
            frame = xpub.recv()
            if frame is None:
                return
            if xpub.socket.getsockopt(_RCVMORE):
                self.core.receive(EVERYONE, self._malformed("more than one frame"), now)
                if not self._skip_rest(xpub):
                    return
            elif frame[:1] == b"\x01":
                self._lost.pop(frame[1:], None)  # lost and heard again: a loss told later would count for good
                self.core.receive(EVERYONE, Subscribed(frame[1:]), now)
            elif frame[:1] == b"\x00":
                self._lost[frame[1:]] = None
            else:
                self.core.receive(EVERYONE, self._malformed("not a subscription"), now)

    def _read_router(self, now: float, burst: int) -> None:
        """Reads at most `burst` messages.

        While there is no backlog one message is read a turn, and what follows from it is sent before asking for more.
        """
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
                if not self._lost and not self._undelivered:  # these wait for the ROUTER to be empty
                    return
            if (burst > 0 and not router.may_hold()) or _clock() - now > BURST_S:
                return

    def _read_message(self) -> wire.Message | Malformed:
        """What stands behind the address: one frame, two or three with a large payload; all else is malformed."""
        router = self._router.socket
        frame = router.recv(_NOBLOCK)
        payload: wire.Payload | None = None
        if router.getsockopt(_RCVMORE):
            self._is_heavy = True
            payload = sockets.receive_payload(router)
            if router.getsockopt(_RCVMORE):
                self._skip_rest(self._router)
                return self._malformed("more than three frames")
        return self._decoded(frame, payload)

    def _take(self, peer: Address, message: wire.Message | Malformed, now: float) -> int:
        """Hands it to the core; how many messages it was. What is in a bundle counts as if each had come alone."""
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
            return self._malformed(f"{len(frame)} bytes: {error}", wire.read_heading(frame))

    def _malformed(self, text: str, heading: wire.Heading | None = None) -> Malformed:
        """Logs what is dropped, once a second at most: a stranger's garbage is not to fill the disk."""
        now = _clock()
        if now < self._complain_at:
            self._complaints_held_back += 1
        else:
            log.warning("dropped a malformed message: %s (and %d before it)", text, self._complaints_held_back)
            self._complain_at, self._complaints_held_back = now + COMPLAIN_S, 0
        return Malformed(text, heading)

    def _skip_rest(self, edge: Edge) -> bool:
        """Whether the message is over. Of a longer one the rest waits for the next turn: it may have a million frames,
        and what is left of it must not be read as a message of its own."""
        edge.touched()
        for _ in range(SKIPPED_MAX):
            if not edge.socket.getsockopt(_RCVMORE):
                self._unskipped.discard(edge)
                return True
            edge.socket.recv(_NOBLOCK)
        self._unskipped.add(edge)
        return False

    def _tell_bad_news(self, now: float) -> None:
        self._undrained_turns += 1
        if self._undrained_turns < UNDRAINED_TURNS_MAX and self._router.may_hold():
            return
        self._undrained_turns = 0
        lost, self._lost = self._lost, {}
        undelivered, self._undelivered = self._undelivered, []
        for topic in lost:
            self.core.receive(EVERYONE, Unsubscribed(topic), now)
        for peer, event in undelivered:
            self.core.receive(peer, event, now)
        self._router.ask()  # so that libzmq sees ends of connections before the next probe is sent

    def _send_outbox(self) -> None:
        """The stream's messages go first, in their order: there is none between sockets."""
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
        """To one peer; what can't be sent is told with the bad news."""
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
            overflow = error.errno == zmq.EAGAIN
            self._undelivered.extend((to, Undelivered(message, overflow)) for message in carried)

    def _tell_message(self, way: str, peer: Address, message: wire.Message | Malformed) -> None:
        """Kind, number and worker id, and nothing else: routing ids and tokens are secrets, payloads the users'."""
        if peer is EVERYONE or peer is BROADCAST:
            name = "everyone"
        else:
            session = self.core.session_at(peer)
            name = "a stranger" if session is None else session.worker_id
        log.debug("%s %s %s, number %d", type(message).__name__, way, name, getattr(message, "number", 0))

    def _tell_log(self) -> None:
        for line in self.core.take_news():
            log.info(line)

    def _note_turn(self, began: float, turn_s: float) -> None:
        """The longest turn ever, and of the last one or two windows: what is slow now, not what once was."""
        if began >= self._turn_window_until:
            self._turn_window_until = began + TURN_WINDOW_S
            self._turn_window_before_s, self._turn_window_s = self._turn_window_s, 0.0
        elif turn_s <= self._turn_window_s:
            return
        self._turn_window_s = max(self._turn_window_s, turn_s)
        self._turn_max_s = max(self._turn_max_s, turn_s)
        recent_s = max(self._turn_window_s, self._turn_window_before_s)
        self.core.gauges["turn_max_ms"] = round(self._turn_max_s * 1000, 3)
        self.core.gauges["turn_recent_max_ms"] = round(recent_s * 1000, 3)
