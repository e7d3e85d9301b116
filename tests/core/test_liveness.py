"""Who is alive: lost presence, failed sends, silence, stalls, and the broker's own pauses."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.broker.events import EVERYONE, Subscribed, Undelivered, Unsubscribed
from tests.core.brokerage import NIL, Brokerage, Member, entry, leftovers


def probes(broker: Brokerage, peer: str) -> int:
    return sum(isinstance(one, wire.Probe) for one in broker.to(peer))


def reasons(broker: Brokerage) -> list[str]:
    return [delta.reason for delta in broker.stream() if delta.reason]


def keep_alive(broker: Brokerage, seconds: float, *peers: str) -> None:
    """The loops of these peers go on."""
    for _ in range(round(seconds / 0.5)):
        broker.wait(0.5)
        for peer in peers:
            broker.send(peer, wire.Heartbeat(1, "e", 0, 0, 0))


# -- presence ----------------------------------------------------------------------------------------------------------


def test_a_session_without_presence_is_dropped_after_five_seconds() -> None:
    broker = Brokerage()
    broker.greet("a")
    broker.wait(4.9)
    assert list(broker.core.sessions.by_address) == [b"a"]
    broker.wait(0.2)
    assert (leftovers(broker.core), broker.count("never_present")) == ({}, [1])


def test_where_many_are_joining_a_new_session_may_take_longer() -> None:
    """A thousand join at once on two CPUs, and the last one's stream stands after seven seconds: to drop it, so that it
    begins anew, is what such a storm needs least."""
    broker = Brokerage()
    others = [broker.join(f"w{number}") for number in range(100)]
    broker.greet("a")
    keep_alive(broker, 5.5, *[one.peer.decode() for one in others])
    assert broker.count("never_present") == [0]
    keep_alive(broker, 1.0, *[one.peer.decode() for one in others])
    assert broker.count("never_present") == [1]


def test_where_many_are_joining_the_first_heartbeat_may_come_later() -> None:
    """In a storm of joins, calling hundreds stalled and whole again made two deltas each, for everybody."""
    broker = Brokerage()
    others = [broker.join(f"w{number}") for number in range(99)]
    late = broker.worker("a")
    keep_alive(broker, 2.5, *[one.peer.decode() for one in others])
    assert broker.workers()["a"] == "ready"
    keep_alive(broker, 0.5, *[one.peer.decode() for one in others])
    assert broker.workers()["a"] == "stalled"
    broker.send("a", wire.Heartbeat(1, "e", 0, 0, 0))
    keep_alive(broker, 2.0, *[one.peer.decode() for one in others])
    assert (broker.workers()["a"], late.peer) == ("stalled", b"a")


def test_while_many_are_joining_others_may_be_late_too() -> None:
    """A thousand threads joined on one CPU. Those that had come through got no CPU for two seconds, were called stalled
    by the hundred, and each time everybody was told; the storm never ended."""
    broker = Brokerage()
    broker.worker("a")
    broker.send("a", wire.Heartbeat(1, "e", 0, 0, 0))
    joining = [broker.join(f"w{number}").peer.decode() for number in range(100)]
    broker.wait(2.5)
    assert broker.workers()["a"] == "ready"
    for peer in joining:
        broker.send(peer, wire.Heartbeat(1, "e", 0, 0, 0))
    broker.wait(0.3)
    assert broker.workers()["a"] == "stalled"
    assert broker.core.sessions.joining == set()


def test_who_never_sends_a_heartbeat_does_not_count_as_joining_for_ever() -> None:
    broker = Brokerage()
    broker.worker("a")
    broker.wait(2.5)
    assert (broker.workers()["a"], broker.core.sessions.joining) == ("stalled", set())


def test_a_dead_process_is_known_with_the_first_probe_that_fails() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.stream()
    broker.die(p)
    assert (reasons(broker), broker.workers()) == (["died"], {})


def test_a_suspect_is_probed_after_1_2_4_milliseconds_and_so_on() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.lose(p)
    moments = []
    lost_at = broker.now
    for _ in range(8):
        moments += [round((broker.now - lost_at) * 1000)] * probes(broker, "p")
        at = broker.core.next_deadline()
        broker.wait(at - broker.now)
    assert moments[:7] == [0, 1, 3, 7, 15, 31, 63]


def test_a_suspect_is_passed_over_while_its_connection_takes_probes() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.lose(p)
    broker.send("a", a.call(1, "f"))
    assert (broker.calls("p"), broker.failures("a"), broker.workers()["p"]) == ([], [], "ready")


def test_a_suspect_that_says_nothing_for_a_ttl_is_dead() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.stream()
    broker.wait(0.5)
    broker.send("a", a.call(1, "f"))
    broker.lose(p)
    broker.wait(1.4)
    assert broker.workers()["p"] == "ready"
    broker.wait(0.2)
    assert (broker.failures("a"), "p" in broker.workers()) == ([(1, "provider_lost", "possibly_executed")], False)


@pytest.mark.parametrize(("silent_s", "reason"), [(0.5, "died"), (1.5, "silent")])
def test_whoever_was_silent_before_its_presence_went_is_told_as_silent(silent_s: float, reason: str) -> None:
    broker = Brokerage()
    p = broker.join("p")
    broker.stream()
    broker.wait(silent_s)
    broker.die(p)
    assert reasons(broker) == [reason]


def test_a_suspect_is_whole_again_with_its_new_presence() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.lose(p)
    broker.send("a", a.call(1, "f"))
    new = broker.greet("p", token=p.token, functions=wire.functions_digest([entry("f")]))
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    assert len(broker.calls("p")) == 1


def test_a_suspect_is_whole_again_when_its_old_presence_is_heard_again() -> None:
    # A SUB that reconnects subscribes the same topic again. That was ignored, and the worker was passed over for good.
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.lose(p)
    broker.send("a", a.call(1, "f"))
    broker.hear(Subscribed(wire.presence_topic(p.token)))
    assert len(broker.calls("p")) == 1
    keep_alive(broker, 6.0, "p")
    assert broker.workers()["p"] == "ready"


def test_a_suspect_that_talks_but_gets_no_stream_is_dropped_after_five_seconds() -> None:
    # It took probes and was never silent, so that it was passed over for good without knowing why.
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.lose(p)
    keep_alive(broker, 4.5, "p")
    assert broker.workers() == {"p": "ready"}
    keep_alive(broker, 1.0, "p")
    assert broker.workers() == {}
    broker.send("p", wire.Heartbeat(1, "e", 0, 0, 0))
    assert broker.to("p")[-1] == wire.Unknown(1, wire.KIND[wire.Heartbeat])


def test_a_suspect_that_speaks_up_just_before_it_would_be_silent_is_probed_no_earlier() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.wait(1.0)
    broker.lose(p)
    broker.wait(0.9)  # the next probe is due 1.005 s after the loss, the silence 1 s after it
    broker.to("p")
    broker.send("p", wire.Heartbeat(1, "e", 0, 0, 0))
    broker.wait(0.103)
    assert probes(broker, "p") == 0
    broker.wait(0.003)
    assert probes(broker, "p") == 1


def test_a_presence_lost_twice_counts_once() -> None:
    broker = Brokerage()
    p = broker.join("p")
    broker.lose(p)
    broker.lose(p)
    assert broker.count("presence_lost") == [1]


# -- failed sends ------------------------------------------------------------------------------------------------------


def test_a_failed_send_alone_waits_for_the_presence_to_go() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.fail("p", wire.Ack(1, "e", 1, []))
    assert broker.workers() == {"p": "ready"}
    broker.lose(p)
    broker.wait(0.01)
    assert broker.workers() == {}


def test_a_failed_send_and_a_ttl_of_silence_are_a_death_too() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker.fail("p", wire.Ack(1, "e", 1, []))
    broker.wait(2.1)
    assert broker.workers() == {}


def test_an_unreachable_worker_is_handed_no_calls() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f")
    broker.fail("p", wire.Ack(1, "e", 1, []))
    broker.send("a", a.call(1, "f"))
    assert broker.calls("p") == []


def test_a_presence_heard_again_does_not_make_a_lost_connection_whole() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    topic = wire.presence_topic(p.token)
    broker.core.receive(EVERYONE, Unsubscribed(topic), broker.now)
    broker.core.receive(b"p", Undelivered(wire.Probe(0)), broker.now)
    broker.core.receive(EVERYONE, Subscribed(topic), broker.now)
    broker.wait(0.01)
    assert broker.workers() == {}


def test_a_newcomer_that_can_not_be_reached_is_dropped_at_once() -> None:
    broker = Brokerage()
    broker.greet("a")
    broker.fail("a", wire.Welcome(1, "w1", bytes(16), "e", "", 1, 1, 1, 1, 1, False, ""))
    broker.wait(0.01)
    assert leftovers(broker.core) == {}


def test_a_full_queue_resets_its_worker() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker.fail("p", wire.Ack(1, "e", 1, []), overflow=True)
    broker.wait(0.01)
    assert (broker.workers(), broker.count("overflows", "undelivered")) == ({}, [1, 0])
    broker.send("p", wire.Heartbeat(1, "e", 0, 0, 0))
    assert wire.Unknown(1, wire.KIND[wire.Heartbeat]) in broker.to("p")


def test_a_full_queue_of_a_suspect_is_the_end_of_it_too() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.lose(p)
    broker.fail("p", wire.Probe(0), overflow=True)
    broker.wait(0.01)
    assert broker.workers() == {}


def test_bad_news_of_somebody_who_is_gone_is_no_news() -> None:
    broker = Brokerage()
    broker.fail("x", wire.Probe(0))
    assert broker.count("undelivered", "overflows") == [0, 0]


# -- stalls ------------------------------------------------------------------------------------------------------------


def test_three_missed_heartbeats_show_a_worker_as_stalled_and_any_message_ends_that() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker.wait(1.7)
    assert broker.workers() == {"p": "ready"}
    broker.wait(0.1)
    assert broker.workers() == {"p": "stalled"}
    broker.send("p", wire.Heartbeat(1, "e", 0, 0, 0))
    assert (broker.workers(), broker.count("stalled")) == ({"p": "ready"}, [1])


def test_a_stalled_worker_stays_for_as_long_as_its_connections_live() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker.wait(60.0)
    assert (broker.workers(), broker.count("stalled")) == ({"p": "stalled"}, [1])


def test_a_stalled_worker_whose_control_connection_has_gone_is_found_by_a_probe() -> None:
    # Nothing was sent to it, so nothing failed: it stayed as long as its stream did.
    broker = Brokerage()
    broker.worker("p", "f")
    broker.wait(1.8)
    broker.to("p")
    broker.wait(2.0)
    (probe,) = broker.to("p")
    broker.fail("p", probe)
    broker.wait(0.01)
    assert broker.workers() == {}


def test_an_observer_that_stalls_changes_nothing() -> None:
    broker = Brokerage()
    broker.join("o", observer=True)
    broker.wait(5.0)
    assert (broker.stream(), broker.count("stalled")) == ([], [1])


def test_draining_is_told_rather_than_stalled() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker.send("p", wire.Drain(1))
    broker.wait(3.0)
    assert broker.workers() == {"p": "draining"}


# -- the broker's own pauses -------------------------------------------------------------------------------------------


def cut(broker: Brokerage, *members: Member) -> None:
    """What libzmq does on waking: all connections are gone."""
    for member in members:
        broker.core.receive(EVERYONE, Unsubscribed(wire.presence_topic(member.token)), broker.now)
        broker.core.receive(member.peer, Undelivered(wire.Probe(0)), broker.now)
    broker.turn()
    broker.wait(0.01)


def test_after_a_pause_lost_sessions_are_held_and_taken_over_without_a_leave() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    broker.stream()
    broker.sleep(10.0)
    cut(broker, p)
    assert broker.failures("a") == [(1, "provider_lost", "possibly_executed")]
    broker.wait(1.0)
    new = broker.greet("p2", name="p", token=p.token, functions=wire.functions_digest([entry("f")]))
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    assert (new.worker_id, reasons(broker), broker.count("pauses")) == (p.worker_id, [], [1])
    broker.send("a", a.call(2, "f"))
    assert len(broker.calls("p2")) == 1


def test_calls_to_a_held_worker_wait_for_its_return() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.sleep(10.0)
    cut(broker, p)
    broker.send("a", a.call(1, "f"))
    assert (broker.failures("a"), broker.calls("p")) == ([], [])
    new = broker.greet("p2", name="p", token=p.token, functions=wire.functions_digest([entry("f")]))
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    assert len(broker.calls("p2")) == 1


def test_a_held_session_that_does_not_return_ends_two_seconds_after_the_pause() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.stream()
    broker.sleep(10.0)
    cut(broker, p)
    broker.wait(1.9)
    assert broker.workers() == {"p": "ready"}
    broker.wait(0.2)
    assert (broker.workers(), reasons(broker), leftovers(broker.core)) == ({}, ["died"], {})


def test_observers_are_not_held() -> None:
    broker = Brokerage()
    o = broker.join("o", observer=True)
    broker.sleep(10.0)
    cut(broker, o)
    assert leftovers(broker.core) == {}


def test_a_pause_is_nobodys_silence() -> None:
    broker = Brokerage()
    p = broker.join("p")
    broker.sleep(10.0)
    broker.turn()
    broker.lose(p)
    broker.wait(1.0)
    assert broker.workers() == {"p": "ready"}


def test_a_pause_does_not_use_up_the_time_that_a_newcomer_has() -> None:
    # Its subscription may lie unread: only the silence of those who had joined moved along with the pause.
    broker = Brokerage()
    a = broker.greet("a")
    broker.sleep(10.0)
    broker.turn()
    broker.hear(Subscribed(wire.presence_topic(a.token)))
    assert broker.workers() == {"a": "ready"}


def test_a_second_pause_does_not_use_up_the_time_that_the_held_have() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.sleep(10.0)
    cut(broker, p)
    broker.sleep(10.0)
    broker.turn()
    assert broker.workers() == {"p": "ready"}
    broker.greet("p2", name="p", token=p.token, functions=wire.functions_digest([entry("f")]))
    assert broker.count("kept", "left_died") == [1, 0]


def test_a_pause_does_not_use_up_the_time_that_a_suspect_has() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.lose(p)
    broker.sleep(10.0)
    broker.send("p", wire.Heartbeat(1, "e", 0, 0, 0))
    broker.wait(1.0)
    assert broker.workers() == {"p": "ready"}


def test_half_a_ttl_late_is_no_pause() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.wait(broker.core.next_deadline() - broker.now)
    broker.sleep(0.5 + 0.99)
    cut(broker, p)
    assert (broker.workers(), broker.count("pauses")) == ({}, [0])


def test_being_idle_until_the_next_deadline_is_no_pause() -> None:
    broker = Brokerage()
    broker.join("p")
    broker.wait(60.0)
    assert broker.count("pauses") == [0]


def test_results_that_arrived_while_the_broker_slept_count() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    (call,) = broker.calls("p")
    broker.sleep(10.0)
    broker.send("p", wire.Result(call.number, NIL))
    cut(broker, p)
    assert broker.to("a")[-1] == wire.Result(1, NIL)


def lose_stream_and_fall_silent(broker: Brokerage, member: Member) -> None:
    """After a pause, only its stream was cut, and nothing is heard from it for a TTL: it is held."""
    broker.hear(Unsubscribed(wire.presence_topic(member.token)))
    broker.wait(1.9)
    session = broker.core.sessions.by_worker.get(member.worker_id)
    assert session is not None
    assert session.held_until is not None


def test_a_held_session_that_is_back_on_its_connection_hears_the_end_of_its_calls() -> None:
    """Its calls were given up when it was held; on the same connection its worker goes on waiting for the answers."""
    broker = Brokerage()
    a = broker.join("a")
    broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    (call,) = broker.calls("p")
    broker.sleep(10.0)
    lose_stream_and_fall_silent(broker, a)
    new = broker.greet("a", token=a.token, functions=wire.functions_digest([]))
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    broker.send("p", wire.Result(call.number, NIL))
    assert new.worker_id == a.worker_id
    assert [one.number for one in broker.to("a") if isinstance(one, wire.Result)] == [1]


def test_a_held_session_that_is_back_on_another_connection_has_lost_its_calls() -> None:
    broker = Brokerage()
    a = broker.join("a")
    broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    (call,) = broker.calls("p")
    broker.sleep(10.0)
    cut(broker, a)
    broker.greet("a2", name="a", token=a.token, functions=wire.functions_digest([]))
    broker.send("p", wire.Result(call.number, NIL))
    assert broker.count("results_late", "results") == [1, 0]


def reset_after_a_pause(broker: Brokerage, peer: str) -> None:
    """A message to it found no room in its queue."""
    broker.sleep(10.0)
    broker.fail(peer, wire.Ack(1, "e", 1, []), overflow=True)
    broker.wait(0.01)


def test_whose_queue_was_full_after_a_pause_begins_anew_on_the_same_connection() -> None:
    """It would go on waiting for what was never sent."""
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.stream()
    reset_after_a_pause(broker, "p")
    new = broker.greet("p", token=p.token, functions=wire.functions_digest([entry("f")]))
    assert (new.worker_id != p.worker_id, reasons(broker)) == (True, ["replaced"])


def test_whose_queue_was_full_after_a_pause_keeps_its_rows_on_another_connection() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.stream()
    reset_after_a_pause(broker, "p")
    new = broker.greet("p2", name="p", token=p.token, functions=wire.functions_digest([entry("f")]))
    assert (new.worker_id, reasons(broker)) == (p.worker_id, [])
