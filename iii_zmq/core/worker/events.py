"""Messages between a WorkerCore and its shell: names, orders and events. Decides nothing.

    Link -> core    `receive(BROKER | STREAM, wire message)`, `receive(LINK, one of Happening)`
    core -> Link    `take_outbox()`: `(BROKER, wire message)`, `(LINK, one of Order)`
    core -> facade  `take_events()`: each is one of Event

A simulator can play the Link: it carries out orders and reports happenings without a socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ... import wire
from ...errors import CallFailed
from .changes import Change

BROKER: Final = "broker"  # the control and call socket
STREAM: Final = "stream"  # the registry stream
LINK: Final = "link"  # the sockets themselves

# -- Link -> core ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reached:
    """A program accepted the control socket's connection; it may or may not be a broker."""


@dataclass(slots=True)
class Connected:
    """The control socket's handshake with the broker is complete: from now on messages leave."""


@dataclass(slots=True)
class Disconnected:
    """The control socket's connection is lost; everything that arrived over it was delivered before this.

    Before Connected it means that the handshake failed. libzmq does not say whether it will try again.
    """


@dataclass(slots=True)
class StreamConnected:
    """The stream socket's handshake is complete."""


@dataclass(slots=True)
class StreamDisconnected:
    """The stream socket's connection is lost, so deltas may be lost; or its handshake failed, as above."""


@dataclass(slots=True)
class Failed:
    """A handshake of the control socket failed, or a socket could not be made. libzmq may never try again."""

    text: str


@dataclass(slots=True)
class StreamFailed:
    """The same for the stream socket."""

    text: str


@dataclass(slots=True)
class Unsent:
    """The control socket did not take this message because there is no connection. It never left."""

    message: wire.Message


Happening = Reached | Connected | Disconnected | StreamConnected | StreamDisconnected | Failed | StreamFailed | Unsent

# -- core -> Link ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Connect:
    """Close an old control socket and make a fresh one. The times are for ZMTP heartbeats."""

    url: str
    heartbeat_ms: int
    ttl_ms: int


@dataclass(slots=True)
class OpenStream:
    """Close an old stream socket, make a fresh one, and subscribe to `topics` in this order."""

    url: str
    topics: tuple[bytes, ...]
    heartbeat_ms: int
    ttl_ms: int


@dataclass(slots=True)
class Subscribe:
    topic: bytes


@dataclass(slots=True)
class Unsubscribe:
    topic: bytes


@dataclass(slots=True)
class DropControl:
    """Close the control socket only: while the stream is up, its presence tells the broker that we live."""


@dataclass(slots=True)
class Disconnect:
    """Close both sockets; sent messages may linger for a moment."""


Order = Connect | OpenStream | Subscribe | Unsubscribe | DropControl | Disconnect

Outbox = list[tuple[str, wire.Message | Order]]

# -- core -> facade ----------------------------------------------------------------------------------------------------

CONNECTING, CONNECTED, STALE, CLOSED = "connecting", "connected", "stale", "closed"
NEW = "new"  # before start; never reported as a change of state


@dataclass(slots=True)
class StateChanged:
    """The worker's state changed; `text` says why, for logs."""

    state: str
    text: str


@dataclass(slots=True)
class Troubled:
    """There is a new reason why there is no session; for logs."""

    text: str


@dataclass(slots=True)
class Changes:
    """The replica moved on; `changes` are in order, and empty if nobody listens."""

    changes: list[Change]


# Every call makes one of these at the caller and one at the provider. An `__init__` that is written out gets compiled.


@dataclass(slots=True, eq=False, init=False)
class CallEnded:
    """One of our calls has ended: with the packed result, or with the failure to raise."""

    number: int
    outcome: wire.Payload | CallFailed

    def __init__(self, number: int, outcome: wire.Payload | CallFailed) -> None:
        self.number = number
        self.outcome = outcome


@dataclass(slots=True, eq=False, init=False)
class RunCall:
    """A call to run; hand back this same object with its outcome.

    `deadline` is on the core's clock. `epoch` is the epoch of the broker that handed it over: a fence is valid only
    within that epoch. `cancelled` becomes True when nobody waits for the outcome any more.
    """

    number: int
    function_id: str
    caller: str
    payload: wire.Payload
    deadline: float
    epoch: str
    fence: int
    cancelled: bool

    def __init__(self, call: wire.Call, deadline: float, epoch: str) -> None:
        self.number = call.number
        self.function_id = call.function_id
        self.caller = call.caller
        self.payload = call.payload
        self.deadline = deadline
        self.epoch = epoch
        self.fence = call.fence
        self.cancelled = False


@dataclass(slots=True)
class CancelCall:
    """Nobody waits for this call any more; it must still be handed back."""

    run: RunCall


@dataclass(slots=True)
class Settled:
    """Every function of this ticket is acknowledged and visible in the replica, or refused as (id, code, text)."""

    ticket: int
    refusals: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class NotOffered:
    """After a rejoin the broker refused functions that it had accepted before: (id, code, text)."""

    refusals: list[tuple[str, str, str]]


@dataclass(slots=True)
class Drained:
    """The broker hands no more calls to this worker and none is left, or there is no broker to ask."""


@dataclass(slots=True)
class JoinRefused:
    """The broker refused this worker for good."""

    code: str
    text: str


Event = (
    StateChanged | Troubled | Changes | CallEnded | RunCall | CancelCall | Settled | NotOffered | Drained | JoinRefused
)
Events = list[Event]
