"""A session, the calls between sessions, and the limits of both: a Route knows its two sessions, and they know it.

A session is what the broker knows of one connection from its Hello on. It is *joined* once its presence was heard,
*routable* while it may be handed calls, *suspect* when its presence was lost but its connection still takes probes,
*held* when it was lost while the broker itself slept.

Invariants of a Route: it is in exactly one of a function's queue (`queued_bytes`) and its provider's `in_flight`. It is
in its caller's `open` until the caller was told one outcome, and then never again. A route whose caller was told (or
has gone) stays in `in_flight` until the provider answers: the slot really is taken; its payload is let go. `hand_overs`
counts the handlers that may have seen the call; only a failed send, or a provider's word that it did not start it,
takes one back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from ... import wire
from ...errors import Fate
from .answer import Answer
from .events import Address, Peer

OPEN_CALLS_MAX = 4096  # calls that one worker may have open; told in Welcome
CREDIT_MAX = 4096  # calls in flight to one worker, whatever it asks for: the ROUTER's high-water mark lies above
QUEUE_MAX = 1024  # calls that wait for one function
QUEUED_BYTES_MAX = 256 * 1024 * 1024  # small calls that wait, of all functions together; and as much of large ones
KEEP_BYTES_MAX: Final = wire.INLINE_BYTES_MAX  # a payload that is kept for another try, while its call is in flight
KEPT_BYTES_MAX = 256 * 1024 * 1024  # larger ones, of idempotent functions, all together; beyond it they get no 2nd try
# Handed to one worker and not answered, payloads and headers; beyond it calls wait as they do beyond its credit. It
# is what libzmq may hold for a worker that does not read: two payloads of the largest size, or three at the worst.
IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
LARGE_BYTES_MAX = 1024 * 1024 * 1024  # payloads over KEEP_BYTES_MAX that were handed over, all workers together
REMAINING_MS_MAX: Final = 7 * 24 * 3600 * 1000  # a longer timeout is taken for this one


@dataclass(slots=True, eq=False)
class Session:
    """One worker or observer, from its Hello to its end."""

    peer: Peer
    address: Address  # the peer's, one step nearer: each message to the worker looks it up
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


@dataclass(slots=True, eq=False, init=False)
class Route:
    """One accepted call on its way. (Each call makes one, and an `__init__` written out is compiled with the rest.)"""

    number: int
    caller: Session | None  # None once it was told the outcome, or has gone
    caller_number: int
    function_id: str
    target: str
    deadline: float
    arrived_at: float
    no_answer: bool
    size: int  # bytes of its payload and header: what it takes in a queue, or on its way to a provider
    call: wire.Call | None  # None when it can't be handed over a second time
    provider: Session | None  # who was handed it last; None while it waits in a queue
    idempotent: bool
    hand_overs: int
    queued_bytes: int  # what it takes in its queue; 0: it is in none
    kept_bytes: int  # its share in KEPT_BYTES_MAX
    tried: tuple[str, ...]  # worker ids that went while they had it, or did not know it

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
