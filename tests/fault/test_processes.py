"""What processes do to the workers in them: fork, end, raise, interrupt, close the loop, set the clock.

A clear error or no effect; no hang, no leak.
"""

from __future__ import annotations

import ast
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

from iii_zmq import AsyncWorker, Closed, RemoteError, Worker, current_call
from tests.fault.programs import PATIENCE_S, QUICK, descriptors, memory_kib, program, run, until
from tests.net.brokers import ROOT, RunningBroker, environment, running_broker

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
    from iii_zmq import AsyncWorker

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
        asyncio.run(serve(plain if sys.argv[2] == "inline" else awaiting))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("how", ["async def", "inline"])
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
    import asyncio, os, sys, time
    from iii_zmq import AsyncWorker, Worker

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

    async def async_handler(leaving):
        return handler(leaving)

    kind = sys.argv[2]
    if kind == "async def":
        worker = AsyncWorker("forking", sys.argv[1])
        worker.function("fork::handler")(async_handler)
    else:
        worker = Worker("forking", sys.argv[1], threads=0 if kind == "inline" else 2)
        worker.register("fork::handler", handler)
    worker.on_state(lambda state: state == "connected" and print("serving", flush=True))
    asyncio.run(worker.run()) if kind == "async def" else worker.run()
"""


@pytest.mark.parametrize("kind", ["inline", "in a thread", "async def"])
def test_a_child_that_leaves_its_parents_handler_ends(url: str, kind: str) -> None:
    """It went on as a worker: waiting for ever on a lock or a queue, with copies of the parent's sockets."""
    with program(FORKING_HANDLER, url, kind) as forking, Worker("caller", url) as caller:
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
                said = f"{worker.workers[worker.id].pid == os.getpid() == pid}\\n"
            os.write(1, said.encode())  # in one piece: the three share their output
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


# -- event loops -------------------------------------------------------------------------------------------------------

LEFT_OPEN = """
    import asyncio, sys, time
    from iii_zmq import AsyncWorker, Closed, Worker

    url, how = sys.argv[1:]

    async def slow(_):
        await asyncio.sleep(60)

    async def start():
        worker = AsyncWorker("left open", url)
        await worker.register_many({"loop::slow": slow, "loop::echo": lambda payload: payload})
        await worker.start()
        if how == "asyncio.run, tasks pending":
            running = worker.submit("loop::slow", timeout=30)
            tasks = [worker.call("loop::slow"), worker.wait_for("never::comes"), anext(worker.changes("never::*"))]
            kept.extend(map(asyncio.ensure_future, tasks))
            await asyncio.sleep(0.1)
        return worker

    async def use(worker):
        uses = {"call": lambda: worker.call("loop::echo"), "send": lambda: worker.send("loop::echo"),
                "register": lambda: worker.register("loop::more", print), "start": worker.start, "run": worker.run,
                "wait_for": lambda: worker.wait_for("never::comes"), "drain": worker.drain}
        for name, use in uses.items():
            try:
                print(name, await asyncio.wait_for(use(), 10))
            except Closed as error:
                said.add(str(error))
        await worker.close()
        async with AsyncWorker("second", url) as second:
            await second.register("loop::second", lambda payload: payload)
            return await second.call("loop::second", 5)

    kept, said = [], set()
    if how == "loop.close":
        loop = asyncio.new_event_loop()
        worker = loop.run_until_complete(start())
        loop.close()
    else:
        worker = asyncio.run(start())
    with Worker("looker", url) as looker:
        until = time.monotonic() + 20
        while [one for one in looker.workers.values() if one.name == "left open"] and time.monotonic() < until:
            time.sleep(0.01)
        print(sorted(one.name for one in looker.workers.values()), list(looker.functions))
    print(asyncio.run(use(worker)), *said, worker.state, sep=chr(10))
"""


@pytest.mark.parametrize("how", ["loop.close", "asyncio.run", "asyncio.run, tasks pending"])
def test_a_worker_left_open_in_a_loop_that_ended_leaves_and_says_so(url: str, how: str) -> None:
    """It stayed for ever: stalled, unread, handed calls that nobody would run; and using it hung."""
    done = run(LEFT_OPEN, url, how)
    assert done.out.splitlines() == ["['looker'] []", "5", "the worker's event loop was closed", "closed"]
    assert "Traceback" not in done.err


def test_a_worker_is_refused_in_another_loop_than_its_own(url: str) -> None:
    async def main() -> None:
        async with AsyncWorker("at home", url) as worker:

            async def elsewhere() -> None:
                for use in (lambda: worker.call("engine::ping"), lambda: worker.wait_for("a::b"), worker.close):
                    with pytest.raises(RuntimeError, match="another event loop"):
                        await use()

            await asyncio.to_thread(asyncio.run, elsewhere())
            assert await worker.call("engine::ping", 1) == 1

    asyncio.run(main())


# -- the end of the interpreter ----------------------------------------------------------------------------------------

ENDS = {
    "a worker that nobody serves": """
        worker = Worker("ending", url)
        worker.__enter__()
    """,
    "a worker that serves": """
        worker = Worker("ending", url)
        worker.register("end::f", echo)
        worker.start()
    """,
    "open futures": """
        worker = Worker("ending", url)
        worker.register("end::hang", lambda _: time.sleep(60))
        worker.start()
        futures = [worker.submit("end::hang") for _ in range(20)]
        worker.call("engine::ping")
    """,
    "inside an inline handler": """
        worker = Worker("ending", url, threads=0)
        worker.register("end::hang", lambda _: started.set() or time.sleep(60))
        worker.start()
        future = worker.submit("end::hang")
        started.wait(20)
    """,
    "inside a handler that calls": """
        worker = Worker("ending", url)
        worker.register_many({"end::outer": lambda _: worker.call("end::hang"), "end::hang": lambda _: hang()})
        worker.start()
        future = worker.submit("end::outer")
        started.wait(20)
    """,
    "daemon threads that call": """
        worker = Worker("ending", url)
        worker.register("end::f", echo)
        worker.start()
        def call():
            while True:
                try:
                    worker.call("end::f")
                except (CallFailed, Closed):
                    return
        for _ in range(4):
            threading.Thread(target=call, daemon=True).start()
        worker.call("end::f")
    """,
    "a call from an atexit callback": """
        worker = Worker("ending", url)
        worker.register("end::f", echo)
        worker.start()
        atexit.register(lambda: print(worker.call("end::f", "at exit"), flush=True))
    """,
    "a close from an atexit callback": """
        worker = Worker("ending", url)
        worker.register("end::f", echo)
        worker.start()
        atexit.register(worker.close)
    """,
    "an exception": """
        worker = Worker("ending", url)
        worker.register("end::f", echo)
        worker.start()
        sys.exit(0)
    """,
    "a reader of changes": """
        worker = Worker("ending", url)
        worker.start()
        threading.Thread(target=lambda: list(worker.changes()), daemon=True).start()
    """,
    "an async worker in a loop that stopped": """
        worker = AsyncWorker("ending", url)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(worker.start())
    """,
    "an async worker in the loop of a daemon thread": """
        worker = AsyncWorker("ending", url)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(worker.start(), loop).result(20)
    """,
}
ENDING = """
    import asyncio, atexit, sys, threading, time
    early = lambda: None
    atexit.register(lambda: early())
    from iii_zmq import AsyncWorker, CallFailed, Closed, Worker

    url, started = sys.argv[1], threading.Event()
    echo = lambda payload: payload

    def hang():
        started.set()
        time.sleep(60)
"""


@pytest.mark.parametrize("story", ENDS)
def test_a_program_ends_at_once_and_without_a_word_with_its_worker_open(url: str, story: str) -> None:
    code = textwrap.dedent(ENDING) + textwrap.dedent(ENDS[story])
    with Worker("watcher", url) as watcher:
        left: list[str | None] = []
        watcher.on_change(lambda change: change.kind == "worker_left" and left.append(change.reason))
        done = run(code, url, patience_s=30.0)  # a handler would go on for 60
        assert (done.code, done.err) == (0, "")
        assert done.out == ("at exit\n" if story == "a call from an atexit callback" else "")
        until(lambda: left)
        if story not in ("inside an inline handler", "an async worker in the loop of a daemon thread"):
            assert left == ["bye"]


def test_a_worker_used_in_the_last_atexit_callback_is_refused(url: str) -> None:
    code = textwrap.dedent(ENDING) + textwrap.dedent("""
        worker = Worker("ending", url)
        worker.start()

        def early():
            try:
                worker.call("engine::ping")
            except Closed as error:
                print(error, flush=True)
    """)
    done = run(code, url)
    assert (done.code, done.out, done.err) == (0, "the interpreter is ending\n", "")


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True], ids=["nobody serves", "a thread serves"])
def test_32_threads_share_one_worker(url: str, served: bool) -> None:
    """Each does a bit of everything at once, and gets its own answers."""
    provider = Worker("provider", url)
    provider.register("shared::echo", lambda payload: payload)
    provider.start()
    shared = Worker("shared", url)
    wrong: list[Any] = []

    def work(number: int) -> None:
        own = f"shared::own{number}"
        try:
            for step in range(5):
                payload = [number, step]
                future = shared.submit("shared::echo", payload)
                if (answer := shared.call("shared::echo", payload)) != payload:
                    wrong.append(answer)
                shared.send("shared::echo", payload)
                shared.wait_for("shared::echo", timeout=PATIENCE_S)
                if served and step == 2:
                    shared.register(own, lambda payload: payload)
                    if own not in shared.functions or shared.call(own, payload, worker=shared.id) != payload:
                        wrong.append(own)
                    shared.unregister(own)
                if (answer := future.result(PATIENCE_S)) != payload:
                    wrong.append(answer)
        except Exception as error:
            wrong.append(error)

    with shared:
        if served:
            shared.start()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert [one for one in shared.functions if one.startswith("shared::own")] == []
    provider.close()


# -- signals while one waits -------------------------------------------------------------------------------------------

UNDER_SIGNALS = """
    import signal, sys, time
    from iii_zmq import CallTimeout, WaitTimeout, Worker

    url, serving = sys.argv[1:]
    came = 0

    def count(number, frame):
        global came
        came += 1

    signal.signal(signal.SIGALRM, count)
    with Worker("signalled", url) as worker:
        if serving == "a thread serves":
            worker.start()
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        said = [worker.call("signal::echo", number) == number for number in range(200)]
        try:
            worker.call("signal::slow", timeout=0.3)
        except CallTimeout as error:
            said.append(error.fate)
        try:
            worker.wait_for("never::comes", timeout=0.2)
        except WaitTimeout as error:
            said.append(error.missing)
        said += [list(worker.changes("never::*", timeout=0.2)), worker.submit("signal::echo", 5).result(20)]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(all(said[:200]), *said[200:], came > 20, worker.state)
"""


@pytest.mark.slow
@pytest.mark.parametrize("serving", ["nobody serves", "a thread serves"])
def test_signals_that_keep_coming_disturb_no_wait(url: str, serving: str) -> None:
    with Worker("provider", url) as provider:
        provider.register_many({"signal::echo": lambda payload: payload, "signal::slow": lambda _: time.sleep(0.8)})
        done = run(UNDER_SIGNALS, url, serving)
    assert (done.out, done.err) == ("True possibly_executed ['never::comes'] [] 5 True connected\n", "")


INTERRUPTED = """
    import os, signal, sys, threading
    from iii_zmq import Worker

    url, serving, wait = sys.argv[1:]
    with Worker("interrupted", url) as worker:
        if serving == "a thread serves":
            worker.start()
        waits = {
            "call": lambda: worker.call("signal::slow"), "future": lambda: worker.submit("signal::slow").result(),
            "wait_for": lambda: worker.wait_for("never::comes"), "changes": lambda: list(worker.changes("never::*")),
            "futures": lambda: [worker.submit(one).result() for one in ["engine::ping"] * 5 + ["signal::slow"]],
        }
        threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()
        try:
            waits[wait]()
        except KeyboardInterrupt:
            print("interrupted", worker.call("engine::ping", 1), worker.state, flush=True)
        os._exit(0)
"""


@pytest.mark.parametrize("wait", ["call", "future", "futures", "wait_for", "changes"])
@pytest.mark.parametrize("serving", ["nobody serves", "a thread serves"])
def test_ctrl_c_ends_a_wait_at_once_and_the_worker_is_as_before(url: str, serving: str, wait: str) -> None:
    with Worker("provider", url) as provider:
        provider.register("signal::slow", lambda _: time.sleep(0.5))
        done = run(INTERRUPTED, url, serving, wait)
    assert (done.out, done.err) == ("interrupted 1 connected\n", "")


# -- clocks ------------------------------------------------------------------------------------------------------------

JUMPING_CLOCK = """
    import sys, threading, time
    now, now_ns, shift = time.time, time.time_ns, 0
    time.time = lambda: now() + shift
    time.time_ns = lambda: now_ns() + shift * 10**9

    def obey():
        global shift
        for line in sys.stdin:
            shift += int(line)
            print("jumped", flush=True)

    threading.Thread(target=obey, daemon=True).start()
"""
JUMPING_BROKER = """
    from iii_zmq.io.broker import Broker

    broker = Broker("tcp://127.0.0.1:0", heartbeat_s=0.1, ttl_s=0.5)
    broker.bind()
    print(broker.url, flush=True)
    broker.run()
"""
JUMPING_WORKER = """
    from iii_zmq import Worker, current_call

    worker = Worker("jumping", sys.argv[1])
    worker.register("clock::remaining", lambda _: current_call().remaining())
    worker.on_state(lambda state: print(state, flush=True))
    worker.run()
"""
DAY_S = 86_400


def jumping(code: str) -> str:
    return textwrap.dedent(JUMPING_CLOCK) + textwrap.dedent(code)


@pytest.mark.slow
def test_a_clock_that_jumps_by_a_day_changes_nothing() -> None:
    """The wall clock of the broker's process and of a worker's, both ways; nobody leaves, no call's time changes."""
    with program(jumping(JUMPING_BROKER)) as broker:
        url = broker.line()
        with program(jumping(JUMPING_WORKER), url) as jumper, Worker("watcher", url) as watcher:
            watcher.wait_for("clock::remaining")
            jumper.expect("connecting", "connected")
            changes: list[str] = []
            watcher.on_change(lambda change: changes.append(str(change)))
            for seconds in (DAY_S, -2 * DAY_S, DAY_S):
                for process in (broker, jumper):
                    process.say(str(seconds))
                    process.expect("jumped")
                beacons = watcher.call("engine::status")["uptime_s"] + 0.7  # more than a TTL later
                until(lambda beacons=beacons: watcher.call("engine::status")["uptime_s"] > beacons)  # type: ignore[misc]
                assert 20 < watcher.call("clock::remaining", timeout=30.0) <= 30
            assert watcher.call("engine::status")["uptime_s"] < 600
            assert changes == []


def test_no_wall_clock_is_asked() -> None:
    """Intervals alone decide: a clock that is set can't matter. (`logging` dates its lines, and nothing else.)"""
    wall = {"time", "time_ns", "now", "utcnow", "today", "gmtime", "localtime", "ctime", "strftime"}
    asked = [
        f"{path.name}:{node.lineno} {node.attr}"
        for path in (ROOT / "iii_zmq").rglob("*.py")
        if "demo" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in wall
    ]
    assert asked == []


@pytest.mark.slow
def test_a_worker_whose_monotonic_clock_is_days_ahead_keeps_its_deadlines() -> None:
    """Two machines' clocks have nothing in common: only spans travel."""
    ahead = ("unshare", "--time", f"--monotonic={5 * DAY_S}", f"--boottime={5 * DAY_S}", "--fork", "--kill-child")
    if subprocess.run([*ahead, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no time namespaces here")
    code = """
        import sys, time
        from iii_zmq import CallTimeout, Worker, current_call

        with Worker("ahead", sys.argv[1]) as worker:
            worker.register("ahead::remaining", lambda _: [current_call().remaining(), time.monotonic()])
            print(20 < worker.call("behind::remaining", timeout=30) <= 30, flush=True)
            try:
                worker.call("behind::slow", timeout=0.2)
            except CallTimeout as error:
                print(error.fate, flush=True)
            sys.stdin.readline()
    """
    with running_broker(*QUICK) as broker, Worker("behind", broker.url) as behind:
        behind.register("behind::remaining", lambda _: current_call().remaining())
        behind.register("behind::slow", lambda _: time.sleep(0.5))
        with program(code, broker.url, command=ahead) as other:
            other.expect("True", "possibly_executed")
            remaining, clock = behind.call("ahead::remaining", timeout=30)
            assert 20 < remaining <= 30
            assert clock - time.monotonic() > 4 * DAY_S
            other.say("go on")
            assert other.finish().code == 0


# -- joining and leaving -----------------------------------------------------------------------------------------------

JOINER = """
    import asyncio, os, sys, time
    from iii_zmq import AsyncWorker, Worker

    url = sys.argv[1]

    def stay(name, threads):
        with Worker(name, url, threads=threads) as worker:
            worker.register("brief::f", lambda payload: payload)

    async def stay_async(name):
        async with AsyncWorker(name, url) as worker:
            await worker.register("brief::f", lambda payload: payload)

    def memory_kib():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    def descriptors():
        # once libzmq has closed what it is to close, which it does later, in a thread of its own
        found = [0]
        while len(found) < 25 or len(set(found[-25:])) > 1:
            found.append(len(os.listdir("/proc/self/fd")))
            time.sleep(0.01)
        return found[-1]

    for line in sys.stdin:
        for number in range(int(line)):
            name, kind = f"brief-{number}", number % 3
            asyncio.run(stay_async(name)) if kind == 2 else stay(name, kind)
        print(descriptors(), memory_kib(), flush=True)
"""
JOINS = int(os.environ.get("III_TEST_JOINS", "700"))
WARM = 100
LEVEL_KIB = 6 * 1024  # broker and worker alike, whatever the number: see the test


@pytest.mark.slow
def test_workers_that_join_and_leave_leave_nothing_behind() -> None:
    """Descriptors to the last one; memory within a bound. By hand: III_TEST_JOINS=6000, -o faulthandler_timeout=900.

    What may grow at the broker is its history, of which each stay makes three deltas: some 700 bytes.
    """
    with running_broker("--log-level", "warning") as broker, program(JOINER, broker.url) as joiner:
        observed = Worker("observer", broker.url, observer=True)
        with observed:
            joiner.say(str(WARM))
            before = [int(word) for word in joiner.line(120).split()]
            broker_before = descriptors(broker.pid), memory_kib(broker.pid)
            joiner.say(str(JOINS - WARM))
            after = [int(word) for word in joiner.line(600).split()]
            until(lambda: descriptors(broker.pid) == broker_before[0])
            grown = memory_kib(broker.pid) - broker_before[1]
            status = observed.call("engine::status")
        print(f"{JOINS} joins: worker {before} -> {after}, broker {broker_before} -> +{grown} KiB")
        assert after[0] == before[0]
        assert (status["workers"], status["functions"], status["sessions"]) == (0, 0, 1)
        assert status["counters"]["left_bye"] == JOINS
        assert after[1] - before[1] < LEVEL_KIB
        assert grown - 3 * JOINS // 4 < LEVEL_KIB
