"""A Route: one accepted call on its way, and the limits of calls.

Invariants: a route is in exactly one of a function's queue (`queued_bytes`) and its provider's `in_flight`; it is in
its caller's `open` until the caller was told one outcome, and then never again. A route whose caller was told (or has
gone) stays in `in_flight` until the provider answers: the slot really is taken; its payload is let go. `hand_overs`
counts the handlers that may have seen the call; only a failed send, or a provider's word that it did not start it,
takes one back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ... import wire
from ...errors import Fate

if TYPE_CHECKING:
    from .session import Session

OPEN_CALLS_MAX = 4096  # calls that one worker may have open; told in Welcome
CREDIT_MAX = 4096  # calls in flight to one worker, whatever it asks for: the ROUTER's high-water mark lies above
QUEUE_MAX = 1024  # calls that wait for one function
QUEUED_BYTES_MAX = 256 * 1024 * 1024  # small calls that wait, of all functions together; and as much of large ones
KEEP_BYTES_MAX: Final = (
    wire.INLINE_BYTES_MAX
)  # a payload that is kept for another try anyway, while its call is in flight
KEPT_BYTES_MAX = 256 * 1024 * 1024  # larger ones, of idempotent functions, all together; beyond it they get no 2nd try
# Handed to one worker and not answered, payloads and headers; beyond it calls wait as they do beyond its credit. It
# is what libzmq may hold for a worker that does not read: two payloads of the largest size, or three at the worst.
IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
LARGE_BYTES_MAX = 1024 * 1024 * 1024  # payloads over KEEP_BYTES_MAX that were handed over, all workers together
REMAINING_MS_MAX: Final = 7 * 24 * 3600 * 1000  # a longer timeout is taken for this one


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
