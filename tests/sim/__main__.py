"""`python -m tests.sim SEED`: one run, the same each time. Without a seed: random ones, for `--minutes`."""

from __future__ import annotations

import argparse
import sys
import time
from random import SystemRandom

from .run import Simulation
from .trace import Violation


def main() -> int:
    parser = argparse.ArgumentParser(prog="sim", description="Simulates a cluster on a virtual clock.")
    parser.add_argument("seed", nargs="?", type=int, help="replays this run; without it, random ones")
    parser.add_argument("--steps", type=int, help="acts of users (default: by the seed)")
    parser.add_argument("--workers", type=int, help="workers at the start (default: by the seed)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long random runs go on (default: 1)")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every event as it happens")
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    seeds = 0
    while seeds == 0 or (options.seed is None and time.monotonic() < end):
        seed = SystemRandom().randrange(10**9) if options.seed is None else options.seed
        seeds += 1
        simulation = Simulation(seed, steps=options.steps, workers=options.workers, is_verbose=options.verbose)
        try:
            simulation.run()
        except Violation as violation:
            print(violation)
            return 1
        _report(seed, simulation)
    return 0


def _report(seed: int, simulation: Simulation) -> None:
    checks, ledger = simulation.cluster.checks, simulation.ledger
    changes = sum(history.seq for history in checks.histories.values())
    outcomes: dict[str, int] = {}
    for entry in ledger.entries.values():
        outcomes[entry.outcome] = outcomes.get(entry.outcome, 0) + 1
    told = ", ".join(f"{count} {name or 'unheard'}" for name, count in sorted(outcomes.items()))
    print(f"seed {seed}: {len(checks.histories)} brokers, {len(simulation.users)} workers, {changes} changes; {told}")


if __name__ == "__main__":
    sys.exit(main())
