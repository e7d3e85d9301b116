"""bin/soak: a cluster of real processes under random faults, and the verdict on what they wrote down."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from random import SystemRandom
from types import FrameType

from tests.net.brokers import ROOT, environment

from .director import TTL_S, Director
from .faults import WEIGHTS


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    directory: Path = options.keep or Path(tempfile.mkdtemp(prefix="iii-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob("*.jsonl")):
        print(f"soak: {directory} holds the records of another run", file=sys.stderr)
        return 2
    seed = SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"seed {seed}, {options.workers} workers, {options.seconds:g} s, records in {directory}", flush=True)
    director = Director(
        directory,
        seed=seed,
        seconds=options.seconds,
        workers=options.workers,
        ttl_s=options.ttl,
        only=options.only,
        in_one_process=options.one_process,
    )
    try:
        director.run()
    finally:
        director.close()
    command = [sys.executable, "-m", "tests.soak.check", str(directory)]
    status = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    if options.keep is None and status == 0:
        shutil.rmtree(directory)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, epilog="Exit status: 0 when every promise was kept, 1 when one was broken."
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults go on (default: 600)")
    parser.add_argument("--seed", type=int, help="which faults come and what workers do, but not when (default: any)")
    parser.add_argument("--workers", type=int, default=50, help="five a process (default: 50)")
    parser.add_argument("--ttl", type=float, default=TTL_S, help=f"of the broker, in seconds (default: {TTL_S:g})")
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=WEIGHTS, help=f"of {', '.join(WEIGHTS)}")
    parser.add_argument(
        "--one-process",
        action="store_true",
        help="all workers in one process, as sync Workers behind one pair of links",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the records there (default: only on a failure)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
