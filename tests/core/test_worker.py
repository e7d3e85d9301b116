"""WorkerCore without a socket: the test plays the Link and the broker, message by message."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from iii_zmq import errors, wire
from iii_zmq.core.counters import WORKER_COUNTERS
from iii_zmq.core.worker import membership, sends
from iii_zmq.core.worker import sync as following
from iii_zmq.core.worker.core import WorkerCore
from iii_zmq.core.worker.events import (
    BROKER,
    LINK,
    STREAM,
    CallEnded,
    CancelCall,
    Changes,
    Connect,
    Connected,
    Disconnect,
    Disconnected,
    Drained,
    DropControl,
    Failed,
    JoinRefused,
    NotOffered,
    OpenStream,
    Reached,
    RunCall,
    Settled,
    StateChanged,
    StreamConnected,
    StreamDisconnected,
    StreamFailed,
    Subscribe,
    Troubled,
    Unsent,
    Unsubscribe,
)
from iii_zmq.core.worker.membership import Profile, resolve_stream_url
from iii_zmq.core.worker.offers import first_refusal
from iii_zmq.core.worker.outgoing import GRACE_S, SENDS
from iii_zmq.core.worker.session import OPENINGS_MAX
from tests.core.truth import Truth, offer, worker

TOKEN = b"t" * 16
NIL = wire.pack(None)
SERVER = "tcp://server:5570"


class Place:
    """A core, its clock, and a broker that the test plays."""

    def __init__(self, **profile: Any) -> None:
        self.now = 100.0
        self.core = WorkerCore(Profile("w", "host", 7, SERVER, **profile), random=lambda: 1.0, patience_s=2.0)
        self.truth = Truth()
        self.truth.change(worker("other"))

    def hear(self, *messages: Any, sender: str = BROKER) -> None:
        for message in messages:
            self.core.receive(sender, message, self.now)

    def link(self, *happenings: Any) -> None:
        self.hear(*happenings, sender=LINK)

    def stream(self, *messages: Any) -> None:
        self.hear(*messages, sender=STREAM)

    def sent(self, *kinds: type[Any]) -> list[Any]:
        """What the core wants sent to the broker; only these kinds, if given."""
        found = [message for to, message in self.core.take_outbox() if to == BROKER]
        return [message for message in found if not kinds or isinstance(message, kinds)]

    def orders(self) -> list[Any]:
        return [message for to, message in self.core.take_outbox() if to == LINK]

    def events(self, *kinds: type[Any]) -> list[Any]:
        return [event for event in self.core.take_events() if not kinds or isinstance(event, kinds)]

    def due_in(self) -> float:
        """How long nothing is due."""
        due = self.core.next_deadline()
        assert due is not None
        return due - self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)

    def state(self) -> str:
        return self.core.membership.state

    def phase(self) -> str:
        return self.core.membership.phase

    def welcome(self, hello: wire.Hello, *, kept: bool = False, worker_id: str = "me", **other: Any) -> wire.Welcome:
        fields: dict[str, Any] = {
            "token": TOKEN, "epoch": self.truth.epoch, "stream_url": "tcp://*:5571", "heartbeat_ms": 500,
            "ttl_ms": 2000, "open_calls_max": 3, "batch_max": 2, "payload_bytes_max": 1000, "version": "0",
        }  # fmt: skip
        return wire.Welcome(hello.number, worker_id, kept=kept, **{**fields, **other})

    def snapshot(self, number: int, sender: str = BROKER) -> None:
        self.hear(*self.truth.rows_parts(number), sender=sender)
        parts = len(self.truth.rows_parts(number))
        self.hear(self.truth.replay(number, self.truth.seq, index=parts), sender=sender)

    def greeted(self) -> wire.Hello:
        self.core.connect(self.now)
        self.link(Connected())
        (hello,) = self.sent(wire.Hello)
        return hello  # type: ignore[no-any-return]

    def join(self, **welcome: Any) -> Place:
        hello = self.greeted()
        self.hear(self.welcome(hello, **welcome))
        self.snapshot(hello.number)
        self.sent()
        self.events()
        return self

    def acknowledge(self, message: wire.Register | wire.Unregister, *refusals: wire.Refusal) -> None:
        """The registry changes, everybody hears of it, and the worker gets its Ack."""
        if isinstance(message, wire.Register):
            refused = {index for index, _, _ in refusals}
            ids = [wire.decode_entry(data).id for i, data in enumerate(message.entries) if i not in refused]
            self.truth.change(*[offer("me", name) for name in ids])
        else:
            self.truth.change(drops=[("me", name) for name in message.function_ids], reason="unregistered")
        self.hear(wire.Ack(message.number, self.truth.epoch, self.truth.seq, list(refusals)))
        self.stream(self.truth.message())

    def register(self, *ids: str) -> int:
        return self.core.register({name: entry(name) for name in ids})

    def call(self, function_id: str = "f", timeout: float = 10.0, **other: Any) -> int:
        return self.core.call(function_id, NIL, timeout, self.now, **other)


def entry(name: str, description: str = "") -> bytes:
    return wire.encode_entry(wire.FunctionEntry(name, description))


def call_for(number: int, function_id: str = "mine", remaining_ms: int = 1000, fence: int = 0) -> wire.Call:
    return wire.Call(number, function_id, "caller", remaining_ms, "", 0, fence, NIL)


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def joined() -> Place:
    return Place().join()


@pytest.fixture
def offering(joined: Place) -> Place:
    joined.register("mine")
    (register,) = joined.sent(wire.Register)
    joined.acknowledge(register)
    joined.events()
    return joined


# -- joining -----------------------------------------------------------------------------------------------------------


def test_joining_step_by_step(place: Place) -> None:
    core = place.core
    assert place.state() == "new"
    core.connect(place.now)
    assert place.orders() == [Connect(SERVER, 500, 2000)]
    assert place.events() == [StateChanged("connecting", "")]
    place.link(Connected())
    (hello,) = place.sent()
    assert hello == wire.Hello(1, [wire.BUNDLES], "w", "host", 7, b"\x80", 128, False, "", 0, b"", b"")
    place.hear(place.welcome(hello))
    presence = wire.presence_topic(TOKEN)
    assert place.orders() == [OpenStream("tcp://server:5571", (wire.STREAM_TOPIC, presence), 500, 2000)]
    place.link(StreamConnected())
    assert place.phase() == membership.OPENING
    rows, last = place.truth.rows_parts(1), place.truth.replay(1, 1, index=1)
    place.hear(*rows)
    assert place.phase() == membership.OPEN
    assert place.state() == "connecting"
    place.hear(last)
    assert place.sent() == [wire.Received(1, 0), wire.Received(1, 1)]
    assert place.events() == [Changes([]), StateChanged("connected", "")]
    assert core.replica.digest == place.truth.digest()


def test_registrations_wait_for_the_presence_and_connected_waits_for_them(place: Place) -> None:
    ticket = place.register("a", "b", "c")
    hello = place.greeted()
    place.hear(place.welcome(hello))
    assert place.sent(wire.Register) == []
    place.snapshot(hello.number)
    first, second = place.sent(wire.Register)
    assert [len(first.entries), len(second.entries)] == [2, 1]
    place.events()
    place.acknowledge(first)
    assert place.events(Settled, StateChanged) == []
    place.acknowledge(second)
    assert place.events(Settled, StateChanged) == [Settled(ticket, []), StateChanged("connected", "")]


def test_an_invited_worker_hears_the_answer_on_the_stream(place: Place) -> None:
    hello = place.greeted()
    place.hear(place.welcome(hello))
    place.orders()
    topics = (wire.SNAPSHOT_TOPIC, wire.receipt_topic(TOKEN))
    place.hear(wire.Invite(hello.number, wire.SNAPSHOT_TOPIC, 77))
    assert place.orders() == [Subscribe(topic) for topic in topics]
    place.stream(*place.truth.rows_parts(76))  # another broadcast
    place.hear(wire.Invite(99, wire.SNAPSHOT_TOPIC, 78))  # an answer to nothing
    assert place.core.counters["parts_late"] == 2
    place.snapshot(77, STREAM)
    assert place.orders() == [Unsubscribe(topic) for topic in topics]
    assert place.state() == "connected"
    assert place.core.following.level


def test_a_second_invitation_takes_the_place_of_the_first(place: Place) -> None:
    hello = place.greeted()
    place.hear(place.welcome(hello), wire.Invite(hello.number, wire.SNAPSHOT_TOPIC, 77))
    place.orders()
    place.hear(wire.Invite(hello.number, wire.SNAPSHOT_TOPIC, 78))
    assert [type(order) for order in place.orders()] == [Unsubscribe, Unsubscribe, Subscribe, Subscribe]


@pytest.mark.parametrize(
    ("url", "stream_url", "expected"),
    [
        ("tcp://a:1", "tcp://*:2", "tcp://a:2"),
        ("tcp://[::1]:1", "tcp://0.0.0.0:2", "tcp://[::1]:2"),
        ("tcp://a:1", "tcp://b:2", "tcp://b:2"),
        ("ipc://a", "ipc://a.stream", "ipc://a.stream"),
        ("ipc://a", "tcp://*:2", "tcp://*:2"),
    ],
)
def test_the_stream_is_where_the_broker_is(url: str, stream_url: str, expected: str) -> None:
    assert resolve_stream_url(url, stream_url) == expected


def test_the_stream_url_may_be_given() -> None:
    place = Place(stream_url="tcp://elsewhere:9")
    place.hear(place.welcome(place.greeted()))
    assert [order.url for order in place.orders() if isinstance(order, OpenStream)] == ["tcp://elsewhere:9"]


def test_a_welcome_that_answers_no_hello_is_counted(joined: Place) -> None:
    joined.hear(joined.welcome(wire.Hello(1, [], "w", "h", 7, b"\x80", 1, False, "", 0, b"", b"")))
    joined.hear(wire.Probe(0), wire.Bye(0))
    assert joined.core.counters["unexpected"] == 2
    assert joined.state() == "connected"


def test_a_welcome_counts_only_for_the_latest_hello(joined: Place) -> None:
    joined.link(StreamDisconnected())
    (first,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(first), wire.Unknown(5, wire.KIND[wire.Heartbeat]))
    (second,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(first, worker_id="before"))
    assert (joined.phase(), joined.core.counters["unexpected"]) == ("greeting", 1)
    joined.hear(joined.welcome(second))
    assert joined.phase() == "opening"


def test_a_hello_without_an_answer_ends_in_fresh_sockets_later_and_later(place: Place) -> None:
    hello = place.greeted()
    assert place.core.next_deadline() == place.now + membership.ANSWER_S
    place.wait(membership.ANSWER_S)
    assert place.orders() == [Disconnect()]
    place.wait(0.0)
    assert [type(order) for order in place.orders()] == [Connect]
    place.hear(place.welcome(hello))  # too late
    waits = []
    for _ in range(8):
        place.link(Connected(), Disconnected())
        waits.append(place.due_in())
        place.wait(waits[-1])
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.1)
    assert waits[-1] == membership.BACKOFF_TTL * membership.TTL_MS / 1000 < membership.BACKOFF_MAX_S


@pytest.mark.parametrize("failure", [Failed("not ZMTP"), Disconnected()])
def test_a_failed_handshake_is_tried_again_soon_with_fresh_sockets(place: Place, failure: Any) -> None:
    """Wrong types of sockets and broken frames show as an ended connection only, after which libzmq rests for good."""
    place.core.connect(place.now)
    waits = []
    for _ in range(8):
        place.link(Reached(), failure, Disconnected())  # the second word on one failure counts for nothing
        waits.append(place.due_in())
        place.orders()
        place.wait(waits[-1])
        assert [type(order) for order in place.orders()] == [Connect]
    assert waits == sorted(waits)
    assert waits[-1] == membership.STRANGER_BACKOFF_MAX_S
    assert place.core.counters["handshakes_failed"] == 8


def test_who_waits_for_a_broker_always_has_sockets_that_try(place: Place) -> None:
    """A worker paused between two attempts, for up to 2 s: a broker that came then was found so much later."""
    place.core.connect(place.now)
    for _ in range(5):
        place.orders()
        place.wait(membership.FRESH_S)  # libzmq may have given up without a word
        assert [type(order) for order in place.orders()] == [Connect]
        assert place.phase() == membership.AWAITING_CONNECTION


def test_each_reason_for_having_no_session_is_told_once(place: Place) -> None:
    place.core.connect(place.now)
    for text in ("a", "b", "a", *map(str, range(membership.TOLD_MAX))):
        place.link(Failed(text))
        place.wait(10)
    told = [event.text for event in place.events(Troubled)]
    assert told == ["a", "b", *map(str, range(membership.TOLD_MAX - 2))]
    place.join()
    place.link(Disconnected())
    assert place.events(Troubled) == [Troubled("the connection to the broker was lost")]


def test_what_is_known_of_the_peer_is_the_trouble(place: Place) -> None:
    place.core.connect(place.now)
    troubles = [place.core.membership.trouble]
    for happening in (Reached(), Connected(), Reached()):
        place.link(happening)
        troubles.append(place.core.membership.trouble)
    (hello,) = place.sent(wire.Hello)
    place.hear(place.welcome(hello))
    troubles.append(place.core.membership.trouble)
    place.snapshot(hello.number)
    troubles.append(place.core.membership.trouble)
    answers_not = "a program is there, but it does not answer as a broker does"
    assert troubles == [
        "", "a program accepts connections there, but it does not greet as a broker does", answers_not, answers_not,
        "the broker answers, but its stream at tcp://server:5571 does not", "",
    ]  # fmt: skip


def test_what_a_stranger_showed_is_the_trouble_until_more_is_known(place: Place) -> None:
    """Who is refused again and again wants to read that, at whatever moment its time is over."""
    place.core.connect(place.now)
    place.link(Reached(), Failed("refused"))
    place.wait(0.0)
    place.link(Reached())
    assert place.core.membership.trouble == "refused"
    place.link(Connected())
    assert "does not answer" in place.core.membership.trouble


def test_who_sends_back_what_it_is_sent_is_left_at_once(place: Place) -> None:
    """A socket that looks for a listener on its own machine may end up connected to itself, and keep the port taken."""
    hello = place.greeted()
    place.hear(hello)
    assert place.phase() == membership.PAUSING
    echoes = "the program at that address echoes what it receives: it is not a broker"
    assert place.core.membership.trouble == echoes


def test_a_presence_that_is_not_heard_is_said_again_then_all_is_made_anew(place: Place) -> None:
    hello = place.greeted()
    for _ in range(OPENINGS_MAX):
        place.hear(place.welcome(hello))
        place.sent()
        place.wait(membership.ANSWER_S)
        (hello,) = place.sent(wire.Hello)
        assert hello.token == TOKEN
    place.hear(place.welcome(hello))
    place.wait(membership.ANSWER_S)
    assert place.phase() == membership.PAUSING
    assert place.core.membership.trouble == "the broker answers, but its stream at tcp://server:5571 does not"


def test_the_stream_goes_on_while_the_control_connection_is_made_anew(joined: Place) -> None:
    """It was closed with the control connection, so the broker heard no presence any more: who only lost the one
    connection left and joined, instead of keeping its rows. What becomes of the old stream does not matter."""
    joined.link(Disconnected())
    joined.wait(0.0)
    joined.truth.change(worker("third"))
    joined.stream(joined.truth.message())
    assert "third" in joined.core.replica.workers
    joined.link(StreamFailed("no matter"), StreamDisconnected(), Connected())
    (hello,) = joined.sent(wire.Hello)
    joined.link(StreamFailed("no matter"), StreamDisconnected())
    assert joined.phase() == membership.GREETING
    joined.hear(joined.welcome(hello, kept=True))
    assert [type(order) for order in joined.orders()] == [OpenStream]


def test_a_stream_that_fails_at_once_is_made_anew_soon(place: Place) -> None:
    hello = place.greeted()
    waits = []
    for failures, failure in enumerate([StreamFailed("no such socket")] + 3 * [StreamDisconnected()]):
        assert place.core.counters["streams_failed"] == max(0, failures - 1)
        place.hear(place.welcome(hello))
        place.sent()
        place.link(failure)
        waits.append(place.due_in())
        place.wait(waits[-1])
        (hello,) = place.sent(wire.Hello) or [hello]
    again_s = membership.STREAM_AGAIN_S
    assert waits == pytest.approx([again_s, 2 * again_s, 4 * again_s, 8 * again_s])
    assert place.phase() == membership.PAUSING
    told = "the broker answers, but its stream at tcp://server:5571 does not"
    assert place.events(Troubled) == [Troubled(f"{told}: no such socket"), Troubled(told)]


def test_a_broker_of_another_version_is_told_as_that(place: Place) -> None:
    hello = place.greeted()
    place.hear(wire.Refuse(hello.number, wire.KIND[wire.Hello], errors.VERSION, "this broker speaks version 2"))
    refused = JoinRefused("version", "this broker speaks version 2; this worker speaks version 1")
    assert (place.events(JoinRefused), place.state()) == ([refused], "closed")


def test_a_refused_hello_is_the_end_or_not(place: Place) -> None:
    hello = place.greeted()
    place.hear(wire.Refuse(99, wire.KIND[wire.Hello], errors.VERSION, "not yours"))
    place.hear(wire.Refuse(hello.number, wire.KIND[wire.Hello], errors.CLOSING, "closing"))
    assert place.phase() == membership.PAUSING
    place.wait(0.0)
    place.link(Connected())
    hello = place.sent(wire.Hello)[-1]
    place.events()
    place.hear(wire.Refuse(hello.number, wire.KIND[wire.Hello], errors.INVALID, "bad name"))
    assert place.events(JoinRefused) == [JoinRefused("invalid", "bad name")]
    assert place.state() == "closed"
    assert place.core.next_deadline() is None
    place.wait(100)


# -- the session -------------------------------------------------------------------------------------------------------


def test_heartbeats_tell_position_load_and_lag(offering: Place) -> None:
    offering.hear(call_for(5))
    offering.wait(0.85)
    (heartbeat,) = offering.sent(wire.Heartbeat)
    assert (heartbeat.epoch, heartbeat.seq, heartbeat.load, heartbeat.lag_ms) == ("e", 2, 1, 250)
    offering.wait(0.5)
    assert offering.sent(wire.Heartbeat) == []
    offering.wait(0.1)
    assert offering.sent(wire.Heartbeat)[0].lag_ms == 0


def test_an_idle_worker_wakes_once_a_heartbeat(offering: Place) -> None:
    """A heartbeat by a timer of its own, between two beacons, woke a thousand idle workers twice as often: half of one
    processor, and on a slow one their sessions were lost.
    """
    wakes = heartbeats = 0
    began = offering.now + 0.37  # the worker joined some time between two beacons
    for number in range(20):
        beacon_at = began + 0.5 * number + 0.02 * (number % 3)
        while (due_at := offering.now + offering.due_in()) < beacon_at:
            offering.wait(due_at - offering.now)
            wakes += 1
            heartbeats += len(offering.sent(wire.Heartbeat))
        offering.now = beacon_at
        offering.stream(offering.truth.beacon())
        wakes += 1
        heartbeats += len(offering.sent(wire.Heartbeat))
    assert wakes <= 22  # timers of their own only until the two have met
    assert 19 <= heartbeats <= 21


def test_a_heartbeat_that_leaves_with_the_beacon_tells_the_position_after_it(offering: Place) -> None:
    offering.wait(0.5)
    assert offering.sent() == []
    offering.stream(offering.truth.beacon())
    (heartbeat,) = offering.sent(wire.Heartbeat)
    assert (heartbeat.seq, heartbeat.lag_ms) == (offering.truth.seq, 0)


def test_a_beacon_soon_after_a_heartbeat_makes_none(offering: Place) -> None:
    for seconds in (0.5, 0.2):
        offering.wait(seconds)
        offering.stream(offering.truth.beacon())
    assert len(offering.sent(wire.Heartbeat)) == 1


def test_a_heartbeat_with_a_late_beacon_tells_how_late_the_loop_is(offering: Place) -> None:
    """We were busy: the beacon lay unread, and is read before the timers are looked at."""
    offering.now += 0.85
    offering.stream(offering.truth.beacon())
    assert [heartbeat.lag_ms for heartbeat in offering.sent(wire.Heartbeat)] == [250]


def test_a_silent_stream_is_renewed_on_the_same_connection(offering: Place) -> None:
    place = offering
    number = place.call()
    for _ in range(3):
        place.wait(0.5)
    (hello,) = place.sent(wire.Hello)
    assert (hello.token, hello.functions) == (TOKEN, wire.functions_digest([entry("mine")]))
    assert (hello.epoch, hello.seq) == ("e", 2)
    later = place.call()
    place.hear(place.welcome(hello, kept=True, token=b"u" * 16))
    assert [type(order) for order in place.orders()] == [OpenStream]
    place.hear(place.truth.replay(hello.number, 2))
    assert [type(message) for message in place.sent()] == [wire.Call, wire.Received]
    place.hear(wire.Result(number, NIL), wire.Result(later, NIL))
    assert [event.number for event in place.events(CallEnded)] == [number, later]
    assert place.state() == "connected"


def test_a_stream_with_beacons_is_not_silent(joined: Place) -> None:
    for _ in range(10):
        joined.wait(0.5)
        joined.stream(joined.truth.beacon())
    assert joined.sent(wire.Hello) == []
    assert joined.core.following.level


def test_after_a_long_sleep_the_stream_gets_time_to_be_read(joined: Place) -> None:
    joined.wait(20)
    assert joined.sent(wire.Hello) == []
    assert joined.core.next_deadline() == joined.now + 0.6
    joined.wait(0.5)
    joined.wait(0.5)
    assert len(joined.sent(wire.Hello)) == 1


def test_a_broken_stream_is_renewed_at_once(joined: Place) -> None:
    joined.link(StreamDisconnected())
    assert len(joined.sent(wire.Hello)) == 1
    joined.link(StreamDisconnected(), Failed("too late to matter"))
    assert joined.sent(wire.Hello) == []


def test_no_answer_to_a_renewal_makes_the_view_stale(joined: Place) -> None:
    joined.link(StreamDisconnected())
    number = joined.call()
    joined.wait(membership.ANSWER_S)
    ended, stale = joined.events(CallEnded, StateChanged)
    assert ended.number == number  # its patience is over, too
    assert stale == StateChanged("stale", "the broker does not answer")
    joined.wait(0.0)
    joined.link(Connected())
    assert joined.state() == "stale"
    (hello,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(hello, kept=True), joined.truth.replay(hello.number, 1))
    assert joined.events(StateChanged) == [StateChanged("connected", "")]


def test_what_is_not_kept_is_registered_again_and_its_calls_are_over(offering: Place) -> None:
    place = offering
    number = place.call()
    place.hear(call_for(5))
    (run,) = place.events(RunCall)
    place.link(StreamDisconnected())
    (hello,) = place.sent(wire.Hello)
    place.hear(place.welcome(hello, kept=False, worker_id="new"))
    ended, cancelled = place.events(CallEnded, CancelCall)
    assert (ended.number, ended.outcome.fate) == (number, "possibly_executed")
    assert cancelled.run is run
    assert run.cancelled
    place.hear(place.truth.replay(hello.number, 2))
    (register,) = place.sent(wire.Register)
    assert register.entries == [entry("mine")]
    place.core.incoming.finish(run, NIL)
    assert place.sent() == []
    assert place.core.counters["results_orphaned"] == 1


def test_a_lost_connection_ends_calls_and_comes_back_with_the_token(offering: Place) -> None:
    place = offering
    sent = place.call()
    place.sent()
    unsent = place.call()
    place.hear(call_for(5))
    place.events()
    place.link(Disconnected())
    assert place.orders() == [DropControl()]
    ended, cancelled, state = place.events(CallEnded, CancelCall, StateChanged)
    assert (ended.number, ended.outcome.fate, ended.outcome.code) == (sent, "possibly_executed", "broker_lost")
    assert cancelled.run.cancelled
    assert state == StateChanged("connecting", "the connection to the broker was lost")
    place.wait(0.0)
    place.link(Connected())
    (hello,) = place.sent(wire.Hello)
    place.hear(place.welcome(hello, kept=True), place.truth.replay(hello.number, 2))
    messages = place.sent()
    assert [message.number for message in messages if isinstance(message, wire.Call)] == [unsent]
    assert not [message for message in messages if isinstance(message, wire.Register)]
    assert place.events(StateChanged) == [StateChanged("connected", "")]


def test_a_quick_loss_backs_off_and_a_long_session_forgets_it(place: Place) -> None:
    place.core.membership._attempts = 3
    place.join()
    place.link(Disconnected())
    quick = place.core.next_deadline()
    assert quick is not None
    assert quick > place.now + 0.1
    place.wait(0.4)
    place.link(Connected())
    hello = place.sent(wire.Hello)[0]
    place.hear(place.welcome(hello), place.truth.replay(hello.number, 1))
    place.now += 5
    place.link(Disconnected())
    assert place.core.next_deadline() == place.now


def test_a_link_that_flaps_costs_no_pauses(joined: Place) -> None:
    """Cut every 0.9 to 1.1 s, half of the sessions lasted for less than the 1 s after which earlier losses were
    forgotten. The pause that followed made the next one shorter still, until the worker was away for 2 s each time,
    and its broker took it for dead."""
    for lasts_s in 25 * [0.9, 1.1]:
        joined.now += lasts_s
        joined.link(Disconnected())
        assert joined.due_in() == 0.0
        joined.wait(0.0)
        joined.link(Connected())
        (hello,) = joined.sent(wire.Hello)
        joined.now += 0.1  # the handshake and the Hello take their time
        joined.hear(joined.welcome(hello, kept=True), joined.truth.replay(hello.number, 1))


def test_a_call_that_was_not_taken_waits_for_the_next_session(joined: Place) -> None:
    number = joined.call()
    (call,) = joined.sent(wire.Call)
    joined.link(Unsent(call), Unsent(wire.Heartbeat(1, "", 0, 0, 0)))
    assert joined.events() == []
    joined.link(Disconnected())
    joined.wait(0.0)
    joined.link(Connected())
    (hello,) = joined.sent(wire.Hello)
    joined.now += 1
    joined.hear(joined.welcome(hello, worker_id="new"), joined.truth.replay(hello.number, 1))
    (again,) = joined.sent(wire.Call)
    assert (again.number, again.caller, again.remaining_ms) == (number, "new", 9000)
    joined.link(Unsent(again))
    joined.core.outgoing.give_up(number)
    joined.link(Unsent(again))
    assert len(joined.core.outgoing) == 0


def test_an_unknown_session_is_opened_again(joined: Place) -> None:
    lost, other = joined.call(), joined.call()
    joined.sent()
    joined.hear(wire.Unknown(lost, wire.KIND[wire.Call]), wire.Unknown(lost, wire.KIND[wire.Call]), wire.Unknown(7, 6))
    (ended,) = joined.events(CallEnded)
    assert (ended.number, ended.outcome.fate) == (lost, "not_handed_over")
    (hello,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(hello))
    (ended,) = joined.events(CallEnded)
    assert (ended.number, ended.outcome.fate) == (other, "possibly_executed")


def test_a_foreign_epoch_means_hello(joined: Place) -> None:
    joined.truth = Truth("new")
    joined.truth.change(worker("other"))
    joined.stream(joined.truth.beacon())
    (hello,) = joined.sent(wire.Hello)
    assert (hello.epoch, hello.token) == ("e", TOKEN)
    joined.hear(joined.welcome(hello))
    joined.snapshot(hello.number)
    assert joined.core.replica.position == ("new", 1)
    assert joined.events(Changes)[0].changes[0].kind == "reset"


def test_what_the_next_broker_says_on_the_stream_that_stayed_waits_for_the_hello(joined: Place) -> None:
    """The stream may find a restarted broker before the control connection does, and its SUB be told all it changes."""
    joined.link(Disconnected())
    joined.truth = Truth("new")
    for one in ("other", "third", "fourth"):
        joined.truth.change(worker(one))
        joined.stream(joined.truth.message(), joined.truth.beacon())
    joined.wait(0.0)
    assert joined.sent() == []
    joined.link(Connected())
    (hello,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(hello))
    joined.truth.change(worker("fifth"))
    joined.stream(joined.truth.message())
    joined.snapshot(hello.number)
    assert joined.core.replica.position == ("new", 4)
    assert joined.core.replica.digest == joined.truth.digest()
    assert (joined.state(), joined.sent(wire.Hello, wire.Sync)) == ("connected", [])


def test_a_closing_broker_still_answers_then_goes(joined: Place) -> None:
    number = joined.call()
    joined.sent()
    joined.stream(wire.Closing(0, "another"))
    assert joined.state() == "connected"
    joined.stream(wire.Closing(0, "e"))
    assert joined.events(StateChanged) == [StateChanged("connecting", "the broker is closing")]
    joined.hear(wire.Failure(number, errors.BROKER_LOST, "possibly_executed", "", ""))
    (ended,) = joined.events(CallEnded)
    assert str(ended.outcome) == "broker_lost (possibly_executed)"
    joined.stream(wire.Closing(0, "e"))
    joined.link(Disconnected())
    assert joined.phase() == membership.PAUSING


def test_a_closing_broker_whose_connection_stays_is_left(joined: Place) -> None:
    joined.stream(wire.Closing(0, "e"))
    joined.wait(membership.ANSWER_S)
    assert joined.phase() == membership.PAUSING
    assert joined.state() == "connecting"


def test_a_full_broker_is_waited_for_by_those_it_knew(joined: Place) -> None:
    joined.link(StreamDisconnected())
    (hello,) = joined.sent(wire.Hello)
    joined.hear(wire.Refuse(hello.number, wire.KIND[wire.Hello], errors.LIMIT, "full"))
    assert joined.phase() == membership.PAUSING
    assert joined.events(JoinRefused) == []


# -- following ---------------------------------------------------------------------------------------------------------


def test_changes_are_told_in_order(joined: Place) -> None:
    joined.truth.change(offer("other", "f"))
    joined.stream(joined.truth.message())
    (told,) = joined.events(Changes)
    assert [change.kind for change in told.changes] == ["function_added"]


def test_a_gap_is_asked_for_once_and_late_again(joined: Place) -> None:
    joined.truth.change(offer("other", "f"))
    joined.truth.change(offer("other", "g"))
    joined.stream(joined.truth.message())
    (sync,) = joined.sent(wire.Sync)
    assert (sync.epoch, sync.seq, sync.reason) == ("e", 1, "gap")
    joined.stream(joined.truth.message(), joined.truth.beacon())
    assert joined.sent(wire.Sync) == []
    joined.wait(1.0)
    joined.stream(joined.truth.beacon())
    joined.wait(1.0)
    (late,) = joined.sent(wire.Sync)
    assert (late.reason, late.number != sync.number) == ("late", True)
    joined.hear(joined.truth.replay(sync.number, 1))  # an answer that nobody awaits any more
    assert joined.core.counters["parts_late"] == 1
    joined.hear(joined.truth.replay(late.number, 1))
    assert joined.core.replica.digest == joined.truth.digest()
    assert joined.core.following.due == float("inf")


def test_answers_that_do_not_help_are_asked_for_less_and_less_often(joined: Place) -> None:
    joined.core.replica._mismatch()
    asked = []
    for _ in range(400):
        joined.wait(0.01)
        for sync in joined.sent(wire.Sync):
            asked.append(joined.now)
            wrong = joined.truth.rows_parts(sync.number)
            wrong[0].rows = []
            joined.hear(*wrong)
        joined.stream(joined.truth.beacon())
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert 4 < len(asked) < 12
    assert gaps == sorted(gaps)
    assert joined.core.following.due <= joined.now + following.AGAIN_MAX_S


def test_malformed_deltas_are_counted_and_asked_for(joined: Place) -> None:
    joined.stream(wire.Deltas(0, "e", [b"nonsense"]))
    assert joined.core.counters["malformed"] == 1
    joined.truth.change(offer("other", "f"))
    joined.stream(joined.truth.beacon())
    assert [sync.reason for sync in joined.sent(wire.Sync)] == ["gap"]


def test_an_answer_in_several_parts(joined: Place) -> None:
    joined.truth.change(offer("other", "f"))
    joined.truth.change(offer("other", "g"))
    joined.stream(joined.truth.message())
    (sync,) = joined.sent(wire.Sync)
    first, second = joined.truth.deltas[2:]
    before = joined.core.progress
    joined.hear(wire.Replay(sync.number, "e", 0, False, [first]))
    assert not joined.core.following.level
    assert joined.core.progress != before
    joined.hear(wire.Replay(sync.number, "e", 1, True, [second]))
    assert joined.core.following.level
    assert [message.index for message in joined.sent(wire.Received)] == [0, 1]


def test_each_step_towards_a_session_is_progress_once() -> None:
    """A broker that is slow to answer is there; one that takes connections and never answers is not waited for on."""
    place = Place()
    place.core.connect(place.now)
    seen = [place.core.progress]
    for happening in (Connected(), Disconnected(), Connected()):
        place.link(happening)
        place.wait(5.0)
        seen.append(place.core.progress)
    assert seen[0] != seen[1] == seen[2] == seen[3]


def test_a_connection_that_was_made_anew_unasked_changes_nothing(joined: Place) -> None:
    joined.link(Connected())
    assert joined.sent() == []


def test_an_overrun_is_asked_for(joined: Place) -> None:
    joined.core.overrun(joined.now)
    assert [sync.reason for sync in joined.sent(wire.Sync)] == ["overrun"]


def test_an_answer_may_end_with_more_to_ask(joined: Place) -> None:
    joined.truth.change(offer("other", "f"))
    joined.truth.change(offer("other", "g"))
    joined.stream(joined.truth.message())
    (sync,) = joined.sent(wire.Sync)
    joined.core.overrun(joined.now)
    joined.now += 0.1
    joined.hear(joined.truth.replay(sync.number, 1))
    assert [sync.reason for sync in joined.sent(wire.Sync)] == ["overrun"]


def test_on_the_stream_before_the_session_is_open_nothing_is_asked(place: Place) -> None:
    hello = place.greeted()
    place.hear(place.welcome(hello))
    place.sent()
    place.truth.change(offer("other", "f"))
    place.stream(place.truth.message(), place.truth.beacon(), wire.Closing(0, "e"))
    assert place.sent() == []


# -- offering ----------------------------------------------------------------------------------------------------------


def test_a_ticket_is_settled_when_the_replica_shows_it(joined: Place) -> None:
    ticket = joined.register("a")
    (register,) = joined.sent(wire.Register)
    joined.truth.change(offer("me", "a"))
    joined.hear(wire.Ack(register.number, "e", 2, []))
    assert joined.events(Settled) == []
    joined.stream(joined.truth.message())
    assert joined.events(Settled) == [Settled(ticket, [])]
    joined.hear(wire.Ack(register.number, "e", 2, []))
    assert joined.events() == []


def test_refusals_are_told_and_no_longer_wanted(joined: Place) -> None:
    ticket = joined.register("a", "b")
    (register,) = joined.sent(wire.Register)
    joined.acknowledge(register, (1, "conflict", "no"))
    assert joined.events(Settled) == [Settled(ticket, [("b", "conflict", "no")])]
    assert list(joined.core.offers.wanted) == ["a"]
    error = first_refusal([("b", "conflict", "no")], 2)
    assert (error.code, str(error)) == (
        "conflict",
        "the broker refused b: no (conflict); 1 of 2 functions were accepted",
    )
    assert "accepted" not in str(first_refusal([("b", "conflict", "no")], 1))


def test_a_refused_change_leaves_what_was_there(offering: Place) -> None:
    offering.core.register({"mine": entry("mine", "changed")})
    (register,) = offering.sent(wire.Register)
    offering.hear(wire.Refuse(register.number, wire.KIND[wire.Register], errors.LIMIT, "full"))
    (settled,) = offering.events(Settled)
    assert settled.refusals == [("mine", "limit", "full")]
    assert offering.core.offers.wanted == {"mine": entry("mine")}
    offering.hear(wire.Refuse(register.number, wire.KIND[wire.Register], errors.LIMIT, "full"))
    offering.hear(wire.Refuse(99, wire.KIND[wire.Sync], errors.NOT_JOINED, "too early"))
    assert offering.events() == []


def test_unregistering(offering: Place) -> None:
    ticket = offering.core.offers.unregister(["mine"])
    (unregister,) = offering.sent(wire.Unregister)
    assert unregister.function_ids == ["mine"]
    offering.acknowledge(unregister, (0, "not_registered", "what?"))
    assert offering.events(Settled) == [Settled(ticket, [])]


def test_what_changes_while_away_is_caught_up_with(offering: Place) -> None:
    place = offering
    place.link(Disconnected())
    gone = place.core.offers.unregister(["mine"])
    new = place.register("new")
    fleeting = place.register("fleeting")
    place.core.offers.unregister(["fleeting"])
    place.wait(0.0)
    place.link(Connected())
    (hello,) = place.sent(wire.Hello)
    place.hear(place.welcome(hello, kept=True), place.truth.replay(hello.number, 2))
    register, unregister = place.sent(wire.Register, wire.Unregister)
    assert (register.entries, unregister.function_ids) == ([entry("new")], ["mine"])
    place.acknowledge(register)
    place.acknowledge(unregister)
    assert {event.ticket for event in place.events(Settled)} >= {gone, new, fleeting}


def test_a_later_version_settles_the_earlier_one_too(joined: Place) -> None:
    first = joined.register("a")
    second = joined.core.register({"a": entry("a", "better")})
    joined.sent()
    joined.link(StreamDisconnected())
    (hello,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(hello), joined.truth.replay(hello.number, 1))
    (register,) = joined.sent(wire.Register)
    assert register.entries == [entry("a", "better")]
    joined.acknowledge(register)
    assert [event.ticket for event in joined.events(Settled)] == [first, second]


def test_a_refused_latest_version_ends_the_earlier_ones_too(joined: Place) -> None:
    joined.register("a", "fine")
    joined.core.register({"a": entry("a", "better")})
    joined.sent()
    joined.link(StreamDisconnected())
    (hello,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(hello), joined.truth.replay(hello.number, 1))
    (register,) = joined.sent(wire.Register)
    joined.hear(wire.Ack(register.number, "e", 1, [(0, "conflict", "no"), (1, "conflict", "no")]))
    assert [len(event.refusals) for event in joined.events(Settled)] == [2, 1]
    assert joined.core.offers.wanted == {}


def test_a_ticket_that_nobody_waits_for_any_more_leaves_nothing_and_stays_wanted(joined: Place) -> None:
    # Its Settled came when nobody was there to fetch it, and was kept for ever.
    number = joined.register("mine")
    (register,) = joined.sent(wire.Register)
    joined.core.offers.abandon(number)
    joined.core.offers.abandon(number)
    joined.acknowledge(register)
    assert (joined.events(Settled), joined.core.offers.waiting, list(joined.core.offers.wanted)) == (
        [],
        False,
        ["mine"],
    )


def test_a_refusal_survives_the_session_in_its_ticket(joined: Place) -> None:
    ticket = joined.register("a", "b", "c")
    first, _ = joined.sent(wire.Register)
    joined.hear(wire.Ack(first.number, "e", 1, [(0, "conflict", "no")]))
    joined.link(StreamDisconnected())
    (hello,) = joined.sent(wire.Hello)
    joined.hear(joined.welcome(hello), joined.truth.replay(hello.number, 1))
    (again,) = joined.sent(wire.Register)
    assert len(again.entries) == 2
    joined.acknowledge(again)
    assert joined.events(Settled) == [Settled(ticket, [("a", "conflict", "no")])]


def test_a_refusal_on_rejoining_is_told_and_tried_again_next_time(offering: Place) -> None:
    for _ in range(2):
        offering.link(StreamDisconnected())
        (hello,) = offering.sent(wire.Hello)
        offering.hear(offering.welcome(hello), offering.truth.replay(hello.number, 2))
        (register,) = offering.sent(wire.Register)
        offering.hear(wire.Ack(register.number, "e", 2, [(0, "conflict", "no")]))
        assert offering.events(NotOffered) == [NotOffered([("mine", "conflict", "no")])]
    assert list(offering.core.offers.wanted) == ["mine"]


def test_batches_are_bounded_in_bytes(joined: Place) -> None:
    joined.core.offers._batch_max = 1000
    joined.core.register({f"f{i}": entry(f"f{i}", "x" * 60_000) for i in range(40)})
    batches = joined.sent(wire.Register)
    assert [len(batch.entries) for batch in batches] == [14, 14, 12]
    assert all(len(wire.encode(batch)[0]) < wire.CONTROL_BYTES_MAX for batch in batches)
    assert joined.core.offers.is_settled(joined.core.replica.position) is False


# -- calls out ---------------------------------------------------------------------------------------------------------


def test_a_call_and_its_result(joined: Place) -> None:
    number = joined.call("f", 2.5, target="that", flags=0)
    assert joined.sent() == [wire.Call(number, "f", "me", 2500, "that", 0, 0, NIL)]
    joined.hear(wire.Result(number, b"\x01"), wire.Result(number, b"\x01"))
    (ended,) = joined.events()
    assert (ended.number, ended.outcome) == (number, b"\x01")
    assert joined.core.counters["answers_late"] == 1
    assert joined.core.outgoing.due == float("inf")


def test_a_large_result_is_acknowledged_also_when_nobody_waits_for_it(joined: Place) -> None:
    number = joined.call()
    joined.sent()
    large = bytes(wire.INLINE_BYTES_MAX + 1)
    joined.hear(wire.Result(number, large), wire.Result(number, large), wire.Result(99, bytes(wire.INLINE_BYTES_MAX)))
    assert joined.sent() == [wire.Received(number, 0)] * 2


def test_failures_become_exceptions_once(joined: Place) -> None:
    number, other = joined.call(), joined.call()
    joined.hear(wire.Failure(number, errors.HANDLER_FAILED, "executed", "KeyError", "x"))
    joined.hear(wire.Failure(number, errors.BUSY, "not_handed_over", "", "again"))
    joined.hear(wire.Result(77, NIL))
    (ended,) = joined.events()
    assert isinstance(ended.outcome, errors.RemoteError)
    assert joined.core.counters["answers_late"] == 2
    joined.hear(wire.Failure(other, errors.NO_PROVIDER, "not_handed_over", "", "nobody"))
    assert isinstance(joined.events()[0].outcome, errors.NoProvider)


def test_after_its_deadline_the_broker_gets_a_grace(joined: Place) -> None:
    number = joined.call(timeout=1.0)
    longer = joined.call(timeout=9.0)
    joined.sent()
    joined.wait(1.0)
    assert joined.events() == []
    joined.wait(GRACE_S)
    (ended,) = joined.events()
    assert (ended.number, type(ended.outcome), ended.outcome.fate) == (number, errors.CallTimeout, "possibly_executed")
    assert joined.sent(wire.Cancel) == [wire.Cancel(number)]
    joined.core.outgoing.give_up(longer)
    joined.core.outgoing.give_up(longer)
    assert joined.sent() == [wire.Cancel(longer)]
    assert joined.core.counters["calls_given_up"] == 1


def test_the_number_of_open_calls_is_limited(joined: Place) -> None:
    for _ in range(3):
        joined.call()
    with pytest.raises(errors.Busy) as raised:
        joined.call()
    assert raised.value.fate == "not_handed_over"
    assert len(joined.core.outgoing) == 3


def test_a_call_without_a_session_waits_for_its_timeout_or_patience(place: Place) -> None:
    short, long = place.call(timeout=1.0), place.call(timeout=9.0)
    sent = place.call(flags=wire.NO_ANSWER)
    gone = place.call()
    place.core.outgoing.give_up(gone)
    assert place.core.next_deadline() == place.now + 1.0
    place.wait(1.0)
    (ended,) = place.events()
    assert (ended.number, type(ended.outcome), ended.outcome.fate) == (short, errors.CallTimeout, "not_handed_over")
    place.wait(1.0)
    (ended,) = place.events()
    assert (ended.number, type(ended.outcome), ended.outcome.fate) == (long, errors.BrokerLost, "not_handed_over")
    assert sent & SENDS
    assert place.core.counters["sends_failed"] == 1


def test_calls_that_waited_for_a_session_leave_in_the_order_in_which_they_were_made(place: Place) -> None:
    numbers = [place.call(function_id) for function_id in ("b", "a")]
    hello = place.greeted()
    place.hear(place.welcome(hello))
    place.snapshot(hello.number)
    numbers.append(place.call("c"))
    calls = [(call.number, call.function_id) for call in place.sent(wire.Call)]
    assert calls == list(zip(numbers, "bac", strict=True))


def test_a_call_that_waited_in_vain_tells_why_there_is_no_session(joined: Place) -> None:
    joined.link(Disconnected())
    joined.wait(0.0)
    joined.link(Failed("the peer refused"))
    short, long = joined.call(timeout=1.0), joined.call(timeout=9.0)
    joined.wait(1.0)
    joined.wait(1.0)
    told = {event.number: str(event.outcome) for event in joined.events(CallEnded)}
    assert told == {
        short: "f: no session with the broker within its timeout: the peer refused (not_handed_over)",
        long: "f: no session with the broker: the peer refused (not_handed_over)",
    }


def test_everything_is_counted_from_zero_and_the_replicas_with_it(joined: Place) -> None:
    counted = joined.core.counted()
    assert list(counted) == list(WORKER_COUNTERS)
    assert {name for name, count in counted.items() if count} == {"connects", "sessions", "snapshots"}


def test_a_send_leaves_nothing_behind(joined: Place) -> None:
    number = joined.call(flags=wire.NO_ANSWER)
    assert joined.sent()[0].flags == wire.NO_ANSWER
    assert len(joined.core.outgoing) == 0
    joined.hear(wire.Failure(number, errors.NO_PROVIDER, "not_handed_over", "", ""), wire.Result(number, NIL))
    assert joined.events() == []
    assert joined.core.counters["sends_failed"] == 1
    assert joined.core.counters["answers_late"] == 0


def test_sends_are_limited_until_the_broker_shows_that_it_has_read_them(
    joined: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing comes back for a send: a worker that sent faster than the broker read kept it all in its own memory.
    monkeypatch.setattr(sends, "SENDS_MAX", 8)
    monkeypatch.setattr(sends, "PING_SHARE", 4)
    for _ in range(8):
        joined.call(flags=wire.NO_ANSWER)
    with pytest.raises(errors.Busy) as raised:
        joined.call(flags=wire.NO_ANSWER)
    assert (raised.value.fate, joined.core.counters["calls_refused"]) == ("not_handed_over", 1)
    sent = joined.sent(wire.Call)
    assert [call.function_id for call in sent] == ["f", "f", "engine::ping", *["f"] * 6]
    joined.hear(wire.Result(sent[2].number, NIL))  # the first two were read
    joined.call(flags=wire.NO_ANSWER)
    joined.call(flags=wire.NO_ANSWER)
    with pytest.raises(errors.Busy):
        joined.call(flags=wire.NO_ANSWER)
    (ping,) = [call for call in joined.sent(wire.Call) if call.function_id == "engine::ping"]
    joined.hear(wire.Failure(ping.number, errors.NOT_JOINED, "not_handed_over", "", ""))  # read, whatever it says
    joined.call(flags=wire.NO_ANSWER)
    assert (joined.core.counters["answers_late"], joined.core.counters["sends_failed"], joined.events()) == (0, 0, [])


def test_the_bytes_of_sends_are_limited_too(joined: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sends, "SENDS_BYTES_MAX", 2 * len(NIL))
    joined.call(flags=wire.NO_ANSWER)
    joined.call(flags=wire.NO_ANSWER)
    with pytest.raises(errors.Busy):
        joined.call(flags=wire.NO_ANSWER)
    joined.call()  # who wants an answer is limited by the number of open calls
    joined.link(Disconnected())
    joined.call(flags=wire.NO_ANSWER)  # for the next session


# -- calls in ----------------------------------------------------------------------------------------------------------


def test_a_call_is_run_and_answered_once(offering: Place) -> None:
    offering.hear(call_for(5, fence=3), call_for(5))
    (run,) = offering.events()
    assert (run.function_id, run.caller, run.deadline) == ("mine", "caller", offering.now + 1)
    assert (run.epoch, run.fence) == ("e", 3)
    offering.core.incoming.finish(run, b"\x05")
    offering.core.incoming.finish(run, b"\x05")
    offering.core.incoming.decline(run)
    assert offering.sent() == [wire.Result(5, b"\x05")]
    assert offering.core.counters["unexpected"] == 1
    assert len(offering.core.incoming) == 0


def test_a_call_tells_the_epoch_in_which_its_fence_means_something(offering: Place) -> None:
    offering.hear(call_for(5, fence=300))
    offering.link(StreamDisconnected())
    (hello,) = offering.sent(wire.Hello)
    offering.truth = Truth("next")
    offering.hear(offering.welcome(hello), call_for(6, fence=1))
    assert [(run.epoch, run.fence) for run in offering.events(RunCall)] == [("e", 300), ("next", 1)]


def test_what_can_not_be_run_is_answered_too(offering: Place) -> None:
    offering.hear(call_for(5, "other"), call_for(6, remaining_ms=0), call_for(7), call_for(8))
    late, cancelled = offering.events(RunCall)
    offering.hear(wire.Cancel(8), wire.Cancel(99))
    assert [event.run for event in offering.events(CancelCall)] == [cancelled]
    offering.core.incoming.decline(late)
    offering.core.incoming.decline(cancelled)
    failures = offering.sent()
    assert [(one.number, one.code, one.fate) for one in failures] == [
        (5, "no_provider", "not_handed_over"),
        (6, "timeout", "not_handed_over"),
        (7, "timeout", "not_handed_over"),
        (8, "timeout", "not_handed_over"),
    ]


def test_a_call_whose_function_was_unregistered_before_its_turn_may_go_to_another_provider(offering: Place) -> None:
    offering.hear(call_for(5))
    (run,) = offering.events(RunCall)
    offering.core.incoming.disown(run)
    offering.core.incoming.disown(run)
    (failure,) = offering.sent()
    assert (failure.number, failure.code, failure.fate) == (5, "no_provider", "not_handed_over")


def test_what_a_handler_raised_is_told_within_limits(offering: Place) -> None:
    offering.hear(call_for(5), call_for(6))
    first, second = offering.events(RunCall)
    offering.core.incoming.fail(first, "ValueError", "\ud800")
    offering.core.incoming.fail(second, "ValueError", "x" * 10_000)
    offering.core.incoming.fail(second, "ValueError", "again")
    short, long = offering.sent()
    assert (short.type, short.text, short.fate) == ("ValueError", "?", "executed")
    assert len(long.text) == wire.TEXT_CHARS_MAX
    wire.encode(long)


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_drain_is_acknowledged_when_all_is_done(offering: Place) -> None:
    offering.core.drain()
    (drain,) = offering.sent(wire.Drain)
    assert offering.events(Drained) == []
    offering.hear(wire.Ack(drain.number, "e", 3, []))
    assert offering.events() == [Drained()]
    offering.hear(wire.Ack(drain.number, "e", 3, []))
    assert offering.events() == []


def test_without_a_session_there_is_nothing_to_drain(offering: Place) -> None:
    offering.core.drain()
    offering.link(Disconnected())
    assert offering.events(Drained) == [Drained()]
    offering.core.drain()
    assert offering.events(Drained) == [Drained()]


def test_who_said_bye_has_left_when_the_broker_shows_it() -> None:
    place = Place()
    place.truth.change(worker("me"))
    place.join()
    place.core.leave()
    assert not place.core.has_left
    place.truth.change(drops=[("me", "")], reason="bye")
    place.stream(place.truth.message())
    assert place.core.has_left


def test_who_can_hear_of_nothing_more_has_left(place: Place) -> None:
    place.core.connect(place.now)
    place.core.leave()
    assert place.core.has_left
    place = Place()
    place.truth.change(worker("me"))
    place.join()
    place.core.leave()
    place.link(Disconnected())
    assert place.core.has_left


def test_leaving_says_bye_and_still_sends_results(offering: Place) -> None:
    offering.hear(call_for(5))
    (run,) = offering.events(RunCall)
    number = offering.call()
    offering.sent()
    offering.core.leave()
    offering.core.leave()
    offering.core.incoming.finish(run, NIL)
    assert [type(message) for message in offering.sent()] == [wire.Bye, wire.Result]
    with pytest.raises(errors.Closed):
        offering.call()
    offering.core.end()
    offering.core.end()
    assert offering.orders() == [Disconnect()]
    ended, state = offering.events()
    assert (ended.number, str(ended.outcome)) == (number, "f: closed while the call was open (possibly_executed)")
    assert state == StateChanged("closed", "closed")
    assert offering.core.next_deadline() is None


def test_a_connection_that_goes_while_leaving_is_the_end(offering: Place) -> None:
    offering.core.leave()
    offering.link(Disconnected())
    assert offering.state() == "closed"


def test_leaving_before_any_connection(place: Place) -> None:
    number = place.call()
    place.core.leave()
    assert place.sent() == []
    place.core.end()
    (ended,) = place.events(CallEnded)
    assert (ended.number, ended.outcome.fate) == (number, "not_handed_over")
    place.core.leave()
    assert place.sent() == []


def test_it_is_connected_again_only_when_it_shows_what_it_offers() -> None:
    """After a restart of the broker a worker said that it was connected, and saw none of its own functions.

    1. It says Hello to the new broker, gets the (empty) registry and registers again.
    2. The Ack comes over the control connection before the delta comes over the stream.
    """
    place = Place().join()
    place.core.register({"f": entry("f")})
    place.acknowledge(*place.sent(wire.Register))
    place.link(Disconnected())
    place.truth = Truth("e2")
    hello = place.greeted()
    place.hear(place.welcome(hello))
    place.snapshot(hello.number)
    (register,) = place.sent(wire.Register)
    place.truth.change(offer("me", "f"))
    place.hear(wire.Ack(register.number, place.truth.epoch, place.truth.seq, []))
    assert place.state() == "connecting"
    place.stream(place.truth.message())
    assert place.state() == "connected"
