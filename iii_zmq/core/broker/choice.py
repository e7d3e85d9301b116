"""Chooses the provider of a call. Changes nothing but the position of the round robin."""

from __future__ import annotations

from collections.abc import Sequence

from ... import wire
from .registry import Provider, Registry
from .session import Route, Session

_IDLE = (False, 0)  # the best possible rank: not stalled, no calls in flight


class Choice:
    """Fewest calls in flight first, in turns among equals, stalled ones last; draining ones only for waiting calls."""

    def __init__(self, registry: Registry, sessions: dict[str, Session]) -> None:
        self._registry = registry
        self._sessions = sessions  # worker id -> session
        self._turns: dict[str, int] = {}  # function id -> position of the round robin, until its last provider leaves

    def offers(self, route: Route) -> Sequence[Provider]:
        """The providers that may get this call, now or once they have room; without any it fails at once."""
        providers = self._registry.providers.get(route.function_id, ())
        if len(providers) == 1 and not route.target and not route.tried:
            return () if self._sessions[providers[0].worker_id].draining else providers
        able = [one for one in providers if self._is_able(one, route)]
        if not able or not able[0].flags & wire.EXCLUSIVE:
            return able
        active = [one for one in able if one.active]
        if active or route.target:  # a call whose target is a stand-by will never go to anybody else
            return active
        heir_is_awaited = any(one.active and self._sessions[one.worker_id].draining for one in providers)
        return able if heir_is_awaited else ()

    def choose(self, function_id: str, offers: Sequence[Provider]) -> Provider | None:
        """The best of `offers` that has room now; without one the call waits."""
        count = len(offers)
        if count == 1:  # the usual case, with the same result as below
            offer = offers[0]
            session = self._sessions[offer.worker_id]
            return offer if offer.active and session.has_room and session.routable else None
        start = self._turns.get(function_id, 0)
        best: Provider | None = None
        best_rank = (True, 0)
        best_index = 0
        for offset in range(count):
            index = (start + offset) % count
            offer = offers[index]
            session = self._sessions[offer.worker_id]
            load = len(session.in_flight)
            if not offer.active or not session.has_room or not session.routable:
                continue
            rank = (session.stalled, load)
            if best is None or rank < best_rank:
                best, best_rank, best_index = offer, rank, index
                if rank == _IDLE:
                    break
        if best is not None:
            self._turns[function_id] = best_index + 1
        return best

    def may_have(self, provider: Session, route: Route) -> bool:
        """True if this provider, an active one of the function, may be handed a waiting call."""
        if route.target and route.target != provider.worker_id:
            return False
        if provider.draining and not route.target and self._has_heirs(route):
            return False
        return provider.worker_id not in route.tried

    def may_be_served(self, route: Route) -> bool:
        """True if a provider is left that might be handed a waiting call: else it need not go on waiting."""
        return any(
            one.worker_id not in route.tried and route.target in ("", one.worker_id)
            for one in self._registry.providers.get(route.function_id, ())
        )

    def forget(self, function_id: str) -> None:
        """Forgets a function that has no provider any more."""
        self._turns.pop(function_id, None)

    def forget_gone(self, function_ids: list[str]) -> None:
        """Forgets those of these functions that have no provider any more."""
        turns, providers = self._turns, self._registry.providers
        if turns:
            for function_id in function_ids:
                if function_id in turns and function_id not in providers:
                    del turns[function_id]

    def _is_able(self, offer: Provider, route: Route) -> bool:
        if route.target and route.target != offer.worker_id:
            return False
        return offer.worker_id not in route.tried and not self._sessions[offer.worker_id].draining

    def _has_heirs(self, route: Route) -> bool:
        """True if a worker that is not draining may be handed the call instead."""
        return any(self._is_able(one, route) for one in self._registry.providers[route.function_id])
