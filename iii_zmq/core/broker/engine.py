"""The functions that the broker itself answers, under `engine::`: the registry and the broker's own state.

Each takes a map (or nil) and returns a map with the position. Lists come in pages: at most `limit` elements, and
`next`, which is the `after` of the next page, or nil. A page examines at most `EXAMINED_MAX` rows and about
`EXAMINED_BYTES_MAX` of their content. So a long search costs many short turns and not one long one, and no page exceeds
the limit of a payload; but a page may be empty and still have a `next`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ... import errors, wire
from ...wire import FunctionEntry
from .registry import Registry
from .session import Session

REQUEST_BYTES_MAX = 64 * 1024  # the only payloads that the broker unpacks
PAGE_MAX = 1000
EXAMINED_MAX = 2000
EXAMINED_BYTES_MAX = 1024 * 1024  # bytes of entries, metadata and ids of one page, without its last element
PROVIDER_BYTES = 100  # about the bytes that one provider adds to a function

DESCRIPTIONS = {
    "engine::functions::list": "Functions by prefix, search, worker; in pages (after, limit); internal ones with all",
    "engine::functions::info": "One function by id",
    "engine::workers::list": "Workers by prefix (of the name), search, worker; in pages (after, limit)",
    "engine::workers::info": "One worker by id",
    "engine::status": "Version, position, digest, uptime and counters of the broker",
    "engine::ping": "Returns its payload",
}

_Looked = tuple[dict[str, Any] | None, int]
"""The element if it matches, and the number of bytes examined."""


class NotFound(Exception):
    """No such function or worker; the caller gets a Failure of this type."""


class Engine:
    """Answers calls to `engine::` functions; `status` is the result of one of them."""

    def __init__(
        self, registry: Registry, sessions: Mapping[str, Session], status: Callable[[float], dict[str, Any]]
    ) -> None:
        self._registry = registry
        self._sessions = sessions  # worker id -> session
        self._answers: dict[str, Callable[[Any, float], Any]] = {
            "engine::functions::list": self._functions_list,
            "engine::functions::info": self._functions_info,
            "engine::workers::list": self._workers_list,
            "engine::workers::info": self._workers_info,
            "engine::status": lambda request, now: status(now),
            "engine::ping": lambda request, now: request,
        }
        assert self._answers.keys() == DESCRIPTIONS.keys()

    def answer(self, call: wire.Call, now: float) -> wire.Result | wire.Failure:
        """The outcome under the caller's own number."""
        function = self._answers.get(call.function_id)
        if function is None:
            text = f"the broker has no {call.function_id[: wire.FUNCTION_ID_CHARS_MAX]!r}"
            return wire.Failure(call.number, errors.NO_PROVIDER, "not_handed_over", "", text)
        if len(call.payload) > REQUEST_BYTES_MAX:
            text = f"payload of {len(call.payload)} bytes; engine functions take at most {REQUEST_BYTES_MAX}"
            return wire.Failure(call.number, errors.TOO_LARGE, "not_handed_over", "", text)
        try:
            return wire.Result(call.number, wire.pack(function(wire.unpack(call.payload), now)))
        except (NotFound, ValueError, TypeError) as error:  # raised by these functions for a bad request
            text = str(error)[: wire.TEXT_CHARS_MAX]
            return wire.Failure(call.number, errors.HANDLER_FAILED, "executed", type(error).__name__, text)

    # -- functions -----------------------------------------------------------------------------------------------------

    def _functions_list(self, request: Any, now: float) -> dict[str, Any]:
        query = _Query(request)
        ids = self._registry.function_ids.after(query.after, EXAMINED_MAX + 1, query.prefix)
        if query.all:
            own = [one for one in DESCRIPTIONS if one > query.after and one.startswith(query.prefix)]
            ids = sorted([*ids, *own])
        page, cursor = query.page(ids, self._function_if)
        return {"position": self._position(), "functions": page, "next": cursor}

    def _functions_info(self, request: Any, now: float) -> dict[str, Any]:
        function_id = _text(request, "id")
        if function_id in DESCRIPTIONS:
            return {"position": self._position(), "function": _engine_function(function_id)}
        if function_id not in self._registry.providers:
            raise NotFound(f"no function {function_id!r}")
        return {"position": self._position(), "function": self._function(function_id, self._entry(function_id))}

    def _function_if(self, query: _Query, function_id: str) -> _Looked:
        if function_id in DESCRIPTIONS:
            function, examined = _engine_function(function_id), 0
        else:
            entry = self._entry(function_id)
            providers = self._registry.providers[function_id]
            examined = len(providers[0].entry) + PROVIDER_BYTES * len(providers)
            if entry.internal and not query.all:
                return None, examined
            function = self._function(function_id, entry)
        if not query.matches(function_id, (function_id, function["description"] or "")):
            return None, examined
        names = [name for one in function["providers"] for name in (one["worker_id"], one["worker_name"])]
        return (None if query.worker and query.worker not in names else function), examined

    def _entry(self, function_id: str) -> FunctionEntry:
        providers = self._registry.providers[function_id]
        first = next((one for one in providers if one.active), providers[0])
        return wire.decode_entry(first.entry)

    def _function(self, function_id: str, entry: FunctionEntry) -> dict[str, Any]:
        providers = []
        for one in self._registry.providers[function_id]:
            row = self._registry.workers[one.worker_id]
            providers.append(_provider_json(row.worker_id, row.name, row.state, one.active))
        return wire.function_json(entry, providers)

    # -- workers -------------------------------------------------------------------------------------------------------

    def _workers_list(self, request: Any, now: float) -> dict[str, Any]:
        query = _Query(request)
        page, cursor = query.page(self._registry.worker_ids.after(query.after, EXAMINED_MAX + 1), self._worker_if)
        return {"position": self._position(), "workers": page, "next": cursor}

    def _workers_info(self, request: Any, now: float) -> dict[str, Any]:
        worker_id = _text(request, "id")
        if worker_id not in self._registry.workers:
            raise NotFound(f"no worker {worker_id!r}")
        return {"position": self._position(), "worker": self._worker(worker_id)}

    def _worker_if(self, query: _Query, worker_id: str) -> _Looked:
        row = self._registry.workers[worker_id]
        if query.worker and query.worker not in (worker_id, row.name):
            return None, 0
        if not query.matches(row.name, (worker_id, row.name, row.host)):
            return None, 0
        worker = self._worker(worker_id)
        return worker, len(row.metadata) + sum(map(len, worker["functions"]))

    def _worker(self, worker_id: str) -> dict[str, Any]:
        row = self._registry.workers[worker_id]
        session = self._sessions.get(worker_id)
        return {
            "id": worker_id,
            "name": row.name,
            "host": row.host,
            "pid": row.pid,
            "state": row.state,
            "metadata": wire.unpack_map(row.metadata),
            "functions": sorted(self._registry.offered[worker_id]),
            "in_flight": len(session.in_flight) if session is not None else 0,
        }

    def _position(self) -> dict[str, Any]:
        return {"epoch": self._registry.epoch, "seq": self._registry.seq}


class _Query:
    """The request for a list. Raises: TypeError, ValueError if it is malformed."""

    def __init__(self, request: Any) -> None:
        if request is not None and type(request) is not dict:
            raise TypeError(f"the request is {type(request).__name__}; expected a map such as {{'prefix': 'orders::'}}")
        fields = request or {}
        unknown = set(fields) - {"prefix", "search", "worker", "all", "after", "limit"}
        if unknown:
            names = sorted(map(str, unknown))
            raise ValueError(f"unknown fields {names}; expected prefix, search, worker, all, after, limit")
        self.prefix = _text(fields, "prefix", "")
        self.search = _text(fields, "search", "").lower()
        self.worker = _text(fields, "worker", "")
        self.after = _text(fields, "after", "")
        self.all = bool(fields.get("all", False))
        limit = fields.get("limit", PAGE_MAX)
        if type(limit) is not int or limit < 1:
            seen = limit if type(limit) is int else type(limit).__name__
            raise ValueError(f"limit is {seen}; expected 1 to {PAGE_MAX}")
        self.limit = min(limit, PAGE_MAX)

    def matches(self, name: str, texts: Iterable[str]) -> bool:
        return name.startswith(self.prefix) and (not self.search or any(self.search in text.lower() for text in texts))

    def page(self, ids: list[str], look: Callable[[_Query, str], _Looked]) -> tuple[list[dict[str, Any]], str | None]:
        """The matching elements, and the next cursor. `ids` are the first ones after the current cursor."""
        found: list[dict[str, Any]] = []
        examined_bytes = 0
        end = min(EXAMINED_MAX, len(ids))
        for index in range(end):
            element, examined = look(self, ids[index])
            examined_bytes += examined
            if element is not None:
                found.append(element)
            if len(found) == self.limit or examined_bytes >= EXAMINED_BYTES_MAX:
                end = index + 1
                break
        return found, ids[end - 1] if end < len(ids) else None


def _text(fields: Any, name: str, default: str | None = None) -> str:
    value = fields.get(name, default) if type(fields) is dict else None
    if type(value) is not str:
        raise TypeError(f"{name} is {type(value).__name__}; expected a string")  # no repr: it may be nested too deep
    return value


def _engine_function(function_id: str) -> dict[str, Any]:
    entry = FunctionEntry(function_id, DESCRIPTIONS[function_id], flags=wire.INTERNAL | wire.IDEMPOTENT)
    return wire.function_json(entry, [_provider_json("engine", "engine", wire.READY, True)])


def _provider_json(id: str, name: str, state: str, active: bool) -> dict[str, Any]:
    return {"worker_id": id, "worker_name": name, "state": state, "active": active}
