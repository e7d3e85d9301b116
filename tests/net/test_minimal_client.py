"""docs/protocol.md is enough to write a client: the one written from it alone works with a real broker."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.net.brokers import END_S, RunningBroker, end, environment, running_broker
from tests.net.minimal_client import Client

pytestmark = pytest.mark.net

PROGRAM = Path(__file__).with_name("minimal_client.py")


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@contextmanager
def client(url: str, name: str) -> Iterator[Client]:
    """A client of this process that has joined."""
    one = Client(url, name)
    try:
        one.join()
        yield one
    finally:
        one.close()


@contextmanager
def program(url: str, name: str, *function_ids: str) -> Iterator[subprocess.Popen[str]]:
    """A client that is a process of its own and has registered these functions."""
    command = [sys.executable, str(PROGRAM), url, name, *function_ids]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the client could not join"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        end(process)


def status(caller: Client) -> dict[str, Any]:
    answer = caller.call("engine::status", None)
    assert isinstance(answer, dict)
    return answer


def assert_agrees(one: Client) -> None:
    """Its replica is the broker's content, by position and digest."""
    told = status(one)
    one.pump_until(lambda: one.complete and one.seq >= told["seq"])
    assert (one.epoch, one.seq, one.digest().hex()) == (told["epoch"], told["seq"], told["digest"])


def test_it_joins_registers_and_sees_itself(broker: RunningBroker) -> None:
    with client(broker.url, "orders") as orders:
        assert orders.register("orders::create", "orders::list") == []
        assert orders.functions() == {"orders::create", "orders::list"}
        assert (orders.workers(), orders.epoch, orders.log) == ({"orders"}, broker.epoch, ["reset"])
        assert_agrees(orders)


def test_what_is_refused_is_told_by_index_and_code(broker: RunningBroker) -> None:
    with client(broker.url, "orders") as orders:
        refused = orders.register("engine::mine", "orders::create", "no id")
        assert [(index, code) for index, code, _ in refused] == [(0, "reserved"), (2, "invalid")]
        assert orders.functions() == {"orders::create"}


@pytest.mark.parametrize("payload", [None, {"amount": 10}, b"x" * 65_534, b"x" * 1_000_000], ids=lambda one: "")
def test_one_calls_another_through_the_broker(broker: RunningBroker, payload: Any) -> None:
    with program(broker.url, "payments", "payments::charge"), client(broker.url, "orders") as orders:
        assert orders.call("payments::charge", payload) == ["payments", payload]


def test_a_call_that_nobody_serves_fails_with_its_fate(broker: RunningBroker) -> None:
    with client(broker.url, "orders") as orders, pytest.raises(RuntimeError) as raised:
        orders.call("payments::charge", None)
    assert raised.value.args[:2] == ("no_provider", "not_handed_over")


def test_it_hears_of_a_join_and_of_a_death(broker: RunningBroker) -> None:
    with client(broker.url, "watcher") as watcher:
        with program(broker.url, "third", "third::one") as third:
            watcher.pump_until(lambda: "third::one" in watcher.functions())
            third.send_signal(signal.SIGKILL)
            watcher.pump_until(lambda: "third" not in watcher.workers())
        assert watcher.functions() == set()
        assert_agrees(watcher)
        assert watcher.log == ["reset"]  # all of it came as deltas
        assert status(watcher)["counters"]["left_died"] == 1


def test_after_a_gap_exactly_the_missing_deltas_come(broker: RunningBroker) -> None:
    with client(broker.url, "watcher") as watcher, client(broker.url, "orders") as orders:
        watcher.pump_until(lambda: "orders" in watcher.workers())
        for function_id in ("orders::one", "orders::two"):
            orders.register(function_id)
            while not watcher.sub.recv().startswith(b"s|i3\x01\x12"):  # lost: kind 18, Deltas
                pass
        orders.register("orders::three")
        watcher.pump_until(lambda: "orders::three" in watcher.functions())
        assert_agrees(watcher)
        assert watcher.log == ["reset", "gap", "resumed"]


def test_a_lost_last_delta_is_noticed_by_the_beacon(broker: RunningBroker) -> None:
    with client(broker.url, "watcher") as watcher, client(broker.url, "orders") as orders:
        watcher.pump_until(lambda: "orders" in watcher.workers())
        orders.register("orders::one")
        while not watcher.sub.recv().startswith(b"s|i3\x01\x12"):
            pass
        watcher.pump_until(lambda: "orders::one" in watcher.functions())
        assert watcher.log == ["reset", "gap", "resumed"]


def test_a_replica_that_is_wrong_notices_and_gets_a_snapshot(broker: RunningBroker) -> None:
    with client(broker.url, "watcher") as watcher:
        watcher.rows.clear()
        watcher.total = 0
        watcher.pump_until(lambda: watcher.log == ["reset", "digest", "reset"])
        assert_agrees(watcher)


def test_a_broken_stream_is_renewed_and_nothing_else_changes(broker: RunningBroker) -> None:
    with client(broker.url, "watcher") as watcher, client(broker.url, "orders") as orders:
        orders.register("orders::one")
        watcher.pump_until(lambda: "orders::one" in watcher.functions())
        worker_id, token, seq = orders.worker_id, orders.token, watcher.seq
        orders.sub.disconnect(broker.stream_url)
        orders.pump_until(lambda: orders.token != token and orders.complete)
        assert (orders.worker_id, orders.kept, orders.log) == (worker_id, True, ["reset", "resumed"])
        assert_agrees(watcher)
        assert watcher.seq == seq  # nobody saw anything of it


def test_a_stream_that_broke_and_came_back_by_itself_costs_no_call_and_no_delta(broker: RunningBroker) -> None:
    """The old presence is subscribed again, and whether the broker saw its end or not, what was missed is a gap."""
    with client(broker.url, "watcher") as watcher, client(broker.url, "orders") as orders:
        orders.register("orders::one")
        orders.sub.disconnect(broker.stream_url)
        watcher.register("watcher::one")
        orders.sub.connect(broker.stream_url)
        assert orders.call("orders::one", 1) == ["orders", 1]
        assert_agrees(orders)
        assert orders.functions() == {"orders::one", "watcher::one"}


def test_a_new_connection_with_the_token_takes_the_rows_over(broker: RunningBroker) -> None:
    with client(broker.url, "orders") as orders:
        orders.register("orders::one")
        worker_id, seq = orders.worker_id, orders.seq
        orders.dealer.disconnect(broker.url)
        orders.dealer.connect(broker.url)
        orders.pump_until(lambda: orders.log == ["reset", "resumed"])  # a Heartbeat was answered by Unknown
        assert (orders.worker_id, orders.kept, orders.seq) == (worker_id, True, seq)
        assert orders.call("orders::one", 1) == ["orders", 1]


def test_a_restarted_broker_is_joined_and_told_again(broker: RunningBroker) -> None:
    with client(broker.url, "watcher") as watcher, client(broker.url, "orders") as orders:
        orders.register("orders::one")
        broker.process.send_signal(signal.SIGKILL)
        broker.process.wait(END_S)
        with running_broker(url=broker.url) as successor:
            watcher.pump_until(lambda: watcher.epoch == successor.epoch and watcher.complete)
            orders.pump_until(lambda: orders.epoch == successor.epoch and orders.complete)
            watcher.pump_until(lambda: "orders::one" in watcher.functions())
            assert_agrees(watcher)
            assert watcher.workers() == {"watcher", "orders"}
            assert orders.call("orders::one", 1) == ["orders", 1]


def test_when_many_want_a_big_snapshot_it_is_broadcast(broker: RunningBroker) -> None:
    with client(broker.url, "big") as big:
        for batch in range(1100):  # so many that no snapshot from before is sent with the deltas since
            big.send_register(*(f"big::function-number-{batch * 10 + one}" for one in range(10)))
        big.pump_until(lambda: len(big.functions()) == 11_000)
        crowd = [Client(broker.url, f"crowd-{one}") for one in range(7)]
        for one in crowd[:4]:
            one.greet()
            one.read_control()  # the Welcome; the parts that follow wait, unacknowledged
        big.pump_until(lambda: len(big.workers()) == 5)
        for one in crowd[4:]:
            one.greet()
            one.read_control()
        while not all(one.complete for one in crowd):
            for one in crowd:
                one.pump(1)
        for one in crowd:
            assert_agrees(one)
            assert one.log[-1] == "reset"  # after a "late", where the machine was so slow that one missed it
        counters = status(big)["counters"]
        for one in crowd:
            one.close()
    assert counters["broadcasts"] >= 1
