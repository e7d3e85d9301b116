"""Limits the unacknowledged large results, and so what libzmq may hold for callers that read slowly.

If a result's payload travels as a frame of its own, the caller acknowledges it by Received with its number. The broker
can't see how much of what it sent still waits; so it counts these bytes, and beyond a limit a caller gets a failure
instead.

Invariant: a session's `unread_bytes` is the sum of its `unread`, and `_bytes` is the sum over all sessions.
"""

from __future__ import annotations

from .session import Session

UNREAD_BYTES_MAX = 256 * 1024 * 1024  # to one caller: eight results of the largest size
UNREAD_ALL_BYTES_MAX = 1024 * 1024 * 1024  # to all callers together


class Unread:
    """Large results that were sent and not acknowledged."""

    def __init__(self) -> None:
        self._bytes = 0

    def note(self, caller: Session, number: int, size: int) -> bool:
        """Counts a large result that will be sent; False if it would exceed a limit."""
        if caller.unread_bytes + size > UNREAD_BYTES_MAX or self._bytes + size > UNREAD_ALL_BYTES_MAX:
            return False
        caller.unread[number] = caller.unread.get(number, 0) + size  # only its own loss if it uses a number twice
        caller.unread_bytes += size
        self._bytes += size
        return True

    def acknowledge(self, caller: Session, number: int) -> bool:
        """The caller has read this result; False if no such result was sent to it."""
        size = caller.unread.pop(number, 0)
        caller.unread_bytes -= size
        self._bytes -= size
        return size > 0

    def forget(self, caller: Session) -> None:
        """Forgets an ended session; its connection has ended, too, or soon will."""
        self._bytes -= caller.unread_bytes
        caller.unread.clear()
        caller.unread_bytes = 0
