"""A worker's life with its broker, alike for both faces: joining, registering, draining, leaving, and telling of it.

Nothing here waits: each step says what to ask of the core and when the waiting is over. A sync worker's threads wait in
sync_driver, an AsyncWorker's tasks in async_driver.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ... import errors
from ...core.worker import events
from ...core.worker.core import WorkerCore
from ...core.worker.events import CONNECTED, Changes, JoinRefused, NotOffered, Settled, StateChanged, Troubled
from ...core.worker.offers import Refusal, first_refusal
from ...core.worker.patience import Patience
from .callbacks import CallbackQueue
from .handlers import Handlers
from .listeners import Listeners

log = logging.getLogger("iii_zmq.worker")

DRAIN_S = 5.0  # what leaving `with`, and the end of `run()`, give to running calls
CLOSE_S = 0.5  # what `close()` gives to results that are about to be sent
LEFT_S = 0.2  # for the Bye to arrive: a process that ends in this moment takes what was not sent yet with it
CLOSED = "the worker was closed"


class Stay:
    """From joining to leaving. With a `queue`, listeners and log handlers run there: both are the code of users."""

    def __init__(
        self, core: WorkerCore, handlers: Handlers, listeners: Listeners, queue: CallbackQueue | None = None
    ) -> None:
        self._core = core
        self._handlers = handlers
        self._listeners = listeners
        self._queue = queue
        self._tickets: set[int] = set()  # that are open
        self._settled: dict[int, list[Refusal]] = {}  # tickets whose end somebody will fetch
        self._refused: JoinRefused | None = None
        self._is_drained = False
        self._began = self._asked_at = 0.0
        self._ticket: int | None = None
        self._patience = Patience(None, None)
        self.on: dict[type[Any], Callable[[Any], None]] = {
            Changes: self._on_changes,
            Settled: self._on_settled,
            StateChanged: self._on_state,
            Troubled: self._on_troubled,
            JoinRefused: self._on_refused,
            NotOffered: self._on_not_offered,
            events.Drained: self._on_drained,
        }

    # -- joining -------------------------------------------------------------------------------------------------------

    def join(self, timeout: float | None) -> None:
        """Connects, and registers what is there. How the timeout counts is told in core/worker/patience."""
        self._ticket = self.register(self._handlers.entries) if self._handlers.entries else None
        self._began = self._asked_at = time.monotonic()
        self._patience = Patience(timeout, self._core.progress)
        self._core.connect(self._began)

    @property
    def slice_s(self) -> float | None:
        """How long to wait for `has_joined` before `check_patience`."""
        return self._patience.slice_s

    def has_joined(self) -> bool:
        """Joined, or refused."""
        return self._core.membership.state == CONNECTED or self._refused is not None

    def check_patience(self, is_over: bool) -> None:
        """After a slice without success. Raises: BrokerUnreachable."""
        now = time.monotonic()
        if self._patience.is_over(now - self._asked_at, self._core.progress) or is_over:
            raise unreachable(self._core.profile.url, now - self._began, self._core.membership.trouble)
        self._asked_at = now

    def check_joined(self) -> None:
        """Raises: Refused, by the broker, for the worker itself or for the first refused function."""
        if self._refused is not None:
            text = f"the broker at {self._core.profile.url} refused: {self._refused.text}"
            raise errors.Refused(text, self._refused.code)
        if self._ticket is not None:
            refusals = self._settled.pop(self._ticket, [])
            if refusals:
                raise first_refusal(refusals, len(self._handlers))

    # -- registering ---------------------------------------------------------------------------------------------------

    def register(self, entries: Mapping[str, bytes]) -> int:
        """The ticket of a registration."""
        ticket = self._core.offers.register(entries)
        self._tickets.add(ticket)
        return ticket

    def unregister(self, function_ids: tuple[str, ...]) -> int:
        """The ticket. The handlers go after the Unregister: when they run no more, the heir has been promoted."""
        ticket = self._core.offers.unregister(function_ids)
        self._tickets.add(ticket)
        self._handlers.remove(list(function_ids))
        return ticket

    def is_settled(self, ticket: int) -> bool:
        """The broker answered, and the replica shows it."""
        return ticket in self._settled

    def pop_refusals(self, ticket: int) -> list[Refusal]:
        """What the broker refused of a ticket that is settled."""
        return self._settled.pop(ticket)

    def check_session(self, ticket: int) -> None:
        """After `connect_timeout` without an answer. Raises: BrokerUnreachable if there is no session."""
        membership = self._core.membership
        if membership.state != CONNECTED:
            self._core.offers.abandon(ticket)
            self._tickets.discard(ticket)
            why = f" ({membership.trouble})" if membership.trouble else ""
            url = self._core.profile.url
            text = f"no session with the broker at {url}{why}: the change is made once there is one"
            raise errors.BrokerUnreachable(text)

    # -- leaving -------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Asks for no new calls. A worker that offers nothing has nothing to hand over."""
        self._is_drained = not self._handlers.entries
        if not self._is_drained:
            self._core.drain()

    def has_drained(self) -> bool:
        """No call is handed over any more, and none runs."""
        return self._is_drained and not len(self._core.incoming)

    # -- events --------------------------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Events may be lost: ends the tickets that the core has ended."""
        for ticket in [one for one in self._tickets if not self._core.offers.has(one)]:
            self._on_settled(Settled(ticket))

    def _on_settled(self, event: Settled) -> None:
        self._tickets.discard(event.ticket)
        self._settled[event.ticket] = event.refusals

    def _on_refused(self, event: JoinRefused) -> None:
        self._refused = event

    def _on_drained(self, _: events.Drained) -> None:
        self._is_drained = True

    def _on_changes(self, event: Changes) -> None:
        changes, listeners, queue = event.changes, self._listeners, self._queue
        if not changes:
            return
        listeners.feed(changes)
        if queue is None:
            listeners.tell_changes(changes)
        elif listeners.on_change:
            queue.put_changes(listeners.tell_changes, listeners.tell_reset, changes)

    def _on_state(self, event: StateChanged) -> None:
        self._log(logging.INFO, "%s is %s %s", event.state, event.text)
        if self._listeners.on_state:
            self._tell(self._listeners.tell_state, event.state)

    def _on_troubled(self, event: Troubled) -> None:
        self._log(logging.WARNING, "%s has no session: %s", event.text)

    def _on_not_offered(self, event: NotOffered) -> None:
        for function_id, code, text in event.refusals:
            self._log(logging.WARNING, "%s: the broker no longer takes %s: %s (%s)", function_id, text, code)

    def _log(self, level: int, text: str, *values: str) -> None:
        if log.isEnabledFor(level):
            self._tell(lambda _: log.log(level, text, self._core.profile.name, *values), None)

    def _tell(self, run: Callable[[Any], None], value: Any) -> None:
        if self._queue is None:
            run(value)
        else:
            self._queue.put(run, value)


def unreachable(url: str, spent_s: float, trouble: str) -> errors.BrokerUnreachable:
    """In one line: where, for how long, and what was seen."""
    return errors.BrokerUnreachable(f"no broker at {url} within {spent_s:.1f} s{': ' if trouble else ''}{trouble}")
