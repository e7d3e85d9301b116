"""Which token names a session: the one told last, and, until its worker shows that it heard, the one before."""

from __future__ import annotations

import pytest

from iii_zmq import wire
from iii_zmq.core.broker.events import Subscribed
from tests.core.brokerage import Brokerage, Member, entry


def digest_of(*function_ids: str) -> bytes:
    return wire.functions_digest([entry(function_id) for function_id in function_ids])


def returned(broker: Brokerage, peer: str, old: Member) -> Member:
    """A Hello with the old token and the same functions; its presence is not heard yet."""
    return broker.greet(peer, name="a", token=old.token, functions=digest_of("f"))


@pytest.mark.parametrize("peers", [("a2", "a3"), ("a", "a"), ("a2", "a2"), ("a", "a2")])
def test_a_hello_that_is_repeated_before_its_welcome_came_names_the_same_rows(peers: tuple[str, str]) -> None:
    """A broker woke from a long pause.

    1. The worker's connections were cut; it says Hello with its token, and the broker welcomes it with a fresh one.
    2. That Welcome goes to a connection that is gone again; the worker never sees the fresh token.
    3. The worker repeats its Hello, with the only token it knows. The broker knew that one no more, took it for a
       stranger, and had the worker twice until the first one's presence was overdue.
    """
    broker = Brokerage()
    old = broker.worker("a", "f")
    broker.stream()
    unheard = returned(broker, peers[0], old)
    again = returned(broker, peers[1], old)
    assert unheard.worker_id == again.worker_id == old.worker_id
    assert (broker.stream(), list(broker.workers())) == ([], ["a"])


def test_the_token_before_is_of_no_use_once_the_presence_was_heard() -> None:
    broker = Brokerage()
    old = broker.worker("a", "f")
    now = returned(broker, "a2", old)
    broker.hear(Subscribed(wire.presence_topic(now.token)))
    assert returned(broker, "a3", old).worker_id != old.worker_id


def test_no_token_of_an_ended_session_is_left_behind() -> None:
    broker = Brokerage()
    old = broker.worker("a", "f")
    returned(broker, "a2", old)
    broker.wait(6)
    assert (broker.workers(), broker.core.sessions.by_token) == ({}, {})
