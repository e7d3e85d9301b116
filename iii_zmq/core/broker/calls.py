"""Calls between acceptance and outcome: hands them to providers, and to another one if necessary.

    caller --Call(n)--> broker: a Route is recorded, then  --Call(route number)--> provider
    provider --Result(route number)--> broker: the Route is found under that provider only --Result(n)--> caller

Invariant: no call waits in a queue if a routable provider with room may have it. So a new call may go straight to a
provider with room and does not overtake an earlier one that would have gone there. session.py has the route's own
invariants; outcomes.py decides what its caller hears in the end. Other modules decide who is here and alive, and report
it by `provider_gone`, `caller_gone`, `dispatch` (this provider may have room) and `review` (a function's providers
changed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ... import errors, wire
from ..counters import Counters
from ..deadlines import Alarm, Deadlines, whole_ms
from .choice import Choice
from .events import Outbox
from .outcomes import Outcomes
from .queues import Queues
from .registry import Provider, Registry
from .session import IN_FLIGHT_BYTES_MAX, KEEP_BYTES_MAX, LARGE_BYTES_MAX, OPEN_CALLS_MAX, Route, Session
from .unread import Unread


class Calls:
    """The table of routes."""

    def __init__(
        self, registry: Registry, sessions: dict[str, Session], outbox: Outbox, counters: Counters, alarm: Alarm
    ) -> None:
        self._registry = registry
        self._sessions = sessions  # worker id -> session
        self._outbox = outbox
        self._counters = counters
        self._numbers = 0
        self._large_bytes = 0  # bytes of large payloads in flight
        self._queues = Queues(registry, sessions)
        self._choice = Choice(registry, sessions)
        self._deadlines: Deadlines[Route] = Deadlines(alarm)
        self._unread = Unread()
        self._outcomes = Outcomes(registry, self._queues, self._deadlines, self._unread, outbox, counters)

    # -- from callers --------------------------------------------------------------------------------------------------

    def accept(self, caller: Session, call: wire.Call, now: float) -> None:
        """Takes a caller's call: hands it over, queues it, or fails it at once."""
        self._counters["calls"] += 1
        number = call.number
        if number in caller.open:
            self._counters["unexpected"] += 1  # no answer: it could not be told from that to the first call
            return
        if len(caller.open) >= OPEN_CALLS_MAX:
            text = f"{OPEN_CALLS_MAX} calls are open already, which is the limit"
            self._outcomes.refuse(caller, number, errors.BUSY, text)
            return
        if call.caller != caller.worker_id:
            self._counters["forged"] += 1
            self._outcomes.refuse(caller, number, errors.INVALID, "the caller's worker id is not this session's")
            return
        size = len(call.payload) + len(call.header or b"")
        if size > KEEP_BYTES_MAX and self._large_bytes + size > LARGE_BYTES_MAX:
            text = f"{LARGE_BYTES_MAX} bytes of large payloads are on their way already, which is the limit"
            self._outcomes.refuse(caller, number, errors.BUSY, text)
            return
        self._numbers += 1
        route = Route(self._numbers, caller, call, size, now)
        caller.open[number] = route
        self._deadlines.set(route, route.deadline)
        self._place(route, now)

    def cancel(self, caller: Session, number: int) -> None:
        """The caller gave up, so nobody waits for the outcome any more."""
        route = caller.open.pop(number, None)
        if route is not None:
            self._counters["calls_cancelled"] += 1
            self._outcomes.given_up(route)

    def answer(self, caller: Session, result: wire.Result) -> None:
        """Sends the caller a result of the broker itself."""
        self._outcomes.answer(caller, result, "not_handed_over")

    def has_read(self, caller: Session, number: int) -> bool:
        """The caller has read the large result with this number; False if there was none on its way."""
        return self._unread.acknowledge(caller, number)

    # -- from providers ------------------------------------------------------------------------------------------------

    def on_result(self, provider: Session, result: wire.Result, now: float) -> None:
        """The handler returned: passes the result on if the caller still waits."""
        route = self._finished(provider, result.number)
        if route is not None:
            self._outcomes.result(route, result)
        if provider.waiting:
            self.dispatch(provider, now)

    def on_failure(self, provider: Session, failure: wire.Failure, now: float) -> None:
        """The handler raised, or the provider did not start it: then another provider may."""
        route = self._finished(provider, failure.number)
        if route is not None:
            if failure.fate == "not_handed_over":
                route.hand_overs -= 1
            if failure.fate != "not_handed_over" or failure.code != errors.NO_PROVIDER:
                fate = route.fate if failure.fate == "not_handed_over" else failure.fate
                self._outcomes.fail(route, failure.code, fate, failure.text, failure.type)
            elif not self._reroute(route, provider, now):
                self._outcomes.no_provider(route)
        if provider.waiting:
            self.dispatch(provider, now)

    def undelivered(self, provider: Session, call: wire.Call, now: float) -> None:
        """The call never left, so no handler can have seen it: it goes elsewhere, or waits for the provider's end."""
        route = self._taken_back(provider, call.number)
        if route is not None and route.caller is not None:
            route.hand_overs -= 1
            route.provider, route.call = None, call
            self._place(route, now)

    # -- from the broker's core ----------------------------------------------------------------------------------------

    def provider_gone(self, provider: Session, now: float) -> None:
        """Fails the calls that the provider had, or gives them to another one if they are idempotent."""
        gone, provider.in_flight, provider.in_flight_bytes = list(provider.in_flight.values()), {}, 0
        self._large_bytes -= sum(route.size for route in gone if route.size > KEEP_BYTES_MAX)
        for route in gone:
            if route.caller is not None and not (route.idempotent and self._reroute(route, provider, now)):
                self._outcomes.provider_lost(route, provider)

    def caller_gone(self, caller: Session) -> None:
        """Gives up the calls that the caller made."""
        self._unread.forget(caller)
        asked, caller.open = list(caller.open.values()), {}
        for route in asked:
            self._outcomes.given_up(route)

    def dispatch(self, provider: Session, now: float) -> None:
        """The provider may have room: hands it waiting calls, in the order of arrival."""
        while provider.waiting and provider.has_room and provider.routable:
            route = self._queues.first_for(provider, self._choice.may_have)
            if route is None:
                return
            if route.deadline <= now:
                self._outcomes.expired(route)
                continue
            self._queues.remove(route)
            self._hand_over(route, self._registry.offered[provider.worker_id][route.function_id], now)

    def review(self, function_id: str, now: float) -> None:
        """The function's providers changed: waiting calls go to the new ones, or fail if no provider is left."""
        providers = self._registry.providers.get(function_id, ())
        if not providers:
            self._choice.forget(function_id)
        waiting = self._queues.of(function_id)
        if not waiting:
            return
        self._queues.announce(function_id)
        for offer in providers:
            self.dispatch(self._sessions[offer.worker_id], now)
        for route in waiting:
            if route.queued_bytes and not self._choice.may_be_served(route):
                self._outcomes.no_provider(route)

    def review_all(self, function_ids: list[str], now: float) -> None:
        """Like `review`, for all functions of a worker that left: usually no call waits for any of them."""
        self._choice.forget_gone(function_ids)
        for function_id in self._queues.waited_for(function_ids):
            self.review(function_id, now)

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def tick(self, now: float) -> None:
        """Fails expired calls."""
        while (route := self._deadlines.pop_due(now)) is not None:
            self._outcomes.expired(route)

    def fail_all(self, text: str) -> None:
        """The broker shuts down: every open call fails with its fate."""
        for caller in list(self._sessions.values()):
            for route in list(caller.open.values()):
                self._outcomes.fail(route, errors.BROKER_LOST, route.fate, text)

    def has_work_for(self, provider: Session) -> bool:
        """True if the provider runs calls, or if calls wait that only it may have."""
        return bool(provider.in_flight) or (
            bool(provider.waiting) and self._queues.first_for(provider, self._choice.may_have) is not None
        )

    # -- placing -------------------------------------------------------------------------------------------------------

    def _place(self, route: Route, now: float) -> None:
        if route.deadline <= now:
            self._outcomes.expired(route)
        elif offers := self._choice.offers(route):
            self._place_among(offers, route, now)
        else:
            self._outcomes.no_provider(route)

    def _place_among(self, offers: Sequence[Provider], route: Route, now: float) -> None:
        chosen = self._choice.choose(route.function_id, offers)
        if chosen is not None:
            self._hand_over(route, chosen, now)
        elif self._queues.put(route):
            self._counters["calls_queued"] += 1
        else:
            self._outcomes.busy(route)

    def _hand_over(self, route: Route, offer: Provider, now: float) -> None:
        provider, call = self._sessions[offer.worker_id], route.call
        assert call is not None
        call.number = route.number
        if offer.fence != call.fence:
            call.fence, call.header = offer.fence, None
        if now > route.arrived_at:  # it waited, so its remaining time has changed
            call.remaining_ms, call.header = whole_ms(route.deadline - now), None
        route.provider = provider
        route.hand_overs += 1
        route.idempotent = bool(offer.flags & wire.IDEMPOTENT)
        provider.in_flight[route.number] = route
        provider.in_flight_bytes += route.size
        if provider.in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
            self._counters["saturated"] += 1
        if route.size > KEEP_BYTES_MAX:
            self._large_bytes += route.size
            if len(call.payload) > KEEP_BYTES_MAX:
                self._outcomes.keep_payload_if_of_use(route, len(call.payload))
        self._outbox.append((provider.address, call))

    def _reroute(self, route: Route, gone: Session, now: float) -> bool:
        """Gives the call to another provider, now or from the queue; False if there is none."""
        route.tried = (*route.tried, gone.worker_id)
        offers = self._choice.offers(route) if route.call is not None else ()
        if not offers:
            return False
        assert route.call is not None
        route.provider, route.call = None, replace(route.call)  # the first call may still be in the outbox
        self._counters["calls_rerouted"] += 1
        self._place_among(offers, route, now)
        return True

    def _finished(self, provider: Session, number: int) -> Route | None:
        """The route that this provider answers; None, and counted, if nobody waits or it did not have the call."""
        route = self._taken_back(provider, number)
        if route is None:
            self._counters["results_unmatched"] += 1
        elif route.caller is None:
            self._counters["results_late"] += 1
            return None
        return route

    def _taken_back(self, provider: Session, number: int) -> Route | None:
        """Removes and returns a route in flight at this provider, or None."""
        route = provider.in_flight.pop(number, None)
        if route is not None:
            provider.in_flight_bytes -= route.size
            if route.size > KEEP_BYTES_MAX:
                self._large_bytes -= route.size
        return route
