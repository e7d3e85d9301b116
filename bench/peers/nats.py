"""NATS: `nats-server` with nats-py on uvloop. Request/reply, its micro services, and JetStream's KV watch."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, ClassVar

from bench.measure import memory_mib, tcp_bytes_received
from bench.peers import install, lanes, watching
from bench.peers.peer import CALLS, CHANGES, JOINS, STORMS, Peer
from bench.processes import free_port
from bench.roles import answer_async, ready

BUCKET = "registry"
LOADING = 500  # puts in flight
JOIN_TIMEOUT_S = 60.0  # of one request to JetStream, when hundreds come at once


class Nats(Peer):
    """Request and reply; providers share the subject as a queue group."""

    key = "nats"
    name = "NATS request/reply"
    what = "nats-py on uvloop; providers in one queue group"
    does: ClassVar[frozenset[str]] = frozenset({CALLS})
    payload_max = 1024 * 1024
    payload_why = "over its max_payload of 1 MiB"
    with_jetstream = False

    @classmethod
    def install(cls) -> None:
        install.debian("nats-server", "nats-server")
        install.venv("nats", "nats-py", "uvloop")

    @classmethod
    def versions(cls) -> dict[str, str]:
        program, env = install.debian("nats-server", "nats-server")
        server = install.program_version([program, "--version"], env).split()[-1].removeprefix("v")
        return {"nats-server": server, **install.python_versions(install.venv("nats", "nats-py", "uvloop"), "nats-py")}

    @classmethod
    def python(cls) -> str:
        return str(install.venv("nats", "nats-py", "uvloop"))

    def start(self) -> None:
        program, env = install.debian("nats-server", "nats-server")
        port = free_port()
        argv = [program, "--addr", "127.0.0.1", "--port", str(port)]
        if self.with_jetstream:
            argv += ["--jetstream", "--store_dir", str(self.children.directory())]
        self.servers = [self.children.serve("nats-server", argv, env)]
        self.servers[0].await_port(port)
        self.address = {"url": f"nats://127.0.0.1:{port}"}


class Micro(Nats):
    """The same by nats-py's service framework."""

    name = "NATS micro"
    what = "the same by nats-py's service framework"

    def role(self, role: str, **details: Any) -> Any:
        return super().role("micro_provider" if role == "provider" else role, **details)


class KeyValue(Nats):
    """A registry in a KV bucket, which every observer watches."""

    name = "NATS KV watch"
    what = "a JetStream bucket (kept in files, its default) that every observer watches whole, nats-py on uvloop"
    does = frozenset({CHANGES, STORMS, JOINS})
    entries_max = 100_000
    entries_why = "not measured, to bound the time of the run"
    with_jetstream = True

    def start(self) -> None:
        super().start()
        self.role("changer").answer()  # makes the bucket: a thousand at once would race for that


def provider(url: str, number: int) -> None:
    _run(_provider(url))


async def _provider(url: str) -> None:
    connection = await _connected(url)

    async def echo(message: Any) -> None:
        await message.respond(message.data)

    await connection.subscribe(lanes.FUNCTION, queue="bench", cb=echo)
    await connection.flush()
    ready()
    await asyncio.Event().wait()


def micro_provider(url: str, number: int) -> None:
    _run(_micro_provider(url))


async def _micro_provider(url: str) -> None:
    import nats.micro

    connection = await _connected(url)

    async def echo(request: Any) -> None:
        await request.respond(request.data)

    service = await nats.micro.add_service(connection, name="bench", version="1.0.0")
    await service.add_endpoint(name="echo", subject=lanes.FUNCTION, handler=echo)
    await connection.flush()
    ready()
    await asyncio.Event().wait()


def caller(url: str) -> None:
    _run(_caller(url))


async def _caller(url: str) -> None:
    connection = await _connected(url)

    async def call(payload: bytes) -> bytes:
        found: bytes = (await connection.request(lanes.FUNCTION, payload, timeout=60)).data
        return found

    await lanes.serve_async(call)


def observers(url: str, number: int) -> None:
    _run(_observers(url))


async def _observers(url: str) -> None:
    async def join(member: watching.Member, _: int) -> Any:
        bucket = await _bucket(url)
        watcher = await bucket.watchall()
        whole = asyncio.Event()
        there: set[str] = set()
        task = asyncio.create_task(_watch(watcher, member, whole, there))
        await whole.wait()
        return bucket, there, task

    async def enter(kept: Any, name: str) -> None:
        await kept[0].put(name, _entry(name))

    await watching.serve(join, enter, lambda kept: len(kept[1]))


async def _watch(watcher: Any, member: watching.Member, whole: asyncio.Event, there: set[str]) -> None:
    """Entries as they come; a None ends those that were there before."""
    async for entry in _updates(watcher):
        if entry is None:
            whole.set()
        else:
            there.add(entry.key)
            member.note("+" + entry.key)


async def _updates(watcher: Any) -> Any:
    while True:
        try:
            yield await watcher.updates(timeout=3600)
        except asyncio.TimeoutError:
            continue


def changer(url: str) -> None:
    _run(_changer(url))


async def _changer(url: str) -> None:
    bucket = await _bucket(url)
    await watching.change(lambda name: bucket.put(name, _entry(name)))


def loader(url: str) -> None:
    _run(_loader(url))


async def _loader(url: str) -> None:
    bucket, made = await _bucket(url), 0

    async def load(total: int) -> int:
        nonlocal made
        while made < total:
            names = [f"f{number:07d}" for number in range(made, min(made + LOADING, total))]
            await asyncio.gather(*(bucket.put(name, _entry(name)) for name in names))
            made += len(names)
        return made

    ready()
    await answer_async(load=load)


def joiner(url: str) -> None:
    _run(_joiner(url))


async def _joiner(url: str) -> None:
    async def join(total: int) -> dict[str, float]:
        before, began, replica = memory_mib(os.getpid()), time.monotonic_ns(), {}
        watcher = await (await _bucket(url)).watchall()
        async for entry in _updates(watcher):
            if entry is None:
                break
            replica[entry.key] = entry.value
        ended = time.monotonic_ns()
        assert len(replica) == total, f"{len(replica)} of {total}"
        return {"began": began, "ended": ended, "bytes": tcp_bytes_received(), "mib": memory_mib(os.getpid()) - before}

    ready()
    await answer_async(join=join)


def _entry(name: str) -> bytes:
    return b"x" * (100 - len(name))  # with its key about what a function's row is


async def _connected(url: str) -> Any:
    import nats

    return await nats.connect(url)


async def _bucket(url: str) -> Any:
    stream = (await _connected(url)).jetstream(timeout=JOIN_TIMEOUT_S)
    try:
        return await stream.key_value(BUCKET)
    except Exception:
        return await stream.create_key_value(bucket=BUCKET)


def _run(role: Any) -> None:
    import uvloop

    uvloop.run(role)
