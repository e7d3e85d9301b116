"""Calls that wait for room at a provider: one queue per function, in the order of arrival.

Invariants: a route is in a queue exactly while `queued_bytes` is not 0. While a function has a queue, it is in the
`waiting` of exactly the sessions that offer it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .registry import Registry
from .session import KEEP_BYTES_MAX, QUEUE_MAX, QUEUED_BYTES_MAX, Route, Session


class Queues:
    """All waiting calls."""

    def __init__(self, registry: Registry, sessions: dict[str, Session]) -> None:
        self._registry = registry
        self._sessions = sessions
        self._queues: dict[str, deque[Route]] = {}
        self._bytes = {False: 0, True: 0}  # bytes of waiting small and large calls: neither takes the other's room

    def put(self, route: Route) -> bool:
        """Queues the route, after those that arrived earlier; False if there is no room."""
        size = route.size
        queue = self._queues.get(route.function_id)
        is_full = queue is not None and len(queue) >= QUEUE_MAX
        if is_full or self._bytes[size > KEEP_BYTES_MAX] + size > QUEUED_BYTES_MAX:
            return False
        if queue is None:
            queue = self._queues[route.function_id] = deque()
            self.announce(route.function_id)
        place = len(queue)
        while place and queue[place - 1].number > route.number:  # it comes back from a provider
            place -= 1
        queue.insert(place, route)
        route.queued_bytes = size
        self._bytes[size > KEEP_BYTES_MAX] += size
        return True

    def remove(self, route: Route) -> None:
        """Removes the route from its queue."""
        queue = self._queues[route.function_id]
        queue.remove(route)
        self._bytes[route.queued_bytes > KEEP_BYTES_MAX] -= route.queued_bytes
        route.queued_bytes = 0
        if not queue:
            del self._queues[route.function_id]
            for offer in self._registry.providers.get(route.function_id, ()):
                self._sessions[offer.worker_id].waiting.pop(route.function_id, None)

    def of(self, function_id: str) -> list[Route]:
        """The routes that wait for this function, earliest first."""
        return list(self._queues.get(function_id, ()))

    def waited_for(self, function_ids: list[str]) -> list[str]:
        """Those of these functions for which calls wait."""
        queues = self._queues
        return [function_id for function_id in function_ids if function_id in queues] if queues else []

    def announce(self, function_id: str) -> None:
        """Makes all current providers of the function look at its queue."""
        for offer in self._registry.providers.get(function_id, ()):
            self._sessions[offer.worker_id].waiting[function_id] = None

    def first_for(self, provider: Session, may_have: Callable[[Session, Route], bool]) -> Route | None:
        """The earliest call in any queue that this provider may be handed."""
        first: Route | None = None
        offered = self._registry.offered[provider.worker_id]
        for function_id in provider.waiting:
            if offered[function_id].active:
                queue = self._queues[function_id]
                route = next((one for one in queue if may_have(provider, one)), None)
                if route is not None and (first is None or route.number < first.number):
                    first = route
        return first
