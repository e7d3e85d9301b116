"""The sync Worker against a real broker process: what DESIGN.md promises to those who use it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from iii_zmq import (
    BrokerLost,
    BrokerUnreachable,
    CallTimeout,
    Closed,
    NoProvider,
    Refused,
    RemoteError,
    WaitTimeout,
    Worker,
    current_call,
    wire,
)
from iii_zmq.core.worker.events import RunCall
from iii_zmq.io import sockets
from iii_zmq.io.edge import Edge
from iii_zmq.io.worker.handlers import Handlers
from tests.net.brokers import RunningBroker, environment, free_url, running_broker
from tests.plain import plain

pytestmark = pytest.mark.net

QUICK = ("--heartbeat", "0.1", "--ttl", "0.5")


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def url(broker: RunningBroker) -> str:
    return broker.url


@pytest.fixture
def make(url: str) -> Iterator[Callable[..., Worker]]:
    """Makes workers that are closed at the end."""
    made: list[Worker] = []

    def worker(name: str, **options: Any) -> Worker:
        made.append(Worker(name, options.pop("url", url), **options))
        return made[-1]

    yield worker
    for one in made:
        one.close()


def echo(payload: Any) -> Any:
    return payload


def until(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    """Waits for something that others bring about."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def script(code: str, *args: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())


# -- payloads ----------------------------------------------------------------------------------------------------------

LARGE = {
    "bytes": b"b" * 1_000_000,
    "bytes at the limit of one frame": b"b" * 65_536,
    "just above it": b"b" * 65_537,
    "str": "ü" * 500_000,
    "map": {"image": b"b" * 1_000_000, "n": [1, 2]},
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_large_values_go_and_come_back(make: Callable[..., Worker], value: Any) -> None:
    provider = make("provider", threads=0)
    provider.register("large::echo", echo)
    provider.start()
    with make("caller") as caller:
        assert caller.call("large::echo", value) == value
        assert [one.result() for one in [caller.submit("large::echo", value) for _ in range(4)]] == [value] * 4


def test_a_payload_may_be_changed_once_submit_has_returned(make: Callable[..., Worker]) -> None:
    provider = make("provider", threads=0)
    provider.register("changed::echo", echo)
    provider.start()
    value = bytearray(1_000_000)
    with make("caller") as caller:
        answer = caller.submit("changed::echo", value)
        value[:] = b"x" * len(value)
        assert answer.result() == bytes(1_000_000)


def run_of(function_id: str, payload: bytes) -> RunCall:
    return RunCall(wire.Call(1, function_id, "caller", 60_000, "", 0, 0, payload), time.monotonic() + 60, "epoch")


class Counted(dict[str, bytes]):
    """A map that knows how often it was packed."""

    packed = 0

    def items(self) -> Any:
        self.packed += 1
        return super().items()


def test_a_large_result_is_packed_once() -> None:
    """Results over 64 KiB were packed to see how large they are, and then packed again for an error message that
    nobody needed: a third of the provider's time for 16 MB."""
    handlers = Handlers()
    value = Counted(image=bytes(100_000))
    handlers.put(handlers.prepare([("large::map", lambda _: value, {})], {}))
    outcome = handlers.run_here(run_of("large::map", b"\xc0"), 0.0)
    assert isinstance(outcome, bytes)
    assert value.packed == 1


def test_a_running_handler_holds_its_payload_once() -> None:
    """What a large value came in stayed beside it until the handler had ended."""
    handlers = Handlers()
    run = run_of("large::hold", wire.pack(bytes(100_000)))
    handlers.put(handlers.prepare([("large::hold", lambda value: [len(value), len(run.payload)], {})], {}))
    assert handlers.run_here(run, 0.0) == wire.pack([100_000, 0])


def test_a_large_message_is_dealt_with_before_the_next_is_read() -> None:
    """A burst of 16 MB each was read as a whole: 64 MB of memory that was fresh each time, and so twice as slow."""
    heard: list[int] = []
    core = SimpleNamespace(receive=lambda _, message, now: heard.append(message.number), next_deadline=lambda: None)
    context = zmq.Context()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    here.bind("inproc://burst")
    there.connect("inproc://burst")
    link = plain("io.worker.link").Link(core)
    link._dealer = Edge(here)
    link._renew()
    for number, payload in enumerate([b"1", b"2", bytes(100_000), bytes(100_000), b"3"]):
        frame, attached = wire.encode(wire.Result(number, payload))
        there.send(frame, zmq.SNDMORE if attached else 0)
        if attached:
            sockets.send_payload(there, attached)
    bursts = []
    while link.wait_ms() == 0:
        link.pump()
        bursts.append((heard[:], link.is_heavy))
        heard.clear()
    link.close()
    context.destroy(linger=0)
    assert bursts == [([0, 1, 2], True), ([3], True), ([4], False)]


# -- joining -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
def test_a_started_worker_has_everything_registered_and_serves(make: Callable[..., Worker], threads: int) -> None:
    provider = make("provider", threads=threads)

    @provider.function("join::echo", description="gives back", metadata={"a": 1}, request_schema={"type": "object"})
    def handler(payload: Any) -> Any:
        return payload

    provider.start()

    assert provider.state == "connected"
    assert provider.functions["join::echo"].description == "gives back"
    assert provider.workers[provider.id].functions == ("join::echo",)  # type: ignore[index]
    with make("caller") as caller:
        assert caller.call("join::echo", {"x": [1, b"2", None]}) == {"x": [1, b"2", None]}
        until(lambda: caller.position == provider.position)
        assert caller.digest == provider.digest


def test_a_worker_over_ipc(tmp_path: Path) -> None:
    with running_broker(url=f"ipc://{tmp_path}/b") as ipc, Worker("a", ipc.url) as worker:
        worker.register("ipc::echo", echo)
        assert worker.call("ipc::echo", 5) == 5


def test_the_url_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("III_URL", url)
    with Worker("environment") as worker:
        assert worker.state == "connected"


def test_an_absent_broker_is_an_error_within_the_connect_timeout() -> None:
    worker = Worker("a", "tcp://127.0.0.1:9", connect_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=r"tcp://127\.0\.0\.1:9 within 0\.\d s"):
        worker.start()
    assert time.monotonic() - began < 4  # the usual connect timeout is 5 s
    assert isinstance(BrokerUnreachable(), ConnectionError)


def test_with_retry_a_worker_waits_for_its_broker(url: str) -> None:
    served = free_url()
    worker = Worker("patient", served, connect_timeout=0.2, retry=True)
    worker.register("retry::echo", echo)
    starting = threading.Thread(target=worker.start)
    starting.start()
    time.sleep(0.5)
    with running_broker(url=served):
        starting.join(5)
        assert worker.state == "connected"
        assert worker.call("retry::echo", 1) == 1
        worker.close()


def test_a_failed_start_can_be_repeated(url: str) -> None:
    served = free_url()
    worker = Worker("a", served, connect_timeout=0.2)
    with pytest.raises(BrokerUnreachable):
        worker.start()
    with running_broker(url=served), worker:
        assert worker.state == "connected"


def test_an_observer_joins_without_a_row(make: Callable[..., Worker]) -> None:
    with make("seen") as seen, make("unseen", observer=True) as unseen:
        unseen.wait_for()
        assert [info.name for info in seen.workers.values()].count("unseen") == 0
        assert unseen.workers[seen.id].name == "seen"  # type: ignore[index]
        with pytest.raises(ValueError, match="observer"):
            unseen.register("a::b", echo)


def test_states_are_told(make: Callable[..., Worker]) -> None:
    worker = make("states")
    states: list[str] = []
    worker.on_state(states.append)
    assert worker.state == "new"
    with worker:
        pass
    assert states == ["connecting", "connected", "closed"]
    assert worker.state == "closed"


# -- what users do wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "use"),
    [
        (ValueError, lambda w: w.register("", echo)),
        (ValueError, lambda w: w.register("a::" + "b" * 65, echo)),
        (ValueError, lambda w: w.register("a::\n", echo)),
        (ValueError, lambda w: w.register("engine::mine", echo)),
        (TypeError, lambda w: w.register(5, echo)),
        (TypeError, lambda w: w.register("a::b", "no handler")),
        (TypeError, lambda w: w.register("a::b", echo, request_schema=[1])),
        (ValueError, lambda w: w.register("a::b", echo, metadata={1: 2})),
        (TypeError, lambda w: w.register("a::b", echo, metadata={"x": object()})),
        (TypeError, lambda w: w.register_many([("a::b", echo, {"colour": 1})])),
        (TypeError, lambda w: w.register("a::b", async_echo)),
        (ValueError, lambda w: w.unregister("never::was")),
        (ValueError, lambda w: w.call("no spaces")),
        (ValueError, lambda w: w.call("a::b", timeout=-1)),
        (TypeError, lambda w: w.call("a::b", timeout="1")),
        (TypeError, lambda w: w.call("a::b", object())),
        (ValueError, lambda w: w.call("a::b", 2**70)),
        (ValueError, lambda w: w.call("a::b", "\ud800")),
        (ValueError, lambda w: w.call("a::b", bytes(33 * 1024 * 1024))),
        (ValueError, lambda w: w.send("a::b", 2**70)),
        (ValueError, lambda w: w.wait_for("a b")),
        (TypeError, lambda w: w.on_change(5)),
    ],
)
def test_bad_use_is_refused_at_the_call(make: Callable[..., Worker], error: type[Exception], use: Any) -> None:
    with make("clumsy") as worker, pytest.raises(error) as raised:
        use(worker)
    assert "\n" not in str(raised.value)


async def async_echo(payload: Any) -> Any:
    return payload


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""}, {"name": "x" * 65}, {"name": "a\nb"}, {"name": 5}, {"url": "http://x:1"}, {"url": "tcp://x"},
        {"url": "tcp://x:99999"}, {"metadata": {"a": {1}}}, {"metadata": {"a": "x" * 70_000}}, {"threads": -1},
        {"credit": 0}, {"connect_timeout": -1}, {"stream_url": "x"}, {"metadata": [1]},
    ],
)  # fmt: skip
def test_a_worker_that_makes_no_sense_is_not_made(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Worker(**{"name": "fine", **options})


def test_a_worker_that_is_not_started_or_closed_says_so(make: Callable[..., Worker]) -> None:
    worker = make("a")
    for use in (lambda: worker.call("a::b"), lambda: worker.submit("a::b"), lambda: worker.wait_for("a::b")):
        with pytest.raises(Closed, match="not started"):
            use()
    worker.start()
    worker.close()
    worker.close()
    for use in (
        lambda: worker.call("a::b"),
        lambda: worker.send("a::b"),
        lambda: worker.register("a::b", echo),
        lambda: worker.unregister("a::b"),
        lambda: worker.wait_for("a::b"),
        worker.start,
        worker.run,
        worker.drain,
    ):
        with pytest.raises(Closed, match="closed"):
            use()


def test_current_call_outside_of_a_handler() -> None:
    with pytest.raises(RuntimeError, match="inside a handler"):
        current_call()


# -- registering -------------------------------------------------------------------------------------------------------


def test_a_registration_is_visible_to_its_worker_when_it_returns(make: Callable[..., Worker]) -> None:
    with make("a") as worker:
        worker.register("mine::one", echo)
        assert "mine::one" in worker.functions
        worker.unregister("mine::one")
        assert "mine::one" not in worker.functions
        with pytest.raises(NoProvider) as raised:
            worker.call("mine::one")
        assert raised.value.fate == "not_handed_over"


def test_a_second_registration_of_one_id_needs_replace(make: Callable[..., Worker]) -> None:
    with make("a") as worker, make("watcher") as watcher:
        worker.register("twice::f", lambda _: 1)
        with pytest.raises(ValueError, match="registered"):
            worker.register("twice::f", lambda _: 2)
        watcher.wait_for("twice::f")
        changes = watcher.changes("twice::*", timeout=5)
        worker.register("twice::f", lambda _: 3, description="new", replace=True)
        assert watcher.call("twice::f") == 3
        assert next(changes).kind == "function_changed"
        assert watcher.functions["twice::f"].description == "new"


def test_a_batch_is_one_change(make: Callable[..., Worker]) -> None:
    with make("a") as worker, make("watcher") as watcher:
        changes = watcher.changes("batch::*", timeout=5)
        worker.register_many([(f"batch::f{i}", echo) for i in range(100)], internal=True)
        seen = [next(changes) for _ in range(100)]
        assert len({change.seq for change in seen}) == 1
        assert watcher.functions["batch::f7"].internal


def test_more_than_a_batch_goes_as_several(make: Callable[..., Worker]) -> None:
    with make("a") as worker:
        worker.register_many({f"many::f{i}": echo for i in range(3000)}, description="d" * 900)
        assert sum(name.startswith("many::") for name in worker.functions) == 3000
        worker.unregister(*[f"many::f{i}" for i in range(3000)])
        assert not any(name.startswith("many::") for name in worker.functions)


def test_providers_that_disagree_are_refused(make: Callable[..., Worker]) -> None:
    with make("a") as first, make("b") as second:
        first.register("conflict::f", echo, exclusive=True)
        with pytest.raises(Refused) as raised:
            second.register_many([("conflict::f", echo), ("conflict::fine", echo)])
        assert raised.value.code == "conflict"
        assert "1 of 2 functions were accepted" in str(raised.value)
        assert second.call("conflict::fine", 1) == 1
        third = make("c")
        third.register("conflict::f", echo)
        with pytest.raises(Refused):
            third.start()


# -- calling -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 4], ids=["inline", "threads"])
def provider(request: pytest.FixtureRequest, make: Callable[..., Worker]) -> Worker:
    worker = make("provider", threads=request.param)
    worker.register("p::echo", echo)
    worker.register("p::fail", lambda payload: payload["missing"])
    worker.register("p::odd", lambda payload: object())
    worker.register("p::sleep", time.sleep)
    worker.register("p::patient", lambda _: until(lambda: current_call().cancelled, 20.0))
    worker.start()
    return worker


def test_calls_and_failures(provider: Worker, make: Callable[..., Worker]) -> None:
    with make("caller") as caller:
        assert caller.call("p::echo") is None
        big = os.urandom(3_000_000)
        assert caller.call("p::echo", big) == big
        with pytest.raises(RemoteError) as raised:
            caller.call("p::fail", {})
        assert (raised.value.type, raised.value.text, raised.value.fate) == ("KeyError", "'missing'", "executed")
        with pytest.raises(RemoteError, match="TypeError"):
            caller.call("p::odd")
        with pytest.raises(RemoteError, match="TypeError"):
            caller.call("p::sleep", "not a number")
        with pytest.raises(NoProvider):
            caller.call("p::absent")
        assert caller.call("p::echo", 1, worker=provider.id) == 1
        assert caller.call("engine::status")["workers"] >= 2


def test_a_call_ends_by_its_timeout(provider: Worker, make: Callable[..., Worker]) -> None:
    with make("caller") as caller:
        began = time.monotonic()
        with pytest.raises(CallTimeout) as raised:
            caller.call("p::sleep", 0.6, timeout=0.25)
        assert 0.25 <= time.monotonic() - began < 5  # how soon after it is measured elsewhere
        assert raised.value.fate == "possibly_executed"
        assert isinstance(raised.value, TimeoutError)
        assert caller.call("p::echo", "still there") == "still there"


def test_submit_send_and_cancel(provider: Worker, make: Callable[..., Worker]) -> None:
    with make("caller") as caller:
        futures = [caller.submit("p::echo", i) for i in range(200)]
        assert {future.result(5) for future in as_completed(futures, 5)} == set(range(200))
        lost = caller.submit("p::sleep", 0.2)
        caller.call("engine::ping")  # what was asked before it has reached the broker, too
        assert lost.cancel()
        assert lost.cancelled()
        caller.send("p::echo", 5)
        caller.send("p::absent", 5)
        assert caller.call("p::echo", 6) == 6
        until(lambda: caller.counters.get("sends_failed") == 1)
        assert caller.counters["calls_given_up"] == 1


def test_many_threads_share_one_worker(provider: Worker, make: Callable[..., Worker]) -> None:
    with make("caller") as caller:
        results: list[list[int]] = []

        def work(base: int) -> None:
            results.append([caller.call("p::echo", base + i) for i in range(100)])

        threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(results) == [[1000 * i + j for j in range(100)] for i in range(8)]


@pytest.mark.parametrize("threads", [0, 4])
def test_workers_that_call_each_other_back(make: Callable[..., Worker], threads: int) -> None:
    one, two = make("one", threads=threads), make("two", threads=threads)
    one.register("ring::one", lambda n: n if n == 0 else two_from_one(n - 1))
    two.register("ring::two", lambda n: n if n == 0 else one_from_two(n - 1))
    one.start()
    two.start()

    def two_from_one(n: int) -> list[Any]:
        return [one.call("ring::two", n)]

    def one_from_two(n: int) -> list[Any]:
        return [two.call("ring::one", n)]

    one.wait_for("ring::two")
    assert one.call("ring::one", 3) == [[[0]]]


def test_nested_calls_inherit_the_deadline(make: Callable[..., Worker], provider: Worker) -> None:
    middle = make("middle")
    spent: list[float] = []
    callers: list[str] = []

    def handler(_: Any) -> None:
        call = current_call()
        assert call.function_id == "deadline::outer"
        callers.append(call.caller)
        assert 0 < call.remaining() <= 0.5
        began = time.monotonic()
        try:
            middle.call("p::patient", timeout=10)
        finally:
            spent.append(time.monotonic() - began)

    middle.register("deadline::outer", handler)
    middle.start()
    with make("caller") as caller:
        caller.wait_for("deadline::outer")
        with pytest.raises(CallTimeout):
            caller.call("deadline::outer", timeout=0.5)
        assert callers == [caller.id]
    until(lambda: spent)
    assert spent[0] < 5  # without it, 10


def test_a_handler_sees_that_nobody_waits(make: Callable[..., Worker]) -> None:
    worker = make("provider")
    seen: list[bool] = []

    def handler(_: Any) -> None:
        call = current_call()
        until(lambda: call.cancelled, 3)
        seen.append(call.cancelled)

    worker.register("patience::f", handler)
    worker.start()
    with make("caller") as caller:
        future = caller.submit("patience::f")
        time.sleep(0.1)
        future.cancel()
        until(lambda: seen)


def test_a_handler_that_exits_has_failed_and_no_more(provider: Worker, make: Callable[..., Worker]) -> None:
    provider.register("p::exit", sys.exit)
    with make("caller") as caller:
        for _ in range(5):
            with pytest.raises(RemoteError) as raised:
                caller.call("p::exit", 3)
            assert (raised.value.type, raised.value.text) == ("SystemExit", "3")
        assert caller.call("p::echo", 1) == 1


def test_leaving_with_waits_for_open_futures_and_no_longer(provider: Worker, make: Callable[..., Worker]) -> None:
    began = time.monotonic()
    with make("caller") as caller:
        future = caller.submit("p::sleep", 0.3)
    assert future.result(0) is None
    assert 0.3 <= time.monotonic() - began < 4  # it would wait for 5 s


# -- watching ----------------------------------------------------------------------------------------------------------


def test_wait_for_wakes_at_the_first_provider(make: Callable[..., Worker]) -> None:
    with make("waiter") as waiter, make("late") as late:
        timer = threading.Timer(0.2, lambda: late.register("late::f", echo))
        timer.start()
        began = time.monotonic()
        waiter.wait_for("late::f", "engine::status", timeout=5)
        assert 0.15 < time.monotonic() - began < 4
        with pytest.raises(WaitTimeout) as raised:
            waiter.wait_for("late::f", "never::f", timeout=0.1)
        assert raised.value.missing == ["never::f"]
        timer.join()


def test_changes_are_told_by_pattern(make: Callable[..., Worker]) -> None:
    watcher = make("watcher")
    told: list[str] = []
    everything: list[str] = []

    @watcher.on_change("orders::*")
    def on_order(change: Any) -> None:
        told.append(change.kind)
        raise ValueError("logged, and no more")

    watcher.on_change(lambda change: everything.append(change.kind))
    with watcher, make("shop") as shop:
        shop.register("orders::create", echo)
        shop.register("other::f", echo)
        until(lambda: everything.count("function_added") == 2)
        shop.close()
        until(lambda: "worker_left" in everything)
    assert told == ["function_added", "function_removed"]
    assert everything[0] == "worker_joined"


def test_a_reader_of_changes_ends_with_its_worker(make: Callable[..., Worker]) -> None:
    watcher = make("watcher")
    watcher.start()
    seen: list[str] = []
    changes = watcher.changes()
    reader = threading.Thread(target=lambda: seen.extend(change.kind for change in changes))
    reader.start()
    make("other").start()
    until(lambda: seen)
    watcher.close()
    reader.join(5)
    assert not reader.is_alive()


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_drain_lets_running_and_queued_calls_end(make: Callable[..., Worker]) -> None:
    provider = make("leaver", threads=1, credit=1)
    provider.register("drain::sleep", lambda s: time.sleep(s) or "done")
    provider.start()
    with make("caller") as caller:
        caller.wait_for("drain::sleep")
        futures = [caller.submit("drain::sleep", 0.2) for _ in range(3)]
        caller.call("engine::ping")  # what was asked before it has reached the broker, too
        assert provider.drain(timeout=20)
        assert [future.result(5) for future in futures] == ["done"] * 3
        assert provider.state == "closed"
        with pytest.raises(NoProvider):
            caller.call("drain::sleep", 0)


def test_close_sends_the_result_that_is_about_to_come(make: Callable[..., Worker]) -> None:
    provider = make("leaver")
    started = threading.Event()
    provider.register("close::sleep", lambda s: started.set() or time.sleep(s) or "done")
    provider.start()
    with make("caller") as caller:
        caller.wait_for("close::sleep")
        future = caller.submit("close::sleep", 0.1)
        assert started.wait(5)
        provider.close()
        assert future.result(5) == "done"


def test_close_fails_what_is_open(make: Callable[..., Worker], provider: Worker) -> None:
    caller = make("caller")
    caller.start()
    future = caller.submit("p::sleep", 1)
    caller.call("engine::ping")
    caller.close()
    with pytest.raises(BrokerLost, match="closed"):
        future.result(5)


def test_a_handler_may_close_its_worker(make: Callable[..., Worker]) -> None:
    worker = make("suicidal", threads=0)
    worker.register("end::me", lambda _: worker.close())
    worker.start()
    with make("caller") as caller:
        caller.wait_for("end::me")
        caller.send("end::me")
        until(lambda: worker.state == "closed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_by_signal_and_drains(url: str, number: int, make: Callable[..., Worker]) -> None:
    code = """
        import sys, time
        from iii_zmq import Worker
        worker = Worker("runner", sys.argv[1])
        worker.register("run::sleep", lambda s: time.sleep(s) or "done")
        worker.run()
        print("after", worker.state)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), url]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with make("caller") as caller:
        caller.wait_for("run::sleep", timeout=10)
        future = caller.submit("run::sleep", 0.4)
        caller.call("engine::ping")
        process.send_signal(number)
        assert future.result(10) == "done"
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (0, "after closed\n", "")


def test_run_in_a_thread_ends_with_close(make: Callable[..., Worker]) -> None:
    worker = make("threaded")
    worker.register("thread::echo", echo)
    thread = threading.Thread(target=worker.run)
    thread.start()
    with make("caller") as caller:
        caller.wait_for("thread::echo")
        assert caller.call("thread::echo", 1) == 1
    worker.close()
    thread.join(5)
    assert not thread.is_alive()


def test_the_interpreter_ends_at_once_with_workers_open(url: str) -> None:
    code = """
        import sys, time
        from iii_zmq import Worker
        served = Worker("served", sys.argv[1]); served.register("exit::hang", time.sleep); served.start()
        inline = Worker("inline", sys.argv[1], threads=0); inline.register("exit::inline", time.sleep); inline.start()
        idle = Worker("idle", sys.argv[1]); idle.__enter__()
        idle.submit("exit::hang", 60)
        idle.submit("exit::inline", 60)
        time.sleep(0.2)
    """
    began = time.monotonic()
    done = script(code, url)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 5


def test_an_inherited_worker_is_refused_in_the_child(url: str) -> None:
    code = """
        import os, sys
        from iii_zmq import Closed, Worker
        with Worker("parent", sys.argv[1]) as worker:
            worker.register("fork::f", lambda x: x)
            pid = os.fork()
            if pid == 0:
                try:
                    worker.call("fork::f")
                except Closed as error:
                    print(error, flush=True)
                with Worker("child", sys.argv[1]) as own:
                    print(own.call("fork::f", "from the child"), flush=True)
                sys.exit(0)
            _, status = os.waitpid(pid, 0)
            print(status, worker.call("fork::f", "parent"))
    """
    done = script(code, url)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "the worker belongs to the parent process: make a new one after fork",
        "from the child",
        "0 parent",
    ]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_restart_of_the_broker_all_is_as_before(number: int) -> None:
    served = free_url()
    with running_broker(*QUICK, url=served) as first:
        provider, caller = Worker("provider", served), Worker("caller", served)
        provider.register_many({f"again::f{i}": echo for i in range(50)} | {"again::sleep": time.sleep})
        states: list[str] = []
        caller.on_state(states.append)
        provider.start()
        caller.start()
        caller.wait_for("again::sleep")
        epoch = caller.position.epoch
        open_call = caller.submit("again::sleep", 20)
        caller.call("engine::ping")
        first.process.send_signal(number)
        with pytest.raises(BrokerLost) as raised:
            open_call.result(15)  # below the 20 s that the handler takes
        assert raised.value.fate == "possibly_executed"
        first.process.wait(5)
        waiting = caller.submit("again::f1", "patient")
        with running_broker(*QUICK, url=served):
            error = waiting.exception(5)
            assert isinstance(error, NoProvider) or waiting.result() == "patient"  # who comes back first is left open
            caller.wait_for(*[f"again::f{i}" for i in range(50)], timeout=5)
            until(lambda: caller.position.epoch != epoch and len(caller.workers) == 2 and len(caller.functions) == 51)
            assert caller.call("again::f7", 7) == 7
            assert caller.state == provider.state == "connected"
            until(lambda: caller.digest == provider.digest)
            assert states[:4] == ["connecting", "connected", "connecting", "connected"]
            provider.close()
            caller.close()


@pytest.mark.fault
def test_calls_without_a_broker_fail_soon() -> None:
    with running_broker(*QUICK) as broker:
        worker = Worker("lonely", broker.url, connect_timeout=0.4)
        worker.start()
        broker.process.kill()
        broker.process.wait()
        until(lambda: worker.state == "connecting")
        began = time.monotonic()
        with pytest.raises(BrokerLost) as lost:
            worker.call("any::f")
        assert lost.value.fate == "not_handed_over"
        with pytest.raises(CallTimeout) as late:
            worker.call("any::f", timeout=0.2)
        assert late.value.fate == "not_handed_over"
        assert time.monotonic() - began < 10  # far below the 30 s of a call's usual timeout
        with pytest.raises(BrokerUnreachable, match="no session"):
            worker.register("kept::f", echo)
        worker.close()


@pytest.mark.fault
def test_a_script_between_two_calls_is_not_stalled(make: Callable[..., Worker]) -> None:
    with running_broker(*QUICK) as broker, make("watcher", url=broker.url) as watcher:
        states: list[str] = []
        watcher.on_change("*")(lambda change: states.append(str(change)))
        with make("script", url=broker.url) as script_worker:
            time.sleep(1.5)
            assert watcher.workers[script_worker.id].state == "ready"  # type: ignore[index]
        assert not any("worker_changed" in state and "script" in state for state in states)


@pytest.mark.slow
@pytest.mark.fault
def test_a_stopped_broker_makes_its_workers_stale_and_finds_them_again(make: Callable[..., Worker]) -> None:
    with running_broker(*QUICK) as broker, make("a", url=broker.url) as worker:
        worker.register("pause::echo", echo)
        states: list[str] = []
        worker.on_state(states.append)
        broker.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: worker.state in ("stale", "connecting"), 6.0)
        finally:
            broker.process.send_signal(signal.SIGCONT)
        until(lambda: worker.state == "connected", 6.0)
        assert worker.call("pause::echo", 1) == 1
        until(lambda: len(worker.workers) == 1, 8.0)


@pytest.mark.fault
def test_a_broken_stream_is_renewed_without_a_trace(make: Callable[..., Worker]) -> None:
    with running_broker(*QUICK) as broker, make("watcher", url=broker.url) as watcher, Cut(broker.stream_url) as cut:
        worker = make("cut", url=broker.url, stream_url=cut.url)
        worker.register("cut::echo", echo)
        worker.start()
        watcher.wait_for("cut::echo")
        seen: list[str] = []
        watcher.on_change("*")(lambda change: seen.append(change.kind))
        identity = worker.id
        for resumed in (1, 2, 3):
            cut.cut()
            until(lambda resumed=resumed: worker.counters.get("resumes") == resumed and worker.state == "connected")
            until(lambda: worker.position == watcher.position)
            assert worker.digest == watcher.digest
            assert worker.id == identity
        assert watcher.call("cut::echo", 1) == 1
        assert set(seen) <= {"worker_changed"}


class Cut:
    """A relay before the stream, whose connections can be cut."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").rsplit(":", 1)
        self._target = (host if host != "*" else "127.0.0.1", int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[Any] = []

    def __enter__(self) -> Cut:
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()

    def cut(self) -> None:
        pairs, self._open = self._open, []
        for one in pairs:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: Any, sink: Any) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass


def test_at_debug_a_worker_tells_each_message_without_payloads_and_secrets(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "iii_zmq.worker"), Worker("chatty", broker.url, threads=0) as worker:
        for _ in range(2):  # the second answer is waited for alone
            worker.call("engine::ping", "a payload")
        welcome = worker._core.membership.welcome
    assert welcome is not None
    lines = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    for expected in (
        "chatty: Hello to the broker, number 1",
        "chatty: Welcome from the broker, number 1",
        "chatty: Deltas from the stream, number 0",
        "chatty: Call to the broker, number",
        "chatty: Result from the broker, number",
        "chatty: Bye to the broker, number",
    ):
        assert any(line.startswith(expected) for line in lines), expected
    assert sum("Result from" in line for line in lines) == 2
    assert "a payload" not in caplog.text
    assert welcome.token.hex() not in caplog.text
    assert repr(welcome.token) not in caplog.text
