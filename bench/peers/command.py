"""`bin/bench --peers`: what to measure, of whom, and where to write it.

Exit status 0 when it ran to its end, also when peers were left out; 1 when something broke.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from bench import report
from bench.peers import calls, document, registry
from bench.peers.results import Results, read
from bench.peers.runner import ALWAYS, KEYS, SUBJECTS, Run, say

MEASURES = (*calls.MEASURES, *registry.MEASURES)


def main(argv: list[str]) -> int:
    asked = _parse(argv)
    signal.signal(signal.SIGTERM, _stop)
    if asked.results:
        results, broken = read(asked.results), False
    else:
        results, broken = _measure(asked, argv)
    document.show(results)
    if asked.json:
        results.write(asked.json)
    if asked.write_docs and results.quick:
        say("--quick is not for quoting: no docs are written of it")
    elif asked.write_docs:
        document.write(results)
    return 1 if broken else 0


def _stop(number: int, _: object) -> NoReturn:
    """Ended like by Ctrl-C: whatever was started is ended on the way out."""
    sys.exit(128 + number)


def _measure(asked: argparse.Namespace, argv: list[str]) -> tuple[Results, bool]:
    modes = ("pinned", "free") if asked.mode == "both" else (asked.mode,)
    wanted = {*asked.only, *ALWAYS} if asked.only else set(KEYS)
    run = Run(modes, asked.quick, [subject for subject in SUBJECTS if subject.key in wanted])
    run.results.machine, run.results.quick = report.machine(), asked.quick
    run.results.command = shlex.join(["bin/bench", "--peers", *_without_files(argv)])
    run.install()
    began, broken, measures = time.monotonic(), False, set(asked.what or MEASURES)
    try:
        calls.calls(run, measures)
        registry.registry(run, measures)
    except Exception:
        broken = True
        say(f"broke:\n{traceback.format_exc()}")  # what was measured until then is shown and kept
    run.results.took_s = time.monotonic() - began
    return run.results, broken


def _without_files(argv: list[str]) -> list[str]:
    """The command for the page: where the results went is nothing to repeat."""
    kept: list[str] = []
    for word in argv:
        if kept and kept[-1] == "--json":
            kept.pop()
        elif not word.startswith("--json="):
            kept.append(word)
    return kept


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench --peers", description="iii_zmq beside its peers")
    parser.add_argument("what", nargs="*", metavar="|".join(MEASURES), help="default: all")
    parser.add_argument("--only", type=_keys, metavar=",".join(KEYS), help="these peers, beside iii and the floors")
    parser.add_argument("--mode", choices=("pinned", "free", "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="small and short: to see that it runs, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md and its charts")
    parser.add_argument("--results", type=Path, nargs="+", metavar="FILE", help="measure nothing: read such JSON files")
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.what if name not in MEASURES]:
        parser.error(f"not one of {', '.join(MEASURES)}: {' '.join(unknown)}")
    return asked


def _keys(text: str) -> list[str]:
    keys = [key for key in text.split(",") if key]
    if unknown := [key for key in keys if key not in KEYS]:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(KEYS)}: {' '.join(unknown)}")
    return keys


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
