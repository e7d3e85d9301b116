"""What passes between a WorkerCore and whoever drives it: names, orders and events, and nothing that decides.

    Link -> core    `receive(BROKER | STREAM, wire message)`, `receive(LINK, one of Happening)`
    core -> Link    `take_outbox()`: `(BROKER, wire message)`, `(LINK, one of Order)`
    core -> facade  `take_events()`: one of Event

A simulator plays the Link: it carries out orders and reports happenings, without a socket.
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
    """Somebody took the control socket's connection; whether it is a broker is not known yet."""


@dataclass(slots=True)
class Connected:
    """The control socket's handshake with the broker is done: what is sent now leaves."""


@dataclass(slots=True)
class Disconnected:
    """The control socket's connection is gone; everything that had arrived over it was delivered before this.

    Before Connected it means that the handshake failed. Nobody tells whether libzmq will try again.
    """


@dataclass(slots=True)
class StreamConnected:
    """The stream socket's handshake is done."""


@dataclass(slots=True)
class StreamDisconnected:
    """The stream socket's connection is gone: deltas may have been lost. Or its handshake failed, as above."""


@dataclass(slots=True)
class Failed:
    """A handshake of the control socket failed, or a socket could not be made. libzmq may never try again."""

    text: str


@dataclass(slots=True)
class StreamFailed:
    """A handshake of the stream socket failed, likewise."""

    text: str


@dataclass(slots=True)
class Unsent:
    """The control socket did not take this message: no connection. It never left."""

    message: wire.Message


Happening = Reached | Connected | Disconnected | StreamConnected | StreamDisconnected | Failed | StreamFailed | Unsent

# -- core -> Link ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Connect:
    """Make a fresh control socket, closing an old one. Times in milliseconds, for ZMTP heartbeats."""

    url: str
    heartbeat_ms: int
    ttl_ms: int


@dataclass(slots=True)
class OpenStream:
    """Make a fresh stream socket, closing an old one, and subscribe to `topics` in this order."""

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
    """Close the control socket alone: as long as the stream stands, its presence tells the broker that we live."""


@dataclass(slots=True)
class Disconnect:
    """Close both sockets; what was sent may linger a moment."""


Order = Connect | OpenStream | Subscribe | Unsubscribe | DropControl | Disconnect

Outbox = list[tuple[str, wire.Message | Order]]

# -- core -> facade ----------------------------------------------------------------------------------------------------

CONNECTING, CONNECTED, STALE, CLOSED = "connecting", "connected", "stale", "closed"
NEW = "new"  # before start; never told as a change of state


@dataclass(slots=True)
class StateChanged:
    """`text` says why, for logs."""

    state: str
    text: str


@dataclass(slots=True)
class Troubled:
    """Why there is no session, when that is another reason than before: for logs."""

    text: str


@dataclass(slots=True)
class Changes:
    """The replica moved on: what it went through, in order; empty where nobody hears of changes."""

    changes: list[Change]


# Each call makes one of these in either worker, and an `__init__` written out is compiled with the rest.


@dataclass(slots=True, eq=False, init=False)
class CallEnded:
    """One of our calls has its outcome: the packed result, or the failure to raise."""

    number: int
    outcome: wire.Payload | CallFailed

    def __init__(self, number: int, outcome: wire.Payload | CallFailed) -> None:
        self.number = number
        self.outcome = outcome


@dataclass(slots=True, eq=False, init=False)
class RunCall:
    """A call to run; hand this very object back with its outcome.

    `deadline` is on the core's clock. `epoch` is that of the broker that handed it over: a fence means something only
    within it. `cancelled` turns True when nobody waits for the outcome any more.
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
    """Nobody waits for this one any more; it must still be handed back."""

    run: RunCall


@dataclass(slots=True)
class Settled:
    """Every function of this ticket is acknowledged and visible in the replica, or refused: (id, code, text)."""

    ticket: int
    refusals: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class NotOffered:
    """On rejoining, the broker refused functions that it had accepted before: (id, code, text)."""

    refusals: list[tuple[str, str, str]]


@dataclass(slots=True)
class Drained:
    """The broker hands out no more calls to this worker, and none is left (or there is no broker to ask)."""


@dataclass(slots=True)
class JoinRefused:
    """The broker refused this worker for good."""

    code: str
    text: str


Event = (
    StateChanged | Troubled | Changes | CallEnded | RunCall | CancelCall | Settled | NotOffered | Drained | JoinRefused
)
Events = list[Event]
