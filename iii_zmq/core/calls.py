"""Routed calls: who is handed which, what waits, and what a failed one is told.

    caller --Call(n)--> broker: a Route is recorded, then  --Call(route number)--> provider
    provider --Result(route number)--> broker: the Route is found under that provider only --Result(n)--> caller

Invariants: a route is in exactly one of a function's queue and its provider's `in_flight`; it is in its caller's `open`
until the caller was told one outcome, and then never again. A route whose caller was told (or has gone) stays in
`in_flight` until the provider answers: the slot really is taken. `hand_overs` counts the handlers that may have seen a
call; only a failed send, or a provider's word that it did not start it, takes one back.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from .. import errors, wire
from ..errors import Fate
from .deadlines import Deadlines
from .registry import Provider, Registry
from .session import Outbox, Session

OPEN_CALLS_MAX = 4096  # calls that one worker may have open; told in Welcome
CREDIT_MAX = 4096  # calls in flight to one worker, whatever it asks for: the ROUTER's high-water mark lies above
QUEUE_MAX = 1024  # calls that wait for one function
QUEUED_BYTES_MAX = 256 * 1024 * 1024  # payloads that wait, all functions together
KEEP_BYTES_MAX = wire.INLINE_BYTES_MAX  # a payload kept for another try while its call is in flight
REMAINING_MS_MAX = 7 * 24 * 3600 * 1000  # a longer timeout is taken for this one


@dataclass(slots=True, eq=False)
class Route:
    """One accepted call on its way."""

    number: int
    caller: Session | None  # None once it was told the outcome, or has gone
    caller_number: int
    function_id: str
    target: str
    deadline: float
    arrived_at: float
    no_answer: bool
    call: wire.Call | None  # None when it can't be handed over a second time
    provider: Session | None = None
    idempotent: bool = False
    hand_overs: int = 0
    tried: tuple[str, ...] = ()  # worker ids that went while they had it, or did not know it

    @property
    def fate(self) -> Fate:
        return "possibly_executed" if self.hand_overs else "not_handed_over"


class Calls:
    """All calls between acceptance and outcome."""

    def __init__(
        self, registry: Registry, sessions: dict[str, Session], outbox: Outbox, counters: Counter[str]
    ) -> None:
        self._registry = registry
        self._sessions = sessions  # worker id -> session
        self._outbox = outbox
        self._counters = counters
        self._numbers = 0
        self._queues: dict[str, deque[Route]] = {}
        self._queued_bytes = 0
        self._deadlines: Deadlines[Route] = Deadlines()
        self._turns: dict[str, int] = {}  # function id -> where the round robin among its providers stands

    # -- from callers --------------------------------------------------------------------------------------------------

    def accept(self, caller: Session, call: wire.Call, now: float) -> None:
        """A caller's call: handed over, queued, or failed at once."""
        self._counters["calls"] += 1
        number = call.number
        if number in caller.open:
            self._counters["unexpected"] += 1  # an answer could not be told from the first one's: no answer
            return
        if len(caller.open) >= OPEN_CALLS_MAX:
            self._refuse(caller, number, errors.BUSY, f"{OPEN_CALLS_MAX} calls are open already, which is the limit")
            return
        if call.caller != caller.worker_id:
            self._counters["forged"] += 1
            self._refuse(caller, number, errors.INVALID, "the caller's worker id is not this session's")
            return
        self._numbers += 1
        deadline = now + min(call.remaining_ms, REMAINING_MS_MAX) / 1000
        no_answer = bool(call.flags & wire.NO_ANSWER)
        route = Route(self._numbers, caller, number, call.function_id, call.target, deadline, now, no_answer, call)
        caller.open[number] = route
        self._deadlines.set(route, deadline)
        self._place(route, now)

    def cancel(self, caller: Session, number: int) -> None:
        """The caller gave up: nobody waits for the outcome any more."""
        route = caller.open.pop(number, None)
        if route is not None:
            self._counters["calls_cancelled"] += 1
            self._give_up(route)

    # -- from providers ------------------------------------------------------------------------------------------------

    def on_result(self, provider: Session, result: wire.Result, now: float) -> None:
        """The handler's answer, passed on if its caller still waits."""
        route = self._finish(provider, result.number)
        if route is None:
            return
        caller = route.caller
        if caller is None:
            self._counters["results_late"] += 1
        else:
            self._counters["results"] += 1
            self._settle(route)
            if not route.no_answer:
                result.number = route.caller_number
                self._outbox.append((caller.peer, result))
        if provider.waiting:
            self.dispatch(provider, now)

    def on_failure(self, provider: Session, failure: wire.Failure, now: float) -> None:
        """The handler raised, or the provider did not start it: then another one may."""
        route = self._finish(provider, failure.number)
        if route is None:
            return
        if route.caller is None:
            self._counters["results_late"] += 1
        elif failure.fate == "executed":
            self._fail(route, failure.code, "executed", failure.text, failure.type)
        else:
            self._not_started(route, provider, failure, now)
        if provider.waiting:
            self.dispatch(provider, now)

    # -- from the broker's core ----------------------------------------------------------------------------------------

    def undelivered(self, provider: Session, call: wire.Call) -> None:
        """The call never left: no handler can have seen it. Its payload is here again."""
        route = provider.in_flight.get(call.number)
        if route is not None:
            route.call = call
            route.hand_overs -= 1

    def provider_gone(self, provider: Session, now: float) -> None:
        """What it had fails or, where that can do no harm, goes to another provider."""
        routes, provider.in_flight = list(provider.in_flight.values()), {}
        for route in routes:
            if route.caller is None:
                continue
            if route.hand_overs and not route.idempotent:
                self._provider_lost(route, provider)
            elif not self._reroute(route, provider, now):
                self._provider_lost(route, provider) if route.hand_overs else self._no_provider(route)

    def caller_gone(self, caller: Session) -> None:
        """Nobody waits for what it asked."""
        routes, caller.open = list(caller.open.values()), {}
        for route in routes:
            self._give_up(route)

    def dispatch(self, provider: Session, now: float) -> None:
        """The provider may have room: hands it what waits, in the order of arrival."""
        while provider.waiting and len(provider.in_flight) < provider.hello.credit and provider.routable:
            route = self._first_waiting(provider)
            if route is None:
                return
            self._leave_queue(route)
            offer = self._registry.offered[provider.worker_id][route.function_id]
            self._hand_over(route, provider, offer, now)

    def review(self, function_id: str, now: float) -> None:
        """The function's providers changed: what waits goes to the new ones, or fails when there is none left."""
        queue = self._queues.get(function_id)
        if queue is None:
            return
        for offer in self._registry.providers.get(function_id, ()):
            session = self._sessions.get(offer.worker_id)
            if session is not None:
                session.waiting[function_id] = None
                self.dispatch(session, now)
        for route in [one for one in queue if not self._may_be_served(one)]:
            self._leave_queue(route)
            self._no_provider(route)

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def tick(self, now: float) -> None:
        """Fails what has expired."""
        while (route := self._deadlines.pop_due(now)) is not None:
            self._expire(route)

    def fail_all(self, text: str) -> None:
        """The broker ends: everybody is told what became of their calls."""
        for caller in list(self._sessions.values()):
            for route in list(caller.open.values()):
                self._fail(route, errors.BROKER_LOST, route.fate, text)

    def has_work_for(self, provider: Session) -> bool:
        """Whether calls run there or wait for it alone."""
        if provider.in_flight:
            return True
        return any(
            self._queues.get(function_id) and not self._others(function_id, provider)
            for function_id in provider.waiting
        )

    def in_flight_of(self, provider: Session, function_id: str) -> bool:
        """Whether it is running a call of this function."""
        return any(route.function_id == function_id for route in provider.in_flight.values())

    # -- placing -------------------------------------------------------------------------------------------------------

    def _place(self, route: Route, now: float) -> None:
        offers = self._offers(route)
        if not offers:
            self._no_provider(route)
        elif route.function_id in self._queues:  # earlier calls wait: keep the order
            self._enqueue(route)
        else:
            chosen = self._choose(route, offers)
            if chosen is None:
                self._enqueue(route)
            else:
                self._hand_over(route, self._sessions[chosen.worker_id], chosen, now)

    def _offers(self, route: Route) -> list[Provider]:
        """The providers that may be handed a new call, now or once they have room: none that drains."""
        providers = self._registry.providers.get(route.function_id)
        if not providers:
            return []
        if len(providers) == 1 and not route.target:
            return [] if self._sessions[providers[0].worker_id].draining else providers
        if route.target:
            providers = [one for one in providers if one.worker_id == route.target]
        ready = [one for one in providers if not self._sessions[one.worker_id].draining]
        if any(one.flags & wire.EXCLUSIVE for one in providers):
            return providers if ready else []  # a stand-by is ready: wait for the promotion
        return ready

    def _choose(self, route: Route, offers: list[Provider]) -> Provider | None:
        """Least calls in flight, round robin among equals, stalled ones last; None when nobody has room."""
        count = len(offers)
        start = self._turns.get(route.function_id, 0) if count > 1 else 0
        best: Provider | None = None
        best_rank = (True, 0)
        best_index = 0
        for offset in range(count):
            index = (start + offset) % count
            offer = offers[index]
            session = self._sessions[offer.worker_id]
            load = len(session.in_flight)
            if not offer.active or load >= session.hello.credit or not session.routable:
                continue
            if session.draining or offer.worker_id in route.tried:
                continue
            rank = (session.stalled, load)
            if best is None or rank < best_rank:
                best, best_rank, best_index = offer, rank, index
        if best is not None and count > 1:
            self._turns[route.function_id] = best_index + 1
        return best

    def _hand_over(self, route: Route, provider: Session, offer: Provider, now: float) -> None:
        call = route.call
        assert call is not None
        call.number = route.number
        if offer.fence != call.fence:
            call.fence, call.header = offer.fence, None
        if now > route.arrived_at:  # it waited: tell what is left of its time
            call.remaining_ms, call.header = max(0, int((route.deadline - now) * 1000)), None
        route.provider = provider
        route.hand_overs += 1
        route.idempotent = bool(offer.flags & wire.IDEMPOTENT)
        if len(call.payload) > KEEP_BYTES_MAX and not route.idempotent:
            route.call = None
        provider.in_flight[route.number] = route
        self._outbox.append((provider.peer, call))

    def _not_started(self, route: Route, provider: Session, failure: wire.Failure, now: float) -> None:
        """The provider says that no handler of its saw the call: it may go to another one."""
        route.hand_overs -= 1
        if failure.code != errors.NO_PROVIDER or not self._reroute(route, provider, now):
            self._fail(route, failure.code, route.fate, failure.text, failure.type)

    def _reroute(self, route: Route, gone: Session, now: float) -> bool:
        """Whether the call goes to another provider, now or from the queue."""
        route.provider = None
        route.tried = (*route.tried, gone.worker_id)
        others = [one for one in self._offers(route) if one.worker_id not in route.tried]
        if route.call is None or not others:
            return False
        self._counters["calls_rerouted"] += 1
        chosen = self._choose(route, others)
        if chosen is None:
            self._enqueue(route)
        else:
            self._hand_over(route, self._sessions[chosen.worker_id], chosen, now)
        return True

    # -- queues --------------------------------------------------------------------------------------------------------

    def _enqueue(self, route: Route) -> None:
        assert route.call is not None
        size = len(route.call.payload)
        queue = self._queues.get(route.function_id, ())
        if len(queue) >= QUEUE_MAX or self._queued_bytes + size > QUEUED_BYTES_MAX:
            self._counters["calls_busy"] += 1
            text = f"all providers of {route.function_id!r} are busy and {len(queue)} calls wait already"
            self._fail(route, errors.BUSY, route.fate, text)
            return
        self._counters["calls_queued"] += 1
        self._queued_bytes += size
        self._queues.setdefault(route.function_id, deque()).append(route)
        for offer in self._registry.providers[route.function_id]:
            self._sessions[offer.worker_id].waiting[route.function_id] = None

    def _leave_queue(self, route: Route) -> None:
        assert route.call is not None
        queue = self._queues[route.function_id]
        queue.remove(route)
        self._queued_bytes -= len(route.call.payload)
        if not queue:
            del self._queues[route.function_id]
            for offer in self._registry.providers.get(route.function_id, ()):
                self._sessions[offer.worker_id].waiting.pop(route.function_id, None)

    def _first_waiting(self, provider: Session) -> Route | None:
        """The earliest call in any queue that this provider may be handed."""
        first: Route | None = None
        offered = self._registry.offered.get(provider.worker_id, {})
        for function_id in list(provider.waiting):
            offer = offered.get(function_id)
            queue = self._queues.get(function_id)
            if offer is None or queue is None:
                del provider.waiting[function_id]
            elif offer.active:
                route = next((one for one in queue if self._may_have(provider, one)), None)
                if route is not None and (first is None or route.number < first.number):
                    first = route
        return first

    def _may_be_served(self, route: Route) -> bool:
        return any(
            one.worker_id not in route.tried and route.target in ("", one.worker_id)
            for one in self._registry.providers.get(route.function_id, ())
        )

    def _may_have(self, provider: Session, route: Route) -> bool:
        if route.target and route.target != provider.worker_id:
            return False
        if provider.draining and self._others(route.function_id, provider):
            return False
        return provider.worker_id not in route.tried

    def _others(self, function_id: str, provider: Session) -> bool:
        """Whether another worker that is not draining offers the function."""
        return any(
            one.worker_id != provider.worker_id and not self._sessions[one.worker_id].draining
            for one in self._registry.providers.get(function_id, ())
        )

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def _finish(self, provider: Session, number: int) -> Route | None:
        """The route that this provider answers; None for what it was not handed, or has answered before."""
        route = provider.in_flight.pop(number, None)
        if route is None:
            self._counters["results_unmatched"] += 1
        return route

    def _settle(self, route: Route) -> None:
        """The caller is told now, and never again."""
        caller = route.caller
        assert caller is not None
        del caller.open[route.caller_number]
        route.caller = None
        self._deadlines.cancel(route)

    def _fail(self, route: Route, code: str, fate: Fate, text: str, type: str = "") -> None:
        caller = route.caller
        if caller is None:
            return
        self._settle(route)
        self._counters["failures"] += 1
        if not route.no_answer or fate == "not_handed_over":
            failure = wire.Failure(route.caller_number, code, fate, type, text[: wire.TEXT_CHARS_MAX])
            self._outbox.append((caller.peer, failure))

    def _refuse(self, caller: Session, number: int, code: str, text: str) -> None:
        self._counters["calls_busy" if code == errors.BUSY else "refused"] += 1
        self._outbox.append((caller.peer, wire.Failure(number, code, "not_handed_over", "", text)))

    def _no_provider(self, route: Route) -> None:
        self._counters["calls_no_provider"] += 1
        where = f"worker {route.target[:64]!r} does not offer" if route.target else "nobody offers"
        text = f"{where} {route.function_id[: wire.FUNCTION_ID_CHARS_MAX]!r}"
        self._fail(route, errors.NO_PROVIDER, route.fate, text)

    def _provider_lost(self, route: Route, provider: Session) -> None:
        self._counters["calls_provider_lost"] += 1
        text = f"worker {provider.worker_id} ({provider.hello.name}) was lost while it had the call"
        self._fail(route, errors.PROVIDER_LOST, route.fate, text)

    def _expire(self, route: Route) -> None:
        self._counters["calls_timeout"] += 1
        if route.provider is None:
            self._leave_queue(route)
        else:
            self._outbox.append((route.provider.peer, wire.Cancel(route.number)))
        self._fail(route, errors.TIMEOUT, route.fate, f"no result of {route.function_id!r} by the deadline")

    def _give_up(self, route: Route) -> None:
        """The caller is not there any more: what waits is forgotten, what runs is told."""
        route.caller = None
        self._deadlines.cancel(route)
        if route.provider is None:
            if route in self._queues.get(route.function_id, ()):
                self._leave_queue(route)
        else:
            self._outbox.append((route.provider.peer, wire.Cancel(route.number)))
