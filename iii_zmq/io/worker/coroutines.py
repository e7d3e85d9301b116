"""The coroutines of an AsyncWorker's user: `async def` handlers, and callbacks that are coroutine functions.

Apart from async_driver, which may be compiled: on Python 3.13 a coroutine that mypyc made does not hear of it when its
task is cancelled. Invariant: a callback that falls behind by RUNNING_MAX tasks hears of nothing more until all of
them have ended, and is then told so, by one `reset` change or by the latest state: never a silent gap.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ...core.worker.changes import Change, Position, reset_at
from ...core.worker.events import RunCall
from .arguments import Handler
from .forks import end_child, forks
from .handlers import NOT_STARTED, Outcome, Raised, pack_outcome, raised, take_payload
from .listeners import Callback, is_interrupt
from .payloads import running

log = logging.getLogger("iii_zmq.worker")

RUNNING_MAX = 10_000  # tasks of one callback: some 20 MB


class CoroutineCallbacks:
    """The callbacks of one AsyncWorker: plain functions are called in place, coroutine functions run as tasks."""

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


async def run_handler(ran: Callable[[RunCall, Outcome], None], run: RunCall, handler: Handler) -> None:
    """The task's context is its own, so that what it sets there need not be reset."""
    running.set(run)
    outcome: Outcome = NOT_STARTED
    begun_in = forks.count
    try:
        value = await handler(take_payload(run))
        if forks.count != begun_in:
            end_child(None)
        outcome = pack_outcome(run, value)
    except asyncio.CancelledError as error:
        outcome = Raised(error)
    except BaseException as error:
        if forks.count != begun_in:
            end_child(error)
        outcome = raised(run, error)
        if is_interrupt(error):
            raise
    finally:
        ran(run, outcome)


class Waiting(Protocol):
    """What waiting needs of an AsyncWorker's driver."""

    unusable: str | None
    conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]]


async def wait(driver: Waiting, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
    """Until `is_true`, the timeout or the end; the last word of `is_true`."""
    if is_true() or driver.unusable is not None:
        return is_true()
    came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    condition = (is_true, came)
    driver.conditions.append(condition)
    try:
        await asyncio.wait([came], timeout=timeout)
    finally:
        if condition in driver.conditions:
            driver.conditions.remove(condition)
    return is_true()
