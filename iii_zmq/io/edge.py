"""Waits for a libzmq socket by its own descriptor, which is edge-triggered.

zmq_poll asks each socket for its events before and after it waits: about 20 system calls for one message. The socket's
descriptor costs one, but it reports news only once, and any receive, send or question for EVENTS may swallow that
report. So an Edge is in one of three states:

    told       the descriptor reported, or nobody has looked yet    read the socket
    touched    the socket was used since                            `may_hold` asks for EVENTS before anybody waits
    neither    a receive or the EVENTS found nothing                the descriptor will report

Invariant: before a thread waits for a descriptor, `may_hold` has just said no. All first frames are received here, and
`touched` is called before any other use of the socket. Only one thread at a time may use an Edge.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Final

import zmq

Socket = zmq.Socket[bytes]

_NOBLOCK: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


class Edge:
    """One socket, its descriptor, and whether it may hold a message."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.fd = int(socket.getsockopt(zmq.FD))
        self.is_told = True
        self.is_touched = False

    def touched(self) -> None:
        """Call it before you use the socket."""
        self.is_touched = True

    def may_hold(self) -> bool:
        """False if the descriptor will report the next message."""
        return self.ask() if self.is_touched else self.is_told

    def ask(self) -> bool:
        """Asks libzmq, which takes in ended connections on the way. 1 us; a receive that finds nothing takes 3."""
        self.is_touched = False
        self.is_told = self.socket.getsockopt(_EVENTS) & _POLLIN != 0  # type: ignore[operator]  # an int, for EVENTS
        return self.is_told

    def recv(self, flags: int = _NOBLOCK) -> bytes | None:
        """The first frame of the next message, or None."""
        self.is_told = False
        self.is_touched = True
        try:
            return self.socket.recv(flags)
        except zmq.Again:
            self.is_touched = False
            return None

    def recv_alone(self) -> bytes | None:
        """Like `recv`, but waits for the socket's RCVTIMEO, and looks at nothing else meanwhile.

        In a conversation this costs 5 us less for the next message than a poll of all descriptors and a receive.
        """
        return self.recv(0)


class Edges:
    """Waits for several edges at once, and for one descriptor of another kind, if given."""

    def __init__(self, edges: Sequence[Edge], wake_fd: int | None = None) -> None:
        self._by_fd = {edge.fd: edge for edge in edges}
        self.descriptors = list(self._by_fd)
        self._edges = list(edges)
        self._poll = select.poll()
        for fd in self.descriptors if wake_fd is None else [*self.descriptors, wake_fd]:
            self._poll.register(fd, select.POLLIN)

    def may_hold(self) -> bool:
        """True if any of them may hold a message; ask before you wait."""
        for edge in self._edges:  # noqa: SIM110  (a generator costs more than the four questions)
            if edge.may_hold():
                return True
        return False

    def wait(self, wait_ms: int) -> bool:
        """Waits at most `wait_ms` until one of them reports; True if the other descriptor is readable."""
        is_woken = False
        for fd, _ in self._poll.poll(wait_ms):
            edge = self._by_fd.get(fd)
            if edge is None:
                is_woken = True
            else:
                edge.is_told = True
        return is_woken

    def told(self, fd: int) -> None:
        """Another thread waited, and this descriptor reported. Its socket may be closed by now."""
        edge = self._by_fd.get(fd)
        if edge is not None:
            edge.is_told = True
