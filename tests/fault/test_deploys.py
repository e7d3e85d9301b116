"""Deploys under steady calls: who is active in an exclusive function, and what becomes of the calls meanwhile.

The stream is recorded by a bare SUB that applies every delta by itself: what it never saw, no observer could see.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zmq

from iii_zmq import AsyncWorker, CallFailed, ProviderLost, Worker, current_call, wire
from iii_zmq.io import sockets
from tests.fault.programs import PATIENCE_S, QUICK, Program, program, until
from tests.net.brokers import RunningBroker, running_broker
from tests.sim.checks import History
from tests.sim.trace import Violation

pytestmark = [pytest.mark.net, pytest.mark.fault]

LED = "deploy::led"  # exclusive
OPEN = "deploy::open"  # offered by several at once

# -- providers, each in a process --------------------------------------------------------------------------------------

MEMBER = """
    import json, os, sys, threading, time
    from iii_zmq import Worker, current_call

    url, name, threads, log = sys.argv[1:]
    worker = Worker(name, url, threads=int(threads), credit=4)
    record = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @worker.function("deploy::led", exclusive=True)
    def led(number):
        call, began = current_call(), time.monotonic()
        time.sleep(0.002)
        done = {"worker": name, "epoch": call.epoch, "fence": call.fence, "number": number,
                "began": began, "ended": time.monotonic()}
        os.write(record, (json.dumps(done) + "\\n").encode())
        return done

    @worker.function("deploy::open")
    def open_(number):
        return [name, number]

    def obey():
        for line in sys.stdin:
            if line == "unregister\\n":
                worker.unregister("deploy::led")
                print("unregistered", flush=True)

    worker.on_state(lambda state: print(state, flush=True))
    threading.Thread(target=obey, daemon=True).start()
    worker.run()
"""

ASYNC_MEMBER = """
    import asyncio, sys
    from iii_zmq import AsyncWorker

    url, name, threads, log = sys.argv[1:]
    worker = AsyncWorker(name, url, threads=int(threads), credit=4)

    async def led(number):
        await asyncio.sleep(0.002)
        return number

    worker.function("deploy::led", exclusive=True)(led if threads == "0" else lambda number: number)
    worker.function("deploy::open")(lambda number: [name, number])
    worker.on_state(lambda state: print(state, flush=True))
    asyncio.run(worker.run())
"""


def connected(member: Program) -> Program:
    """Once it offers everything."""
    while member.line() != "connected":
        pass
    return member


@contextmanager
def crew(code: str, url: str, threads: int, log: Path) -> Iterator[Callable[[str], Program]]:
    """Starts members by name; all end with the block."""
    members: list[Program] = []

    def hire(name: str) -> Program:
        members.append(Program(code, url, name, str(threads), str(log)))
        return members[-1]

    try:
        yield hire
    finally:
        for member in members:
            member.end()


# -- the recorder of the stream ----------------------------------------------------------------------------------------


class Recorder:
    """Every delta of one epoch from the first on, checked as it comes: one active provider, fences that rise."""

    def __init__(self, broker: RunningBroker) -> None:
        self.history = History(broker.epoch, 0, 0)
        self.violation: str | None = None
        self._context = sockets.new_context()
        self._sub = sockets.sub(self._context, 500, 5000)
        self._sub.setsockopt(zmq.SUBSCRIBE, wire.STREAM_TOPIC)
        self._sub.setsockopt(zmq.RCVTIMEO, 50)
        self._sub.connect(broker.stream_url)
        self._heard = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._record)

    def __enter__(self) -> Recorder:
        self._thread.start()
        assert self._heard.wait(PATIENCE_S)  # a beacon: what comes from now on comes here
        assert self.history.seq == 0
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sub.close(linger=0)
        self._context.term()

    def offers(self, function_id: str) -> list[wire.ProviderRow]:
        """Its providers now."""
        rows = [wire.decode_row(row) for key, row in self.history.rows.items() if key[1] == function_id]
        return [row for row in rows if isinstance(row, wire.ProviderRow)]

    def active(self, function_id: str) -> str | None:
        """Who is it now."""
        return next((offer.worker_id for offer in self.offers(function_id) if offer.active), None)

    def fences(self) -> dict[int, str]:
        """Of the led function: fence -> the name of whom it was given to."""
        names: dict[str, str] = {}
        for delta in self.history.deltas:
            rows = [wire.decode_row(row) for row in delta.puts]
            names.update({row.worker_id: row.name for row in rows if isinstance(row, wire.WorkerRow)})
        promotions = [(seq, key) for key, seqs in self.history.promotions.items() for seq in seqs if key[1] == LED]
        assert len(dict(promotions)) == len(promotions)
        return {seq: names[worker_id] for seq, (worker_id, _) in sorted(promotions)}

    def _record(self) -> None:
        while not self._over.is_set():
            try:
                message = wire.decode_on_stream(self._sub.recv())
            except zmq.Again:
                continue
            if isinstance(message, wire.Deltas):
                try:
                    for delta in message.deltas:
                        self.history.take(delta)
                except Violation as violation:
                    self.violation = self.violation or str(violation)
            self._heard.set()


# -- steady callers ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """What one caller heard, in order."""

    results: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def steady_calls(url: str, functions: dict[str, int], timeout: float = PATIENCE_S) -> Iterator[dict[str, Told]]:
    """One caller for each function, as many threads as are said: one call after the other, until the block ends."""
    told = {function: Told() for function in functions}
    over = threading.Event()

    def call(caller: Worker, function: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            try:
                told[function].results.append(caller.call(function, number, timeout=timeout))
            except CallFailed as failure:
                told[function].failures.append(f"{failure.code} {failure.fate} {failure}")
            except Exception as error:
                told[function].failures.append(repr(error))
                return

    with Worker("caller", url) as caller:
        caller.start()
        threads = [
            threading.Thread(target=call, args=(caller, function))
            for function, count in functions.items()
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield told
        finally:
            over.set()
            for thread in threads:
                thread.join()


def more(told: Told, count: int = 20) -> None:
    """Waits until so many more calls had results."""
    before = len(told.results)
    until(lambda: len(told.results) >= before + count)


# -- exclusive ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_exclusive_function_has_one_active_provider_at_every_delta_whatever_happens(tmp_path: Path) -> None:
    """SIGKILL, drain, unregister, SIGSTOP beyond the TTL, and a pause of the broker, under steady calls."""
    log = tmp_path / "executions"
    with (
        running_broker("--heartbeat", "0.15", "--ttl", "0.7") as broker,
        Recorder(broker) as recorder,
        crew(MEMBER, broker.url, 2, log) as hire,
    ):
        first, second, third = [connected(hire(name)) for name in ("first", "second", "third")]
        with steady_calls(broker.url, {LED: 1}) as calls:
            told = calls[LED]
            more(told)

            first.kill()  # it may have had one call
            more(told)
            assert len(told.failures) <= 1
            assert all(one.startswith("provider_lost possibly_executed") for one in told.failures)

            failures = len(told.failures)
            fourth = connected(hire("fourth"))
            second.signal(signal.SIGTERM)
            assert second.finish().code == 0
            more(told)
            third.say("unregister")
            while third.line() != "unregistered":
                pass
            more(told)
            assert len(told.failures) == failures  # nobody loses a call by leaving on purpose

            fifth = connected(hire("fifth"))
            leading = recorder.active(LED)
            fourth.signal(signal.SIGSTOP)
            until(lambda: recorder.active(LED) not in (leading, None))
            more(told)
            fourth.signal(signal.SIGCONT)
            until(lambda: len(recorder.offers(LED)) == 2)  # it is back, and stands by
            more(told)

            broker.process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)  # the fault itself: more than two TTLs, so that it cuts every connection on waking
            broker.process.send_signal(signal.SIGCONT)
            more(told)
            until(lambda: len(recorder.offers(LED)) == 2)

            fifth.kill()
            until(lambda: len(recorder.offers(LED)) == 1)
            more(told)
            assert all("possibly_executed" in one for one in told.failures)
        fences = recorder.fences()
        assert recorder.violation is None
    check_fences(told, fences, [json.loads(line) for line in log.read_text().splitlines()])


def check_fences(told: Told, fences: dict[int, str], executions: list[dict[str, Any]]) -> None:
    """What a fence tells: to whom it was given, that it rises, and that nobody else ran under the same one."""
    assert len(fences) >= 4
    assert all(fences[done["fence"]] == done["worker"] for done in executions)
    heard = [done["fence"] for done in told.results]
    assert heard == sorted(heard)  # one caller's calls, one after the other
    numbers = [done["number"] for done in executions]
    assert len(set(numbers)) == len(numbers)  # it is not idempotent: never twice
    by_start = sorted(executions, key=lambda done: done["began"])
    for before, after in pairwise(by_start):
        overlap = after["began"] < before["ended"]
        assert not overlap or before["worker"] == after["worker"] or before["fence"] != after["fence"]


# -- rolling deploys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [pytest.param(0, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("code", [MEMBER, ASYNC_MEMBER], ids=["sync", "async"])
def test_a_rolling_deploy_loses_no_call(tmp_path: Path, code: str, threads: int) -> None:
    """The next one starts before the one before it is told to end; whoever calls notices nothing of either.

    III_TEST_DEPLOYS=50 for as many rounds by hand.
    """
    rounds = int(os.environ.get("III_TEST_DEPLOYS", "2"))
    with running_broker() as broker, crew(code, broker.url, threads, tmp_path / "executions") as hire:
        old = connected(hire("v0"))
        with steady_calls(broker.url, {OPEN: 2, LED: 1}) as calls:
            for number in range(1, rounds + 1):
                new = connected(hire(f"v{number}"))
                more(calls[OPEN])
                old.signal(signal.SIGTERM)
                done = old.finish()
                assert (done.code, done.err) == (0, "")
                more(calls[OPEN])
                more(calls[LED])
                old = new
        print(
            f"{rounds} deploys, {len(calls[OPEN].results)} calls, {len(calls[LED].results)} of the exclusive function"
        )
        assert calls[OPEN].failures == calls[LED].failures == []
        assert {name for name, _ in calls[OPEN].results} == {f"v{number}" for number in range(rounds + 1)}


# -- draining ----------------------------------------------------------------------------------------------------------

DRAINED = """
    import asyncio, sys, threading
    from iii_zmq import AsyncWorker, Worker

    url, kind = sys.argv[1:]
    name = "leaver"

    if kind == "sync":
        gate = threading.Event()
        worker = Worker(name, url, threads=2, credit=2)
        worker.register("drain::held", lambda number: gate.wait(60) and [name, number])
    else:
        gate = None
        worker = AsyncWorker(name, url, credit=2)

        @worker.function("drain::held")
        async def held(number):
            await gate.wait()
            return [name, number]

    def obey(release):
        sys.stdin.readline()
        release()

    async def main():
        global gate
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=obey, args=(lambda: loop.call_soon_threadsafe(gate.set),), daemon=True).start()
        await worker.run()

    worker.on_state(lambda state: print(state, flush=True))
    if kind == "sync":
        threading.Thread(target=obey, args=(gate.set,), daemon=True).start()
        worker.run()
    else:
        asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_drain_ends_what_runs_and_what_waits_and_new_calls_go_elsewhere(kind: str) -> None:
    with (
        running_broker() as broker,
        Worker("caller", broker.url) as caller,
        program(DRAINED, broker.url, kind) as leaver,
        Worker("stayer", broker.url) as stayer,
    ):
        connected(leaver)
        caller.wait_for("drain::held", timeout=PATIENCE_S)  # it may hear later of the leaver than the leaver itself
        leaver_id = next(one.id for one in caller.workers.values() if one.name == "leaver")
        held = [caller.submit("drain::held", number, worker=leaver_id) for number in range(6)]
        until(lambda: caller.call("engine::status")["counters"]["calls_queued"] == 4)
        stayer.register("drain::held", lambda number: ["stayer", number])
        leaver.signal(signal.SIGTERM)
        until(lambda: caller.workers[leaver_id].state == "draining")
        later = [caller.call("drain::held", number) for number in range(6, 12)]
        assert later == [["stayer", number] for number in range(6, 12)]
        assert not any(future.done() for future in held)
        leaver.say("go on")
        assert [future.result(PATIENCE_S) for future in held] == [["leaver", number] for number in range(6)]
        assert leaver.finish().code == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_calls_that_wait_inside_a_worker_that_unregisters_go_elsewhere(kind: str) -> None:
    """They failed as `timeout`: the handler was gone when their turn for a thread came."""
    with running_broker() as broker, Worker("caller", broker.url) as caller, Worker("heir", broker.url) as heir:
        running, release = threading.Event(), threading.Event()

        def held(number: int) -> list[Any]:
            running.set()
            return ["leader", number, release.wait(PATIENCE_S)]

        def play(unregister: Callable[[], Any]) -> None:
            heir.register("led::f", lambda number: ["heir", number, True], exclusive=True)
            futures = [caller.submit("led::f", number) for number in range(4)]
            assert running.wait(PATIENCE_S)
            caller.call("engine::ping")  # the others were handed over, too, and wait for the only thread
            unregister()
            release.set()
            results = [future.result(PATIENCE_S) for future in futures]
            assert results == [["leader", 0, True], *[["heir", number, True] for number in range(1, 4)]]

        async def main() -> None:
            async with AsyncWorker("leader", broker.url, threads=1) as leader:
                await leader.register("led::f", held, exclusive=True)
                loop = asyncio.get_running_loop()
                done = asyncio.to_thread(
                    play, lambda: asyncio.run_coroutine_threadsafe(leader.unregister("led::f"), loop).result()
                )
                await done

        if kind == "async":
            asyncio.run(main())
        else:
            with Worker("leader", broker.url, threads=1) as leader:
                leader.register("led::f", held, exclusive=True)
                play(lambda: leader.unregister("led::f"))


# -- idempotent functions ----------------------------------------------------------------------------------------------

HOLDER = """
    import os, sys, time
    from iii_zmq import Worker

    url, log = sys.argv[1:]
    record = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hold(number):
        os.write(record, f"{number}\\n".encode())
        time.sleep(60)

    worker = Worker("holder", url)
    worker.register("again::yes", hold, idempotent=True)
    worker.register("again::no", hold)
    worker.on_state(lambda state: print(state, flush=True))
    worker.run()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_providers_idempotent_calls_go_to_another_one_and_no_others(tmp_path: Path, number: int) -> None:
    log = tmp_path / "executions"
    executed: list[int] = []

    def answer(payload: int) -> str:
        executed.append(payload)
        return "by the heir"

    with (
        running_broker("--heartbeat", "0.1", "--ttl", "0.6") as broker,
        Worker("caller", broker.url) as caller,
        program(HOLDER, broker.url, str(log)) as holder,
    ):
        connected(holder)
        again = [caller.submit("again::yes", one, timeout=PATIENCE_S) for one in range(3)]
        late = caller.submit("again::yes", 3, timeout=0.2)
        never = [caller.submit("again::no", one, timeout=PATIENCE_S) for one in range(10, 13)]
        until(lambda: log.exists() and len(log.read_text().split()) == 7)
        assert late.exception(PATIENCE_S) is not None
        heir = Worker("heir", broker.url)
        heir.register("again::yes", answer, idempotent=True)
        heir.register("again::no", answer)
        with heir:
            holder.signal(number)
            assert [future.result(PATIENCE_S) for future in again] == ["by the heir"] * 3
            for future in never:
                with pytest.raises(ProviderLost) as lost:
                    future.result(PATIENCE_S)
                assert lost.value.fate == "possibly_executed"
            assert sorted(executed) == [0, 1, 2]  # nor the one whose deadline had passed
            if number == signal.SIGSTOP:  # it comes back, with handlers that still run: nobody hears of them again
                holder.signal(signal.SIGCONT)
                until(lambda: len(caller.functions["again::no"].providers) == 2)
    assert sorted(log.read_text().split(), key=int) == ["0", "1", "2", "3", "10", "11", "12"]


# -- fences across brokers ---------------------------------------------------------------------------------------------


class Guarded:
    """A resource as docs/protocol.md tells it: of the epoch that its own worker is in, and never a lower fence."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._highest = ("", 0)
        self.refused: list[str] = []

    def write(self, epoch: str, fence: int) -> bool:
        if epoch != self._worker.position.epoch:
            self.refused.append("epoch")
            return False
        if self._highest[0] == epoch and fence < self._highest[1]:
            self.refused.append("fence")
            return False
        self._highest = (epoch, fence)
        return True


def test_a_resource_that_joined_tells_old_writers_by_epoch_and_fence(tmp_path: Path) -> None:
    """A fence begins anew with each broker: alone it would let the old writer in, and keep the new one out."""

    def claim(_: Any) -> tuple[str, int]:
        call = current_call()
        return call.epoch, call.fence

    url = f"ipc://{tmp_path}/broker"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(running_broker(*QUICK, url=url))
        resource, one, two = [Worker(name, url) for name in ("resource", "one", "two")]
        for worker in (resource, one, two):
            stack.callback(worker.close)
            worker.start()
        guarded = Guarded(resource)
        for number in range(50):  # so that fences of this epoch are high
            resource.register(f"noise::f{number}", print)
        one.register("claim::it", claim, exclusive=True)
        two.register("claim::it", claim, exclusive=True)
        by_one = tuple(resource.call("claim::it"))
        assert guarded.write(*by_one)
        one.unregister("claim::it")
        by_two = tuple(resource.call("claim::it"))
        assert guarded.write(*by_two)
        assert not guarded.write(*by_one)
        first.process.kill()
        first.process.wait()
        second = stack.enter_context(running_broker(*QUICK, url=url))
        until(lambda: resource.position.epoch == second.epoch)
        resource.wait_for("claim::it", timeout=PATIENCE_S)
        later = tuple(resource.call("claim::it"))
        assert guarded.write(*later)
        assert not guarded.write(*by_two)
        assert guarded.refused == ["fence", "epoch"]
        assert by_one[0] == by_two[0] == first.epoch
        assert later[0] == second.epoch
        assert by_one[1] < by_two[1]
