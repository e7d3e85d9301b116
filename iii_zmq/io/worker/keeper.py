"""One daemon thread per process that looks in on workers which nobody drives, so that their heartbeats go on.

Also what else concerns all workers of a process: their quick end when the interpreter ends, and their uselessness in a
fork's child: sockets, threads and locks are the parent's, and neither process may notice the other's. A worker that
somebody drives, or drove a moment ago, is left alone.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from typing import Protocol

log = logging.getLogger("iii_zmq.worker")

LOOK_S = 0.25  # between two looks: half of the default heartbeat, and less where heartbeats are more frequent
LOOK_MIN_S = 0.02
EXIT_S = 1.0  # for all workers together, when the interpreter ends
FORKED = "the worker belongs to the parent process: make a new one after fork"


class Kept(Protocol):
    """What the keeper needs of a worker."""

    def look_s(self) -> float: ...
    def look_in(self) -> None: ...
    def forked(self) -> None: ...
    def end_quickly(self, until: float) -> None: ...


class Watch:
    """Says that one worker is looked in on, for as long as somebody holds this.

    The worker itself is not referred to weakly, for its class may be compiled, and so be unfit for that.
    """

    __slots__ = ("__weakref__", "worker")

    def __init__(self, worker: Kept) -> None:
        self.worker = worker


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()
_thread: threading.Thread | None = None
_lock = threading.Lock()


def keep(worker: Kept) -> Watch:
    """From now on, until the Watch is collected or `drop`ped."""
    global _thread
    watch = Watch(worker)
    with _lock:
        _watches.add(watch)
        if _thread is None:
            _thread = threading.Thread(target=_look_in_on_all, name="iii-keeper", daemon=True)
            _thread.start()
    return watch


def drop(watch: Watch | None) -> None:
    """Its worker is closed."""
    if watch is not None:
        _watches.discard(watch)


def _kept() -> list[Kept]:
    return [watch.worker for watch in list(_watches)]


def _look_in_on_all() -> None:
    while True:
        time.sleep(max(LOOK_MIN_S, min([LOOK_S, *[worker.look_s() for worker in _kept()]])))
        for worker in _kept():
            try:
                worker.look_in()
            except Exception:
                log.exception("looking in on a worker failed")


def _after_fork() -> None:
    global _thread, _lock
    _lock = threading.Lock()
    _thread = None
    for worker in _kept():
        worker.forked()
    _watches.clear()


def _at_exit() -> None:
    until = time.monotonic() + EXIT_S
    for worker in _kept():
        worker.end_quickly(until)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
