"""The session with the broker: how it begins, is renewed, lost and ended, and what that means for all that it carries.

    say_hello --Welcome--> on_welcome --(first part of the answer)--> opened: registrations and calls leave
    say_hello: a renewal, on the same connection        lose: the next Hello needs a fresh connection

Invariant: a session takes everything it carried with it. Before anything of the next session is applied, calls that
were sent fail, calls that run here are orphaned, and registrations are compared again. This module watches no time:
membership knows how long each phase may last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ... import errors, wire
from ..counters import Counters
from .events import BROKER, CONNECTED, CONNECTING, STALE, Drained, Events, Failed, JoinRefused, Outbox, StreamFailed
from .incoming import Incoming
from .membership import AWAITING_CONNECTION, GREETING, LEFT, OPEN, OPENING, OVER, PAUSING, Membership, Profile
from .offers import Offers
from .outgoing import Outgoing
from .sync import Following

OPENINGS_MAX = 3  # Hellos in a row without a heard presence, before the control connection is replaced, too


@dataclass(slots=True, eq=False)
class Session:
    """One session after another, and what they carry."""

    _profile: Profile
    _outbox: Outbox
    _events: Events
    _counters: Counters
    _new_number: Callable[[], int]
    _membership: Membership
    _outgoing: Outgoing
    _incoming: Incoming
    _offers: Offers
    _following: Following
    _drain_number: int | None = None
    _openings: int = 0

    def say_hello(self, now: float) -> None:
        """Says Hello on the current connection: for a new session, or for the old one with a new stream."""
        profile, token, number = self._profile, self._membership.token, self._new_number()
        self.pause()
        functions = self._offers.digest() if token else b""
        hello = wire.Hello(
            number, [wire.BUNDLES], profile.name, profile.host, profile.pid, profile.metadata, profile.credit,
            profile.observer, *self._following.replica.sync_position(), token, functions,
        )  # fmt: skip
        self._outbox.append((BROKER, hello))
        self._following.expect(number)
        self._membership.greet(number, now)

    def opened(self, now: float) -> None:
        """The broker heard our presence: registrations and calls may be sent."""
        welcome = self._membership.welcome
        assert welcome is not None
        self._openings = 0
        self._membership.opened(now)
        self._following.begin(now)
        self._offers.opened(welcome.kept, welcome.batch_max)
        self._outgoing.opened(welcome.worker_id, welcome.open_calls_max, now)

    def pause(self) -> None:
        """The broker takes nothing from now on, until the next session is open."""
        self._outgoing.paused()
        self._offers.paused()
        self._following.pause()
        if self._drain_number is not None:
            self._drain_number = None
            self._events.append(Drained())

    def lose(self, trouble: str, now: float, state: str = CONNECTING, *, drop_stream: bool = False) -> None:
        """Replaces a control connection that is lost or useless by a fresh one.

        The stream stays until a Welcome leads to a new one. While the broker hears it, it knows that we live and keeps
        our rows; when the stream was closed too, a cut control connection made the worker leave and join.
        """
        self._purge_outbox(now)
        self.pause()
        self._outgoing.lose_sent(wire.NUMBER_MAX, f"{trouble} while the call was open")
        self._incoming.orphan()
        self._membership.reconnect(now, trouble, state, drop_stream=drop_stream)

    def _purge_outbox(self, now: float) -> None:
        """Drops messages that the socket has not taken: their session is gone. Calls may wait for the next one."""
        unsent = [message for to, message in self._outbox if to == BROKER]
        self._outbox[:] = [item for item in self._outbox if item[0] != BROKER]
        for message in unsent:
            if isinstance(message, wire.Call):
                self._outgoing.unsent(message, now)

    def drain(self) -> None:
        """Asks the broker for no more calls. Drained comes with its Ack, or when the session is gone."""
        if self._membership.phase == OPEN:
            self._drain_number = self._new_number()
            self._outbox.append((BROKER, wire.Drain(self._drain_number)))
        else:
            self._events.append(Drained())

    def end(self, text: str) -> None:
        """Ends the last session, and everything with it."""
        if self._membership.phase != OVER:
            self.pause()
            self._outgoing.close()
            self._outgoing.lose_all(f"{text} while the call was open")
            self._incoming.orphan()
            self._membership.end(text)

    # -- from the broker -----------------------------------------------------------------------------------------------

    def on_welcome(self, welcome: wire.Welcome, now: float) -> None:
        membership = self._membership
        if membership.phase != GREETING or welcome.number != membership.hello_number:
            self._counters["unexpected"] += 1
            return
        if not (welcome.kept and membership.same_connection):
            self._outgoing.lose_sent(membership.hello_number, "the session ended while the call was open")
            self._incoming.orphan()
        self._incoming.epoch = welcome.epoch
        self._counters["sessions"] += 1
        membership.welcomed(welcome, now)

    def on_refuse(self, refuse: wire.Refuse, now: float) -> None:
        """Takes the Refuse of a Hello."""
        if self._membership.phase != GREETING or refuse.number != self._membership.hello_number:
            self._counters["unexpected"] += 1
        elif refuse.code == errors.CLOSING or (refuse.code == errors.LIMIT and self._membership.token):
            self.lose(refuse.text, now, drop_stream=True)
        else:
            text = refuse.text
            if refuse.code == errors.VERSION:
                text += f"; this worker speaks version {wire.VERSION}"
            self._events.append(JoinRefused(refuse.code, text))
            self.end(f"the broker refused this worker: {text}")

    def on_ack(self, ack: wire.Ack) -> bool:
        """Takes an Ack; False if it does not answer the Drain."""
        if ack.number != self._drain_number:
            return False
        self._drain_number = None
        self._events.append(Drained())
        return True

    def on_closing(self, closing: wire.Closing, now: float) -> None:
        membership = self._membership
        membership.heard(now)
        if membership.phase == OPEN and membership.welcome is not None and closing.epoch == membership.welcome.epoch:
            self.pause()
            membership.closing(now)

    def on_unknown(self, unknown: wire.Unknown, now: float) -> None:
        """The broker has no session for us: it took us for dead, or it is a new broker."""
        if unknown.kind == wire.KIND[wire.Call]:
            self._outgoing.on_unknown(unknown.number)
        if self._membership.phase in (OPENING, OPEN):
            self._counters["sessions_unknown"] += 1
            self.say_hello(now)

    def on_own_words(self, now: float) -> None:
        """Handles a message that only workers send. TCP can connect a local port without a listener to itself, and that
        connection keeps the port in use: a worker that looks for a broker on its own machine tries often enough to hit
        its own port."""
        self._counters["unexpected"] += 1
        if self._membership.phase == GREETING and not self._membership.same_connection:
            self.lose("the program at that address echoes what it receives: it is not a broker", now)

    # -- from the link -------------------------------------------------------------------------------------------------

    def on_connected(self, now: float) -> None:
        if self._membership.phase == AWAITING_CONNECTION:
            self.say_hello(now)

    def on_disconnected(self, now: float) -> None:
        phase = self._membership.phase
        if phase == LEFT:
            self.end("closed")
        elif phase == AWAITING_CONNECTION:
            self._counters["handshakes_failed"] += 1
            self.lose("the program at that address is not a broker: the handshake failed", now)
        elif phase in (GREETING, OPENING, OPEN):
            self.lose("the connection to the broker was lost", now)

    def on_stream_disconnected(self, now: float) -> None:
        if self._membership.phase == OPEN:
            self._counters["streams_lost"] += 1
            self.say_hello(now)
        elif self._membership.phase == OPENING:
            self._counters["streams_failed"] += 1
            self._membership.stream_failed("", self._openings, now)

    def on_failed(self, failure: Failed | StreamFailed, now: float) -> None:
        """A handshake failed, or sockets could not be made. The stream of an ended session does not matter."""
        phase = self._membership.phase
        if phase == AWAITING_CONNECTION and isinstance(failure, Failed):
            self._counters["handshakes_failed"] += 1
            self.lose(failure.text, now)
        elif phase == OPENING:
            self._membership.stream_failed(failure.text, self._openings, now)

    def on_overdue(self, now: float) -> None:
        """The phase has lasted too long."""
        membership = self._membership
        if membership.phase in (PAUSING, AWAITING_CONNECTION):
            membership.connect(now)
        elif membership.phase == OPENING and self._openings < OPENINGS_MAX:
            self._openings += 1
            membership.note(membership.trouble)
            self.say_hello(now)
        else:
            self._openings = 0
            known = membership.state in (CONNECTED, STALE)
            text = membership.trouble or "the broker does not answer"
            self.lose(text, now, STALE if known else CONNECTING, drop_stream=True)
