"""A network with libzmq on it: processes, connections and sockets, as far as brokers and workers can tell.

    worker's socket --connect--> Connection --up: pings, messages, subscriptions--> broker's ROUTER or XPUB
                                            <--down: pongs, messages--

Each direction of a connection is first in, first out, with a random delay. What libzmq does by itself is done by the
`Host`, as the I/O thread of a process: it runs while the process's Python is stuck, and sleeps while it is stopped.

    heartbeats      workers send PINGs with a TTL; any frame cancels the timer that a PING set (so a control connection
                    that falls silent while it is busy is never cut), and a worker cuts a connection without any answer;
                    the broker sends PINGs on streams, and cuts those without any answer too
    a cut network   holds what is sent, as TCP does, and delivers it late; the broker's TCP_MAXRT ends a connection
                    that holds something for too long; a closed end answers with a reset
    reconnecting    sockets connect anew by themselves; a SUB subscribes again when Python touches it, in byte order
    ROUTER          what arrived stays readable after its connection is gone; a send to a peer that has gone fails,
                    and may still "succeed" for some milliseconds
    XPUB            tells a topic's first subscription and the last unsubscription, nothing in between
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from iii_zmq.core.worker.events import Connected, Disconnected, Happening, StreamConnected, StreamDisconnected
from iii_zmq.wire import Payload

from .clock import Action, Clock, Timer
from .trace import Trace

Frames = tuple[bytes, Payload | None]
"""A message: its first frame, and the payload where that travels in frames of its own."""

PING, PONG, DATA, SUBSCRIBE, UNSUBSCRIBE, READY, END = "ping", "pong", "data", "sub", "unsub", "ready", "end"
Segment = tuple[str, Frames | bytes | None]

NOTICE_MAX_S = 0.007  # sends to a peer that has gone "succeed" for as long
RECONNECT_S = (0.01, 0.1)
ATTEMPT_MAX_S = 1.0


@dataclass(slots=True)
class Path:
    """The way between one worker and the broker."""

    name: str
    cut: bool = False
    slow_s: float = 0.0  # added to delays, at most
    loss: float = 0.0  # share of stream messages that a full queue drops
    doubled: float = 0.0  # share of stream messages that come twice


class Network:
    """The weather of all paths, and who listens."""

    def __init__(self, clock: Clock, rng: Random, trace: Trace) -> None:
        self.clock = clock
        self.rng = rng
        self.trace = trace
        self.listening: Listener | None = None
        self.broker_cut = False
        self.connections: dict[int, Connection] = {}
        self._serial = 0

    def add(self, connection: Connection) -> int:
        self._serial += 1
        self.connections[self._serial] = connection
        return self._serial

    def delay(self, path: Path) -> float:
        base = self.rng.uniform(0.00005, 0.0005)
        if self.rng.random() < 0.05:
            base += self.rng.uniform(0, 0.005)
        return base + (self.rng.uniform(0, path.slow_s) if path.slow_s else 0.0)

    def is_cut(self, path: Path) -> bool:
        return path.cut or self.broker_cut

    def heal(self) -> None:
        """Some path works again: what was held there is sent again."""
        for connection in list(self.connections.values()):
            if not self.is_cut(connection.path):
                connection.up.resend()
                connection.down.resend()


class Host:
    """A process: `stop` and `resume` are SIGSTOP and SIGCONT, `kill` is SIGKILL; `run_io` is its I/O thread."""

    timers_first: bool = False  # on waking: overdue timers before what waits in the kernel

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.clock = network.clock
        self.rng = network.rng
        self.trace = network.trace
        self.name = name
        self.alive = True
        self.stopped = False
        self._arrivals: list[Action] = []
        self._overdue: list[Action] = []
        self._wake: Timer | None = None

    def run_io(self, action: Action) -> None:
        """What a segment's arrival leads to: now, or when the process continues."""
        if self.stopped:
            self._arrivals.append(action)
        elif self.alive:
            action()

    def run_timer(self, action: Action) -> None:
        """What a timer of the I/O thread leads to: now, or when the process continues."""
        if self.stopped:
            self._overdue.append(action)
        elif self.alive:
            action()

    def stop(self) -> None:
        self.stopped = True

    def resume(self) -> None:
        self.stopped = False
        arrivals, self._arrivals = self._arrivals, []
        overdue, self._overdue = self._overdue, []
        is_timers_first = self.timers_first or self.rng.random() < 0.5
        for action in overdue + arrivals if is_timers_first else arrivals + overdue:
            action()
        self.wake()

    def wake(self, wait_s: float | None = None) -> None:
        """Python's loop runs soon, or after `wait_s`."""
        if wait_s is None:
            wait_s = self.rng.uniform(0, 0.0003)
        moment = self.clock.now + wait_s
        if self._wake is not None:
            if self._wake.at <= moment:
                return
            self._wake.cancel()
        self._wake = self.clock.at(moment, self._on_wake)

    def _on_wake(self) -> None:
        self._wake = None
        if self.alive and not self.stopped:
            self.turn()

    def turn(self) -> None:
        """One turn of the Python loop."""
        raise NotImplementedError


class Lane:
    """One direction of a connection. `arrive` is told each segment, in order."""

    def __init__(self, connection: Connection, arrive: str) -> None:
        self._connection = connection
        self._network = connection.network
        self._arrive = getattr(connection, arrive)
        self._segments: deque[Segment] = deque()
        self._last_at = 0.0
        self._held = 0
        self.held_since: float | None = None
        self.is_stuck = False  # nothing comes through any more, but for the end

    def send(self, kind: str, content: Frames | bytes | None = None) -> None:
        clock = self._network.clock
        self._segments.append((kind, content))
        self._last_at = max(self._last_at, clock.now + self._network.delay(self._connection.path))
        clock.at(self._last_at, self._due)

    def lose_tail(self) -> None:
        """The process died: what libzmq had not handed to the kernel yet never leaves."""
        for _ in range(self._network.rng.randint(0, len(self._segments))):
            self._segments.pop()

    def resend(self) -> None:
        """The path works again."""
        held, self._held, self.held_since = self._held, 0, None
        if held:
            clock, rng = self._network.clock, self._network.rng
            self._last_at = max(self._last_at, clock.now + rng.uniform(0, 0.2))
            for _ in range(held):
                clock.at(self._last_at, self._due)

    def _due(self) -> None:
        if not self._segments:
            return
        if self._network.is_cut(self._connection.path):
            self._held += 1
            if self.held_since is None:
                self.held_since = self._network.clock.now
            return
        kind, content = self._segments.popleft()
        if not self._connection.is_black_hole and (kind == END or not self.is_stuck):
            self._arrive(kind, content)


class Connection:
    """One TCP connection with ZMTP on it, from a worker's socket to the broker's."""

    def __init__(self, socket: Socket) -> None:
        self.network = socket.host.network
        self.socket = socket
        self.host = socket.host
        self.path = socket.path
        self.is_stream = socket.is_stream
        self.broker: Listener | None = None
        self.worker_open = False
        self.broker_open = False
        self.is_black_hole = False  # nothing arrives any more, and nobody is told
        self.is_full = False  # the broker's queue for it: the next send finds no room
        self.peer = b""
        self.up = Lane(self, "_at_broker")
        self.down = Lane(self, "_at_worker")
        self._is_given_up = False
        self._pong_timer: Timer | None = None
        self._ttl_timer: Timer | None = None
        self._answer_timer: Timer | None = None  # of the broker's PING
        self._serial = self.network.add(self)
        self._clock = self.network.clock
        self._clock.after(self.network.delay(self.path), self._reach)
        self._clock.after(ATTEMPT_MAX_S, self._give_up)

    # -- handshake -----------------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        broker = self.network.listening
        if broker is None or self.network.is_cut(self.path):
            self._is_given_up = True
            self.socket.try_again(self)
            self.network.connections.pop(self._serial, None)
        else:
            self.broker = broker
            broker.run_io(self._accept)

    def _accept(self) -> None:
        assert self.broker is not None
        if self._is_given_up:
            return
        self.broker_open = True
        self.broker.accepted(self)
        self.down.send(READY)
        if self.is_stream:
            self._clock.after(self.socket.heartbeat_s, self._next_broker_ping)

    def _give_up(self) -> None:
        if not self.worker_open and not self._is_given_up:
            self._is_given_up = True
            self.up.send(END)
            self.socket.try_again(self)

    # -- the worker's end ----------------------------------------------------------------------------------------------

    def _at_worker(self, kind: str, content: Frames | bytes | None) -> None:
        if not self.host.alive or (self._is_given_up and kind != END):
            self._reset(self.up, kind)
        else:
            self.host.run_io(lambda: self._worker_reads(kind, content))

    def _worker_reads(self, kind: str, content: Frames | bytes | None) -> None:
        if self._pong_timer is not None:
            self._pong_timer.cancel()
            self._pong_timer = None
        if kind == READY:
            self._on_ready()
        elif not self.worker_open:
            self._reset(self.up, kind)
        elif kind == END:
            self.close_worker_end(is_told=False)
        elif kind == PING:
            self.up.send(PONG)
        elif kind == DATA:
            self.socket.arrived(content)  # type: ignore[arg-type]

    def _on_ready(self) -> None:
        if self.socket.closed or self._is_given_up or self.worker_open:
            self.up.send(END)
            return
        self.worker_open = True
        self.socket.established(self)
        self._clock.after(self.socket.heartbeat_s * self.network.rng.random(), self._next_ping)

    def _next_ping(self) -> None:
        self.host.run_timer(self._ping)

    def _ping(self) -> None:
        if not self.worker_open:
            return
        self.up.send(PING)
        if self._pong_timer is None:
            self._pong_timer = self._clock.after(self.socket.ttl_s, lambda: self.host.run_timer(self._on_no_pong))
        self._clock.after(self.socket.heartbeat_s, self._next_ping)

    def _on_no_pong(self) -> None:
        if self._pong_timer is not None and self._pong_timer.action is not None:
            self._pong_timer = None
            self.close_worker_end()

    def close_worker_end(self, *, is_told: bool = True) -> None:
        """The worker's side is gone. `is_told`: the broker hears of it, if the network lets it."""
        if not self.worker_open:
            return
        self.worker_open = False
        if is_told:
            self.up.send(END)
        self._forget()
        self.socket.lost(self)

    # -- the broker's end ----------------------------------------------------------------------------------------------

    def _at_broker(self, kind: str, content: Frames | bytes | None) -> None:
        broker = self.broker
        if broker is None:
            return
        if not broker.alive:
            self._reset(self.down, kind)
        else:
            broker.run_io(lambda: self._broker_reads(kind, content))

    def _broker_reads(self, kind: str, content: Frames | bytes | None) -> None:
        broker = self.broker
        assert broker is not None
        if not self.broker_open:
            self._reset(self.down, kind)
            return
        self._cancel_ttl()
        if kind == PING:
            self.down.send(PONG)
            ttl_s = self.socket.ttl_s
            self._ttl_timer = self._clock.after(ttl_s, lambda: broker.run_timer(self._on_ttl))
        elif kind == END:
            self.close_broker_end(is_told=False)
        elif kind == DATA:
            broker.arrived(self, content)  # type: ignore[arg-type]
        elif kind == SUBSCRIBE:
            broker.subscribed(self, content)  # type: ignore[arg-type]
        elif kind == UNSUBSCRIBE:
            broker.unsubscribed(self, content)  # type: ignore[arg-type]

    def _cancel_ttl(self) -> None:
        for timer in (self._ttl_timer, self._answer_timer):
            if timer is not None:
                timer.cancel()
        self._ttl_timer = self._answer_timer = None

    def _next_broker_ping(self) -> None:
        assert self.broker is not None
        self.broker.run_timer(self._broker_ping)

    def _broker_ping(self) -> None:
        broker = self.broker
        if broker is None or not self.broker_open:
            return
        self.down.send(PING)
        if self._answer_timer is None:
            self._answer_timer = self._clock.after(self.socket.ttl_s, lambda: broker.run_timer(self._on_no_answer))
        self._clock.after(self.socket.heartbeat_s, self._next_broker_ping)

    def _on_no_answer(self) -> None:
        if self._answer_timer is not None:
            self.network.trace.note("network", f"the broker's heartbeat cuts {self}")
            self.close_broker_end()

    def _on_ttl(self) -> None:
        """A PING's timer ran out (or, on waking from a stop, had run out)."""
        if self._ttl_timer is not None:
            self.network.trace.note("network", f"TTL cuts {self}")
            self.close_broker_end()

    def send_down(self, frames: Frames) -> None:
        """What the broker sends; if the network holds it for too long, TCP_MAXRT ends the connection."""
        self.down.send(DATA, frames)
        if self.network.is_cut(self.path) or self.is_black_hole:
            self._clock.after(self.socket.ttl_s * 1.3, self._on_maxrt)

    def _on_maxrt(self) -> None:
        since = self.down.held_since
        is_held = since is not None and self._clock.now - since >= self.socket.ttl_s
        if self.broker is not None and self.broker_open and (is_held or self.is_black_hole):
            self.network.trace.note("network", f"TCP_MAXRT cuts {self}")
            self.broker.run_timer(self.close_broker_end)

    def close_broker_end(self, *, is_told: bool = True) -> None:
        """The broker's side is gone. `is_told`: the worker hears of it, if the network lets it."""
        if not self.broker_open:
            return
        assert self.broker is not None
        self.broker_open = False
        self._cancel_ttl()
        if is_told:
            self.down.send(END)
        self._forget()
        self.broker.lost(self)

    # -- both ----------------------------------------------------------------------------------------------------------

    def _reset(self, lane: Lane, kind: str) -> None:
        if kind != END:
            lane.send(END)

    def _forget(self) -> None:
        if not self.worker_open and not self.broker_open and not self.network.is_cut(self.path):
            self.network.connections.pop(self._serial, None)

    def __str__(self) -> str:
        return f"{self.path.name}'s {'stream' if self.is_stream else 'control'}#{self._serial}"


class Socket:
    """A worker's DEALER or SUB, which connects by itself for as long as it is not closed."""

    def __init__(self, host: Host, path: Path, heartbeat_s: float, ttl_s: float, topics: list[bytes] | None) -> None:
        self.host = host
        self.path = path
        self.heartbeat_s = heartbeat_s
        self.ttl_s = ttl_s
        self.is_stream = topics is not None
        self.topics = dict.fromkeys(topics or ())
        self.closed = False
        self.monitor: deque[Happening] = deque()
        self.inbox: deque[Frames] = deque()
        self.connection: Connection | None = None
        self._is_first = True
        self._is_subscribing_due = False
        self._attempt: Connection | None = Connection(self)

    # -- what Python does ----------------------------------------------------------------------------------------------

    def send(self, frames: Frames) -> bool:
        """False when there is no connection (IMMEDIATE=1 gives EAGAIN)."""
        if self.connection is None:
            return False
        self.connection.up.send(DATA, frames)
        return True

    def touch(self) -> None:
        """Python looks at the socket: a SUB that reconnected subscribes again, in byte order."""
        if self._is_subscribing_due and self.connection is not None:
            self._is_subscribing_due = False
            for topic in sorted(self.topics):
                self.connection.up.send(SUBSCRIBE, topic)

    def subscribe(self, topic: bytes) -> None:
        self.touch()
        if topic not in self.topics:
            self.topics[topic] = None
            if self.connection is not None:
                self.connection.up.send(SUBSCRIBE, topic)

    def unsubscribe(self, topic: bytes) -> None:
        self.touch()
        if topic in self.topics:
            del self.topics[topic]
            if self.connection is not None:
                self.connection.up.send(UNSUBSCRIBE, topic)

    def close(self) -> None:
        self.closed = True
        if self.connection is not None:
            self.connection.close_worker_end()

    # -- what the I/O thread tells -------------------------------------------------------------------------------------

    def established(self, connection: Connection) -> None:
        self.connection, self._attempt = connection, None
        self.monitor.append(StreamConnected() if self.is_stream else Connected())
        self._is_subscribing_due = self.is_stream
        if self._is_first:
            self._is_first = False
            self.touch()
        self.host.wake()

    def arrived(self, frames: Frames) -> None:
        self.inbox.append(frames)
        self.host.wake()

    def lost(self, connection: Connection) -> None:
        if self.connection is not connection:
            return
        self.connection = None
        if not self.closed:
            self.monitor.append(StreamDisconnected() if self.is_stream else Disconnected())
            self.try_again(None)
            self.host.wake()

    def try_again(self, failed: Connection | None) -> None:
        if failed is self._attempt and not self.closed and self.host.alive:
            self._attempt = None
            self.host.clock.after(self.host.rng.uniform(*RECONNECT_S), lambda: self.host.run_timer(self._connect))

    def _connect(self) -> None:
        if not self.closed and self.connection is None and self._attempt is None:
            self._attempt = Connection(self)


class Listener(Host):
    """The broker's process: a ROUTER and an XPUB."""

    timers_first = True  # a broker that wakes after its connections' TTL cuts them before it reads what waited

    def __init__(self, network: Network, name: str) -> None:
        super().__init__(network, name)
        self.peers: dict[bytes, Connection] = {}
        self.unread: dict[bytes, deque[Frames]] = {}  # by peer, also of connections that are gone
        self.subscriptions: deque[tuple[bool, bytes]] = deque()  # (subscribed, topic), unread
        self._listeners: dict[bytes, dict[Connection, None]] = {}
        self._unnoticed: dict[bytes, float] = {}  # peers that are gone, and until when sends to them succeed

    # -- what the I/O thread tells -------------------------------------------------------------------------------------

    def accepted(self, connection: Connection) -> None:
        if not connection.is_stream:
            connection.peer = b"\0" + self.rng.getrandbits(32).to_bytes(4, "big")
            self.peers[connection.peer] = connection

    def arrived(self, connection: Connection, frames: Frames) -> None:
        self.unread.setdefault(connection.peer, deque()).append(frames)
        self.wake()

    def subscribed(self, connection: Connection, topic: bytes) -> None:
        holders = self._listeners.setdefault(topic, {})
        if not holders:
            self.subscriptions.append((True, topic))
        holders[connection] = None
        self.wake()

    def unsubscribed(self, connection: Connection, topic: bytes) -> None:
        holders = self._listeners.get(topic, {})
        if holders.pop(connection, self) is None and not holders:
            del self._listeners[topic]
            self.subscriptions.append((False, topic))
        self.wake()

    def lost(self, connection: Connection) -> None:
        if connection.is_stream:
            for topic in [topic for topic, holders in self._listeners.items() if connection in holders]:
                self.unsubscribed(connection, topic)
        elif self.peers.pop(connection.peer, None) is not None:
            self._unnoticed[connection.peer] = self.clock.now + self.rng.uniform(0, NOTICE_MAX_S)

    # -- what Python does ----------------------------------------------------------------------------------------------

    def pop_message(self) -> tuple[bytes, Frames] | None:
        """The next message of the ROUTER: of any peer, but in order for each."""
        if not self.unread:
            return None
        peers = list(self.unread)
        peer = peers[self.rng.randrange(len(peers))]
        frames = self.unread[peer].popleft()
        if not self.unread[peer]:
            del self.unread[peer]
        return peer, frames

    def read_events(self) -> None:
        """From here on, sends to peers that are gone fail."""
        self._unnoticed.clear()

    def send(self, peer: bytes, frames: Frames) -> str:
        """ "" when it is on its way (or seems so), else "gone" or "full"."""
        connection = self.peers.get(peer)
        if connection is None:
            until = self._unnoticed.get(peer)
            if until is not None and self.clock.now < until:
                return ""
            self._unnoticed.pop(peer, None)
            return "gone"
        if connection.is_full:
            connection.is_full = False
            return "full"
        connection.send_down(frames)
        return ""

    def publish(self, topic: bytes, frame: bytes) -> None:
        for connection in self._listeners.get(topic, {}):
            path = connection.path
            if path.loss and self.rng.random() < path.loss:
                self.trace.note("network", f"a stream message to {path.name} is lost")
                continue
            connection.send_down((frame, None))
            if path.doubled and self.rng.random() < path.doubled:
                self._double(connection, frame)

    def _double(self, connection: Connection, frame: bytes) -> None:
        def again() -> None:
            if connection.broker_open and self.alive:
                connection.send_down((frame, None))

        self.clock.after(self.rng.uniform(0, 0.3), again)

    def end(self, *, is_killed: bool) -> None:
        """The process ends: the kernel closes its connections."""
        self.alive = False
        self.stopped = False
        if self.network.listening is self:
            self.network.listening = None
        for connection in list(self.network.connections.values()):
            if connection.broker is self and connection.broker_open:
                if is_killed:
                    connection.down.lose_tail()
                connection.close_broker_end()
