"""A libzmq socket that is waited for by its own descriptor, which is edge-triggered.

zmq_poll asks each socket for its events before and after it waits: some 20 system calls for one message. The socket's
descriptor costs one, but it tells of news once, and any receive, send or question for EVENTS may swallow what it told.
So an Edge knows one of three things about its socket:

    told       its descriptor told, or nobody has looked yet        read it
    touched    it was used since                                    `may_hold` asks for EVENTS before anybody waits
    neither    a receive or the EVENTS found nothing                the descriptor will tell

Invariant: whoever waits for a descriptor has just heard `may_hold` say no. All first frames are received here, and
`touched` is called before any other use of the socket. One thread at a time may use an Edge.
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
    """One socket, its descriptor, and whether it may hold something."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.fd = int(socket.getsockopt(zmq.FD))
        self.is_told = True
        self.is_touched = False

    def touched(self) -> None:
        """Somebody is about to use the socket."""
        self.is_touched = True

    def may_hold(self) -> bool:
        """False if the descriptor will tell of whatever comes next."""
        return self.ask() if self.is_touched else self.is_told

    def ask(self) -> bool:
        """Asks libzmq, which takes in ended connections on the way. 1 us; a receive that finds nothing takes 3."""
        self.is_touched = False
        self.is_told = self.socket.getsockopt(_EVENTS) & _POLLIN != 0  # type: ignore[operator]  # an int, for EVENTS
        return self.is_told

    def recv(self) -> bytes | None:
        """The first frame of the next message, or None."""
        self.is_told = False
        self.is_touched = True
        try:
            return self.socket.recv(_NOBLOCK)
        except zmq.Again:
            self.is_touched = False
            return None

    def recv_alone(self) -> bytes | None:
        """As `recv`, but waits for the socket's RCVTIMEO, while nothing else is looked at.

        That costs 5 us less than a poll of all descriptors and a receive: what the next message of a conversation is
        worth.
        """
        self.is_told = False
        self.is_touched = True
        try:
            return self.socket.recv(0)
        except zmq.Again:
            self.is_touched = False
            return None


class Edges:
    """Several edges, waited for at once; and one descriptor of another kind, if given."""

    def __init__(self, edges: Sequence[Edge], wake_fd: int | None = None) -> None:
        self._by_fd = {edge.fd: edge for edge in edges}
        self.descriptors = list(self._by_fd)
        self._edges = list(edges)
        self._poll = select.poll()
        for fd in self.descriptors if wake_fd is None else [*self.descriptors, wake_fd]:
            self._poll.register(fd, select.POLLIN)

    def may_hold(self) -> bool:
        """Whether any of them may hold something; to be asked before anybody waits."""
        for edge in self._edges:  # noqa: SIM110  (a generator costs more than the four questions)
            if edge.may_hold():
                return True
        return False

    def wait(self, wait_ms: int) -> bool:
        """Waits until one of them tells, at most so long; whether the other descriptor is readable."""
        is_woken = False
        for fd, _ in self._poll.poll(wait_ms):
            edge = self._by_fd.get(fd)
            if edge is None:
                is_woken = True
            else:
                edge.is_told = True
        return is_woken

    def told(self, fd: int) -> None:
        """Somebody else waited, and this descriptor told. It may be one of sockets that are closed by now."""
        edge = self._by_fd.get(fd)
        if edge is not None:
            edge.is_told = True
