"""A sync worker's stay with the broker: joining, draining, leaving, and what the keeper may do in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout

from ... import errors
from ...core.worker.events import CONNECTED
from ...core.worker.patience import Patience
from . import keeper
from .handlers import Handlers
from .sync_driver import Driver

log = logging.getLogger("iii_zmq.worker")

STUCK_S = 2.0  # how long one waits for a serve thread that is inside a handler
LEFT_S = 0.2  # for the Bye to arrive: a process that ends in this moment takes what was not sent yet with it
TIMEOUTS = (TimeoutError, FutureTimeout)  # the second is the first from Python 3.11 on


class Stay:
    """From `join` to `leave`, or to the end of the process."""

    def __init__(self, driver: Driver, handlers: Handlers) -> None:
        self._driver = driver
        self._core = driver.core
        self._handlers = handlers
        self._watch: keeper.Watch | None = None

    def join(self, timeout: float | None, is_over: Callable[[], bool] | None) -> list[tuple[str, str, str]]:
        """Connects and registers what is there; what the broker refused. Raises: BrokerUnreachable, Refused.

        What counts of the timeout is told in core/worker/patience.py.
        """
        began = time.monotonic()
        core, desk = self._core, self._driver.desk
        ticket = self._driver.do(self._connect)

        def is_settled() -> bool:
            return core.membership.state == CONNECTED or desk.refused is not None or (is_over is not None and is_over())

        patience = Patience(timeout, core.progress)
        asked_at = began
        while not self._driver.wait(is_settled, patience.slice_s):
            now = time.monotonic()
            if patience.is_over(now - asked_at, core.progress) or self._driver.ended:
                raise unreachable(core.profile.url, now - began, core.membership.trouble)
            asked_at = now
        if desk.refused is not None:
            raise errors.Refused(f"the broker at {core.profile.url} refused: {desk.refused.text}", desk.refused.code)
        self._watch = keeper.keep(self)
        return [] if ticket is None else desk.settled.pop(ticket, [])

    def drain(self, timeout: float) -> bool:
        """No new calls; whether those that run here, and our own, ended in time."""
        driver, core = self._driver, self._core
        if driver.unusable is not None:
            return True
        driver.desk.drained = not self._handlers.entries  # who offers nothing has nothing to hand over
        try:
            if not driver.desk.drained:
                driver.do(core.drain, STUCK_S)
            return driver.wait(
                lambda: driver.desk.drained and not len(core.incoming) and not driver.has_open_calls, timeout
            )
        except TIMEOUTS:
            return False

    def leave(self, results_s: float) -> None:
        """Bye, a moment for results that are about to be sent, and the end. May be repeated."""
        driver = self._driver
        if driver.unusable is not None:
            return
        driver.unusable = "the worker was closed"
        keeper.drop(self._watch)
        try:
            driver.do(self._core.leave, STUCK_S)
            if results_s and not driver.runner.depth:
                driver.wait(lambda: not len(self._core.incoming), results_s)
                driver.wait(lambda: self._core.has_left, LEFT_S)
            driver.do(driver.end, STUCK_S)
        except TIMEOUTS:
            log.warning("%s: closed while a handler still runs; it leaves when that ends", self._core.profile.name)
            driver.post(driver.end)

    # -- for the keeper ------------------------------------------------------------------------------------------------

    def look_s(self) -> float:
        """How often to look in."""
        return keeper.LOOK_S if self._driver.serving else self._core.membership.heartbeat_s / 2

    def look_in(self) -> None:
        """Drives for a moment, unless somebody does or just did."""
        driver = self._driver
        if not driver.serving and time.monotonic() - driver.polled_at >= self.look_s() / 2:
            driver.look()

    def forked(self) -> None:
        """In the child: link, lock and threads are the parent's."""
        self._driver.unusable = keeper.FORKED
        self._driver.ended = True

    def end_quickly(self, until: float) -> None:
        """The interpreter ends: Bye if that can be said at once."""
        if self._driver.unusable is None:
            self._driver.unusable = "the interpreter is ending"
            try:
                self._driver.do(self._say_bye, max(0.0, until - time.monotonic()))
            except TIMEOUTS:
                pass

    # -- private -------------------------------------------------------------------------------------------------------

    def _connect(self) -> int | None:
        """Under the driver's lock: the ticket of what is registered already."""
        entries = self._handlers.entries
        ticket = self._core.offers.register(entries) if entries else None
        self._core.connect(time.monotonic())
        return ticket

    def _say_bye(self) -> None:
        self._core.leave()
        self._driver.end()


def no_session(url: str, trouble: str) -> errors.BrokerUnreachable:
    """For who registers while there is none."""
    why = f" ({trouble})" if trouble else ""
    return errors.BrokerUnreachable(f"no session with the broker at {url}{why}: the change is made when there is one")


def unreachable(url: str, spent_s: float, trouble: str) -> errors.BrokerUnreachable:
    """In one line: where, for how long, and what was seen."""
    return errors.BrokerUnreachable(f"no broker at {url} within {spent_s:.1f} s{': ' if trouble else ''}{trouble}")
