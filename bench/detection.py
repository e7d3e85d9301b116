"""`detect`: how long a death is unknown, as a distribution over many kills.

A victim is a process of its own with one worker, killed while its only function runs for a caller that waits. From the
signal on: when the last of 100 other workers (ten processes of ten) was told by its callback, and when the caller's
call failed. Death is bare TCP here: nothing but this project's own floor to compare with.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator

from bench.crews import PER_PROCESS, arm, crew_of, seen_by
from bench.measure import percentile
from bench.processes import Child, Children
from bench.report import Bound, Section, row
from bench.settings import Settings

KILLS, KILLS_QUICK = 200, 20
PROCESSES = 10  # of ten observers each
AT_ONCE = 10  # victims that are started side by side, before they are killed one by one
SETTLE_S = 0.15  # before asking who saw the death: asking costs the observers time
P99_MS = Bound("at most", 20)


def detect(settings: Settings) -> Iterator[Section]:
    """Kill after kill; the median and p99 of both spans."""
    kills = KILLS_QUICK if settings.quick else KILLS
    known: list[float] = []
    failed: list[float] = []
    fates: Counter[str] = Counter()
    section = Section(f"{kills} kills, {PROCESSES * PER_PROCESS} other workers", "free")
    with Children(pinned=False) as children:
        url = children.broker().url
        crews = children.start_all(crew_of(url, f"detect-{i}", PER_PROCESS) for i in range(PROCESSES))
        (caller,) = children.start_all([("workers.waiting_caller", {"url": url})])
        for crew in crews:
            crew.ask("join")
        while len(known) < kills:
            names = [f"victim-{len(known) + i}" for i in range(AT_ONCE)]
            victims = children.start_all(("workers.victim", {"url": url, "name": name}) for name in names)
            for name, victim in zip(names, victims, strict=True):
                known_ms, failed_ms, fate = _kill(name, victim, caller, crews)
                known.append(known_ms)
                failed.append(failed_ms)
                fates[fate] += 1
    for what, spans in (("known to the last other worker", known), ("the waiting call failed", failed)):
        for percent in (50, 90):
            section.rows.append(row(f"{what}, p{percent}", "ms", [percentile(spans, percent)]))
        section.rows.append(row(f"{what}, p99", "ms", [percentile(spans, 99)], bound=P99_MS))
        section.rows.append(row(f"{what}, max", "ms", [max(spans)]))
    section.notes.append(f"what the calls failed with: {dict(fates)}")
    yield section


def _kill(name: str, victim: Child, caller: Child, crews: list[Child]) -> tuple[float, float, str]:
    """Milliseconds from the signal to the last observer and to the caller; the call's fate."""
    arm(crews, "worker_left")
    caller.ask("call", function_id=f"detect::{name}")
    victim.ask("is_called")
    killed = victim.signal(signal.SIGKILL)
    time.sleep(SETTLE_S)
    failed = caller.ask("failure")
    last = max(seen_by(crews, "worker_name", [name]))
    victim.end()
    return (last - killed) / 1e6, (failed["at"] - killed) / 1e6, failed["fate"]
