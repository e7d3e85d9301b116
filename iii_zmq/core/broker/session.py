"""What the broker knows of one connection from its Hello on, the events its shell tells, and the words for peers.

A session is *joined* once its presence was heard, *routable* while it may be handed calls, *suspect* when its presence
was lost but its connection still takes probes, *held* when it was lost while the broker itself slept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ... import wire
from .routes import IN_FLIGHT_BYTES_MAX

if TYPE_CHECKING:
    from .answers import Answer
    from .routes import Route

Peer = bytes
"""A ROUTER's routing id, or one of the stream's topics."""

EVERYONE: Final[Peer] = wire.STREAM_TOPIC
BROADCAST: Final[Peer] = wire.SNAPSHOT_TOPIC

Outbox = list[tuple[Peer, wire.Message]]


@dataclass(slots=True)
class Subscribed:
    """The stream's socket heard a subscription. `sender` is EVERYONE."""

    topic: bytes


@dataclass(slots=True)
class Unsubscribed:
    """A topic's last subscription is gone: told only after the ROUTER was read empty."""

    topic: bytes


@dataclass(slots=True)
class Undelivered:
    """This message could not be sent: the peer is gone (told after the ROUTER was read empty) or its queue is full."""

    message: wire.Message
    overflow: bool = False


@dataclass(slots=True)
class Malformed:
    """The peer sent something that is no message. `heading` is what its prefix says, if it has one."""

    text: str
    heading: wire.Heading | None = None


Event = Subscribed | Unsubscribed | Undelivered | Malformed
EVENTS = (Subscribed, Unsubscribed, Undelivered, Malformed)  # a tuple: isinstance takes a union ten times as long


@dataclass(slots=True)
class Settings:
    """What `serve` was told. Times in seconds."""

    stream_url: str = "tcp://*:5571"
    heartbeat_s: float = 0.5
    ttl_s: float = 2.0
    version: str = "0"
    sessions_max: int = 2**31  # what the system has descriptors for
    gather_s: float = 0.0  # deltas that come sooner than this after the last ones were published wait for one another
    wake_s: float = 0.0  # what a publication costs one worker: under a flood they come so seldom that all can follow


@dataclass(slots=True, eq=False)
class Session:
    """One worker or observer, from its Hello to its end."""

    peer: Peer
    worker_id: str
    hello: wire.Hello
    token: bytes
    heard_at: float
    presence_by: float  # its presence is to be heard by then
    process: tuple[str, int] = ("", 0)  # its worker's (host, pid); workers of one process mostly end together
    token_before: bytes = b""  # what its worker may still know it by, until it shows that it heard of `token`
    joined: bool = False
    stalled: bool = False
    draining: bool = False
    drain_number: int | None = None  # of the Drain that still waits for its Ack
    leaving: bool = False  # said Bye: no row any more, only results are still taken
    reachable: bool = True  # no send has failed yet
    overflowed: bool = False  # a message to it was dropped: it can't go on as if nothing had happened
    suspect_since: float | None = None  # presence lost at this moment
    probe_wait_s: float = 0.0
    probe_at: float = math.inf  # while it is suspect, or has rows and no presence yet
    held_until: float | None = None
    load: int = 0
    lag_ms: int = 0
    in_flight: dict[int, Route] = field(default_factory=dict)  # route number -> call it was handed
    in_flight_bytes: int = 0  # the sizes of the routes in `in_flight`
    open: dict[int, Route] = field(default_factory=dict)  # its own call number -> call it made
    waiting: dict[str, None] = field(default_factory=dict)  # functions it offers with calls in their queue
    unread: dict[int, int] = field(default_factory=dict)  # number -> bytes of large results it has not acknowledged
    unread_bytes: int = 0  # their sum
    answer: Answer | None = None
    ended: bool = False

    @property
    def routable(self) -> bool:
        """May be handed calls now (its credit aside)."""
        return self.joined and self.reachable and self.suspect_since is None and not self.leaving

    @property
    def has_room(self) -> bool:
        """Has less in flight than it may, in number and in bytes: so any payload fits where nothing is in flight."""
        return len(self.in_flight) < self.hello.credit and self.in_flight_bytes < IN_FLIGHT_BYTES_MAX

    @property
    def presence(self) -> bytes:
        return wire.presence_topic(self.token)

    @property
    def state(self) -> str:
        """The row's state; draining is what matters most to others."""
        if self.draining:
            return wire.DRAINING
        return wire.STALLED if self.stalled else wire.READY


NewToken = Callable[[], bytes]
NewId = Callable[[], str]
