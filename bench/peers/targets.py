"""What iii_zmq set itself to reach beside its peers, and whether the results show it. Nothing but results is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.peers import charts, crossbar, etcd, floors, iii, moleculer, nats
from bench.peers.peer import CHANGES, JOINS, STORMS
from bench.peers.results import Results

PRODUCTS = (iii.Product.name, iii.Async.name)
PAIR, EIGHT = "100 in flight, 1 caller, 1 provider", "100 in flight, 8 callers, 8 providers"
EIGHT_BUSY = "1000 in flight, 8 callers, 8 providers"  # 125 for each caller, where the pair's has 100

Measured = Callable[[Results, str, str], float | None]
"""Of these results, for this subject of ours in this mode; None where it was not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """`asked` is the bound: measured figures may be at most that, or at least where `is_least`."""

    what: str
    asked: float
    measured: Measured
    modes: tuple[str, ...] = ("pinned", "free")
    is_least: bool = False
    unit: str = ""

    def verdict(self, results: Results, subject: str, mode: str) -> str:
        found = self.measured(results, subject, mode)
        if found is None:
            return ""
        reached = found >= self.asked if self.is_least else found <= self.asked
        return f"{charts.number(found)}{self.unit}, {'reached' if reached else '**missed**'}"


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """What, in which mode, and the word on each of ours."""
    for target in TARGETS:
        asked = f"{'at least' if target.is_least else 'at most'} {charts.number(target.asked)}{target.unit}"
        for mode in target.modes:
            words = [target.verdict(results, subject, mode) for subject in PRODUCTS]
            if any(words):
                yield (f"{target.what}: {asked}", mode, *words)


def _median(results: Results, measure: str, case: str, metric: str, mode: str, subject: str) -> float | None:
    found = results.find(measure=measure, case=case, metric=metric, mode=mode, subject=subject)
    return found[0].spread.median if found else None


def _by(other: str, measure: str, case: str, metric: str) -> Measured:
    """The figure by another subject's."""

    def measured(results: Results, subject: str, mode: str) -> float | None:
        where = {"measure": measure, "case": case, "metric": metric, "mode": mode}
        mine, theirs = results.find(**where, subject=subject), results.find(**where, subject=other)
        ratio = mine[0].ratio_to(theirs[0]) if mine and theirs else None
        return ratio.median if ratio else None

    return measured


def _figure(measure: str, case: str, metric: str) -> Measured:
    return lambda results, subject, mode: _median(results, measure, case, metric, mode, subject)


def _by_one_pair(case: str) -> Measured:
    def measured(results: Results, subject: str, mode: str) -> float | None:
        eight = _median(results, "rate", case, "calls per second", mode, subject)
        one = _median(results, "rate", PAIR, "calls per second", mode, subject)
        return eight / one if eight and one else None

    return measured


def _others_later(case: str) -> Measured:
    def measured(results: Results, subject: str, mode: str) -> float | None:
        during = _median(results, JOINS, case, "others' calls, p99", mode, subject)
        quiet = _median(results, JOINS, case, "others' calls while quiet, p99", mode, subject)
        return None if during is None or quiet is None else max(0.0, during - quiet)

    return measured


def _p50_by(other: str) -> Measured:
    return _by(other, "latency", "100 bytes, 1 in flight", "p50")


def _rate_by(other: str) -> Measured:
    return _by(other, "rate", PAIR, "calls per second")


PINNED, FREE = ("pinned",), ("free",)
TARGETS = (
    Target("p50 of a routed call, by that of `zmq.proxy`", 1.5, _p50_by(floors.Proxy.name), PINNED, unit="x"),
    Target("the same, by NATS", 1.0, _p50_by(nats.Nats.name), PINNED, unit="x"),
    Target("the same, by Crossbar", 1.0, _p50_by(crossbar.Crossbar.name), PINNED, unit="x"),
    Target("the same, by Moleculer over NATS", 1.0, _p50_by(moleculer.OverNats.name), PINNED, unit="x"),
    Target(f"calls per second, {PAIR}, by NATS", 2.0, _rate_by(nats.Nats.name), is_least=True, unit="x"),
    Target("the same, by Moleculer's TCP mesh", 1.0, _rate_by(moleculer.Mesh.name), is_least=True, unit="x"),
    Target("the same, by `zmq.proxy`", 0.6, _rate_by(floors.Proxy.name), is_least=True, unit="x"),
    Target("8 callers and 8 providers in sum, by one pair", 1.0, _by_one_pair(EIGHT), is_least=True, unit="x"),
    Target("the same, with as many in flight for each caller as in the pair (1,000 in all)", 1.0,
           _by_one_pair(EIGHT_BUSY), is_least=True, unit="x"),
    *(
        Target(f"bytes per second, {case}, by `zmq.proxy`", 0.7,
               _by(floors.Proxy.name, "payload", case, "payload per second"), is_least=True, unit="x")
        for case in ("1 MB, 4 in flight", "16 MB, 4 in flight")
    ),
    Target("a change to the last of 1,000 observers, by a bare XPUB's", 2.0,
           _figure(CHANGES, "1,000 observers", "times the floor"), unit="x"),
    Target("the same, by etcd's watch", 1.0, _by(etcd.Etcd.name, CHANGES, "1,000 observers", "to the last"), unit="x"),
    Target("the same, by NATS KV's watch", 1.0,
           _by(nats.KeyValue.name, CHANGES, "1,000 observers", "to the last"), unit="x"),
    Target("joining 100,000 functions", 0.5, _figure(JOINS, "100,000 functions", "to a complete replica"), unit=" s"),
    Target("joining 1,000,000 functions", 6.0, _figure(JOINS, "1,000,000 functions", "to a complete replica"),
           unit=" s"),
    Target("memory of a function in a replica of 1,000,000", 400.0,
           _figure(JOINS, "1,000,000 functions", "replica memory per function"), unit=" bytes"),
    Target("the same in the broker", 700.0, _figure(JOINS, "1,000,000 functions", "server memory per function"),
           unit=" bytes"),
    Target("p99 of others' calls while 1,000,000 are joined, above normal", 10.0, _others_later("1,000,000 functions"),
           unit=" ms"),
    Target("1,000 joins at once, all complete and equal", 10.0,
           _figure(STORMS, "1,000 at once, one function each", "all complete"), FREE, unit=" s"),
)  # fmt: skip
