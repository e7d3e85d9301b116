"""The checker: reads the records that a soak left in a directory, and says whether every promise was kept.

    python -m tests.soak.check DIR      exit status 0: all kept; 1: at least one was broken; 2: no records there

It knows nothing but what is written: no process, no socket, and nothing of iii_zmq.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .records import read
from .rules.calls import Calls
from .rules.log import Log
from .rules.processes import Processes
from .rules.registrations import Registrations
from .rules.streams import Stream
from .rules.verdict import RULES, Verdict

SHOWN_MAX = 5  # offences of one rule that are printed in full


def check(directory: Path) -> Verdict:
    """The verdict on what is recorded there."""
    return _check(directory)[0]


def _check(directory: Path) -> tuple[Verdict, Processes]:
    verdict = Verdict()
    processes = Processes(verdict)
    processes.read(read(directory / "director.jsonl"))
    log = Log(verdict)
    for path in sorted(directory.glob("broker.*.jsonl"), key=lambda path: int(path.stem.split(".")[1])):
        log.read(read(path))
    calls, registrations = Calls(log, verdict), Registrations(log, verdict)
    for path in sorted(directory.glob("host.*.jsonl")):
        _read_host(path, log, calls, registrations, verdict, path.stem in processes.killed)
    calls.end(processes.killed)
    registrations.end(processes.workers)
    return verdict, processes


def _read_host(
    path: Path, log: Log, calls: Calls, registrations: Registrations, verdict: Verdict, was_killed: bool
) -> None:
    streams: dict[str, Stream] = {}
    for record in read(path):
        what = record["what"]
        if what == "heard":
            streams[record["worker"]].heard(record)
        elif what in ("calling", "sending"):
            calls.calling(path.stem, record)
        elif what == "ended_call":
            calls.ended(record)
        elif what == "running":
            calls.running(record)
        elif what in ("registering", "registered", "refused", "unregistering", "unregistered"):
            getattr(registrations, what)(record)
        elif what == "state":
            verdict.counts["changes of a worker's state"] += 1
        elif what == "trouble":
            verdict.offend("no accident", f"{record['worker']}: {record['text']}", record)
        elif what == "standing":
            streams[record["worker"]].level(record)
        elif what in ("joining", "joined", "level"):
            stream = streams.setdefault(record["worker"], Stream(record["worker"], log, verdict))
            getattr(registrations, what)(record)
            if what != "joining":
                getattr(stream, what)(record)
    for stream in streams.values():
        stream.end(was_killed=was_killed)
    verdict.counts["workers and observers"] += len(streams)


# -- printing ----------------------------------------------------------------------------------------------------------


def _print(verdict: Verdict, seed: int | None) -> None:
    print("\ncounts")
    for name, count in sorted(verdict.counts.items()):
        print(f"  {count:>10,}  {name}")
    print("\nfailures of calls, by fate and code")
    for (fate, code), count in sorted(verdict.failures.items()):
        print(f"  {count:>10,}  {fate}  {code}")
    print("\nfaults")
    for kind, count in sorted(verdict.faults.items()):
        print(f"  {count:>10,}  {kind}")
    print("\nverdict")
    for rule, text in RULES.items():
        broken = sum(offence.rule == rule for offence in verdict.offences)
        print(f"  {'kept' if not broken else f'BROKEN {broken:,} times':<10}  {rule}: {text}")
    for rule in RULES:
        _print_offences(rule, verdict)
    if verdict.offences:
        print(f"\nBROKEN: {', '.join(sorted(verdict.broken))}; seed {seed}")
    else:
        print(f"\nevery promise was kept; seed {seed}")


def _print_offences(rule: str, verdict: Verdict) -> None:
    for offence in [offence for offence in verdict.offences if offence.rule == rule][:SHOWN_MAX]:
        print(f"\n{rule}: {offence.text}")
        for record in offence.records:
            print(f"  {json.dumps(record)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak check", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    directory: Path = parser.parse_args().directory
    if not (directory / "director.jsonl").exists():
        print(f"soak: {directory} holds no records", file=sys.stderr)
        return 2
    verdict, processes = _check(directory)
    _print(verdict, processes.seed)
    return 1 if verdict.offences else 0


if __name__ == "__main__":
    sys.exit(main())
