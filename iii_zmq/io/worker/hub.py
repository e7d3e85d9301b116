"""The hub: the one thread of a process that serves its sync workers, each under the lock of its own driver.

    a guest's descriptor tells of news   the guest gets a turn; its descriptors are watched again when the turn is over
    a user's thread drives the guest     the guest is *lent*: the hub looks again every LOOK_S, and does not watch the
                                         control socket until nobody has driven for LOOK_S
    a timer is due, or somebody rings    the guest gets a turn

The hub waits without a lock, on a one-shot epoll: a second thread that watches edge-triggered is woken by half of all
messages, and costs a quarter of a round trip. It never runs the code of users, so no turn lasts. A worker with inline
handlers gets a hub of its own with its first call (sync_guest). An AsyncWorker is a guest without descriptors: the hub
sees that its event loop was closed.

Also here, because it concerns all workers of a process: their quick end when the interpreter ends, and their end in the
child of a fork, where sockets, threads and locks are the parent's.
"""

from __future__ import annotations

import atexit
import heapq
import logging
import math
import os
import select
import socket
import threading
import time
from collections import deque
from itertools import count
from typing import Final, Protocol

from .forks import forks
from .link import Link

log = logging.getLogger("iii_zmq.worker")

LOOK_S: Final = 0.002  # between two looks at a guest that a user's thread drives
EXIT_S: Final = 1.0  # for all workers together, when the interpreter ends
FORKED: Final = "the worker belongs to the parent process: make a new one after fork"

_HAS_EPOLL: Final = hasattr(select, "epoll")
_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT if _HAS_EPOLL else select.POLLIN
_clock: Final = time.monotonic
_ident: Final = threading.get_ident


class Guest(Protocol):
    """What the hub needs of a worker's driver."""

    is_lent: bool  # after its turn: a user's thread drives, so the descriptors stay unwatched

    @property
    def watched(self) -> Link | None: ...  # its descriptors wake the guest

    def take_turn(self, told: list[int]) -> float | None:
        """After these descriptors told of news, or for a timer or a ring: when the next turn is due.

        None if the guest has ended or moved to another hub.
        """
        ...

    def forked(self) -> None: ...
    def end_quickly(self, until: float) -> None: ...


class Bell:
    """Ends the wait of a thread for descriptors. Any thread may ring, and a signal handler may, too."""

    def __init__(self) -> None:
        self._hears, self._rings = socket.socketpair()
        self._hears.setblocking(False)
        self._rings.setblocking(False)
        self.fd = self._hears.fileno()
        self._is_ringing = False
        self.is_awaited = False  # by a thread that waits for descriptors just now

    def ring(self) -> None:
        if not self._is_ringing:
            self._is_ringing = True
            try:
                self._rings.send(b"\0")
            except OSError:
                pass  # full: it rings already; or closed: nobody waits any more

    def hear(self) -> None:
        """Before the caller looks: what comes too late for this look rings again.

        The mark is taken back last: a ring between the two would leave the mark, and no byte that wakes anybody.
        """
        try:
            self._hears.recv(4096)
        except OSError:
            pass  # nothing there, or closed
        self._is_ringing = False

    def close(self) -> None:
        self._hears.close()
        self._rings.close()


class _Place:
    """What the hub knows of one guest."""

    __slots__ = ("due_at", "generation", "guest", "is_queued", "link", "told", "unarmed", "watched")

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.link = guest.watched
        self.due_at = 0.0
        self.generation = -1  # of the descriptors that are watched
        self.watched: list[int] = []
        self.told: list[int] = []  # descriptors that told of news since the latest turn,
        self.unarmed: list[int] = []  # or before, and tell of no more until they are armed again
        self.is_queued = False


class Hub:
    """One thread and its guests."""

    def __init__(self, name: str) -> None:
        self._bell = Bell()
        self._called: dict[Guest, None] = {}  # who rang
        self._places: dict[Guest, _Place] = {}
        self._by_fd: dict[int, _Place] = {}
        self._queue: deque[_Place] = deque()
        self._timers: list[tuple[float, int, _Place]] = []  # a heap; an entry whose place has another due_at is stale
        self._new_entry = count().__next__  # no two entries are equal, so places are never compared
        self._poll = select.epoll() if _HAS_EPOLL else select.poll()
        self._poll.register(self._bell.fd, select.POLLIN)
        self._ident = 0  # of the thread
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def is_here(self) -> bool:
        """True in the hub's own thread."""
        return _ident() == self._ident

    def ring(self, guest: Guest) -> None:
        """Gives the guest a turn soon; a guest that is not here yet moves in. From any thread."""
        _guests[guest] = None
        self._called[guest] = None
        self._bell.ring()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ident = _ident()
        born_in, is_over = forks.count, False
        while not is_over:
            self._note(self._poll.poll(self._wait()))
            for _ in range(len(self._queue)):  # a flooded guest is queued again: the others come first
                place = self._queue.popleft()
                place.is_queued = False
                self._give_turn(place)
                if born_in != forks.count:  # an inline handler forked, and this is the child: nothing here is its own
                    return
            is_over = self is not _shared and not self._places  # the hub of a worker that has ended
        self._bell.close()

    def _wait(self) -> float:
        """Until the next timer: in seconds for an epoll, in milliseconds for a poll; -1 is for ever."""
        timers = self._timers
        while timers and timers[0][2].due_at != timers[0][0]:
            heapq.heappop(timers)
        if self._queue or not timers:
            return 0 if self._queue else -1
        return max(0.0, timers[0][0] - _clock()) * (1 if _HAS_EPOLL else 1000)

    def _note(self, news: list[tuple[int, int]]) -> None:
        for fd, _ in news:
            place = self._by_fd.get(fd)
            if fd == self._bell.fd:
                self._hear()
            elif place is None or place.link is None:
                self._forget(fd)
            else:
                if not _HAS_EPOLL:
                    self._poll.modify(fd, 0)
                place.told.append(fd)
                place.unarmed.append(fd)
                place.link.readable(fd)
                self._enqueue(place)
        now = _clock()
        while self._timers and self._timers[0][0] <= now:
            due_at, _, place = heapq.heappop(self._timers)
            if place.due_at == due_at:
                self._enqueue(place)

    def _hear(self) -> None:
        self._bell.hear()
        while self._called:
            guest, _ = self._called.popitem()
            if guest not in self._places:
                self._places[guest] = _Place(guest)
            self._enqueue(self._places[guest])

    def _enqueue(self, place: _Place) -> None:
        if not place.is_queued:
            place.is_queued = True
            self._queue.append(place)

    def _give_turn(self, place: _Place) -> None:
        told, place.told = place.told, []
        try:
            due_at = place.guest.take_turn(told)
        except Exception:
            log.exception("a worker's turn failed: this is a bug in iii_zmq")
            due_at = None
        if due_at is None:
            self._remove(place)
            return
        if due_at != place.due_at:
            place.due_at = due_at
            if due_at != math.inf:
                heapq.heappush(self._timers, (due_at, self._new_entry(), place))
        if place.link is not None and place.generation != place.link.generation:
            self._watch(place, place.link)
        elif place.unarmed and not place.guest.is_lent:
            for fd in place.unarmed:
                self._arm(fd)
            place.unarmed.clear()

    def _watch(self, place: _Place, link: Link) -> None:
        """The sockets are others now. The number of a closed descriptor may stand for a new one already."""
        wanted = list(link.descriptors)
        self._unwatch(place, wanted)
        place.generation, place.watched = link.generation, wanted
        place.unarmed.clear()
        for fd in wanted:
            self._by_fd[fd] = place
            self._arm(fd)

    def _unwatch(self, place: _Place, but: list[int]) -> None:
        for fd in place.watched:
            if fd not in but and self._by_fd.get(fd) is place:
                self._forget(fd)

    def _arm(self, fd: int) -> None:
        try:
            self._poll.modify(fd, _ONCE)
        except OSError:  # new, or the number of another socket before
            try:
                self._poll.register(fd, _ONCE)
            except OSError:
                pass  # closed meanwhile by another thread, which rings

    def _forget(self, fd: int) -> None:
        self._by_fd.pop(fd, None)
        try:
            self._poll.unregister(fd)
        except (OSError, KeyError):
            pass  # closed already

    def _remove(self, place: _Place) -> None:
        """The guest has ended, or moved to a hub of its own."""
        self._unwatch(place, [])
        self._places.pop(place.guest, None)
        place.due_at = math.inf


# -- of the process ----------------------------------------------------------------------------------------------------

_guests: dict[Guest, None] = {}  # of all hubs, until they have ended
_shared: Hub | None = None
_making = threading.Lock()


def shared() -> Hub:
    """The hub of this process."""
    global _shared
    with _making:
        if _shared is None:
            _shared = Hub("iii-hub")
        return _shared


def ended(guest: Guest) -> None:
    """The guest has ended: nothing is left to do for it at a fork, or when the interpreter ends."""
    _guests.pop(guest, None)


def _after_fork() -> None:
    """In the child: guests and threads are the parent's."""
    global _shared, _making
    _shared, _making = None, threading.Lock()
    for guest in list(_guests):
        guest.forked()
    _guests.clear()


def _at_exit() -> None:
    until = _clock() + EXIT_S
    for guest in list(_guests):
        guest.end_quickly(until)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
