"""Callbacks of an AsyncWorker: plain functions are called in place, coroutine functions run as tasks.

Invariant: a callback that falls behind by RUNNING_MAX tasks hears of nothing more until all of them have ended, and is
then told so: by one `reset` change, or by the latest state. So there is never a silent gap.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Coroutine
from typing import Any

from ...core.worker.changes import Change, Position, reset_at
from .listeners import Callback
from .raising import is_interrupt

log = logging.getLogger("iii_zmq.worker")

RUNNING_MAX = 10_000  # tasks of one callback: some 20 MB


class Callbacks:
    """All of one worker's."""

    def __init__(self) -> None:
        self.resets = 0  # times that one had fallen behind
        self._running: dict[int, set[asyncio.Task[None]]] = {}  # by the callback's identity: it need not be hashable
        self._missed: dict[int, Any] = {}  # the latest value that it did not hear of

    def call(self, callback: Callback, value: Any) -> None:
        """Raises: what a plain callback raises. A task's exception is logged."""
        running = self._running.get(id(callback), ())
        if len(running) >= RUNNING_MAX or id(callback) in self._missed:
            self._missed[id(callback)] = value
            return
        result = callback(value)
        if inspect.iscoroutine(result):
            task = asyncio.get_running_loop().create_task(_log_failure(callback, result))
            self._running.setdefault(id(callback), set()).add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(lambda done: self._ended(callback, done))

    def _ended(self, callback: Callback, task: asyncio.Task[None]) -> None:
        running = self._running[id(callback)]
        running.discard(task)
        if running:
            return
        del self._running[id(callback)]
        if id(callback) in self._missed:
            value = self._missed.pop(id(callback))
            self.resets += 1
            self.call(callback, reset_at(Position(value.epoch, value.seq)) if isinstance(value, Change) else value)


async def _log_failure(callback: Callback, running: Coroutine[Any, Any, Any]) -> None:
    try:
        await running
    except (asyncio.CancelledError, GeneratorExit):  # the loop ends
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        log.exception("the callback %r failed", callback)
