"""Bundles over real sockets: each message in one counts as if it had come alone, and only who asks is sent any."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from iii_zmq import AsyncWorker, Worker, wire
from iii_zmq.core.bundles import Packed, packed
from iii_zmq.io.worker import link
from iii_zmq.io.worker.handlers import QUICK_S, Handlers
from tests.net.brokers import RunningBroker, running_broker
from tests.net.raw import NIL, RawPeer

pytestmark = pytest.mark.net

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as served:
        yield served


@pytest.fixture
def plain(broker: RunningBroker) -> Iterator[RawPeer]:
    with RawPeer(broker.url) as peer:
        peer.join("plain").read(wire.Replay)
        yield peer


@pytest.fixture
def bundling(broker: RunningBroker) -> Iterator[RawPeer]:
    with RawPeer(broker.url) as peer:
        peer.hello("bundling", capabilities=(wire.BUNDLES,))
        peer.subscribe()
        peer.read(wire.Replay)
        yield peer


def pings(peer: RawPeer, *numbers: int) -> list[wire.Message]:
    assert peer.welcome is not None
    caller = peer.welcome.worker_id
    return [wire.Call(one, "engine::ping", caller, 5000, "", 0, 0, wire.pack(one)) for one in numbers]


def frames(messages: list[wire.Message]) -> list[bytes]:
    return [wire.encode(one)[0] for one in messages]


def test_each_message_of_a_bundle_counts_as_if_it_had_come_alone(plain: RawPeer) -> None:
    before = plain.counters("malformed", "unexpected")
    first, second = frames(pings(plain, 101, 102))
    nested = frames([wire.Bundle(0, [first])])[0]
    unknown_kind = second[:3] + b"\xff" + second[4:]
    plain.send(wire.Bundle(0, [first, b"garbage", nested, unknown_kind, second]))
    answers = [plain.read_any(PATIENCE_S) for _ in range(3)]  # and none of them in a bundle
    assert answers == [
        wire.Result(101, wire.pack(101)),
        wire.Refuse(102, 255, "unknown_kind", answers[1].text),  # type: ignore[union-attr]
        wire.Result(102, wire.pack(102)),
    ]
    assert plain.counters("malformed", "unexpected") == [before[0] + 2, before[1] + 1]


def test_a_stranger_is_answered_for_each_message(broker: RunningBroker) -> None:
    with RawPeer(broker.url) as stranger:
        stranger.send(wire.Bundle(0, frames([wire.Heartbeat(7, "", 0, 0, 0), wire.Cancel(8)])))
        assert stranger.read_any(PATIENCE_S) == wire.Unknown(7, wire.KIND[wire.Heartbeat])
        assert stranger.read_any(PATIENCE_S) == wire.Unknown(8, wire.KIND[wire.Cancel])


def test_answers_that_are_ready_together_leave_together_to_who_takes_bundles(bundling: RawPeer) -> None:
    asked = pings(bundling, 201, 202, 203)
    bundling.send(wire.Bundle(0, frames(asked)))
    bundle = bundling.read_any(PATIENCE_S)
    assert isinstance(bundle, wire.Bundle)
    assert [wire.decode(one) for one in bundle.frames] == [wire.Result(one, wire.pack(one)) for one in (201, 202, 203)]
    bundling.send(asked[0])
    assert bundling.read_any(PATIENCE_S) == wire.Result(201, wire.pack(201))  # one alone is no bundle


def test_what_can_not_be_sent_together_is_told_for_each(broker: RunningBroker, bundling: RawPeer) -> None:
    """A provider whose connection is gone before its calls leave: none of them is lost."""
    with RawPeer(broker.url) as provider:
        provider.hello("provider", capabilities=(wire.BUNDLES,))
        provider.subscribe()
        provider.send(wire.Register(provider.number(), [wire.encode_entry(wire.FunctionEntry("bundles::gone"))]))
        provider.read(wire.Ack)
    assert bundling.welcome is not None
    caller = bundling.welcome.worker_id
    calls = [wire.Call(one, "bundles::gone", caller, 5000, "", 0, 0, NIL) for one in range(301, 321)]
    bundling.send(wire.Bundle(0, frames(calls)))
    failed: list[int] = []
    while len(failed) < len(calls):
        message = bundling.read_any(PATIENCE_S)
        assert message is not None
        parts = [wire.decode(one) for one in message.frames] if isinstance(message, wire.Bundle) else [message]
        failed.extend(one.number for one in parts if isinstance(one, wire.Failure))
    assert failed == [call.number for call in calls]


@pytest.mark.parametrize("threads", [0, 4])
def test_a_worker_answers_every_call_of_a_bundle_once_and_in_order(broker: RunningBroker, threads: int) -> None:
    seen: list[int] = []
    with Worker("provider", broker.url, threads=threads) as provider, RawPeer(broker.url) as peer:
        provider.register("bundles::note", lambda value: seen.append(value) or value)
        peer.join("peer")
        assert peer.welcome is not None
        caller = peer.welcome.worker_id
        calls = [wire.Call(n, "bundles::note", caller, 5000, "", 0, 0, wire.pack(n)) for n in range(1001, 1051)]
        peer.send(wire.Bundle(0, frames(calls)))  # type: ignore[arg-type]
        answers = [peer.read(wire.Result, within_s=PATIENCE_S) for _ in calls]
    assert sorted((one.number, wire.unpack(one.payload)) for one in answers) == [(n, n) for n in range(1001, 1051)]
    assert sorted(seen) == list(range(1001, 1051))
    assert threads or seen == sorted(seen)


def test_no_answer_waits_for_a_handler_that_may_take_long(broker: RunningBroker) -> None:
    """An inline worker's answers leave together; but none waits behind a handler that is not known as quick."""
    may_end = threading.Event()
    with Worker("provider", broker.url, threads=0) as provider, RawPeer(broker.url) as peer:
        provider.register("bundles::quick", lambda value: value)
        provider.register("bundles::long", lambda _: may_end.wait(PATIENCE_S))
        peer.join("peer")
        assert peer.welcome is not None
        caller = peer.welcome.worker_id
        ids = ["bundles::quick"] * 5 + ["bundles::long"]
        calls = [wire.Call(n, one, caller, 60_000, "", 0, 0, wire.pack(n)) for n, one in enumerate(ids, 2000)]
        peer.send(wire.Bundle(0, frames([*calls])))
        assert [peer.read(wire.Result, within_s=PATIENCE_S / 2).number for _ in range(5)] == [*range(2000, 2005)]
        may_end.set()
        assert wire.unpack(peer.read(wire.Result, within_s=PATIENCE_S).payload) is True


def test_a_handler_is_quick_once_it_was_and_slow_runs_are_forgotten_in_time() -> None:
    handlers = Handlers()
    handlers.put(handlers.prepare([("bundles::one", lambda value: value, {})], {}))
    assert not handlers.is_quick("bundles::one")  # nobody knows
    handlers.note_pace("bundles::one", QUICK_S / 2)
    assert handlers.is_quick("bundles::one")
    handlers.note_pace("bundles::one", 1.0)
    runs = 0
    while not handlers.is_quick("bundles::one"):
        handlers.note_pace("bundles::one", QUICK_S / 2)
        runs += 1
    assert 10 < runs < 1_000
    handlers.remove(["bundles::one"])
    handlers.note_pace("bundles::one", QUICK_S / 2)  # it was running when it went
    assert not handlers.is_quick("bundles::one")


def test_many_calls_at_once_all_come_back_to_their_callers(broker: RunningBroker) -> None:
    async def echo(value: int) -> int:
        return value

    async def ask() -> list[int]:
        async with AsyncWorker("both", broker.url) as worker:
            await worker.register("bundles::echo", echo)
            return await asyncio.gather(*[worker.call("bundles::echo", n) for n in range(1_000)])

    assert asyncio.run(ask()) == list(range(1_000))


@pytest.mark.skipif(wire.COMPILED, reason="replaces the inside of what is compiled")
@pytest.mark.parametrize(("one_cpu", "largest"), [(True, wire.BUNDLE_MAX), (False, 30)])
def test_a_caller_with_many_open_calls_sends_them_in_parts(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch, one_cpu: bool, largest: int
) -> None:
    """So that broker and provider work while it goes on, unless all of them have one processor."""
    sizes: list[int] = []

    def noted(messages: list[wire.Message], most: int) -> Iterator[Packed]:
        for packet in packed(messages, most):
            sizes.append(sum(isinstance(one, wire.Call) for one in packet[2]))
            yield packet

    async def ask() -> None:
        async with AsyncWorker("caller", broker.url) as worker:
            await asyncio.gather(*[worker.call("engine::ping", n) for n in range(120)])

    monkeypatch.setattr(link, "_IS_ON_ONE_CPU", one_cpu)
    monkeypatch.setattr(link, "packed", noted)
    asyncio.run(ask())
    assert (sum(sizes), max(sizes)) == (120, largest)
