"""A session, the calls between sessions, and the limits of both: a Route knows its two sessions, and they know it.

A session is what the broker knows of one connection from its Hello on. It is *joined* once its presence is heard,
*routable* while it may be handed calls, *suspect* after its presence is lost while its connection still takes probes,
and *held* if it was lost while the broker itself slept.

Invariants of a Route: it is either in a function's queue (`queued_bytes`) or in its provider's `in_flight`. It is in
its caller's `open` until the caller is told its one outcome, and never again after that. A route whose caller was told
(or is gone) stays in `in_flight` until the provider answers, because the slot really is taken; its payload is released.
`hand_overs` counts the handlers that may have seen the call; only a failed send, or a provider's word that it did not
start the handler, takes one back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from ... import wire
from ...errors import Fate
from .answer import Answer
from .events import Address, Peer

OPEN_CALLS_MAX = 4096  # open calls of one worker; sent in Welcome
CREDIT_MAX = 4096  # calls in flight to one worker, whatever credit it asks for: the ROUTER's high-water mark is higher
QUEUE_MAX = 1024  # calls that wait for one function
QUEUED_BYTES_MAX = 256 * 1024 * 1024  # bytes of waiting small calls of all functions; and as many of large ones
KEEP_BYTES_MAX: Final = wire.INLINE_BYTES_MAX  # a payload that is kept for another try, while its call is in flight
KEPT_BYTES_MAX = 256 * 1024 * 1024  # all larger ones of idempotent functions together; beyond it they get no 2nd try
# Bytes of payloads and headers handed to one worker and not answered; beyond it calls wait, as they do beyond its
# credit. libzmq may hold this much for a worker that does not read: two payloads of the largest size, three at worst.
IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
LARGE_BYTES_MAX = 1024 * 1024 * 1024  # payloads over KEEP_BYTES_MAX that are handed over, for all workers together
REMAINING_MS_MAX: Final = 7 * 24 * 3600 * 1000  # a longer timeout counts as this one


@dataclass(slots=True, eq=False)
class Session:
    """One worker or observer, from its Hello to its end."""

    peer: Peer
    address: Address  # the peer's, one step nearer: each message to the worker looks it up
    worker_id: str
    hello: wire.Hello
    token: bytes
    heard_at: float
    presence_by: float  # the deadline for its presence
    process: tuple[str, int] = ("", 0)  # its worker's (host, pid); workers of one process mostly end together
    token_before: bytes = b""  # the previous token, which its worker may use until it shows that it knows `token`
    joined: bool = False
    stalled: bool = False
    draining: bool = False
    drain_number: int | None = None  # of the Drain that still waits for its Ack
    leaving: bool = False  # it said Bye: it has no row any more, and only its results are still taken
    reachable: bool = True  # no send has failed yet
    overflowed: bool = False  # a message to it was dropped, so its rows can't be kept on this connection
    suspect_since: float | None = None  # when its presence was lost
    probe_wait_s: float = 0.0
    probe_at: float = math.inf  # while it is suspect, or has rows and no presence yet
    held_until: float | None = None
    load: int = 0
    lag_ms: int = 0
    in_flight: dict[int, Route] = field(default_factory=dict)  # route number -> call handed to it
    in_flight_bytes: int = 0  # the sizes of the routes in `in_flight`
    open: dict[int, Route] = field(default_factory=dict)  # its own call number -> call made by it
    waiting: dict[str, None] = field(default_factory=dict)  # its functions with calls in their queue
    unread: dict[int, int] = field(default_factory=dict)  # number -> bytes of unacknowledged large results
    unread_bytes: int = 0  # their sum
    answer: Answer | None = None
    ended: bool = False

    @property
    def routable(self) -> bool:
        """True if it may be handed calls now (apart from its credit)."""
        return self.joined and self.reachable and self.suspect_since is None and not self.leaving

    @property
    def has_room(self) -> bool:
        """True if it has less in flight than allowed, in calls and bytes: any payload fits if nothing is in flight."""
        return len(self.in_flight) < self.hello.credit and self.in_flight_bytes < IN_FLIGHT_BYTES_MAX

    @property
    def presence(self) -> bytes:
        return wire.presence_topic(self.token)

    @property
    def state(self) -> str:
        """The row's state; draining comes first, since it matters most to others."""
        if self.draining:
            return wire.DRAINING
        return wire.STALLED if self.stalled else wire.READY


@dataclass(slots=True, eq=False, init=False)
class Route:
    """One accepted call on its way. (Each call makes one; an `__init__` that is written out gets compiled.)"""

    number: int
    caller: Session | None  # None once the caller was told the outcome, or is gone
    caller_number: int
    function_id: str
    target: str
    deadline: float
    arrived_at: float
    no_answer: bool
    size: int  # bytes of its payload and header, in a queue or on its way to a provider
    call: wire.Call | None  # None if it can't be handed over a second time
    provider: Session | None  # the last provider that was handed it; None while it waits in a queue
    idempotent: bool
    hand_overs: int
    queued_bytes: int  # its bytes in a queue; 0 if it is in none
    kept_bytes: int  # its share of KEPT_BYTES_MAX
    tried: tuple[str, ...]  # ids of workers that were lost while they had it, or did not offer it

    def __init__(self, number: int, caller: Session, call: wire.Call, size: int, now: float) -> None:
        self.number = number
        self.caller = caller
        self.caller_number = call.number
        self.function_id = call.function_id
        self.target = call.target
        self.deadline = now + min(call.remaining_ms, REMAINING_MS_MAX) / 1000
        self.arrived_at = now
        self.no_answer = bool(call.flags & wire.NO_ANSWER)
        self.size = size
        self.call = call
        self.provider = None
        self.idempotent = False
        self.hand_overs = self.queued_bytes = self.kept_bytes = 0
        self.tried = ()

    @property
    def fate(self) -> Fate:
        return "possibly_executed" if self.hand_overs else "not_handed_over"
