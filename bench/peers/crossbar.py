"""Crossbar with Autobahn on asyncio over WebSocket: WAMP's routed call, and its registration meta events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bench.peers import install, lanes, watching
from bench.peers.peer import CALLS, CHANGES, DEATHS, STORMS, Peer
from bench.processes import free_port
from bench.roles import ready

REALM = "realm1"
PYTHON = ("crossbar", "crossbar", "uvloop")
START_S = 60.0
ALL_ALLOWED = {"call": True, "register": True, "publish": True, "subscribe": True}


class Crossbar(Peer):
    key = "crossbar"
    name = "Crossbar"
    what = "Autobahn on asyncio with uvloop over WebSocket; registration meta events for the registry"
    does = frozenset({CALLS, CHANGES, DEATHS, STORMS})

    @classmethod
    def install(cls) -> None:
        install.venv(*PYTHON)

    @classmethod
    def versions(cls) -> dict[str, str]:
        return install.python_versions(install.venv(*PYTHON), "crossbar", "autobahn")

    @classmethod
    def python(cls) -> str:
        return str(install.venv(*PYTHON))

    def start(self) -> None:
        directory, port = self.children.directory(), free_port()
        (directory / "config.json").write_text(json.dumps(_config(port)))
        program = str(install.venv(*PYTHON).with_name("crossbar"))
        argv = [program, "start", "--cbdir", str(directory), "--loglevel", "error"]
        self.servers = [self.children.serve("crossbar", argv)]
        self.servers[0].await_port(port, START_S)
        self.address = {"url": f"ws://127.0.0.1:{port}/"}


def _config(port: int) -> dict[str, Any]:
    """One router that allows everything to everybody."""
    anyone = {"name": "anonymous", "permissions": [{"uri": "", "match": "prefix", "allow": ALL_ALLOWED}]}
    endpoint = {"type": "tcp", "port": port, "interface": "127.0.0.1", "backlog": 1024}
    router = {
        "type": "router",
        "realms": [{"name": REALM, "roles": [anyone]}],
        "transports": [{"type": "websocket", "endpoint": endpoint}],
    }
    return {"version": 2, "controller": {}, "workers": [router]}


def provider(url: str, number: int) -> None:
    _run(_provider(url))


async def _provider(url: str) -> None:
    from autobahn.wamp.types import RegisterOptions

    session = await _joined(url)
    await session.register(lambda payload: payload, lanes.FUNCTION, RegisterOptions(invoke="roundrobin"))
    ready()
    await asyncio.Event().wait()


def caller(url: str) -> None:
    _run(_caller(url))


async def _caller(url: str) -> None:
    session = await _joined(url)
    await lanes.serve_async(lambda payload: session.call(lanes.FUNCTION, payload))


def observers(url: str, number: int) -> None:
    _run(_observers(url))


async def _observers(url: str) -> None:
    async def join(member: watching.Member, _: int) -> Any:
        session = await _joined(url)
        there: set[Any] = set()
        names: dict[int, str] = {}

        def came(_: int, details: dict[str, Any]) -> None:
            there.add(details["id"])
            names[details["id"]] = details["uri"]
            member.note("+" + details["uri"])

        def went(_: int, registration: int) -> None:
            there.discard(registration)
            member.note("-" + names.pop(registration, ""))

        await session.subscribe(came, "wamp.registration.on_create")
        await session.subscribe(went, "wamp.registration.on_delete")
        found = await session.call("wamp.registration.list")
        there.update(found["exact"])
        return session, there

    async def enter(kept: Any, name: str) -> None:
        await kept[0].register(lambda payload: payload, name)

    await watching.serve(join, enter, lambda kept: len(kept[1]))


def changer(url: str) -> None:
    _run(_changer(url))


async def _changer(url: str) -> None:
    session = await _joined(url)
    await watching.change(lambda name: session.register(lambda payload: payload, name))


def victim(url: str, name: str) -> None:
    _run(_victim(url, name))


async def _victim(url: str, name: str) -> None:
    session = await _joined(url)
    await session.register(lambda payload: payload, name)
    ready(name)
    await asyncio.Event().wait()


async def _joined(url: str) -> Any:
    """A session, joined, over a connection of its own."""
    from autobahn.asyncio.component import Component

    loop = asyncio.get_running_loop()
    joined: asyncio.Future[Any] = loop.create_future()
    component = Component(transports=url, realm=REALM)

    async def join(session: Any, _: Any) -> None:
        if not joined.done():
            joined.set_result(session)

    component.on_join(join)
    component.start(loop=loop)
    return await joined


def _run(role: Any) -> None:
    import txaio
    import uvloop

    txaio.use_asyncio()

    async def main() -> None:
        txaio.config.loop = asyncio.get_running_loop()
        await role

    uvloop.run(main())
