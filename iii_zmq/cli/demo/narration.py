"""The output of the demo: a story for people, JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..exits import one_line
from ..tables import SIGNS, console, put

Json = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Outcome:
    """The outcome: the problems found, and a row for each worker."""

    problems: list[str]
    rows: list[Json]
    digest: str = ""
    seq: int = 0


class ForPrograms:
    """One JSON object a line; the last one has the event `outcome`."""

    def title(self, text: str) -> None:
        pass

    def step(self, text: str) -> None:
        self._print(event="step", text=text)

    def broker(self, listening: Json) -> None:
        self._print(**{key: value for key, value in listening.items() if key not in ("child", "worker")})

    def joined(self, worker: str, example: str, ms: float) -> None:
        self._print(event="joined", worker=worker, example=example, ms=round(ms, 3))

    def views(self, views: list[Json]) -> None:
        for view in views:
            self._print(**{key: value for key, value in view.items() if key != "child"})

    def called(self, call: Json) -> None:
        outcome = {key: call[key] for key in ("result", "error") if key in call}
        self._print(event="called", worker=call["worker"], id=call["id"], ms=round(call["ns"] / 1e6, 3), **outcome)

    def said(self, report: Json) -> None:
        self._print(event="said", program=report["child"], text=report["text"])

    def notice(self, report: Json, ms: float) -> None:
        for change in report["changes"]:
            self._print(event="change", worker=report["worker"], ms=round(ms, 3), change=change)

    def notices_end(self) -> None:
        pass

    def outcome(self, outcome: Outcome, took_s: float) -> None:
        ok = not outcome.problems
        self._print(event="outcome", ok=ok, problems=outcome.problems, workers=outcome.rows, took_s=round(took_s, 3))

    def _print(self, **line: Any) -> None:
        print(json.dumps(line), flush=True)


class ForPeople:
    """The story. Notices are collected during a step and shown change by change at its end."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._steps = 0
        self._notices: list[tuple[Json, float]] = []

    def title(self, text: str) -> None:
        self._print(text, "bold")

    def step(self, text: str) -> None:
        self._steps += 1
        self._print("")
        self._print(f"{self._steps}. {text}", "bold cyan")

    def broker(self, listening: Json) -> None:
        self._print(f"   It listens on {listening['url']}; its epoch is {listening['epoch']}.")

    def joined(self, worker: str, example: str, ms: float) -> None:
        self._print(f"   {worker} ({example}) joined in {ms:.1f} ms")

    def views(self, views: list[Json]) -> None:
        table = _table("   SEEN BY", "*CHANGE", "*WORKERS", "*FUNCTIONS", "DIGEST")
        for view in views:
            sizes = [str(view[key]) for key in ("seq", "workers", "functions")]
            table.add_row(f"   {view['worker']}", *sizes, view["digest"])
        self._print("")
        put(self._out, table)

    def called(self, call: Json) -> None:
        outcome = call.get("error") or json.dumps(call["result"])
        self._print(f"   {call['worker']} calls {call['id']} {json.dumps(call['payload'])}")
        self._print(f"      {call['ns'] / 1e6:.2f} ms  {outcome}", "red" if "error" in call else "")

    def said(self, report: Json) -> None:
        pass  # what the examples print would only repeat what is shown anyway

    def notice(self, report: Json, ms: float) -> None:
        self._notices.append((report, ms))

    def notices_end(self) -> None:
        for seq, notices in groupby(self._notices, lambda notice: notice[0]["seq"]):
            self._show_change(seq, list(notices))
        self._notices.clear()

    def outcome(self, outcome: Outcome, took_s: float) -> None:
        if outcome.rows:
            put(self._out, _verdicts(outcome.rows))
            self._print(f"   The broker is at change {outcome.seq}, digest {outcome.digest}.", "dim")
        self._print("")
        for problem in outcome.problems:
            self._print(f"failed: {problem}", "bold red")
        if not outcome.problems:
            heard = sum(row["heard"] for row in outcome.rows)
            slowest = max(row["max_ms"] or 0.0 for row in outcome.rows)
            count = f"{outcome.seq} registry updates, {heard} changes heard, {slowest:.2f} ms at most"
            self._print(f"Nobody missed anything: {count}.", "bold green")
        self._print(f"It took {took_s:.1f} s.", "dim")

    def _show_change(self, seq: int, notices: list[tuple[Json, float]]) -> None:
        line = Text(f"   #{seq:<3}")
        for change in notices[0][0]["changes"]:
            sign, style = SIGNS[change["kind"]]
            line.append(f" {sign} {_subject(change)} ", style=style)
        line.rstrip()
        self._out.print(line, soft_wrap=True)
        heard = " · ".join(f"{report['worker']} {ms:.2f} ms" for report, ms in notices)
        self._print(f"        {heard}", "dim")

    def _print(self, text: str, style: str = "") -> None:
        indentation = " " * (len(text) - len(text.lstrip(" ")))
        self._out.print(Text(indentation + one_line(text), style=style), soft_wrap=True)
        sys.stdout.flush()


def _subject(change: Json) -> str:
    if change["function_id"] is not None:
        return str(change["function_id"])
    reason = f" ({change['reason']})" if change["reason"] else ""
    return f"{change['worker_name']}{reason}"


def _table(*columns: str) -> Table:
    """A column whose heading begins with * holds numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.lstrip("*"), justify="right" if column.startswith("*") else "left", no_wrap=True)
    return table


def _verdicts(rows: Iterable[Json]) -> Table:
    table = _table("   WORKER", "", "*HEARD", "*MISSED", "*MEDIAN", "*SLOWEST", "DIGEST")
    for row in rows:
        table.add_row(
            f"   {row['worker']}", row["end"], str(row["heard"]), str(row["missed"]), _ms(row["median_ms"]),
            _ms(row["max_ms"]), row["digest"] or "-",
        )  # fmt: skip
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


Narration = ForPrograms | ForPeople
"""The script reports each event to one of these."""


def narration(as_json: bool) -> Narration:
    return ForPrograms() if as_json else ForPeople(console())
