"""Runs of the simulator: a fixed set of seeds, and a few new ones each time. A failure shows how to replay it."""

from __future__ import annotations

from random import SystemRandom

import pytest

from tests.sim.run import Simulation

SEEDS = range(1, 41)
NEW_SEEDS = 10


@pytest.mark.parametrize("seed", SEEDS)
def test_the_promises_hold(seed: int) -> None:
    Simulation(seed).run()


@pytest.mark.parametrize("index", range(NEW_SEEDS))
def test_the_promises_hold_in_a_life_nobody_has_seen(index: int) -> None:
    seed = SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    Simulation(seed).run()


def test_one_seed_is_one_life() -> None:
    lives = [Simulation(7, steps=60, workers=3) for _ in range(2)]
    for life in lives:
        life.run()
    one, other = lives
    assert one.cluster.trace.lines() == other.cluster.trace.lines()
