"""Tables for people, without frames. A pipe gets the same text as a terminal, but without colour and never cut short.

Invariant: text from the network reaches a terminal as printable characters only.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .exits import one_line

Json = dict[str, Any]

WIDTH_OF_PIPES = 10_000  # without a terminal nothing is folded or cut
NAMES_SHOWN_MAX = 3
LAST_COLUMN_MIN = 12
GAP = "  "  # between columns
RIGHT = ("PID", "IN FLIGHT")
FLAGS = ("exclusive", "idempotent", "internal")
SIGNS = {
    "worker_joined": ("+", "green"), "worker_changed": ("~", "yellow"), "worker_left": ("-", "red"),
    "function_added": ("+", "green"), "function_changed": ("~", "yellow"), "function_removed": ("-", "red"),
    "reset": ("!", "bold magenta"),
}  # fmt: skip
STATE_STYLES = {"ready": "green", "stalled": "bold yellow", "draining": "cyan"}
LOSSES = {"left_bye": "left politely", "left_died": "died", "left_silent": "fell silent", "left_replaced": "replaced"}

# Counters that stay zero while all is well, each with its text for people.
TROUBLES = {
    "stalled": "workers stalled",
    "pauses": "pauses of the broker itself",
    "overflows": "workers reset because their queue was full",
    "undelivered": "messages that could not be delivered",
    "never_present": "sessions dropped because their stream was never heard",
    "malformed": "malformed messages",
    "strangers": "connections that never completed a handshake",
    "descriptors_lacking": "half seconds without a free descriptor",
    "unexpected": "unexpected messages",
    "forged": "answers that did not come from the provider",
    "refused": "refusals",
    "syncs_gap": "replicas with a gap, repaired",
    "syncs_digest": "replicas with a wrong digest, repaired",
    "syncs_overrun": "replicas that fell far behind, repaired",
    "syncs_late": "sync requests that timed out",
    "calls_timeout": "calls timed out",
    "calls_busy": "calls refused as busy",
    "calls_no_provider": "calls without a provider",
    "calls_provider_lost": "calls whose provider was lost",
    "results_late": "results that came too late",
}


def console() -> Console:
    """A console on stdout, wide enough for any line if stdout is not a terminal."""
    made = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDTH_OF_PIPES
    return made


def print_functions(functions: Sequence[Json], position: Json) -> None:
    rows = [
        [
            _plain(function["id"], "bold"),
            _providers(function["providers"]),
            Text(" ".join(name for name in FLAGS if function[name])),
            Text(one_line(function["description"] or ""), style="dim"),
        ]
        for function in functions
    ]
    _print_list(("FUNCTION", "PROVIDERS", "FLAGS", "DESCRIPTION"), rows, count_of(functions, "function"), position)


def print_workers(workers: Sequence[Json], position: Json) -> None:
    rows = [
        [
            _plain(worker["name"], "bold"),
            _plain(worker["id"]),
            _state(worker["state"]),
            _plain(worker["host"]),
            Text(str(worker["pid"])),
            Text(str(worker["in_flight"])),
            _names(worker["functions"]),
        ]
        for worker in workers
    ]
    columns = ("WORKER", "ID", "STATE", "HOST", "PID", "IN FLIGHT", "FUNCTIONS")
    _print_list(columns, rows, count_of(workers, "worker") + _troubled(workers), position)


def print_function(function: Json) -> None:
    flags = [name for name in FLAGS if function[name]]
    _print_fields(
        function=_plain(function["id"], "bold"),
        description=_plain(function["description"] or "-"),
        flags=_plain(", ".join(flags) or "-"),
        providers=Text("\n").join(map(_provider_with_id, function["providers"])),
        request=_json(function["request_schema"]),
        response=_json(function["response_schema"]),
        metadata=_json(function["metadata"] or None),
    )


def print_worker(worker: Json) -> None:
    _print_fields(
        worker=_plain(worker["name"], "bold"),
        id=_plain(worker["id"]),
        state=_state(worker["state"]),
        process=_plain(f"{worker['host']} pid {worker['pid']}"),
        in_flight=_plain(str(worker["in_flight"])),
        metadata=_json(worker["metadata"] or None),
        functions=_plain("\n".join(worker["functions"]) or "-"),
    )


def print_status(status: Json) -> None:
    counters = status["counters"]
    gone = [f"{counters[name]} {text}" for name, text in LOSSES.items() if counters.get(name)]
    troubles = [f"{counters[name]} {text}" for name, text in TROUBLES.items() if counters.get(name)]
    turn_ms = [counters.get(name, 0) for name in ("turn_recent_max_ms", "turn_max_ms")]
    _print_fields(
        broker=_plain(f"version {status['version']}, up {_span(status['uptime_s'])}"),
        position=_plain(f"{status['epoch']}:{status['seq']}"),
        digest=_plain(status["digest"]),
        workers=_plain(f"{status['workers']} now; gone: {', '.join(gone) or 'none'}"),
        functions=_plain(str(status["functions"])),
        calls=_plain(f"{status['in_flight']} in flight, {counters.get('calls', 0)} so far"),
        slowest_turn=_plain(f"{turn_ms[0]} ms lately, {turn_ms[1]} ms ever"),
        so_far=Text("\n".join(troubles), style="yellow") if troubles else Text("no trouble", style="green"),
    )


# -- cells -------------------------------------------------------------------------------------------------------------


def _plain(text: str, style: str = "") -> Text:
    return Text("\n".join(map(one_line, text.split("\n"))), style=style)


def _state(state: str) -> Text:
    return _plain(state, STATE_STYLES.get(state, ""))


def _providers(providers: Sequence[Json]) -> Text:
    """Counts equal ones: `payments x4, payments (stalled)`."""
    alike = Counter((one["worker_name"], one["state"], one["active"]) for one in providers)
    shown = [_provider(*kind, count) for kind, count in list(alike.items())[:NAMES_SHOWN_MAX]]
    if len(alike) > NAMES_SHOWN_MAX:
        shown.append(Text("..."))
    return Text(", ").join(shown)


def _provider(name: str, state: str, active: bool, count: int = 1) -> Text:
    """The name, with anything unusual (state, stand-by) in brackets."""
    shown = _plain(f"{name} x{count}" if count > 1 else name)
    if state != "ready":
        shown.append(" (").append_text(_state(state)).append(")")
    if not active:
        shown.append(" (stand-by)", style="dim")
    return shown


def _provider_with_id(provider: Json) -> Text:
    return _provider(f"{provider['worker_name']} {provider['worker_id']}", provider["state"], provider["active"])


def _names(names: Sequence[str]) -> Text:
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return _plain((", ".join(names[:NAMES_SHOWN_MAX]) or "-") + more)


def _json(value: Any) -> Text:
    return _plain(json.dumps(value, ensure_ascii=False) if value is not None else "-")


def _span(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    return " ".join([f"{number} {unit}" for number, unit in parts if number][:2]) or "0 s"


def count_of(things: Sized, what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _troubled(workers: Sequence[Json]) -> str:
    states = [worker["state"] for worker in workers]
    parts = [f"{states.count(state)} {state}" for state in ("stalled", "draining") if state in states]
    return f" ({', '.join(parts)})" if parts else ""


# -- printing ----------------------------------------------------------------------------------------------------------


def _print_list(columns: Sequence[str], rows: Sequence[list[Text]], count: str, position: Json) -> None:
    """Prints the rows under their headings; at a terminal also a line that sums them up.

    Not a `rich` table, which takes a minute for 100,000 rows: this takes seconds.
    """
    out = console()
    if rows:
        headings = [Text(column, style="dim") for column in columns]
        for line in _aligned([headings, *rows], [column in RIGHT for column in columns], out.width):
            _show(out, line)
    if not rows or out.is_terminal:
        _show(out, Text(f"{count} at position {position['epoch']}:{position['seq']}", style="dim"))


def _aligned(rows: Sequence[list[Text]], right: Sequence[bool], width: int) -> Iterator[Text]:
    """One line for each row, with the last column cut to the remaining width.

    Names and ids are never cut, since people copy them: a terminal that is too narrow wraps the lines.
    """
    widths = [max(row[at].cell_len for row in rows) for at in range(len(right) - 1)]
    room = max(width - sum(widths) - len(GAP) * len(widths), LAST_COLUMN_MIN)
    for *cells, last in rows:
        line = Text()
        for cell, cell_width, is_right in zip(cells, widths, right, strict=False):
            gap = " " * (cell_width - cell.cell_len)
            line.append(gap if is_right else "").append_text(cell).append(GAP if is_right else gap + GAP)
        last.truncate(room, overflow="ellipsis")
        line.append_text(last).rstrip()
        yield line


def _show(out: Console, line: Text) -> None:
    if out.is_terminal:
        out.print(line, soft_wrap=True)
    else:
        print(line.plain)


def _print_fields(**fields: Text) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), value)
    put(console(), table)


def put(out: Console, table: Table) -> None:
    """Prints the table. `rich` pads every cell to the width of its column; through a pipe the last one is stripped."""
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
