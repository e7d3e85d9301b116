"""What `submit` returns: futures as Python's own, which tell the broker when nobody waits any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from .. import errors
from . import keeper
from .face import unpack_result
from .raising import is_interrupt
from .waiting import CallOutcome

log = logging.getLogger("iii_zmq.worker")


class CallFuture(Future[Any]):
    """What a Worker's `submit` returns. Cancelling it tells the broker, by `give_up`, that nobody waits any more."""

    def __init__(self, give_up: Callable[[CallFuture], None]) -> None:
        super().__init__()
        self._give_up = give_up
        self.number: int | None = None  # once the core knows the call
        self._forks = keeper.forks
        self.is_given_up = False

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self.is_given_up = True
        self.set_running_or_notify_cancel()
        self._give_up(self)
        return True

    def end(self, outcome: CallOutcome) -> None:
        """Called by the driver."""
        try:
            if isinstance(outcome, errors.CallFailed):
                self.set_exception(outcome)
            else:
                self.set_result(unpack_result(outcome))
        except InvalidStateError:
            pass  # cancelled meanwhile
        except errors.RemoteError as error:
            self.set_exception(error)
        except BaseException as error:  # of a done callback; those that are an Exception are logged by Future itself
            if is_interrupt(error):
                raise
            log.exception("a callback of the future of a call failed")

    def result(self, timeout: float | None = None) -> Any:
        """As Future's. Raises: Closed in a fork's child, where nobody will ever end it."""
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As Future's. Raises: Closed in a fork's child."""
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        """Without a lock: a thread of the parent's may have held it at the fork."""
        if self._forks != keeper.forks and self._state in ("PENDING", "RUNNING"):
            raise errors.Closed(keeper.FORKED)

    def wait(self) -> Any:
        """The result; whoever is interrupted while waiting for it gives the call up."""
        try:
            return self.result()
        except BaseException:
            self.cancel()
            raise


class AsyncCallFuture(asyncio.Future[Any]):
    """What an AsyncWorker's `submit` returns. Cancelling it tells the broker that nobody waits any more."""

    give_up: Callable[[], None] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg):
            return False
        if self.give_up is not None:
            self.give_up()
        return True
