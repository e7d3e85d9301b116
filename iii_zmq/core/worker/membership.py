"""The phases of a connection, from none to an open session and back, and how long each may last.

    idle --connect--> pausing --(backoff over)--> connecting --Connected--> greeting --Welcome--> opening
    opening --(first part of the answer: our presence was heard)--> open
    open --(stream silent or broken, Unknown, foreign epoch)--> greeting, on the same connection, with the token
    any --(connection lost, handshake failed, phase too long)--> pausing, then fresh sockets
    connecting --(no handshake for a long time)--> connecting, with fresh sockets at once: a worker that waits for a
                                            broker always has a socket that tries, so that it notices the broker soon
    any --> left (Bye was said) --> over

Invariant: the broker takes registrations and calls only in `open`. Users see fewer states than these: `state`.
Session, not this module, decides what a session means for calls, functions and the replica.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ... import wire
from ..counters import Counters
from . import events
from .events import CLOSED, CONNECTED, CONNECTING, LINK, NEW, STALE, Events, Outbox

IDLE, PAUSING, AWAITING_CONNECTION = "idle", "pausing", "connecting"
GREETING, OPENING, OPEN, LEFT, OVER = "greeting", "opening", "open", "left", "over"
_WAY = {GREETING: 1, OPENING: 2, OPEN: 3}

HEARTBEAT_MS = 500  # until a Welcome brings the broker's
TTL_MS = 2000
SILENT_AFTER = 3  # heartbeats without a message on the stream
# A heartbeat leaves with the beacon, which wakes an idle worker anyway; a timer of its own would wake it twice. Both in
# heartbeats: how much longer than one it waits for a beacon, and how early that beacon may come.
BEACON_GRACE, BEACON_EARLY = 0.2, 0.7
ANSWER_S = 5.0  # wait for a Welcome, then for the first part: as long as the broker waits for a presence
ANSWER_BEATS = 4  # the same in heartbeats, if the heartbeat is long
FRESH_S = 5.0  # wait for a handshake: after some refusals libzmq stops retrying and does not say so
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0  # after lost sessions: many workers may return to a broker that is in trouble
BACKOFF_TTL = 0.5  # and this part of the TTL: after one TTL the broker drops our rows, though it hears our presence
STRANGER_BACKOFF_MAX_S = 0.5  # after failed handshakes: the broker may soon be back at that address
STREAM_AGAIN_S = 0.2  # after the stream's first failure; doubles with each further one
TOLD_MAX = 16  # reported reasons for having no session, until there is one: an outage must not fill the log
BACKOFF_FORGOTTEN_S = 0.1  # a session that lasted this long resets the backoff: a flapping link costs no time


@dataclass(slots=True, frozen=True)
class Profile:
    """The worker's identity and the broker's address, fixed for its lifetime. `metadata` is a packed map."""

    name: str
    host: str
    pid: int
    url: str
    stream_url: str | None = None  # overrides the one in Welcome
    metadata: bytes = b"\x80"
    credit: int = 128
    observer: bool = False


class Membership:
    """The phases of one worker's connection, one session after another."""

    def __init__(
        self, profile: Profile, outbox: Outbox, events: Events, counters: Counters, random: Callable[[], float]
    ) -> None:
        self._profile = profile
        self._outbox = outbox
        self._events = events
        self._counters = counters
        self._random = random
        self.phase = IDLE
        self.furthest = 0  # the furthest phase so far on the way to a session: never decreases
        self.state = NEW
        self.welcome: wire.Welcome | None = None
        self.hello_number = 0
        self.same_connection = False  # the current Hello renews a session on its own connection
        self.trouble = ""  # the latest reason why there is no session, for messages
        self._told: set[str] = set()  # at most TOLD_MAX troubles
        self._stream_trouble = ""
        self._met_stranger = False  # the latest attempt ended during its handshake
        self._attempts = 0
        self._phase_due = math.inf
        self._opened_at = math.inf  # of the session since the latest `reconnect`
        self._heartbeat_at = math.inf  # when the next heartbeat leaves, with or without a beacon
        self._heard_at = 0.0  # the latest message on the stream
        self._silence_s = math.inf  # a longer silence means that the stream is broken

    # -- queries -------------------------------------------------------------------------------------------------------

    @property
    def heartbeat_s(self) -> float:
        return (self.welcome.heartbeat_ms if self.welcome is not None else HEARTBEAT_MS) / 1000

    @property
    def token(self) -> bytes:
        return self.welcome.token if self.welcome is not None else b""

    @property
    def linked(self) -> bool:
        """True while the control connection is up, so that messages leave."""
        return self.phase in (GREETING, OPENING, OPEN, LEFT)

    @property
    def due(self) -> float:
        if self.phase != OPEN:
            return self._phase_due
        return min(self._heartbeat_at, self._heard_at + self._silence_s)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Connects with fresh sockets, at once."""
        self._enter(AWAITING_CONNECTION, now + FRESH_S)
        self._counters["connects"] += 1
        self._say_state(STALE if self.state == STALE else CONNECTING, self.trouble)
        self._outbox.append((LINK, events.Connect(self._profile.url, *self._zmtp_times())))

    def reconnect(self, now: float, trouble: str, state: str = CONNECTING, *, drop_stream: bool = False) -> None:
        """Drops the control socket; a fresh one comes after a wait that grows with each failure in a row."""
        self._met_stranger = self.phase == AWAITING_CONNECTION
        wait_max = STRANGER_BACKOFF_MAX_S if self._met_stranger else BACKOFF_MAX_S
        wait_max = min(wait_max, BACKOFF_TTL * self._zmtp_times()[1] / 1000)
        self.note(trouble)
        if now - self._opened_at >= BACKOFF_FORGOTTEN_S:
            self._attempts = 0
        self._opened_at = math.inf
        self._say_state(state, trouble)
        wait = 0.0
        if self._attempts:
            wait = min(wait_max, BACKOFF_FIRST_S * 2 ** min(self._attempts, 10)) * (0.5 + self._random() / 2)
        self._attempts += 1
        self._outbox.append((LINK, events.Disconnect() if drop_stream else events.DropControl()))
        self._enter(PAUSING, now + wait)

    def forget_failures(self) -> None:
        """The next attempt begins at once."""
        self._attempts = 0

    def greet(self, number: int, now: float) -> None:
        """A Hello with this number leaves now, over the current connection."""
        self.same_connection = self.phase != AWAITING_CONNECTION
        if not self.same_connection:
            self.trouble = "a program is there, but it does not answer as a broker does"
        self.hello_number = number
        self._enter(GREETING, now + self._answer_s())

    def welcomed(self, welcome: wire.Welcome, now: float) -> None:
        """The session exists. Opens the stream, on which the broker should hear our presence."""
        self.welcome = welcome
        url = resolve_stream_url(self._profile.url, self._profile.stream_url or welcome.stream_url)
        topics = (wire.STREAM_TOPIC, wire.presence_topic(welcome.token))
        self.trouble = self._stream_trouble = f"the broker answers, but its stream at {url} does not"
        self._outbox.append((LINK, events.OpenStream(url, topics, *self._zmtp_times())))
        self._enter(OPENING, now + self._answer_s())

    def opened(self, now: float) -> None:
        """The broker heard our presence."""
        self._enter(OPEN, math.inf)
        self.trouble = ""
        self._opened_at = self._heard_at = now
        self._heartbeat_at = now + (1.0 + BEACON_GRACE) * self.heartbeat_s
        self._silence_s = SILENT_AFTER * self.heartbeat_s

    def level(self) -> None:
        """The replica is complete and all registrations are answered."""
        self._told.clear()
        self._say_state(CONNECTED, "")

    def reached(self) -> None:
        """A program accepted the connection. Nothing more is known, unless the attempt before showed more."""
        if self.phase == AWAITING_CONNECTION and not self._met_stranger:
            self.trouble = "a program accepts connections there, but it does not greet as a broker does"

    def note(self, trouble: str) -> None:
        """Notes why there is no session. Each reason is reported once, until there is a session."""
        self.trouble = trouble
        if trouble not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(trouble)
            self._events.append(events.Troubled(trouble))

    def stream_failed(self, text: str, failures: int, now: float) -> None:
        """The stream failed before the broker heard our presence, after `failures` earlier ones: libzmq may give up."""
        if text:
            self.trouble = f"{self._stream_trouble}: {text}"
        self._phase_due = min(self._phase_due, now + STREAM_AGAIN_S * 2**failures)

    def heard(self, now: float) -> None:
        """A message came on the stream."""
        self._heard_at = now

    def closing(self, now: float) -> None:
        """The broker is shutting down: answers to open calls still come, then the connection ends."""
        self.trouble = "the broker is closing"
        self._say_state(CONNECTING, self.trouble)
        self._enter(GREETING, now + self._answer_s())  # without a Hello, which nobody would answer

    def leave(self) -> None:
        """The worker has said Bye."""
        self._enter(LEFT, math.inf)

    def end(self, text: str) -> None:
        """Ends for good: there is no further session."""
        self._enter(OVER, math.inf)
        self._outbox.append((LINK, events.Disconnect()))
        self._say_state(CLOSED, text)

    # -- time ----------------------------------------------------------------------------------------------------------

    def pop_heartbeat(self, now: float, *, with_beacon: bool = False) -> int | None:
        """The loop's worst lag in milliseconds if a heartbeat should leave now; it then counts as sent."""
        early_s = BEACON_EARLY * self.heartbeat_s if with_beacon else 0.0
        if self.phase != OPEN or now < self._heartbeat_at - early_s:
            return None
        lag_s = max(0.0, now - self._heartbeat_at)
        self._heartbeat_at = now + (1.0 + BEACON_GRACE) * self.heartbeat_s
        if lag_s > self.heartbeat_s:  # we slept: stream messages may still wait unread
            self._heard_at = max(self._heard_at, now - self.heartbeat_s)
        return int(lag_s * 1000)

    def silent(self, now: float) -> bool:
        """True if the stream has been quiet for so long that it must be broken."""
        return self.phase == OPEN and now >= self._heard_at + self._silence_s

    def overdue(self, now: float) -> bool:
        """True if the phase has lasted too long."""
        return now >= self._phase_due

    # -- private -------------------------------------------------------------------------------------------------------

    def _enter(self, phase: str, due: float) -> None:
        self.phase = phase
        self._phase_due = due
        self.furthest = max(self.furthest, _WAY.get(phase, 0))

    def _say_state(self, state: str, text: str) -> None:
        if state != self.state:
            self.state = state
            self._events.append(events.StateChanged(state, text))

    def _answer_s(self) -> float:
        return max(ANSWER_S, ANSWER_BEATS * self.heartbeat_s)

    def _zmtp_times(self) -> tuple[int, int]:
        welcome = self.welcome
        return (HEARTBEAT_MS, TTL_MS) if welcome is None else (welcome.heartbeat_ms, welcome.ttl_ms)


def resolve_stream_url(url: str, stream_url: str) -> str:
    """The stream's URL. Its host may be `*` or 0.0.0.0, which means the host that the worker used for the broker."""
    for wildcard in ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:"):
        if stream_url.startswith(wildcard) and url.startswith("tcp://"):
            host = url[len("tcp://") :].rpartition(":")[0]
            return f"tcp://{host}:{stream_url[len(wildcard) :]}"
    return stream_url
