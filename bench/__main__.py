"""`python -m bench`: which benchmarks, in which mode, in which order.

Exit status 0 when everything ran, whatever the figures; 1 when something broke.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import calls, detection, report, scenarios, stream
from bench.settings import Settings

BENCHMARKS: dict[str, Callable[[Settings], Iterator[report.Section]]] = {
    "call": calls.call,
    "fanout": stream.fanout,
    "join": stream.join,
    "crowd": scenarios.crowd,
    "silence": scenarios.silence,
    "detect": detection.detect,
    "churn": scenarios.churn,
}
WITH_FLOORS = ("call", "fanout", "join")


EPILOG = """\
A figure is the median of rounds, with the lowest and the highest round in brackets. The rounds of a figure and of its
floor alternate, and the ratio is taken round by round: compare ratios, and only within a run. The first line says
whether the product is compiled (bin/compile) or plain Python; measure both by two runs.

`call` shows two tables for each mode. The first has the quickest case of the product beside bare ZeroMQ: a caller that
was never started (`with Worker(...)`) and a provider with threads=0. The second has the usual case beside the quickest
one: callers after start(), providers with threads=8, and both. There, a ratio of p50 of 1.3 means that a call takes
30 % longer than in the first table, and one of calls/s of 0.9 that 10 % fewer are made. The caller's CPU counts all
threads of its process: where it grows more than p50 does, threads hand over to each other."""


def main(argv: list[str]) -> int:
    if "--peers" in argv:
        from bench.peers import command

        return command.main([word for word in argv if word != "--peers"])
    asked = _parse(argv)
    modes = ("pinned", "free") if asked.mode == "both" else (asked.mode,)
    settings = Settings(modes, asked.quick, asked.floors, asked.seconds)
    names = asked.what or (WITH_FLOORS if asked.floors else tuple(BENCHMARKS))
    facts, sections, broken = report.machine(), [], False
    report.show_machine(facts)
    for name in names:
        try:
            for section in BENCHMARKS[name](settings):
                sections.append(section)
                report.show(section)
        except Exception:
            broken = True
            print(f"{name} broke:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    if asked.json:
        report.write_json(asked.json, facts, sections)
    return 1 if broken else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="iii_zmq beside bare ZeroMQ",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", action="store_true", help="beside NATS and others instead; see --peers --help")
    parser.add_argument("what", nargs="*", metavar="|".join(BENCHMARKS), help="default: all")
    parser.add_argument("--mode", choices=("pinned", "free", "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="shorter: not for quoting")
    parser.add_argument("--floors", action="store_true", help="bare pyzmq alone")
    parser.add_argument("--seconds", type=float, help="how long churn goes on (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    asked = parser.parse_args(argv)
    known = WITH_FLOORS if asked.floors else tuple(BENCHMARKS)
    if unknown := [name for name in asked.what if name not in known]:
        parser.error(f"not one of {', '.join(known)}: {' '.join(unknown)}")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
