"""What processes do to the workers in them: fork, end, raise, interrupt, close the loop, set the clock.

A clear error or no effect; no hang, no leak.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from iii_zmq import AsyncWorker, Closed, Worker
from tests.fault.programs import PATIENCE_S, program, run, until
from tests.net.brokers import RunningBroker, running_broker

pytestmark = [pytest.mark.net, pytest.mark.fault]


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def url(broker: RunningBroker) -> str:
    return broker.url


# -- signals of `run()` ------------------------------------------------------------------------------------------------

TWO_RUNS = """
    import asyncio, signal, sys
    from iii_zmq import AsyncWorker

    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def main():
        found = handlers()
        workers = [AsyncWorker(name, sys.argv[1]) for name in ("one", "two")]
        for worker in workers:
            worker.on_state(lambda state: state == "connected" and print(state, flush=True))
        runs = [asyncio.ensure_future(worker.run()) for worker in workers]
        if sys.argv[2] == "one is closed":
            while workers[0].state != "connected":
                await asyncio.sleep(0.01)
            await workers[0].close()
            await runs[0]
        await asyncio.gather(*runs)
        print([worker.state for worker in workers], found == handlers())

    asyncio.run(main())
    print("after", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("story", ["both run", "one is closed"])
def test_a_signal_ends_every_run_of_a_loop_and_the_handlers_are_put_back(url: str, number: int, story: str) -> None:
    """The second `run()` took the first one's handler away, and the first to end took the second one's."""
    with program(TWO_RUNS, url, story) as runner:
        runner.expect("connected", "connected")
        with Worker("watcher", url) as watcher:
            names = {"both run": ["one", "two"], "one is closed": ["two"]}[story]
            until(lambda: sorted(one.name for one in watcher.workers.values() if one.name != "watcher") == names)
        runner.signal(number)
        done = runner.finish()
    assert done.err == ""
    assert done.out.splitlines()[2:] == ["['closed', 'closed'] True", "after True"]


def test_a_run_leaves_the_users_own_signal_handlers_alone(url: str) -> None:
    code = """
        import asyncio, signal, sys
        from iii_zmq import AsyncWorker

        async def main():
            worker = AsyncWorker("guest", sys.argv[1])
            worker.on_state(lambda state: print(state, flush=True))
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, lambda: print("mine", flush=True))
            running = asyncio.ensure_future(worker.run())
            await loop.run_in_executor(None, sys.stdin.readline)
            print(worker.state)
            await worker.close()
            await running

        asyncio.run(main())
    """
    with program(code, url) as guest:
        guest.expect("connecting", "connected")
        guest.signal(signal.SIGTERM)
        guest.expect("mine")
        guest.say("go on")
        assert (guest.finish().code, guest.line(), guest.line()) == (0, "connected", "closed")


def test_a_run_that_is_cancelled_closes_its_worker(url: str) -> None:
    code = """
        import asyncio, sys
        from iii_zmq import AsyncWorker

        async def main():
            worker = AsyncWorker("cancelled", sys.argv[1])
            connected = asyncio.Event()
            worker.on_state(lambda state: state == "connected" and connected.set())
            running = asyncio.ensure_future(worker.run())
            await connected.wait()
            running.cancel()
            await asyncio.wait([running])
            print(running.cancelled(), worker.state, len(asyncio.all_tasks()))

        asyncio.run(main())
    """
    done = run(code, url)
    assert (done.out, done.err) == ("True closed 1\n", "")


# -- closed while it joins ---------------------------------------------------------------------------------------------

NOBODY = "tcp://127.0.0.1:9"


def test_a_start_that_waits_for_its_broker_ends_when_another_thread_closes_the_worker() -> None:
    """`close()` found nothing to close yet, and the start waited for ever."""
    worker = Worker("patient", NOBODY, retry=True)
    connecting = threading.Event()
    worker.on_state(lambda _: connecting.set())
    raised: list[BaseException] = []

    def start() -> None:
        try:
            worker.start()
        except Closed as error:
            raised.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    assert connecting.wait(PATIENCE_S)
    worker.close()
    starting.join(PATIENCE_S)
    assert (starting.is_alive(), [str(error) for error in raised]) == (False, ["the worker was closed"])


def test_a_start_that_waits_for_its_broker_ends_when_another_task_closes_the_worker() -> None:
    async def main() -> None:
        worker = AsyncWorker("patient", NOBODY, retry=True)
        connecting = asyncio.Event()
        worker.on_state(lambda _: connecting.set())
        starting = asyncio.ensure_future(worker.start())
        await connecting.wait()
        await worker.close()
        with pytest.raises(Closed, match="the worker was closed"):
            await asyncio.wait_for(starting, PATIENCE_S)

    asyncio.run(main())


def test_a_worker_that_a_callback_closes_as_soon_as_it_is_connected_stays_closed(url: str) -> None:
    """The state is told before `run()` holds what it could close: it served for ever."""
    worker = Worker("fleeting", url)
    worker.on_state(lambda state: state == "connected" and worker.close())
    running = threading.Thread(target=worker.run)
    running.start()
    running.join(PATIENCE_S)
    assert (running.is_alive(), worker.state) == (False, "closed")


def test_an_async_worker_that_a_callback_closes_as_soon_as_it_is_connected_stays_closed(url: str) -> None:
    async def main() -> None:
        worker = AsyncWorker("fleeting", url)
        worker.on_state(lambda state: worker.close() if state == "connected" else None)
        await asyncio.wait_for(worker.run(), PATIENCE_S)
        assert worker.state == "closed"

    asyncio.run(main())
