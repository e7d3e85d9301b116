"""`fanout` and `join`: how fast the registry reaches those who hold a copy of it.

Fan-out is timed from just before `register()` to the last replica's `on_change` callback; its
floor is one XPUB send of the very bytes that this change was on the product's stream (taken
there by a bare SUB), to as many SUBs in as many processes. Join is timed around `start()` in a
fresh process; its floor is a bare DEALER that connects and fetches as many bytes in 64 KiB
chunks from a bare ROUTER.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

from bench.crews import (
    SEEN_TIMEOUT_S,
    arm,
    await_agreement,
    crew_of,
    seen_by,
    shares,
    start_probe,
)
from bench.measure import alternate
from bench.processes import Broker, Children
from bench.report import Bound, Row, Section, row, verdict
from bench.settings import Settings

REPLICAS = (1, 10, 100)
CHANGES, QUICK_CHANGES = 30, 5
SETTLE_S = 0.05  # before asking who saw a change: asking costs the observers time
ASSUMED_CHANGE_BYTES = 250  # with --floors only

FUNCTIONS, QUICK_FUNCTIONS = (1_000, 10_000, 100_000), (1_000, 10_000)
JOINS, QUICK_JOINS = 5, 2
LOADERS, BATCH = 10, 1_000
LOAD_TIMEOUT_S = 120.0
ASSUMED_FUNCTION_BYTES = 100  # with --floors only
FORGET_S = 12.0  # until the broker's recent longest turn is none from before
QUIET_TURN_MS = 5.0
TRAFFIC_S = 0.3  # calls before and after a join

JOIN_LARGE = 100_000  # functions; the bounds were asked for this many
JOIN_TIME = Bound("at most", 2.0)  # seconds
JOIN_CALLS = Bound("at most", 50)  # milliseconds, p99 of others' calls meanwhile
JOIN_TURN = Bound("at most", 20)  # milliseconds, the broker's longest turn


def fanout(settings: Settings) -> Iterator[Section]:
    """One section a mode, one row a number of replicas."""
    for mode in settings.modes:
        section = Section("from registration to the last of N replicas", mode)
        for count in REPLICAS:
            with Children(pinned=mode == "pinned") as children:
                section.rows += _fanout(settings, children, count, section.notes)
        yield section


def _fanout(settings: Settings, children: Children, count: int, notes: list[str]) -> list[Row]:
    floor = Fanout(children, count)
    takes = {"floor": floor.take}
    if not settings.floors_only:
        product = Registrations(children, count)
        floor.data = product.tapped()
        notes.append(f"{count} replicas: one change is {len(base64.b64decode(floor.data))} bytes")
        takes = {"product": product.take, "floor": floor.take}
    found = alternate(QUICK_CHANGES if settings.quick else CHANGES, takes)
    figures = [each["last_ms"] for each in found.get("product", [])]
    returned = [each["returned_ms"] for each in found.get("product", [])]
    floors = [each["last_ms"] for each in found["floor"]]
    return [
        row(f"last of {count} replicas", "ms", figures, "XPUB", floors),
        *([row("  register() returned", "ms", returned)] if returned else []),
    ]


class Fanout:
    """The floor: an XPUB, and `count` SUBs, ten a process."""

    def __init__(self, children: Children, count: int) -> None:
        self.count = count
        self.data = base64.b64encode(b"x" * ASSUMED_CHANGE_BYTES).decode()
        self._publisher = children.start("floors.publisher")
        url = self._publisher.answer()["url"]
        self._subscribers = children.start_all(
            ("floors.subscribers", {"url": url, "count": share}) for share in shares(count)
        )
        self._publisher.ask("await_subscribers", count=count)

    def take(self) -> dict[str, float]:
        """Milliseconds from the send to the last arrival."""
        began = self._publisher.ask("publish", data=self.data)
        time.sleep(SETTLE_S)
        arrived = [at for child in self._subscribers for at in child.ask("take")]
        assert len(arrived) == self.count, f"{len(arrived)} of {self.count} had arrived"
        return {"last_ms": (max(arrived) - began) / 1e6}


class Registrations:
    """The product: one worker registers, `count` observers watch, ten a process."""

    def __init__(self, children: Children, count: int) -> None:
        self._children, self._made = children, 0
        self._broker = children.broker()
        self._registrar, *self._observers = children.start_all(
            crew_of(self._broker.url, f"fan-{i}", share) for i, share in enumerate([1, *shares(count)])
        )
        for child in (self._registrar, *self._observers):
            child.ask("join")

    def tapped(self) -> str:
        """The bytes of one registration on the stream, in base64."""
        tap = self._children.start("floors.tap", url=self._broker.stream_url)
        tap.answer()
        time.sleep(SETTLE_S)  # a bare SUB's subscription is not acknowledged
        function_id = self._next_id()
        self._registrar.ask("register", function_id=function_id)
        data: str | None = tap.ask("find", text=function_id, timeout_s=SEEN_TIMEOUT_S)
        tap.end()
        assert data is not None, f"{function_id} was not on the stream"
        return data

    def take(self) -> dict[str, float]:
        """Milliseconds from before `register()` to the last callback, and to its return."""
        arm(self._observers, "function_added")
        function_id = self._next_id()
        moments = self._registrar.ask("register", function_id=function_id)
        time.sleep(SETTLE_S)
        last = max(seen_by(self._observers, "function_id", [function_id]))
        return {
            "last_ms": (last - moments["began"]) / 1e6,
            "returned_ms": (moments["returned"] - moments["began"]) / 1e6,
        }

    def _next_id(self) -> str:
        self._made += 1
        return f"fan::f{self._made}"


def join(settings: Settings) -> Iterator[Section]:
    """One section a mode; the registry grows from size to size in one broker."""
    for mode in settings.modes:
        section = Section("joining a registry of F functions", mode)
        with Children(pinned=mode == "pinned") as children:
            rig = Rig(settings, children)
            for functions in QUICK_FUNCTIONS if settings.quick else FUNCTIONS:
                section.rows += rig.measure(functions, judged=functions == JOIN_LARGE)
        section.notes.append("received: TCP_INFO of the joining process's own connections")
        yield section


class Rig:
    """A broker that fills up, traffic through it, and those who join meanwhile."""

    def __init__(self, settings: Settings, children: Children) -> None:
        self._settings, self._children = settings, children
        self._sender_url: str = children.start("floors.sender").answer()["url"]
        self._bytes = 0
        if not settings.floors_only:
            self._product(children.broker())

    def _product(self, broker: Broker) -> None:
        function = {"url": broker.url, "function_id": "bench::echo"}
        self._broker = broker
        self._children.start("workers.provider", **function).answer()
        self._probe = start_probe(self._children, broker.url)
        self._caller, self._loader = self._children.start_all(
            [
                ("workers.caller", function),
                ("workers.loader", {"url": broker.url, "workers": LOADERS, "batch": BATCH}),
            ]
        )

    def measure(self, functions: int, judged: bool) -> list[Row]:
        self._bytes = functions * ASSUMED_FUNCTION_BYTES
        takes = {"floor": self._fetch}
        if not self._settings.floors_only:
            began = time.monotonic()
            self._loader.ask("load", total=functions, wait_s=LOAD_TIMEOUT_S)
            loaded = time.monotonic() - began
            turn_loading, quiet = self._turn("turn_max_ms"), self._quiet()
            self._forget_loading()
            takes = {"product": self._join, "floor": self._fetch}
        found = alternate(QUICK_JOINS if self._settings.quick else JOINS, takes)
        floors = [each["join_s"] for each in found["floor"]]
        if self._settings.floors_only:
            return [row(f"{functions:,} functions: join", "s", [], "DEALER fetch", floors)]
        turns = (turn_loading, max(each["turn_ms"] for each in found["product"]))
        rows = _join_rows(functions, found["product"], floors, quiet, turns, judged)
        return [row(f"{functions:,} functions: register the missing", "s", [loaded]), *rows]

    def _fetch(self) -> dict[str, Any]:
        child = self._children.start("floors.receiver", url=self._sender_url)
        child.answer()
        took = child.ask("fetch", wanted=self._bytes)
        child.end()
        return {"join_s": took}

    def _join(self) -> dict[str, Any]:
        """One join by a fresh process, with calls going on around it."""
        child = self._children.start("workers.joiner", url=self._broker.url)
        child.answer()
        self._caller.ask("begin")
        time.sleep(TRAFFIC_S)
        joined: dict[str, Any] = child.ask("join")
        time.sleep(TRAFFIC_S)
        stretch = {"since_ns": joined["began"], "until_ns": joined["complete"]}
        joined["calls"] = self._caller.ask("end", **stretch)
        joined["turn_ms"] = self._turn("turn_recent_max_ms")
        joined["same"] = await_agreement([child], self._probe) is not None
        child.end()
        self._bytes = joined["bytes"]
        return joined

    def _quiet(self) -> dict[str, float]:
        """The same calls while nobody joins."""
        self._caller.ask("begin")
        time.sleep(2 * TRAFFIC_S)
        found: dict[str, float] = self._caller.ask("end")
        return found

    def _turn(self, gauge: str) -> float:
        """The broker's longest turn, ever or of the last 5 to 10 s, in milliseconds."""
        return float(self._probe.ask("status")["counters"][gauge])

    def _forget_loading(self) -> None:
        """Waits until the recent longest turn is none of the registrations'."""
        until = time.monotonic() + FORGET_S
        while time.monotonic() < until and self._turn("turn_recent_max_ms") > QUIET_TURN_MS:
            time.sleep(0.5)


def _join_rows(
    functions: int,
    joins: list[dict[str, Any]],
    floors: list[float],
    quiet: dict[str, float],
    turns: tuple[float, float],
    judged: bool,
) -> Iterator[Row]:
    def bound(asked: Bound) -> Bound | None:
        return asked if judged else None

    def calls(field: str) -> list[float]:
        return [float(each["calls"][field]) for each in joins if each["calls"]["count"]]

    title = f"{functions:,} functions: "
    times = [each["join_s"] for each in joins]
    yield row(title + "join", "s", times, "DEALER fetch", floors, bound(JOIN_TIME))
    yield row(title + "received", "bytes", [each["bytes"] for each in joins])
    yield row(title + "then read every entry", "s", [each["read_s"] for each in joins])
    for field, asked in (("p50_ms", None), ("p99_ms", bound(JOIN_CALLS)), ("max_ms", None)):
        name = f"{title}calls meanwhile {field.removesuffix('_ms')}"
        quiets = [quiet[field]] * len(joins)
        yield row(name, "ms", calls(field), "calls while quiet", quiets, asked)
    yield row(
        title + "broker's longest turn while joining",
        "ms",
        [turns[1]],
        "while registering",
        [turns[0]],
        bound(JOIN_TURN),
    )
    yield verdict(title + "digests equal the broker's", all(each["same"] for each in joins))
