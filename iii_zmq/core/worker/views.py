"""What users read of a replica: functions and workers as live, read-only mappings.

Invariant: nothing is remembered, so nothing can be stale: every look decodes the packed rows as they are now. Lists of
keys are copied first, so that a thread may iterate while another changes the replica; it skips what went meanwhile. It
may see a part of a change that is being applied: who needs whole changes reads under the lock of whoever applies them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ... import wire
from .content import Content, read_offer, read_worker

_V = TypeVar("_V")


@dataclass(slots=True, frozen=True)
class Provider:
    """One worker that offers a function. `active` is False for a stand-by of an exclusive function."""

    worker_id: str
    worker_name: str
    state: str
    active: bool


@dataclass(slots=True, frozen=True)
class Function:
    """A function as it is now, with all its providers. Where their entries differ, the first active one's is shown."""

    id: str
    description: str | None
    request_schema: Mapping[str, Any] | None
    response_schema: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    exclusive: bool
    idempotent: bool
    internal: bool
    providers: tuple[Provider, ...]

    def to_json(self) -> dict[str, Any]:
        """One element of `functions --json`, and of the broker's own `engine::functions::list`."""
        return {
            "id": self.id,
            "description": self.description,
            "metadata": self.metadata or {},
            "exclusive": self.exclusive,
            "idempotent": self.idempotent,
            "internal": self.internal,
            "request_schema": self.request_schema,
            "response_schema": self.response_schema,
            "providers": [asdict(provider) for provider in self.providers],
        }


@dataclass(slots=True, frozen=True)
class WorkerInfo:
    """A worker as everybody sees it now, with the ids of the functions it offers."""

    id: str
    name: str
    host: str
    pid: int
    state: str
    metadata: Mapping[str, Any]
    functions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """One element of `workers --json`, but for `in_flight`, which only the broker knows."""
        return {
            "id": self.id,
            "name": self.name,
            "host": self.host,
            "pid": self.pid,
            "state": self.state,
            "metadata": self.metadata,
            "functions": list(self.functions),
        }


class LiveMapping(Mapping[str, _V]):
    """What is there now, by id. `source` gives the content, which a snapshot replaces as a whole."""

    __slots__ = ("_source",)

    def __init__(self, source: Callable[[], Content]) -> None:
        self._source = source

    def __getitem__(self, key: str) -> _V:
        value = self._look(self._source(), key)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys(self._source()))

    def items(self) -> ItemsView[str, _V]:
        return _Items(self)

    def values(self) -> ValuesView[_V]:
        return _Values(self)

    def __repr__(self) -> str:
        return f"<{len(self)} {type(self).__name__.lower()}>"

    def pairs(self) -> Iterator[tuple[str, _V]]:
        """(id, value) of all that was there at the start and still is when its turn comes."""
        content = self._source()
        for key in self._keys(content):
            value = self._look(content, key)
            if value is not None:
                yield key, value

    @abstractmethod
    def _keys(self, content: Content) -> list[str]:
        """A copy of all ids."""

    @abstractmethod
    def _look(self, content: Content, key: str) -> _V | None:
        """What is there under this id now, None when nothing is."""


class Functions(LiveMapping[Function]):
    """Function id -> Function."""

    __slots__ = ()

    def __len__(self) -> int:
        return self._source().function_count()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._source().is_offered(key)

    def _keys(self, content: Content) -> list[str]:
        return content.function_ids()

    def _look(self, content: Content, key: str) -> Function | None:
        rows = [content.get((worker_id, key)) for worker_id in content.holders(key)]
        offers = [read_offer(row) for row in rows if row is not None]
        return _function(content, key, offers) if offers else None


class Workers(LiveMapping[WorkerInfo]):
    """Worker id -> WorkerInfo."""

    __slots__ = ()

    def __len__(self) -> int:
        return self._source().worker_count()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._source().get((key, "")) is not None

    def _keys(self, content: Content) -> list[str]:
        return content.worker_ids()

    def _look(self, content: Content, key: str) -> WorkerInfo | None:
        data = content.get((key, ""))
        if data is None:
            return None
        row = read_worker(data)
        metadata = wire.unpack_map(row.metadata)
        return WorkerInfo(key, row.name, row.host, row.pid, row.state, metadata, tuple(content.offers(key)))


class _Items(ItemsView[str, _V]):
    """Skips what goes while it is iterated, where the standard one would raise KeyError."""

    _mapping: LiveMapping[_V]

    def __iter__(self) -> Iterator[tuple[str, _V]]:
        return self._mapping.pairs()


class _Values(ValuesView[_V]):
    """As `_Items`."""

    _mapping: LiveMapping[_V]

    def __iter__(self) -> Iterator[_V]:
        return (value for _, value in self._mapping.pairs())


def _function(content: Content, function_id: str, offers: list[wire.ProviderRow]) -> Function:
    shown = next((offer for offer in offers if offer.active), offers[0])
    entry = wire.decode_entry(shown.entry)
    return Function(
        function_id,
        entry.description,
        entry.request_schema,
        entry.response_schema,
        entry.metadata,
        entry.exclusive,
        entry.idempotent,
        entry.internal,
        tuple([_provider(content, offer) for offer in offers]),
    )


def _provider(content: Content, offer: wire.ProviderRow) -> Provider:
    data = content.get((offer.worker_id, ""))
    if data is None:  # it goes at this moment, in another thread
        return Provider(offer.worker_id, "", wire.DRAINING, offer.active)
    row = read_worker(data)
    return Provider(offer.worker_id, row.name, row.state, offer.active)
