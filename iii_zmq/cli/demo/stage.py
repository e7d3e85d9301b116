"""Inside a child of the demo: runs one example unchanged, reports what its workers hear, and obeys orders.

    python -m iii_zmq.cli.demo.stage EXAMPLE [NAME=OTHER...]    an example, some of its workers under other names
    python -m iii_zmq.cli.demo.stage serve ...                  `iii-broker serve ...`

Reports go to stdout and orders come from stdin, one JSON object a line. All times are `time.monotonic_ns`, which is one
clock for all processes of a machine. The example gets the usual classes, with an extra listener (`Ears`).
"""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterable
from itertools import groupby
from typing import Any, TextIO

import iii_zmq
from iii_zmq import AsyncWorker, Change, Worker
from iii_zmq.cli.payloads import to_json
from iii_zmq.core.worker.replica import Replica
from iii_zmq.io.worker.listeners import Buffer

GO_WAIT_S = 30.0  # for the order to join; only a stuck demo takes that long
END_S = 3.0  # time for a child to end by itself once the demo is gone

AnyWorker = Worker | AsyncWorker


class Stage:
    """The workers of one child, and the orders for them."""

    def __init__(self, out: TextIO, names: dict[str, str]) -> None:
        self._out = out
        self._names = names
        self._lock = threading.Lock()
        self._go: dict[str, threading.Event] = {}
        self._workers: dict[str, AnyWorker] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def name(self, given: str) -> str:
        return self._names.get(given, given)

    def attend(self, worker: AnyWorker) -> Ears:
        """Reports everything that this worker hears from now on."""
        self._workers[worker.name] = worker
        self._go[worker.name] = threading.Event()
        worker.on_state(lambda state: self._tell_joined(worker) if state == "connected" else None)
        return Ears(self, worker.name)

    def tell(self, event: str, worker: str | None, **details: Any) -> None:
        """Sends one report; from any thread."""
        line = json.dumps({"event": event, "worker": worker, **details})
        with self._lock:
            self._out.write(line + "\n")
            self._out.flush()

    def wait_for_go(self, worker: str) -> None:
        """Holds up the join until its turn, so that each join is timed by itself."""
        self.tell("ready", worker)
        self._go[worker].wait(GO_WAIT_S)
        self.tell("caused", worker, at=time.monotonic_ns())

    def obey(self, orders: Iterable[str]) -> None:
        """Obeys orders until stdin closes, which means that the demo is over or gone."""
        for line in orders:
            self._do(**json.loads(line))
        _end()

    def _tell_joined(self, worker: AnyWorker) -> None:
        self.tell("joined", worker.name, at=time.monotonic_ns(), **_view(worker.replica))

    def _do(self, do: str, worker: str, **details: Any) -> None:
        if do == "go":
            self._go[worker].set()
        elif do == "view":
            self.tell("view", worker, **_view(self._workers[worker].replica))
        elif do == "call":
            self._call(worker, **details)
        else:  # register, unregister
            self.tell("caused", worker, at=time.monotonic_ns())
            self._ask(worker, do, **details)

    def _call(self, worker: str, id: str, payload: Any) -> None:
        began = time.monotonic_ns()
        try:
            outcome = {"result": to_json(self._ask(worker, "call", id=id, payload=payload))}
        except iii_zmq.IIIError as error:
            outcome = {"error": str(error)}
        self.tell("called", worker, id=id, payload=payload, ns=time.monotonic_ns() - began, **outcome)

    def _ask(self, name: str, do: str, id: str, payload: Any = None, description: str | None = None) -> Any:
        worker = self._workers[name]
        if do == "call":
            value = worker.call(id, payload, timeout=5.0)
        elif do == "unregister":
            value = worker.unregister(id)
        else:
            value = worker.register(id, lambda payload: payload, description=description, replace=True)
        if inspect.isawaitable(value):
            assert self.loop is not None
            return asyncio.run_coroutine_threadsafe(_awaited(value), self.loop).result()
        return value


class Ears(Buffer):
    """Hears whole batches of changes at the moment when the replica has applied them."""

    def __init__(self, stage: Stage, worker: str) -> None:
        super().__init__("*")
        self._stage = stage
        self._worker = worker

    def put(self, changes: Iterable[Change]) -> bool:
        at = time.monotonic_ns()
        for seq, batch in groupby(changes, lambda change: change.seq):
            self._stage.tell("changes", self._worker, at=at, seq=seq, changes=[change.to_json() for change in batch])
        return False


class Said(io.TextIOBase):
    """The example's stdout: each line it prints becomes a report."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._unfinished = ""

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            self._stage.tell("said", None, text=line)
        return len(text)


def _view(replica: Replica) -> dict[str, Any]:
    epoch, seq = replica.position
    size = {"workers": len(replica.workers), "functions": len(replica.functions)}
    return {"epoch": epoch, "seq": seq, "digest": replica.digest.hex(), **size}


async def _awaited(value: Any) -> Any:
    return await value


def _give_ears(stage: Stage) -> None:
    """From now on `from iii_zmq import Worker` gives a Worker that reports, and that joins when ordered to."""

    class StagedWorker(Worker):
        def __init__(self, name: str, *args: Any, **options: Any) -> None:
            super().__init__(stage.name(name), *args, **options)
            self._ears = stage.attend(self)
            self._listeners.add_buffer(self._ears)

        def run(self) -> None:
            stage.wait_for_go(self.name)
            super().run()

    class StagedAsyncWorker(AsyncWorker):
        def __init__(self, name: str, *args: Any, **options: Any) -> None:
            super().__init__(stage.name(name), *args, **options)
            self._ears = stage.attend(self)
            self._listeners.add_buffer(self._ears)
            self._is_staged = False

        async def start(self) -> None:
            if not self._is_staged:
                self._is_staged = True
                stage.loop = asyncio.get_running_loop()
                await stage.loop.run_in_executor(None, stage.wait_for_go, self.name)
            await super().start()

    vars(iii_zmq).update(Worker=StagedWorker, AsyncWorker=StagedAsyncWorker)


def _end_with_stdin() -> None:
    sys.stdin.read()
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S)
    os._exit(1)


def main(words: list[str]) -> int:
    if words[0] == "serve":
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        from iii_zmq.cli import main as iii_broker

        sys.argv = ["iii-broker", *words]
        return iii_broker()
    example, *names = words
    stage = Stage(os.fdopen(os.dup(1), "w"), dict(name.split("=") for name in names))
    _give_ears(stage)
    threading.Thread(target=stage.obey, args=[sys.stdin], daemon=True).start()
    sys.stdout = Said(stage)
    sys.argv = [example]
    runpy.run_path(example, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
