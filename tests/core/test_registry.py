"""The registry: numbered, atomic changes; who is active; what is held for those who resume; the limits."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.broker import registry as registry_module
from iii_zmq.core.broker.registry import Registry
from iii_zmq.wire import FunctionEntry, RowKey, WorkerRow


def row(worker_id: str, state: str = wire.READY) -> WorkerRow:
    return WorkerRow(worker_id, worker_id.upper(), "host", 7, b"\x80", state)


def joined(*worker_ids: str, **limits: int) -> Registry:
    registry = Registry("e", **limits)
    for worker_id in worker_ids:
        registry.join(row(worker_id))
    registry.history.take_fresh()
    return registry


def register(registry: Registry, worker_id: str, *function_ids: str, flags: int = 0) -> list[wire.Refusal]:
    entries = [FunctionEntry(function_id, flags=flags) for function_id in function_ids]
    return registry.register(worker_id, [(at, one, wire.encode_entry(one)) for at, one in enumerate(entries)])


def fresh(registry: Registry) -> list[wire.Delta]:
    return [wire.decode_delta(delta) for delta in registry.history.take_fresh()]


def put_keys(delta: wire.Delta) -> list[RowKey]:
    return [wire.row_key(data) for data in delta.puts]


def active(registry: Registry, function_id: str) -> list[str]:
    return [one.worker_id for one in registry.providers[function_id] if one.active]


def fence(registry: Registry, worker_id: str, function_id: str) -> int:
    return registry.offered[worker_id][function_id].fence


def digest_of_rows(registry: Registry) -> bytes:
    return wire.digest_bytes(sum(wire.row_hash(data) for data in registry._rows.values()))


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_change_with_one_seq() -> None:
    registry = joined("a")
    register(registry, "a", "f", "g", "h")
    (delta,) = fresh(registry)
    assert (delta.seq, put_keys(delta)) == (2, [("a", "f"), ("a", "g"), ("a", "h")])


def test_a_batch_that_changes_nothing_is_no_change() -> None:
    registry = joined("a")
    register(registry, "a", "f")
    before = registry.seq
    register(registry, "a", "f")
    assert registry.seq == before


def test_a_state_that_stays_is_no_change() -> None:
    registry = joined("a")
    registry.set_state("a", wire.READY)
    assert fresh(registry) == []


def test_a_changed_entry_is_a_change_of_that_row_alone() -> None:
    registry = joined("a")
    register(registry, "a", "f", "g")
    fresh(registry)
    register(registry, "a", "f", flags=wire.INTERNAL)
    assert [put_keys(delta) for delta in fresh(registry)] == [[("a", "f")]]


def test_a_leave_takes_all_that_the_worker_offered_and_nothing_else() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f", "g")
    register(registry, "b", "f")
    fresh(registry)
    assert registry.leave("a", "died") == ["f", "g"]
    (delta,) = fresh(registry)
    assert (set(delta.drops), delta.reason) == ({("a", "f"), ("a", "g"), ("a", "")}, "died")
    assert (list(registry.providers), list(registry.workers)) == (["f"], ["b"])


def test_added_and_removed_at_once_are_two_changes() -> None:
    registry = joined("a")
    register(registry, "a", "f")
    registry.unregister("a", ["f"])
    assert [(len(delta.puts), len(delta.drops)) for delta in fresh(registry)] == [(1, 0), (0, 1)]


def test_to_unregister_what_is_not_offered_is_refused_by_name() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f")
    register(registry, "b", "g")
    refusals = registry.unregister("a", ["g", "f", "f"])
    assert [(index, code) for index, code, _ in refusals] == [(0, "not_registered"), (2, "not_registered")]
    assert list(registry.providers) == ["g"]


def test_the_digest_is_that_of_the_rows_after_every_change() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f", "g", flags=wire.EXCLUSIVE)
    register(registry, "b", "f", flags=wire.EXCLUSIVE)
    registry.set_state("b", wire.STALLED)
    registry.leave("a", "bye")
    assert registry.digest == digest_of_rows(registry)
    registry.leave("b", "bye")
    assert registry.digest == bytes(16)


def test_the_functions_digest_is_that_of_the_entries_as_registered() -> None:
    registry = joined("a")
    register(registry, "a", "f", "g")
    entries = [wire.encode_entry(FunctionEntry(one)) for one in "gf"]
    assert registry.functions_digest("a") == wire.functions_digest(entries)


# -- exclusive ---------------------------------------------------------------------------------------------------------


def test_the_first_provider_of_an_exclusive_function_is_active_and_later_ones_stand_by() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f", flags=wire.EXCLUSIVE)
    register(registry, "b", "f", flags=wire.EXCLUSIVE)
    assert (active(registry, "f"), list(registry.leads["a"]), list(registry.leads["b"])) == (["a"], ["f"], [])


def test_the_fence_is_the_seq_of_the_promotion() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f", flags=wire.EXCLUSIVE)
    assert fence(registry, "a", "f") == registry.seq == 3
    register(registry, "b", "f", flags=wire.EXCLUSIVE)
    assert fence(registry, "b", "f") == 0
    registry.leave("a", "died")
    assert fence(registry, "b", "f") == registry.seq == 5


def test_a_changed_entry_of_the_active_one_keeps_its_fence() -> None:
    registry = joined("a")
    register(registry, "a", "f", flags=wire.EXCLUSIVE)
    register(registry, "a", "f", flags=wire.EXCLUSIVE | wire.INTERNAL)
    assert fence(registry, "a", "f") == 2


def test_the_leave_of_the_active_one_promotes_in_the_same_change() -> None:
    registry = joined("a", "b")
    for worker_id in "ab":
        register(registry, worker_id, "f", flags=wire.EXCLUSIVE)
    fresh(registry)
    registry.leave("a", "died")
    (delta,) = fresh(registry)
    assert [wire.decode_row(data) for data in delta.puts] == [
        wire.ProviderRow("b", "f", True, wire.encode_entry(FunctionEntry("f", flags=wire.EXCLUSIVE)))
    ]


def test_unregistering_the_active_one_promotes_too() -> None:
    registry = joined("a", "b")
    for worker_id in "ab":
        register(registry, worker_id, "f", flags=wire.EXCLUSIVE)
    registry.unregister("a", ["f"])
    assert (active(registry, "f"), list(registry.leads["a"]), list(registry.leads["b"])) == (["b"], [], ["f"])


def test_the_leave_of_a_stand_by_promotes_nobody() -> None:
    registry = joined("a", "b")
    for worker_id in "ab":
        register(registry, worker_id, "f", flags=wire.EXCLUSIVE)
    registry.leave("b", "died")
    assert (active(registry, "f"), fence(registry, "a", "f")) == (["a"], 3)


@pytest.mark.parametrize(
    ("states", "heir"),
    [
        ((wire.DRAINING, wire.STALLED, wire.READY), "d"),
        ((wire.DRAINING, wire.STALLED, wire.STALLED), "c"),
        ((wire.DRAINING, wire.DRAINING, wire.DRAINING), "b"),
        ((wire.READY, wire.READY, wire.READY), "b"),
    ],
)
def test_the_fittest_stand_by_is_promoted_and_the_first_among_equals(states: tuple[str, ...], heir: str) -> None:
    registry = joined("a", "b", "c", "d")
    for worker_id in "abcd":
        register(registry, worker_id, "f", flags=wire.EXCLUSIVE)
    for worker_id, state in zip("bcd", states, strict=True):
        registry.set_state(worker_id, state)
    registry.leave("a", "died")
    assert active(registry, "f") == [heir]


def test_hand_over_is_one_change_for_all_that_have_an_heir() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f", "g", "h", flags=wire.EXCLUSIVE)
    register(registry, "b", "f", "g", flags=wire.EXCLUSIVE)
    fresh(registry)
    assert registry.hand_over("a", ["f", "g", "h"]) == ["f", "g"]
    (delta,) = fresh(registry)
    assert put_keys(delta) == [("a", "f"), ("b", "f"), ("a", "g"), ("b", "g")]
    assert (active(registry, "f"), fence(registry, "b", "f"), list(registry.leads["a"])) == (["b"], delta.seq, ["h"])


def test_nothing_is_handed_over_to_who_drains_but_to_who_is_only_stalled() -> None:
    registry = joined("a", "b", "c")
    for worker_id in "abc":
        register(registry, worker_id, "f", flags=wire.EXCLUSIVE)
    registry.set_state("b", wire.DRAINING)
    registry.set_state("c", wire.DRAINING)
    assert registry.hand_over("a", ["f"]) == []
    registry.set_state("c", wire.STALLED)
    assert (registry.hand_over("a", ["f"]), active(registry, "f")) == (["f"], ["c"])


def test_providers_that_disagree_about_exclusive_are_refused() -> None:
    registry = joined("a", "b", "c")
    register(registry, "a", "f")
    register(registry, "a", "g", flags=wire.EXCLUSIVE)
    refused = register(registry, "b", "f", flags=wire.EXCLUSIVE) + register(registry, "b", "g")
    assert [code for _, code, _ in refused] == ["conflict", "conflict"]
    assert [len(providers) for providers in registry.providers.values()] == [1, 1]


def test_the_only_provider_may_change_its_mind_about_exclusive() -> None:
    registry = joined("a")
    register(registry, "a", "f", flags=wire.EXCLUSIVE)
    register(registry, "a", "f")
    assert (active(registry, "f"), fence(registry, "a", "f"), list(registry.leads["a"])) == (["a"], 0, [])
    register(registry, "a", "f", flags=wire.EXCLUSIVE)
    assert (active(registry, "f"), fence(registry, "a", "f"), list(registry.leads["a"])) == (["a"], 4, ["f"])


# -- history and images ------------------------------------------------------------------------------------------------


def test_since_tells_exactly_the_deltas_after_a_position() -> None:
    registry = joined()
    for worker_id in "abc":
        registry.join(row(worker_id))
    missing = registry.history.since(1)
    assert missing is not None
    assert [wire.decode_delta(delta).seq for delta in missing] == [2, 3]
    assert (registry.history.since(3), registry.history.since(4), len(registry.history.since(0) or [])) == ([], None, 3)


def test_history_is_bounded_by_number() -> None:
    registry = joined("a", "b", "c", "d", history_max=2)
    assert (registry.history.since(1), len(registry.history.since(2) or [])) == (None, 2)
    assert (registry.history.holds(1), registry.history.holds(2)) == (False, True)


def test_history_is_bounded_by_bytes() -> None:
    size = len(joined("a").history._deltas[0])
    registry = joined("a", "b", "c", "d", history_bytes_max=2 * size)
    assert (registry.history.since(1), len(registry.history.since(2) or [])) == (None, 2)


def test_a_delta_larger_than_the_history_is_published_all_the_same() -> None:
    registry = joined(history_bytes_max=10)
    registry.join(row("a"))
    assert (len(fresh(registry)), registry.history.since(0), registry.history.since(1)) == (1, None, [])


def test_an_image_is_shared_while_it_is_young_and_its_deltas_are_held() -> None:
    registry = joined(*[f"w{at}" for at in range(40)])
    first = registry.image()
    registry.join(row("a"))
    registry.join(row("b"))
    assert registry.image() is first  # two deltas for forty rows
    for at in range(4):
        registry.join(row(f"x{at}"))
    assert (registry.image().seq, len(registry.image().rows)) == (46, 46)


def test_an_image_from_before_a_big_batch_is_made_anew() -> None:
    """Ten batches made a registry of 10,000 functions, and joiners got an empty image and ten huge deltas."""
    registry = joined("a", *[f"w{at}" for at in range(40)])
    registry.image()
    register(registry, "a", *[f"f{at}" for at in range(100)])
    assert (registry.image().seq, len(registry.image().rows)) == (registry.seq, 141)


def test_an_image_whose_deltas_are_gone_is_made_anew() -> None:
    registry = joined(*[f"w{at}" for at in range(16)], history_max=1)
    registry.image()
    registry.join(row("a"))
    registry.join(row("b"))
    assert registry.image().seq == 18


def test_an_image_tells_its_rows_and_digest() -> None:
    registry = joined("a", "b")
    register(registry, "a", "f")
    registry.set_state("b", wire.STALLED)
    registry.leave("a", "died")
    image = registry.image()
    assert image.rows == [wire.encode_row(row("b", wire.STALLED))]
    assert (registry.rows_bytes, image.digest) == (len(image.rows[0]), digest_of_rows(registry))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_at_the_limit_of_rows_only_what_is_known_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "FUNCTIONS_MAX", 2)
    registry = joined("a")
    assert [code for _, code, _ in register(registry, "a", "f", "g", "h")] == ["limit"]
    assert register(registry, "a", "f", flags=wire.INTERNAL) == []


def test_at_the_limit_of_bytes_nothing_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    # A million entries of 64 KiB each were within the limit of functions, and far beyond any memory.
    registry = joined("a")
    register(registry, "a", "f")
    monkeypatch.setattr(registry_module, "CONTENT_BYTES_MAX", registry.rows_bytes)
    entry = FunctionEntry("f", "longer")
    refusals = registry.register("a", [(0, entry, wire.encode_entry(entry))]) + register(registry, "a", "g")
    assert [code for _, code, _ in refusals] == ["limit", "limit"]
    assert register(registry, "a", "f", flags=wire.INTERNAL) == []
    registry.unregister("a", ["f"])
    assert register(registry, "a", "g") == []
