"""Roles on the shipped product: providers, callers, crews of observers, loaders, joiners.

Only the public face is used (`Worker`, `AsyncWorker`), the way a user's program would. The
workers of one process share its interpreter lock, as they would in a user's program; where that
matters the parent spreads them over more processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

from bench.measure import cpu_seconds, percentile, tcp_bytes_received
from bench.roles import answer, answer_async, ready
from iii_zmq import AsyncWorker, CallFailed, Worker

PAYLOAD = b"x" * 100
RECORDS_MAX = 200_000  # callbacks kept per worker while armed; more would measure our own memory
SPANS_MAX = 1_000_000  # calls of one stretch of traffic
VICTIM_S = 120.0  # longer than a victim has to wait for its turn
SEEN_S = 10.0  # what is known within milliseconds
END_S = 3.0  # what a provider gets to end by itself once its parent is gone


def echo(payload: object) -> object:
    """The handler of every function registered here."""
    return payload


# Calls ---------------------------------------------------------------------------------------


def provider(url: str, function_id: str, threads: int = 0) -> None:
    """A process that serves one function with `run()`; without threads, its handler runs inline."""
    worker = Worker("bench-provider", url, threads=threads)
    worker.register(function_id, echo)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    ready()  # not yet connected: callers `wait_for` the function
    worker.run()


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S)
    os._exit(1)


def caller(url: str, function_id: str, started: bool = False) -> None:
    """A sync worker that calls one function, or another one if `calls` is asked to; in a `with`, or after `start()`."""
    with Worker("bench-caller", url, threads=0) as worker:
        if started:
            worker.start()
        worker.wait_for(function_id, timeout=10)
        traffic = Traffic(worker, function_id)
        ready()
        answer(
            calls=lambda **asked: _calls(worker, **{"function_id": function_id, **asked}),
            begin=traffic.begin,
            end=traffic.end,
            first_answer=traffic.first_answer,
        )


def _calls(worker: Worker, function_id: str, window: int, count: int, cpu_of: int) -> dict[str, float]:
    """One round: `count` calls with `window` in flight; `cpu_of` is the broker's pid."""
    own_cpu, cpu, began = time.process_time(), cpu_seconds(cpu_of), time.perf_counter()
    if window == 1:
        spans = _one_by_one(worker, function_id, count)
    else:
        spans = _windowed(worker, function_id, window, count)
    took, cpu, own_cpu = time.perf_counter() - began, cpu_seconds(cpu_of) - cpu, time.process_time() - own_cpu
    return _sample(spans, count, took, cpu, own_cpu)


def _sample(spans: list[int], count: int, took: float, cpu: float, own_cpu: float) -> dict[str, float]:
    return {
        "caller_cpu_us": own_cpu / count * 1e6,
        "p50_us": percentile(spans, 50) / 1e3,
        "p99_us": percentile(spans, 99) / 1e3,
        "calls_per_s": count / took,
        "broker_cpu_us": cpu / count * 1e6,
    }


def _one_by_one(worker: Worker, function_id: str, count: int) -> list[int]:
    call, clock, spans = worker.call, time.perf_counter_ns, []
    for _ in range(count):
        began = clock()
        call(function_id, PAYLOAD)
        spans.append(clock() - began)
    return spans


def _windowed(worker: Worker, function_id: str, window: int, count: int) -> list[int]:
    """Futures in order: with one provider the oldest call is the next to be answered."""
    submit = worker.submit
    open_calls = deque(submit(function_id, PAYLOAD) for _ in range(window))
    for _ in range(count - window):
        open_calls.popleft().result()
        open_calls.append(submit(function_id, PAYLOAD))
    for future in open_calls:
        future.result()
    return []


def async_caller(url: str, function_id: str) -> None:
    """The same on AsyncWorker."""
    asyncio.run(_async_caller(url, function_id))


async def _async_caller(url: str, function_id: str) -> None:
    async with AsyncWorker("bench-async-caller", url) as worker:
        await worker.wait_for(function_id, timeout=10)

        async def calls(window: int, count: int, cpu_of: int) -> dict[str, float]:
            """One round: `window` tasks, gathered, that call one after the other."""
            spans: list[int] = []
            lane = count // window
            own_cpu, cpu, began = time.process_time(), cpu_seconds(cpu_of), time.perf_counter()
            await asyncio.gather(*(_lane(worker, function_id, lane, spans) for _ in range(window)))
            took, cpu, own_cpu = time.perf_counter() - began, cpu_seconds(cpu_of) - cpu, time.process_time() - own_cpu
            return _sample(spans, lane * window, took, cpu, own_cpu)

        ready()
        await answer_async(calls=calls)


async def _lane(worker: AsyncWorker, function_id: str, count: int, spans: list[int]) -> None:
    for _ in range(count):
        began = time.perf_counter_ns()
        await worker.call(function_id, PAYLOAD)
        spans.append(time.perf_counter_ns() - began)


def victim(url: str, name: str) -> None:
    """A process with one worker, whose only function does not return before it is killed."""
    called = threading.Event()

    def hang(_: object) -> None:
        called.set()
        time.sleep(VICTIM_S)

    worker = Worker(name, url, threads=1)
    worker.register(f"detect::{name}", hang)
    worker.start()
    ready()
    answer(is_called=lambda: called.wait(SEEN_S))


def waiting_caller(url: str) -> None:
    """An observer with one call open at a time, which fails."""
    failures: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def note(done: Future[Any]) -> None:
        at, error = time.monotonic_ns(), done.exception()
        fate = error.fate if isinstance(error, CallFailed) else repr(error)
        failures.put({"at": at, "fate": fate})

    with Worker("bench-waiting-caller", url, threads=0, observer=True) as worker:

        def call(function_id: str) -> None:
            worker.wait_for(function_id, timeout=SEEN_S)
            worker.submit(function_id, timeout=VICTIM_S).add_done_callback(note)

        ready()
        answer(call=call, failure=lambda: failures.get(timeout=SEEN_S))


class Traffic:
    """Calls in the background until told to stop: closed loop, or one every `interval_ms`."""

    def __init__(self, worker: Worker, function_id: str) -> None:
        self._worker, self._function_id = worker, function_id
        self._going = threading.Event()
        self._thread: threading.Thread | None = None
        self._spans: deque[tuple[int, int]] = deque(maxlen=SPANS_MAX)  # (began, ended), answered
        self._failures: Counter[str] = Counter()

    def begin(self, interval_ms: float = 0.0, timeout_s: float = 30.0) -> None:
        """Start calling; an interval of 0 means the next call when the last is answered."""
        self._spans.clear()
        self._failures.clear()
        self._going.set()
        loop = self._paced if interval_ms else self._closed
        self._thread = threading.Thread(target=loop, args=(interval_ms / 1e3, timeout_s))
        self._thread.start()

    def end(self, since_ns: int = 0, until_ns: int = 0) -> dict[str, Any]:
        """Stop; figures of the answered calls that overlap the given stretch (0: no limit)."""
        self._going.clear()
        assert self._thread is not None
        self._thread.join()
        spans = [
            (ended - began) / 1e6
            for began, ended in list(self._spans)
            if ended >= since_ns and (not until_ns or began <= until_ns)
        ]
        return {
            "count": len(spans),
            "p50_ms": percentile(spans, 50),
            "p99_ms": percentile(spans, 99),
            "max_ms": max(spans, default=float("nan")),
            "failures": dict(self._failures),
        }

    def first_answer(self, since_ns: int) -> int | None:
        """When the first call begun after `since_ns` was answered, in monotonic nanoseconds."""
        return min((ended for began, ended in list(self._spans) if began > since_ns), default=None)

    def _closed(self, _: float, timeout_s: float) -> None:
        clock = time.monotonic_ns
        while self._going.is_set():
            began = clock()
            try:
                self._worker.call(self._function_id, PAYLOAD, timeout=timeout_s)
            except Exception as error:
                self._failures[type(error).__name__] += 1
            else:
                self._spans.append((began, clock()))

    def _paced(self, interval_s: float, timeout_s: float) -> None:
        due = time.monotonic()
        while self._going.is_set():
            due += interval_s
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic_ns()
            try:
                future = self._worker.submit(self._function_id, PAYLOAD, timeout=timeout_s)
            except Exception as error:
                self._failures[type(error).__name__] += 1
            else:
                future.add_done_callback(partial(self._note, began))

    def _note(self, began: int, done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            self._spans.append((began, time.monotonic_ns()))
        else:
            self._failures[type(error).__name__] += 1


# Crews ---------------------------------------------------------------------------------------


class Member:
    """One worker, and what its `on_change` callback saw: what it was armed for; with `checks`, missing seqs.

    Two callbacks, because a crowd's are called 100,000 times at once on two cores: what they cost is in the figure.
    """

    def __init__(self, url: str, name: str, functions: int, checks: bool) -> None:
        self.worker = Worker(name, url, threads=0)
        self.records: deque[tuple[int, Any]] = deque(maxlen=RECORDS_MAX)
        self.armed_for = ""  # the kind of changes that are noted
        self.changes = 0
        self.resets = 0
        self.gaps = 0  # a seq that does not follow the one before it, without a reset
        self._seq: int | None = None
        self.worker.register_many((f"{name}::f{i}", echo) for i in range(functions))
        self.worker.on_change("*")(self._check if checks else self._note)

    def _note(self, change: Any) -> None:
        if change.kind == self.armed_for:
            self.records.append((time.monotonic_ns(), change))

    def _check(self, change: Any) -> None:
        self.changes += 1
        if change.kind == "reset":
            self.resets += 1
        elif self._seq is not None and change.seq - self._seq not in (0, 1):
            self.gaps += 1
        self._seq = change.seq

    def arm(self, kind: str) -> None:
        self.records.clear()
        self.armed_for = kind

    def seen(self, field: str, values: list[str]) -> list[int | None]:
        """When each value was first seen in the changes noted, in monotonic nanoseconds."""
        first: dict[str, int] = {}
        for at, change in list(self.records):
            first.setdefault(getattr(change, field), at)
        return [first.get(value) for value in values]


class Crew:
    """Several workers in one process, named PREFIX-0, PREFIX-1 ..., with functions of their own."""

    def __init__(self, url: str, prefix: str, count: int, functions: int, checks: bool) -> None:
        self.members = [Member(url, f"{prefix}-{i}", functions, checks) for i in range(count)]

    def join(self) -> float:
        """Start all at once; seconds until the last replica is complete."""
        began = time.monotonic()
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(lambda member: member.worker.start(), self.members))
        return time.monotonic() - began

    def digests(self) -> list[str]:
        return [member.worker.digest for member in self.members]

    def counts(self) -> dict[str, int]:
        """What the callbacks saw so far: changes, resets and gaps, summed over the crew."""
        return {
            "changes": sum(member.changes for member in self.members),
            "resets": sum(member.resets for member in self.members),
            "gaps": sum(member.gaps for member in self.members),
        }

    def arm(self, kind: str) -> None:
        """Forget what was seen, and note changes of this kind from now on."""
        for member in self.members:
            member.arm(kind)

    def seen(self, field: str, values: list[str], timeout_s: float) -> list[list[int | None]]:
        """Per member and value, the moment it was seen; waits until all are or time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [member.seen(field, values) for member in self.members]
            if time.monotonic() > deadline or not any(None in moments for moments in found):
                return found
            time.sleep(0.02)

    def register(self, function_id: str) -> dict[str, int]:
        """Let the first member register; the moments before the call and after its return."""
        began = time.monotonic_ns()
        self.members[0].worker.register(function_id, echo)
        return {"began": began, "returned": time.monotonic_ns()}


def crew(url: str, prefix: str, count: int, functions: int, checks: bool) -> None:
    """A process full of workers; see Crew for what can be asked."""
    group = Crew(url, prefix, count, functions, checks)
    ready()
    answer(
        join=group.join,
        digests=group.digests,
        counts=group.counts,
        arm=group.arm,
        seen=group.seen,
        register=group.register,
    )


def probe(url: str) -> None:
    """An observer that asks the broker about itself."""
    with Worker("bench-probe", url, threads=0) as worker:
        ready()
        answer(status=lambda: worker.call("engine::status", timeout=30.0))


def changers(url: str, prefix: str, count: int) -> None:
    """One worker with `count` tasks that register and unregister at a given pace."""
    asyncio.run(_changers(url, prefix, count))


async def _changers(url: str, prefix: str, count: int) -> None:
    async with AsyncWorker(prefix, url) as worker:

        async def churn(rate: float, seconds: float) -> int:
            """`rate` changes a second from all tasks together; the changes made."""
            each = rate / count
            return sum(
                await asyncio.gather(*(_churn(worker, f"churn::{prefix}-{i}", each, seconds) for i in range(count)))
            )

        ready()
        await answer_async(churn=churn)


async def _churn(worker: AsyncWorker, prefix: str, rate: float, seconds: float) -> int:
    """Register a function, unregister it, the next ...; late turns are caught up at once."""
    began, changes = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        await asyncio.sleep(max(0.0, began + changes / rate - time.monotonic()))
        function_id = f"{prefix}::{changes // 2}"
        if changes % 2 == 0:
            await worker.register(function_id, echo)
        else:
            await worker.unregister(function_id)
        changes += 1
    return changes


# Large registries ----------------------------------------------------------------------------


def loader(url: str, workers: int, batch: int) -> None:
    """Fills the registry: `workers` workers, `batch` functions a `register_many`."""
    crowd = [Worker(f"bench-loader-{i}", url, threads=0) for i in range(workers)]
    for worker in crowd:
        worker.start()
    made = 0
    ready()

    def load(total: int) -> int:
        """Register until `total` functions are there; how many that are."""
        nonlocal made
        while made < total:
            until = min(made + batch, total)
            pairs = [(f"bench::f{i:06d}", echo) for i in range(made, until)]
            crowd[made // batch % workers].register_many(pairs)
            made = until
        return made

    answer(load=load)


def joiner(url: str) -> None:
    """A process that joins once, with nothing but the interpreter warmed up."""
    worker = Worker("bench-joiner", url, threads=0)  # no I/O before start()
    ready()

    def join() -> dict[str, Any]:
        """Seconds until `start()` returned and until every entry was read; bytes received.

        The bytes are those of this process's TCP connections (see `tcp_bytes_received`), read
        after `start()` returned.
        """
        began = time.monotonic_ns()
        worker.start()
        complete = time.monotonic_ns()
        received = tcp_bytes_received()
        looking = time.monotonic_ns()
        functions = len([worker.functions[function_id] for function_id in worker.functions])
        read = time.monotonic_ns() - looking
        return {
            "began": began,
            "complete": complete,
            "join_s": (complete - began) / 1e9,
            "read_s": read / 1e9,
            "bytes": received,
            "functions": functions,
        }

    answer(join=join, digests=lambda: [worker.digest])
