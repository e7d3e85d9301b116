"""The broker is killed, then told to end, and comes back each time: a hundred workers find it again by themselves.

The story is played once, for all tests here: five processes with twenty workers each, every one with a call in flight
that does not end and with others all the time. Two restarts, by SIGKILL and by SIGTERM; then each test looks at one
promise.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import zmq

from iii_zmq import CallFailed, Worker
from iii_zmq.io import sockets
from tests.fault.crew import WORKERS, Records, crews, functions
from tests.net.brokers import free_url, running_broker

pytestmark = [pytest.mark.fault, pytest.mark.slow]

CREWS = 5
PATIENCE_S = 30.0  # for what is promised within 1 s, on a machine that has nothing else to do
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(slots=True)
class Restart:
    """What was seen of one, past the crews."""

    ended_at: float  # the signal was sent
    listens_at: float
    callable_s: float  # from then until every function had answered
    epochs: tuple[str, str]
    rows: list[tuple[str, str]]  # (worker's name, function), of each provider
    status: dict[str, Any]


@dataclass(slots=True)
class Story:
    restarts: list[Restart]
    records: Records


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    url = free_url()
    restarts: list[Restart] = []
    broker = running_broker(url=url)
    process = broker.__enter__().process
    try:
        with crews(url, CREWS) as all_crews, Worker("watcher", url, observer=True, retry=True) as watcher:
            all_crews.joined()
            for number in SIGNALS:
                all_can_be_called(watcher)
                all_slow_calls_are_in_flight(watcher)
                epoch = watcher.position.epoch
                ended_at = time.monotonic()
                process.send_signal(number)
                process.wait(PATIENCE_S)
                broker.__exit__(None, None, None)
                broker = running_broker(url=url)
                process = broker.__enter__().process
                restarts.append(see(watcher, epoch, ended_at, time.monotonic()))
            yield Story(restarts, all_crews.records())
    finally:
        broker.__exit__(None, None, None)


def see(watcher: Worker, epoch: str, ended_at: float, listens_at: float) -> Restart:
    until = listens_at + PATIENCE_S
    while watcher.position.epoch == epoch or len(watcher.functions) < len(functions(CREWS)):
        assert time.monotonic() < until, f"{len(watcher.functions)} functions are back"
        time.sleep(0.002)
    print(f"all functions had their provider {time.monotonic() - listens_at:.3f} s after the broker was back")
    all_can_be_called(watcher)
    callable_s = time.monotonic() - listens_at
    status = watcher.call("engine::status")
    rows = [(provider.worker_name, one.id) for one in watcher.functions.values() for provider in one.providers]
    print(f"all functions answered {callable_s:.3f} s after the broker was back")
    return Restart(ended_at, listens_at, callable_s, (epoch, watcher.position.epoch), rows, status)


def all_can_be_called(watcher: Worker) -> None:
    """Each function but the slow ones has answered; those are there."""
    until = time.monotonic() + PATIENCE_S
    names = functions(CREWS)

    def answers(name: str) -> None:
        while True:
            try:
                assert watcher.call(name, "there?", timeout=PATIENCE_S) == "there?"
                return
            except CallFailed:
                assert time.monotonic() < until, f"{name} can't be called"
                time.sleep(0.005)

    watcher.wait_for(*names, timeout=PATIENCE_S)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(answers, [name for name in names if not name.endswith("slow")]))


def all_slow_calls_are_in_flight(watcher: Worker) -> None:
    """Each worker has one; who met no provider yet tries again. Quick calls are in flight too, but not all the time."""
    until = time.monotonic() + PATIENCE_S
    in_a_row = 0
    while in_a_row < 30:
        assert time.monotonic() < until
        in_a_row = in_a_row + 1 if watcher.call("engine::status")["in_flight"] >= CREWS * WORKERS else 0
        time.sleep(0.005)


def lost_by(story: Story, restart: Restart) -> list[tuple[str, str, float, float, str]]:
    """Calls that were open when the broker ended."""
    return [call for call in story.records.calls if call[2] < restart.ended_at < call[3]]


both = pytest.mark.parametrize("which", range(len(SIGNALS)), ids=[number.name for number in SIGNALS])


@both
def test_every_function_can_be_called_again(story: Story, which: int) -> None:
    assert story.restarts[which].callable_s < PATIENCE_S


@both
def test_there_is_a_new_epoch_and_no_row_twice(story: Story, which: int) -> None:
    before, after = story.restarts[which].epochs
    assert before != after
    assert len({epoch for restart in story.restarts for epoch in restart.epochs}) == len(SIGNALS) + 1
    names = {name: f"crew{name.split('::')[1]}.{name.split('::')[2]}" for name in functions(CREWS)}
    assert sorted(story.restarts[which].rows) == sorted((worker, name) for name, worker in names.items())


@both
def test_each_worker_joined_and_registered_once(story: Story, which: int) -> None:
    """Nobody came twice, and nothing that was said to the broker before reached this one."""
    status = story.restarts[which].status
    counters = status["counters"]
    workers = CREWS * WORKERS
    assert (status["workers"], status["sessions"]) == (workers, workers + 1)
    assert (counters["joined"], counters["registered"]) == (workers + 1, len(functions(CREWS)))
    assert {name: counters[name] for name in counters if name.startswith("left_") and counters[name]} == {}
    assert counters["results_unmatched"] == counters["forged"] == 0


@both
def test_calls_in_flight_fail_at_once_with_their_fate(story: Story, which: int) -> None:
    restart = story.restarts[which]
    lost = lost_by(story, restart)
    slow = [call for call in lost if call[1].endswith("slow")]
    assert len(slow) == CREWS * WORKERS
    assert Counter(outcome for *_, outcome in slow) == {"broker_lost, possibly_executed": len(slow)}
    latest = max(ended for _, _, _, ended, _ in slow)
    print(f"failed at the latest {latest - restart.ended_at:.3f} s after the signal")
    assert latest < restart.listens_at  # a start of Python later: nobody waits for the next broker to be told


def test_every_call_has_one_outcome_and_ran_at_most_once(story: Story) -> None:
    outcomes = {call_id: outcome for call_id, *_, outcome in story.records.calls}
    assert len(outcomes) == len(story.records.calls)
    assert not {outcome for outcome in outcomes.values() if outcome.startswith("answered with") or "(" in outcome}
    ran = Counter(call_id for call_id, _ in story.records.executed if call_id in outcomes)
    assert {call_id for call_id, times in ran.items() if times > 1} == set()
    assert {call_id for call_id in ran if "not_handed_over" in outcomes[call_id]} == set()
    assert {one for one, outcome in outcomes.items() if outcome == "answered"} <= set(ran)


def test_nothing_stale_is_replayed(story: Story) -> None:
    """A call that failed with its broker begins to run at no provider once the next broker is there."""
    ran_at = dict(story.records.executed)
    for restart in story.restarts:
        lost = [call for call in lost_by(story, restart) if "broker_lost" in call[4]]
        assert len(lost) >= CREWS * WORKERS
        assert [call for call in lost if ran_at.get(call[0], 0.0) > restart.listens_at] == []


def test_what_one_broker_left_unread_is_not_sent_to_the_next() -> None:
    """Even if a worker is stuck, so that libzmq connects again by itself: a DEALER without IMMEDIATE would send it."""
    with zmq.Context() as context, sockets.dealer(context, 0, 0) as dealer:
        dealer.linger = 0
        with zmq.Context() as broken, broken.socket(zmq.ROUTER) as unread:
            unread.linger = 0
            unread.rcvhwm = 1
            unread.bind(url := free_url())
            dealer.connect(url)
            assert dealer.poll(int(PATIENCE_S * 1000), zmq.POLLOUT)
            for _ in range(500):
                dealer.send(b"stale" * 10_000, zmq.NOBLOCK)
        with context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(url)
            until = time.monotonic() + PATIENCE_S
            while not router.poll(20):  # what goes into the old connection, before that is seen to be over, is lost
                assert time.monotonic() < until
                if dealer.poll(0, zmq.POLLOUT):
                    dealer.send(b"fresh", zmq.NOBLOCK)
            assert router.recv_multipart()[1][:5] == b"fresh"
