"""Moleculer: remote calls and service discovery between Node processes, by its TCP mesh, and over NATS."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.peers import install
from bench.peers.nats import Nats
from bench.peers.peer import CALLS, CHANGES, DEATHS, Peer, node_role
from bench.processes import Child, free_port

NODE = ("moleculer", "moleculer@0.14", "nats@2")  # 0.15 asks for a newer Node than Debian has
SETTLE_S = 60.0


class Mesh(Peer):
    """Every node connects to every other, and gossips; the first node is where the others begin."""

    key = "moleculer"
    name = "Moleculer TCP (no broker)"
    what = "Node on both sides, a mesh that gossips every 2 s; nodes begin with one known node, UDP discovery is off"
    does = frozenset({CALLS, CHANGES, DEATHS})
    seen_s = 30.0  # gossip goes round every 2 s, from one node to some others
    payload_max = 1024 * 1024 - 1024  # the packet with its envelope
    payload_why = "over the transporter's maxPacketSize of 1 MiB"
    observers_max = 100
    observers_why = "not measured: among 100 nodes gossip already takes many seconds"

    @classmethod
    def install(cls) -> None:
        install.node_modules(*NODE)

    @classmethod
    def versions(cls) -> dict[str, str]:
        return install.node_versions(install.node_modules(*NODE), "moleculer")

    def start(self) -> None:
        self.address = {"transporter": "tcp", "port": free_port()}
        seed = self.role("seed")
        seed.answer()

    def role(self, role: str, **details: Any) -> Child:
        return node_role(self, install.node_modules(*NODE), role, **details)

    def pairs(self, count: int) -> tuple[list[Child], list[Child]]:
        providers, callers = super().pairs(count)
        for caller in callers:
            caller.ask("settle", count=count, timeout_s=SETTLE_S, wait_s=SETTLE_S + 5)
        return providers, callers


class OverNats(Mesh):
    name = "Moleculer over NATS"
    what = "Node on both sides, through nats-server; changes are told after Moleculer's own second of waiting"
    payload_why = "over NATS's max_payload of 1 MiB"
    does: ClassVar[frozenset[str]] = frozenset({CALLS, CHANGES, DEATHS})
    observers_why = "1,000 nodes had not come up after 120 s"

    @classmethod
    def install(cls) -> None:
        install.node_modules(*NODE)
        install.debian("nats-server", "nats-server")

    def start(self) -> None:
        server = Nats(self.children)
        server.start()
        self.servers, self.address = server.servers, {"transporter": server.address["url"], "port": 0}
