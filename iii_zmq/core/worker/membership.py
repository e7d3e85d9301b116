"""From no connection to an open session, and back again: which phase we are in, and how long it may last.

    idle --connect--> pausing --(backoff over)--> connecting --Connected--> greeting --Welcome--> opening
    opening --(first part of the answer: our presence was heard)--> open
    open --(stream silent or broken, Unknown, foreign epoch)--> greeting, on the same connection, with the token
    any --(connection gone, handshake failed, phase too long)--> pausing, for fresh sockets
    connecting --(no handshake for long)--> connecting, with fresh sockets at once: whoever waits for a broker must
                                            always have a socket that tries, or it is late when the broker comes
    any --> left (Bye was said) --> over

Invariant: only in `open` does the broker take registrations and calls. The states that users see are fewer: `state`.
What a session means for calls, functions and the replica is decided by WorkerCore, not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ... import wire
from ..counters import Counters
from .events import (
    CLOSED,
    CONNECTED,
    CONNECTING,
    LINK,
    NEW,
    STALE,
    Connect,
    Disconnect,
    DropControl,
    Events,
    OpenStream,
    Outbox,
    StateChanged,
    Troubled,
)

IDLE, PAUSING, AWAITING_CONNECTION = "idle", "pausing", "connecting"
GREETING, OPENING, OPEN, LEFT, OVER = "greeting", "opening", "open", "left", "over"
_WAY = {GREETING: 1, OPENING: 2, OPEN: 3}

HEARTBEAT_MS = 500  # until a Welcome tells the broker's
TTL_MS = 2000
SILENT_AFTER = 3  # heartbeats without a word on the stream
# Heartbeats leave with the beacon, which wakes an idle worker anyway: with a timer of their own it would wake twice. In
# heartbeats: how much longer than one they wait for a beacon, and how much earlier than then a beacon may be.
BEACON_GRACE, BEACON_EARLY = 0.2, 0.7
ANSWER_S = 5.0  # for a Welcome, and from it to the first part: as long as the broker waits for a presence
ANSWER_BEATS = 4  # the same, where the heartbeat is long
FRESH_S = 5.0  # without a handshake: libzmq stops retrying after some refusals, without a word
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0  # after lost sessions: many workers may come back to a broker that is in trouble;
BACKOFF_TTL = 0.5  # and of the TTL, after which a broker that heard our presence all the while drops our rows
STRANGER_BACKOFF_MAX_S = 0.5  # after failed handshakes: where a stranger is now, the broker may be in a moment
STREAM_AGAIN_S = 0.2  # after the stream's first failure, then twice as long each time
TOLD_MAX = 16  # reasons for having no session that are told, until there is one: an outage is not to fill the log
BACKOFF_FORGOTTEN_S = 0.1  # a session that lasted this long starts the backoff anew: a link that flaps costs no time


@dataclass(slots=True, frozen=True)
class Profile:
    """Who this worker is, and where its broker: fixed for its life. `metadata` is a packed map."""

    name: str
    host: str
    pid: int
    url: str
    stream_url: str | None = None  # instead of what Welcome says
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
        self.furthest = 0  # how far along the way to a session it has ever been: never less again
        self.state = NEW
        self.welcome: wire.Welcome | None = None
        self.hello_number = 0
        self.same_connection = False  # the Hello under way renews a session on the connection that it has
        self.trouble = ""  # the latest reason why there is no session, for messages
        self._told: set[str] = set()  # at most TOLD_MAX troubles
        self._stream_trouble = ""
        self._met_stranger = False  # the latest attempt ended in its handshake
        self._attempts = 0
        self._phase_due = math.inf
        self._opened_at = math.inf  # of the session since the latest `reconnect`
        self._heartbeat_at = math.inf  # when the next one leaves, beacon or not
        self._heard_at = 0.0  # the latest word on the stream
        self._silence_s = math.inf  # without one, and the stream must be broken

    # -- what others ask -----------------------------------------------------------------------------------------------

    @property
    def heartbeat_s(self) -> float:
        return (self.welcome.heartbeat_ms if self.welcome is not None else HEARTBEAT_MS) / 1000

    @property
    def token(self) -> bytes:
        return self.welcome.token if self.welcome is not None else b""

    @property
    def linked(self) -> bool:
        """The control connection stands: what is sent leaves."""
        return self.phase in (GREETING, OPENING, OPEN, LEFT)

    @property
    def due(self) -> float:
        if self.phase != OPEN:
            return self._phase_due
        return min(self._heartbeat_at, self._heard_at + self._silence_s)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Fresh sockets at once."""
        self._enter(AWAITING_CONNECTION, now + FRESH_S)
        self._counters["connects"] += 1
        self._say_state(STALE if self.state == STALE else CONNECTING, self.trouble)
        heartbeat_ms, ttl_ms = self._zmtp_times()
        self._outbox.append((LINK, Connect(self._profile.url, heartbeat_ms, ttl_ms)))

    def reconnect(self, now: float, trouble: str, state: str = CONNECTING, *, drop_stream: bool = False) -> None:
        """No control socket now, a fresh one after a while that grows with the failures in a row."""
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
        self._outbox.append((LINK, Disconnect() if drop_stream else DropControl()))
        self._enter(PAUSING, now + wait)

    def forget_failures(self) -> None:
        """The next attempt begins at once."""
        self._attempts = 0

    def greet(self, number: int, now: float) -> None:
        """A Hello with this number goes out now, over the connection that stands."""
        self.same_connection = self.phase != AWAITING_CONNECTION
        if not self.same_connection:
            self.trouble = "somebody is there, but does not answer as a broker does"
        self.hello_number = number
        self._enter(GREETING, now + self._answer_s())

    def welcomed(self, welcome: wire.Welcome, now: float) -> None:
        """The session is there; the stream is opened, and the broker is to hear our presence on it."""
        self.welcome = welcome
        url = resolve_stream_url(self._profile.url, self._profile.stream_url or welcome.stream_url)
        topics = (wire.STREAM_TOPIC, wire.presence_topic(welcome.token))
        self.trouble = self._stream_trouble = f"the broker answers, but its stream at {url} does not"
        self._outbox.append((LINK, OpenStream(url, topics, *self._zmtp_times())))
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
        """Somebody took the connection: that is all there is to tell, unless the attempt before told more."""
        if self.phase == AWAITING_CONNECTION and not self._met_stranger:
            self.trouble = "somebody takes connections there, but does not greet as a broker does"

    def note(self, trouble: str) -> None:
        """Why there is no session. Each reason is told once, until there is one."""
        self.trouble = trouble
        if trouble not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(trouble)
            self._events.append(Troubled(trouble))

    def stream_failed(self, text: str, failures: int, now: float) -> None:
        """The stream failed before our presence was heard, `failures` times before: libzmq may have given up on it."""
        if text:
            self.trouble = f"{self._stream_trouble}: {text}"
        self._phase_due = min(self._phase_due, now + STREAM_AGAIN_S * 2**failures)

    def heard(self, now: float) -> None:
        """A word on the stream."""
        self._heard_at = now

    def closing(self, now: float) -> None:
        """The broker ends on purpose: answers to open calls still come, then the connection goes."""
        self.trouble = "the broker is closing"
        self._say_state(CONNECTING, self.trouble)
        self._enter(GREETING, now + self._answer_s())  # no Hello: nobody would answer it

    def leave(self) -> None:
        """Bye is said."""
        self._enter(LEFT, math.inf)

    def end(self, text: str) -> None:
        """No further session."""
        self._enter(OVER, math.inf)
        self._outbox.append((LINK, Disconnect()))
        self._say_state(CLOSED, text)

    # -- time ----------------------------------------------------------------------------------------------------------

    def pop_heartbeat(self, now: float, *, with_beacon: bool = False) -> int | None:
        """The loop's worst lag in milliseconds if a heartbeat is to leave now, which it then counts as sent."""
        early_s = BEACON_EARLY * self.heartbeat_s if with_beacon else 0.0
        if self.phase != OPEN or now < self._heartbeat_at - early_s:
            return None
        lag_s = max(0.0, now - self._heartbeat_at)
        self._heartbeat_at = now + (1.0 + BEACON_GRACE) * self.heartbeat_s
        if lag_s > self.heartbeat_s:  # we slept: what the stream had to say may still lie unread
            self._heard_at = max(self._heard_at, now - self.heartbeat_s)
        return int(lag_s * 1000)

    def silent(self, now: float) -> bool:
        """The stream has been quiet for so long that it must be broken."""
        return self.phase == OPEN and now >= self._heard_at + self._silence_s

    def overdue(self, now: float) -> bool:
        """The phase lasts too long."""
        return now >= self._phase_due

    # -- private -------------------------------------------------------------------------------------------------------

    def _enter(self, phase: str, due: float) -> None:
        self.phase = phase
        self._phase_due = due
        self.furthest = max(self.furthest, _WAY.get(phase, 0))

    def _say_state(self, state: str, text: str) -> None:
        if state != self.state:
            self.state = state
            self._events.append(StateChanged(state, text))

    def _answer_s(self) -> float:
        return max(ANSWER_S, ANSWER_BEATS * self.heartbeat_s)

    def _zmtp_times(self) -> tuple[int, int]:
        if self.welcome is None:
            return HEARTBEAT_MS, TTL_MS
        return self.welcome.heartbeat_ms, self.welcome.ttl_ms


def resolve_stream_url(url: str, stream_url: str) -> str:
    """`*` or 0.0.0.0 as the stream's host means the host that the worker used for the broker."""
    for wildcard in ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:"):
        if stream_url.startswith(wildcard) and url.startswith("tcp://"):
            host = url[len("tcp://") :].rpartition(":")[0]
            return f"tcp://{host}:{stream_url[len(wildcard) :]}"
    return stream_url
