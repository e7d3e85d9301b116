"""Deltas that follow one another closely travel together; the first after a pause never waits."""

from __future__ import annotations

from iii_zmq import wire
from iii_zmq.core.session import EVERYONE, Settings
from tests.core.brokerage import Brokerage

GATHER_S = 0.002


def messages(broker: Brokerage) -> list[list[int] | str]:
    """What was published: the seqs of each message of deltas, and the names of other messages."""
    return [
        [wire.decode_delta(delta).seq for delta in message.deltas]
        if isinstance(message, wire.Deltas)
        else type(message).__name__
        for message in broker.to(EVERYONE.decode())
    ]


def quiet_broker() -> Brokerage:
    """Nothing was published for a while, and the beacon is not due."""
    broker = Brokerage(settings=Settings(gather_s=GATHER_S))
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
