"""What a worker lacks: exactly the missing deltas, or a snapshot; in bounded parts, in turns, or as a broadcast."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.broker import answers, registry
from iii_zmq.core.broker.events import BROADCAST, Subscribed
from iii_zmq.core.broker.registry import Registry
from tests.core.brokerage import Brokerage, Member, leftovers

Part = wire.Snapshot | wire.Replay


def parts(messages: list[wire.Message]) -> list[Part]:
    return [one for one in messages if isinstance(one, wire.Snapshot | wire.Replay)]


def rows_of(got: list[Part]) -> list[bytes]:
    return [row for part in got if isinstance(part, wire.Snapshot) for row in part.rows]


def seqs_of(got: list[Part]) -> list[int]:
    deltas = [delta for part in got if isinstance(part, wire.Replay) for delta in part.deltas]
    return [wire.decode_delta(delta).seq for delta in deltas]


def sync(broker: Brokerage, peer: str, number: int, seq: int, epoch: str = "e", reason: str = "gap") -> list[Part]:
    """Asks, acknowledges all parts, and returns them."""
    broker.to(peer)
    broker.send(peer, wire.Sync(number, epoch, seq, reason))
    return parts(broker.read_all(peer))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row or delta to a part."""
    monkeypatch.setattr(answers, "PART_BYTES_MAX", 1)


@pytest.fixture
def early_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second snapshot under way makes the third a broadcast, however small."""
    monkeypatch.setattr(answers, "BROADCAST_FROM", 2)
    monkeypatch.setattr(answers, "BROADCAST_BYTES_MIN", 0)


# -- which answer ------------------------------------------------------------------------------------------------------


def test_whoever_joins_without_a_position_gets_a_snapshot_with_its_own_row() -> None:
    broker = Brokerage()
    broker.join("x")
    a = broker.greet("a", number=5)
    broker.hear(Subscribed(wire.presence_topic(a.token)))
    broker.wait(0.0)
    snapshot, replay = parts(broker.to("a"))
    assert isinstance(snapshot, wire.Snapshot)
    assert (snapshot.number, snapshot.seq, snapshot.index, snapshot.last, len(snapshot.rows)) == (5, 2, 0, True, 2)
    assert (snapshot.digest, replay) == (broker.core.registry.digest, wire.Replay(5, "e", 1, True, []))


def test_an_empty_registry_is_a_snapshot_too() -> None:
    broker = Brokerage()
    o = broker.greet("o", observer=True, number=5)
    broker.hear(Subscribed(wire.presence_topic(o.token)))
    broker.wait(0.0)
    assert parts(broker.to("o")) == [
        wire.Snapshot(5, "e", 0, bytes(16), 0, True, []),
        wire.Replay(5, "e", 1, True, []),
    ]


def test_whoever_returns_with_a_position_still_held_gets_exactly_the_missing_deltas() -> None:
    broker = Brokerage()
    for peer in ("a", "b", "c"):
        broker.join(peer)
    assert (seqs_of(sync(broker, "a", 9, 1)), broker.count("resumes")) == ([2, 3], [1])


def test_whoever_lacks_nothing_is_told_so() -> None:
    broker = Brokerage()
    broker.join("a")
    assert sync(broker, "a", 9, 1) == [wire.Replay(9, "e", 0, True, [])]


@pytest.mark.parametrize(("epoch", "seq"), [("e", 99), ("other", 1), ("", 0)])
def test_from_the_future_or_another_epoch_it_is_a_snapshot(epoch: str, seq: int) -> None:
    broker = Brokerage()
    broker.join("a")
    assert isinstance(sync(broker, "a", 9, seq, epoch)[0], wire.Snapshot)


def test_from_a_position_no_longer_held_it_is_a_snapshot() -> None:
    broker = Brokerage(Registry("e", history_max=1))
    for peer in ("a", "b", "c"):
        broker.join(peer)
    assert (len(rows_of(sync(broker, "a", 9, 1))), seqs_of(sync(broker, "a", 9, 2))) == (3, [3])


def test_a_position_that_is_dropped_before_its_answer_begins_leads_to_a_snapshot() -> None:
    broker = Brokerage(Registry("e", history_max=2))
    broker.join("a")
    broker.core.receive(b"a", wire.Sync(9, "e", 1, "gap"), broker.now)
    for name in ("f", "g", "h"):
        broker.core.registry.join(wire.WorkerRow(name, name, "", 1, b"\x80", wire.READY))
    broker.turn()
    assert len(rows_of(parts(broker.to("a")))) == 4


def test_an_older_snapshot_is_followed_by_the_deltas_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "IMAGE_REPLAY_SHARE", 1.0)
    broker = Brokerage()
    for at in range(20):
        broker.join(f"x{at}")
    snapshot, replay = sync(broker, "x0", 10, 0, "")
    assert isinstance(snapshot, wire.Snapshot)
    assert snapshot.seq == len(snapshot.rows) < 20
    assert seqs_of([replay]) == list(range(snapshot.seq + 1, 21))


def test_why_a_worker_asks_is_counted() -> None:
    broker = Brokerage()
    broker.join("a")
    for reason in ("gap", "digest", "overrun", "late", "late", "whatever"):
        sync(broker, "a", 9, 1, reason=reason)
    assert broker.count("syncs_gap", "syncs_digest", "syncs_overrun", "syncs_late", "unexpected") == [1, 1, 1, 2, 1]


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_no_more_than_four_parts_are_on_their_way() -> None:
    broker = Brokerage()
    for at in range(9):
        broker.join(f"x{at}")
    broker.send("x0", wire.Sync(9, "", 0, "gap"))
    broker.wait(0.4)
    assert [part.index for part in parts(broker.to("x0"))] == [0, 1, 2, 3]
    broker.send("x0", wire.Received(9, 0), wire.Received(9, 1))
    broker.wait(0.4)
    assert [part.index for part in parts(broker.to("x0"))] == [4, 5]


@pytest.mark.usefixtures("small_parts")
def test_a_whole_answer_has_all_rows_and_one_last_part_each() -> None:
    broker = Brokerage()
    for at in range(9):
        broker.join(f"x{at}")
    got = sync(broker, "x0", 9, 0, "")
    assert sorted(rows_of(got)) == sorted(broker.core.registry._rows.values())
    assert ([part.index for part in got], [part.index for part in got if part.last]) == (list(range(10)), [8, 9])


@pytest.mark.usefixtures("small_parts")
def test_one_turn_makes_four_parts_and_everybody_gets_a_turn() -> None:
    broker = Brokerage()
    for at in range(6):
        broker.join(f"x{at}")
    for at in range(6):
        broker.core.receive(f"x{at}".encode(), wire.Sync(9, "", 0, "gap"), broker.now)
    sent = []
    for _ in range(3):
        broker.core.tick(broker.now)
        sent.append([to for to, message in broker.core.take_outbox() if isinstance(message, wire.Snapshot)])
    assert sent == [[b"x0", b"x1", b"x2", b"x3"], [b"x4", b"x5", b"x0", b"x1"], [b"x2", b"x3", b"x4", b"x5"]]


def test_large_rows_travel_alone_and_small_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PART_BYTES_MAX", 100)
    broker = Brokerage()
    for name, size in (("a", 5), ("b", 5), ("c", 200), ("d", 5)):
        broker.join(name, metadata=wire.pack({"": "x" * size}))
    got = sync(broker, "a", 9, 0, "")
    assert [len(part.rows) for part in got if isinstance(part, wire.Snapshot)] == [2, 1, 1]


@pytest.mark.usefixtures("small_parts")
def test_an_answer_is_complete_with_the_receipt_of_its_last_part() -> None:
    broker = Brokerage()
    a = broker.join("a")
    broker.join("b")
    broker.send("a", wire.Sync(9, "e", 0, "gap"))
    broker.wait(0.0)
    session = broker.session(a)
    assert session is not None
    open_after = []
    for index in range(2):
        broker.send("a", wire.Received(9, index))
        open_after.append(session.answer is not None)
    assert open_after == [True, False]


@pytest.mark.usefixtures("small_parts")
def test_asking_again_gives_the_first_answer_up() -> None:
    broker = Brokerage()
    for at in range(9):
        broker.join(f"x{at}")
    broker.send("x0", wire.Sync(9, "", 0, "gap"))
    broker.send("x0", wire.Sync(10, "", 0, "late"), wire.Received(9, 0))
    assert {part.number for part in parts(broker.read_all("x0"))[-5:]} == {10}


@pytest.mark.usefixtures("small_parts")
def test_asking_often_takes_one_place_in_the_line() -> None:
    # Each Sync took a place of its own, and they were served no faster than four a turn: a flood of them grew for ever.
    broker = Brokerage()
    broker.join("a")
    broker.join("b")
    for number in range(500):
        broker.core.receive(b"a", wire.Sync(number, "", 0, "gap"), broker.now)
    assert len(broker.core._answers._line) == 1
    broker.turn()
    assert {part.number for part in parts(broker.to("a"))} == {499}


def test_a_receipt_of_what_was_never_sent_is_counted_and_dropped() -> None:
    broker = Brokerage()
    broker.join("a")
    broker.send("a", wire.Received(9, 0))
    broker.core.receive(b"a", wire.Sync(9, "", 0, "gap"), broker.now)
    broker.core.receive(b"a", wire.Received(9, 0), broker.now)
    broker.core.receive(b"a", wire.Received(8, 0), broker.now)
    assert broker.count("unexpected") == [3]


def test_an_answer_that_nobody_acknowledges_is_given_up() -> None:
    # Four observers that read nothing made every later joiner wait for a broadcast, and held old snapshots for good.
    broker = Brokerage()
    a = broker.greet("a")
    broker.hear(Subscribed(wire.presence_topic(a.token)))
    broker.wait(9.9)
    session = broker.session(a)
    assert session is not None
    assert session.answer is not None
    broker.wait(0.2)
    assert (session.answer, broker.count("answers_abandoned")) == (None, [1])


def test_an_answer_ends_with_its_session() -> None:
    broker = Brokerage()
    a = broker.greet("a")
    broker.hear(Subscribed(wire.presence_topic(a.token)))
    broker.send("a", wire.Sync(9, "", 0, "gap"))
    broker.die(a)
    assert leftovers(broker.core) == {}


# -- broadcasts --------------------------------------------------------------------------------------------------------


def asking(broker: Brokerage, *peers: str) -> list[Member]:
    """Observers that have joined and read nothing yet."""
    members = [broker.greet(peer, observer=True) for peer in peers]
    broker.hear(*[Subscribed(wire.presence_topic(member.token)) for member in members])
    broker.wait(0.0)
    return members


def listen(broker: Brokerage, *members: Member) -> None:
    broker.hear(*[Subscribed(wire.receipt_topic(member.token)) for member in members])


def crowd() -> tuple[Brokerage, list[Member]]:
    """Two snapshots are under way; c and d are invited."""
    broker = Brokerage()
    broker.join("x")
    members = asking(broker, "a", "b", "c", "d")
    return broker, members[2:]


@pytest.mark.usefixtures("early_broadcast")
def test_in_a_crowd_a_worker_is_invited_to_a_broadcast() -> None:
    broker, _ = crowd()
    assert [broker.to(peer)[-1] for peer in ("c", "d")] == [wire.Invite(1, BROADCAST, 1)] * 2
    assert [type(part).__name__ for part in parts(broker.to("a"))] == ["Snapshot", "Replay"]


@pytest.mark.usefixtures("early_broadcast", "small_parts")
def test_those_who_listen_hear_one_snapshot_in_parts_of_one_a_turn() -> None:
    broker, (c, d) = crowd()
    listen(broker, c, d)
    broker.wait(0.09)
    assert broker.broadcast() == []
    broker.wait(0.02)
    got = parts(broker.broadcast())
    registry = broker.core.registry
    assert [(part.number, part.index, part.last) for part in got] == [(1, 0, True), (1, 1, True)]
    assert (rows_of(got), broker.count("broadcasts")) == (list(registry._rows.values()), [1])
    assert broker.core._answers._broadcasting is None


@pytest.mark.usefixtures("early_broadcast")
def test_a_broadcast_waits_a_little_for_those_who_do_not_listen_yet() -> None:
    broker, (c, d) = crowd()
    listen(broker, c)
    broker.wait(0.3)
    assert broker.broadcast() == []
    listen(broker, d)
    broker.wait(0.01)
    assert len(parts(broker.broadcast())) == 2


@pytest.mark.usefixtures("early_broadcast")
def test_whoever_is_too_slow_to_listen_is_sent_its_own_snapshot() -> None:
    # It was forgotten, and had to find out by itself, two seconds later.
    broker, (c, _) = crowd()
    listen(broker, c)
    broker.to("d")
    broker.wait(0.6)
    assert len(parts(broker.broadcast())) == 2
    assert [part.number for part in parts(broker.to("d"))] == [1, 1]


@pytest.mark.usefixtures("early_broadcast")
def test_when_nobody_listens_nothing_is_broadcast() -> None:
    broker, _ = crowd()
    broker.wait(0.6)
    assert (broker.broadcast(), broker.count("broadcasts")) == ([], [0])
    assert len(parts(broker.to("c"))) == 2


@pytest.mark.usefixtures("early_broadcast", "small_parts")
def test_a_second_broadcast_waits_for_the_end_of_the_first() -> None:
    broker = Brokerage()
    for at in range(300):
        broker.core.registry.join(wire.WorkerRow(f"x{at}", "x", "", 1, b"\x80", wire.READY))
    members = asking(broker, "a", "b", "c", "d")
    listen(broker, *members[2:])
    broker.now += 0.1
    broker.core.tick(broker.now)
    late = broker.greet("e", observer=True)
    broker.hear(Subscribed(wire.presence_topic(late.token)))
    assert broker.last("e", wire.Invite) == wire.Invite(1, BROADCAST, 2)
    listen(broker, late)
    for _ in range(400):
        broker.now += 0.001
        broker.turn()
    numbers = [part.number for part in parts(broker.broadcast())]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2}


@pytest.mark.usefixtures("early_broadcast")
def test_an_invited_worker_that_asks_again_or_goes_is_invited_no_more() -> None:
    broker, (c, d) = crowd()
    broker.send("c", wire.Sync(9, "e", 1, "late"))
    broker.die(d)
    listen(broker, c)
    assert (broker.core._answers._invited, broker.core._answers._receipts) == ({}, {})
    assert parts(broker.to("c")) == [wire.Replay(9, "e", 0, True, [])]


@pytest.mark.usefixtures("early_broadcast")
def test_a_listener_that_goes_does_not_hold_up_the_broadcast() -> None:
    broker, (c, d) = crowd()
    listen(broker, c, d)
    broker.die(c)
    broker.wait(0.2)
    assert len(parts(broker.broadcast())) == 2
    broker.die(d)
    assert "gathered" not in leftovers(broker.core)


def test_a_small_registry_is_never_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BROADCAST_FROM", 2)
    broker, _ = crowd()
    assert [type(part).__name__ for part in parts(broker.to("d"))] == ["Snapshot", "Replay"]


def test_an_image_older_than_so_many_deltas_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "IMAGE_DELTAS_MAX", 1)
    broker = Brokerage()
    for at in range(30):
        broker.join(f"x{at}")
    got = sync(broker, "x0", 9, 0, "")
    assert (len(rows_of(got)) >= 29, len(rows_of(got)) + len(seqs_of(got))) == (True, 30)
