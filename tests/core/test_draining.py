"""Draining: no new calls, what runs and waits is finished, and exclusive functions are handed over."""

from __future__ import annotations

from iii_zmq import wire
from iii_zmq.core.broker.events import Subscribed
from tests.core.brokerage import NIL, Brokerage, Member, entry

EXCLUSIVE = entry("f", exclusive=True)


def two(function: str | bytes = "f", *, credit: int = 128) -> tuple[Brokerage, Member, Member, Member]:
    """A caller a and providers p and q."""
    broker = Brokerage()
    return broker, broker.join("a"), broker.worker("p", function, credit=credit), broker.worker("q", function)


def answer(broker: Brokerage, peer: str, calls: list[wire.Call]) -> None:
    broker.send(peer, *[wire.Result(call.number, NIL) for call in calls])


def acks(broker: Brokerage, peer: str) -> list[int]:
    return [one.number for one in broker.to(peer) if isinstance(one, wire.Ack)]


def test_a_drain_with_nothing_to_do_is_acknowledged_at_once() -> None:
    broker, _, _, _ = two()
    broker.to("p")
    broker.send("p", wire.Drain(9))
    assert (acks(broker, "p"), broker.workers()["p"]) == ([9], "draining")


def test_an_observer_may_drain() -> None:
    broker = Brokerage()
    broker.join("o", observer=True)
    broker.send("o", wire.Drain(9))
    assert acks(broker, "o") == [9]


def test_new_calls_go_elsewhere() -> None:
    broker, a, _, _ = two()
    broker.send("p", wire.Drain(9))
    broker.send("a", *[a.call(number, "f") for number in range(4)])
    assert (len(broker.calls("p")), len(broker.calls("q"))) == (0, 4)


def test_with_nobody_else_new_calls_fail_at_once() -> None:
    broker, a, _, _ = two()
    broker.send("p", wire.Drain(9))
    broker.send("q", wire.Drain(9))
    broker.send("a", a.call(1, "f"))
    assert broker.failures("a") == [(1, "no_provider", "not_handed_over")]


def test_a_call_aimed_at_who_drains_fails_at_once() -> None:
    broker, a, p, _ = two()
    broker.send("p", wire.Drain(9))
    broker.send("a", a.call(1, "f", target=p.worker_id))
    assert broker.failures("a") == [(1, "no_provider", "not_handed_over")]


def test_the_ack_waits_for_what_runs() -> None:
    broker, a, p, _ = two()
    broker.send("a", a.call(1, "f", target=p.worker_id))
    calls = broker.calls("p")
    broker.send("p", wire.Drain(9))
    assert acks(broker, "p") == []
    answer(broker, "p", calls)
    assert acks(broker, "p") == [9]


def test_the_ack_comes_in_the_turn_of_the_last_answer_and_not_with_the_next_beacon() -> None:
    broker, a, p, _ = two()
    broker.send("a", a.call(1, "f", target=p.worker_id))
    (call,) = broker.calls("p")
    broker.send("p", wire.Drain(9))
    broker.core.receive(b"p", wire.Result(call.number, NIL), broker.now)
    broker.deliver(broker.core.take_outbox())  # without a tick
    assert acks(broker, "p") == [9]


def test_what_waits_for_the_draining_worker_alone_is_finished_by_it() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    first = broker.calls("p")
    broker.send("p", wire.Drain(9))
    answer(broker, "p", first)
    second = broker.calls("p")
    assert (len(second), acks(broker, "p")) == (1, [])
    answer(broker, "p", second)
    assert acks(broker, "p") == [9]


def test_the_ack_waits_for_a_call_that_can_go_nowhere_else_though_nothing_runs() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.lose(p)
    broker.send("a", a.call(1, "f"))
    broker.send("p", wire.Drain(9))
    assert [one for one in broker.to("p") if isinstance(one, wire.Call | wire.Ack)] == []
    broker.hear(Subscribed(wire.presence_topic(p.token)))
    calls = broker.calls("p")
    assert len(calls) == 1
    answer(broker, "p", calls)
    assert acks(broker, "p") == [9]


def test_what_waits_goes_to_the_others_and_the_drain_does_not_wait_for_it() -> None:
    broker = Brokerage()
    a, _, _ = broker.join("a"), broker.worker("p", "f", credit=1), broker.worker("q", "f", credit=1)
    broker.send("a", *[a.call(number, "f") for number in range(3)])
    mine, theirs = broker.calls("p"), broker.calls("q")
    broker.send("p", wire.Drain(9))
    answer(broker, "p", mine)
    assert acks(broker, "p") == [9]
    answer(broker, "q", theirs)
    assert len(broker.calls("q")) == 1


def test_a_call_that_waits_for_the_draining_worker_by_name_is_finished_by_it() -> None:
    # Because others offer the function it was kept from the only worker that may have it, until its deadline.
    broker, a, p, _ = two(credit=1)
    broker.send("a", a.call(1, "f", target=p.worker_id), a.call(2, "f", target=p.worker_id))
    first = broker.calls("p")
    broker.send("p", wire.Drain(9))
    answer(broker, "p", first)
    assert len(broker.calls("p")) == 1


def test_when_the_last_one_drains_too_those_who_drain_already_serve_what_waits() -> None:
    # 1. p drains, idle; q is full, so that a call waits for q.  2. q drains as well.  Nobody looked at the queue then:
    # q's own answer would free it, but q may be stuck, and p could have it at once.
    broker = Brokerage()
    a, _, _ = broker.join("a"), broker.worker("p", "f", credit=1), broker.worker("q", "f", credit=1)
    broker.send("p", wire.Drain(9))
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    assert (len(broker.calls("p")), len(broker.calls("q"))) == (0, 1)
    broker.send("q", wire.Drain(9))
    assert len(broker.calls("p")) == 1


def test_a_second_drain_is_acknowledged_as_well() -> None:
    broker, _, _, _ = two()
    broker.send("p", wire.Drain(9))
    broker.send("p", wire.Drain(10))
    assert acks(broker, "p")[-2:] == [9, 10]


# -- exclusive functions -----------------------------------------------------------------------------------------------


def test_an_idle_active_provider_hands_over_at_once() -> None:
    broker, a, _, _ = two(EXCLUSIVE)
    broker.send("p", wire.Drain(9))
    assert broker.offered() == {"f": [("p", False), ("q", True)]}
    broker.send("a", a.call(1, "f"))
    assert len(broker.calls("q")) == 1


def test_until_the_last_call_has_ended_new_ones_queue_and_then_go_to_the_heir() -> None:
    broker, a, _, _ = two(EXCLUSIVE)
    broker.send("a", a.call(1, "f"))
    running = broker.calls("p")
    broker.send("p", wire.Drain(9))
    broker.send("a", a.call(2, "f"))
    assert (broker.calls("q"), broker.calls("p"), broker.failures("a")) == ([], [], [])
    answer(broker, "p", running)
    (call,) = broker.calls("q")
    assert (call.fence, acks(broker, "p")) == (broker.core.registry.seq, [9])


def test_a_stand_by_that_comes_after_the_drain_takes_over() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", EXCLUSIVE)
    broker.send("p", wire.Drain(9))
    broker.send("a", a.call(1, "f"))
    assert broker.failures("a") == [(1, "no_provider", "not_handed_over")]
    broker.worker("q", EXCLUSIVE)
    broker.send("a", a.call(2, "f"))
    assert len(broker.calls("q")) == 1


def test_a_draining_worker_that_is_promoted_hands_over_as_well() -> None:
    # 1. p is active, q and r stand by, and both drain.  2. p goes, and q is promoted, as nobody else is there.
    # 3. s comes.  What q was to hand over had been noted at its Drain: nothing. New calls queued until their deadlines.
    broker, a, p, _ = two(EXCLUSIVE)
    broker.send("q", wire.Drain(9))
    broker.die(p)
    assert broker.offered() == {"f": [("q", True)]}
    broker.worker("s", EXCLUSIVE)
    broker.send("a", a.call(1, "f"))
    assert (len(broker.calls("s")), broker.offered()) == (1, {"f": [("q", False), ("s", True)]})


def test_what_a_draining_worker_registers_is_handed_over_as_well() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p")
    broker.send("p", wire.Drain(9))
    broker.register("p", EXCLUSIVE)
    broker.worker("q", EXCLUSIVE)
    broker.send("a", a.call(1, "f"))
    assert len(broker.calls("q")) == 1


def test_a_drain_ends_with_its_session() -> None:
    broker, _a, p, _ = two(EXCLUSIVE)
    broker.send("p", wire.Drain(9))
    broker.greet("p2", name="p", token=p.token, functions=wire.functions_digest([EXCLUSIVE]))
    assert (broker.workers()["p"], broker.core._draining._sessions) == ("ready", {})
