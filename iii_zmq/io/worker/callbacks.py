"""Where the callbacks of sync workers run: `on_change`, `on_state`, and the done callbacks of futures.

Each worker has a queue; a few threads of the process empty the queues, a batch at a time, each in a clean context.
So the callbacks of one worker run in order and never two at once, and a callback that blocks, or waits for another
worker's callback, holds up its own worker's callbacks and nothing else.

Invariants: a queue is handed to one thread at a time. One thread is enough while callbacks are quick; another one
starts when a queue has waited for STUCK_S and no thread took any, up to THREADS_MAX. What a callback raises is logged.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any, Final

from ...core.worker.changes import Change, Position, reset_at
from .forks import end_child, forks

log = logging.getLogger("iii_zmq.worker")

THREADS_MAX: Final = 256  # so many callbacks may block at the same time before those of other workers wait
STUCK_S: Final = 0.005  # what a thread waits for the GIL before it asks for it
IDLE_S: Final = 1.0  # after this a thread ends, unless it is the last one
WAITING_MAX: Final = 100_000  # changes that the callbacks of one worker have not heard of: some 20 MB

Job = tuple[Callable[[Any], Any], Any]


class CallbackQueue:
    """The callbacks of one worker that wait for their turn. Any thread may put one."""

    def __init__(self) -> None:
        self.resets = 0  # how often changes were lost because too many waited
        self._lock = threading.RLock()  # reentrant: a signal handler of the thread that has it may use the worker, too
        self._jobs: deque[Job] = deque()
        self._changes = 0  # in the jobs
        self._is_handed_over = False  # a thread has this queue, or is about to

    def put(self, run: Callable[[Any], Any], value: Any) -> None:
        """`run(value)` is called after all that was put before."""
        with self._lock:
            self._jobs.append((run, value))
            is_new, self._is_handed_over = not self._is_handed_over, True
        if is_new:
            threads().take(self)

    def put_changes(
        self, run: Callable[[list[Change]], None], run_reset: Callable[[list[Change]], None], changes: list[Change]
    ) -> None:
        """As `put`. Beyond WAITING_MAX all changes that wait are replaced by one `reset`, for `run_reset`."""
        with self._lock:
            self._changes += len(changes)
            if self._changes > WAITING_MAX:
                self._jobs = deque(job for job in self._jobs if not isinstance(job[1], list))
                changes = [reset_at(Position(changes[-1].epoch, changes[-1].seq))]
                self._changes = 1
                self.resets += 1
                run = run_reset
        self.put(run, changes)

    def run_batch(self) -> None:
        """Runs what waits now. For the thread that has the queue."""
        born_in = forks.count
        for _ in range(len(self._jobs)):
            with self._lock:
                if not self._jobs:
                    break  # a reset replaced them
                run, value = self._jobs.popleft()
                if isinstance(value, list):
                    self._changes -= len(value)
            try:
                run(value)
            except BaseException as error:  # the worker, and this thread, are not the callback's to end
                if forks.count != born_in:
                    end_child(error)
                log.exception("the callback %r failed", getattr(run, "__qualname__", run))
            if forks.count != born_in:
                end_child(None)
        with self._lock:
            self._is_handed_over = is_more = bool(self._jobs)
        if is_more:
            threads().take(self)

    def wait_until_empty(self, timeout: float) -> None:
        """Waits until all that was put has run; not in a callback thread, which would wait for itself."""
        if threading.current_thread().name.startswith(_NAME):
            return
        came = threading.Lock()
        came.acquire()
        with self._lock:
            if not self._is_handed_over:
                return
        self.put(lambda _: came.release(), None)
        came.acquire(timeout=timeout)


_NAME: Final = "iii-callbacks"


class Threads:
    """The callback threads of the process."""

    def __init__(self) -> None:
        self._ready: SimpleQueue[CallbackQueue] = SimpleQueue()
        self._lock = threading.RLock()
        self._count = 0
        self._busy = 0
        self._taken = 0  # queues so far
        self._guard = threading.Lock()  # free while queues may wait and all threads are busy
        self._guard.acquire()
        self._is_guarded = False

    def take(self, queue: CallbackQueue) -> None:
        """A thread empties this queue soon."""
        self._ready.put(queue)
        with self._lock:
            if not self._count:
                self._start(self._work)
                self._count = 1
            elif self._ready.qsize() > self._count - self._busy:
                self._call_guard()

    def _work(self) -> None:
        while True:
            try:
                queue = self._ready.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if self._count > 1 and self._ready.empty():
                        self._count -= 1
                        return
                    continue
            with self._lock:
                self._busy += 1
                self._taken += 1
                if self._ready.qsize() > self._count - self._busy:
                    self._call_guard()
            Context().run(queue.run_batch)
            with self._lock:
                self._busy -= 1

    # -- the guard -----------------------------------------------------------------------------------------------------

    def _call_guard(self) -> None:
        """Under the lock."""
        if not self._is_guarded:
            self._is_guarded = True
            self._start(self._watch)
        elif self._guard.locked():
            self._guard.release()

    def _watch(self) -> None:
        """Starts another thread whenever no queue was taken for STUCK_S though some wait."""
        while True:
            taken = self._taken
            time.sleep(STUCK_S)
            with self._lock:
                is_waiting = self._ready.qsize() > self._count - self._busy
                if is_waiting and self._taken == taken and self._count < THREADS_MAX:
                    self._count += 1
                    self._start(self._work)
            if not is_waiting:
                self._guard.acquire()

    @staticmethod
    def _start(run: Callable[[], None]) -> None:
        threading.Thread(target=run, name=_NAME, daemon=True).start()


_threads = Threads()


def threads() -> Threads:
    """Those of this process."""
    return _threads


def _after_fork() -> None:
    """In the child: the threads are the parent's."""
    global _threads
    _threads = Threads()


os.register_at_fork(after_in_child=_after_fork)
