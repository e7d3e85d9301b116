"""Deltas that follow one another closely travel together; the first after a pause never waits."""

from __future__ import annotations

from iii_zmq import wire
from iii_zmq.core.broker.events import EVERYONE, Settings, Undelivered, Unsubscribed
from tests.core.brokerage import Brokerage, Member

GATHER_S = 0.002


def messages(broker: Brokerage) -> list[list[int] | str]:
    """What was published: the seqs of each message of deltas, and the names of other messages."""
    return [
        [wire.decode_delta(delta).seq for delta in message.deltas]
        if isinstance(message, wire.Deltas)
        else type(message).__name__
        for message in broker.to(EVERYONE.decode())
    ]


def quiet_broker(gather_s: float = GATHER_S) -> Brokerage:
    """Nothing was published for a while, and the beacon is not due."""
    broker = Brokerage(settings=Settings(gather_s=gather_s))
    broker.worker("a")
    broker.wait(0.1)
    broker.to(EVERYONE.decode())
    return broker


def test_the_first_change_after_a_pause_is_published_at_once() -> None:
    broker = quiet_broker()
    broker.register("a", "f")
    assert messages(broker) == [[2]]


def test_changes_right_after_it_wait_and_travel_together() -> None:
    broker = quiet_broker()
    for function_id in ("f", "g", "h"):
        broker.register("a", function_id)
    assert (messages(broker), broker.core.next_deadline()) == ([[2]], broker.now + GATHER_S)
    broker.wait(GATHER_S)
    assert messages(broker) == [[3, 4]]


def test_a_beacon_never_tells_of_what_was_not_published() -> None:
    broker = quiet_broker()
    broker.wait(0.4 - GATHER_S / 2)
    broker.register("a", "f")
    broker.register("a", "g")
    broker.wait(GATHER_S / 2)
    assert messages(broker) == [[2], [3], "Beacon"]


def test_what_waits_is_published_before_the_broker_closes() -> None:
    broker = quiet_broker()
    broker.register("a", "f")
    broker.register("a", "g")
    broker.core.close()
    broker.turn()
    assert messages(broker) == [[2], [3], "Closing"]


WAKE_S = 0.01


def crowd(count: int = 4) -> Brokerage:
    """So many sessions; nothing was published for a while."""
    broker = Brokerage(settings=Settings(gather_s=GATHER_S, wake_s=WAKE_S))
    for number in range(count):
        broker.worker(f"w{number}")
    broker.wait(0.3)
    broker.wait(0.1)
    broker.to(EVERYONE.decode())
    return broker


def published_at(broker: Brokerage, changes: int, every_s: float) -> list[int]:
    """In which millisecond deltas left, while so many changes were made."""
    began, moments = broker.now, []
    for number in range(changes):
        broker.register("w0", f"f{number}")
        moments += [round((broker.now - began) * 1000)] * sum(isinstance(one, list) for one in messages(broker))
        broker.wait(every_s)
        moments += [round((broker.now - began) * 1000)] * sum(isinstance(one, list) for one in messages(broker))
    return moments


def test_under_a_flood_publications_come_as_seldom_as_a_crowd_can_follow() -> None:
    """The story: 1,000 workers joined at once on two CPUs. Every delta left within 2 ms, woke all of them, and they
    fell so far behind that they were taken for stalled, which made more deltas, and then for gone. Here four workers
    take 40 ms to read a message: a few changes leave at once, then one message every 40 ms."""
    assert published_at(crowd(), 18, 0.005) == [0, 5, 10, 15, 20, 45, 85]


def test_in_a_crowd_a_change_after_a_pause_is_published_at_once() -> None:
    broker = crowd()
    published_at(broker, 30, 0.005)
    broker.wait(0.25)
    broker.to(EVERYONE.decode())
    broker.register("w0", "late")
    assert len(messages(broker)) == 1


def process_of(broker: Brokerage, *names: str) -> list[Member]:
    """Workers of one process that joined a while ago."""
    members = [broker.worker(name, host="h", pid=8) for name in names]
    broker.wait(0.2)
    broker.to(EVERYONE.decode())
    return members


def test_workers_of_one_process_that_die_together_are_told_together() -> None:
    """A killed process's connections end one by one within a moment, and each message wakes everybody."""
    broker = quiet_broker(gather_s=0.02)
    first, second, _ = process_of(broker, "b", "c", "d")
    broker.die(first)  # and 10 ms pass
    assert messages(broker) == []
    broker.die(second)
    assert messages(broker) == [[5, 6]]


def test_a_process_whose_workers_all_died_in_one_turn_is_told_at_once() -> None:
    broker = quiet_broker(gather_s=0.02)
    members = process_of(broker, "b", "c")
    for member in members:
        broker.core.receive(EVERYONE, Unsubscribed(wire.presence_topic(member.token)), broker.now)
    broker.turn()
    for member in members:
        broker.core.receive(member.peer, Undelivered(wire.Probe(0)), broker.now)
    broker.turn()
    assert messages(broker) == [[4, 5]]


def test_a_dead_worker_that_was_alone_in_its_process_is_told_at_once() -> None:
    broker = quiet_broker(gather_s=0.02)
    (only,) = process_of(broker, "b")
    broker.die(only)
    assert messages(broker) == [[3]]


def test_a_beacon_never_tells_of_a_death_that_waits_for_others() -> None:
    broker = quiet_broker(gather_s=0.02)
    dying, _ = process_of(broker, "b", "c")
    broker.wait(0.185)
    broker.die(dying)
    broker.wait(0.02)
    assert messages(broker) == [[4], "Beacon"]
