"""One thread that drives many sync workers of a process, so that a change does not wake a thread for each of them.

    a worker's serve thread     finds MANY workers here: its worker becomes a guest, and it sleeps to the worker's end
    the host                    one thread; waits for the descriptors of all guests, and gives who has news a turn
    the deputy                  one thread; hosts from now on when a turn has lasted TURN_S, as in a user's slow handler
                                or callback, and has a deputy of its own. Who hosted before goes after that turn

Few workers are better off with a thread each: none waits for another one's turn, however short.

Invariants: one thread hosts, the one that was given the number `_hosting`; another one that still does is in a guest's
turn. A guest is queued, or has its turn, or is awaited. A descriptor tells of news once, and what a turn leaves unread
makes the next one due at once: see io/worker/link.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

MANY: Final = 8  # workers of a process: with ten a change is soon enough either way, with a hundred it is not
TURN_S: Final = 0.005  # of one guest, before the deputy takes over; what a thread waits for the GIL before it asks
RESTING_AFTER: Final = 20  # looks of the deputy, TURN_S apart, that found the host idle

_clock: Final = time.monotonic


class Waited(Protocol):
    """What a guest's host waits for: see io/worker/link."""

    descriptors: list[int]
    generation: int


class Guest:
    """One worker, whether it is hosted or not. It counts for as long as somebody holds it, or until it left."""

    def __init__(self, link: Waited, wake_fd: int, take_turn: Callable[[], float | None]) -> None:
        global _count
        self.link = link
        self.wake_fd = wake_fd
        self.take_turn = take_turn  # for how long nothing is due then, in seconds; None when it is no guest any more
        self.generation = -1  # of the link's descriptors that are watched
        self.due_at = math.inf  # for who is awaited
        self.is_queued = self.has_turn = False
        self.has_news = False  # that came during its turn, perhaps too late for it
        self._forks = _forks
        _count += 1

    def leave(self) -> None:
        """Its worker has ended."""
        global _count
        if self._forks == _forks:
            self._forks = -1
            _count -= 1

    def __del__(self) -> None:
        self.leave()


class Host:
    """All guests of one process, and the threads that drive them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._rings, self._hears = socket.socketpair()  # ends the host's wait
        for end in (self._rings, self._hears):
            end.setblocking(False)
        self._epoll.register(self._hears, select.EPOLLIN)
        self._bell = threading.Lock()  # the deputy's; free when it is to wake
        self._bell.acquire()
        self._lock = threading.Lock()
        # Under the lock.
        self._guests: dict[Guest, None] = {}
        self._watched: dict[int, Guest] = {}  # by descriptor
        self._queue: deque[Guest] = deque()
        self._hosting = 0
        self._turns = 0
        self._turn_at = math.inf  # when the turn began that the host gives just now
        self._deputy_rests = False

    def open(self) -> None:
        """Starts the threads."""
        self._hosting = 1
        self._start(lambda: self._serve(1), "iii-host")
        self._start(self._stand_by, "iii-deputy")

    def take_in(self, guest: Guest) -> None:
        """From now on its worker is driven here. From any thread."""
        with self._lock:
            self._guests[guest] = None
            self._watch(guest)
            self._enqueue(guest)
        self._ring()

    # -- the host ------------------------------------------------------------------------------------------------------

    def _serve(self, number: int) -> None:
        while self._hosting == number:
            news = self._epoll.poll(self._wait_s())
            with self._lock:
                self._note(news)
                queued = len(self._queue)
            for _ in range(queued):  # who is flooded is queued again each time: the others' news are to be heard, too
                if self._hosting != number:
                    break
                guest = self._next()
                wait_s = guest.take_turn()
                if self is not _host:  # the guest has forked, and this is the child: the epoll is the parent's, too
                    return
                self._end_turn(guest, wait_s, number)

    def _wait_s(self) -> float | None:
        with self._lock:
            due_at = 0.0 if self._queue else min((guest.due_at for guest in self._guests), default=math.inf)
        return None if due_at == math.inf else max(0.0, due_at - _clock())

    def _note(self, news: list[tuple[int, int]]) -> None:
        for fd, _ in news:
            if (guest := self._watched.get(fd)) is not None:
                self._enqueue(guest)
            elif fd == self._hears.fileno():
                self._hears.recv(4096)
        now = _clock()
        for guest in self._guests:
            if guest.due_at <= now:
                self._enqueue(guest)

    def _enqueue(self, guest: Guest) -> None:
        if guest.has_turn:
            guest.has_news = True
        elif not guest.is_queued:
            guest.is_queued, guest.due_at = True, math.inf
            self._queue.append(guest)

    def _next(self) -> Guest:
        """Who has its turn now."""
        with self._lock:
            guest = self._queue.popleft()
            guest.is_queued, guest.has_turn = False, True
            self._turns += 1
            self._turn_at = _clock()
            if self._deputy_rests:
                self._deputy_rests = False
                self._bell.release()
            return guest

    def _end_turn(self, guest: Guest, wait_s: float | None, number: int) -> None:
        with self._lock:
            guest.has_turn = False
            if wait_s is None:
                self._dismiss(guest)
            else:
                self._await(guest, wait_s)
            if self._hosting == number:
                self._turn_at = math.inf
                return
        self._ring()  # somebody else hosts by now, and is to look at what this turn left

    def _await(self, guest: Guest, wait_s: float) -> None:
        if guest.generation != guest.link.generation:
            self._watch(guest)
        if guest.has_news or wait_s <= 0:
            guest.has_news = False
            self._enqueue(guest)
        else:
            guest.due_at = _clock() + wait_s

    def _dismiss(self, guest: Guest) -> None:
        self._guests.pop(guest, None)
        for fd in [fd for fd, owner in self._watched.items() if owner is guest]:
            self._forget(fd)

    def _watch(self, guest: Guest) -> None:
        """Its sockets are others now. A descriptor that was closed is watched no more, and may be back as that of
        another socket, of this guest or another."""
        guest.generation = guest.link.generation
        wanted = [*guest.link.descriptors, guest.wake_fd]
        for fd in [fd for fd, owner in self._watched.items() if owner is guest and fd not in wanted]:
            self._forget(fd)
        for fd in wanted:
            self._watched[fd] = guest
            try:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
            except FileExistsError:
                pass  # the same socket as before

    def _forget(self, fd: int) -> None:
        del self._watched[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed already

    def _ring(self) -> None:
        try:
            self._rings.send(b"\0")
        except BlockingIOError:
            pass  # it rings already

    # -- the deputy ----------------------------------------------------------------------------------------------------

    def _stand_by(self) -> None:
        """Rests until the host gives turns; then looks every TURN_S whether one lasts, until it gives no more."""
        looks = turns = 0
        while True:
            with self._lock:
                if _clock() - self._turn_at > TURN_S:
                    self._hosting = number = self._hosting + 1
                    self._turn_at = math.inf
                    break
                is_idle = self._turns == turns and self._turn_at == math.inf
                looks, turns = looks + 1 if is_idle else 0, self._turns
                self._deputy_rests = rests = looks > RESTING_AFTER
            self._bell.acquire(timeout=-1 if rests else TURN_S)
        self._start(self._stand_by, "iii-deputy")
        self._serve(number)

    @staticmethod
    def _start(run: Callable[[], None], name: str) -> None:
        threading.Thread(target=run, name=name, daemon=True).start()


_forks = 0  # that led to this process
_count = 0  # guests of this process, hosted or not
_host: Host | None = None
_making = threading.Lock()


def many() -> bool:
    """Whether so many workers are here that they had better be hosted."""
    return _count >= MANY and hasattr(select, "epoll")


def host() -> Host:
    """This process's."""
    global _host
    with _making:
        if _host is None:
            _host = Host()
            _host.open()
        return _host


def _after_fork() -> None:
    """In the child: host and guests are the parent's, and have no threads here."""
    global _forks, _count, _host, _making
    _forks, _count, _host, _making = _forks + 1, 0, None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
