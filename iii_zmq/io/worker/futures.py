"""What `submit` returns: futures as Python's own, which tell the broker when nobody waits any more."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout  # Python's own from 3.11 on
from typing import Any, Protocol

from ... import errors
from .callbacks import CallbackQueue
from .forks import forks
from .hub import FORKED
from .payloads import unpack_result
from .waits import CallOutcome


class Driving(Protocol):
    """What a future needs of the driver that made its call."""

    callbacks: CallbackQueue

    def wait_for(self, future: CallFuture, timeout: float | None) -> None: ...
    def forget(self, future: CallFuture) -> None: ...


_making = threading.RLock()  # of this process, for the moment in which a future ends or gets its Condition


def _after_fork() -> None:
    """In the child: a thread that is only in the parent may have held it."""
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


class CallFuture(Future[Any]):
    """What a Worker's `submit` returns. Cancelling it tells the broker that nobody waits any more.

    A thread that waits in `result` or `exception` may drive the worker meanwhile, so most futures are done before
    anything has waited on them. The Condition for that takes longer to make and to notify than all the rest, so it is
    made when Future's own methods first ask for it. Done callbacks run where the worker's other callbacks do.
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
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self.is_given_up = True
        self.set_running_or_notify_cancel()
        if self._forks == forks.count:  # in a fork's child the driver is the parent's
            self._driver.forget(self)
        return True

    def _invoke_callbacks(self) -> None:
        """Future calls this in whichever thread ends it: no place for the code of users."""
        for callback in self._done_callbacks:
            self._driver.callbacks.put(callback, self)

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

    def result(self, timeout: float | None = None) -> Any:
        """As Future's. Raises: Closed in a fork's child, where nobody will ever end it."""
        self._wait(timeout)
        if self._state == "FINISHED" and self._waited_on is None:
            return self._result
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As Future's. Raises: Closed in a fork's child."""
        self._wait(timeout)
        return super().exception(0)

    @property
    def is_open(self) -> bool:
        """It is not done. Without a lock: a thread of the parent's may have held it at a fork."""
        return self._state in ("PENDING", "RUNNING")

    def _wait(self, timeout: float | None) -> None:
        """Raises: TimeoutError, Closed."""
        if not self.is_open:
            return
        if self._forks != forks.count:
            raise errors.Closed(FORKED)
        self._driver.wait_for(self, timeout)
        if self.is_open:
            raise FutureTimeout


class AsyncCallFuture(asyncio.Future[Any]):
    """What an AsyncWorker's `submit` returns. Cancelling it tells the broker that nobody waits any more."""

    give_up: Callable[[], None] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg):
            return False
        if self.give_up is not None:
            self.give_up()
        return True
