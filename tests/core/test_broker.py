"""The broker's core: sessions from Hello to end, registrations, what is published, and what nobody may do."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.broker import attendance, registrations, sessions, stream
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import EVERYONE, Malformed, Settings, Subscribed, Unsubscribed
from tests.core.brokerage import NIL, Brokerage, Member, entry, leftovers


def refusals(broker: Brokerage, peer: str) -> list[tuple[int, int, str]]:
    return [(one.number, one.kind, one.code) for one in broker.to(peer) if isinstance(one, wire.Refuse)]


def digest_of(*functions: str) -> bytes:
    return wire.functions_digest([entry(function_id) for function_id in functions])


# -- Hello -------------------------------------------------------------------------------------------------------------


def test_a_hello_is_answered_by_a_welcome_with_the_settings_and_limits() -> None:
    broker = Brokerage(settings=Settings("tcp://*:1", 0.25, 1.5, "1.2.3"))
    broker.send("a", broker.hello("a", number=5))
    (welcome,) = broker.to("a")
    token = (1).to_bytes(16, "big")
    assert welcome == wire.Welcome(
        5, "w1", token, "e", "tcp://*:1", 250, 1500, 4096, wire.BATCH_MAX, wire.PAYLOAD_BYTES_MAX, False, "1.2.3"
    )


def test_a_worker_is_no_row_before_its_presence_was_heard() -> None:
    broker = Brokerage()
    a = broker.greet("a")
    assert (broker.workers(), broker.stream()) == ({}, [])
    broker.hear(Subscribed(wire.presence_topic(a.token)))
    assert (broker.workers(), len(broker.stream())) == ({"a": "ready"}, 1)


def test_an_observer_is_no_row() -> None:
    broker = Brokerage()
    broker.join("o", observer=True)
    assert (broker.workers(), broker.stream()) == ({}, [])


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": ""}, "invalid"),
        ({"name": "a\nb"}, "invalid"),
        ({"host": "\x00"}, "invalid"),
        ({"credit": 0}, "invalid"),
        ({"metadata": b"\x90"}, "invalid"),
        ({"metadata": b"\xc1"}, "invalid"),
        ({"metadata": b"\x81\xa1a" * 600 + b"\x80"}, "invalid"),
        ({"capabilities": [""] * 65}, "invalid"),
        ({"capabilities": ["c" * 65]}, "invalid"),
        ({"epoch": "e" * 65}, "invalid"),
    ],
)
def test_a_malformed_hello_is_refused(fields: dict[str, object], code: str) -> None:
    broker = Brokerage()
    broker.send("a", broker.hello("a", **fields))
    assert (refusals(broker, "a"), leftovers(broker.core)) == ([(1, wire.KIND[wire.Hello], code)], {})


def test_lines_for_the_log_that_nobody_takes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "NEWS_MAX", 2)
    broker = Brokerage()
    for name in "abc":
        broker.join(name)
    assert [line.split()[1] for line in broker.core.take_news()] == ["b", "c"]
    assert broker.core.take_news() == []


def test_above_the_limit_of_sessions_strangers_are_refused_and_members_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 2)
    broker = Brokerage()
    broker.join("a")
    broker.join("b")
    broker.send("c", broker.hello("c"))
    assert refusals(broker, "c") == [(1, wire.KIND[wire.Hello], "limit")]
    broker.join("a")
    assert list(broker.workers()) == ["b", "a"]


# Without descriptors for its stream a worker was welcomed, and then dropped again and again.


def test_above_what_the_system_has_descriptors_for_newcomers_are_refused() -> None:
    broker = Brokerage(settings=Settings(sessions_max=1))
    broker.join("a")
    broker.send("b", broker.hello("b"))
    (refuse,) = broker.to("b")
    assert refuse == wire.Refuse(1, wire.KIND[wire.Hello], "limit", "the broker holds 1 sessions, which is its limit")


def test_a_hello_without_a_token_on_a_known_connection_is_a_new_worker() -> None:
    broker = Brokerage()
    first = broker.worker("a", "f")
    second = broker.join("a")
    assert (first.worker_id != second.worker_id, broker.offered(), broker.count("left_replaced")) == (True, {}, [1])


def test_a_hello_with_a_token_that_nobody_has_is_a_new_worker() -> None:
    broker = Brokerage()
    broker.send("a", broker.hello("a", token=bytes(16)))
    assert broker.last("a", wire.Welcome).kept is False


def test_the_token_and_the_same_functions_keep_the_rows_without_any_change() -> None:
    broker = Brokerage()
    old = broker.worker("a", "f", "g")
    broker.stream()
    broker.send("a2", broker.hello("a2", name="a", token=old.token, functions=digest_of("g", "f")))
    welcome = broker.last("a2", wire.Welcome)
    assert (welcome.kept, welcome.worker_id, welcome.token != old.token) == (True, old.worker_id, True)
    assert (broker.stream(), list(broker.offered())) == ([], ["f", "g"])


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": digest_of("f", "g")},
        {"functions": b""},
        {"functions": digest_of("f"), "name": "other"},
        {"functions": digest_of("f"), "host": "other"},
        {"functions": digest_of("f"), "pid": 8},
        {"functions": digest_of("f"), "metadata": wire.pack({"zone": 1})},
        {"functions": digest_of("f"), "observer": True},
    ],
)
def test_other_functions_or_another_identity_replace_the_rows(fields: dict[str, object]) -> None:
    broker = Brokerage()
    old = broker.worker("a", "f")
    broker.stream()
    broker.send("a2", broker.hello("a2", **({"name": "a", "token": old.token} | fields)))
    welcome = broker.last("a2", wire.Welcome)
    assert (welcome.kept, welcome.worker_id != old.worker_id) == (False, True)
    assert [(delta.reason, len(delta.drops)) for delta in broker.stream()] == [("replaced", 2)]
    assert broker.session(old) is None


def test_a_token_of_a_session_that_has_no_row_yet_starts_anew() -> None:
    broker = Brokerage()
    old = broker.greet("a")
    new = broker.greet("a2", token=old.token)
    assert (old.worker_id != new.worker_id, list(broker.core.sessions.by_address)) == (True, [b"a2"])


def test_calls_of_a_session_that_is_taken_over_fail_once_and_queued_ones_wait_for_the_new_one() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    broker.to("p")
    new = broker.greet("p2", name="p", token=p.token, functions=digest_of("f"), credit=1)
    assert broker.failures("a") == [(1, "provider_lost", "possibly_executed")]
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    assert [call.function_id for call in broker.calls("p2")] == ["f"]


def test_a_take_over_undoes_a_stall_in_one_change() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    broker.wait(1.8)
    assert broker.workers() == {"p": "stalled"}
    broker.stream()
    broker.greet("p2", name="p", token=p.token, functions=digest_of("f"))
    assert (broker.workers(), len(broker.stream())) == ({"p": "ready"}, 1)


def test_a_token_used_on_the_connection_of_another_worker_ends_that_one_too() -> None:
    broker = Brokerage()
    broker.worker("x", "g")
    p = broker.worker("p", "f")
    new = broker.greet("x", name="p", token=p.token, functions=digest_of("f"))
    assert (new.worker_id, broker.workers(), list(broker.offered())) == (p.worker_id, {"p": "ready"}, ["f"])


def test_a_hello_that_was_overtaken_by_a_later_one_takes_nothing_back() -> None:
    broker = Brokerage()
    old = broker.worker("p", "f")
    now = broker.greet("p3", name="p", token=old.token, functions=digest_of("f"), number=9)
    overtaken = broker.greet("p2", name="p", token=old.token, functions=digest_of("f"), number=8)
    assert (now.worker_id == old.worker_id, overtaken.worker_id == old.worker_id) == (True, False)
    assert broker.core.sessions.by_address[b"p3"].worker_id == old.worker_id


def test_an_observer_with_its_token_stays_the_same() -> None:
    broker = Brokerage()
    old = broker.join("o", observer=True)
    new = broker.greet("o2", observer=True, token=old.token)
    assert new.worker_id == old.worker_id


# -- renewal: a Hello on the same connection, for a new stream ---------------------------------------------------------


def renewed(broker: Brokerage, member: Member, *functions: str) -> Member:
    name = member.peer.decode()
    return broker.greet(name, token=member.token, functions=digest_of(*functions), number=9)


def test_a_renewal_keeps_calls_and_rows_and_is_routable_again_with_its_new_presence() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    (call,) = broker.calls("p")
    broker.stream()
    new = renewed(broker, p, "f")
    broker.send("a", a.call(2, "f"))
    broker.send("p", wire.Result(call.number, NIL))
    assert (broker.to("a"), broker.calls("p"), broker.stream()) == ([wire.Result(1, NIL)], [], [])
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    assert len(broker.calls("p")) == 1


def test_the_old_presence_means_nothing_after_a_renewal() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    renewed(broker, p, "f")
    broker.hear(Unsubscribed(wire.presence_topic(p.token)), Subscribed(wire.presence_topic(p.token)))
    session = broker.session(p)
    assert session is not None
    assert (session.joined, session.suspect_since) == (False, None)


def test_a_renewal_with_other_functions_starts_anew() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    assert renewed(broker, p, "f", "g").worker_id != p.worker_id


def test_a_renewed_worker_registers_nothing_before_its_new_presence() -> None:
    broker = Brokerage()
    new = renewed(broker, broker.worker("p", "f"), "f")
    broker.stream()
    broker.send("p", wire.Register(2, [entry("g")]), wire.Unregister(3, ["f"]))
    refused = [(one.number, one.code) for one in broker.to("p") if isinstance(one, wire.Refuse)]
    assert (refused, broker.stream()) == ([(2, "not_joined"), (3, "not_joined")], [])
    broker.hear(Subscribed(wire.presence_topic(new.token)))
    assert broker.register("p", "g").refusals == []


def test_a_renewed_worker_that_dies_before_its_new_presence_is_noticed_by_a_probe() -> None:
    # It was left alone for five seconds like a newcomer, though it has rows that everybody sees.
    broker = Brokerage()
    renewed(broker, broker.worker("p", "f"), "f")
    broker.wait(0.26)
    (probe,) = [one for one in broker.to("p") if isinstance(one, wire.Probe)]
    broker.fail("p", probe)
    broker.wait(0.01)
    assert broker.workers() == {}


def test_a_renewed_worker_that_takes_probes_has_five_seconds_for_its_presence() -> None:
    broker = Brokerage()
    renewed(broker, broker.worker("p", "f"), "f")
    broker.wait(4.9)
    assert broker.workers() == {"p": "ready"}
    broker.wait(0.2)
    assert broker.workers() == {}


def test_a_newcomer_is_not_probed() -> None:
    broker = Brokerage()
    broker.greet("a")
    broker.to("a")
    broker.wait(4.0)
    assert broker.to("a") == []


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_anything_but_hello_from_a_stranger_is_answered_by_unknown() -> None:
    broker = Brokerage()
    broker.send("x", wire.Heartbeat(3, "e", 0, 0, 0), wire.Result(4, NIL), wire.Unknown(5, 6))
    assert broker.to("x") == [wire.Unknown(3, 6), wire.Unknown(4, 33), wire.Unknown(5, 14)]


def test_a_bye_from_a_stranger_is_not_answered() -> None:
    broker = Brokerage()
    broker.send("x", wire.Bye(3))
    assert broker.to("x") == []


def test_what_only_a_broker_says_is_counted_and_dropped() -> None:
    broker = Brokerage()
    broker.join("a")
    broker.send("a", wire.Probe(1), wire.Beacon(1, "e", 0, bytes(16)), wire.Ack(1, "e", 1, []))
    assert (broker.to("a"), broker.count("unexpected")) == ([], [3])


def test_what_is_malformed_is_counted() -> None:
    broker = Brokerage()
    broker.send("x", Malformed("garbage"))
    assert broker.count("malformed") == [1]


def test_the_log_learns_whose_connection_it_is() -> None:
    broker = Brokerage()
    a = broker.join("a")
    here = broker.core.sessions.by_address
    assert (here.get(b"a"), here.get(b"x")) == (broker.session(a), None)


def test_topics_that_mean_nothing_are_no_matter() -> None:
    broker = Brokerage()
    broker.hear(Subscribed(b"s|"), Subscribed(b"w|x+"), Unsubscribed(b"w|x"), Unsubscribed(b""))
    assert leftovers(broker.core) == {}


# -- Bye ---------------------------------------------------------------------------------------------------------------


def test_a_bye_takes_the_rows_at_once() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker.stream()
    broker.send("p", wire.Bye(9))
    assert [delta.reason for delta in broker.stream()] == ["bye"]
    assert leftovers(broker.core) == {}


def test_after_a_bye_results_of_running_calls_are_taken_and_with_the_last_the_session_ends() -> None:
    # The session stayed until it had been silent for a TTL, with a slot in every table.
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    first, second = broker.calls("p")
    broker.send("p", wire.Bye(9), wire.Result(first.number, NIL))
    assert broker.to("a") == [wire.Result(1, NIL)]
    broker.send("p", wire.Failure(second.number, "handler_failed", "executed", "E", ""))
    assert list(broker.core.sessions.by_address) == [b"a"]


def test_after_a_bye_nothing_new_is_accepted() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    broker.to("p")
    broker.send("p", wire.Bye(9))
    broker.send(
        "p", p.call(1, "f"), wire.Register(2, [entry("g")]), wire.Unregister(3, ["f"]), wire.Sync(4, "", 0, "gap")
    )
    assert [type(one).__name__ for one in broker.to("p")] == ["Failure", "Refuse", "Refuse", "Refuse"]
    assert broker.offered() == {}


def test_after_a_bye_a_session_that_never_answers_ends_when_it_is_silent() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    broker.send("p", wire.Bye(9))
    broker.wait(2.1)
    assert broker.failures("a") == [(1, "provider_lost", "possibly_executed")]
    assert list(broker.core.sessions.by_address) == [b"a"]


def test_a_second_bye_does_nothing() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    broker.send("p", wire.Bye(9), wire.Bye(10))
    assert broker.count("left_bye") == [1]


def test_a_hello_with_the_token_of_a_session_that_said_bye_is_a_new_worker() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    broker.send("p", wire.Bye(9))
    new = broker.greet("p", token=p.token, functions=digest_of("f"))
    assert (new.worker_id != p.worker_id, broker.failures("a")) == (True, [(1, "provider_lost", "possibly_executed")])


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_published_before_it_is_acknowledged_with_its_seq() -> None:
    broker = Brokerage()
    broker.join("p")
    broker.core.receive(b"p", wire.Register(4, [entry("f"), entry("g")]), broker.now)
    outbox = broker.core.take_outbox()
    assert [type(message).__name__ for _, message in outbox] == ["Deltas", "Ack"]
    assert outbox[1] == (b"p", wire.Ack(4, "e", 2, []))


def test_each_function_of_a_batch_is_accepted_or_refused_by_name() -> None:
    broker = Brokerage()
    broker.worker("x", entry("taken", exclusive=True))
    broker.join("p")
    too_deep = wire.pack(["deep", None, None, None, None, 0])[:-2] + b"\x81\xa1a" * 600 + b"\x80\x00"
    ack = broker.register(
        "p",
        entry("ok"), entry("bad id"), entry("engine::f"), entry("taken"), b"\x91\x01", b"\xc1",
        entry("large", description="x" * wire.ENTRY_BYTES_MAX), too_deep, entry("too"),
    )  # fmt: skip
    assert [(index, code) for index, code, _ in ack.refusals] == [
        (1, "invalid"), (2, "reserved"), (3, "conflict"), (4, "invalid"), (5, "invalid"), (6, "too_large"),
        (7, "invalid"),
    ]  # fmt: skip
    assert list(broker.offered()) == ["taken", "ok", "too"]
    assert broker.count("registered", "refused") == [3, 7]


def test_of_two_entries_with_one_id_in_a_batch_the_later_one_counts() -> None:
    broker = Brokerage()
    p = broker.worker("p", entry("f", description="first"), entry("f", description="second"))
    assert broker.core.registry.offered[p.worker_id]["f"].entry == entry("f", description="second")


def test_a_batch_may_have_so_many_functions_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BATCH_MAX", 2)
    broker = Brokerage()
    broker.join("p")
    broker.send("p", wire.Register(1, [entry("f")] * 3), wire.Unregister(2, ["f"] * 3))
    assert refusals(broker, "p") == [(1, 3, "too_large"), (2, 4, "too_large")]


def test_a_worker_may_have_so_many_functions_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "FUNCTIONS_PER_WORKER_MAX", 2)
    broker = Brokerage()
    broker.worker("p", "f", "g")
    broker.send("p", wire.Register(1, [entry("h")]))
    assert refusals(broker, "p") == [(1, 3, "limit")]


def test_before_the_presence_was_heard_nothing_is_accepted() -> None:
    broker = Brokerage()
    a = broker.greet("a")
    broker.send(
        "a", wire.Register(1, [entry("f")]), wire.Unregister(2, ["f"]), wire.Sync(3, "", 0, "gap"), a.call(4, "f")
    )
    sent = [one for one in broker.to("a") if isinstance(one, wire.Refuse | wire.Failure)]
    assert [(one.number, one.code) for one in sent] == [(number, "not_joined") for number in (1, 2, 3, 4)]


def test_an_observer_may_call_but_not_register() -> None:
    broker = Brokerage()
    o = broker.join("o", observer=True)
    broker.worker("p", "f")
    broker.send("o", wire.Register(1, [entry("f")]), o.call(2, "f"))
    assert (refusals(broker, "o"), len(broker.calls("p"))) == ([(1, 3, "not_joined")], 1)


def test_unregistering_is_acknowledged_and_refused_by_name() -> None:
    broker = Brokerage()
    broker.worker("p", "f", "g")
    broker.send("p", wire.Unregister(5, ["f", "h"]))
    ack = broker.last("p", wire.Ack)
    assert (ack.number, ack.seq, [(at, code) for at, code, _ in ack.refusals]) == (5, 3, [(1, "not_registered")])


def test_many_deltas_of_one_turn_travel_in_a_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "DELTAS_BYTES_MAX", 200)
    broker = Brokerage()
    broker.join("p")
    broker.stream()
    for function_id in "fghijk":
        broker.core.receive(b"p", wire.Register(1, [entry(function_id)]), broker.now)
    messages = [message for _, message in broker.core.take_outbox() if isinstance(message, wire.Deltas)]
    assert [len(message.deltas) for message in messages] == [4, 2]


# -- the engine's functions, the beacon, the end -----------------------------------------------------------------------


def test_the_broker_itself_answers_engine_functions() -> None:
    broker = Brokerage()
    o = broker.join("o", observer=True)
    broker.send("o", o.call(3, "engine::ping", payload=b"\x05"), o.call(4, "engine::nothing"))
    assert broker.to("o") == [
        wire.Result(3, b"\x05"),
        wire.Failure(4, "no_provider", "not_handed_over", "", "the broker has no 'engine::nothing'"),
    ]


def test_an_engine_function_called_without_wanting_an_answer_gives_none() -> None:
    broker = Brokerage()
    o = broker.join("o")
    flags = wire.NO_ANSWER
    broker.send("o", o.call(3, "engine::ping", flags=flags), o.call(4, "engine::workers::info", flags=flags))
    assert broker.to("o") == []
    broker.send("o", o.call(5, "engine::nothing", flags=flags))
    assert broker.failures("o") == [(5, "no_provider", "not_handed_over")]


def test_the_beacon_comes_every_heartbeat_with_position_and_digest() -> None:
    broker = Brokerage()
    broker.worker("p", "f")
    broker._sent.clear()
    broker.wait(1.1)
    registry = broker.core.registry
    assert broker._sent[EVERYONE] == [wire.Beacon(0, "e", 2, registry.digest)] * 2


def test_closing_fails_every_open_call_with_its_fate_and_tells_everyone() -> None:
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    broker.core.close()
    broker.turn()
    assert broker.failures("a") == [(1, "broker_lost", "possibly_executed"), (2, "broker_lost", "not_handed_over")]
    assert wire.Closing(0, "e") in broker._sent[EVERYONE]


def test_after_closing_nothing_is_accepted_and_nothing_that_waited_is_handed_over() -> None:
    # What had been told "not handed over" stayed in its queue, and the next result handed it over.
    broker = Brokerage()
    a, _ = broker.join("a"), broker.worker("p", "f", credit=1)
    broker.send("a", a.call(1, "f"), a.call(2, "f"))
    (call,) = broker.calls("p")
    broker.core.close()
    broker.send("p", wire.Result(call.number, NIL))
    broker.send("a", a.call(3, "f"))
    broker.send("b", broker.hello("b"))
    assert (broker.calls("p"), broker.failures("a")[-1]) == ([], (3, "closing", "not_handed_over"))
    assert refusals(broker, "b") == [(1, wire.KIND[wire.Hello], "closing")]


def test_status_tells_the_broker_at_a_glance() -> None:
    broker = Brokerage(settings=Settings(version="1.2.3"))
    a, _ = broker.join("a"), broker.worker("p", "f")
    broker.send("a", a.call(1, "f"))
    broker.wait(0.3)
    status = broker.core.status(broker.now)
    counters = status.pop("counters")
    assert status == {
        "version": "1.2.3", "epoch": "e", "seq": 3, "digest": broker.core.registry.digest.hex(), "uptime_s": 0.3,
        "workers": 2, "functions": 1, "in_flight": 1, "sessions": 2,
    }  # fmt: skip
    assert (counters["calls"], counters["turn_max_ms"]) == (1, 0.0)


def test_status_of_a_broker_that_has_not_begun_tells_no_uptime() -> None:
    core = BrokerCore("e", Settings(), new_token=lambda: bytes(16), new_id=lambda: "w")
    assert core.status(5.0)["uptime_s"] == 0.0


def test_the_log_is_told_who_joined_and_who_left_and_why() -> None:
    broker = Brokerage()
    p = broker.worker("p", "f")
    q = broker.worker("q", host="")
    broker.join("o", observer=True)
    broker.die(p)
    broker.send("q", wire.Bye(9))
    assert broker.core.take_news() == [
        f"joined: p ({p.worker_id}) at host, pid 7",
        f"joined: q ({q.worker_id}) at an unnamed host, pid 7",
        f"left (died): p ({p.worker_id}) at host",
        f"left (bye): q ({q.worker_id}) at an unnamed host",
    ]
    assert broker.core.take_news() == []


def test_a_heartbeat_tells_the_load() -> None:
    broker = Brokerage()
    p = broker.join("p")
    broker.send("p", wire.Heartbeat(1, "e", 0, 3, 12))
    session = broker.session(p)
    assert session is not None
    assert (session.load, session.lag_ms) == (3, 12)


def test_when_everybody_has_gone_nothing_is_left() -> None:
    broker = Brokerage()
    a, p = broker.join("a"), broker.worker("p", "f", credit=1)
    q = broker.worker("q", entry("g", exclusive=True), entry("h", idempotent=True))
    broker.send("a", *[a.call(number, "fgh"[number % 3]) for number in range(9)])
    broker.send("q", wire.Drain(1))
    for member in (a, p, q):
        broker.die(member)
    assert leftovers(broker.core) == {}
