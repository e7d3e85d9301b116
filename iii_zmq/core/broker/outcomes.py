"""Tells each caller the one outcome of its call, and releases what the call held.

Invariant: once its outcome is told, a route has no caller, no place in a queue, no deadline and no payload any more; at
most its slot at a provider is still taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from ... import errors, wire
from ...errors import Fate
from ..counters import Counters
from ..deadlines import Deadlines
from .events import Outbox
from .queues import Queues
from .registry import Registry
from .session import KEPT_BYTES_MAX, Route, Session
from .unread import Unread

_SHORT = wire.TEXT_CHARS_MAX


@dataclass(slots=True, eq=False)
class Outcomes:
    """The ends of calls."""

    _registry: Registry
    _queues: Queues
    _deadlines: Deadlines[Route]
    _unread: Unread
    _outbox: Outbox
    _counters: Counters
    _kept_bytes: int = 0

    # -- told ----------------------------------------------------------------------------------------------------------

    def result(self, route: Route, result: wire.Result) -> None:
        """The handler returned."""
        caller = self._settle(route)
        self._counters["results"] += 1
        if not route.no_answer:
            result.number = route.caller_number
            self.answer(caller, result, "possibly_executed")

    def answer(self, caller: Session, result: wire.Result, fate: Fate) -> None:
        """Sends the result to the caller, or a failure with this fate if too much already waits for it."""
        size = len(result.payload)
        if size <= wire.INLINE_BYTES_MAX or self._unread.note(caller, result.number, size):
            self._outbox.append((caller.address, result))
            return
        self._counters["results_unread"] += 1
        text = f"the result of {size} bytes was dropped: {caller.unread_bytes} bytes of results wait unread already"
        self._outbox.append((caller.address, wire.Failure(result.number, errors.BUSY, fate, "", text)))

    def fail(self, route: Route, code: str, fate: Fate, text: str, type: str = "") -> None:
        """Fails the call. A caller that wants no answer hears of it only if nobody was handed the call."""
        caller = self._settle(route)
        self._counters["failures"] += 1
        if not route.no_answer or fate == "not_handed_over":
            failure = wire.Failure(route.caller_number, code[:_SHORT], fate, type[:_SHORT], text[:_SHORT])
            self._outbox.append((caller.address, failure))

    def refuse(self, caller: Session, number: int, code: str, text: str) -> None:
        """Fails a call that was not even accepted."""
        self._counters["calls_busy" if code == errors.BUSY else "refused"] += 1
        self._outbox.append((caller.address, wire.Failure(number, code, "not_handed_over", "", text)))

    def busy(self, route: Route) -> None:
        self._counters["calls_busy"] += 1
        text = f"all providers of {route.function_id!r} are busy, and as many calls wait as may"
        self.fail(route, errors.BUSY, route.fate, text)

    def no_provider(self, route: Route) -> None:
        """Fails a call for which there is no provider, or no other one after the first was lost."""
        code = errors.PROVIDER_LOST if route.hand_overs else errors.NO_PROVIDER
        self._counters[f"calls_{code}"] += 1
        function_id = route.function_id[: wire.FUNCTION_ID_CHARS_MAX]
        text = f"nobody offers {function_id!r}"
        if route.target:
            text = f"worker {route.target[:64]!r} does not offer {function_id!r} now"
        elif route.function_id in self._registry.providers:
            text = f"nobody takes new calls of {function_id!r} now"
        self.fail(route, code, route.fate, text)

    def provider_lost(self, route: Route, provider: Session) -> None:
        self._counters["calls_provider_lost"] += 1
        text = f"worker {provider.worker_id} ({provider.hello.name}) was lost while it had the call"
        self.fail(route, errors.PROVIDER_LOST, route.fate, text)

    def expired(self, route: Route) -> None:
        self._counters["calls_timeout"] += 1
        self._cancel_at_provider(route)
        self.fail(route, errors.TIMEOUT, route.fate, f"no result of {route.function_id!r:.210} by the deadline")

    def given_up(self, route: Route) -> None:
        """The caller is gone or gave up and is told nothing: a waiting call is forgotten, a running one cancelled."""
        self._let_go(route)
        self._cancel_at_provider(route)

    # -- payloads ------------------------------------------------------------------------------------------------------

    def keep_payload_if_of_use(self, route: Route, size: int) -> None:
        """Keeps a large payload while its call is in flight only if it may get a second try, and up to a limit."""
        if not route.idempotent:
            route.call, size = None, 0
        elif self._kept_bytes + size - route.kept_bytes > KEPT_BYTES_MAX:
            self._counters["payloads_let_go"] += 1
            route.call, size = None, 0
        self._kept_bytes += size - route.kept_bytes
        route.kept_bytes = size

    # -- private -------------------------------------------------------------------------------------------------------

    def _settle(self, route: Route) -> Session:
        """Ends the route; returns its caller, which is told now and never again."""
        caller = route.caller
        assert caller is not None
        del caller.open[route.caller_number]
        self._let_go(route)
        return caller

    def _let_go(self, route: Route) -> None:
        """Releases the route: from now on nobody waits for its outcome."""
        if route.queued_bytes:
            self._queues.remove(route)
        self._kept_bytes -= route.kept_bytes
        route.kept_bytes = 0
        route.caller = route.call = None
        self._deadlines.cancel(route)

    def _cancel_at_provider(self, route: Route) -> None:
        if route.provider is not None and route.provider.reachable:
            self._outbox.append((route.provider.address, wire.Cancel(route.number)))
