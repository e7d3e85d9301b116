"""WorkerCore: one branch per message; the work is done in straight leaves beside it.

    membership   the phases of the connection            outgoing   calls that this worker makes
    session      what begins and ends with a session     incoming   calls that this worker runs
    sync         keeps the replica level                 offers     the registered functions
    replica      the registry as this worker knows it    events     messages between this core and its shell

Invariant: every table belongs to one leaf; the core has none of its own. It only knows which leaf hears of what, and in
which order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count

from ... import errors, wire
from ...errors import assert_never
from ..counters import WORKER_COUNTERS, new_counters
from . import events
from .changes import Change
from .events import BROKER, CONNECTED, STREAM, Changes, Events, Happening, Outbox
from .incoming import Incoming
from .membership import LEFT, OPEN, OPENING, OVER, Membership, Profile
from .offers import Offers
from .outgoing import SENDS, Outgoing
from .replica import Replica
from .session import Session
from .shared import Shared
from .sync import Following


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
        self.outbox: Outbox = []  # taken by `take_outbox`; a shell may look whether there is anything
        self.events: Events = []
        self._new_number = count(1).__next__
        self.membership = Membership(profile, self.outbox, self.events, self.counters, random)
        self.outgoing = Outgoing(self.outbox, self.events, self.counters, patience_s)
        self.incoming = Incoming(self.outbox, self.events, self.counters)
        self.offers = Offers(self.outbox, self.events, self._new_number)
        self.following = Following(self.replica, self.outbox, self.counters, self._new_number)
        self._session = Session(
            profile, self.outbox, self.events, self.counters, self._new_number, self.membership, self.outgoing,
            self.incoming, self.offers, self.following,
        )  # fmt: skip

    # -- the one interface ---------------------------------------------------------------------------------------------

    def receive(self, sender: str, message: wire.Message | Happening, now: float) -> None:
        """Handles one message, or one event of the Link's sockets. `sender` is BROKER, STREAM or LINK."""
        if isinstance(message, wire.Result):  # the two most frequent: compiled, isinstance is faster than a match
            self.outgoing.on_result(message)
            return
        if isinstance(message, wire.Call):
            self.incoming.on_call(message, message.function_id in self.offers.wanted, now)
            return
        match message:
            case wire.Failure():
                self.outgoing.on_failure(message)
            case wire.Deltas() | wire.Beacon():
                self._on_stream(message, now)
            case wire.Snapshot() | wire.Replay() | wire.Invite():
                self._on_part(sender, message, now)
            case wire.Cancel():
                self.incoming.on_cancel(message.number)
            case wire.Ack():
                if not self._session.on_ack(message) and self.offers.on_ack(message):
                    self._check_level()
            case wire.Refuse():
                self._on_refuse(message, now)
            case wire.Welcome():
                self._session.on_welcome(message, now)
            case wire.Unknown():
                self._session.on_unknown(message, now)
            case wire.Closing():
                self._session.on_closing(message, now)
            case wire.Probe():
                pass
            case (
                wire.Hello() | wire.Register() | wire.Unregister() | wire.Heartbeat() | wire.Sync() | wire.Received()
                | wire.Drain() | wire.Bye()
            ):  # fmt: skip
                self._session.on_own_words(now)
            case wire.Bundle():  # a bundle inside a bundle: the Link opens the outer one
                self.counters["unexpected"] += 1
            case _:
                self._on_link(message, now)

    def tick(self, now: float) -> None:
        """Does what is due: heartbeats, deadlines, phases that last too long."""
        self.outgoing.tick(now, self.membership.trouble)
        if self.membership.phase == OPEN:
            self._tick_open(now)
        elif self.membership.overdue(now):
            self._session.on_overdue(now)

    def next_deadline(self) -> float | None:
        """When `tick` is next due."""
        due = min(self.membership.due, self.outgoing.due, self.following.due)
        return None if due == math.inf else due

    def take_outbox(self) -> Outbox:
        """(BROKER, message) and (LINK, order), to send and carry out in this order."""
        outbox = self.outbox[:]
        self.outbox.clear()
        return outbox

    def take_events(self) -> Events:
        """What the facade must know or do, in order."""
        told = self.events[:]
        self.events.clear()
        return told

    @property
    def is_level(self) -> bool:
        """In a session, and the replica waits for no answer: what comes by the control socket is about calls."""
        return self.membership.phase == OPEN and self.following.awaited is None

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
        self._session.drain()

    def distrust(self, now: float) -> None:
        """The shell was interrupted, and may have lost messages or events: the session counts as lost."""
        if self.membership.linked and self.membership.phase != LEFT:
            self.membership.forget_failures()  # nothing is wrong with the broker
            self._session.lose("a signal handler's exception interrupted it; joining anew", now)

    def leave(self) -> None:
        """Says Bye: the functions go at once; results of running calls are still sent until `end`."""
        if self.membership.phase in (LEFT, OVER):
            return
        if self.membership.linked:
            self.outbox.append((BROKER, wire.Bye(self._new_number())))
        self._session.pause()
        self.outgoing.close()
        self.membership.leave()

    @property
    def has_left(self) -> bool:
        """After `leave`: True if the replica shows that the broker took the Bye, or if nothing will ever show it."""
        welcome = self.membership.welcome
        return self.membership.phase != LEFT or welcome is None or welcome.worker_id not in self.replica.workers

    def end(self, text: str = "closed") -> None:
        """Ends for good: open calls fail and the sockets are closed."""
        self._session.end(text)

    # -- branches ------------------------------------------------------------------------------------------------------

    def _on_refuse(self, refuse: wire.Refuse, now: float) -> None:
        if refuse.kind == wire.KIND[wire.Hello]:
            self._session.on_refuse(refuse, now)
        elif self.offers.on_refuse(refuse):
            self._check_level()

    def _on_link(self, happening: Happening, now: float) -> None:
        match happening:
            case events.Connected():
                self._session.on_connected(now)
            case events.Disconnected():
                self._session.on_disconnected(now)
            case events.StreamDisconnected():
                self._session.on_stream_disconnected(now)
            case events.Failed() | events.StreamFailed():
                self._session.on_failed(happening, now)
            case events.Reached():
                self.membership.reached()
            case events.Unsent():
                if isinstance(happening.message, wire.Call):
                    self.outgoing.unsent(happening.message, now)
            case events.StreamConnected():
                pass
            case _:
                assert_never(happening)

    # -- the stream ----------------------------------------------------------------------------------------------------

    def _on_stream(self, message: wire.Deltas | wire.Beacon, now: float) -> None:
        self.membership.heard(now)
        if isinstance(message, wire.Deltas):
            self._apply(lambda: self.replica.on_deltas(message), now)
        else:
            self._apply(lambda: self.replica.on_beacon(message), now)
            self._beat(self.membership.pop_heartbeat(now, with_beacon=True))

    def _on_part(self, sender: str, part: wire.Snapshot | wire.Replay | wire.Invite, now: float) -> None:
        membership = self.membership
        if sender == STREAM:
            membership.heard(now)
        elif membership.phase == OPENING and part.number == membership.hello_number:
            self._session.opened(now)
        if isinstance(part, wire.Invite):
            self.following.on_invite(part, membership.token, now)
        else:
            self._apply(lambda: self.following.on_part(sender, part, now), now)

    def _apply(self, feed: Callable[[], list[Change]], now: float) -> None:
        """Feeds the replica. Anything it can't read is dropped, and shows up as a gap or as a broken answer."""
        before = self.replica.position
        try:
            changes = feed()
        except errors.ProtocolError:
            self.counters["malformed"] += 1
        else:
            if changes or self.replica.position != before:
                self.events.append(Changes(changes))
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
            self._session.say_hello(now)
            return
        self.following.sync(now)
        self._check_level()

    def _check_level(self) -> None:
        if self.offers.waiting:
            self.offers.settle(self.replica.position, self.following.level)
        is_connected = self.membership.state == CONNECTED
        if not is_connected and self.following.level and self.offers.is_settled(self.replica.position):
            self.membership.level()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _tick_open(self, now: float) -> None:
        self._beat(self.membership.pop_heartbeat(now))
        if self.membership.silent(now):
            self.counters["streams_silent"] += 1
            self._session.say_hello(now)
        else:
            self._follow(now)

    def _beat(self, lag_ms: int | None) -> None:
        if lag_ms is not None:
            epoch, seq = self.replica.position
            self.outbox.append((BROKER, wire.Heartbeat(self._new_number(), epoch, seq, len(self.incoming), lag_ms)))
