"""Runs of the simulator: a fixed set of seeds, and a few new ones each time. A failure shows how to replay it."""

from __future__ import annotations

from collections import Counter
from random import SystemRandom

import pytest

from iii_zmq.core.broker import calls, queues, session, unread
from tests.sim.faults import SLACK_S
from tests.sim.run import Simulation

SEEDS, NEW_SEEDS = 60, 10
QUICK_SEEDS, QUICK_NEW_SEEDS = 12, 3  # without the slow tests


def seeds(count: int, quick: int) -> list[object]:
    """So many numbers, from 1 on, of which those beyond the quick ones are slow."""
    return [*range(1, quick + 1), *(pytest.param(one, marks=pytest.mark.slow) for one in range(quick + 1, count + 1))]


@pytest.mark.parametrize("seed", seeds(SEEDS, QUICK_SEEDS))
def test_the_promises_hold(seed: int) -> None:
    Simulation(seed).run()


@pytest.mark.parametrize("index", seeds(NEW_SEEDS, QUICK_NEW_SEEDS))
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


# -- what must cost nothing --------------------------------------------------------------------------------------------


def syncs(life: Simulation) -> int:
    """How often the broker was asked for what somebody missed."""
    broker = life.cluster.broker
    assert broker is not None
    return sum(count for name, count in broker.core.counters.items() if name.startswith("syncs_"))


def calm(seed: int) -> Simulation:
    """A life without faults, with many changes."""
    life = Simulation(seed, steps=200, workers=5)
    life.climate.fault_every_s = 1e9
    life.climate.step_s = 0.02
    return life


def test_without_faults_nobody_asks_twice() -> None:
    life = calm(1)
    life.live()
    assert syncs(life) == 0


def test_doubled_messages_are_ignored() -> None:
    life = calm(2)
    life.begin()
    for worker in life.cluster.workers.values():
        worker.path.doubled = 1.0
    life.live()
    assert syncs(life) == 0


def test_who_joins_amid_changes_need_not_ask_again() -> None:
    """Deltas overtake the snapshot, which comes in many parts over a slow way: they are held back."""
    life = calm(3)
    life.climate.part_bytes_max = 300
    with life.climate.applied():
        life.begin()
        for worker in life.cluster.workers.values():
            worker.path.slow_s = 0.02
        life.live()
    assert syncs(life) == 0


# -- what is promised from the first moment on -------------------------------------------------------------------------


def test_a_worker_that_is_stopped_as_soon_as_it_joined_is_missed() -> None:
    """Its libzmq has sent no PING yet, and so the broker's has no TTL for it: only the broker's own PINGs find it."""
    life = calm(4)
    life.begin()
    clock, workers = life.cluster.clock, list(life.cluster.workers.values())
    while any(worker.core.membership.phase != "open" for worker in workers if not worker.stopped):
        clock.run_for(0.001)
        for worker in workers:
            if worker.core.membership.phase == "open" and not worker.stopped:
                worker.stop()
    clock.run_for(life.climate.ttl_s + life.climate.heartbeat_s + SLACK_S)
    broker = life.cluster.broker
    assert broker is not None
    assert broker.core.registry.workers == {}


# -- where bytes are scarce --------------------------------------------------------------------------------------------

SCARCE = (
    (session, "IN_FLIGHT_BYTES_MAX", 100_000),
    (calls, "IN_FLIGHT_BYTES_MAX", 100_000),
    (calls, "LARGE_BYTES_MAX", 300_000),
    (queues, "QUEUED_BYTES_MAX", 200_000),
    (unread, "UNREAD_BYTES_MAX", 100_000),
)


def test_the_promises_hold_where_bytes_are_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second call takes most of a limit: calls wait, are refused, or lose a result. Each has its one outcome."""
    for module, name, value in SCARCE:
        monkeypatch.setattr(module, name, value)
    reached: Counter[str] = Counter()
    for seed in (2, 3, 5):
        life = Simulation(seed)
        life.climate.large_share = 0.5
        life.run()
        assert life.cluster.broker is not None
        reached += life.cluster.broker.core.counters
    assert min(reached[name] for name in ("saturated", "calls_queued", "calls_busy", "results_unread")) > 0
