"""functions, workers, info, status: the registry as it is now.

Functions come from the observer's own replica. The verbs ask the broker for what it alone knows: calls in flight, its
own functions, its counters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import errors, wire
from .client import joined
from .exits import not_found

if TYPE_CHECKING:
    from ..io.worker.sync_worker import Worker

Json = dict[str, Any]
STATUS_KEYS = ("version", "epoch", "seq", "digest", "uptime_s", "workers", "functions", "in_flight", "counters")


@dataclass(slots=True, frozen=True)
class Filter:
    """Selects rows of a list, by the same rules as `engine::functions::list` and `engine::workers::list`."""

    prefix: str = ""
    search: str = ""
    worker: str = ""
    all: bool = False

    def takes_function(self, function: Json) -> bool:
        if function["internal"] and not self.all:
            return False
        names = [name for one in function["providers"] for name in (one["worker_id"], one["worker_name"])]
        if self.worker and self.worker not in names:
            return False
        return self._matches(function["id"], function["id"], function["description"] or "")

    def takes_worker(self, worker: Json) -> bool:
        if self.worker and self.worker not in (worker["id"], worker["name"]):
            return False
        return self._matches(worker["name"], worker["id"], worker["name"], worker["host"])

    def _matches(self, name: str, *texts: str) -> bool:
        search = self.search.lower()
        return name.startswith(self.prefix) and any(search in text.lower() for text in texts)


# -- the verbs ---------------------------------------------------------------------------------------------------------


def show_functions(url: str | None, asked: Filter, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    with joined(url) as worker:
        found = [function for function in _functions(worker, asked) if asked.takes_function(function)]
        position = position_json(worker)
    found.sort(key=lambda function: function["id"])
    if as_json:
        print(json.dumps({"position": position, "functions": found}))
    else:
        from .tables import print_functions

        print_functions(found, position)


def show_workers(url: str | None, asked: Filter, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    with joined(url) as worker:
        in_flight = {row["id"]: row["in_flight"] for row in _pages(worker, "workers", worker=asked.worker)}
        rows = [{**info.to_json(), "in_flight": in_flight.get(id, 0)} for id, info in worker.workers.items()]
        position = position_json(worker)
    found = [_tidy_worker(row) for row in rows if asked.takes_worker(row)]
    found.sort(key=lambda row: (row["name"], row["id"]))
    if as_json:
        print(json.dumps({"position": position, "workers": found}))
    else:
        from .tables import print_workers

        print_workers(found, position)


def show_info(url: str | None, id: str, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    with joined(url) as worker:
        found = _function(worker, id) or _worker(worker, id)
    if found is None:
        raise not_found(f"no function or worker {id!r}")
    if as_json:
        print(json.dumps(found))
    else:
        from .tables import print_function, print_worker

        (print_function if "providers" in found else print_worker)(found)


def show_status(url: str | None, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    with joined(url) as worker:
        told = worker.call("engine::status")
    status = {key: told[key] for key in STATUS_KEYS} | told  # these keys first and in order, then all others
    if as_json:
        print(json.dumps(status))
    else:
        from .tables import print_status

        print_status(status)


# -- private -----------------------------------------------------------------------------------------------------------


def position_json(worker: Worker) -> Json:
    return {"epoch": worker.position.epoch, "seq": worker.position.seq}


def _functions(worker: Worker, asked: Filter) -> Iterator[Json]:
    for function in worker.functions.values():
        yield function.to_json()
    if asked.all and not asked.worker:
        yield from _pages(worker, "functions", all=True, prefix=wire.RESERVED_PREFIX)


def _pages(worker: Worker, what: str, /, **asked: Any) -> Iterator[Json]:
    """Every element of the broker's list, page by page."""
    after = ""
    while True:
        page = worker.call(f"engine::{what}::list", {**asked, "after": after})
        yield from page[what]
        if page["next"] is None:
            return
        after = page["next"]


def _function(worker: Worker, id: str) -> Json | None:
    if wire.is_reserved(id):
        return _ask(worker, "engine::functions::info", id, "function")
    function = worker.functions.get(id)
    return function.to_json() if function is not None else None


def _worker(worker: Worker, id: str) -> Json | None:
    """Finds a worker by its id, or by its name if only one worker has that name."""
    ids = [id] if id in worker.workers else [one.id for one in worker.workers.values() if one.name == id]
    if len(ids) > 1:
        raise not_found(f"{len(ids)} workers are called {id!r}: {', '.join(sorted(ids))}")
    return _ask(worker, "engine::workers::info", ids[0], "worker") if ids else None


def _ask(worker: Worker, function_id: str, id: str, what: str) -> Json | None:
    try:
        answer = worker.call(function_id, {"id": id})
    except errors.RemoteError:  # it does not exist, or left at this moment
        return None
    found: Json = answer[what]
    return _tidy_worker(found) if what == "worker" else found


def _tidy_worker(worker: Json) -> Json:
    """The same worker with its keys in the order of docs/cli.md and its functions sorted."""
    keys = ("id", "name", "host", "pid", "state", "metadata", "functions", "in_flight")
    return {key: sorted(worker[key]) if key == "functions" else worker[key] for key in keys}
