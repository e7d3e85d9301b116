"""What an AsyncWorker awaits: joining, waiting, draining, leaving, and the tasks of its `async def` handlers.

Apart from looping.py because that may be compiled: on Python 3.13 a coroutine that mypyc made does not hear of it when
its task is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ... import errors
from ...core.worker.events import CONNECTED, RunCall
from ...core.worker.patience import Patience
from .arguments import Handler
from .forks import forks
from .handlers import NOT_STARTED, Outcome, Raised, end_child, pack_outcome, raised, take_payload
from .lifecycle import LEFT_S, unreachable
from .payloads import running
from .raising import is_interrupt

if TYPE_CHECKING:
    from .async_driver import Loop


async def join(loop: Loop, timeout: float | None) -> list[tuple[str, str, str]]:
    """Connects and registers what is there; what the broker refused. Raises: BrokerUnreachable, Refused."""
    core, desk = loop.core, loop.desk
    began = time.monotonic()
    ticket = core.offers.register(loop.handlers.entries) if loop.handlers.entries else None
    core.connect(began)
    loop.turn_soon()
    patience = Patience(timeout, core.progress)
    asked_at = began
    while not await wait(
        loop, lambda: core.membership.state == CONNECTED or desk.refused is not None, patience.slice_s
    ):
        now = time.monotonic()
        if patience.is_over(now - asked_at, core.progress) or loop.unusable is not None:
            raise unreachable(core.profile.url, now - began, core.membership.trouble)
        asked_at = now
    if desk.refused is not None:
        raise errors.Refused(f"the broker at {core.profile.url} refused: {desk.refused.text}", desk.refused.code)
    return [] if ticket is None else desk.settled.pop(ticket, [])


async def wait(loop: Loop, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
    """Until `is_true`, the timeout or the end; the last word of `is_true`."""
    if is_true() or loop.unusable is not None:
        return is_true()
    came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    condition = (is_true, came)
    loop.conditions.append(condition)
    try:
        await asyncio.wait([came], timeout=timeout)
    finally:
        if condition in loop.conditions:
            loop.conditions.remove(condition)
    return is_true()


async def drain(loop: Loop, timeout: float) -> bool:
    """No new calls; whether those that run here, and our own, ended in time."""
    core, desk = loop.core, loop.desk
    desk.drained = not loop.handlers.entries
    if not desk.drained:
        core.drain()
        loop.turn_soon()
    return await wait(loop, lambda: desk.drained and not len(core.incoming) and not loop.has_open_calls, timeout)


async def leave(loop: Loop, results_s: float) -> None:
    """Bye, a moment for results that are about to be sent, and the end."""
    loop.core.leave()
    loop.turn_soon()
    if not loop.is_handlers_task(asyncio.current_task()):
        await wait(loop, lambda: not len(loop.core.incoming), results_s)
        await wait(loop, lambda: loop.core.has_left, LEFT_S)
    loop.end()


async def run_handler(loop: Loop, run: RunCall, handler: Handler) -> None:
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
        loop.ran(run, outcome)
