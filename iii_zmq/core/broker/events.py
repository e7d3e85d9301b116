"""Messages between a BrokerCore and its shell.

Messages go both ways under an address. A Peer is what the transport knows of the sender at that address. It is made for
a connection without a session and stays with the session that its Hello opens, so a message within a session costs one
look-up by address and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ... import wire

Address = bytes
"""A ROUTER's routing id, or one of the stream's topics."""

EVERYONE: Final[Address] = wire.STREAM_TOPIC
BROADCAST: Final[Address] = wire.SNAPSHOT_TOPIC

Outbox = list[tuple[Address, wire.Message]]


@dataclass(slots=True, frozen=True)
class Peer:
    """What the transport knows of a sender."""

    address: Address


@dataclass(slots=True)
class Subscribed:
    """The stream's socket heard a subscription. `sender` is EVERYONE."""

    topic: bytes


@dataclass(slots=True)
class Unsubscribed:
    """A topic's last subscription is gone; the shell reports it only after it has read the ROUTER empty."""

    topic: bytes


@dataclass(slots=True)
class Undelivered:
    """This message could not be sent: the peer is gone (reported once the ROUTER is empty) or its queue is full."""

    message: wire.Message
    overflow: bool = False


@dataclass(slots=True)
class Malformed:
    """The peer sent bytes that are not a message. `heading` is the content of their prefix, if they have one."""

    text: str
    heading: wire.Heading | None = None


Event = Subscribed | Unsubscribed | Undelivered | Malformed
EVENTS = (Subscribed, Unsubscribed, Undelivered, Malformed)  # a tuple: isinstance takes a union ten times as long


@dataclass(slots=True)
class Settings:
    """The settings of `serve`. Times in seconds."""

    stream_url: str = "tcp://*:5571"
    heartbeat_s: float = 0.5
    ttl_s: float = 2.0
    version: str = "0"
    sessions_max: int = 2**31  # as many as the system has descriptors for
    gather_s: float = 0.0  # deltas that come sooner than this after the last publication wait for each other
    wake_s: float = 0.0  # a publication's cost for one worker: a flood is slowed down so that all can follow


NewToken = Callable[[], bytes]
NewId = Callable[[], str]
