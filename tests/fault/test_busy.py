"""Busy is not dead: whose Python is stuck is shown as stalled, passed over while another can serve, and not dropped.

It is stuck for longer than the TTL, so that only its connections, which libzmq's own threads keep alive, tell that it
lives. For as long as one likes, with the broker's usual times, by hand: III_BUSY_S=20.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fault.crews import Watcher, ask, crew, eventually, watching
from tests.fault.programs import PATIENCE_S, until
from tests.net.brokers import RunningBroker, running_broker

pytestmark = [pytest.mark.net, pytest.mark.fault]

TTL_S = 1.5
BUSY_S = float(os.environ.get("III_BUSY_S", 2 * TTL_S))
TIMES = ("--heartbeat", "0.4", "--ttl", str(TTL_S)) if BUSY_S < 20 else ()
CALL_S = BUSY_S + PATIENCE_S
CALLS = 20

# What keeps a worker's Python from running: a handler that keeps the GIL, in a thread of the pool; and one that waits
# in the worker's own thread. Each is stuck until somebody opens the pipe whose name it is given.
MANNERS = {"gil": {"functions": {"gil::work": "hold"}}, "inline": {"functions": {"inline::work": "wait"}, "threads": 0}}


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with running_broker(*TIMES) as served:
        yield served


@pytest.fixture
def watcher(broker: RunningBroker) -> Iterator[Watcher]:
    with watching(broker.url) as one:
        yield one


def release(pipe: Path) -> None:
    """Whoever is stuck in opening it goes on."""

    def is_read() -> bool:
        try:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it yet
                raise
            return False
        return True

    until(is_read)


def test_busy_workers_are_shown_as_stalled_and_passed_over_and_stay(
    broker: RunningBroker, watcher: Watcher, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        stack.callback(watcher.close)  # first of all, so that nothing waits for a call that nobody will answer
        idle = stack.enter_context(crew(broker.url, {"name": "idle", "functions": {"shared::who": "name"}}))
        busy = {}
        for name, plan in MANNERS.items():
            functions = {**plan["functions"], "shared::who": "name", f"{name}::echo": "echo"}
            busy[name] = stack.enter_context(crew(broker.url, {**plan, "name": name, "functions": functions}))
        eventually(lambda: len(watcher.worker.functions["shared::who"].providers), 3)
        ids = {name: watcher.id_of(name) for name in busy}
        pipes = {name: tmp_path / name for name in busy}
        for pipe in pipes.values():
            os.mkfifo(pipe)
        began = time.monotonic()
        works = [watcher.worker.submit(f"{name}::work", str(pipes[name]), timeout=CALL_S) for name in busy]

        # shown as stalled, to everybody
        eventually(lambda: [watcher.state_of(name) for name in busy], ["stalled"] * 2)
        eventually(lambda: [ask(idle)[0]["states"][worker_id] for worker_id in ids.values()], ["stalled"] * 2)
        # passed over while another can serve; what nobody else can serve waits
        waiting = [watcher.worker.submit(f"{name}::echo", name, timeout=CALL_S) for name in busy]
        assert [watcher.worker.call("shared::who") for _ in range(CALLS)] == ["idle"] * CALLS
        # not dropped
        time.sleep(max(0.0, began + BUSY_S - time.monotonic()))
        assert [watcher.state_of(name) for name in busy] == ["stalled"] * 2
        assert not any(call.done() for call in works + waiting)

        for pipe in pipes.values():
            release(pipe)
        assert [call.result(CALL_S) for call in works + waiting] == [*map(str, pipes.values()), *busy]
        # and back to normal
        eventually(lambda: [watcher.state_of(name) for name in busy], ["ready"] * 2)
        eventually(lambda: {watcher.worker.call("shared::who") for _ in range(CALLS)}, {"idle", *busy})
        assert {name: watcher.id_of(name) for name in busy} == ids
        assert watcher.reasons() == []
        assert watcher.counters("left_died", "left_silent", "left_replaced") == [0, 0, 0]
