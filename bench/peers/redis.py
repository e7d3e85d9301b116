"""Redis: `redis-server` with redis-py. Publish and subscribe: no registry, but how soon many hear of something."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.peers import install, watching
from bench.peers.peer import CHANGES, Peer
from bench.processes import free_port

CHANNEL = "registry"
DEBIAN = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
PYTHON = ("redis", "redis", "uvloop")


class Redis(Peer):
    key = "redis"
    name = "Redis publish"
    what = "redis-py's asyncio client on uvloop, publish to one channel; nothing is kept, so it is no registry"
    does = frozenset({CHANGES})

    @classmethod
    def install(cls) -> None:
        install.debian(DEBIAN[0], *DEBIAN)
        install.venv(*PYTHON)

    @classmethod
    def versions(cls) -> dict[str, str]:
        program, env = install.debian(DEBIAN[0], *DEBIAN)
        server = install.program_version([program, "--version"], env).partition("v=")[2].split()[0]
        found = install.python_versions(install.venv(*PYTHON), "redis")
        return {"redis-server": server, "redis-py": found["redis"]}

    @classmethod
    def python(cls) -> str:
        return str(install.venv(*PYTHON))

    def start(self) -> None:
        program, env = install.debian(DEBIAN[0], *DEBIAN)
        port = free_port()
        argv = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.children.directory())]
        self.servers = [self.children.serve("redis-server", argv, env)]
        self.servers[0].await_port(port)
        self.address = {"port": port}


def observers(port: int, number: int) -> None:
    _run(_observers(port))


async def _observers(port: int) -> None:
    async def join(member: watching.Member, _: int) -> Any:
        subscriber = _connected(port).pubsub()
        await subscriber.subscribe(CHANNEL)
        whole = asyncio.Event()
        task = asyncio.create_task(_listen(subscriber, member, whole))
        await whole.wait()
        return subscriber, task

    await watching.serve(join)


async def _listen(subscriber: Any, member: watching.Member, whole: asyncio.Event) -> None:
    async for message in subscriber.listen():
        if message["type"] == "subscribe":
            whole.set()
        else:
            member.note("+" + message["data"].decode())


def changer(port: int) -> None:
    _run(_changer(port))


async def _changer(port: int) -> None:
    connection = _connected(port)
    await connection.ping()
    await watching.change(lambda name: connection.publish(CHANNEL, name))


def _connected(port: int) -> Any:
    import redis.asyncio

    return redis.asyncio.Redis(host="127.0.0.1", port=port)


def _run(role: Any) -> None:
    import uvloop

    uvloop.run(role)
