"""What a worker registers and unregisters while it is still joining: its broker may be long in coming."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from iii_zmq import AsyncWorker, NoProvider, Worker
from tests.net.brokers import free_url, running_broker

pytestmark = [pytest.mark.net, pytest.mark.fault]

PATIENCE_S = 10.0


async def echo(payload: Any) -> Any:
    return payload


def plain_echo(payload: Any) -> Any:
    return payload


def joining_meanwhile(act: Callable[[AsyncWorker], Any], then: Callable[[Worker, AsyncWorker], None]) -> None:
    """A worker that offers `early::echo` waits for its broker, and does something; then the broker comes."""

    async def main() -> None:
        url = free_url()
        worker = AsyncWorker("late", url, retry=True)
        worker.function("early::echo")(echo)
        start = asyncio.ensure_future(worker.start())
        while worker.state != "connecting":
            await asyncio.sleep(0)
        acting = asyncio.ensure_future(act(worker))
        await asyncio.sleep(0)
        with running_broker(url=url):
            await asyncio.wait_for(asyncio.gather(start, acting), PATIENCE_S)
            with Worker("other", url) as other:
                await asyncio.get_running_loop().run_in_executor(None, then, other, worker)
            await worker.close()

    asyncio.run(main())


def test_what_is_registered_meanwhile_is_offered() -> None:
    """It was recorded, as before a start, but the start had told the broker already what there was."""

    def then(other: Worker, worker: AsyncWorker) -> None:
        assert other.call("late::echo", 1, timeout=PATIENCE_S) == 1

    joining_meanwhile(lambda worker: worker.register("late::echo", echo), then)


def test_what_is_unregistered_meanwhile_is_not_offered() -> None:
    def then(other: Worker, worker: AsyncWorker) -> None:
        assert "early::echo" not in other.functions
        with pytest.raises(NoProvider):
            other.call("early::echo", 1, timeout=PATIENCE_S)

    joining_meanwhile(lambda worker: worker.unregister("early::echo"), then)


def test_what_a_thread_unregisters_meanwhile_is_not_offered() -> None:
    url = free_url()
    worker = Worker("late", url, retry=True)
    worker.register("early::echo", plain_echo)
    is_connecting = threading.Event()
    worker.on_state(lambda state: is_connecting.set())
    start = threading.Thread(target=worker.start, daemon=True)
    start.start()
    assert is_connecting.wait(PATIENCE_S)
    unregister = threading.Thread(target=worker.unregister, args=("early::echo",), daemon=True)
    unregister.start()
    with running_broker(url=url):
        start.join(PATIENCE_S)
        unregister.join(PATIENCE_S)
        with Worker("other", url) as other:
            assert "early::echo" not in other.functions
        worker.close()


def test_a_callback_of_the_start_itself_may_register() -> None:
    """The thread that joins runs the callback, and held a lock that registering wants: it waited for itself."""
    with running_broker() as broker:
        worker = Worker("eager", broker.url)

        def register(state: str) -> None:
            if state == "connected":
                worker.register("eager::echo", plain_echo)

        worker.on_state(register)
        start = threading.Thread(target=worker.start, daemon=True)  # so that a hang is a failure, and not a hang
        start.start()
        start.join(PATIENCE_S)
        assert not start.is_alive()
        with Worker("other", broker.url) as other:
            assert other.call("eager::echo", 1, timeout=PATIENCE_S) == 1
        worker.close()
