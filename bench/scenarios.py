"""`crowd`, `silence`, `churn`: the acceptance runs, with what was asked beside what was seen.

These have no floor: bare ZeroMQ has no registry. They run free, each with a broker of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

from bench.crews import PER_PROCESS, arm, await_agreement, crew_of, seen_by, start_probe
from bench.measure import memory_mib
from bench.processes import Child, Children
from bench.report import Bound, Section, row, verdict
from bench.settings import Settings

PROVIDER = "bench-provider"  # the name that workers.provider takes

CROWD_PROCESSES, CROWD_QUICK_PROCESSES = 20, 4
CROWD_FUNCTIONS = 50
CROWD_KILL = Bound("at most", 50)  # milliseconds from kill -9 to the last to know
KILL_SETTLE_S = 1.5  # before asking who saw the death: asking costs the observers time

SILENCE_ROUNDS, SILENCE_QUICK_ROUNDS = 3, 1
SILENCE_INTERVAL_MS = 10.0  # between calls to the provider: below the TTL, so its timer is off
SILENCE_CALL_TIMEOUT_S = 1.0
SILENCE_LIMIT_S = 10.0  # to wait for what is asked to take 2.5 s
SILENCE_KNOWN = Bound("at most", 2.5)  # seconds: a TTL of 2 s and an interval of 0.5 s

CHURN_SECONDS, CHURN_QUICK_SECONDS = 60.0, 5.0
CHURN_RATE = 1_000.0  # changes a second
CHURN_CHANGERS, CHURN_PER_CHANGER = 4, 16  # processes with a worker each, tasks in each
CHURN_CREWS = 5  # processes, ten replicas in each
CHURN_REACHED = Bound("at least", 0.95 * CHURN_RATE)
MEMORY_LEVEL = Bound("at most", 1.05, "ratio")  # end beside middle
MEMORY_SETTLE_SHARE = 0.1  # of the run, before the "begin" sample: the history fills first


def crowd(settings: Settings) -> Iterator[Section]:
    """200 workers with 50 functions join at once; one function more; one process killed."""
    processes = CROWD_QUICK_PROCESSES if settings.quick else CROWD_PROCESSES
    workers = processes * PER_PROCESS
    section = Section(f"{workers} workers with {CROWD_FUNCTIONS} functions each", "free")
    with Children(pinned=False) as children:
        url = children.broker().url
        crews = children.start_all(crew_of(url, f"crowd-{i}", PER_PROCESS, CROWD_FUNCTIONS) for i in range(processes))
        probe = start_probe(children, url)
        _crowd_joins(section, crews, probe, workers)
        _crowd_grows(section, crews)
        _crowd_dies(section, crews)
        agreed = await_agreement(crews[1:], probe)
        section.rows.append(verdict("digests equal the broker's afterwards", agreed is not None))
    yield section


def _crowd_joins(section: Section, crews: list[Child], probe: Child, workers: int) -> None:
    began = time.monotonic()
    for crew in crews:
        crew.tell("join")
    starts = [crew.answer() for crew in crews]
    agreed = await_agreement(crews, probe)
    took = time.monotonic() - began
    status = probe.ask("status")
    section.rows += [
        row("start() of the slowest process's ten", "s", [max(starts)]),
        row("until all digests equal the broker's", "s", [took] if agreed is not None else []),
        verdict("digests equal the broker's", agreed is not None),
        verdict("all functions are there", status["functions"] == workers * CROWD_FUNCTIONS),
    ]
    section.notes.append(f"broker: {status['counters']}")


def _crowd_grows(section: Section, crews: list[Child]) -> None:
    arm(crews, "function_added")
    moments = crews[0].ask("register", function_id="crowd::one_more")
    seen = seen_by(crews, "function_id", ["crowd::one_more"])
    section.rows.append(row("one function more known to all", "ms", [(max(seen) - moments["began"]) / 1e6]))


def _crowd_dies(section: Section, crews: list[Child]) -> None:
    """Kill the first crew's process; the others note when each callback came."""
    dead = [f"crowd-0-{i}" for i in range(PER_PROCESS)]
    others = crews[1:]
    arm(others, "worker_left")
    killed = crews[0].signal(signal.SIGKILL)
    time.sleep(KILL_SETTLE_S)
    seen = seen_by(others, "worker_name", dead)
    section.rows += [
        row("kill -9 of ten: first worker_left seen", "ms", [(min(seen) - killed) / 1e6]),
        row(
            "kill -9 of ten: last worker_left seen",
            "ms",
            [(max(seen) - killed) / 1e6],
            bound=CROWD_KILL,
        ),
    ]
    section.notes.append(f"{len(seen)} callbacks worker_left at {len(seen) // len(dead)} others")


def silence(settings: Settings) -> Iterator[Section]:
    """SIGSTOP of a provider under steady traffic, then SIGCONT."""
    section = Section("SIGSTOP of a provider, a call every 10 ms", "free")
    rounds: list[dict[str, float]] = []
    with Children(pinned=False) as children:
        url = children.broker().url
        function = {"url": url, "function_id": "silence::echo"}
        provider = children.start("workers.provider", **function)
        provider.answer()
        caller, observers = children.start_all([("workers.caller", function), crew_of(url, "silence", PER_PROCESS)])
        probe = start_probe(children, url)
        observers.ask("join")
        for _ in range(SILENCE_QUICK_ROUNDS if settings.quick else SILENCE_ROUNDS):
            rounds.append(_silence(provider, caller, observers, probe))
    section.rows += [
        row("known to all (worker_left)", "s", _column(rounds, "left"), bound=SILENCE_KNOWN),
        row("after SIGCONT: known to all (function_added)", "s", _column(rounds, "back")),
        row("after SIGCONT: first call answered", "s", _column(rounds, "answered")),
        verdict("digests equal the broker's", all(each["agreed"] for each in rounds)),
    ]
    section.notes += [f"round {i + 1}: calls failed {each['failures']}" for i, each in enumerate(rounds)]
    yield section


def _silence(provider: Child, caller: Child, observers: Child, probe: Child) -> dict[str, Any]:
    """One stop and go; spans in seconds from the signal."""
    caller.ask("begin", interval_ms=SILENCE_INTERVAL_MS, timeout_s=SILENCE_CALL_TIMEOUT_S)
    time.sleep(1.0)
    arm([observers], "worker_left")
    stopped = provider.signal(signal.SIGSTOP)
    try:
        left = seen_by([observers], "worker_name", [PROVIDER], SILENCE_LIMIT_S)
        arm([observers], "function_added")
    finally:
        continued = provider.signal(signal.SIGCONT)
    back = seen_by([observers], "function_id", ["silence::echo"], SILENCE_LIMIT_S)
    time.sleep(1.0)
    answered = caller.ask("first_answer", since_ns=continued)
    assert answered is not None, "no call was answered after SIGCONT"
    failures = caller.ask("end")["failures"]
    return {
        "left": (max(left) - stopped) / 1e9,
        "back": (max(back) - continued) / 1e9,
        "answered": (answered - continued) / 1e9,
        "agreed": await_agreement([observers], probe) is not None,
        "failures": failures,
    }


def churn(settings: Settings) -> Iterator[Section]:
    """A thousand changes a second to 50 replicas."""
    seconds = settings.seconds or (CHURN_QUICK_SECONDS if settings.quick else CHURN_SECONDS)
    replicas = CHURN_CREWS * PER_PROCESS
    section = Section(f"1,000 changes a second for {seconds:g} s to {replicas} replicas", "free")
    with Children(pinned=False) as children:
        broker = children.broker()
        changers = children.start_all(
            ("workers.changers", {"url": broker.url, "prefix": f"c{i}", "count": CHURN_PER_CHANGER})
            for i in range(CHURN_CHANGERS)
        )
        crews = children.start_all(
            crew_of(broker.url, f"churn-{i}", PER_PROCESS, checks=True) for i in range(CHURN_CREWS)
        )
        for crew in crews:
            crew.ask("join")
        probe = start_probe(children, broker.url)
        changes, memory = _churn(changers, crews[0], broker.pid, seconds)
        _churn_rows(section, crews, probe, changes / seconds, memory)
    yield section


def _churn(changers: list[Child], crew: Child, broker_pid: int, seconds: float) -> tuple[int, dict[str, list[float]]]:
    """Changes made; memory in MiB of the broker and of ten replicas at begin, middle, end."""
    memory: dict[str, list[float]] = {"broker": [], "replicas": []}
    rate = CHURN_RATE / CHURN_CHANGERS
    began = time.monotonic()
    for changer in changers:
        changer.tell("churn", rate=rate, seconds=seconds)
    for share in (MEMORY_SETTLE_SHARE, 0.5, 1.0):
        time.sleep(max(0.0, began + share * seconds - time.monotonic()))
        memory["broker"].append(memory_mib(broker_pid))
        memory["replicas"].append(memory_mib(crew.pid))
    return sum(changer.answer() for changer in changers), memory


def _churn_rows(
    section: Section,
    crews: list[Child],
    probe: Child,
    rate: float,
    memory: dict[str, list[float]],
) -> None:
    caught_up = await_agreement(crews, probe)
    counts = [crew.ask("counts") for crew in crews]
    section.rows.append(row("changes made", "changes/s", [rate], bound=CHURN_REACHED))
    section.rows.append(verdict("digests equal the broker's", caught_up is not None))
    if caught_up is not None:
        section.rows.append(row("the replicas' lag at the end", "s", [caught_up]))
    for name in ("gaps", "resets"):
        total = float(sum(each[name] for each in counts))
        bound = Bound("at most", 0) if name == "gaps" else None
        section.rows.append(row(f"{name} seen by callbacks", "", [total], bound=bound))
    for who, (begin, middle, end) in memory.items():
        bound = MEMORY_LEVEL if who == "broker" else None
        section.rows.append(row(f"memory of {who}, begin", "MiB", [begin]))
        section.rows.append(row(f"memory of {who}, end", "MiB", [end], "middle", [middle], bound))
    section.notes.append(f"callbacks: {sum(each['changes'] for each in counts):,}")
    section.notes.append(f"broker: {probe.ask('status')['counters']}")


def _column(rounds: list[dict[str, Any]], name: str) -> list[float]:
    return [each[name] for each in rounds]
