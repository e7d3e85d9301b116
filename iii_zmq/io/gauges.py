"""Measures and reports for the broker's shell: its turns, strangers, descriptors, and malformed messages.

It writes the core's gauges and lines in the log; it decides nothing.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from typing import Final

import zmq

from .. import wire
from ..core.broker.events import Malformed
from . import sockets
from .edge import Edge

log = logging.getLogger("iii_zmq.broker")

TURN_WINDOW_S: Final = 5.0  # the recent longest turn covers the last 5 to 10 s
EVENTS_MAX: Final = 1024  # events read from one monitor in one turn
COMPLAIN_S: Final = 1.0  # between two log lines about dropped messages

_NOBLOCK: Final = int(zmq.NOBLOCK)
_MONITOR_EVENT = struct.Struct("=HI")
_ACCEPTED = int(zmq.EVENT_ACCEPTED)

Gauges = dict[str, float]


class Turns:
    """The longest turn ever, and that of the last one or two windows, which shows what is slow now."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self._max_s = self._window_s = self._window_before_s = 0.0
        self._window_until = 0.0

    def note(self, began: float, turn_s: float) -> None:
        """Notes how long a turn took."""
        if began >= self._window_until:
            self._window_until = began + TURN_WINDOW_S
            self._window_before_s, self._window_s = self._window_s, 0.0
        elif turn_s <= self._window_s:
            return
        self._window_s = max(self._window_s, turn_s)
        self._max_s = max(self._max_s, turn_s)
        self._gauges["turn_max_ms"] = round(self._max_s * 1000, 3)
        self._gauges["turn_recent_max_ms"] = round(max(self._window_s, self._window_before_s) * 1000, 3)


class Strangers:
    """Counts accepted connections minus completed handshakes. A worker's connection counts for a moment, too."""

    def __init__(self, context: sockets.Context, watched: tuple[Edge, ...], gauges: Gauges) -> None:
        self.monitors = [Edge(sockets.monitor(context, each.socket, sockets.ARRIVALS)) for each in watched]
        self._gauges = gauges

    def count(self) -> None:
        """Reads the monitors that reported news."""
        for monitor in self.monitors:
            if monitor.is_told:
                self._read(monitor)

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.socket.close()

    def _read(self, monitor: Edge) -> None:
        for _ in range(EVENTS_MAX):
            frame = monitor.recv()
            if frame is None:
                return
            event, _ = _MONITOR_EVENT.unpack(frame)
            monitor.socket.recv(_NOBLOCK)  # the address, a frame of its own
            self._gauges["strangers"] += 1 if event == _ACCEPTED else -1


class Descriptors:
    """Watches for free descriptors: without one libzmq silently accepts nobody, and newcomers wait in the system."""

    def __init__(self, any_of_ours: int, gauges: Gauges) -> None:
        self._any_of_ours = any_of_ours
        self._gauges = gauges
        self._are_lacking = False

    def look(self) -> None:
        """Warns if no descriptor is left, and when there is one again."""
        try:
            os.close(os.dup(self._any_of_ours))
        except OSError:
            self._gauges["descriptors_lacking"] += 1
            if not self._are_lacking:
                log.warning("no descriptor is left (see ulimit -n): new connections wait until there is one again")
            self._are_lacking = True
        else:
            if self._are_lacking:
                log.warning("there are descriptors again")
            self._are_lacking = False


class Complaints:
    """Logs malformed messages, at most once a second: a stranger's garbage must not fill the disk."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._held_back = 0

    def about(self, text: str, heading: wire.Heading | None = None) -> Malformed:
        """The event for the core; perhaps also logs a line."""
        now = time.monotonic()
        if now < self._next_at:
            self._held_back += 1
        else:
            log.warning("dropped a malformed message: %s (and %d before it)", text, self._held_back)
            self._next_at, self._held_back = now + COMPLAIN_S, 0
        return Malformed(text, heading)
