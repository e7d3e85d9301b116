"""WorkerCore: one branch per message; the work is done in straight leaves beside it.

    membership   the connection and the session          outgoing   calls that this worker makes
    sync         keeps the replica level                 incoming   calls that this worker runs
    offers       the registered functions                events     messages between this core and its shell

    receive(sender, message, now)   handles one message; `sender` is BROKER, STREAM or LINK
    tick(now)                       does what is due: heartbeats, deadlines, phases that last too long
    next_deadline()                 when `tick` is next due
    take_outbox()                   (BROKER, message) and (LINK, order), to carry out in this order
    take_events()                   what the facade must know or do

Invariant: a session takes everything it carried with it. Before anything of the next session is applied, calls that
were sent fail, calls that run here are orphaned, and registrations are compared again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count

from ... import errors, wire
from ...errors import assert_never
from ..counters import WORKER_COUNTERS, new_counters
from .changes import Change
from .events import (
    BROKER,
    CONNECTED,
    CONNECTING,
    STALE,
    STREAM,
    Changes,
    Connected,
    Disconnected,
    Drained,
    Events,
    Failed,
    Happening,
    JoinRefused,
    Outbox,
    Reached,
    StreamConnected,
    StreamDisconnected,
    StreamFailed,
    Unsent,
)
from .incoming import Incoming
from .membership import (
    AWAITING_CONNECTION,
    GREETING,
    LEFT,
    OPEN,
    OPENING,
    OVER,
    PAUSING,
    Membership,
    Profile,
)
from .offers import Offers
from .outgoing import SENDS, Outgoing
from .replica import Replica
from .shared import Shared
from .sync import Following

OPENINGS_MAX = 3  # Hellos in a row without a heard presence, before the control connection is replaced, too


class WorkerCore:
    """A whole worker without sockets, clocks or threads."""

    def __init__(
        self,
        profile: Profile,
        *,
        random: Callable[[], float],
        patience_s: float = 5.0,
        is_watched: Callable[[], bool] = lambda: True,
        shared: Shared | None = None,
    ) -> None:
        self.profile = profile
        self.counters = new_counters()
        self.shared = shared or Shared()
        self.replica = Replica(is_watched=is_watched, shared=self.shared)
        self._outbox: Outbox = []
        self._events: Events = []
        self._new_number = count(1).__next__
        self.membership = Membership(profile, self._outbox, self._events, self.counters, random)
        self.outgoing = Outgoing(self._outbox, self._events, self.counters, patience_s)
        self.incoming = Incoming(self._outbox, self._events, self.counters)
        self.offers = Offers(self._outbox, self._events, self._new_number)
        self.following = Following(self.replica, self._outbox, self.counters, self._new_number)
        self._drain_number: int | None = None
        self._openings = 0

    # -- the one interface ---------------------------------------------------------------------------------------------

    def receive(self, sender: str, message: wire.Message | Happening, now: float) -> None:
        """Handles one message, or one event of the Link's sockets."""
        if isinstance(message, wire.Result):  # the two most frequent: compiled, isinstance is faster than a match
            self.outgoing.on_result(message)
            return
        if isinstance(message, wire.Call):
            self.incoming.on_call(message, message.function_id in self.offers.wanted, now)
            return
        match message:
            case wire.Failure():
                self.outgoing.on_failure(message)
            case wire.Deltas() | wire.Beacon() | wire.Closing():
                self._on_stream(message, now)
            case wire.Snapshot() | wire.Replay() | wire.Invite():
                self._on_part(sender, message, now)
            case wire.Cancel():
                self.incoming.on_cancel(message.number)
            case wire.Ack():
                self._on_ack(message)
            case wire.Welcome():
                self._on_welcome(message, now)
            case wire.Unknown():
                self._on_unknown(message, now)
            case wire.Refuse():
                self._on_refuse(message, now)
            case wire.Probe():
                pass
            case (
                wire.Hello() | wire.Register() | wire.Unregister() | wire.Heartbeat() | wire.Sync() | wire.Received()
                | wire.Drain() | wire.Bye()
            ):  # fmt: skip
                self._on_own_words(now)
            case wire.Bundle():  # a bundle inside a bundle: the Link opens the outer one
                self.counters["unexpected"] += 1
            case _:
                self._on_link(message, now)

    def tick(self, now: float) -> None:
        """Does what is due."""
        self.outgoing.tick(now, self.membership.trouble)
        phase = self.membership.phase
        if phase == OPEN:
            self._tick_open(now)
        elif self.membership.overdue(now):
            self._on_overdue(phase, now)

    def next_deadline(self) -> float | None:
        """When `tick` is next due."""
        due = min(self.membership.due, self.outgoing.due, self.following.due)
        return None if due == math.inf else due

    def take_outbox(self) -> Outbox:
        """Messages to send and orders to carry out, in order."""
        outbox = self._outbox[:]
        self._outbox.clear()
        return outbox

    def take_events(self) -> Events:
        """What the facade must know or do, in order."""
        events = self._events[:]
        self._events.clear()
        return events

    @property
    def is_level(self) -> bool:
        """In a session, and the replica waits for no answer: what comes by the control socket is about calls."""
        return self.membership.phase == OPEN and self.following.level

    @property
    def progress(self) -> tuple[int, int, int]:
        """A value that changes whenever joining makes progress: a large registry takes its time."""
        return self.membership.furthest, self.following.parts, self.replica.position.seq

    def counted(self) -> dict[str, int]:
        """All counters, including those that are still zero."""
        return {name: self.counters[name] + self.replica.counters[name] for name in WORKER_COUNTERS}

    # -- from the facade -----------------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Starts joining; from now on the worker keeps up its session by itself."""
        self.membership.connect(now)

    def call(
        self, function_id: str, payload: wire.Payload, timeout_s: float, now: float, target: str = "", flags: int = 0
    ) -> int:
        """Starts a call; returns its number, which its CallEnded carries. Raises: Busy."""
        number = self._new_number()
        if flags & wire.NO_ANSWER:
            number |= SENDS
        self.outgoing.call(number, function_id, payload, timeout_s, target, flags, now)
        return number

    def register(self, entries: Mapping[str, bytes]) -> int:
        """Starts a registration; returns its ticket number, which its Settled carries."""
        return self.offers.register(entries)

    def drain(self) -> None:
        """Asks the broker for no more calls. Drained comes when the last one has ended."""
        if self.membership.phase == OPEN:
            self._drain_number = self._new_number()
            self._outbox.append((BROKER, wire.Drain(self._drain_number)))
        else:
            self._events.append(Drained())

    def distrust(self, now: float) -> None:
        """The shell was interrupted, and may have lost messages or events: the session counts as lost."""
        if self.membership.linked and self.membership.phase != LEFT:
            self.membership.forget_failures()  # nothing is wrong with the broker
            self._lose_session("a signal handler raised while the worker read or sent", now)

    def leave(self) -> None:
        """Says Bye: the functions go at once; results of running calls are still sent until `end`."""
        if self.membership.phase in (LEFT, OVER):
            return
        if self.membership.linked:
            self._outbox.append((BROKER, wire.Bye(self._new_number())))
        self._pause()
        self.outgoing.close()
        self.membership.leave()

    @property
    def has_left(self) -> bool:
        """After `leave`: True if the replica shows that the broker took the Bye, or if nothing will ever show it."""
        welcome = self.membership.welcome
        is_shown = self.membership.phase == LEFT and welcome is not None and welcome.worker_id in self.replica.workers
        return not is_shown

    def end(self, text: str = "closed") -> None:
        """Ends for good: open calls fail and the sockets are closed."""
        if self.membership.phase != OVER:
            self._pause()
            self.outgoing.close()
            self.outgoing.lose_all(f"{text} while the call was open")
            self.incoming.orphan()
            self.membership.end(text)

    # -- session -------------------------------------------------------------------------------------------------------

    def _say_hello(self, now: float) -> None:
        """Says Hello on the current connection: for a new session, or for the old one with a new stream."""
        profile, token, number = self.profile, self.membership.token, self._new_number()
        self._pause()
        functions = self.offers.digest() if token else b""
        hello = wire.Hello(
            number, [wire.BUNDLES], profile.name, profile.host, profile.pid, profile.metadata, profile.credit,
            profile.observer, *self.replica.sync_position(), token, functions,
        )  # fmt: skip
        self._outbox.append((BROKER, hello))
        self.following.expect(number)
        self.membership.greet(number, now)

    def _on_welcome(self, welcome: wire.Welcome, now: float) -> None:
        membership = self.membership
        if membership.phase != GREETING or welcome.number != membership.hello_number:
            self.counters["unexpected"] += 1
            return
        if not (welcome.kept and membership.same_connection):
            self.outgoing.lose_sent(membership.hello_number, "the session ended while the call was open")
            self.incoming.orphan()
        self.incoming.epoch = welcome.epoch
        self.counters["sessions"] += 1
        membership.welcomed(welcome, now)

    def _on_part(self, sender: str, part: wire.Snapshot | wire.Replay | wire.Invite, now: float) -> None:
        membership = self.membership
        if sender == STREAM:
            membership.heard(now)
        elif membership.phase == OPENING and part.number == membership.hello_number:
            self._open(now)
        if isinstance(part, wire.Invite):
            self.following.on_invite(part, membership.token, now)
        else:
            self._apply(lambda: self.following.on_part(sender, part, now), now)

    def _open(self, now: float) -> None:
        """The broker heard our presence: registrations and calls may be sent."""
        welcome = self.membership.welcome
        assert welcome is not None
        self._openings = 0
        self.membership.opened(now)
        self.following.begin(now)
        self.offers.opened(welcome.kept, welcome.batch_max)
        self.outgoing.opened(welcome.worker_id, welcome.open_calls_max, now)

    def _on_unknown(self, unknown: wire.Unknown, now: float) -> None:
        """The broker has no session for us: it took us for dead, or it is a new broker."""
        if unknown.kind == wire.KIND[wire.Call]:
            self.outgoing.on_unknown(unknown.number)
        if self.membership.phase in (OPENING, OPEN):
            self.counters["sessions_unknown"] += 1
            self._say_hello(now)

    def _on_own_words(self, now: float) -> None:
        """Handles a message that only workers send. TCP can connect a local port without a listener to itself, and that
        connection keeps the port in use: a worker that looks for a broker on its own machine tries often enough to hit
        its own port."""
        self.counters["unexpected"] += 1
        if self.membership.phase == GREETING and not self.membership.same_connection:
            self._lose_session("the program at that address echoes what it receives: it is not a broker", now)

    def _on_refuse(self, refuse: wire.Refuse, now: float) -> None:
        if refuse.kind != wire.KIND[wire.Hello]:
            if self.offers.on_refuse(refuse):
                self._check_level()
            return
        if self.membership.phase != GREETING or refuse.number != self.membership.hello_number:
            self.counters["unexpected"] += 1
        elif refuse.code == errors.CLOSING or (refuse.code == errors.LIMIT and self.membership.token):
            self._lose_session(refuse.text, now, drop_stream=True)
        else:
            text = refuse.text
            if refuse.code == errors.VERSION:
                text += f"; this worker speaks version {wire.VERSION}"
            self._events.append(JoinRefused(refuse.code, text))
            self.end(f"the broker refused this worker: {text}")

    def _on_ack(self, ack: wire.Ack) -> None:
        if ack.number == self._drain_number:
            self._drain_number = None
            self._events.append(Drained())
        elif self.offers.on_ack(ack):
            self._check_level()

    def _lose_session(self, trouble: str, now: float, state: str = CONNECTING, *, drop_stream: bool = False) -> None:
        """Replaces a control connection that is lost or useless by a fresh one.

        The stream stays until a Welcome leads to a new one. While the broker hears it, it knows that we live and keeps
        our rows; when the stream was closed too, a cut control connection made the worker leave and join.
        """
        self._purge_outbox(now)
        self._pause()
        self.outgoing.lose_sent(wire.NUMBER_MAX, f"{trouble} while the call was open")
        self.incoming.orphan()
        self.membership.reconnect(now, trouble, state, drop_stream=drop_stream)

    def _pause(self) -> None:
        self.outgoing.paused()
        self.offers.paused()
        self.following.pause()
        if self._drain_number is not None:
            self._drain_number = None
            self._events.append(Drained())

    def _purge_outbox(self, now: float) -> None:
        """Drops messages that the socket has not taken: their session is gone. Calls may wait for the next one."""
        unsent = [message for to, message in self._outbox if to == BROKER]
        self._outbox[:] = [item for item in self._outbox if item[0] != BROKER]
        for message in unsent:
            if isinstance(message, wire.Call):
                self.outgoing.unsent(message, now)

    # -- the stream ----------------------------------------------------------------------------------------------------

    def _on_stream(self, message: wire.Deltas | wire.Beacon | wire.Closing, now: float) -> None:
        self.membership.heard(now)
        if isinstance(message, wire.Closing):
            welcome = self.membership.welcome
            if self.membership.phase == OPEN and welcome is not None and message.epoch == welcome.epoch:
                self._pause()
                self.membership.closing(now)
        elif isinstance(message, wire.Deltas):
            self._apply(lambda: self.replica.on_deltas(message), now)
        else:
            self._apply(lambda: self.replica.on_beacon(message), now)
            self._beat(self.membership.pop_heartbeat(now, with_beacon=True))

    def _apply(self, feed: Callable[[], list[Change]], now: float) -> None:
        """Feeds the replica. Anything it can't read is dropped, and shows up as a gap or as a broken answer."""
        before = self.replica.position
        try:
            changes = feed()
        except errors.ProtocolError:
            self.counters["malformed"] += 1
        else:
            if changes or self.replica.position != before:
                self._events.append(Changes(changes))
        self._follow(now)

    def overrun(self, now: float) -> None:
        """The Link discarded the waiting stream messages because there were too many."""
        self.following.overrun()
        self.membership.heard(now)
        self._follow(now)

    def _follow(self, now: float) -> None:
        """Asks for what is missing, and checks whether the worker is level."""
        if self.membership.phase != OPEN:
            return
        if self.replica.wanted == "epoch":
            self._say_hello(now)
            return
        self.following.sync(now)
        self._check_level()

    def _check_level(self) -> None:
        if self.offers.waiting:
            self.offers.settle(self.replica.position, self.following.level)
        if (
            self.membership.state != CONNECTED
            and self.following.level
            and self.offers.is_settled(self.replica.position)
        ):
            self.membership.level()

    # -- the link ------------------------------------------------------------------------------------------------------

    def _on_link(self, happening: Happening, now: float) -> None:
        phase = self.membership.phase
        match happening:
            case Connected():
                if phase == AWAITING_CONNECTION:
                    self._say_hello(now)
            case Disconnected():
                self._on_disconnected(phase, now)
            case StreamDisconnected():
                self._on_stream_disconnected(phase, now)
            case Failed() | StreamFailed():
                self._on_failed(happening, phase, now)
            case Reached():
                self.membership.reached()
            case Unsent():
                if isinstance(happening.message, wire.Call):
                    self.outgoing.unsent(happening.message, now)
            case StreamConnected():
                pass
            case _:
                assert_never(happening)

    def _on_disconnected(self, phase: str, now: float) -> None:
        if phase == LEFT:
            self.end()
        elif phase == AWAITING_CONNECTION:
            self.counters["handshakes_failed"] += 1
            self._lose_session("the program at that address is not a broker: the handshake failed", now)
        elif phase in (GREETING, OPENING, OPEN):
            self._lose_session("the connection to the broker was lost", now)

    def _on_stream_disconnected(self, phase: str, now: float) -> None:
        if phase == OPEN:
            self.counters["streams_lost"] += 1
            self._say_hello(now)
        elif phase == OPENING:
            self.counters["streams_failed"] += 1
            self.membership.stream_failed("", self._openings, now)

    def _on_failed(self, failure: Failed | StreamFailed, phase: str, now: float) -> None:
        """A handshake failed, or sockets could not be made. The stream of an ended session does not matter."""
        if phase == AWAITING_CONNECTION and isinstance(failure, Failed):
            self.counters["handshakes_failed"] += 1
            self._lose_session(failure.text, now)
        elif phase == OPENING:
            self.membership.stream_failed(failure.text, self._openings, now)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _tick_open(self, now: float) -> None:
        self._beat(self.membership.pop_heartbeat(now))
        if self.membership.silent(now):
            self.counters["streams_silent"] += 1
            self._say_hello(now)
        else:
            self._follow(now)

    def _beat(self, lag_ms: int | None) -> None:
        if lag_ms is not None:
            epoch, seq = self.replica.position
            self._outbox.append((BROKER, wire.Heartbeat(self._new_number(), epoch, seq, len(self.incoming), lag_ms)))

    def _on_overdue(self, phase: str, now: float) -> None:
        if phase in (PAUSING, AWAITING_CONNECTION):
            self.membership.connect(now)
        elif phase == OPENING and self._openings < OPENINGS_MAX:
            self._openings += 1
            self.membership.note(self.membership.trouble)
            self._say_hello(now)
        else:
            self._openings = 0
            known = self.membership.state in (CONNECTED, STALE)
            text = self.membership.trouble or "the broker does not answer"
            self._lose_session(text, now, STALE if known else CONNECTING, drop_stream=True)
