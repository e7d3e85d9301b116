"""Calls at the broker: who is handed which, what waits, and what a failed one is told."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.broker import calls as calls_module
from iii_zmq.core.broker import outcomes, queues, unread
from iii_zmq.core.broker import session as session_module
from iii_zmq.core.broker.events import Subscribed
from tests.core.brokerage import NIL, Brokerage, Member, entry, leftovers

LARGE = b"\xc6\x00\x01\x00\x01" + bytes(65_537)


def served(*functions: str | bytes, credit: int = 128) -> tuple[Brokerage, Member, Member]:
    """A caller a and a provider p."""
    broker = Brokerage()
    return broker, broker.join("a"), broker.worker("p", *functions, credit=credit)


def result(call: wire.Call) -> wire.Result:
    return wire.Result(call.number, NIL)


def declined(call: wire.Call, code: str = "no_provider") -> wire.Failure:
    return wire.Failure(call.number, code, "not_handed_over", "", "")


# -- one call ----------------------------------------------------------------------------------------------------------


def test_a_call_reaches_the_provider_and_its_result_the_caller() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f", payload=b"\x01"))
    (call,) = broker.calls("p")
    assert (call.function_id, call.caller, call.payload) == ("f", a.worker_id, b"\x01")
    broker.send("p", wire.Result(call.number, b"\x02"))
    assert broker.to("a") == [wire.Result(7, b"\x02")]


def test_two_callers_with_one_call_number_get_their_own_results() -> None:
    broker, a, _ = served("f")
    b = broker.join("b")
    broker.send("a", a.call(7, "f"))
    broker.send("b", b.call(7, "f"))
    first, second = broker.calls("p")
    broker.send("p", wire.Result(second.number, b"\x02"), wire.Result(first.number, b"\x01"))
    assert (broker.to("a"), broker.to("b")) == ([wire.Result(7, b"\x01")], [wire.Result(7, b"\x02")])


def test_an_unknown_function_fails_at_once() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "g"))
    assert broker.failures("a") == [(7, "no_provider", "not_handed_over")]


def test_a_handlers_failure_is_passed_on_and_its_slot_is_free() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", wire.Failure(call.number, "handler_failed", "executed", "KeyError", "'x'"))
    assert broker.to("a") == [wire.Failure(7, "handler_failed", "executed", "KeyError", "'x'")]
    broker.send("a", a.call(8, "f"))
    assert len(broker.calls("p")) == 1


def test_the_fate_that_a_provider_tells_is_not_embellished() -> None:
    # A provider may only say `executed` or `not_handed_over`, but any other word was taken for `not_handed_over`.
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", wire.Failure(call.number, "provider_lost", "possibly_executed", "", ""))
    assert broker.failures("a") == [(7, "provider_lost", "possibly_executed")]


def test_what_a_provider_says_of_its_failure_is_cut_short() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", wire.Failure(call.number, "c" * 9999, "executed", "t" * 9999, "x" * 9999))
    (failure,) = broker.to("a")
    assert isinstance(failure, wire.Failure)
    assert (len(failure.code), len(failure.type), len(failure.text)) == (4096, 4096, 4096)


def test_a_result_from_a_worker_that_was_not_handed_the_call_is_counted_and_dropped() -> None:
    broker, a, _ = served("f")
    broker.join("x")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("x", result(call), declined(call))
    assert (broker.to("a"), broker.count("results_unmatched")) == ([], [2])
    broker.send("p", result(call))
    assert broker.to("a") == [wire.Result(7, NIL)]


def test_a_second_result_is_counted_and_dropped() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", result(call), result(call))
    assert (broker.to("a"), broker.count("results_unmatched")) == ([wire.Result(7, NIL)], [1])


def test_a_late_result_is_counted_and_dropped_and_frees_the_slot() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(7, "f", remaining_ms=100))
    (call,) = broker.calls("p")
    broker.wait(0.2)
    broker.send("a", a.call(8, "f"))
    assert broker.calls("p") == []  # the slot really is taken
    broker.send("p", result(call))
    assert (broker.count("results_late"), len(broker.calls("p"))) == ([1], 1)
    assert broker.failures("a") == [(7, "timeout", "possibly_executed")]


def test_a_late_failure_is_counted_and_dropped() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"), wire.Cancel(7))
    (call,) = broker.calls("p")
    broker.send("p", declined(call))
    assert (broker.to("a"), broker.count("results_late")) == ([], [1])


def test_a_call_number_that_is_open_already_is_not_accepted_a_second_time() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"), a.call(7, "f"))
    assert (len(broker.calls("p")), broker.count("unexpected")) == (1, [1])


def test_a_call_in_the_name_of_another_worker_is_refused() -> None:
    broker, _a, p = served("f")
    broker.send("a", p.call(7, "f"))
    assert (broker.failures("a"), broker.calls("p")) == ([(7, "invalid", "not_handed_over")], [])


def test_a_worker_may_call_itself() -> None:
    broker, _, p = served("f")
    broker.send("p", p.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", result(call))
    assert broker.to("p") == [wire.Result(7, NIL)]


# -- no answer wanted --------------------------------------------------------------------------------------------------


def test_who_wants_no_answer_gets_no_result_and_no_failure_of_the_handler() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f", flags=wire.NO_ANSWER), a.call(8, "f", flags=wire.NO_ANSWER))
    first, second = broker.calls("p")
    broker.send("p", result(first), wire.Failure(second.number, "handler_failed", "executed", "E", ""))
    assert (broker.to("a"), leftovers(broker.core).get("deadlines")) == ([], None)


def test_who_wants_no_answer_is_told_that_nobody_was_handed_it() -> None:
    broker, a, _ = served()
    broker.send("a", a.call(7, "f", flags=wire.NO_ANSWER))
    assert broker.failures("a") == [(7, "no_provider", "not_handed_over")]


# -- choosing ----------------------------------------------------------------------------------------------------------


def providers(*credits: int, function: str | bytes = "f") -> tuple[Brokerage, Member]:
    """A caller a and providers p0, p1, ... of one function."""
    broker = Brokerage()
    a = broker.join("a")
    for at, credit in enumerate(credits):
        broker.worker(f"p{at}", function, credit=credit)
    return broker, a


def test_nine_calls_over_three_idle_providers_are_three_each() -> None:
    broker, a = providers(9, 9, 9)
    broker.send("a", *[a.call(number, "f") for number in range(9)])
    assert [len(broker.calls(f"p{at}")) for at in range(3)] == [3, 3, 3]


def test_one_call_at_a_time_goes_round() -> None:
    broker, a = providers(9, 9, 9)
    order = []
    for number in range(6):
        broker.send("a", a.call(number, "f"))
        for at in range(3):
            for call in broker.calls(f"p{at}"):
                order.append(at)
                broker.send(f"p{at}", result(call))
    assert order == [0, 1, 2, 0, 1, 2]


def test_the_least_loaded_provider_is_chosen() -> None:
    broker, a = providers(9, 9)
    broker.send("a", *[a.call(number, "f") for number in range(4)])
    for call in broker.calls("p1"):
        broker.send("p1", result(call))
    broker.send("a", a.call(4, "f"), a.call(5, "f"))
    assert [len(broker.calls(f"p{at}")) for at in range(2)] == [2, 2]


def test_a_stalled_provider_is_the_last_choice_but_one() -> None:
    broker, a = providers(9, 1)
    for _ in range(4):  # only p1's loop goes on
        broker.wait(0.5)
        broker.send("p1", wire.Heartbeat(1, "e", 0, 0, 0))
        broker.send("a", wire.Heartbeat(1, "e", 0, 0, 0))
    assert broker.workers()["p0"] == "stalled"
    broker.send("a", a.call(1, "f"))
    assert (len(broker.calls("p0")), len(broker.calls("p1"))) == (0, 1)
    broker.send("a", a.call(2, "f"))
    assert len(broker.calls("p0")) == 1


def test_a_call_aimed_at_one_worker_reaches_that_worker() -> None:
    broker, a = providers(9, 9, 9)
    target = broker.id_of("p2")
    broker.send("a", *[a.call(number, "f", target=target) for number in range(3)])
    assert [len(broker.calls(f"p{at}")) for at in range(3)] == [0, 0, 3]


def test_a_call_aimed_at_a_worker_that_does_not_offer_it_fails_at_once() -> None:
    broker, a, _p = served("f")
    broker.send("a", a.call(1, "f", target=a.worker_id), a.call(2, "f", target="nobody"))
    assert [code for _, code, _ in broker.failures("a")] == ["no_provider"] * 2


# -- limits and queues -------------------------------------------------------------------------------------------------


def test_calls_above_the_credit_wait_and_follow_in_their_order() -> None:
    broker, a, _ = served("f", credit=2)
    broker.send("a", *[a.call(number, "f", payload=bytes([number])) for number in range(5)])
    got = []
    while calls := broker.calls("p"):
        assert len(calls) <= 2
        got += [call.payload for call in calls]
        broker.send("p", *map(result, calls))
    assert got == [bytes([number]) for number in range(5)]


def test_a_failure_makes_room_as_a_result_does() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    (call,) = broker.calls("p")
    broker.send("p", wire.Failure(call.number, "handler_failed", "executed", "E", ""))
    assert len(broker.calls("p")) == 1


def test_calls_of_several_functions_keep_their_order_too() -> None:
    broker, a, _ = served("f", "g", credit=1)
    broker.send("a", *[a.call(number, "fg"[number % 2], payload=bytes([number])) for number in range(4)])
    got = []
    while calls := broker.calls("p"):
        got += [call.payload for call in calls]
        broker.send("p", *map(result, calls))
    assert got == [bytes([number]) for number in range(4)]


def test_a_credit_beyond_the_limit_counts_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_zmq.core.broker.attendance.CREDIT_MAX", 3)
    broker, a, _ = served("f", credit=2**40)
    broker.send("a", *[a.call(number, "f") for number in range(5)])
    assert len(broker.calls("p")) == 3


def test_beyond_the_queue_a_call_is_refused_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "QUEUE_MAX", 2)
    broker, a, _ = served("f", credit=1)
    broker.send("a", *[a.call(number, "f") for number in range(5)])
    assert broker.failures("a") == [(3, "busy", "not_handed_over"), (4, "busy", "not_handed_over")]


def test_the_bytes_that_wait_are_limited_for_all_functions_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "QUEUED_BYTES_MAX", 250)
    broker, a, _ = served("f", "g", credit=1)
    broker.send("a", *[a.call(number, "fg"[number % 2], payload=bytes(100)) for number in range(4)])
    assert broker.failures("a") == [(3, "busy", "not_handed_over")]
    (call,) = broker.calls("p")
    broker.send("p", result(call))
    broker.send("a", a.call(4, "f", payload=bytes(100)))
    assert broker.failures("a") == []


def test_large_calls_that_wait_leave_room_for_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sixteen calls of 16 MiB that waited for one slow function made every other function `busy` at its credit.
    monkeypatch.setattr(queues, "QUEUED_BYTES_MAX", len(LARGE) + 100)
    broker = Brokerage()
    a = broker.join("a")
    broker.worker("slow", "slow::f", credit=1)
    broker.worker("p", "f", credit=1)
    broker.send("a", *[a.call(number, "slow::f", payload=LARGE) for number in range(3)])
    broker.send("a", *[a.call(number, "f", payload=bytes(100)) for number in range(3, 6)])
    assert broker.failures("a") == [(2, "busy", "not_handed_over")]
    assert sum(broker.core._calls._queues._bytes.values()) == len(LARGE) + 200


def test_a_header_that_waits_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    # The protocol can grow: a header may have a megabyte of unknown fields, and is kept as it came.
    monkeypatch.setattr(queues, "QUEUED_BYTES_MAX", 250)
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f", header=bytes(300)))
    assert broker.failures("a") == [(2, "busy", "not_handed_over")]


def test_a_worker_has_so_many_calls_open_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "OPEN_CALLS_MAX", 2)
    broker, a, _ = served("f")
    broker.send("a", *[a.call(number, "f") for number in range(3)])
    assert broker.failures("a") == [(2, "busy", "not_handed_over")]


def test_a_call_that_waits_for_one_worker_holds_up_nobody_elses() -> None:
    # All calls of a function with a queue were queued behind it, and nothing ever took them out again while the other
    # provider was idle: its answers were what the queue waited for.
    broker, a = providers(1, 9)
    p0 = broker.id_of("p0")
    broker.send("a", a.call(1, "f", target=p0), a.call(2, "f", target=p0), a.call(3, "f"))
    assert (len(broker.calls("p0")), len(broker.calls("p1"))) == (1, 1)


def test_a_new_provider_takes_what_waits() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    broker.worker("q", "f", credit=1)
    broker.send("q", wire.Heartbeat(1, "e", 0, 0, 0))
    assert broker.core.counters["calls_queued"] == 1
    assert [len(session.in_flight) for session in broker.core.sessions.by_worker.values()] == [0, 1, 1]


def test_what_waits_for_a_function_fails_when_its_last_provider_unregisters() -> None:
    broker, a, p = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    broker.send("p", wire.Unregister(9, ["f"]))
    assert broker.failures("a") == [(2, "no_provider", "not_handed_over")]
    session = broker.session(p)
    assert session is not None
    assert (session.waiting, leftovers(broker.core).get("queues")) == ({}, None)


def test_what_waits_for_a_worker_that_goes_fails_though_others_offer_the_function() -> None:
    broker, a = providers(1, 9)
    p0 = broker.id_of("p0")
    broker.send("a", a.call(1, "f", target=p0), a.call(2, "f", target=p0))
    broker.send("p0", wire.Bye(9))
    assert broker.failures("a") == [(2, "no_provider", "not_handed_over")]


def bounded(monkeypatch: pytest.MonkeyPatch, bytes_max: int) -> None:
    for module in (session_module, calls_module):
        monkeypatch.setattr(module, "IN_FLIGHT_BYTES_MAX", bytes_max)


def test_a_worker_with_many_bytes_in_flight_gets_no_more_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    # 128 calls of 16 MiB for a worker that did not read were 2 GiB in libzmq's queue.
    bounded(monkeypatch, 250)
    broker, a, p = served("f")
    broker.send("a", *[a.call(number, "f", payload=bytes(100)) for number in range(5)])
    calls = broker.calls("p")
    assert (len(calls), broker.count("calls_queued", "saturated"), broker.failures("a")) == (3, [2, 1], [])
    broker.send("p", result(calls[0]))
    assert (len(broker.calls("p")), broker.count("saturated")) == (1, [2])
    session = broker.session(p)
    assert session is not None
    assert session.in_flight_bytes == 300


def test_another_provider_takes_what_one_with_many_bytes_may_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 100)
    broker, a = providers(9, 9)
    broker.send("a", a.call(1, "f", payload=bytes(100)), *[a.call(number, "f") for number in range(2, 5)])
    assert [len(broker.calls(f"p{at}")) for at in range(2)] == [1, 3]


def test_an_idle_worker_takes_the_largest_payload_however_low_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 1)
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", payload=LARGE), a.call(2, "f", payload=LARGE))
    (call,) = broker.calls("p")
    broker.send("p", result(call))
    assert (len(broker.calls("p")), broker.failures("a")) == (1, [])


def test_a_header_in_flight_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 250)
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", header=bytes(300)), a.call(2, "f"))
    assert len(broker.calls("p")) == 1


def test_a_call_with_a_large_header_alone_is_kept_for_another_try() -> None:
    broker, a = providers(9, 9, function=entry("f", idempotent=True))
    broker.send("a", a.call(1, "f", header=bytes(session_module.KEEP_BYTES_MAX)))
    assert leftovers(broker.core)["large_bytes"] == session_module.KEEP_BYTES_MAX + len(NIL)
    broker.send("p0", wire.Bye(1))
    broker.send("p0", broker.hello("p0"))  # without an answer: the call is lost
    assert len(broker.calls("p1")) == 1


def test_a_call_that_nobody_waits_for_takes_its_bytes_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 100)
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", payload=bytes(100)), wire.Cancel(1), a.call(2, "f"))
    (call,) = broker.calls("p")
    broker.send("p", result(call))
    assert len(broker.calls("p")) == 1


def test_what_could_not_be_sent_is_not_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 250)
    broker, a, p = served("f")
    broker.send("a", a.call(1, "f", payload=LARGE))
    (call,) = broker.calls("p")
    broker.fail("p", call, overflow=True)
    assert broker.session(p) is None
    assert leftovers(broker.core).get("large_bytes") is None


def test_large_payloads_are_limited_for_all_workers_together_and_small_ones_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls_module, "LARGE_BYTES_MAX", len(LARGE) + 100)
    broker, a = providers(9, 9)
    broker.send("a", a.call(1, "f", payload=LARGE), a.call(2, "f", payload=LARGE), a.call(3, "f"))
    assert broker.failures("a") == [(2, "busy", "not_handed_over")]
    (call,) = (one for at in range(2) for one in broker.calls(f"p{at}") if one.payload is LARGE)
    broker.send("p0", result(call))
    broker.send("p1", result(call))
    broker.send("a", a.call(4, "f", payload=LARGE))
    assert (broker.failures("a"), broker.count("calls_busy")) == ([], [1])


def test_the_bytes_of_a_lost_provider_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "LARGE_BYTES_MAX", len(LARGE) + 100)
    broker, a = providers(9, 9)
    broker.send("a", a.call(1, "f", payload=LARGE, target=broker.id_of("p0")), a.call(2, "f"))
    broker.send("p0", wire.Bye(1))
    broker.send("p0", wire.Hello(2, [], "p", "h", 1, bytes([128]), 9, False, "", 0, b"", b""))  # the call is lost
    broker.send("a", a.call(3, "f", payload=LARGE))
    assert [code for _, code, _ in broker.failures("a")] == ["provider_lost"]


# -- results that wait unread ------------------------------------------------------------------------------------------


def answer_all(broker: Brokerage, payload: bytes = LARGE) -> None:
    broker.send("p", *[wire.Result(call.number, payload) for call in broker.calls("p")])


def test_a_caller_that_does_not_acknowledge_large_results_is_told_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4,096 results of 32 MiB for a caller that did not read were 128 GiB in libzmq's queue.
    monkeypatch.setattr(unread, "UNREAD_BYTES_MAX", 2 * len(LARGE))
    broker, a, _ = served("f")
    broker.send("a", *[a.call(number, "f") for number in range(4)])
    answer_all(broker)
    got = [type(one).__name__ for one in broker._sent[b"a"]]
    assert (got, broker.failures("a")) == (
        ["Result", "Result", "Failure", "Failure"],
        [(number, "busy", "possibly_executed") for number in (2, 3)],
    )
    assert broker.count("results", "results_unread") == [4, 2]


def test_small_results_need_no_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "UNREAD_BYTES_MAX", 0)
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f"))
    answer_all(broker, bytes(wire.INLINE_BYTES_MAX))
    assert [type(one) for one in broker.to("a")] == [wire.Result]


def test_an_acknowledged_result_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "UNREAD_BYTES_MAX", len(LARGE))
    broker, a, _ = served("f")
    for number in range(3):
        broker.send("a", a.call(number, "f"))
        answer_all(broker)
        assert [type(one) for one in broker.to("a")] == [wire.Result]
        broker.send("a", wire.Received(number, 0))
    assert broker.count("unexpected") == [0]
    broker.send("a", wire.Received(2, 0))  # once is enough
    assert broker.count("unexpected") == [1]


def test_unread_results_are_limited_for_all_callers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "UNREAD_ALL_BYTES_MAX", len(LARGE))
    broker, a, _ = served("f")
    b = broker.join("b")
    broker.send("a", a.call(1, "f"))
    broker.send("b", b.call(1, "f"))
    answer_all(broker)
    assert ([type(one) for one in broker.to("a")], broker.failures("b")) == (
        [wire.Result],
        [(1, "busy", "possibly_executed")],
    )


def test_what_a_caller_had_not_read_goes_with_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "UNREAD_ALL_BYTES_MAX", len(LARGE))
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f"))
    answer_all(broker)
    broker.send("a", wire.Bye(1))
    assert leftovers(broker.core).get("unread") is None


def test_a_number_that_is_used_twice_costs_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, a, _ = served("f")
    for _ in range(2):
        broker.send("a", a.call(1, "f"))
        answer_all(broker)
    broker.send("a", wire.Received(1, 0))
    assert leftovers(broker.core).get("unread") is None


def test_large_answers_of_the_broker_itself_are_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "UNREAD_BYTES_MAX", 0)
    broker, a, _ = served(*[entry(f"f{number}", description="d" * 60_000) for number in range(2)])
    broker.send("a", a.call(1, "engine::functions::list"), a.call(2, "engine::ping"))
    answers = broker.to("a")
    assert [type(one) for one in answers] == [wire.Failure, wire.Result]
    assert (answers[0].code, answers[0].fate) == ("busy", "not_handed_over")  # type: ignore[union-attr]


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_call_expires_at_its_deadline_and_the_provider_is_told() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f", remaining_ms=250))
    (call,) = broker.calls("p")
    broker.wait(0.249)
    assert broker.failures("a") == []
    broker.wait(0.002)
    assert broker.failures("a") == [(7, "timeout", "possibly_executed")]
    assert broker.to("p") == [wire.Cancel(call.number)]


def test_a_call_that_expires_in_the_queue_was_not_handed_over() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f", remaining_ms=250))
    broker.wait(0.3)
    assert (broker.failures("a"), len(broker.calls("p"))) == ([(2, "timeout", "not_handed_over")], 1)


def test_a_call_that_waited_is_told_what_is_left_of_its_time() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f", remaining_ms=1000, header=b"as it came"))
    (first,) = broker.calls("p")
    broker.wait(0.5)
    broker.send("p", result(first))
    (second,) = broker.calls("p")
    assert (second.remaining_ms, second.header) == (500, None)


def test_a_call_passed_on_at_once_keeps_its_header_as_it_came() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", header=b"as it came"))
    assert [call.header for call in broker.calls("p")] == [b"as it came"]


def test_a_call_without_time_left_is_not_handed_over() -> None:
    # It used to be handed over and cancelled in one turn, and its fate was "possibly executed".
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", remaining_ms=0))
    assert (broker.failures("a"), broker.to("p")) == ([(1, "timeout", "not_handed_over")], [])


def test_a_call_whose_deadline_passes_in_the_turn_that_makes_room_is_not_handed_over() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f", remaining_ms=100), a.call(3, "f"))
    (first,) = broker.calls("p")
    broker.sleep(0.5)  # the answer is read before the clock is looked at
    broker.send("p", result(first))
    assert broker.failures("a") == [(2, "timeout", "not_handed_over")]
    assert len(broker.calls("p")) == 1


def test_an_endless_timeout_ends_some_day() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", remaining_ms=2**62))
    assert broker.core._calls.next_deadline() == broker.now + session_module.REMAINING_MS_MAX / 1000


# -- giving up ---------------------------------------------------------------------------------------------------------


def test_a_cancel_is_passed_on_and_has_no_answer() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("a", wire.Cancel(7), wire.Cancel(7))
    assert (broker.to("a"), broker.to("p")) == ([], [wire.Cancel(call.number)])


def test_a_cancelled_call_leaves_the_queue() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"), wire.Cancel(2))
    (call,) = broker.calls("p")
    broker.send("p", result(call))
    assert (broker.calls("p"), leftovers(broker.core).get("queued_bytes")) == ([], None)


def test_a_caller_that_dies_is_waited_for_no_more() -> None:
    broker, a, _ = served("f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    (call,) = broker.calls("p")
    broker.die(a)
    assert [one for one in broker.to("p") if not isinstance(one, wire.Probe)] == [wire.Cancel(call.number)]
    assert leftovers(broker.core).get("queues") is None


def test_a_worker_that_called_itself_and_dies_is_told_nothing() -> None:
    broker, _, p = served("f")
    broker.send("p", p.call(7, "f"))
    broker.to("p")
    broker.die(p)
    assert broker.to("p") == []


# -- providers that go -------------------------------------------------------------------------------------------------


def test_a_provider_that_dies_fails_its_calls_at_once_as_possibly_executed() -> None:
    broker, a, p = served("f")
    broker.send("a", a.call(7, "f"))
    broker.die(p)
    assert broker.failures("a") == [(7, "provider_lost", "possibly_executed")]


def test_a_call_that_may_have_been_executed_is_not_tried_elsewhere() -> None:
    broker, a, p = served("f")
    broker.send("a", a.call(7, "f"))
    broker.worker("q", "f")
    broker.die(p)
    assert (broker.failures("a"), broker.calls("q")) == ([(7, "provider_lost", "possibly_executed")], [])


def test_an_idempotent_call_goes_to_another_provider() -> None:
    broker, a, p = served(entry("f", idempotent=True))
    broker.send("a", a.call(7, "f", payload=b"\x05"))
    (_lost,) = broker.calls("p")
    broker.worker("q", entry("f", idempotent=True))
    broker.die(p)
    (call,) = broker.calls("q")
    assert (call.payload, broker.failures("a"), broker.count("calls_rerouted")) == (b"\x05", [], [1])
    broker.send("q", result(call))
    assert broker.to("a") == [wire.Result(7, NIL)]


def test_a_second_try_that_was_not_started_may_have_been_executed_the_first_time() -> None:
    broker, a, p = served(entry("f", idempotent=True))
    broker.send("a", a.call(7, "f"))
    broker.worker("q", entry("f", idempotent=True))
    broker.die(p)
    (call,) = broker.calls("q")
    broker.send("q", declined(call, "timeout"))
    assert broker.failures("a") == [(7, "timeout", "possibly_executed")]


def test_a_second_try_that_finds_nobody_left_was_lost_with_its_provider() -> None:
    broker, a, p = served(entry("f", idempotent=True))
    q = broker.worker("q", entry("f", idempotent=True), credit=1)
    broker.send("a", a.call(1, "f", target=q.worker_id), a.call(2, "f"))
    broker.die(p)  # call 2 waits for q now
    broker.die(q)
    assert broker.failures("a") == [
        (1, "provider_lost", "possibly_executed"),
        (2, "provider_lost", "possibly_executed"),
    ]


def test_an_idempotent_call_without_another_provider_fails_as_lost() -> None:
    broker, a, p = served(entry("f", idempotent=True))
    broker.send("a", a.call(7, "f"))
    broker.die(p)
    assert broker.failures("a") == [(7, "provider_lost", "possibly_executed")]


def test_a_call_that_comes_back_goes_before_those_that_came_later() -> None:
    # It was put behind them: a caller's calls reached the second provider in another order than they were made in.
    broker, a = providers(1, 1, function=entry("f", idempotent=True))
    broker.send("a", *[a.call(number, "f", payload=bytes([number])) for number in range(4)])
    (running,) = broker.calls("p1")
    session = broker.core.sessions.by_address[b"p0"]
    broker.die(Member(b"p0", session.worker_id, session.token))
    got = []
    while True:
        broker.send("p1", result(running))
        calls = broker.calls("p1")
        if not calls:
            break
        (running,) = calls
        got.append(running.payload)
    assert got == [b"\x00", b"\x02", b"\x03"]


def test_a_provider_that_no_longer_offers_it_passes_the_call_on() -> None:
    broker, a, _p = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.worker("q", "f")
    broker.send("p", wire.Unregister(9, ["f"]), declined(call))
    assert len(broker.calls("q")) == 1


def test_a_call_that_nobody_started_was_not_handed_over() -> None:
    broker, a, _p = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", wire.Unregister(9, ["f"]), declined(call))
    assert broker.failures("a") == [(7, "no_provider", "not_handed_over")]


def test_a_call_that_a_worker_declines_does_not_come_back_to_it() -> None:
    broker, a, _p = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", declined(call))
    assert (broker.calls("p"), broker.failures("a")) == ([], [(7, "no_provider", "not_handed_over")])


def test_a_call_that_could_not_be_sent_goes_to_another_provider() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.worker("q", "f")
    broker.fail("p", call)
    assert len(broker.calls("q")) == 1


def test_a_call_that_could_not_be_sent_waits_for_the_verdict_and_was_not_handed_over() -> None:
    broker, a, p = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.fail("p", call)
    assert broker.failures("a") == []
    broker.lose(p)
    broker.wait(0.01)
    assert broker.failures("a") == [(7, "no_provider", "not_handed_over")]


def test_a_call_that_could_not_be_sent_is_handed_to_the_worker_when_it_is_back() -> None:
    broker, a, p = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.fail("p", call)
    back = broker.greet("p2", name="p", token=p.token, functions=wire.functions_digest([entry("f")]))
    assert (back.worker_id, broker.calls("p2")) == (p.worker_id, [])
    broker.hear(Subscribed(wire.presence_topic(back.token)))
    assert len(broker.calls("p2")) == 1


def test_a_call_that_could_not_be_sent_and_has_no_caller_any_more_is_forgotten() -> None:
    broker, a, p = served("f", credit=1)
    broker.send("a", a.call(7, "f"), wire.Cancel(7))
    (call,) = broker.calls("p")
    broker.fail("p", call)
    session = broker.session(p)
    assert session is not None
    assert session.in_flight == {}


def test_an_answer_that_arrived_before_the_bad_news_wins() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(7, "f"))
    (call,) = broker.calls("p")
    broker.send("p", result(call))
    broker.fail("p", call)
    assert broker.to("a") == [wire.Result(7, NIL)]


# -- payloads ----------------------------------------------------------------------------------------------------------


def kept_call(broker: Brokerage) -> wire.Call | None:
    """The call of the one route in flight, as far as it is kept for another try."""
    (route,) = [one for session in broker.core.sessions.by_worker.values() for one in session.in_flight.values()]
    return route.call


def test_a_large_payload_is_let_go_when_a_second_try_is_out_of_the_question() -> None:
    broker, a, _p = served("f")
    broker.send("a", a.call(7, "f", payload=LARGE))
    assert kept_call(broker) is None
    (call,) = broker.calls("p")
    broker.send("p", declined(call))
    assert broker.failures("a") == [(7, "no_provider", "not_handed_over")]


def test_large_payloads_of_idempotent_functions_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4,096 calls of 32 MiB in flight to one worker were all kept.
    monkeypatch.setattr(outcomes, "KEPT_BYTES_MAX", len(LARGE) + 1)
    broker, a, p = served(entry("f", idempotent=True))
    broker.send("a", a.call(1, "f", payload=LARGE), a.call(2, "f", payload=LARGE))
    assert broker.count("payloads_let_go") == [1]
    broker.worker("q", entry("f", idempotent=True))
    broker.die(p)
    assert broker.failures("a") == [(2, "provider_lost", "possibly_executed")]
    (call,) = broker.calls("q")
    broker.send("q", result(call))
    assert leftovers(broker.core).get("kept_bytes") is None


def test_the_payload_of_an_ended_call_is_let_go_though_its_slot_is_taken() -> None:
    # Slots of handlers that never end, and stale deadlines, kept them alive.
    broker, a, _ = served(entry("f", idempotent=True))
    broker.send("a", a.call(7, "f", payload=LARGE, remaining_ms=100))
    assert kept_call(broker) is not None
    broker.wait(0.2)
    assert (kept_call(broker), leftovers(broker.core).get("kept_bytes")) == (None, None)


def test_where_the_round_robin_stands_is_forgotten_with_the_function() -> None:
    # One entry for each function that ever had two providers stayed for good.
    broker, a = providers(9, 9)
    broker.send("a", a.call(1, "f"))
    assert broker.core._calls._choice._turns == {"f": 1}
    for at in range(2):
        broker.send(f"p{at}", wire.Unregister(9, ["f"]))
    assert broker.core._calls._choice._turns == {}


# -- exclusive functions -----------------------------------------------------------------------------------------------


def test_only_the_active_provider_is_handed_calls_with_the_seq_of_its_promotion() -> None:
    broker, a = providers(9, 9, function=entry("f", exclusive=True))
    broker.send("a", a.call(1, "f"), a.call(2, "f", fence=99, header=b"forged"))
    calls = broker.calls("p0")
    assert [(call.fence, call.header) for call in calls] == [(3, None), (3, None)]
    assert broker.calls("p1") == []


def test_a_fence_that_a_caller_made_up_does_not_reach_the_provider() -> None:
    broker, a, _ = served("f")
    broker.send("a", a.call(1, "f", fence=99, header=b"forged"))
    assert [(call.fence, call.header) for call in broker.calls("p")] == [(0, None)]


def test_the_fence_rises_with_every_promotion() -> None:
    broker, a = providers(9, 9, function=entry("f", exclusive=True))
    broker.send("a", a.call(1, "f"))
    (before,) = broker.calls("p0")
    broker.send("p0", wire.Bye(9))
    broker.send("a", a.call(2, "f"))
    (after,) = broker.calls("p1")
    assert after.fence == broker.core.registry.seq > before.fence


def test_calls_that_wait_for_the_active_one_go_to_its_heir() -> None:
    broker, a = providers(1, 1, function=entry("f", exclusive=True))
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    broker.send("p0", wire.Bye(9))
    assert len(broker.calls("p1")) == 1


def test_a_call_aimed_at_a_stand_by_fails_at_once() -> None:
    # It waited for a promotion until its deadline.
    broker, a = providers(9, 9, function=entry("f", exclusive=True))
    p1 = broker.id_of("p1")
    broker.send("a", a.call(1, "f", target=p1))
    assert broker.failures("a") == [(1, "no_provider", "not_handed_over")]


def test_an_active_provider_that_declines_leaves_nobody_to_wait_for() -> None:
    broker, a = providers(9, 9, function=entry("f", exclusive=True))
    broker.send("a", a.call(1, "f"))
    (call,) = broker.calls("p0")
    broker.send("p0", declined(call))
    assert broker.failures("a") == [(1, "no_provider", "not_handed_over")]
