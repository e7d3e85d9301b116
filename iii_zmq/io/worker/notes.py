"""Notes for whoever drives: put by any thread, read by the driver, who is woken if it waits.

Invariant: a note that was put is read by the next `read()`. Whoever puts one while no wake-up is on its way sends one;
`read` and `hear` take that mark back *before* they look, so that a note which comes too late for this look wakes again.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

Note = Callable[[], None]


class Notes:
    """A mailbox with a descriptor that can be polled."""

    def __init__(self) -> None:
        self._hears, self._wakes = socket.socketpair()
        self._hears.setblocking(False)
        self._wakes.setblocking(False)
        self.fd = self._hears.fileno()
        self._waiting: deque[Note] = deque()
        self._is_woken = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, note: Note) -> None:
        self._waiting.append(note)

    def wake(self) -> None:
        """After `put`, once somebody is there to read it."""
        if not self._is_woken:
            self._is_woken = True
            self.ring()

    def ring(self) -> None:
        """Ends the driver's wait, whatever for. From any thread, or a signal handler."""
        try:
            self._wakes.send(b"\0")
        except OSError:
            pass  # full: then it is awake already; or closed: then there is nobody to wake

    def hear(self) -> None:
        """The descriptor was readable."""
        self._is_woken = False
        try:
            self._hears.recv(4096)
        except BlockingIOError:
            pass

    def read(self) -> None:
        """Does what the notes say."""
        waiting = self._waiting
        self._is_woken = False
        while waiting:
            waiting.popleft()()

    def close(self) -> None:
        self._hears.close()
        self._wakes.close()
