"""`changes`, `deaths`, `storm` and `joins`: how the registry, or what stands for one, reaches those who hold a copy.

Observers idle with heartbeats, and a thousand of one subject would disturb those of another. So here the subjects come
one after the other, each in rounds that alternate with its own floor, whose sockets are silent in between. Every
subject's observers are spread over as many processes.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from bench.peers.floors import Fanout
from bench.peers.iii import Product
from bench.peers.peer import CHANGES, DEATHS, JOINS, STORMS, Peer
from bench.peers.results import LOWER
from bench.peers.runner import Run, memory_of, say
from bench.processes import Child, ChildFailed, Children

MEASURES = (CHANGES, DEATHS, STORMS, JOINS)
PROCESSES = 10
OBSERVERS, QUICK_OBSERVERS = (1, 100, 1000), (1, 20)
DEATH_OBSERVERS, QUICK_DEATH_OBSERVERS = 100, 20
SETTLE_S = {1: 0.02, 100: 0.1, 1000: 0.3}  # before asking who saw it: asking costs the observers time
SLOW_S = 60.0  # of one subject: beyond it, two rounds have to do
ANSWER_S = 30.0  # beyond the time that observers were told to wait
DEATH_S = 12.0  # what is not known by then is left out, with that word

STORM, QUICK_STORM = 1000, 40
STORM_S = 60.0
STORMS_SLOW_S = 120.0  # of all subjects together: beyond it, two rounds have to do

ENTRIES, QUICK_ENTRIES = (1_000, 10_000, 100_000, 1_000_000), (1_000, 5_000)
LOAD_S, JOIN_S = 300.0, 120.0
INTERVAL_MS = 5.0  # of others' calls while one joins
QUIET_S = 1.0  # of the same calls while nobody does
MIB = 2**20


def registry(run: Run, measures: set[str]) -> None:
    for mode in run.modes:
        if CHANGES in measures:
            for count in QUICK_OBSERVERS if run.quick else OBSERVERS:
                _changes(run, mode, count)
        for measure, job in ((DEATHS, _deaths), (STORMS, _storm), (JOINS, _joins)):
            if measure in measures:
                job(run, mode)


def _shares(count: int) -> list[int]:
    """So many observers in at most ten processes."""
    processes = min(PROCESSES, count)
    return [count // processes + (number < count % processes) for number in range(processes)]


# Changes -------------------------------------------------------------------------------------


class Watched:
    """A subject's observers, and one who changes what they watch."""

    def __init__(self, peer: Peer, count: int) -> None:
        before = memory_of(peer.servers)
        self._made, self._count, self._seen_s = 0, count, peer.seen_s
        self._changer, self._crews = peer.watch(_shares(count))
        self.mib = memory_of(peer.servers) - before if peer.servers else None

    def take(self) -> float:
        """Milliseconds from before the change to the last observer."""
        self._made += 1
        name = f"change-{self._made}"
        began = self._changer.ask("change", name=name)
        time.sleep(SETTLE_S.get(self._count, 0.1))
        return float(_last(self._crews, "+" + name, self._seen_s) - began) / 1e6


def _changes(run: Run, mode: str, count: int) -> None:
    case = f"{count:,} observers" if count > 1 else "1 observer"
    where = f"change to the last of {case} ({mode})"
    for subject in run.able(CHANGES):
        if subject is Fanout:
            continue
        if subject.observers_max is not None and count > subject.observers_max:
            run.leave_out(subject, case, subject.observers_why)
            continue
        say(f"{where}: {subject.name}")
        with Children(pinned=mode == "pinned") as children:
            # The floor first: while ten interpreters start, a subject of a thousand misses heartbeats.
            floor = run.open(Fanout, children, where, lambda peer: Watched(peer, count))
            found = run.open(subject, children, where, lambda peer: Watched(peer, count))
            if found is None or floor is None:
                continue
            samples = run.alternate(where, {subject: found.take, Fanout: floor.take}, SLOW_S)
            if subject in samples:
                run.add(subject, CHANGES, case, mode, "to the last", "ms", LOWER, samples[subject])
                ratios = [mine / floors for mine, floors in zip(samples[subject], samples[Fanout], strict=True)]
                run.add(subject, CHANGES, case, mode, "times the floor", "x", LOWER, ratios)
                if count >= DEATH_OBSERVERS and found.mib is not None:
                    kib = [found.mib * 1024 / count]
                    run.add(subject, CHANGES, case, mode, "server memory per observer", "KiB", LOWER, kib)
            if not run.results.find(measure=CHANGES, case=case, mode=mode, subject=Fanout.name):
                run.add(Fanout, CHANGES, case, mode, "to the last", "ms", LOWER, samples[Fanout])


def _last(crews: list[Child], token: str, timeout_s: float) -> int:
    """The moment when the last of all observers saw it."""
    for crew in crews:
        crew.tell("seen", token=token, timeout_s=timeout_s)
    found: list[int | None] = [at for crew in crews for at in crew.answer(timeout_s + ANSWER_S)]
    if missing := found.count(None):
        raise ChildFailed(f"not seen within {timeout_s:.0f} s by {missing} of {len(found)}")
    return max(at for at in found if at is not None)


# Deaths --------------------------------------------------------------------------------------


def _deaths(run: Run, mode: str) -> None:
    count = QUICK_DEATH_OBSERVERS if run.quick else DEATH_OBSERVERS
    where = f"death to the last of {count} observers ({mode})"
    for subject in run.able(DEATHS):
        say(f"{where}: {subject.name}")
        with Children(pinned=mode == "pinned") as children:
            took = run.open(subject, children, where, lambda peer: _die(run, peer, count, where))
            if took:
                run.add(subject, DEATHS, f"{count} observers", mode, "SIGKILL to the last", "ms", LOWER, took)


def _die(run: Run, peer: Peer, count: int, where: str) -> list[float]:
    crews = peer.observe(_shares(count))
    made = iter(range(1 << 30))

    def take() -> float:
        """Milliseconds from the signal to the last observer."""
        name = f"victim-{next(made)}"
        victim = peer.victim(name)
        name = victim.answer()
        _last(crews, "+" + name, peer.seen_s)
        killed = victim.signal(signal.SIGKILL)
        time.sleep(SETTLE_S[100])
        return (_last(crews, "-" + name, DEATH_S) - killed) / 1e6

    return run.alternate(where, {type(peer): take}, SLOW_S).get(type(peer), [])


# A storm of joins ----------------------------------------------------------------------------


def _storm(run: Run, mode: str) -> None:
    """Servers are started anew for every round, because nobody is to be there before."""
    total = QUICK_STORM if run.quick else STORM
    where = f"{total:,} joins at once ({mode})"
    say(where)
    takes = {subject: lambda subject=subject: _burst(subject, mode, total) for subject in run.able(STORMS)}
    for subject, found in run.alternate(where, takes, STORMS_SLOW_S).items():
        case = f"{total:,} at once, one function each"
        run.add(subject, STORMS, case, mode, "all complete", "s", LOWER, found)


def _burst(subject: type[Peer], mode: str, total: int) -> float:
    """Seconds until everybody has joined, entered something, and seen what all the others entered."""
    with Children(pinned=mode == "pinned") as children:
        peer = subject(children)
        peer.start()
        crews = [peer.role("observers", number=number) for number in range(PROCESSES)]
        for crew in crews:
            crew.answer()
        began = time.monotonic_ns()
        for number, crew in enumerate(crews):
            names = [f"storm-{each}" for each in range(number, total, PROCESSES)]
            crew.tell("storm", names=names, total=total, timeout_s=STORM_S)
        ended = [crew.answer(STORM_S * 2) for crew in crews]
        if None in ended:
            raise ChildFailed(f"not complete within {STORM_S:.0f} s")
        if issubclass(subject, Product):
            digests = {digest for crew in crews for digest in crew.ask("digests")}
            assert len(digests) == 1, f"replicas differ: {digests}"
        return float(max(ended) - began) / 1e9


# Joining large registries --------------------------------------------------------------------


def _joins(run: Run, mode: str) -> None:
    """Subjects one after the other: a million entries fill gigabytes. The product's floor fetches as many bytes."""
    for subject in run.able(JOINS):
        with Children(pinned=mode == "pinned") as children:
            run.open(subject, children, f"joining ({mode})", lambda peer: Joining(run, mode, peer).measure())


class Joining:
    """A registry that grows from size to size, and those who join it."""

    def __init__(self, run: Run, mode: str, peer: Peer) -> None:
        self._run, self._mode, self._peer, self._subject = run, mode, peer, type(peer)
        self._caller = peer.traffic() if isinstance(peer, Product) else None
        self._loader = peer.role("loader")
        self._loader.answer()
        self._empty = memory_of(peer.servers)
        self._sender = peer.children.start("floors.sender").answer()["url"]
        self._bytes = 0

    def measure(self) -> None:
        for total in QUICK_ENTRIES if self._run.quick else ENTRIES:
            case = f"{total:,} functions"
            limit = self._subject.entries_max
            if limit is not None and total > limit:
                self._run.leave_out(self._subject, f"joining {case}", self._subject.entries_why)
                continue
            say(f"joining {case} ({self._mode}): {self._subject.name}")
            self._size(case, total)

    def _size(self, case: str, total: int) -> None:
        began = time.monotonic()
        self._loader.ask("load", total=total, wait_s=LOAD_S)
        loaded_s = time.monotonic() - began
        server = (memory_of(self._peer.servers) - self._empty) * MIB / total
        quiet = self._quiet()
        where = f"joining {case} ({self._mode})"
        takes: dict[Any, Any] = {self._subject: lambda: self._join(total)}
        if self._caller:
            takes[Fanout] = self._fetch
        samples: dict[Any, list[Any]] = self._run.alternate(where, takes)
        joins = samples.get(self._subject, [])
        if not joins:
            return
        self._add(case, "to a complete replica", "s", [each["s"] for each in joins])
        self._add(case, "received", "MB", [each["bytes"] / 1e6 for each in joins])
        self._add(case, "replica memory per function", "bytes", [each["mib"] * MIB / total for each in joins])
        self._add(case, "server memory per function", "bytes", [server])
        self._add(case, "loading since the size before", "s", [loaded_s])
        if self._caller:
            self._add(case, "others' calls, p99", "ms", [each["p99_ms"] for each in joins if each["count"]])
            self._add(case, "others' calls while quiet, p99", "ms", [quiet])
            self._run.add(Fetch, JOINS, case, self._mode, "to a complete replica", "s", LOWER, samples[Fanout])

    def _add(self, case: str, metric: str, unit: str, values: list[float]) -> None:
        self._run.add(self._subject, JOINS, case, self._mode, metric, unit, LOWER, values)

    def _join(self, total: int) -> dict[str, float]:
        """One join by a fresh process, while others call."""
        joiner = self._peer.role("joiner")
        joiner.answer()
        if self._caller:
            self._caller.ask("begin", interval_ms=INTERVAL_MS)
        found: dict[str, float] = joiner.ask("join", total=total + self._subject.entries_beside, wait_s=JOIN_S)
        if self._caller:
            found |= self._caller.ask("end", since_ns=found["began"], until_ns=found["ended"])
        joiner.end()
        self._bytes = int(found["bytes"])
        return found | {"s": (found["ended"] - found["began"]) / 1e9}

    def _quiet(self) -> float:
        if self._caller is None:
            return 0.0
        self._caller.ask("begin", interval_ms=INTERVAL_MS)
        time.sleep(QUIET_S)
        return float(self._caller.ask("end")["p99_ms"])

    def _fetch(self) -> float:
        """Seconds in which a bare DEALER fetches as many bytes from a bare ROUTER."""
        receiver = self._peer.children.start("floors.receiver", url=self._sender)
        receiver.answer()
        took = float(receiver.ask("fetch", wanted=self._bytes))
        receiver.end()
        return took


class Fetch(Fanout):
    """Only a name in the tables: see `Joining._fetch`."""

    name = "DEALER fetch of as many bytes"
    what = "as many bytes as the product received, in chunks of 64 KiB from a bare ROUTER"
