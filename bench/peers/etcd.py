"""etcd: a registry as keys below a prefix, by aetcd (asyncio over gRPC): python-etcd3 needs a protobuf of the past."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from bench.measure import memory_mib, tcp_bytes_received
from bench.peers import install, watching
from bench.peers.peer import CHANGES, DEATHS, JOINS, STORMS, Peer
from bench.processes import free_port
from bench.roles import answer_async, ready

PREFIX = b"registry/"
TTL_S = 2  # of a lease, as long as the product's; etcd makes it no shorter
PUTS = 128  # in one transaction: etcd's own limit
# One connection an observer, as with every other peer, and answers of any size.
OPTIONS = {"grpc.use_local_subchannel_pool": 1, "grpc.max_receive_message_length": -1}
PYTHON = ("etcd", "aetcd")


class Etcd(Peer):
    key = "etcd"
    name = "etcd watch"
    what = "keys below a prefix that every observer watches; aetcd on asyncio over gRPC; each put is synced to disk"
    does = frozenset({CHANGES, DEATHS, STORMS, JOINS})
    entries_max = 100_000
    entries_why = "not measured, to bound the time of the run"

    @classmethod
    def install(cls) -> None:
        install.debian("etcd", "etcd-server")
        install.venv(*PYTHON)

    @classmethod
    def versions(cls) -> dict[str, str]:
        program, env = install.debian("etcd", "etcd-server")
        server = install.program_version([program, "--version"], env).split()[-1]
        return {"etcd": server, **install.python_versions(install.venv(*PYTHON), "aetcd", "grpcio")}

    @classmethod
    def python(cls) -> str:
        return str(install.venv(*PYTHON))

    def start(self) -> None:
        program, env = install.debian("etcd", "etcd-server")
        port, other = free_port(), free_port()
        mine, among = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{other}"
        argv = [program, "--data-dir", str(self.children.directory() / "data"), "--initial-cluster", f"default={among}"]
        argv += ["--listen-client-urls", mine, "--advertise-client-urls", mine]
        argv += ["--listen-peer-urls", among, "--initial-advertise-peer-urls", among]
        self.servers = [self.children.serve("etcd", argv, env)]
        self.servers[0].await_port(port)
        self.address = {"port": port}


def observers(port: int, number: int) -> None:
    asyncio.run(_observers(port))


async def _observers(port: int) -> None:
    async def join(member: watching.Member, _: int) -> Any:
        client = await _connected(port)
        found = await client.get_prefix(PREFIX)
        there = {each.key for each in found}
        watch = await client.watch_prefix(PREFIX, start_revision=found.header.revision + 1)
        return client, there, asyncio.create_task(_watch(watch, member, there))

    async def enter(kept: Any, name: str) -> None:
        await kept[0].put(PREFIX + name.encode(), _entry(name))

    await watching.serve(join, enter, lambda kept: len(kept[1]))


async def _watch(watch: Any, member: watching.Member, there: set[bytes]) -> None:
    async for event in watch:
        key = event.kv.key
        came = event.kind == "PUT"
        if came:
            there.add(key)
        member.note(("+" if came else "-") + key.removeprefix(PREFIX).decode())


def changer(port: int) -> None:
    asyncio.run(_changer(port))


async def _changer(port: int) -> None:
    client = await _connected(port)
    await watching.change(lambda name: client.put(PREFIX + name.encode(), _entry(name)))


def victim(port: int, name: str) -> None:
    asyncio.run(_victim(port, name))


async def _victim(port: int, name: str) -> None:
    """A key with a lease, kept alive three times in its time to live."""
    client = await _connected(port)
    lease = await client.lease(TTL_S)
    await client.put(PREFIX + name.encode(), _entry(name), lease=lease)
    ready(name)
    while True:
        await asyncio.sleep(TTL_S / 3)
        await lease.refresh()


def loader(port: int) -> None:
    asyncio.run(_loader(port))


async def _loader(port: int) -> None:
    client, made = await _connected(port), 0

    async def load(total: int) -> int:
        nonlocal made
        from aetcd.transactions import Put

        while made < total:
            names = [f"f{number:07d}" for number in range(made, min(made + PUTS, total))]
            puts = [Put(PREFIX + name.encode(), _entry(name)) for name in names]
            await client.transaction(compare=[], success=puts, failure=[])
            made += len(names)
        return made

    ready()
    await answer_async(load=load)


def joiner(port: int) -> None:
    asyncio.run(_joiner(port))


async def _joiner(port: int) -> None:
    async def join(total: int) -> dict[str, float]:
        """Everything below the prefix, then a watch on it."""
        before, began = memory_mib(os.getpid()), time.monotonic_ns()
        client = await _connected(port)
        found = await client.get_prefix(PREFIX)
        replica = {each.key: each.value for each in found}
        watch = await client.watch_prefix(PREFIX, start_revision=found.header.revision + 1)
        ended = time.monotonic_ns()
        assert len(replica) == total, f"{len(replica)} of {total}"
        mib = memory_mib(os.getpid()) - before
        await watch.cancel()
        return {"began": began, "ended": ended, "bytes": tcp_bytes_received(), "mib": mib}

    ready()
    await answer_async(join=join)


def _entry(name: str) -> bytes:
    return b"x" * (100 - len(name))


async def _connected(port: int) -> Any:
    import aetcd

    client = aetcd.Client("127.0.0.1", port, timeout=60, options=OPTIONS)
    await client.connect()
    return client
