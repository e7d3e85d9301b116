"""The functions and workers of a replica, as live, read-only mappings for users.

Invariant: nothing is cached, so nothing can be stale: every look-up decodes the current packed rows. Lists of keys are
copied first, so that one thread may iterate while another changes the replica; rows dropped meanwhile are skipped. A
reader may see part of a change that is being applied. To see whole changes only, read under the lock that the applying
thread holds.
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
    """A function as it is now, with all its providers. If their entries differ, this is the first active one's."""

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
        """One element of `functions --json` and of `engine::functions::list`."""
        return wire.function_json(self, [asdict(provider) for provider in self.providers])


@dataclass(slots=True, frozen=True)
class WorkerInfo:
    """A worker as it is now, with the ids of the functions that it offers."""

    id: str
    name: str
    host: str
    pid: int
    state: str
    metadata: Mapping[str, Any]
    functions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """One element of `workers --json`, without `in_flight`, which only the broker knows."""
        return {**asdict(self), "functions": list(self.functions)}


class LiveMapping(Mapping[str, _V]):
    """The current rows, by id. `source` returns the content, which a snapshot replaces as a whole."""

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
        """(id, value) of every row that exists at the start and still exists when its turn comes."""
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
        """The current value under this id, or None."""


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
    """Skips rows that are dropped during the iteration; the standard view would raise KeyError."""

    _mapping: LiveMapping[_V]

    def __iter__(self) -> Iterator[tuple[str, _V]]:
        return self._mapping.pairs()


class _Values(ValuesView[_V]):
    """Like `_Items`."""

    _mapping: LiveMapping[_V]

    def __iter__(self) -> Iterator[_V]:
        return (value for _, value in self._mapping.pairs())


def _function(content: Content, function_id: str, offers: list[wire.ProviderRow]) -> Function:
    shown = next((offer for offer in offers if offer.active), offers[0])
    entry = wire.decode_entry(shown.entry)
    return Function(
        function_id, entry.description, entry.request_schema, entry.response_schema, entry.metadata,
        entry.exclusive, entry.idempotent, entry.internal, tuple([_provider(content, offer) for offer in offers]),
    )  # fmt: skip


def _provider(content: Content, offer: wire.ProviderRow) -> Provider:
    data = content.get((offer.worker_id, ""))
    if data is None:  # another thread is dropping it at this moment
        return Provider(offer.worker_id, "", wire.DRAINING, offer.active)
    row = read_worker(data)
    return Provider(offer.worker_id, row.name, row.state, offer.active)
