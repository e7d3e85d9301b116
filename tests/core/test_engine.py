"""What the broker itself answers: lists in pages, single elements, its own state, and clear words for bad requests."""

from __future__ import annotations

from typing import Any

import pytest

from iii_zmq import wire
from iii_zmq.core.broker import engine
from tests.core.brokerage import Brokerage, Member, entry


def asked(broker: Brokerage, caller: Member, function: str, request: Any = None) -> Any:
    """The unpacked result, or the Failure."""
    broker.send(caller.peer.decode(), caller.call(1, f"engine::{function}", payload=wire.pack(request)))
    answer = broker.to(caller.peer.decode())[-1]
    return wire.unpack(answer.payload) if isinstance(answer, wire.Result) else answer


def town() -> tuple[Brokerage, Member]:
    """An observer, and three workers that offer functions."""
    broker = Brokerage()
    observer = broker.join("o", observer=True)
    broker.worker("pay-1", entry("pay::charge", description="Charge a card"), entry("pay::refund", exclusive=True))
    broker.worker("pay-2", entry("pay::charge", description="Charge a card"), entry("pay::refund", exclusive=True))
    broker.worker("ops", entry("ops::tick"), wire.encode_entry(wire.FunctionEntry("ops::hid", flags=4)))
    return broker, observer


def ids(page: dict[str, Any], kind: str = "functions") -> list[str]:
    return [one["id" if kind == "functions" else "name"] for one in page[kind]]


def pages(broker: Brokerage, caller: Member, kind: str, **query: Any) -> list[list[str]]:
    got, after = [], ""
    while True:
        page = asked(broker, caller, f"{kind}::list", query | {"after": after})
        got.append(ids(page, kind))
        if page["next"] is None:
            return got
        after = page["next"]


# -- functions ---------------------------------------------------------------------------------------------------------


def test_functions_are_listed_in_order_with_the_position_and_without_internal_ones() -> None:
    broker, o = town()
    page = asked(broker, o, "functions::list")
    assert page["position"] == {"epoch": "e", "seq": broker.core.registry.seq}
    assert (ids(page), page["next"]) == (["ops::tick", "pay::charge", "pay::refund"], None)


def test_a_function_tells_all_of_itself() -> None:
    broker = Brokerage()
    o = broker.join("o", observer=True)
    p = broker.worker("p", entry("f", idempotent=True, description="d", metadata={"a": 1}, request_schema={"b": 2}))
    function = asked(broker, o, "functions::info", {"id": "f"})["function"]
    assert function == {
        "id": "f", "description": "d", "metadata": {"a": 1}, "exclusive": False, "idempotent": True, "internal": False,
        "request_schema": {"b": 2}, "response_schema": None,
        "providers": [{"worker_id": p.worker_id, "worker_name": "p", "state": "ready", "active": True}],
    }  # fmt: skip


def test_providers_of_an_exclusive_function_tell_who_is_active() -> None:
    broker, o = town()
    function = asked(broker, o, "functions::info", {"id": "pay::refund"})["function"]
    assert [one["active"] for one in function["providers"]] == [True, False]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"prefix": "pay::"}, ["pay::charge", "pay::refund"]),
        ({"search": "CARD"}, ["pay::charge"]),
        ({"search": "tick"}, ["ops::tick"]),
        ({"worker": "ops"}, ["ops::tick"]),
        ({"worker": "nobody"}, []),
        ({"prefix": "pay::", "search": "fund", "worker": "pay-2"}, ["pay::refund"]),
        ({"all": True, "prefix": "ops"}, ["ops::hid", "ops::tick"]),
        ({"all": True, "worker": "engine", "search": "ping"}, ["engine::ping"]),
        ({"after": "ops::tick"}, ["pay::charge", "pay::refund"]),
    ],
)
def test_functions_are_found_by_prefix_search_and_worker(query: dict[str, Any], expected: list[str]) -> None:
    broker, o = town()
    assert ids(asked(broker, o, "functions::list", query)) == expected


def test_the_worker_of_a_query_may_be_an_id() -> None:
    broker, o = town()
    assert ids(asked(broker, o, "functions::list", {"worker": broker.id_of("ops")})) == ["ops::tick"]


def test_all_pages_together_are_the_whole_list_with_the_engines_own_functions() -> None:
    # On the last page those were filtered by its cursor: in a list of more than one page they never showed.
    broker, o = town()
    got = pages(broker, o, "functions", all=True, limit=3)
    everything = sorted([*engine.DESCRIPTIONS, *broker.core.registry.providers])
    assert ([one for page in got for one in page], max(map(len, got))) == (everything, 3)


def test_a_larger_limit_counts_as_the_largest_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAGE_MAX", 2)
    broker, o = town()
    assert [len(page) for page in pages(broker, o, "functions", limit=10**9)] == [2, 1]


def test_a_list_that_ends_with_its_page_has_no_next() -> None:
    broker, o = town()
    assert [len(page) for page in pages(broker, o, "functions", limit=3)] == [3]


def test_a_page_examines_so_many_rows_and_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "EXAMINED_MAX", 1)
    broker, o = town()
    assert pages(broker, o, "functions", search="pay") == [[], [], ["pay::charge"], ["pay::refund"]]


def test_a_prefix_of_functions_is_looked_up_and_costs_no_page_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # The seven functions of one service among 10,007 were found on the last of six pages.
    monkeypatch.setattr(engine, "EXAMINED_MAX", 1)
    broker, o = town()
    assert pages(broker, o, "functions", prefix="pay::") == [["pay::charge"], ["pay::refund"]]
    assert pages(broker, o, "functions", prefix="pay::charge") == [["pay::charge"]]
    assert pages(broker, o, "functions", prefix="oz") == [[]]
    assert pages(broker, o, "functions", prefix="engine::p", all=True) == [["engine::ping"]]


def test_a_page_examines_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thousand entries of 64 KiB made one result of 64 MiB, twice what a payload may have: nobody could read it.
    monkeypatch.setattr(engine, "EXAMINED_BYTES_MAX", 1)
    broker, o = town()
    assert pages(broker, o, "functions") == [[], ["ops::tick"], ["pay::charge"], ["pay::refund"]]
    assert pages(broker, o, "workers") == [["pay-1"], ["pay-2"], ["ops"]]


def test_a_list_follows_the_registry() -> None:
    broker, o = town()
    assert len(ids(asked(broker, o, "functions::list"))) == 3
    broker.send("ops", wire.Bye(9))
    broker.worker("late", "aaa")
    assert ids(asked(broker, o, "functions::list")) == ["aaa", "pay::charge", "pay::refund"]


def test_the_engines_own_functions_have_info() -> None:
    broker, o = town()
    function = asked(broker, o, "functions::info", {"id": "engine::ping"})["function"]
    assert (function["internal"], function["providers"][0]["worker_id"]) == (True, "engine")


# -- workers -----------------------------------------------------------------------------------------------------------


def test_a_worker_tells_all_of_itself() -> None:
    broker = Brokerage()
    o = broker.join("o", observer=True)
    p = broker.worker("p", "g", "f", metadata=wire.pack({"zone": 1}))
    broker.send("o", o.call(5, "f"))
    worker = asked(broker, o, "workers::info", {"id": p.worker_id})["worker"]
    assert worker == {
        "id": p.worker_id, "name": "p", "host": "host", "pid": 7, "state": "ready", "metadata": {"zone": 1},
        "functions": ["f", "g"], "in_flight": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["pay-1", "pay-2", "ops"]),
        ({"prefix": "pay"}, ["pay-1", "pay-2"]),
        ({"search": "HOST"}, ["pay-1", "pay-2", "ops"]),
        ({"worker": "ops"}, ["ops"]),
        ({"limit": 1}, ["pay-1"]),
    ],
)
def test_workers_are_found_by_prefix_search_and_worker(query: dict[str, Any], expected: list[str]) -> None:
    broker, o = town()
    assert ids(asked(broker, o, "workers::list", query), "workers") == expected


def test_a_held_worker_is_still_listed() -> None:
    broker, o = town()
    row = wire.WorkerRow("ghost", "ghost", "host", 1, b"\x80", wire.READY)
    broker.core.registry.join(row)
    assert asked(broker, o, "workers::info", {"id": "ghost"})["worker"]["in_flight"] == 0


# -- the broker itself, and bad requests -------------------------------------------------------------------------------


def test_status_tells_the_position_and_the_counters() -> None:
    broker, o = town()
    status = asked(broker, o, "status")
    assert (status["seq"], status["workers"], status["counters"]["joined"]) == (broker.core.registry.seq, 3, 4)


@pytest.mark.parametrize(
    ("function", "request_", "type_", "text"),
    [
        ("functions::info", {"id": "none"}, "NotFound", "no function 'none'"),
        ("workers::info", {"id": "none"}, "NotFound", "no worker 'none'"),
        ("functions::info", {}, "TypeError", "id is NoneType; expected a string"),
        ("functions::info", None, "TypeError", "id is NoneType; expected a string"),
        ("functions::list", [], "TypeError", "the request is list; expected a map such as {'prefix': 'orders::'}"),
        ("functions::list", {"prefix": 1}, "TypeError", "prefix is int; expected a string"),
        ("functions::list", {"limit": 0}, "ValueError", "limit is 0; expected 1 to 1000"),
        ("functions::list", {"limit": []}, "ValueError", "limit is list; expected 1 to 1000"),
        (
            "workers::list", {"x": 1, 2: 3}, "ValueError",
            "unknown fields ['2', 'x']; expected prefix, search, worker, all, after, limit",
        ),
    ],
)  # fmt: skip
def test_a_bad_request_is_answered_in_one_line(function: str, request_: Any, type_: str, text: str) -> None:
    broker, o = town()
    assert asked(broker, o, function, request_) == wire.Failure(1, "handler_failed", "executed", type_, text)


def test_a_request_that_is_no_msgpack_value_fails() -> None:
    broker, o = town()
    broker.send("o", o.call(1, "engine::ping", payload=b"\xc1"))
    assert broker.failures("o") == [(1, "handler_failed", "executed")]


def test_a_request_that_is_nested_too_deep_to_be_shown_does_not_stop_the_broker() -> None:
    # Its repr was put into the error's text: RecursionError, which nothing caught.
    broker, o = town()
    deep = b"\x81\xa6prefix" + b"\x91" * 1020 + b"\x80"
    broker.send("o", o.call(1, "engine::functions::list", payload=deep))
    assert broker.failures("o") == [(1, "handler_failed", "executed")]


def test_a_request_has_a_limit_of_bytes() -> None:
    broker, o = town()
    broker.send("o", o.call(1, "engine::ping", payload=bytes(engine.REQUEST_BYTES_MAX + 1)))
    assert broker.failures("o") == [(1, "too_large", "not_handed_over")]
