"""What processes do to the workers in them: fork, end, raise, interrupt, close the loop, set the clock.

A clear error or no effect; no hang, no leak.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iii_zmq import AsyncWorker, Closed, RemoteError, Worker
from tests.fault.programs import PATIENCE_S, QUICK, program, run, until
from tests.net.brokers import RunningBroker, environment, running_broker

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


# -- what handlers and callbacks raise ---------------------------------------------------------------------------------

RAISED = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


def raiser(kind: type[BaseException]) -> Callable[[Any], Any]:
    def handler(_: Any) -> None:
        raise kind("raised by the user")

    return handler


def async_raiser(kind: type[BaseException]) -> Callable[[Any], Any]:
    async def handler(_: Any) -> None:
        raise kind("raised by the user")

    return handler


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("threads", [0, 2])
def test_whatever_a_handler_raises_its_caller_is_told_and_the_worker_serves_on(
    url: str, threads: int, kind: type[BaseException]
) -> None:
    """A KeyboardInterrupt or GeneratorExit ended the thread, and kept the slot and the caller for ever."""
    provider = Worker("provider", url, threads=threads, credit=1)
    provider.register_many({"raise::it": raiser(kind), "raise::not": lambda payload: payload})
    provider.start()
    with Worker("caller", url) as caller:
        for _ in range(5):  # more than there are threads
            with pytest.raises(RemoteError) as raised:
                caller.call("raise::it", timeout=PATIENCE_S)
            assert (raised.value.type, raised.value.fate) == (kind.__name__, "executed")
        assert caller.call("raise::not", 1) == 1
    assert provider.drain(PATIENCE_S)


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("how", ["async def", "inline", "in a thread"])
def test_whatever_a_handler_raises_its_caller_is_told_and_the_async_worker_serves_on(
    url: str, how: str, kind: type[BaseException]
) -> None:
    """A GeneratorExit was told as `not_handed_over`, though the handler had run."""

    async def main() -> None:
        handler = (async_raiser if how == "async def" else raiser)(kind)
        provider = AsyncWorker("provider", url, threads=2 if how == "in a thread" else 0, credit=1)
        await provider.register_many({"araise::it": handler, "araise::not": lambda payload: payload})
        await provider.start()
        async with AsyncWorker("caller", url) as caller:
            for _ in range(5):
                with pytest.raises(RemoteError) as raised:
                    await caller.call("araise::it", timeout=PATIENCE_S)
                assert (raised.value.type, raised.value.fate) == (kind.__name__, "executed")
            assert await caller.call("araise::not", 1) == 1
        assert await provider.drain(PATIENCE_S)

    asyncio.run(main())


CTRL_C_IN_A_HANDLER = """
    import asyncio, signal, sys
    from iii_zmq import AsyncWorker, Worker

    def plain(_):
        raise KeyboardInterrupt

    async def awaiting(_):
        raise KeyboardInterrupt

    async def serve(handler):
        async with AsyncWorker("interrupted", sys.argv[1], threads=0) as worker:
            await worker.register("interrupt::me", handler)
            print("serving", flush=True)
            await asyncio.sleep(60)

    try:
        if sys.argv[2] == "sync":
            worker = Worker("interrupted", sys.argv[1], threads=0)
            worker.on_state(lambda state: state == "connected" and print("serving", flush=True))
            worker.register("interrupt::me", plain)
            worker.run()
        else:
            asyncio.run(serve(plain if sys.argv[2] == "inline" else awaiting))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("how", ["sync", "async def", "inline"])
def test_ctrl_c_in_a_handler_of_the_main_thread_ends_the_program_and_tells_the_caller(url: str, how: str) -> None:
    with program(CTRL_C_IN_A_HANDLER, url, how) as provider, Worker("caller", url) as caller:
        provider.expect("serving")
        with pytest.raises(RemoteError) as raised:
            caller.call("interrupt::me", timeout=PATIENCE_S)
        assert (raised.value.type, raised.value.fate) == ("KeyboardInterrupt", "executed")
        until(lambda: "interrupt::me" not in caller.functions)
        assert provider.finish().out == "serving\ninterrupted\n"


@pytest.mark.parametrize("kind", [*RAISED, ValueError])
def test_whatever_a_callback_raises_the_next_one_is_called(url: str, kind: type[BaseException]) -> None:
    """SystemExit in a callback ended the thread that serves, and with it the worker."""
    watcher = Worker("watcher", url)
    changes: list[str] = []
    states: list[str] = []
    watcher.on_change("call::*")(raiser(kind))
    watcher.on_change("call::*")(lambda change: changes.append(change.kind))
    if kind is not KeyboardInterrupt:  # that is Ctrl-C in the main thread, where the first states are told
        watcher.on_state(raiser(kind))
    watcher.on_state(states.append)
    watcher.start()
    released = threading.Event()
    with Worker("other", url) as other:
        other.register("call::back", lambda _: released.wait(PATIENCE_S))
        until(lambda: changes == ["function_added"])
        futures = [watcher.submit("call::back") for _ in range(2)]
        for future in futures:
            future.add_done_callback(raiser(kind))
        released.set()
        assert [future.result(PATIENCE_S) for future in futures] == [True, True]
    until(lambda: changes == ["function_added", "function_removed"])
    watcher.close()
    assert states == ["connecting", "connected", "closed"]


@pytest.mark.parametrize("kind", [SystemExit, ValueError])
def test_whatever_an_async_callback_raises_the_next_one_is_called(url: str, kind: type[BaseException]) -> None:
    async def main() -> None:
        watcher = AsyncWorker("watcher", url)
        changes: list[str] = []
        watcher.on_change("acall::*")(async_raiser(kind))
        watcher.on_change("acall::*")(raiser(kind))
        watcher.on_change("acall::*")(lambda change: changes.append(change.kind))
        async with watcher, AsyncWorker("other", url) as other:
            await other.register("acall::back", raiser(kind))
            await other.unregister("acall::back")
            assert await watcher.call("engine::ping", 1) == 1
            end = time.monotonic() + PATIENCE_S
            while changes != ["function_added", "function_removed"] and time.monotonic() < end:
                await asyncio.sleep(0.01)
        assert changes == ["function_added", "function_removed"]

    asyncio.run(main())


# -- fork --------------------------------------------------------------------------------------------------------------

FORK = """
    import multiprocessing, os, sys, threading
    from iii_zmq import Closed, Worker

    url, serving, leaving = sys.argv[1:]

    def uses(worker):
        return {
            "call": lambda: worker.call("fork::f"), "submit": lambda: worker.submit("fork::f"),
            "send": lambda: worker.send("fork::f"), "register": lambda: worker.register("fork::g", print),
            "register_many": lambda: worker.register_many({"fork::g": print}),
            "unregister": lambda: worker.unregister("fork::f"), "wait_for": lambda: worker.wait_for("fork::f"),
            "changes": lambda: next(worker.changes()), "start": worker.start, "run": worker.run,
            "drain": worker.drain, "with": worker.__enter__, "function": lambda: worker.function("fork::h")(print),
            "on_change": lambda: worker.on_change(print), "on_state": lambda: worker.on_state(print),
            "functions": lambda: len(worker.functions), "workers": lambda: len(worker.workers),
            "position": lambda: worker.position, "digest": lambda: worker.digest,
        } | ({"result": future.result, "exception": future.exception} if future else {})

    def child():
        wrong = []
        for name, use in uses(worker).items():
            try:
                wrong.append((name, use()))
            except Closed as error:
                if str(error) != "the worker belongs to the parent process: make a new one after fork":
                    wrong.append((name, error))
        worker.close()
        with Worker("child", url) as own:
            print("child", wrong, worker.state, own.call("engine::ping", 1), flush=True)

    release = threading.Event()
    future = None
    worker = Worker("parent", url)
    if serving == "a thread serves":
        worker.register_many({"fork::f": lambda payload: payload, "fork::held": lambda _: release.wait(60)})
    with worker:
        if serving == "a thread serves":
            future = worker.submit("fork::held")
            worker.call("fork::f")
        if leaving == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            status = process.exitcode
        else:
            pid = os.fork()
            if pid == 0:
                child()
                (os._exit if leaving == "_exit" else sys.exit)(0)
            status = os.waitpid(pid, 0)[1]
        release.set()
        answers = [worker.call("engine::ping", 2), future and future.result(20), future and worker.call("fork::f", 3)]
        print("parent", status, answers, worker.state, flush=True)
"""


@pytest.mark.parametrize("leaving", ["exit", "_exit", "multiprocessing"])
@pytest.mark.parametrize("serving", ["nobody serves", "a thread serves"])
def test_a_forks_child_is_told_at_each_use_and_the_parent_goes_on(url: str, serving: str, leaving: str) -> None:
    """Also what was submitted before is refused there: nobody would ever have answered it."""
    with Worker("watcher", url) as watcher:
        left: list[str] = []
        watcher.on_change(
            lambda change: change.kind == "worker_left" and left.append(f"{change.worker_name} {change.reason}")
        )
        done = run(FORK, url, serving, leaving)
        held = "[2, True, 3]" if serving == "a thread serves" else "[2, None, None]"
        assert (done.out.splitlines(), done.err) == (["child [] closed 1", f"parent 0 {held} connected"], "")
        until(lambda: len(left) == 2)
        assert left == ["child bye", "parent bye"]


ASYNC_FORK = """
    import asyncio, os, sys
    from iii_zmq import AsyncWorker, Closed, Worker

    async def in_child(worker):
        wrong = []
        for name, use in {
            "call": lambda: worker.call("afork::f"), "send": lambda: worker.send("afork::f"),
            "register": lambda: worker.register("afork::g", print), "unregister": lambda: worker.unregister("afork::f"),
            "wait_for": lambda: worker.wait_for("afork::f"), "start": worker.start, "run": worker.run,
            "drain": worker.drain, "changes": lambda: anext(worker.changes()),
        }.items():
            try:
                wrong.append((name, await use()))
            except Closed as error:
                if str(error) != "the worker belongs to the parent process: make a new one after fork":
                    wrong.append((name, error))
        for name in ("functions", "workers", "position", "digest"):
            try:
                wrong.append((name, getattr(worker, name)))
            except Closed:
                pass
        await worker.close()
        return wrong

    async def main():
        async with AsyncWorker("parent", sys.argv[1]) as worker:
            await worker.register("afork::f", lambda payload: payload)
            pid = os.fork()
            if pid == 0:  # its loop is the parent's: what is async goes on by hand
                try:
                    in_child(worker).send(None)
                except StopIteration as ended:
                    print("child", ended.value, worker.state, flush=True)
                os._exit(0)
            status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
            print("parent", status, await worker.call("afork::f", 2), worker.state, flush=True)

    asyncio.run(main())
"""


def test_the_child_of_an_async_workers_process_is_told_at_each_use_and_the_parent_goes_on(url: str) -> None:
    done = run(ASYNC_FORK, url)
    assert (done.out.splitlines(), done.err) == (["child [] closed", "parent 0 2 connected"], "")


FORKING_HANDLER = """
    import os, sys, time
    from iii_zmq import Worker

    def handler(leaving):
        pid = os.fork()
        if pid == 0:
            if leaving == "exits":
                sys.exit(3)
            if leaving == "raises":
                raise ValueError("in the child")
            return "from the child"
        until = time.monotonic() + 20
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < until, os.kill(pid, 9)
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1])

    worker = Worker("forking", sys.argv[1], threads=int(sys.argv[2]))
    worker.register("fork::handler", handler)
    worker.on_state(lambda state: state == "connected" and print("serving", flush=True))
    worker.run()
"""


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_child_that_leaves_its_parents_handler_ends(url: str, threads: str) -> None:
    """It went on as a worker: waiting for ever on a lock or a queue, with copies of the parent's sockets."""
    with program(FORKING_HANDLER, url, threads) as forking, Worker("caller", url) as caller:
        forking.expect("serving")
        codes = {leaving: caller.call("fork::handler", leaving) for leaving in ("returns", "exits", "raises")}
        forking.signal(signal.SIGTERM)
        done = forking.finish()
    assert codes == {"returns": 0, "exits": 3, "raises": 1}
    assert done.code == 0
    assert "ValueError: in the child" in done.err


def test_a_worker_made_before_a_fork_and_not_started_is_the_childs_own(url: str) -> None:
    """As servers do that load a program once and fork: each child has to show its own pid."""
    code = """
        import os, sys
        from iii_zmq import Worker
        worker = Worker("prefork", sys.argv[1])
        worker.register("prefork::pid", lambda _: os.getpid())
        children = []
        while len(children) < 3 and (pid := os.fork()):
            children.append(pid)
        if len(children) < 3:
            with worker:
                pid = worker.call("prefork::pid", worker=worker.id)
                print(worker.workers[worker.id].pid == os.getpid() == pid, flush=True)
            sys.exit(0)
        print([os.waitpid(pid, 0)[1] for pid in children], flush=True)
    """
    done = run(code, url)
    assert (sorted(done.out.splitlines()), done.err) == (["True", "True", "True", "[0, 0, 0]"], "")


def test_a_killed_parent_is_known_though_its_child_holds_its_connections() -> None:
    """The child has copies of the parent's sockets: nothing is closed when the parent dies. Its silence tells."""
    code = """
        import os, sys, time
        from iii_zmq import Worker
        worker = Worker("parent", sys.argv[1])
        worker.register("orphan::f", lambda payload: payload)
        worker.start()
        time.sleep(0.5)  # until its first ZMTP heartbeat the broker has no time limit for it
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
    """
    with (
        running_broker(*QUICK) as broker,
        Worker("watcher", broker.url) as watcher,
        program(code, broker.url) as parent,
    ):
        watcher.wait_for("orphan::f")
        child = int(parent.line())
        try:
            parent.kill()
            until(lambda: "orphan::f" not in watcher.functions)
        finally:
            os.kill(child, signal.SIGKILL)


def test_spawned_processes_have_workers_of_their_own_and_a_worker_can_not_be_sent_to_them(
    url: str, tmp_path: Path
) -> None:
    code = """
        import multiprocessing, pickle, sys
        from iii_zmq import Worker

        def child(url, number):
            with Worker(f"child-{number}", url) as worker:
                return worker.call("spawn::square", number)

        if __name__ == "__main__":
            with Worker("parent", sys.argv[1]) as worker:
                worker.register("spawn::square", lambda number: number * number)
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(pool.starmap(child, [(sys.argv[1], number) for number in range(4)]))
                    try:
                        pickle.dumps(worker)
                    except TypeError as error:
                        print(error)
                    pool.close()
                    pool.join()
    """
    script = tmp_path / "spawning.py"
    script.write_text(textwrap.dedent(code))
    words = [sys.executable, str(script), url]  # a file: what is spawned imports it
    done = subprocess.run(words, capture_output=True, text=True, timeout=3 * PATIENCE_S, env=environment())
    assert (done.stdout, done.stderr) == (
        "[0, 1, 4, 9]\nparent: a worker can't be sent to another process: make a new one there\n",
        "",
    )
