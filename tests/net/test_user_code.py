"""Callbacks may block, call, fail and close: nobody but their own worker's callbacks is held up by that.

`on_change`, `on_state` and done callbacks of futures are the user's code. It may want a lock that a caller holds,
sleep, or call. So it runs on threads of its own: the callbacks of one worker in order and never two at once, those of
different workers independently, each in a clean context.

Whatever might block here runs in a daemon thread for a bounded time, and callbacks that block end with the test.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout  # Python's own from 3.11 on
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from iii_zmq import CallTimeout, IIIError, WaitTimeout, Worker, current_call
from tests.net.brokers import RunningBroker, free_url, running_broker

pytestmark = pytest.mark.net

PATIENCE_S = 5.0  # for what takes milliseconds on an idle machine
HEARTBEAT_S = 0.2  # a worker is stalled after three and a half of them

LIVES = ["with", "started"]


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker("--heartbeat", str(HEARTBEAT_S), "--ttl", "10") as running:
        yield running


def bounded(action: Callable[[], Any], within: float = PATIENCE_S) -> Any:
    """What the action returns or raises in a thread of its own; the test fails if it takes longer than `within`."""
    ended: Future[Any] = Future()

    def run() -> None:
        try:
            ended.set_result(action())
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=run, name="user", daemon=True)
    thread.start()
    thread.join(within)
    if thread.is_alive():
        pytest.fail(f"it did not return within {within} s")
    return ended.result(0)


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE_S) -> None:
    """Waits for something that others bring about."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} within {timeout} s")
        time.sleep(0.002)


class Scene:
    """A provider with threads, a mover that changes the registry, and workers that all end with the test.

    `u::echo` answers at once, `u::soon` after 0.1 s, `u::held` when `release` is set, `u::never` only when the test is
    over. `u::remaining` tells how many seconds its call has left.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.over = threading.Event()  # of the test: what blocks in it goes on
        self.release = threading.Event()
        self._stack = ExitStack()
        self.mover = self.make("mover", "started", threads=0)
        self.provider = Worker("provider", url, threads=16)
        self.provider.register_many(
            {
                "u::echo": lambda value: value,
                "u::soon": lambda _: time.sleep(0.1),
                "u::held": self._held,
                "u::never": lambda _: self.over.wait(60),
                "u::remaining": lambda _: current_call().remaining(),
            }
        )
        self.join(self.provider, "started")

    def _held(self, value: Any) -> Any:
        until(lambda: self.release.is_set() or self.over.is_set(), "u::held was not released", 60)
        return value

    def make(self, name: str, life: str, **options: Any) -> Worker:
        worker = Worker(name, self.url, **options)
        self.join(worker, life)
        return worker

    def join(self, worker: Worker, life: str) -> None:
        """As its user would: in a `with`, or by `start()`."""
        self._stack.callback(lambda: bounded(worker.close, 2 * PATIENCE_S))
        if life == "with":
            worker.__enter__()
        else:
            worker.start()

    def change(self, *names: str) -> None:
        """One change of the registry for each function name."""
        self.mover.register_many({name: lambda value: value for name in names})

    def block(self, worker: Worker) -> None:
        """Returns when an `on_change` callback of the worker has begun; it ends with the test."""
        began = threading.Event()

        @worker.on_change("block::*")
        def block(change: Any) -> None:
            began.set()
            self.over.wait(60)

        self.change(f"block::{worker.name}")
        assert began.wait(PATIENCE_S)

    def take(self, lock: threading.Lock) -> None:
        """Takes and frees the lock, as user code does; gives up when the test is over."""
        while not self.over.is_set():
            if lock.acquire(timeout=0.05):
                lock.release()
                return

    def end(self) -> None:
        self.over.set()
        self._stack.close()


@pytest.fixture
def scene(broker: RunningBroker) -> Iterator[Scene]:
    made = Scene(broker.url)
    yield made
    made.end()


class Pace:
    """How many callbacks run at the same moment, and the most that ever did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


# -- a lock that a callback wants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", LIVES)
def test_a_call_ends_though_on_change_wants_a_lock_that_its_caller_holds(scene: Scene, life: str) -> None:
    """The callback ran in the thread that drove the worker, so it waited for the caller, and the caller for it."""
    worker, lock, wants = scene.make("caller", life), threading.Lock(), threading.Event()

    @worker.on_change("lock::*")
    def note(change: Any) -> None:
        wants.set()
        scene.take(lock)

    def use() -> Any:
        with lock:
            scene.change(f"lock::{life}")
            assert wants.wait(PATIENCE_S)
            return worker.call("u::echo", 7, timeout=2.0)

    assert bounded(use, 3.0) == 7


@pytest.mark.parametrize("life", LIVES)
def test_a_call_ends_though_a_done_callback_wants_a_lock_that_its_caller_holds(scene: Scene, life: str) -> None:
    worker, lock, wants = scene.make("caller", life), threading.Lock(), threading.Event()

    def note(done: Any) -> None:
        wants.set()
        scene.take(lock)

    def use() -> Any:
        future = worker.submit("u::held", timeout=20.0)
        future.add_done_callback(note)
        with lock:
            scene.release.set()
            assert wants.wait(PATIENCE_S)
            return worker.call("u::echo", 7, timeout=2.0)

    assert bounded(use, 3.0) == 7


@pytest.mark.parametrize("life", LIVES)
def test_a_call_ends_though_on_state_wants_a_lock_that_its_caller_holds(life: str) -> None:
    with running_broker() as broker:
        scene = Scene(broker.url)
        worker, lock, wants = scene.make("caller", life), threading.Lock(), threading.Event()

        @worker.on_state
        def note(state: str) -> None:
            wants.set()
            scene.take(lock)

        def use() -> Any:
            with lock:
                broker.process.kill()
                assert wants.wait(PATIENCE_S)
                return worker.call("u::echo", 7, timeout=1.0)

        try:
            with pytest.raises(IIIError):  # there is no broker: whichever it is, it comes in time
                bounded(use, 3.0)
        finally:
            scene.end()


@pytest.mark.parametrize("life", LIVES)
def test_a_worker_joins_though_on_state_wants_a_lock_that_its_starter_holds(scene: Scene, life: str) -> None:
    worker, lock = Worker("starter", scene.url), threading.Lock()
    worker.on_state(lambda state: scene.take(lock))

    def use() -> str:
        with lock:
            scene.join(worker, life)
        return worker.state

    assert bounded(use, 3.0) == "connected"


# -- callbacks that block, and every wait of users ---------------------------------------------------------------------


def result_in_time(worker: Worker) -> Any:
    with pytest.raises(FutureTimeout):
        worker.submit("u::never", timeout=20.0).result(timeout=0.3)


def call_in_vain(worker: Worker) -> None:
    with pytest.raises(CallTimeout):
        worker.call("u::never", timeout=0.5)


def wait_in_vain(worker: Worker) -> None:
    with pytest.raises(WaitTimeout):
        worker.wait_for("absent::function", timeout=0.5)


USES: dict[str, tuple[Callable[[Worker], Any], Any, float]] = {  # what is done, what comes of it, within how long
    "call": (lambda worker: worker.call("u::echo", 7, timeout=1.0), 7, 0.8),
    "call that is not answered": (call_in_vain, None, 1.0),
    "send": (lambda worker: worker.send("u::echo", 7), None, 0.8),
    "submit": (lambda worker: worker.submit("u::echo", 7).result(), 7, 0.8),
    "submit that is not answered": (result_in_time, None, 0.8),
    "register": (lambda worker: worker.register("own::new", lambda value: value), None, 1.0),
    "unregister": (lambda worker: worker.unregister("own::old"), None, 1.0),
    "wait_for": (lambda worker: worker.wait_for("u::echo", timeout=1.0), None, 0.8),
    "wait_for in vain": (wait_in_vain, None, 1.0),
    "changes": (lambda worker: next(worker.changes("absent::*", timeout=0.5), None), None, 1.0),
    "on_change": (lambda worker: worker.on_change("u::*")(print), print, 0.8),
    "functions": (lambda worker: "u::echo" in worker.functions, True, 0.8),
    "state": (lambda worker: worker.state, "connected", 0.8),
    "drain": (lambda worker: worker.drain(1.0) in (True, False), True, 2.2),
    "close": (lambda worker: worker.close(), None, 1.2),
}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("use", USES)
def test_no_wait_takes_longer_because_a_callback_blocks(scene: Scene, life: str, use: str) -> None:
    """`call(timeout=0.5)` returned after 4.95 s beside a callback that slept for 5 s, `send` after 2.95 of 3 s."""
    action, expected, within = USES[use]
    worker = Worker("busy", scene.url)
    worker.register("own::old", lambda value: value)
    scene.join(worker, life)
    scene.block(worker)
    assert bounded(lambda: action(worker), within) == expected


def test_a_call_while_a_callback_blocks_does_not_wait_for_its_timeout(scene: Scene) -> None:
    worker = scene.make("busy", "started")
    scene.block(worker)
    took = []
    for _ in range(20):
        began = time.monotonic()
        bounded(lambda: worker.call("u::echo", timeout=PATIENCE_S))
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.1


def test_a_worker_whose_callback_blocks_is_not_stalled_and_serves(scene: Scene) -> None:
    """No heartbeat left while a callback ran, so everybody saw the worker as stalled, whatever its `threads`."""
    worker = Worker("busy", scene.url, threads=8)
    worker.register("own::echo", lambda value: value)
    scene.join(worker, "started")
    observer = scene.make("observer", "with", observer=True)
    scene.block(worker)
    seen, end = set(), time.monotonic() + 10 * HEARTBEAT_S
    while time.monotonic() < end:
        seen.add(observer.workers[worker.id].state)  # type: ignore[index]
        time.sleep(0.01)
    assert seen == {"ready"}
    assert observer.call("own::echo", 7, timeout=1.0) == 7


# -- several workers in one process ------------------------------------------------------------------------------------


def test_callbacks_that_block_hold_up_no_other_worker(scene: Scene) -> None:
    heard: dict[str, threading.Event] = {}
    for number in range(20):
        worker = scene.make(f"w{number}", "started", threads=0)
        if number % 7 == 0:  # three of them
            scene.block(worker)
        else:
            heard[worker.name] = threading.Event()
            worker.on_change("heard::*")(lambda change, event=heard[worker.name]: event.set())
    scene.change("heard::one")
    until(lambda: all(event.is_set() for event in heard.values()), "not all of the others heard of it")


@pytest.mark.parametrize("chain", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], ids=["first to last", "last to first"])
def test_a_callback_may_wait_for_the_callback_of_another_worker(scene: Scene, chain: list[int]) -> None:
    ended = [threading.Event() for _ in chain]
    order: deque[int] = deque()

    def wait(number: int) -> None:
        following = chain[chain.index(number) + 1 :][:1]
        if all(ended[one].wait(PATIENCE_S) for one in following):
            order.append(number)
            ended[number].set()

    for number in range(len(chain)):
        worker = scene.make(f"w{number}", "started", threads=0)
        worker.on_change("wait::*")(lambda change, number=number: wait(number))
    scene.change("wait::one")
    until(lambda: len(order) == len(chain), "not all of them ended")
    assert list(order) == chain[::-1]


@pytest.mark.parametrize("life", LIVES)
def test_callbacks_of_one_worker_come_in_order_and_never_two_at_once(scene: Scene, life: str) -> None:
    worker, pace, seqs, ended = scene.make("listener", life), Pace(), [], []

    @worker.on_change("order::*")
    def note(change: Any) -> None:
        with pace.step():
            seqs.append((change.seq, change.kind, change.function_id))
            time.sleep(0.0005)

    def note_end(done: Any) -> None:
        with pace.step():
            ended.append(done)
            time.sleep(0.0005)

    def move(number: int) -> None:
        with Worker(f"mover{number}", scene.url) as mover:
            for _ in range(25):
                mover.register(f"order::f{number}", lambda value: value)
                mover.unregister(f"order::f{number}")

    for _ in range(16):  # all of them still open: one that is done already calls back where it is asked to
        worker.submit("u::held").add_done_callback(note_end)
    with ThreadPoolExecutor(3) as pool:
        moving = [pool.submit(move, number) for number in range(3)]
        scene.release.set()
        for one in moving:
            one.result(4 * PATIENCE_S)
    until(lambda: len(seqs) == 150 and len(ended) == 16, "not all callbacks ran")
    assert [seq for seq, _, _ in seqs] == sorted({seq for seq, _, _ in seqs})
    assert pace.most == 1


# -- callbacks that call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", LIVES)
def test_callbacks_that_call_run_one_after_the_other(scene: Scene, life: str) -> None:
    """Each waited for its answer by driving, and that ran the next one inside: in reverse order, and after some 100
    of them to a RecursionError."""
    worker, pace = scene.make("listener", life), Pace()
    answers: list[Any] = []

    @worker.on_change("many::*")
    def note(change: Any) -> None:
        with pace.step():
            answers.append(worker.call("u::echo", [change.kind, change.function_id], timeout=PATIENCE_S))

    names = [f"many::f{number:03}" for number in range(200)]
    scene.change(*names)
    scene.mover.unregister(*names)
    until(lambda: len(answers) == 400, "not all of 400 callbacks had an answer", 4 * PATIENCE_S)
    assert answers == [[kind, name] for kind in ("function_added", "function_removed") for name in names]
    assert pace.most == 1


@pytest.mark.parametrize("life", LIVES)
def test_done_callbacks_that_call_run_one_after_the_other(scene: Scene, life: str) -> None:
    worker, pace = scene.make("asker", life), Pace()
    answers: list[Any] = []

    def note(done: Any) -> None:
        with pace.step():
            answers.append(worker.call("u::echo", done.result(), timeout=PATIENCE_S))

    for number in range(16):
        worker.submit("u::held", number).add_done_callback(note)
    scene.release.set()
    until(lambda: len(answers) == 16, "not all callbacks had an answer")
    assert sorted(answers) == list(range(16))
    assert pace.most == 1


@pytest.mark.parametrize("life", LIVES)
def test_a_state_that_comes_while_on_state_calls_is_told_afterwards(life: str) -> None:
    url, pace, told = free_url(), Pace(), deque[str]()
    with ExitStack() as stack:
        with running_broker(url=url):
            worker = Worker("teller", url)
            worker.__enter__() if life == "with" else worker.start()
            stack.callback(lambda: bounded(worker.close))

            @worker.on_state
            def note(state: str) -> None:
                with pace.step():
                    told.append(state)
                    try:
                        worker.call("engine::ping", timeout=PATIENCE_S)  # waits for a session
                    except IIIError:
                        pass
                    told.append(f"after {state}")

        until(lambda: "connecting" in told, "it did not tell that the broker ended")
        with running_broker(url=url):
            until(lambda: "after connected" in told, "it did not tell that the broker is back", 2 * PATIENCE_S)
    assert list(told)[:4] == ["connecting", "after connecting", "connected", "after connected"]
    assert pace.most == 1


# -- the context of callbacks ------------------------------------------------------------------------------------------

kept: ContextVar[str] = ContextVar("kept", default="")


def context_seen() -> tuple[str, str]:
    """What a callback sees of the user's variable, and of a call that is none of its business."""
    try:
        return kept.get(), current_call().function_id
    except RuntimeError:
        return kept.get(), ""


@pytest.mark.parametrize("life", LIVES)
def test_callbacks_see_no_variables_of_who_registered_or_called(scene: Scene, life: str) -> None:
    seen: dict[str, tuple[str, str]] = {}

    def use() -> None:
        kept.set("the user's")
        worker = Worker("listener", scene.url)
        worker.on_state(lambda state: seen.setdefault(f"on_state {state}", context_seen()))
        scene.join(worker, life)
        worker.on_change("context::*")(lambda change: seen.setdefault("on_change", context_seen()))
        future = worker.submit("u::held")
        future.add_done_callback(lambda done: seen.setdefault("done", context_seen()))
        scene.change("context::one")
        scene.release.set()
        future.result(PATIENCE_S)
        worker.call("u::echo")
        until(lambda: len(seen) == 4, "not all callbacks ran")

    bounded(use, 2 * PATIENCE_S)
    assert seen == dict.fromkeys(["on_state connecting", "on_state connected", "on_change", "done"], ("", ""))


@pytest.mark.parametrize("kind", ["on_change", "done"])
def test_callbacks_see_nothing_of_an_inline_handler_that_waits(scene: Scene, kind: str) -> None:
    """They ran inside its nested call, and so took its call for their own, with its deadline."""
    worker = Worker("nested", scene.url, threads=0)
    seen: deque[tuple[tuple[str, str], float]] = deque()

    def note(_: Any) -> None:
        try:
            seen.append((context_seen(), worker.call("u::remaining", timeout=60.0)))
        except IIIError as error:
            seen.append((context_seen(), 0.0))
            logging.getLogger(__name__).info("the callback's call failed", exc_info=error)

    @worker.function("nested::outer")
    def outer(_: Any) -> None:
        kept.set("the handler's")
        if kind == "done":
            worker.submit("u::soon").add_done_callback(note)
        else:
            scene.change("nested::change")
        worker.call("u::held")

    if kind == "on_change":
        worker.on_change("nested::change")(note)
    scene.join(worker, "started")
    caller = scene.make("caller", "with")
    calling = threading.Thread(target=lambda: caller.call("nested::outer", timeout=4 * PATIENCE_S), daemon=True)
    calling.start()
    until(lambda: seen, "no callback ran", 2 * PATIENCE_S)
    scene.release.set()
    calling.join(2 * PATIENCE_S)
    (context, remaining), *others = seen
    assert others == []
    assert context == ("", "")
    assert 4 * PATIENCE_S < remaining <= 60.0


# -- callbacks that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("kind", ["on_change", "on_state", "done"])
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_fails_is_logged_and_the_next_ones_run(
    scene: Scene, caplog: pytest.LogCaptureFixture, error: type[BaseException], kind: str, life: str
) -> None:
    worker = Worker("clumsy", scene.url)
    heard: list[Any] = []

    def note(value: Any) -> None:
        heard.append(value)
        raise error("a mistake of the user's")

    if kind == "on_state":
        worker.on_state(note)
        worker.on_state(heard.append)
    try:
        scene.join(worker, life)
    except KeyboardInterrupt as raised:
        raise AssertionError("it reached whoever started the worker") from raised
    if kind == "on_change":
        worker.on_change("clumsy::*")(note)
        worker.on_change("clumsy::*")(heard.append)
        scene.change("clumsy::one", "clumsy::two")
    if kind == "done":
        for _ in range(2):
            future = worker.submit("u::held")
            future.add_done_callback(note)
            future.add_done_callback(heard.append)
        scene.release.set()
    until(lambda: len(heard) == 4, "not all callbacks ran")
    assert heard[0] == heard[1] != heard[2] == heard[3]
    until(lambda: [one.exc_info[0] for one in caplog.records if one.exc_info] == [error, error], "not all was logged")
    assert bounded(lambda: worker.call("u::echo", 7)) == 7


# -- callbacks that use their worker -----------------------------------------------------------------------------------


OWN_USES: dict[str, tuple[Callable[[Worker], Any], Any]] = {
    "close": (lambda worker: worker.close(), None),
    "drain": (lambda worker: worker.drain(1.0) in (True, False), True),
    "register": (lambda worker: worker.register("own::new", lambda value: value), None),
    "unregister": (lambda worker: worker.unregister("own::old"), None),
    "call of its own function": (lambda worker: worker.call("own::old", 7, timeout=1.0), 7),
    "wait_for": (lambda worker: worker.wait_for("u::echo", timeout=1.0), None),
    "submit": (lambda worker: worker.submit("u::echo", 7).result(), 7),
}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("use", OWN_USES)
def test_a_callback_may_use_its_own_worker(scene: Scene, life: str, use: str) -> None:
    action, expected = OWN_USES[use]
    worker = Worker("own", scene.url)
    outcome: Future[Any] = Future()
    worker.register("own::old", lambda value: value)

    @worker.on_change("use::*")
    def act(change: Any) -> None:
        try:
            outcome.set_result(action(worker))
        except BaseException as error:
            outcome.set_exception(error)

    scene.join(worker, life)
    scene.change(f"use::{life}")
    assert outcome.result(PATIENCE_S) == expected


# -- many workers ------------------------------------------------------------------------------------------------------


def threads_now() -> int:
    """Of this process: Python's, and those of libraries."""
    return max(threading.active_count(), len(os.listdir("/proc/self/task")))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in Linux's /proc")
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_workers_that_start_at_once_need_few_threads(broker: RunningBroker, count: int) -> None:
    """Each had a thread that served it, though it slept where another one drove for all."""
    workers = [
        Worker(f"w{number}", broker.url, threads=0, observer=True, connect_timeout=60.0) for number in range(count)
    ]
    with ThreadPoolExecutor(8) as pool:
        try:
            list(pool.map(Worker.start, workers))
            assert {worker.state for worker in workers} == {"connected"}
            assert threads_now() < 40
        finally:
            list(pool.map(Worker.close, workers))
