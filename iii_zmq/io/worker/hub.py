"""The hub: the one thread of a process that serves its sync workers, each under the lock of its own driver.

    a guest's descriptor tells of news   the guest gets a turn; its descriptors are watched again when the turn is over
    a user's thread drives the guest     the guest is *lent*: the hub looks again every LOOK_S, and watches nothing
                                         until nobody has driven for LOOK_S
    a timer is due, or somebody rings    the guest gets a turn

The hub waits without a lock, on a one-shot epoll: a second thread that watches edge-triggered is woken by half of all
messages, and costs a quarter of a round trip. It never runs the code of users, so no turn lasts. A worker with inline
handlers gets a hub of its own with its first call (sync_driver). An AsyncWorker is a guest without descriptors: the hub
sees that its event loop was closed.

Also here, because it concerns all workers of a process: their quick end when the interpreter ends, and their end in the
child of a fork, where sockets, threads and locks are the parent's.
"""

from __future__ import annotations

import atexit
import heapq
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from typing import Final, Protocol

from .forks import forks

log = logging.getLogger("iii_zmq.worker")

LOOK_S: Final = 0.002  # between two looks at a guest that a user's thread drives
EXIT_S: Final = 1.0  # for all workers together, when the interpreter ends
FORKED: Final = "the worker belongs to the parent process: make a new one after fork"

_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT if hasattr(select, "epoll") else select.POLLIN
_clock: Final = time.monotonic


class Watched(Protocol):
    """The descriptors that a guest is woken by; `generation` counts their changes."""

    descriptors: list[int]
    generation: int

    def readable(self, fd: int) -> None: ...


class Guest(Protocol):
    """What the hub needs of a worker's driver."""

    is_lent: bool  # after its turn: a user's thread drives, so the descriptors stay unwatched

    @property
    def watched(self) -> Watched | None: ...

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
        self.told: list[int] = []  # those of them that told of news since the latest turn,
        self.unarmed: list[int] = []  # or before, and tell of no more until they are armed again
        self.is_queued = False


class Hub:
    """One thread and its guests."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bell = Bell()
        self._called: deque[Guest] = deque()  # by other threads: each guest stands here once or twice
        self._dismissed: deque[Guest] = deque()
        self._places: dict[Guest, _Place] = {}
        self._by_fd: dict[int, _Place] = {}
        self._queue: deque[_Place] = deque()
        self._timers: list[tuple[float, int, _Place]] = []  # a heap; an entry whose place has another due_at is stale
        self._entries = 0  # in the heap so far: no two are equal, so places are never compared
        self._poll = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._poll.register(self._bell.fd, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_over = False

    def start(self) -> None:
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """True in the hub's own thread."""
        return threading.get_ident() == self._thread.ident

    # -- for any thread ------------------------------------------------------------------------------------------------

    def ring(self, guest: Guest) -> None:
        """Gives the guest a turn soon; a guest that is not here yet moves in."""
        self._called.append(guest)
        self._bell.ring()

    def dismiss(self, guest: Guest) -> None:
        """The guest has ended, or moves to another hub."""
        self._dismissed.append(guest)
        self._bell.ring()

    def end(self) -> None:
        """The thread ends soon: for a hub of one worker."""
        self._is_over = True
        self._bell.ring()

    def guests(self) -> list[Guest]:
        return list(dict.fromkeys([*self._places, *self._called]))

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        born_in = forks.count
        while not self._is_over:
            self._note(self._poll.poll(self._wait()))
            for _ in range(len(self._queue)):  # a flooded guest is queued again: the others come first
                place = self._queue.popleft()
                place.is_queued = False
                if self._places.get(place.guest) is place:
                    self._give_turn(place)
                if born_in != forks.count:  # an inline handler forked, and this is the child: nothing here is its own
                    return
        self._bell.close()
        if hasattr(self._poll, "close"):
            self._poll.close()

    def _wait(self) -> float:
        """Until the next timer: in seconds for an epoll, in milliseconds for a poll; -1 is for ever."""
        timers = self._timers
        while timers and timers[0][2].due_at != timers[0][0]:
            heapq.heappop(timers)
        if self._queue:
            return 0
        if not timers:
            return -1
        wait_s = max(0.0, timers[0][0] - _clock())
        return wait_s if hasattr(select, "epoll") else wait_s * 1000

    def _note(self, news: list[tuple[int, int]]) -> None:
        for fd, _ in news:
            if fd == self._bell.fd:
                self._hear()
                continue
            place = self._by_fd.get(fd)
            if place is None:
                self._forget(fd)
                continue
            if not hasattr(select, "epoll"):
                self._poll.modify(fd, 0)
            place.told.append(fd)
            place.unarmed.append(fd)
            if place.link is not None:
                place.link.readable(fd)
            self._enqueue(place)
        now = _clock()
        while self._timers and self._timers[0][0] <= now:
            due_at, _, place = heapq.heappop(self._timers)
            if place.due_at == due_at:
                self._enqueue(place)

    def _hear(self) -> None:
        self._bell.hear()
        while self._dismissed:
            self._remove(self._dismissed.popleft())
        while self._called:
            guest = self._called.popleft()
            place = self._places.get(guest)
            if place is None:
                place = self._places[guest] = _Place(guest)
            self._enqueue(place)

    def _enqueue(self, place: _Place) -> None:
        if not place.is_queued:
            place.is_queued = True
            self._queue.append(place)

    def _give_turn(self, place: _Place) -> None:
        guest, told = place.guest, place.told
        place.told = []
        due_at = guest.take_turn(told)
        if due_at is None:
            self._remove(guest)
            return
        if due_at != place.due_at:
            place.due_at = due_at
            self._entries += 1
            heapq.heappush(self._timers, (due_at, self._entries, place))
        if place.link is not None and place.generation != place.link.generation:
            self._watch(place, place.link)
        elif place.unarmed and not guest.is_lent:
            for fd in place.unarmed:
                self._arm(fd)
            place.unarmed.clear()

    def _watch(self, place: _Place, link: Watched) -> None:
        """The sockets are others now. The number of a closed descriptor may stand for a new one already."""
        place.generation = link.generation
        wanted = list(link.descriptors)
        for fd in place.watched:
            if fd not in wanted and self._by_fd.get(fd) is place:
                self._forget(fd)
        place.watched = wanted
        place.unarmed.clear()
        for fd in wanted:
            self._by_fd[fd] = place
            self._arm(fd)

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

    def _remove(self, guest: Guest) -> None:
        place = self._places.pop(guest, None)
        if place is not None:
            for fd in place.watched:
                if self._by_fd.get(fd) is place:
                    self._forget(fd)


# -- of the process ----------------------------------------------------------------------------------------------------

_shared: Hub | None = None
_own: dict[Hub, None] = {}  # of workers with inline handlers
_making = threading.Lock()


def shared() -> Hub:
    """The hub of this process."""
    global _shared
    with _making:
        if _shared is None:
            _shared = Hub("iii-hub")
            _shared.start()
        return _shared


def new_hub(name: str) -> Hub:
    """A hub for one worker, whose inline handlers may take as long as they like."""
    hub = Hub(name)
    with _making:
        _own[hub] = None
    hub.start()
    return hub


def drop(hub: Hub) -> None:
    """A hub of one worker is of no more use."""
    _own.pop(hub, None)
    hub.end()


def _guests() -> list[Guest]:
    hubs = [*_own] if _shared is None else [_shared, *_own]
    return [guest for hub in hubs for guest in hub.guests()]


def _after_fork() -> None:
    """In the child: guests and threads are the parent's."""
    global _shared, _own, _making
    guests = _guests()
    _shared, _own, _making = None, {}, threading.Lock()
    for guest in guests:
        guest.forked()


def _at_exit() -> None:
    until = _clock() + EXIT_S
    for guest in _guests():
        guest.end_quickly(until)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
