"""What users read of a replica: live, read-only, decoded at each look."""

from __future__ import annotations

import json
import threading
from dataclasses import FrozenInstanceError

import pytest

from iii_zmq import wire
from iii_zmq.core.worker.replica import Replica
from iii_zmq.core.worker.views import Function, Provider, WorkerInfo
from iii_zmq.wire import Row, RowKey
from tests.core.truth import Truth, offer, worker


class Registry:
    """A replica, and the truth that it follows at once."""

    def __init__(self, *rows: Row) -> None:
        self.truth = Truth()
        self.replica = Replica()
        self.put(*rows)
        self.snapshot()

    def put(self, *rows: Row) -> None:
        self.truth.change(*rows)
        self.replica.on_deltas(self.truth.message())

    def drop(self, *keys: RowKey) -> None:
        self.truth.change(drops=keys)
        self.replica.on_deltas(self.truth.message())

    def snapshot(self) -> None:
        self.replica.expect(1)
        *rows, end = self.truth.snapshot(1)
        for part in rows:
            self.replica.on_snapshot(part)
        self.replica.on_replay(end)


FULL = wire.FunctionEntry(
    "pay::charge",
    "Charge a card",
    {"type": "object"},
    {"type": "null"},
    {"team": "pay"},
    wire.EXCLUSIVE | wire.IDEMPOTENT | wire.INTERNAL,
)


def test_a_function_shows_its_entry_and_its_providers() -> None:
    registry = Registry(
        worker("a"),
        worker("b", wire.STALLED),
        wire.ProviderRow("a", FULL.id, True, wire.encode_entry(FULL)),
        wire.ProviderRow("b", FULL.id, False, wire.encode_entry(FULL)),
    )
    assert registry.replica.functions["pay::charge"] == Function(
        "pay::charge",
        "Charge a card",
        {"type": "object"},
        {"type": "null"},
        {"team": "pay"},
        exclusive=True,
        idempotent=True,
        internal=True,
        providers=(Provider("a", "A", "ready", True), Provider("b", "B", "stalled", False)),
    )


def test_a_function_has_exactly_the_documented_json_fields() -> None:
    row = wire.ProviderRow("a", FULL.id, True, wire.encode_entry(FULL))
    function = Registry(worker("a"), row).replica.functions["pay::charge"]
    assert json.loads(json.dumps(function.to_json())) == {
        "id": "pay::charge",
        "description": "Charge a card",
        "metadata": {"team": "pay"},
        "exclusive": True,
        "idempotent": True,
        "internal": True,
        "request_schema": {"type": "object"},
        "response_schema": {"type": "null"},
        "providers": [{"worker_id": "a", "worker_name": "A", "state": "ready", "active": True}],
    }


def test_a_function_without_metadata_shows_none_of_it_as_the_broker_does() -> None:
    registry = Registry(worker("a"), offer("a", "f"))
    assert registry.replica.functions["f"].to_json()["metadata"] == {}


def test_a_worker_has_exactly_the_documented_json_fields_but_for_in_flight() -> None:
    info = Registry(worker("a", zone="x"), offer("a", "g"), offer("a", "f")).replica.workers["a"]
    assert info == WorkerInfo("a", "A", "host", 7, "ready", {"zone": "x"}, ("g", "f"))
    assert json.loads(json.dumps(info.to_json())) == {
        "id": "a",
        "name": "A",
        "host": "host",
        "pid": 7,
        "state": "ready",
        "metadata": {"zone": "x"},
        "functions": ["g", "f"],
    }


def test_where_providers_differ_the_first_active_ones_entry_is_shown() -> None:
    registry = Registry(offer("a", "f", "by a", active=False), offer("b", "f", "by b"), offer("c", "f", "by c"))
    assert registry.replica.functions["f"].description == "by b"


def test_where_all_stand_by_the_first_ones_entry_is_shown() -> None:
    registry = Registry(offer("a", "f", "by a", active=False), offer("b", "f", "by b", active=False))
    assert registry.replica.functions["f"].description == "by a"


def test_a_provider_without_a_worker_row_is_shown_without_a_name_and_as_going() -> None:
    registry = Registry(offer("a", "f"))
    assert registry.replica.functions["f"].providers == (Provider("a", "", "draining", True),)


def test_the_mappings_are_live() -> None:
    registry = Registry()
    functions, workers = registry.replica.functions, registry.replica.workers
    registry.put(worker("a"), offer("a", "f"))
    assert (list(functions), list(workers), len(functions), len(workers)) == (["f"], ["a"], 1, 1)
    registry.drop(("a", "f"), ("a", ""))
    assert (list(functions), list(workers), len(functions), len(workers)) == ([], [], 0, 0)


def test_a_function_that_was_looked_at_stays_as_it_was() -> None:
    registry = Registry(offer("a", "f", "old"))
    function = registry.replica.functions["f"]
    registry.put(offer("a", "f", "new"))
    assert (function.description, registry.replica.functions["f"].description) == ("old", "new")


def test_what_is_not_there_is_a_key_error() -> None:
    replica = Registry(worker("a"), offer("a", "f")).replica
    for mapping, key in ((replica.functions, "a"), (replica.workers, "f")):
        assert key not in mapping
        assert mapping.get(key) is None
        with pytest.raises(KeyError, match=key):
            mapping[key]


def test_only_ids_are_in_the_mappings() -> None:
    replica = Registry(worker("a"), offer("a", "f")).replica
    assert [key in replica.functions for key in ("f", "", None, 1)] == [True, False, False, False]
    assert [key in replica.workers for key in ("a", "", None, 1)] == [True, False, False, False]


def test_the_mappings_and_what_is_in_them_are_read_only() -> None:
    functions = Registry(offer("a", "f")).replica.functions
    assert not hasattr(functions, "__setitem__")
    with pytest.raises(FrozenInstanceError):
        functions["f"].description = "mine"  # type: ignore[misc]


def test_the_mappings_tell_their_size_not_their_content() -> None:
    replica = Registry(worker("a"), offer("a", "f"), offer("a", "g")).replica
    assert (repr(replica.functions), repr(replica.workers)) == ("<2 functions>", "<1 workers>")


def test_items_and_values_agree_with_lookups() -> None:
    functions = Registry(offer("a", "f"), offer("b", "g")).replica.functions
    assert dict(functions.items()) == {"f": functions["f"], "g": functions["g"]}
    assert list(functions.values()) == [functions["f"], functions["g"]]
    assert (len(functions.items()), functions["f"] in functions.values()) == (2, True)


def test_what_goes_during_an_iteration_is_skipped() -> None:
    registry = Registry(*[offer("a", name) for name in "fgh"])
    values = iter(registry.replica.functions.values())
    assert next(values).id == "f"
    registry.drop(("a", "g"))
    assert [function.id for function in values] == ["h"]


def test_an_iteration_goes_on_over_the_content_that_a_snapshot_replaced() -> None:
    registry = Registry(*[offer("a", name) for name in "fgh"])
    pairs = iter(registry.replica.functions.items())
    next(pairs)
    registry.truth.change(drops=[("a", "g")])
    registry.snapshot()
    assert [function_id for function_id, _ in pairs] == ["g", "h"]


def test_a_row_that_went_between_two_looks_is_no_provider() -> None:
    """Another thread drops the only provider after its worker's id was read, and before its row is."""
    registry = Registry(offer("a", "f"), offer("b", "f"))
    content = registry.replica._content
    del content._offers["b"]["f"]
    assert [provider.worker_id for provider in registry.replica.functions["f"].providers] == ["a"]
    del content._offers["a"]["f"]
    assert registry.replica.functions.get("f") is None


def test_one_thread_reads_while_another_follows_the_registry() -> None:
    registry = Registry(*[offer(f"w{at}", f"f{at}") for at in range(50)])

    def follow() -> None:
        for turn in range(200):
            at = turn % 50
            registry.drop((f"w{at}", f"f{at}"))
            registry.put(offer(f"w{at}", f"f{at}"), offer("x", f"f{at}", str(turn)))

    thread = threading.Thread(target=follow)
    thread.start()
    while thread.is_alive():
        assert all(function.providers for function in registry.replica.functions.values())
    thread.join()
    assert len(registry.replica.functions) == 50


def test_providers_are_counted_as_they_come_and_go() -> None:
    registry = Registry(offer("a", "f"))
    counts = []
    for change in (offer("b", "f"), offer("c", "f"), ("a", "f"), ("c", "f"), ("b", "f")):
        registry.drop(change) if isinstance(change, tuple) else registry.put(change)
        replica = registry.replica
        counts.append((replica.provider_count("f"), replica.has_provider("f")))
    assert counts == [(2, True), (3, True), (2, True), (1, True), (0, False)]


def test_nobody_provides_what_was_never_there() -> None:
    replica = Registry().replica
    assert (replica.provider_count("f"), replica.has_provider("f")) == (0, False)
