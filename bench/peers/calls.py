"""`latency`, `rate` and `payload`: one caller or eight, one provider or eight, and what a call costs everybody.

All subjects stand ready at the same time and take turns; those who wait for their turn are idle. Callers and
providers are processes of their own. With eight of each the calls in flight are shared out among the callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.peers.peer import CALLS, Peer
from bench.peers.results import HIGHER, LOWER
from bench.peers.runner import Run, cpu_of, say
from bench.processes import Child, Children

LATENCY, RATE, PAYLOAD = "latency", "rate", "payload"
MEASURES = (LATENCY, RATE, PAYLOAD)
SMALL = 100  # bytes
SIZES = {"10 KB": 10_000, "1 MB": 1_000_000, "16 MB": 16_000_000}  # 1 MB is below NATS's 1 MiB
WINDOWS = (10, 100, 1000)
PAYLOAD_WINDOW = 4
MANY, QUICK_MANY = 8, 2
SECONDS = {LATENCY: 0.4, RATE: 0.25, PAYLOAD: 0.25}  # of one round of one subject
QUICK_SECONDS = 0.05
UP_TO_SPEED_S = 0.25  # before each round: for 0.2 s after a pause the kernel leaves a CPU idle beside a queue
LEAD_NS = 20_000_000  # from telling the callers to the moment when all begin
ANSWER_S = 60.0  # 1,000 calls to the slowest


@dataclass(frozen=True, slots=True)
class Case:
    measure: str
    name: str
    window: int
    size: int


@dataclass(frozen=True, slots=True)
class Rig:
    """One subject, ready to be called."""

    servers: list[Child]
    providers: list[Child]
    callers: list[Child]

    def take(self, case: Case, seconds: float) -> dict[str, float]:
        """One round, of callers that call already."""
        self._round(case, min(seconds, UP_TO_SPEED_S))
        return self._round(case, seconds)

    def _round(self, case: Case, seconds: float) -> dict[str, float]:
        groups = {"callers": self.callers, "server": self.servers, "providers": self.providers}
        before = {name: cpu_of(group) for name, group in groups.items()}
        at, share, rest = time.monotonic_ns() + LEAD_NS, *divmod(case.window, len(self.callers))
        asked = []
        for number, caller in enumerate(self.callers):
            if window := share + (number < rest):
                caller.tell("calls", window=window, seconds=seconds, size=case.size, at_ns=at)
                asked.append(caller)
        found = [caller.answer(ANSWER_S) for caller in asked]
        count = sum(each["count"] for each in found)
        took = (max(each["ended"] for each in found) - min(each["began"] for each in found)) / 1e9
        sample: dict[str, float] = {"calls": count / took, "bytes": count * case.size / took / 1e6}
        for name, group in groups.items():
            if group:
                sample[f"CPU of {name}"] = (cpu_of(group) - before[name]) / count * 1e6
        return sample | {name: value for name, value in found[0].items() if name.startswith("p")}


def calls(run: Run, measures: set[str]) -> None:
    """All that was asked for, stage by stage: a mode, and one pair or many."""
    many = QUICK_MANY if run.quick else MANY
    for mode in run.modes:
        for pairs in (1, many):
            cases = _cases(pairs, measures)
            if cases:
                with Children(pinned=mode == "pinned") as children:
                    _stage(run, children, mode, pairs, cases)


def _cases(pairs: int, measures: set[str]) -> list[Case]:
    who = "1 caller, 1 provider" if pairs == 1 else f"{pairs} callers, {pairs} providers"
    cases = [Case(RATE, f"{window} in flight, {who}", window, SMALL) for window in WINDOWS]
    if pairs == 1:
        cases.append(Case(LATENCY, "100 bytes, 1 in flight", 1, SMALL))
        for name, size in SIZES.items():
            cases.append(Case(PAYLOAD, f"{name}, 1 in flight", 1, size))
            cases.append(Case(PAYLOAD, f"{name}, {PAYLOAD_WINDOW} in flight", PAYLOAD_WINDOW, size))
    return [case for case in cases if case.measure in measures]


def _stage(run: Run, children: Children, mode: str, pairs: int, cases: list[Case]) -> None:
    where = f"calls, {pairs} and {pairs} ({mode})"
    say(f"{where}: starting")
    rigs: dict[type[Peer], Rig] = {}
    for subject in run.able(CALLS):
        if rig := run.open(subject, children, where, lambda peer: Rig(peer.servers, *peer.pairs(pairs))):
            rigs[subject] = rig
    for case in cases:
        say(f"{case.measure}, {case.name} ({mode})")
        samples = run.alternate(f"{case.measure}, {case.name} ({mode})", _takes(run, rigs, case))
        for subject, found in samples.items():
            _add(run, subject, case, mode, found)
        for subject in [each for each in rigs if each not in samples and _allows(each, case)]:
            del rigs[subject]  # nobody knows what it still answers


def _takes(run: Run, rigs: dict[type[Peer], Rig], case: Case) -> dict[type[Peer], Callable[[], dict[str, float]]]:
    seconds = QUICK_SECONDS if run.quick else SECONDS[case.measure]
    for subject in rigs:
        if not _allows(subject, case):
            what = case.name.partition(",")[0]
            run.leave_out(subject, what, subject.payload_why if case.measure == PAYLOAD else subject.window_why)
    return {
        subject: lambda rig=rig: rig.take(case, seconds)  # type: ignore[misc]
        for subject, rig in rigs.items()
        if _allows(subject, case)
    }


def _allows(subject: type[Peer], case: Case) -> bool:
    if subject.window_max is not None and case.window > subject.window_max:
        return False
    return subject.payload_max is None or case.size <= subject.payload_max


def _add(run: Run, subject: type[Peer], case: Case, mode: str, found: list[dict[str, Any]]) -> None:
    for metric in ("p50", "p99", "p99.9"):
        if metric in found[0] and (metric == "p50" or case.measure == LATENCY):
            values = [each[metric] for each in found]
            run.add(subject, case.measure, case.name, mode, metric, "us", LOWER, values)
    if case.measure == RATE:
        values = [each["calls"] for each in found]
        run.add(subject, RATE, case.name, mode, "calls per second", "calls/s", HIGHER, values)
    if case.measure == PAYLOAD and case.window > 1:
        values = [each["bytes"] for each in found]
        run.add(subject, PAYLOAD, case.name, mode, "payload per second", "MB/s", HIGHER, values)
    for metric in ("CPU of callers", "CPU of server", "CPU of providers"):
        if metric in found[0]:
            values = [each[metric] for each in found]
            run.add(subject, case.measure, case.name, mode, metric, "us/call", LOWER, values)
