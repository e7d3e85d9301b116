"""Who takes part, in which order, and what becomes of those who fail.

The invariant: one that fails is left out with a word, and no other is disturbed. Rounds alternate: every subject in
turn, then all again; the first round warms up and is thrown away.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bench.measure import cpu_seconds, memory_mib
from bench.peers import crossbar, etcd, floors, iii, moleculer, nats, redis, zerorpc
from bench.peers.peer import Missing, Peer
from bench.peers.results import Figure, Results
from bench.processes import Child, ChildFailed, Children

T = TypeVar("T")

SUBJECTS: tuple[type[Peer], ...] = (
    iii.Product,
    iii.Async,
    nats.Nats,
    nats.Micro,
    nats.KeyValue,
    crossbar.Crossbar,
    moleculer.Mesh,
    moleculer.OverNats,
    zerorpc.Zerorpc,
    etcd.Etcd,
    redis.Redis,
    floors.Proxy,
    floors.Direct,
    floors.Tcp,
    floors.Fanout,
)
KEYS = tuple(dict.fromkeys(subject.key for subject in SUBJECTS))
ALWAYS = ("iii", "floors")  # what the others are compared with
ROUNDS, QUICK_ROUNDS = 5, 2
SLOW_ROUNDS = 2
WORD_MAX = 250  # characters of why somebody was left out; stderr has the whole


@dataclass
class Run:
    """What was asked for, and what was found so far."""

    modes: tuple[str, ...]
    quick: bool
    subjects: list[type[Peer]]
    results: Results = field(default_factory=Results)

    @property
    def rounds(self) -> int:
        return QUICK_ROUNDS if self.quick else ROUNDS

    def install(self) -> None:
        """Make every peer's environment; those that can't be had take no part."""
        for subject in list(self.subjects):
            try:
                subject.install()
                self.results.versions |= subject.versions()
            except (Missing, OSError) as error:
                self.subjects.remove(subject)
                self.leave_out(subject, "everything", f"can't be installed here: {error}")

    def able(self, job: str) -> list[type[Peer]]:
        return [subject for subject in self.subjects if job in subject.does]

    def leave_out(self, subject: type[Peer], where: str, why: object) -> None:
        lines, known = str(why).strip().splitlines(), len(self.results.left_out)
        why = f"{lines[0]} {lines[-1].strip()}" if lines[1:] else lines[0]
        word = self.results.leave_out(subject.name, where, why[:WORD_MAX])
        if len(self.results.left_out) > known:
            say(f"  left out: {word.subject}, {word.where}: {word.why}")
        if lines[1:]:
            say("    " + "\n    ".join(lines))

    def open(self, subject: type[Peer], children: Children, where: str, then: Callable[[Peer], T]) -> T | None:
        """Start a subject's server, and what `then` starts; None when it failed, and is left out here."""
        peer = subject(children)
        try:
            peer.start()
            return then(peer)
        except (ChildFailed, Missing) as error:
            self.leave_out(subject, where, error)
            return None

    def alternate(
        self, where: str, takes: Mapping[type[Peer], Callable[[], T]], slow_s: float = math.inf
    ) -> dict[type[Peer], list[T]]:
        """Each subject's samples; one whose take failed is not in it, and is asked no more.

        After `slow_s` seconds, two rounds have to do.
        """
        samples: dict[type[Peer], list[T]] = {subject: [] for subject in takes}
        began = time.monotonic()
        for turn in range(1 + self.rounds):
            if turn > SLOW_ROUNDS and time.monotonic() - began > slow_s:
                break
            for subject in list(samples):
                try:
                    sample = takes[subject]()
                except (ChildFailed, Missing) as error:
                    del samples[subject]
                    self.leave_out(subject, where, error)
                    continue
                if turn:
                    samples[subject].append(sample)
        return samples

    def add(
        self, subject: type[Peer], measure: str, case: str, mode: str, metric: str, unit: str, better: str,
        values: list[float],
    ) -> None:  # fmt: skip
        if values:
            figure = Figure(measure, case, mode, metric, unit, better, subject.name, subject.kind, values)
            self.results.figures.append(figure)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_of(children: list[Child]) -> float:
    """CPU seconds that these, and what they started, have used so far."""
    return sum(cpu_seconds(pid) for child in children for pid in child.pids())


def memory_of(children: list[Child]) -> float:
    """Resident MiB of these, and of what they started."""
    return sum(memory_mib(pid) for child in children for pid in child.pids())
