"""A thread that asks one future after another for its result drives the worker by itself, and nobody loses by that.

Used in another way, by callbacks, `wait` and `as_completed`, from several threads or not at all, futures are ended by
the hub, at the latest when nobody has driven for a moment. Heartbeats, which would wake the hub as well, are too rare
to help.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeout  # Python's own from 3.11 on
from types import SimpleNamespace
from typing import Any

import pytest

from iii_zmq import BrokerLost, CallTimeout, Closed, RemoteError, Worker
from iii_zmq.io.worker import futures
from iii_zmq.io.worker.callbacks import CallbackQueue
from iii_zmq.io.worker.waits import CallOutcome
from tests.net.brokers import RunningBroker, running_broker

pytestmark = pytest.mark.net

PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker("--heartbeat", str(3 * PATIENCE_S), "--ttl", str(10 * PATIENCE_S)) as running:
        yield running  # nothing that wakes a worker now and then hides that nobody does


class Provider:
    """`f::echo`, and `f::held`, which answers when it is told to."""

    def __init__(self, url: str) -> None:
        self.worker = Worker("provider", url, threads=1)
        self.heard: deque[Any] = deque()
        self.came = threading.Event()
        self.go_on = threading.Event()
        self.worker.register_many({"f::echo": self._echo, "f::held": self._held, "f::fail": self._fail})

    def _echo(self, value: Any) -> Any:
        self.heard.append(value)
        self.came.set()
        return value

    def _held(self, value: Any) -> Any:
        assert self.go_on.wait(PATIENCE_S)
        return value

    def _fail(self, value: Any) -> Any:
        raise ValueError(value)


@pytest.fixture
def provider(broker: RunningBroker) -> Iterator[Provider]:
    made = Provider(broker.url)
    with made.worker:
        yield made
        made.go_on.set()


@pytest.fixture
def caller(broker: RunningBroker, provider: Provider) -> Iterator[Worker]:
    with Worker("caller", broker.url) as worker:
        worker.wait_for("f::echo")
        yield worker


def ask(worker: Worker, count: int, window: int = 10) -> list[Any]:
    """So many calls, `window` of them at a time: the oldest is asked first, as for futures in a queue."""
    answers: list[Any] = []
    opened: deque[Future[Any]] = deque()
    for number in range(count):
        opened.append(worker.submit("f::echo", number, timeout=PATIENCE_S))
        if len(opened) == window:
            answers.append(opened.popleft().result(PATIENCE_S))
    return answers + [one.result(PATIENCE_S) for one in opened]


def until(is_true: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_true() and time.monotonic() < end:
        time.sleep(0.001)
    assert is_true()


def test_who_asks_one_future_after_another_ends_them_itself(caller: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch to the hub and back takes twice as long as all else that a call takes in its caller."""
    ask(caller, 20)
    by: deque[int] = deque()
    end = futures.CallFuture.end

    def noted(future: futures.CallFuture, outcome: CallOutcome) -> None:
        by.append(threading.get_ident())
        end(future, outcome)

    monkeypatch.setattr(futures.CallFuture, "end", noted)
    until_s = time.monotonic() + PATIENCE_S
    while by.count(threading.get_ident()) <= 1_000 and time.monotonic() < until_s:
        by.clear()
        assert ask(caller, 2_000) == list(range(2_000))
        assert len(by) == 2_000
    assert by.count(threading.get_ident()) > 1_000  # all, in a round in which nothing pauses this thread for 2 ms


def test_what_was_submitted_leaves_though_nobody_asks_for_it(caller: Worker, provider: Provider) -> None:
    """After answers that came together calls are held for each other: not for ever."""
    for number in range(20):
        ask(caller, 20)
        asked = [caller.submit("f::echo", number) for number in range(30)]
        asked[-1].result(PATIENCE_S)
        provider.came.clear()
        future = caller.submit("f::echo", f"alone {number}")
        assert provider.came.wait(PATIENCE_S)  # it takes 2 to 4 ms
        assert future.result(PATIENCE_S) == f"alone {number}"


def test_calls_leave_in_the_order_they_were_made(caller: Worker, provider: Provider) -> None:
    """Those that were held with them, too."""
    ask(caller, 20)
    provider.heard.clear()
    asked = [caller.submit("f::echo", number) for number in range(5)]
    caller.send("f::echo", "sent")
    assert caller.call("f::echo", "called") == "called"
    assert [one.result(PATIENCE_S) for one in asked] == list(range(5))
    assert list(provider.heard) == [*range(5), "sent", "called"]


@pytest.mark.parametrize("how", ["done", "wait", "as_completed", "callback"])
def test_futures_end_however_one_waits_for_them(caller: Worker, how: str) -> None:
    for _ in range(20):
        ask(caller, 20)
        asked = [caller.submit("f::echo", number) for number in range(30)]
        if how == "done":
            until(lambda asked=asked: all(one.done() for one in asked))  # type: ignore[misc]
        elif how == "wait":
            left = set(asked)
            while left:
                done, left = wait(left, PATIENCE_S, FIRST_COMPLETED)
                assert done
        elif how == "as_completed":
            assert len(list(as_completed(asked, PATIENCE_S))) == 30
        else:
            told: deque[int] = deque()
            for one in asked:
                one.add_done_callback(lambda one, told=told: told.append(one.result()))  # type: ignore[misc]
            until(lambda told=told: len(told) == 30)  # type: ignore[misc]
        assert [one.result() for one in asked] == list(range(30))


def test_a_callback_does_not_run_in_a_thread_that_waits_for_another_future(caller: Worker, provider: Provider) -> None:
    """It may wait for what that thread is to do: both would wait for ever."""
    ask(caller, 20)
    held, by = caller.submit("f::held", 1), deque[int]()
    told = threading.Event()
    held.add_done_callback(lambda _: (by.append(threading.get_ident()), told.set()))
    provider.go_on.set()
    ask(caller, 500)
    assert held.result(PATIENCE_S) == 1
    assert told.wait(PATIENCE_S)
    assert by[0] != threading.get_ident()


def test_threads_that_ask_side_by_side(caller: Worker) -> None:
    ask(caller, 20)
    answers: deque[list[int]] = deque()
    threads = [threading.Thread(target=lambda: answers.append(ask(caller, 500))) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE_S)
    assert list(answers) == [list(range(500))] * 4


def test_an_inline_call_is_run_at_once_however_it_was_read(broker: RunningBroker) -> None:
    """One that came just when the provider's conversation had ended was read, and run with the next event."""
    with Worker("inline", broker.url, threads=0) as provider, Worker("caller", broker.url) as caller:
        provider.register("inline::echo", lambda value: value)
        caller.wait_for("inline::echo")
        asked = deque(caller.submit("inline::echo", number, timeout=PATIENCE_S) for number in range(10))
        for number in range(10, 5_000):
            assert asked.popleft().result(PATIENCE_S) == number - 10
            asked.append(caller.submit("inline::echo", number, timeout=PATIENCE_S))


def test_a_future_that_nobody_waits_for_ends_at_its_deadline_though_the_broker_is_silent() -> None:
    """The hub slept until the next heartbeat."""
    rarely = ("--heartbeat", str(3 * PATIENCE_S), "--ttl", str(10 * PATIENCE_S))
    with running_broker(*rarely) as broker, Worker("caller", broker.url) as caller:
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            future = caller.submit("engine::ping", timeout=0.2)
            until(future.done)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        assert isinstance(future.exception(), CallTimeout)


def test_threads_that_wait_side_by_side_are_told_by_the_hub(caller: Worker, provider: Provider) -> None:
    """One drove until its own future was done, and then nobody."""
    ask(caller, 20)
    held = [caller.submit("f::held", number) for number in range(2)]
    threads = [threading.Thread(target=one.result) for one in held]
    for one in threads:
        one.start()
    answers = [caller.submit("engine::ping", number).result(PATIENCE_S) for number in range(100)]
    provider.go_on.set()
    for one in threads:
        one.join(PATIENCE_S)
    assert [one.result(0) for one in held] == [0, 1]
    assert answers == list(range(100))


def test_a_timeout_of_result_ends_only_that_wait(caller: Worker, provider: Provider) -> None:
    ask(caller, 20)
    held = caller.submit("f::held", 2, timeout=PATIENCE_S)
    for timeout in (0, 0.01, 0.05):
        began = time.monotonic()
        with pytest.raises(FutureTimeout):
            held.result(timeout)
        assert time.monotonic() - began >= timeout
    with pytest.raises(FutureTimeout):
        held.exception(0.01)
    provider.go_on.set()
    assert held.result(PATIENCE_S) == 2


def test_what_a_handler_raised_is_raised_here(caller: Worker) -> None:
    ask(caller, 20)
    failed = caller.submit("f::fail", "no")
    assert isinstance(failed.exception(PATIENCE_S), RemoteError)
    with pytest.raises(RemoteError, match="no"):
        failed.result()


def test_a_future_that_was_cancelled_ends_the_wait_for_it(caller: Worker, provider: Provider) -> None:
    ask(caller, 20)
    held = caller.submit("f::held", 3)
    threading.Timer(0.05, held.cancel).start()
    assert wait([held], PATIENCE_S).done
    assert held.cancelled()
    provider.go_on.set()
    assert ask(caller, 5) == list(range(5))


def test_who_waits_is_told_at_once_when_another_thread_cancels(caller: Worker, provider: Provider) -> None:
    """It looked up after 0.2 s. And a second `cancel` raised, where Python's own says True."""
    waited: list[float] = []
    for _ in range(5):
        held = caller.submit("f::held", 3)
        began: list[float] = []
        threading.Timer(0.02, lambda held=held, began=began: (began.append(time.monotonic()), held.cancel())).start()
        with pytest.raises(CancelledError):
            held.result(PATIENCE_S)
        waited.append(time.monotonic() - began[0])
        assert held.cancel()
    provider.go_on.set()
    assert min(waited) < 0.05


def test_two_threads_may_wait_for_one_future(caller: Worker, provider: Provider) -> None:
    """The second took the place of the first, and one of them was told late."""
    answers: deque[Any] = deque()
    for number in range(20):
        held = caller.submit("engine::ping", number)
        threads = [threading.Thread(target=lambda held=held: answers.append(held.result(PATIENCE_S))) for _ in range(3)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(PATIENCE_S)
    assert list(answers) == [number for number in range(20) for _ in range(3)]


def test_close_ends_who_drives_for_a_future(caller: Worker) -> None:
    ask(caller, 20)
    held = caller.submit("f::held", 4)
    threading.Timer(0.05, caller.close).start()
    with pytest.raises((BrokerLost, Closed)):
        held.result(PATIENCE_S)


# -- a future by itself ------------------------------------------------------------------------------------------------


class Elsewhere:
    """A driver that leaves all driving to others: the future is ended while its thread waits."""

    def __init__(self) -> None:
        self.callbacks = CallbackQueue()

    def wait_for(self, future: futures.CallFuture, timeout: float | None) -> None:
        wait([future], timeout)

    def forget(self, future: futures.CallFuture) -> None: ...


def test_it_has_whatever_futures_of_this_python_have() -> None:
    """Its own `__init__` takes the place of Future's."""
    future = futures.CallFuture(Elsewhere())
    assert not future.done()
    assert [name for name in vars(Future()) if not hasattr(future, name)] == []


def test_a_future_that_ended_before_anybody_looked_is_as_any_other() -> None:
    def ended() -> futures.CallFuture:
        future = futures.CallFuture(Elsewhere())
        future.end(b"\x07")
        return future

    assert ended().result() == ended().result(0.0) == 7
    assert (ended().exception(), ended().done(), ended().running(), ended().cancelled()) == (None, True, False, False)
    assert not ended().cancel()
    assert "finished returned int" in repr(ended())
    one = ended()
    assert wait([one], 0.0).done == {one}
    heard: list[Future[Any]] = []
    one.add_done_callback(heard.append)
    until(lambda: heard == [one])
    assert (one.result(), one.result(0.0)) == (7, 7)


@pytest.fixture
def hasty_switching() -> Iterator[None]:
    """Threads take turns at every opportunity."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_that_begin_to_wait_at_once_wait_on_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[threading.Condition] = []
    another_one = threading.Event()

    def condition() -> threading.Condition:
        made.append(threading.Condition())
        if len(made) > 1:
            another_one.set()
        another_one.wait(0.1)  # for the other thread to make one as well, if it may
        return made[-1]

    monkeypatch.setattr(futures, "threading", SimpleNamespace(Condition=condition))
    future = futures.CallFuture(Elsewhere())
    waiters = [threading.Thread(target=future.done) for _ in range(2)]
    for one in waiters:
        one.start()
    for one in waiters:
        one.join()
    assert len(made) == 1


@pytest.mark.usefixtures("hasty_switching")
@pytest.mark.parametrize("how", ["result", "callback", "wait", "cancel"])
def test_a_future_that_ends_while_somebody_begins_to_wait(how: str) -> None:
    """Who makes the Condition and who ends the future without one are told apart under a lock."""
    for _ in range(1_000):
        future = futures.CallFuture(Elsewhere())
        ender = threading.Thread(target=future.end, args=(b"\x07",))
        ender.start()
        if how == "callback":
            came = threading.Event()
            future.add_done_callback(lambda _, came=came: came.set())  # type: ignore[misc]
            assert came.wait(PATIENCE_S)
        elif how == "wait":
            assert wait([future], PATIENCE_S).done == {future}
        elif how == "cancel":
            assert future.cancel() == future.cancelled()
        if not future.cancelled():
            assert future.result(PATIENCE_S) == 7
        ender.join()
