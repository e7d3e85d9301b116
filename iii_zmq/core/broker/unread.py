"""Large results on their way to callers that have not acknowledged them: what libzmq may hold for a slow reader.

A result whose payload travels as a frame of its own is acknowledged by Received with its number. The broker can't see
how much of what it sent still waits; so it counts these bytes, and beyond a limit a caller is told a failure instead.

Invariant: `unread_bytes` of a session is the sum of its `unread`, and `_bytes` that of all sessions here.
"""

from __future__ import annotations

from .session import Session

UNREAD_BYTES_MAX = 256 * 1024 * 1024  # to one caller: eight results of the largest size
UNREAD_ALL_BYTES_MAX = 1024 * 1024 * 1024  # to all callers together


class Unread:
    """What was sent and not acknowledged."""

    def __init__(self) -> None:
        self._bytes = 0

    def note(self, caller: Session, number: int, size: int) -> bool:
        """Whether a large result may be sent; it is to be acknowledged then."""
        if caller.unread_bytes + size > UNREAD_BYTES_MAX or self._bytes + size > UNREAD_ALL_BYTES_MAX:
            return False
        caller.unread[number] = caller.unread.get(number, 0) + size  # nobody else's loss if it uses a number twice
        caller.unread_bytes += size
        self._bytes += size
        return True

    def acknowledge(self, caller: Session, number: int) -> bool:
        """The caller has read it; False when it was sent no such result."""
        size = caller.unread.pop(number, 0)
        caller.unread_bytes -= size
        self._bytes -= size
        return size > 0

    def forget(self, caller: Session) -> None:
        """The session has ended, and its connection with it or soon."""
        self._bytes -= caller.unread_bytes
        caller.unread.clear()
        caller.unread_bytes = 0
