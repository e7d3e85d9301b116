"""zerorpc: calls straight from process to process, over gevent; no broker and no registry."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from bench.peers import install, lanes
from bench.peers.peer import CALLS, Peer
from bench.processes import free_port
from bench.roles import ready

PYTHON = ("zerorpc", "zerorpc")
TIMEOUT_S = 60
ASYNC = {"async": True}  # a keyword by now


class Zerorpc(Peer):
    """Each caller has a provider of its own: a client with several would send heartbeats to the wrong one."""

    key = "zerorpc"
    name = "zerorpc (no broker)"
    what = "gevent client and server, connected straight to each other"
    does = frozenset({CALLS})

    @classmethod
    def install(cls) -> None:
        install.venv(*PYTHON)

    @classmethod
    def versions(cls) -> dict[str, str]:
        return install.python_versions(install.venv(*PYTHON), "zerorpc")

    @classmethod
    def python(cls) -> str:
        return str(install.venv(*PYTHON))

    def start(self) -> None:
        pass  # there is no server


class Echo:
    def echo(self, payload: Any) -> Any:
        return payload


def provider(number: int) -> None:
    import zerorpc

    url = f"tcp://127.0.0.1:{free_port()}"
    server = zerorpc.Server(Echo())
    server.bind(url)
    ready({"url": url})
    server.run()


def caller(url: str) -> None:
    import zerorpc

    client = zerorpc.Client(url, timeout=TIMEOUT_S)
    clock = time.monotonic_ns

    def many(payload: bytes, window: int, until_ns: int) -> int:
        """Answers in order, as with the product."""
        open_calls = deque(client.echo(payload, **ASYNC) for _ in range(window))
        count = 0
        while clock() < until_ns:
            open_calls.popleft().get()
            open_calls.append(client.echo(payload, **ASYNC))
            count += 1
        for answer in open_calls:
            assert len(answer.get()) == len(payload)
        return count + window

    client.echo(b"")
    lanes.serve(client.echo, many)
