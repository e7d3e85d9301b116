"""Twenty workers in a process, which call each other and others and keep records: `crew.py URL NAME CREWS`.

Worker i of crew c offers `crew::c::i::f0` ... (echo) and `crew::c::i::slow` (never ends by itself). Each keeps one call
of somebody's `slow` open, and calls somebody's `f0` again and again. A line on stdout says that all have joined; a line
on stdin ends the process, which then prints its Records as JSON. Times are of CLOCK_MONOTONIC: one for all processes.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iii_zmq import AsyncWorker, CallFailed
from tests.net.brokers import END_S, environment

WORKERS = 20  # in a crew
FUNCTIONS = 5  # of a worker, beside `slow`
CALL_EVERY_S = 0.2
CALL_S = 20.0  # a quick call's timeout: far above what it takes
SLOW_S = 120.0  # longer than any test
PATIENCE_S = 60.0  # for a crew to join, or to hand in its records


@dataclass(slots=True)
class Records:
    """What a crew did and saw."""

    calls: list[tuple[str, str, float, float, str]] = field(default_factory=list)  # id, function, from, to, outcome
    executed: list[tuple[str, float]] = field(default_factory=list)  # id, when its handler began

    def add(self, other: Records) -> None:
        self.calls += other.calls
        self.executed += other.executed


class Crews:
    """The processes, for tests."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def joined(self) -> None:
        """Returns when all have."""
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "joined\n"

    def records(self) -> Records:
        """Ends them, and gives what all of them have recorded."""
        together = Records()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None  # so that `communicate` leaves it alone
        for process in self._processes:
            out, _ = process.communicate(timeout=PATIENCE_S)
            together.add(Records(**json.loads(out)))
        return together


@contextmanager
def crews(url: str, count: int) -> Iterator[Crews]:
    """So many processes; killed at the end, if they still live."""
    with ExitStack() as stack:
        yield Crews([stack.enter_context(_process(url, name, count)) for name in range(count)])


def functions(count: int) -> list[str]:
    """All that so many crews offer."""
    names = [f"f{one}" for one in range(FUNCTIONS)] + ["slow"]
    return [f"crew::{crew}::{worker}::{name}" for crew in range(count) for worker in range(WORKERS) for name in names]


@contextmanager
def _process(url: str, name: int, count: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), url, str(name), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait(END_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# -- the process itself ------------------------------------------------------------------------------------------------


class Crew:
    """The workers and what they record."""

    def __init__(self, url: str, name: int, count: int) -> None:
        self.url, self.name, self.count = url, name, count
        self.records = Records()
        self.numbers = 0
        self.ended = asyncio.Event()

    async def run(self) -> None:
        workers = await asyncio.gather(*[self.join(number) for number in range(WORKERS)])
        calling = [asyncio.create_task(self.call_slow(one)) for one in workers]
        calling += [asyncio.create_task(self.call_on(one)) for one in workers]
        print("joined", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        self.ended.set()
        for worker in workers:  # what is still open fails now, and is recorded
            await worker.close()
        await asyncio.gather(*calling)
        print(json.dumps(asdict(self.records)), flush=True)

    async def join(self, number: int) -> AsyncWorker:
        worker = AsyncWorker(f"crew{self.name}.{number}", self.url, connect_timeout=PATIENCE_S)
        mine = f"crew::{self.name}::{number}"
        await worker.register_many({f"{mine}::f{one}": self.echo for one in range(FUNCTIONS)})
        await worker.register(f"{mine}::slow", self.slow)
        await worker.start()
        return worker

    async def echo(self, call_id: str) -> str:
        self.records.executed.append((call_id, time.monotonic()))
        return call_id

    async def slow(self, call_id: str) -> str:
        self.records.executed.append((call_id, time.monotonic()))
        await asyncio.sleep(SLOW_S)
        return call_id

    async def call_slow(self, worker: AsyncWorker) -> None:
        while not self.ended.is_set():
            await self.call(worker, "slow", SLOW_S)
            await asyncio.sleep(CALL_EVERY_S)

    async def call_on(self, worker: AsyncWorker) -> None:
        while not self.ended.is_set():
            await self.call(worker, "f0", CALL_S)
            await asyncio.sleep(random.uniform(0, 2 * CALL_EVERY_S))

    async def call(self, worker: AsyncWorker, name: str, timeout: float) -> None:
        self.numbers += 1
        call_id = f"{self.name}:{self.numbers}"
        function_id = f"crew::{random.randrange(self.count)}::{random.randrange(WORKERS)}::{name}"
        began = time.monotonic()
        try:
            answer: Any = await worker.call(function_id, call_id, timeout=timeout)
            outcome = "answered" if answer == call_id else f"answered with {answer!r}"
        except CallFailed as error:
            outcome = f"{error.code}, {error.fate}"
        except Exception as error:
            outcome = repr(error)
        self.records.calls.append((call_id, function_id, began, time.monotonic(), outcome))


if __name__ == "__main__":
    asyncio.run(Crew(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run())
