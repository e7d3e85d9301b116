"""Calls that want no answer, on their way to the broker: what the socket may hold of them.

Nothing comes back for them, so nothing would tell how many the broker has not read: a worker that sends faster than the
broker reads would fill its own memory. So now and then a ping follows them, and the answer to it shows that all before
it were read, because one connection keeps the order.

Invariant: `_count` and `_bytes` are of the sends since the last one that is known to be read, `_later` of those since
the ping that is on its way.
"""

from __future__ import annotations

from ... import wire
from .events import BROKER, Outbox

SENDS_MAX = 16_384  # that the broker may not have read; a fast one reads as many in 0.3 s
SENDS_BYTES_MAX = 256 * 1024 * 1024  # of their payloads
PING_SHARE = 8  # a ping follows this part of either

_PING = 1 << 61  # bit of the numbers of our pings: nobody else's, and never a send's


class Sends:
    """The sends of one session."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reset()

    def reset(self) -> None:
        """Another session, another connection: what was sent over the one before waits no more."""
        self._ping = 0
        self._count = self._bytes = 0
        self._later = self._later_bytes = 0

    @property
    def is_full(self) -> bool:
        """No further ones for now."""
        return self._count >= SENDS_MAX or self._bytes >= SENDS_BYTES_MAX

    def add(self, call: wire.Call) -> None:
        """This one goes out now; a ping behind it, if there were many."""
        size = len(call.payload)
        self._count += 1
        self._bytes += size
        if self._ping:
            self._later += 1
            self._later_bytes += size
        elif self._count >= SENDS_MAX // PING_SHARE or self._bytes >= SENDS_BYTES_MAX // PING_SHARE:
            self._ping = call.number | _PING
            ping = wire.Call(self._ping, "engine::ping", call.caller, wire.INT_MAX, "", 0, 0, b"\xc0")
            self._outbox.append((BROKER, ping))

    def has_answered(self, number: int) -> bool:
        """Whether this is the answer to our ping, whatever it says: what was sent before it was read."""
        if not number or number != self._ping:
            return False
        self._count, self._bytes = self._later, self._later_bytes
        self._ping = self._later = self._later_bytes = 0
        return True
