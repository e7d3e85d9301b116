"""A few daemon threads that run jobs, made when they are needed.

Daemon threads, unlike those of `concurrent.futures`: a handler that hangs must not keep the interpreter from ending.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("iii_zmq.worker")

Job = Callable[[], None]


class Pool:
    """At most `threads_max` threads; jobs beyond that wait (a worker's credit bounds how many)."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = 0
        self._open = 0  # jobs that were submitted and are not done
        self._lock = threading.Lock()

    def submit(self, job: Job) -> None:
        with self._lock:
            self._open += 1
            if self._threads < min(self._open, self._threads_max):
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        """The threads end when what was submitted is done; nobody waits for that."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of %s failed", self._name)
            with self._lock:
                self._open -= 1
