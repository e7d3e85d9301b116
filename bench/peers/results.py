"""Figures: what was measured, of whom, and how it scattered; kept as JSON.

A figure is one subject's rounds in one case of one measure and mode. Where the subjects took turns, the n-th value of
each was taken in the same round, and ratios are taken round by round; elsewhere they are those of the medians.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Spread

TAKES_TURNS = frozenset({"latency", "rate", "payload", "storms"})  # measures whose subjects alternate
LOWER, HIGHER = "lower", "higher"  # what is better


@dataclass(frozen=True, slots=True)
class Figure:
    measure: str
    case: str
    mode: str
    metric: str
    unit: str
    better: str
    subject: str
    kind: str  # "product", "peer" or "floor"
    values: list[float]

    @property
    def spread(self) -> Spread:
        return Spread.of(self.values)

    def ratio_to(self, other: Figure) -> Spread | None:
        """This one by the other."""
        if self.measure not in TAKES_TURNS:
            mine, theirs = self.spread.median, other.spread.median
            return Spread.of([mine / theirs]) if theirs else None
        pairs = [mine / theirs for mine, theirs in zip(self.values, other.values, strict=False) if theirs]
        return Spread.of(pairs) if pairs else None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What could not be measured, and the word that stands in its place."""

    subject: str
    where: str
    why: str


@dataclass(slots=True)
class Results:
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    quick: bool = False
    took_s: float = 0.0
    figures: list[Figure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def find(self, **wanted: str) -> list[Figure]:
        """The figures whose fields are these."""
        return [each for each in self.figures if all(getattr(each, name) == wanted[name] for name in wanted)]

    def leave_out(self, subject: str, where: str, why: str) -> LeftOut:
        found = LeftOut(subject, where, why)
        if found not in self.left_out:
            self.left_out.append(found)
        return found

    def write(self, path: Path) -> None:
        """A line for each figure, so that two runs can be compared by any tool."""
        found = asdict(self)
        for figure, line in zip(self.figures, found["figures"], strict=True):
            line["spread"] = asdict(figure.spread)
            line["ratio_to_product"] = _ratio(figure, self._product(figure))
        figures = ",\n".join(json.dumps(_rounded(line)) for line in found.pop("figures"))
        path.write_text(f'{json.dumps(found, indent=1)[:-2]},\n "figures": [\n{figures}\n]}}\n')

    def _product(self, figure: Figure) -> Figure | None:
        same = {name: getattr(figure, name) for name in ("measure", "case", "mode", "metric")}
        return next(iter(self.find(**same, subject="Worker")), None)


def read(paths: Sequence[Path]) -> Results:
    """What `write` wrote; several files are put together, what is later takes the place of what is earlier."""
    whole = Results()
    for path in paths:
        found: dict[str, Any] = json.loads(path.read_text())
        figures = [Figure(**{name: line[name] for name in Figure.__slots__}) for line in found["figures"]]
        again = {(each.measure, each.mode) for each in figures}
        whole.figures = [each for each in whole.figures if (each.measure, each.mode) not in again] + figures
        for line in found["left_out"]:
            whole.leave_out(**line)
        whole.machine, whole.versions = found["machine"], whole.versions | found["versions"]
        whole.command = " && ".join(filter(None, (whole.command, found["command"])))
        whole.quick, whole.took_s = whole.quick or found["quick"], whole.took_s + found["took_s"]
    return whole


def _rounded(value: Any) -> Any:
    """Six digits are more than any of this means."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _ratio(figure: Figure, other: Figure | None) -> dict[str, Any] | None:
    spread = figure.ratio_to(other) if other else None
    return asdict(spread) if spread else None
