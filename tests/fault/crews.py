"""Workers in processes of their own, many in one if need be, to be killed, stopped, cut off or kept busy; and what is
left of them at the broker.

    with crew(broker, {"name": "a", "functions": {"a::sleep": "sleep"}}, ...) as victims:      they have joined
        ask(victims)                for each worker: id, state, and whom and what its replica shows
        victims.kill(), victims.signal(SIGSTOP)

Kinds of handlers: `echo`; `name` tells its worker's; `sleep` takes as many seconds as its payload says; `hold` and
`wait` end when the pipe that the payload names is opened for writing, and `hold` keeps the GIL until then.
A member with `"calls": id` calls that function, one call after the other, until its process ends; one with
`"asks": [id, payload]` calls it once. One with `"stops"` stops its own process as soon as it has joined.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from iii_zmq import Worker
from tests.fault.programs import PATIENCE_S, Program, program, until

CREW = """
    import ctypes, json, os, signal, sys, threading, time
    from iii_zmq import IIIError, Worker

    libc = ctypes.PyDLL(None)  # unlike CDLL it calls with the GIL held, as a long step of a C extension would

    def echo(payload):
        return payload

    def sleep(payload):
        os.write(1, b"began\\n")
        time.sleep(payload)
        return payload

    def hold(payload):
        libc.close(libc.open(payload.encode(), os.O_RDONLY))
        return payload

    def wait(payload):
        os.close(os.open(payload, os.O_RDONLY))
        return payload

    def handlers(name):
        return {"echo": echo, "sleep": sleep, "hold": hold, "wait": wait, "name": lambda _: name}

    def call_on_and_on(worker, function_id):
        while True:
            try:
                worker.call(function_id, 1)
            except IIIError:
                time.sleep(0.01)

    def who(worker):
        return {"id": worker.id, "state": worker.state, "workers": sorted(worker.workers),
                "states": {one.id: one.state for one in worker.workers.values()},
                "functions": sorted(worker.functions), "position": list(worker.position), "digest": worker.digest}

    url, plans = sys.argv[1], json.loads(sys.argv[2])
    workers = []
    for plan in plans:
        worker = Worker(plan["name"], url, threads=plan.get("threads", 8), credit=plan.get("credit", 128))
        for function_id, kind in plan.get("functions", {}).items():
            worker.register(function_id, handlers(plan["name"])[kind])
        worker.start()
        workers.append(worker)
        if plan.get("stops"):
            os.kill(os.getpid(), signal.SIGSTOP)
    for worker, plan in zip(workers, plans):
        if "calls" in plan:
            threading.Thread(target=call_on_and_on, args=(worker, plan["calls"]), daemon=True).start()
        if "asks" in plan:
            worker.submit(*plan["asks"], timeout=600.0)
    print("joined", flush=True)
    for line in sys.stdin:
        print(json.dumps([who(worker) for worker in workers]), flush=True)
"""


def start(url: str, *members: dict[str, Any], command: tuple[str, ...] = ()) -> AbstractContextManager[Program]:
    """The same without waiting."""
    return program(CREW, url, json.dumps(members), command=command)


@contextmanager
def crew(url: str, *members: dict[str, Any], command: tuple[str, ...] = ()) -> Iterator[Program]:
    """A process with these workers, from the moment that all have joined."""
    with start(url, *members, command=command) as running:
        running.expect("joined")
        yield running


def ask(running: Program) -> list[dict[str, Any]]:
    """What each of its workers knows now."""
    running.say("who")
    while (line := running.line()) == "began":
        pass
    told: list[dict[str, Any]] = json.loads(line)
    return told


class Watcher:
    """A worker of the test's own that notes every change, and when it came; and what the broker says of itself."""

    def __init__(self, url: str) -> None:
        self.worker = Worker("watcher", url)
        self.seen: list[tuple[float, Any]] = []
        self.worker.on_change("*")(lambda change: self.seen.append((time.monotonic(), change)))
        self.worker.start()

    def id_of(self, name: str) -> str:
        """The only worker of that name."""
        (found,) = [one.id for one in self.worker.workers.values() if one.name == name]
        return found

    def state_of(self, name: str) -> str:
        return self.worker.workers[self.id_of(name)].state

    def left(self, worker_id: str) -> float | None:
        """When it was seen to leave."""
        return next((at for at, one in self.seen if one.kind == "worker_left" and one.worker_id == worker_id), None)

    def wait_until_left(self, worker_id: str) -> float:
        until(lambda: self.left(worker_id) is not None)
        at = self.left(worker_id)
        assert at is not None
        return at

    def wait_until_gone(self, *names: str) -> None:
        """Nobody of these names is here any more, as far as it sees."""
        until(lambda: not {one.name for one in self.worker.workers.values()} & set(names))

    def reasons(self) -> list[str | None]:
        """Why whoever left has left."""
        return [one.reason for _, one in self.seen if one.kind == "worker_left"]

    def status(self) -> Any:
        return self.worker.call("engine::status")

    def tables(self) -> tuple[int, int, int, int]:
        """What the broker holds: workers, functions, calls in flight, sessions."""
        status = self.status()
        return status["workers"], status["functions"], status["in_flight"], status["sessions"]

    def counters(self, *names: str) -> list[int]:
        counters = self.status()["counters"]
        return [counters[name] for name in names]

    def close(self) -> None:
        self.worker.close()


@contextmanager
def watching(url: str) -> Iterator[Watcher]:
    watcher = Watcher(url)
    try:
        yield watcher
    finally:
        watcher.close()


def eventually(look: Callable[[], Any], expected: Any) -> None:
    """That it comes to be this; the last value is in the text when it does not."""
    end = time.monotonic() + PATIENCE_S
    while (seen := look()) != expected:
        assert time.monotonic() < end, f"it is {seen}, not {expected}"
        time.sleep(0.005)
