"""A process whose workers are exposed to faults. It takes orders as lines on stdin, and answers each by a line.

    join KIND NAME URL OPTIONS      a worker that offers `victim::NAME` (echo); KIND is sync or async; OPTIONS as JSON.
                                    Answer: "joined", or the class and the text of the error
    errors OPTIONS URL...           what joining at each address ends in, all at once, as JSON
    tell NAME                       state, worker id and counters, as JSON
    leave NAME                      closes it

A process of its own, because libzmq may abort it. `MAXMSGSIZE=N` in the environment is what its sockets accept.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from iii_zmq import AsyncWorker, IIIError, Worker
from iii_zmq.io import sockets
from tests.net.brokers import END_S, environment


class Victim:
    """The process, for tests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def order(self, *words: str) -> str:
        """What it answered; "" when it has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def join(self, kind: str, name: str, url: str, **options: Any) -> str:
        return self.order("join", kind, name, url, json.dumps(options, separators=(",", ":")))

    def errors(self, urls: list[str], **options: Any) -> list[str]:
        answers = json.loads(self.order("errors", json.dumps(options, separators=(",", ":")), *urls))
        assert isinstance(answers, list)
        return answers

    def tell(self, name: str) -> dict[str, Any]:
        told = json.loads(self.order("tell", name))
        assert isinstance(told, dict)
        return told

    def leave(self, name: str) -> None:
        assert self.order("leave", name) == "left"


@contextmanager
def victim(*prefix: str, **variables: str) -> Iterator[Victim]:
    """Killed at the end, if it still lives. `prefix` is a command that executes the one behind it."""
    process = subprocess.Popen(
        [*prefix, sys.executable, str(Path(__file__))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment() | variables,
    )  # fmt: skip
    try:
        yield Victim(process)
    finally:
        process.kill()
        process.wait(END_S)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


# -- the process itself ------------------------------------------------------------------------------------------------


class Loop:
    """An event loop in a thread, for the async ones."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()


def echo(payload: Any) -> Any:
    return payload


def join(loop: Loop, kind: str, name: str, url: str, options: dict[str, Any]) -> Worker | AsyncWorker:
    if kind == "sync":
        worker = Worker(f"victim {name}", url, **options)
        worker.register(f"victim::{name}", echo)
        worker.start()
        return worker

    async def begin() -> AsyncWorker:
        worker = AsyncWorker(f"victim {name}", url, **options)
        await worker.register(f"victim::{name}", echo)
        await worker.start()
        return worker

    begun: AsyncWorker = loop.run(begin())
    return begun


def errors(urls: list[str], options: dict[str, Any]) -> list[str]:
    def error(url: str) -> str:
        try:
            Worker("curious", url, **options).start()
        except IIIError as error:
            return f"{type(error).__name__}: {error}"
        return "joined"

    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(error, urls))


def obey(loop: Loop, workers: dict[str, Worker | AsyncWorker], verb: str, *words: str) -> str:
    if verb == "errors":
        return json.dumps(errors(list(words[1:]), json.loads(words[0])))
    if verb == "join":
        kind, name, url, options = words
        try:
            workers[name] = join(loop, kind, name, url, json.loads(options))
        except IIIError as error:
            return f"{type(error).__name__}: {error}"
        return "joined"
    if verb == "tell":
        worker = workers[words[0]]
        return json.dumps({"state": worker.state, "id": worker.id, "counters": worker.counters})
    leaving = workers.pop(words[0])
    if isinstance(leaving, Worker):
        leaving.close()
    else:
        loop.run(leaving.close())
    return "left"


def limit_messages(bytes_max: int) -> None:
    """As a program does that sets ZMQ_MAXMSGSIZE on sockets of ours."""
    make = sockets.dealer

    def dealer(context: zmq.Context[zmq.Socket[bytes]], heartbeat_ms: int, ttl_ms: int) -> zmq.Socket[bytes]:
        socket = make(context, heartbeat_ms, ttl_ms)
        socket.setsockopt(zmq.MAXMSGSIZE, bytes_max)
        return socket

    sockets.dealer = dealer


def main() -> None:
    if "MAXMSGSIZE" in os.environ:
        limit_messages(int(os.environ["MAXMSGSIZE"]))
    loop, workers = Loop(), dict[str, Worker | AsyncWorker]()
    for line in sys.stdin:
        print(obey(loop, workers, *line.split()), flush=True)
    os._exit(0)  # the test is over: nobody waits for a polite end


if __name__ == "__main__":
    main()
