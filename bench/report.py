"""Rows of results: a figure, its floor, their ratio and the bound that was asked for."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import zmq
from rich.console import Console
from rich.table import Table

from bench.measure import Spread
from iii_zmq import __version__
from iii_zmq.wire import COMPILED

WIDTH_MIN = 200  # columns: figures are never cut short; tables take what they need


@dataclass(frozen=True, slots=True)
class Bound:
    """What was asked for: the median of `of` is to be at most, or at least, `limit`."""

    kind: Literal["at most", "at least"]
    limit: float
    of: Literal["figure", "ratio"] = "figure"

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.kind == "at most" else value >= self.limit

    def __str__(self) -> str:
        sign = {"at most": "<=", "at least": ">="}[self.kind]
        return f"{sign} {_number(self.limit)}{'x' if self.of == 'ratio' else ''}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. Without a product (`--floors`) `figure` and `ratio` are None."""

    name: str
    unit: str
    figure: Spread | None
    floor_name: str = ""
    floor: Spread | None = None
    ratio: Spread | None = None
    bound: Bound | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the bound holds; None when there is no bound or nothing to judge."""
        judged = self.ratio if self.bound and self.bound.of == "ratio" else self.figure
        if self.bound is None or judged is None:
            return None
        return self.bound.holds(judged.median)


def row(
    name: str,
    unit: str,
    figures: Sequence[float],
    floor_name: str = "",
    floors: Sequence[float] = (),
    bound: Bound | None = None,
) -> Row:
    """A row from the rounds' values; the ratio is taken round by round."""
    return Row(
        name,
        unit,
        Spread.of(figures) if figures else None,
        floor_name,
        Spread.of(floors) if floors else None,
        _ratio(figures, floors),
        bound,
    )


def verdict(name: str, holds: bool) -> Row:
    """A row for a claim that is true or false: shown as 1 or 0, asked to be 1."""
    return row(name, "yes=1", [float(holds)], bound=Bound("at least", 1))


@dataclass(slots=True)
class Section:
    """What one benchmark measured in one mode."""

    title: str
    mode: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(each), "ok": each.ok} for each in self.rows]
        return {"title": self.title, "mode": self.mode, "rows": rows, "notes": self.notes}


def machine() -> dict[str, str]:
    """The facts without which no figure means anything."""
    return {
        "iii_zmq": f"{__version__}, {'compiled (bin/compile)' if COMPILED else 'plain Python'}",
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "tcp congestion control": _congestion_control(),
        "python": platform.python_version(),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def show_machine(facts: dict[str, str]) -> None:
    _console().print(", ".join(f"{name} {value}" for name, value in facts.items()))


def show(section: Section) -> None:
    """Print one section as a table with its notes below."""
    table = Table(title=f"{section.title} ({section.mode})", title_justify="left")
    for name in ("", "unit", "figure", "floor", "", "ratio", "asked", ""):
        right = name in ("figure", "floor", "ratio")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for each in section.rows:
        table.add_row(*_cells(each))
    console = _console()
    console.print(table)
    for note in section.notes:
        console.print(f"  {note}", highlight=False)


def write_json(path: Path, facts: dict[str, str], sections: Iterable[Section]) -> None:
    """Write everything to `path`."""
    found = {"machine": facts, "sections": [section.as_json() for section in sections]}
    path.write_text(json.dumps(found, indent=1) + "\n")


def _ratio(figures: Sequence[float], floors: Sequence[float]) -> Spread | None:
    pairs = [figure / floor for figure, floor in zip(figures, floors, strict=False) if floor]
    return Spread.of(pairs) if pairs else None


def _cells(each: Row) -> tuple[str, ...]:
    asked = str(each.bound) if each.bound else ""
    verdicts = {True: "[green]ok[/]", False: "[red]missed[/]", None: ""}
    figure, floor, ratio = (_spread(s) for s in (each.figure, each.floor, each.ratio))
    return each.name, each.unit, figure, floor, each.floor_name, ratio, asked, verdicts[each.ok]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.rounds == 1:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)}..{_number(spread.high)})"


def _number(value: float) -> str:
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _congestion_control() -> str:
    """On one machine an echo of 1 MB took twice as long with bbr as with reno."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "unknown"


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _console() -> Console:
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if console.width < WIDTH_MIN:
        console.width = WIDTH_MIN
    return console
