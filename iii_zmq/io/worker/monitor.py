"""The monitor of one socket of a Link: libzmq's events of its connection, in the core's words.

Invariant: the monitor is disabled before either socket is closed. It may report that the connection is gone before all
that the connection carried has been read; the Link puts that in order.
"""

from __future__ import annotations

import struct
from typing import Final

import zmq

from ...core.worker.events import (
    Connected,
    Disconnected,
    Failed,
    Happening,
    Reached,
    StreamConnected,
    StreamDisconnected,
    StreamFailed,
)
from .. import sockets
from ..edge import Edge, Socket

_EVENT = struct.Struct("=HI")
_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)
_FAILURES = {
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the peer ended the handshake",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the peer does not speak ZMTP, or is no such socket",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the peer refused to authenticate this worker",
}
OF_CONTROL: Final[dict[int, Happening]] = {
    int(zmq.EVENT_CONNECTED): Reached(),
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): Connected(),
    int(zmq.EVENT_DISCONNECTED): Disconnected(),
    **{event: Failed(text) for event, text in _FAILURES.items()},
}
OF_STREAM: Final[dict[int, Happening]] = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): StreamConnected(),
    int(zmq.EVENT_DISCONNECTED): StreamDisconnected(),
    **{event: StreamFailed(text) for event, text in _FAILURES.items()},
}


class Monitor:
    """Watches one socket. `happenings` says what an event means: OF_CONTROL or OF_STREAM."""

    def __init__(self, context: zmq.Context[Socket], watched: Socket, happenings: dict[int, Happening]) -> None:
        self._watched = watched
        self._happenings = happenings
        self.edge = Edge(sockets.monitor(context, watched))

    def pop(self) -> Happening | None:
        """The next news of the connection, or None."""
        socket = self.edge.socket
        while (frame := self.edge.recv()) is not None:
            if not socket.getsockopt(_RCVMORE):
                continue  # the rest of a message that a signal handler's exception cut off
            socket.recv(_NOBLOCK)  # the address, a frame of its own
            happening = self._happenings.get(_EVENT.unpack(frame)[0])
            if happening is not None:
                return happening
        return None

    def close(self) -> None:
        """Closes the watched socket, and the monitor."""
        if not self._watched.closed:
            self._watched.disable_monitor()
        self._watched.close()
        self.edge.socket.close()
