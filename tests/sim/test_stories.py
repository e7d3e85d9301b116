"""What the simulator found, each as a story of its own, played by hand."""

from __future__ import annotations

from itertools import count

from iii_zmq import wire
from iii_zmq.core.broker.events import Subscribed
from iii_zmq.core.worker.changes import Position
from iii_zmq.core.worker.events import BROKER, Events, Outbox, Settled
from iii_zmq.core.worker.offers import Offers
from tests.core.brokerage import Brokerage, entry

# -- registrations -----------------------------------------------------------------------------------------------------


class Desk:
    """Offers, with the test in the place of the broker and of the replica."""

    def __init__(self) -> None:
        self.outbox: Outbox = []
        self.events: Events = []
        self.offers = Offers(self.outbox, self.events, count(1).__next__)
        self.offers.opened(False, wire.BATCH_MAX)

    def sent(self) -> list[int]:
        """The numbers of the Registers and Unregisters that were sent."""
        sent = [message for to, message in self.outbox if to == BROKER]
        self.outbox.clear()
        return [message.number for message in sent if isinstance(message, wire.Register | wire.Unregister)]

    def acknowledge(self, number: int, seq: int, epoch: str = "e") -> None:
        """The broker did it at this position, and the replica is there."""
        self.offers.on_ack(wire.Ack(number, epoch, seq, []))
        self.offers.settle(Position(epoch, seq), level=True)

    def settled(self) -> list[int]:
        found = [event.ticket for event in self.events if isinstance(event, Settled)]
        self.events.clear()
        return found


def test_the_answer_to_an_earlier_withdrawal_does_not_settle_a_later_one() -> None:
    """Seed 217: while the broker slept, a user withdrew f, offered it and withdrew it again.

    1 Unregister f; 2 Register f; 3 Unregister f       all on their way
    4 the Ack of 1 comes: f is to be gone, which is what is wanted, so the last ticket was settled too
    5 the user is told that f is gone, while the replica goes on to 2 and shows it
    """
    desk = Desk()
    first = desk.offers.unregister(["f"])
    second = desk.offers.register({"f": entry("f")})
    third = desk.offers.unregister(["f"])
    withdrawn, offered, withdrawn_again = desk.sent()
    desk.acknowledge(withdrawn, 5)
    assert desk.settled() == [first]
    desk.acknowledge(offered, 6)
    assert desk.settled() == [second]
    desk.acknowledge(withdrawn_again, 7)
    assert desk.settled() == [third]


def test_the_refusal_of_an_earlier_offer_does_not_withdraw_a_later_one() -> None:
    """The same numbers for refusals: a user offers f again, in the same words, before the first answer comes.

    The first is refused, because another worker offers f otherwise; that one leaves; the second is accepted. If the
    first refusal counted for both, the broker would hold what the worker believes not to offer, and decline its calls.
    """
    desk = Desk()
    first, second = (desk.offers.register({"f": entry("f")}) for _ in range(2))
    refused, accepted = desk.sent()
    desk.offers.on_ack(wire.Ack(refused, "e", 5, [(0, "conflict", "another offers it otherwise")]))
    desk.offers.settle(Position("e", 5), level=True)
    assert desk.settled() == [first]
    desk.acknowledge(accepted, 6)
    assert desk.settled() == [second]
    assert desk.offers.wanted == {"f": entry("f")}


def test_what_a_broker_acknowledged_and_nobody_saw_is_settled_by_the_next_one() -> None:
    """Seed 140: a withdrawal was acknowledged at e:11, but the replica had not come so far when the broker died.

    Nothing of it is sent to the next broker, where nothing is to be withdrawn. So no answer with a new position would
    ever come, and no replica would ever be at e:11 again: the user waited for ever, and was never connected.
    """
    desk = Desk()
    ticket = desk.offers.unregister(["f"])
    (withdrawn,) = desk.sent()
    desk.offers.on_ack(wire.Ack(withdrawn, "e", 11, []))
    desk.offers.settle(Position("e", 10), level=True)
    assert desk.settled() == []
    desk.offers.paused()
    desk.offers.opened(False, wire.BATCH_MAX)
    desk.offers.settle(Position("next", 1), level=True)
    assert desk.settled() == [ticket]


# -- calls -------------------------------------------------------------------------------------------------------------


def test_who_loses_a_call_is_not_sent_its_heirs_fence() -> None:
    """Seed 37: in one turn of the broker a leader is handed a call, is replaced, and the call goes to its heir.

    1 a Call of an idempotent, exclusive function is handed to `a`: it lies in the outbox
    2 a Hello with `a`'s token, from another connection and with other functions: `a` is replaced, `b` promoted
    3 the same Call is handed to `b`, with `b`'s fence
    4 the outbox is sent: it held one and the same message twice, so `a`, cut off, could write with `b`'s fence
    """
    broker = Brokerage()
    led = entry("led", exclusive=True, idempotent=True)
    caller = broker.worker("caller")
    a = broker.worker("a", led)
    broker.worker("b", led)
    fence_of_a = broker.core.registry.seq - 2
    broker.to("a")
    broker.core.receive(caller.peer, caller.call(1, "led"), broker.now)
    broker.core.receive(b"again", broker.hello("a", token=a.token, functions=bytes(16)), broker.now)
    broker.turn()
    (to_a,), (to_b,) = broker.calls("a"), broker.calls("b")
    assert (to_a.fence, to_b.fence) == (fence_of_a, broker.core.registry.seq)


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_hello_from_the_connection_before_does_not_take_the_session_back() -> None:
    """Seed 797: while the broker slept, a worker said Hello, lost the connection, and said Hello on a new one.

    1 the broker wakes and reads the later Hello first: the ROUTER keeps an order only within a connection
    2 it reads the earlier Hello, with the token that the worker knew then
    3 the session went back to a connection that is gone, and the worker, on the new one, was nobody
    """
    broker = Brokerage()
    broker.worker("other")
    before = broker.worker("before", "f", name="w")
    said = {"name": "w", "token": before.token, "functions": wire.functions_digest([entry("f")])}
    broker.core.receive(b"after", broker.hello("after", number=53, **said), broker.now)
    broker.core.receive(b"before", broker.hello("before", number=43, **said), broker.now)
    broker.turn()
    welcome = broker.last("after", wire.Welcome)
    broker.hear(Subscribed(wire.presence_topic(welcome.token)))
    broker.send("other", wire.Call(1, "f", broker.id_of("other"), 1000, "", 0, 0, wire.pack(None)))
    assert [call.function_id for call in broker.calls("after")] == ["f"]
