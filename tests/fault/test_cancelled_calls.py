"""Calls that are cancelled before their handler had a chance to begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from iii_zmq import AsyncWorker, CallTimeout, Worker
from tests.net.brokers import RunningBroker, running_broker

pytestmark = [pytest.mark.net, pytest.mark.fault]

PATIENCE_S = 5.0


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


def test_a_call_cancelled_before_its_task_began_frees_its_slot(broker: RunningBroker) -> None:
    """1. A worker's loop is busy for a moment. 2. A call comes, its time is over, and Cancel comes after it. 3. The
    loop reads both in one turn: the task is cancelled before its first step, so that nothing in it ever runs, not even
    a `finally`. The broker got no answer, and the slot was taken for good: the only one of this worker.
    """
    ran = []

    async def late(payload: Any) -> Any:
        ran.append(payload)
        return payload

    async def main() -> None:
        worker = AsyncWorker("busy", broker.url, credit=1)
        worker.function("busy::late")(late)
        async with worker:
            with Worker("caller", broker.url) as caller:
                block_until_failed(caller.submit("busy::late", 1, timeout=0.05))
                assert await worker.call("busy::late", 2, timeout=PATIENCE_S) == 2

    asyncio.run(main())
    assert ran == [2]


def block_until_failed(future: Any) -> None:
    """Blocks the loop until the call has failed, and a moment longer, for its Cancel to arrive."""
    with pytest.raises(CallTimeout):
        future.result(PATIENCE_S)
    time.sleep(0.1)  # should Cancel come later still, the handler is merely cancelled once it has begun
