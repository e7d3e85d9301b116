"""One broker at a time and many workers on a virtual clock: the shells of the two cores, without sockets.

`BrokerHost.turn` and `WorkerHost.turn` do what `io/broker.py` and `io/link.py` do, in the same order; every message is
encoded and decoded on its way. Whatever a core hears or says is shown to the checks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from iii_zmq import errors, wire
from iii_zmq.core.broker import answers, registry
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import BROADCAST, EVERYONE, Address, Settings, Subscribed, Undelivered, Unsubscribed
from iii_zmq.core.broker.registry import Registry
from iii_zmq.core.worker.core import WorkerCore
from iii_zmq.core.worker.events import (
    BROKER,
    LINK,
    STREAM,
    Changes,
    Connect,
    Disconnect,
    Disconnected,
    DropControl,
    Happening,
    OpenStream,
    Order,
    StreamDisconnected,
    Subscribe,
    Unsent,
    Unsubscribe,
)
from iii_zmq.core.worker.membership import Profile

from .checks import Checks, ReplicaCheck
from .clock import Action, Clock
from .network import Connection, Frames, Host, Listener, Network, Path, Socket
from .trace import Trace, Violation, describe_value

if TYPE_CHECKING:
    from .users import User

URL = "tcp://broker:5570"
UNDRAINED_TURNS_MAX = 20  # as in io/broker.py
SPIN_TURNS_MAX = 3000  # of one host in one second
STEP_MIN_S = 0.001  # a shell waits in whole milliseconds


@dataclass(slots=True)
class Climate:
    """What a run is like. `fault_every_s` is the mean time between faults, 0 for none."""

    workers: int = 6
    steps: int = 400
    step_s: float = 0.04  # mean time between two acts of users
    fault_every_s: float = 1.0
    heartbeat_s: float = 0.5
    ttl_s: float = 2.0
    history_max: int = 1000
    part_bytes_max: int = answers.PART_BYTES_MAX
    broadcast_bytes_min: int = answers.BROADCAST_BYTES_MIN
    broadcast_from: int = answers.BROADCAST_FROM
    burst_max: int = 256
    stream_waiting_max: int = 200
    large_share: float = 0.01  # of calls, with a payload that travels as a frame of its own
    image_age_max: int | None = None  # in deltas; None: as the registry has it

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Small registries show what big ones do: parts and broadcasts from a few rows on."""
        settings: list[tuple[Any, str, Any]] = [
            (answers, "PART_BYTES_MAX", self.part_bytes_max),
            (answers, "BROADCAST_BYTES_MIN", self.broadcast_bytes_min),
            (answers, "BROADCAST_FROM", self.broadcast_from),
        ]
        if self.image_age_max is not None:
            settings += [(registry, "IMAGE_DELTAS_MAX", self.image_age_max), (registry, "IMAGE_REPLAY_SHARE", 1e9)]
        before = [(module, name, getattr(module, name)) for module, name, _ in settings]
        for module, name, value in settings:
            setattr(module, name, value)
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)


class BrokerHost(Listener):
    """The broker's process around one BrokerCore."""

    def __init__(self, network: Network, name: str, climate: Climate, checks: Checks) -> None:
        super().__init__(network, name)
        rng = self.rng
        settings = Settings(heartbeat_s=climate.heartbeat_s, ttl_s=climate.ttl_s)
        self.core = BrokerCore(
            name, settings,
            new_token=lambda: rng.getrandbits(128).to_bytes(16, "big"), new_id=lambda: f"{rng.getrandbits(24):06x}",
            registry=Registry(name, history_max=climate.history_max),
        )  # fmt: skip
        self.stopped_at = 0.0
        self.busy_until = 0.0  # its Python is slow: somebody else has the processor
        self._climate = climate
        self._checks = checks
        self._lost: dict[bytes, None] = {}
        self._undelivered: list[tuple[Address, Undelivered]] = []
        self._undrained_turns = 0
        self._spins = Spins(self)
        checks.on_broker_started(self.core, climate.history_max)
        network.listening = self
        self.wake()

    def arrived(self, connection: Connection, frames: Frames) -> None:
        self._checks.on_arrival(connection.peer, frames[0])
        super().arrived(connection, frames)

    # -- the shell -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        now = self.clock.now
        if now < self.busy_until:
            self.wake(self.busy_until - now)
            return
        self._spins.count()
        self._checks.on_turn(self.core, now)
        self._read_subscriptions(now)
        is_drained = self._read_router(now)
        if self._lost or self._undelivered:
            self._tell_bad_news(is_drained, now)
        self.core.tick(now)
        self._send_outbox()
        self._checks.on_turn_ended(self.core, now, is_drained)
        if self.unread or self._lost or self._undelivered:
            self.wake()
        self.wake(max(STEP_MIN_S, self.core.next_deadline() - now))

    def close(self) -> None:
        """SIGTERM."""
        self.core.close()
        self._send_outbox()
        self._checks.on_turn_ended(self.core, self.clock.now, False)
        self.end(is_killed=False)

    def _read_subscriptions(self, now: float) -> None:
        while self.subscriptions:
            is_subscribed, topic = self.subscriptions.popleft()
            if is_subscribed:
                self._lost.pop(topic, None)
                self._checks.on_presence(topic)
                self.trace.note(self.name, f"<- subscribed {topic!r}")
                self.core.receive(EVERYONE, Subscribed(topic), now)
            else:
                self._lost[topic] = None

    def _read_router(self, now: float) -> bool:
        for _ in range(self.rng.randint(1, self._climate.burst_max)):
            popped = self.pop_message()
            if popped is None:
                return True
            peer, (frame, payload) = popped
            self.trace.note(self.name, f"<- {peer.hex()[2:]}", frame)
            message = wire.decode(frame, payload)
            self._checks.on_broker_read(peer, message, now)
            self.core.receive(peer, message, now)
        return not self.unread

    def _tell_bad_news(self, is_drained: bool, now: float) -> None:
        self._undrained_turns = 0 if is_drained else self._undrained_turns + 1
        if not is_drained and self._undrained_turns < UNDRAINED_TURNS_MAX:
            return
        self._undrained_turns = 0
        self._checks.on_bad_news(is_drained)
        lost, self._lost = self._lost, {}
        undelivered, self._undelivered = self._undelivered, []
        for topic in lost:
            self.trace.note(self.name, f"<- unsubscribed {topic!r}")
            self.core.receive(EVERYONE, Unsubscribed(topic), now)
        for peer, event in undelivered:
            self.trace.note(self.name, f"<- undelivered to {peer.hex()[2:]}: {describe_value(event.message)}")
            self._checks.on_undelivered(event.message)
            self.core.receive(peer, event, now)
        self.read_events()

    def _send_outbox(self) -> None:
        for to, message in self.core.take_outbox():
            frame, payload = wire.encode(message)
            if to is EVERYONE or to is BROADCAST:
                self._checks.on_published(to, wire.decode(frame, payload, header_bytes_max=wire.STREAM_BYTES_MAX))
                self.publish(to, to + frame)
                continue
            self._checks.on_broker_sends(self.core, to, message, self.clock.now)
            trouble = self.send(to, (frame, payload))
            if trouble:
                self._undelivered.append((to, Undelivered(message, overflow=trouble == "full")))


class WorkerHost(Host):
    """A worker's process around one WorkerCore: DEALER, SUB, and a user who does as they like."""

    def __init__(self, network: Network, profile: Profile, climate: Climate, checks: Checks) -> None:
        super().__init__(network, profile.name)
        self.path = Path(profile.name)
        self.core = WorkerCore(profile, random=self.rng.random)
        self.check: ReplicaCheck = checks.watch(profile.name, self.core)
        self.user: User | None = None
        self.busy_until = 0.0  # Python is stuck in a handler until then
        self.reads_stream_at = 0.0  # a slow reader leaves the stream alone until then
        self.disturbed_at = self.clock.now  # when something was last done to it, or ended
        self.dealer: Socket | None = None
        self.sub: Socket | None = None
        self._climate = climate
        self._checks = checks
        self.ambush: tuple[type[object], Action] | None = None  # what happens when such a message has left
        self._due: deque[Action] = deque()  # what Python is to do in its next turn
        self._spins = Spins(self)

    # -- from outside --------------------------------------------------------------------------------------------------

    def soon(self, action: Action) -> None:
        """Python does this in its next turn."""
        self._due.append(action)
        self.wake()

    def start(self) -> None:
        self.soon(lambda: self.core.connect(self.clock.now))

    def end(self, *, is_killed: bool) -> None:
        """The process ends: the kernel closes its connections."""
        self.alive = False
        self.stopped = False
        for connection in list(self.network.connections.values()):
            if connection.host is self and connection.worker_open:
                if is_killed:
                    connection.up.lose_tail()
                connection.close_worker_end()

    @property
    def is_sound(self) -> bool:
        """Neither stopped nor stuck."""
        return self.alive and not self.stopped and self.busy_until <= self.clock.now

    # -- the shell -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        now = self.clock.now
        if now < self.busy_until:
            self.wake(self.busy_until - now)
            return
        self._spins.count()
        while self._due:
            self._due.popleft()()
            self._look()
        for socket in (self.dealer, self.sub):
            if socket is not None:
                self._read_monitor(socket, now)
        if self.dealer is not None:
            self._read_dealer(self.dealer, now, self.rng.randint(1, self._climate.burst_max))
        if self.sub is not None and now >= self.reads_stream_at:
            self._read_stream(self.sub, now, self.rng.randint(1, self._climate.burst_max))
        due = self.core.next_deadline()
        if due is not None and now >= due:
            self.core.tick(now)
            self._look()
        self._flush()
        self._wake_again(now)

    def _wake_again(self, now: float) -> None:
        if not self.alive:
            return
        if self._due or (self.dealer is not None and self.dealer.inbox):
            self.wake()
        if self.sub is not None and self.sub.inbox:
            self.wake(max(0.0, self.reads_stream_at - now) or None)
        due = self.core.next_deadline()
        if due is not None:
            self.wake(max(STEP_MIN_S, due - now))

    def _read_monitor(self, socket: Socket, now: float) -> None:
        while socket.monitor:
            happening = socket.monitor.popleft()
            if isinstance(happening, Disconnected):
                self._read_dealer(socket, now, None)
            elif isinstance(happening, StreamDisconnected):
                self._read_stream(socket, now, None)
            self._tell(happening, now)
        socket.touch()

    def _tell(self, happening: Happening, now: float) -> None:
        self.trace.note(self.name, f"<- {describe_value(happening)}")
        self.core.receive(LINK, happening, now)
        self._look()

    def _read_dealer(self, dealer: Socket, now: float, burst: int | None) -> None:
        while dealer.inbox and burst != 0:
            frame, payload = dealer.inbox.popleft()
            self.trace.note(self.name, "<-", frame)
            self.core.receive(BROKER, wire.decode(frame, payload, header_bytes_max=wire.STREAM_BYTES_MAX), now)
            self._look()
            burst = None if burst is None else burst - 1

    def _read_stream(self, sub: Socket, now: float, burst: int | None) -> None:
        if len(sub.inbox) >= self._climate.stream_waiting_max:
            sub.inbox.clear()
            self.trace.note(self.name, "discards what waits on its stream")
            self.core.overrun(now)
            self._look()
        while sub.inbox and burst != 0:
            frame, _ = sub.inbox.popleft()
            self.trace.note(self.name, "<= ", frame[len(wire.STREAM_TOPIC) :])
            self.core.receive(STREAM, wire.decode_on_stream(frame), now)
            self._look()
            burst = None if burst is None else burst - 1

    def _look(self) -> None:
        """Shows what became of the last thing the core was told."""
        events = self.core.take_events()
        self.check.look([event for event in events if isinstance(event, Changes)])
        if self.user is not None:
            for event in events:
                self.user.on_event(event)

    def _flush(self) -> None:
        while outbox := self.core.take_outbox():
            for to, message in outbox:
                if not self.alive:
                    return
                if to == BROKER:
                    self._send(message)  # type: ignore[arg-type]
                else:
                    self._obey(message)  # type: ignore[arg-type]
            self._look()

    def _send(self, message: wire.Message) -> None:
        self._checks.on_worker_sends(message)
        if self.dealer is None or not self.dealer.send(wire.encode(message)):
            self._tell(Unsent(message), self.clock.now)
        elif self.ambush is not None and isinstance(message, self.ambush[0]):
            (_, spring), self.ambush = self.ambush, None
            spring()

    def _obey(self, order: Order) -> None:
        self.trace.note(self.name, f"does {describe_value(order)}")
        match order:
            case Connect():
                self._close_dealer()
                self.dealer = Socket(self, self.path, order.heartbeat_ms / 1000, order.ttl_ms / 1000, None)
            case OpenStream():
                if self.sub is not None:
                    self.sub.close()
                topics = list(order.topics)
                self.sub = Socket(self, self.path, order.heartbeat_ms / 1000, order.ttl_ms / 1000, topics)
            case Subscribe():
                if self.sub is not None:
                    self.sub.subscribe(order.topic)
            case Unsubscribe():
                if self.sub is not None:
                    self.sub.unsubscribe(order.topic)
            case DropControl():
                self._close_dealer()
            case Disconnect():
                self._close()
            case _:
                errors.assert_never(order)

    def _close_dealer(self) -> None:
        if self.dealer is not None:
            self.dealer.close()
        self.dealer = None

    def _close(self) -> None:
        if self.sub is not None:
            self.sub.close()
        self.sub = None
        self._close_dealer()


class Spins:
    """No loop may run hot: that is a timer which is always due."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._since = 0.0
        self._turns = 0

    def count(self) -> None:
        now = self._host.clock.now
        if now - self._since > 1.0:
            self._since, self._turns = now, 0
        self._turns += 1
        if self._turns > SPIN_TURNS_MAX:
            raise Violation(f"{self._host.name} spins: {self._turns} turns within a second")


class Cluster:
    """Broker, workers and the network between them. Stories are told with these few verbs."""

    def __init__(self, climate: Climate, rng: Random, *, is_verbose: bool = False) -> None:
        self.climate = climate
        self.clock = Clock()
        self.rng = rng
        self.trace = Trace(self.clock, is_verbose=is_verbose)
        self.network = Network(self.clock, rng, self.trace)
        self.checks = Checks(self.clock, rng)
        self.broker: BrokerHost | None = None
        self.workers: dict[str, WorkerHost] = {}  # the living ones, by name
        self._epochs = 0
        self._names = 0

    def start_broker(self) -> BrokerHost:
        assert self.broker is None
        self._epochs += 1
        self.trace.note("fault", f"the broker starts, epoch e{self._epochs}")
        self.broker = BrokerHost(self.network, f"e{self._epochs}", self.climate, self.checks)
        return self.broker

    def kill_broker(self) -> None:
        assert self.broker is not None
        self.trace.note("fault", "the broker is killed")
        self.broker.end(is_killed=True)
        self.broker = None
        self.checks.on_broker_ended()

    def close_broker(self) -> None:
        assert self.broker is not None
        self.trace.note("fault", "the broker closes")
        self.broker.close()
        self.broker = None
        self.checks.on_broker_ended()

    def start_worker(self, *, observer: bool = False, credit: int = 128) -> WorkerHost:
        self._names += 1
        name = f"w{self._names}"
        profile = Profile(name, "host", self._names, URL, credit=credit, observer=observer)
        worker = self.workers[name] = WorkerHost(self.network, profile, self.climate, self.checks)
        self.trace.note("fault", f"{name} starts{' as an observer' if observer else ''}")
        worker.start()
        return worker

    def end_worker(self, worker: WorkerHost, *, is_killed: bool) -> None:
        self.trace.note("fault", f"{worker.name} {'is killed' if is_killed else 'ends'}")
        worker.end(is_killed=is_killed)
        del self.workers[worker.name]
