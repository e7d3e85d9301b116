"""The interface of a peer: what the measures ask of it, and nothing about any one of them.

A `Peer` is one subject of one stage: it starts its server and then processes in roles, all of them owned by the
`Children` of the stage. A role is a function of the peer's own file, run in the peer's own environment.

    provider    answers every call with its payload         caller     lanes.serve or lanes.serve_async
    observers   watching.serve                              changer    watching.change
    victim      one entry; killed; its answer is the name that observers see going
    loader      `load(total)`: that many entries            joiner     `join()`: a complete copy of them
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from bench.processes import Child, Children

HERE = Path(__file__).resolve().parent
JOIN_TIMEOUT_S = 120.0  # until all observers of one subject watch
CALLS, CHANGES, DEATHS, STORMS, JOINS = "calls", "changes", "deaths", "storms", "joins"


class Missing(Exception):
    """A peer that can't be had here; the message is the word that stands in its place."""


class Peer(ABC):
    """One subject. The class says what it is; an instance is one that runs."""

    key: ClassVar[str]  # as --only names it; several subjects may share one
    name: ClassVar[str]  # as tables name it
    what: ClassVar[str]  # which client, over what, doing what: a sentence for the page
    kind: ClassVar[str] = "peer"  # or "product", or "floor"
    does: ClassVar[frozenset[str]]  # the jobs it can be asked to do: CALLS, ...
    payload_max: ClassVar[int | None] = None  # bytes, by its own defaults
    payload_why: ClassVar[str] = ""
    window_max: ClassVar[int | None] = None  # calls in flight that mean something
    window_why: ClassVar[str] = ""
    observers_max: ClassVar[int | None] = None  # beyond it, it is left out, for this reason:
    observers_why: ClassVar[str] = ""
    seen_s: ClassVar[float] = 5.0  # what is not known to all by then is not measured
    entries_max: ClassVar[int | None] = None  # of a registry to join, likewise
    entries_why: ClassVar[str] = ""
    entries_beside: ClassVar[int] = 0  # of its own, which are there before any are loaded

    def __init__(self, children: Children) -> None:
        self.children = children
        self.address: dict[str, Any] = {}  # what every role is told
        self.servers: list[Child] = []

    @classmethod
    def install(cls) -> None:
        """Make the environment, if it is not there. Raises: Missing."""
        return

    @classmethod
    def versions(cls) -> dict[str, str]:
        """What was installed; asked after `install`."""
        return {}

    @classmethod
    def python(cls) -> str:
        """The interpreter that the roles run in."""
        return sys.executable

    @abstractmethod
    def start(self) -> None:
        """Start the server, if there is one, and wait until it listens."""

    def role(self, role: str, **details: Any) -> Child:
        """Start a role without waiting for it."""
        module = type(self).__module__.removeprefix("bench.")
        argv = [self.python(), "-m", "bench.roles", f"{module}.{role}", json.dumps({**self.address, **details})]
        return self.children.run(f"{self.name} {role}", argv)

    def pairs(self, count: int) -> tuple[list[Child], list[Child]]:
        """So many providers, and as many callers that call them.

        Where there is no broker, each caller is told the address of a provider of its own.
        """
        providers = [self.role("provider", number=number) for number in range(count)]
        told = [provider.answer() or {} for provider in providers]
        callers = [self.role("caller", **each) for each in told]
        for caller in callers:
            caller.answer()
        return providers, callers

    def watch(self, shares: list[int]) -> tuple[Child, list[Child]]:
        """One who changes the registry, and a process of so many observers for each share."""
        crews = self.observe(shares)
        changer = self.role("changer")
        changer.answer(JOIN_TIMEOUT_S)
        return changer, crews

    def observe(self, shares: list[int]) -> list[Child]:
        crews = [self.role("observers", number=number) for number in range(len(shares))]
        for crew in crews:
            crew.answer()
        for crew, share in zip(crews, shares, strict=True):
            crew.tell("observe", count=share)
        for crew in crews:
            crew.answer(JOIN_TIMEOUT_S)
        return crews

    def victim(self, name: str) -> Child:
        return self.role("victim", name=name)


def node_role(peer: Peer, modules: Path, script: str, **details: Any) -> Child:
    """Start one of node/*.js; `modules` is the directory that holds node_modules."""
    told = json.dumps({**peer.address, **details, "modules": str(modules)})
    return peer.children.run(f"{peer.name} {script}", ["node", str(HERE / "node" / f"{script}.js"), told])
