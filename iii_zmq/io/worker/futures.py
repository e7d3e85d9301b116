"""What `submit` returns: futures as Python's own, which tell the broker when nobody waits any more."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

from ... import errors
from . import keeper
from .forks import forks
from .payloads import unpack_result
from .raising import is_interrupt
from .waiting import CallOutcome

log = logging.getLogger("iii_zmq.worker")


class Driving(Protocol):
    """What a future needs of the Driver that made its call."""

    def finish(self, future: CallFuture, timeout: float | None) -> None: ...
    def block(self, future: CallFuture) -> None: ...
    def forget(self, future: CallFuture) -> None: ...
    def serve_callbacks(self) -> None: ...


_making = threading.Lock()  # of this process, for the moment in which a future ends or gets its Condition


def _after_fork() -> None:
    """In the child: a thread that is only in the parent may have held it."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class CallFuture(Future[Any]):
    """What a Worker's `submit` returns. Cancelling it tells the broker that nobody waits any more.

    A thread that waits for it in `result` or `exception` may drive the worker by itself meanwhile. So most are done
    before anything has waited on them, and the Condition for that, which takes longer to make and to notify than all
    the rest, is made when it is first asked for: by Future's own methods, which begin with it.
    """

    # What Future's `__init__`, which is not called, would set.
    _state = "PENDING"
    _result: Any = None
    _exception: BaseException | None = None

    number: int | None = None  # once the core knows the call
    is_given_up = False
    _waited_on: threading.Condition | None = None  # once anything may wait for it

    def __init__(self, driver: Driving) -> None:
        self._driver = driver
        self._forks = forks.count

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # Future has it as an attribute
        with _making:
            if self._waited_on is None:
                self._waiters: list[Any] = []
                self._done_callbacks: list[Callable[[Future[Any]], object]] = []
                self._waited_on = threading.Condition()
        return self._waited_on

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self.is_given_up = True
        self.set_running_or_notify_cancel()
        self._driver.forget(self)
        return True

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """As Future's. It runs in the thread that serves the worker, or in one that drives it just then."""
        if self.is_open:
            self._driver.serve_callbacks()
        super().add_done_callback(fn)

    def end(self, outcome: CallOutcome) -> None:
        """Called by the driver."""
        try:
            if isinstance(outcome, errors.CallFailed):
                self.set_exception(outcome)
                return
            value = unpack_result(outcome)
            with _making:
                if self._waited_on is None:
                    self._result, self._state = value, "FINISHED"  # in this order: whoever reads does so without a lock
                    return
            self.set_result(value)
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
        if self.is_open:
            timeout = self._wait(timeout)
        if self._state == "FINISHED" and self._waited_on is None:
            return self._result
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As Future's. Raises: Closed in a fork's child."""
        return super().exception(self._wait(timeout) if self.is_open else None)

    @property
    def is_open(self) -> bool:
        """It is not done. Without a lock: a thread of the parent's may have held it at a fork."""
        return self._state in ("PENDING", "RUNNING")

    def _wait(self, timeout: float | None) -> float | None:
        """Waits as far as this thread may drive by itself; what is left of the timeout for somebody else to end it."""
        if self._forks != forks.count:
            raise errors.Closed(keeper.FORKED)
        until = None if timeout is None else time.monotonic() + timeout
        self._driver.finish(self, timeout)
        if self.is_open:
            self._driver.block(self)
        return None if until is None else max(0.0, until - time.monotonic())

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
