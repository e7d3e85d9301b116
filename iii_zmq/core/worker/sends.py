"""Limits how many sends (calls that want no answer) may wait in the socket.

Nothing comes back for a send, so nothing would show how many the broker has not read yet: a worker that sends faster
than the broker reads would fill its own memory. So now and then a ping follows them. Since one connection keeps the
order, the answer to the ping shows that the broker has read everything sent before it.

Invariant: `_count` and `_bytes` count the sends after the last one known to be read, `_later` and `_later_bytes` those
after the ping that is on its way.
"""

from __future__ import annotations

from ... import wire
from .events import BROKER, Outbox

SENDS_MAX = 16_384  # sends that the broker may not have read yet; a fast broker reads that many in 0.3 s
SENDS_BYTES_MAX = 256 * 1024 * 1024  # and the bytes of their payloads
PING_SHARE = 8  # a ping follows each eighth of either

_PING = 1 << 61  # marks the numbers of these pings; no other call and no send has this bit


class Sends:
    """The sends of one session."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reset()

    def reset(self) -> None:
        """A new session has a new connection: sends over the old one no longer wait."""
        self._ping = 0
        self._count = self._bytes = 0
        self._later = self._later_bytes = 0

    @property
    def is_full(self) -> bool:
        """True if no further send is allowed for now."""
        return self._count >= SENDS_MAX or self._bytes >= SENDS_BYTES_MAX

    def add(self, call: wire.Call) -> None:
        """Counts a send that leaves now, and sends a ping after it if there were many."""
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
        """True if this answers our ping, whatever it says: the broker has read everything sent before it."""
        if not number or number != self._ping:
            return False
        self._count, self._bytes = self._later, self._later_bytes
        self._ping = self._later = self._later_bytes = 0
        return True
