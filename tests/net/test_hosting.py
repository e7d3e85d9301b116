"""Many sync workers of one process: one thread drives them, and no one's slowness holds up another."""

from __future__ import annotations

import _thread
import math
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from iii_zmq import Worker
from iii_zmq.io.worker import hosting
from iii_zmq.io.worker.hosting import MANY, TURN_S, Guest, Host
from tests.net.brokers import RunningBroker, environment, running_broker

pytestmark = pytest.mark.net

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def start(broker: RunningBroker) -> Iterator[Callable[..., Worker]]:
    """Starts workers that are closed at the end."""
    with ExitStack() as stack:

        def started(name: str, **options: Any) -> Worker:
            worker = Worker(name, broker.url, **options)
            stack.callback(worker.close)
            worker.start()
            return worker

        yield started


class Heard:
    """What the workers' callbacks heard, and in which thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.by: dict[str, list[tuple[str, str]]] = {}

    def listen(self, worker: Worker, name: str, block: Callable[[], object] = lambda: None) -> None:
        @worker.on_change("heard::*")
        def note(change: Any) -> None:
            with self._condition:
                self.by.setdefault(name, []).append((change.function_id, threading.current_thread().name))
                self._condition.notify_all()
            block()

    def wait(self, names: list[str], function_id: str) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: not self.missing(names, function_id), PATIENCE_S), self.missing(
                names, function_id
            )

    def missing(self, names: list[str], function_id: str) -> list[str]:
        return [name for name in names if function_id not in [found for found, _ in self.by.get(name, [])]]


def echo(payload: Any) -> Any:
    return payload


def crowd(start: Callable[..., Worker]) -> dict[str, Worker]:
    return {f"w{number}": start(f"w{number}", threads=0) for number in range(MANY + 2)}


# -- over real sockets -------------------------------------------------------------------------------------------------


def test_one_thread_drives_many_workers(start: Callable[..., Worker]) -> None:
    workers, heard = crowd(start), Heard()
    for name, worker in workers.items():
        heard.listen(worker, name)
    for function_id in ("heard::first", "heard::second"):
        workers["w0"].register(function_id, echo)
        heard.wait(list(workers), function_id)
    assert {thread for found in heard.by.values() for id, thread in found if id == "heard::second"} == {"iii-host"}


def test_few_workers_have_a_thread_each(start: Callable[..., Worker]) -> None:
    heard, names = Heard(), ["one", "two"]
    for name in names:
        heard.listen(start(name), name)
    start("three").register("heard::few", echo)
    heard.wait(names, "heard::few")
    assert [heard.by[name][0][1] for name in names] == ["iii-one", "iii-two"]


def test_slow_callbacks_hold_up_no_other_worker(start: Callable[..., Worker]) -> None:
    workers, heard, over = crowd(start), Heard(), threading.Event()
    slow = ["w1", "w4", "w5"]
    for name, worker in workers.items():
        heard.listen(worker, name, (lambda: over.wait(PATIENCE_S)) if name in slow else lambda: None)
    try:
        for function_id in ("heard::a", "heard::b"):
            workers["w0"].register(function_id, echo)
            heard.wait([name for name in workers if name not in slow], function_id)
        assert heard.missing(slow, "heard::b") == slow
    finally:
        over.set()
    heard.wait(slow, "heard::b")


def test_an_inline_handler_may_call_the_other_workers_of_its_process(start: Callable[..., Worker]) -> None:
    workers = crowd(start)
    names = list(workers)

    def hop(at: int, worker: Worker) -> Callable[[Any], Any]:
        following = f"hop::{names[at + 1]}" if at + 1 < len(names) else None
        return lambda seen: worker.call(following, [*seen, names[at]], timeout=PATIENCE_S) if following else seen

    for at, (name, worker) in enumerate(workers.items()):
        worker.register(f"hop::{name}", hop(at, worker))
    caller = start("caller", threads=0)
    for _ in range(3):
        assert caller.call("hop::w0", [], timeout=PATIENCE_S) == names[:-1]


def test_whoever_comes_after_others_left_is_hosted_as_well(start: Callable[..., Worker]) -> None:
    """The descriptors of closed sockets come back as those of others."""
    for _ in range(3):
        workers, heard = crowd(start), Heard()
        for name, worker in workers.items():
            heard.listen(worker, name)
            worker.register(f"mine::{name}", echo)
        workers["w1"].register("heard::again", echo)
        heard.wait(list(workers), "heard::again")
        assert [workers["w0"].call(f"mine::{name}", name, timeout=PATIENCE_S) for name in workers] == list(workers)
        for worker in workers.values():
            worker.close()


def test_a_callback_may_fork_and_the_others_stay_hosted(broker: RunningBroker) -> None:
    """The child has the parent's epoll: what it undoes there is undone for the parent."""
    program = f"""
        import os, threading
        from iii_zmq import Worker

        heard = threading.Semaphore(0)
        workers = [Worker(f"forking-{{number}}", {broker.url!r}) for number in range({MANY + 2})]
        for worker in workers:
            worker.start()

        @workers[3].on_change("heard::fork")
        def fork(change):
            global child
            child = os.fork()
            if child:
                heard.release()

        workers[0].register("heard::fork", len)
        assert heard.acquire(timeout={PATIENCE_S})
        assert os.waitpid(child, 0)[1] == 0
        for worker in workers:
            worker.on_change("heard::later")(lambda change: heard.release())
        workers[1].register("heard::later", len)
        for _ in workers:
            assert heard.acquire(timeout={PATIENCE_S})
        print("all heard")
        for worker in workers:
            worker.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("all heard\n", 0), done.stderr


def test_a_signal_that_comes_just_before_the_main_thread_waits_is_heard(start: Callable[..., Worker]) -> None:
    """It ends no wait for a lock: `iii-broker watch` did not hear of Ctrl-C on a busy machine, where it was served."""
    worker = start("served")
    threading.Timer(0.1, _thread.interrupt_main).start()  # as such a signal, it is noted and wakes nobody
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        worker.wait_for("never::there", timeout=PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2


# -- the host by itself ------------------------------------------------------------------------------------------------


kept: list[object] = []  # hosts and what they watch: their threads rest in this process to its end


class Place:
    """A guest with one descriptor, whose turns wait until the test lets them end."""

    def __init__(self) -> None:
        kept.append(self)
        self.hears, self._writes = socket.socketpair()
        self.descriptors, self.generation = [self.hears.fileno()], 1
        self.began: deque[str] = deque()
        self.waits: deque[float | None] = deque()  # what the turns return
        self.may_end = threading.Semaphore(0)
        self._begin, self.end = threading.Semaphore(0), threading.Semaphore(0)
        self.guest = Guest(self, self.hears.fileno(), self.turn)

    def turn(self) -> float | None:
        self.began.append(threading.current_thread().name)
        self._begin.release()
        assert self.may_end.acquire(timeout=PATIENCE_S)
        wait_s = self.waits.popleft() if self.waits else 3600.0
        self.end.release()
        return wait_s

    def write(self) -> None:
        """News, which no turn ever takes: only edges count."""
        self._writes.send(b"x")

    def has_begun(self, timeout: float = PATIENCE_S) -> bool:
        return self._begin.acquire(timeout=timeout)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    kept.append(made)
    monkeypatch.setattr(hosting, "_host", made)
    made.open()
    return made


@pytest.fixture
def place(host: Host) -> Place:
    """A guest that had its first turn."""
    place = Place()
    host.take_in(place.guest)
    place.may_end.release()
    assert place.has_begun()
    assert place.end.acquire(timeout=PATIENCE_S)
    return place


def test_news_makes_a_turn(place: Place) -> None:
    assert not place.has_begun(0.05)
    place.write()
    assert place.has_begun()
    place.may_end.release()
    assert not place.has_begun(0.05)


def test_news_that_comes_during_a_turn_makes_another_one(place: Place) -> None:
    place.write()
    assert place.has_begun()
    place.write()
    place.may_end.release(2)
    assert place.has_begun()


def test_news_that_comes_during_a_turn_that_lasts_makes_another_one(place: Place) -> None:
    """Of another thread: whoever was in that turn hosts no more when it ends."""
    place.write()
    assert place.has_begun()
    time.sleep(10 * TURN_S)  # what is tested is what this does: somebody else hosts now
    place.write()
    assert not place.has_begun(0.05)  # never two turns at a time
    place.may_end.release(2)
    assert place.has_begun()
    assert place.began[-1] == "iii-deputy"


def test_a_guest_is_given_a_turn_when_it_is_due(place: Place) -> None:
    place.waits.extend([0.0, 0.02])
    place.write()
    place.may_end.release(3)
    assert [place.has_begun() for _ in range(3)] == [True] * 3
    assert not place.has_begun(0.05)


def test_a_guest_that_has_ended_is_given_no_turn(place: Place) -> None:
    place.waits.append(None)
    place.write()
    place.may_end.release(2)
    assert place.has_begun()
    place.write()
    assert not place.has_begun(0.05)


def test_other_descriptors_are_watched_after_the_turn_that_made_them(place: Place) -> None:
    first, second = place.hears, Place()
    place.descriptors, place.generation = [second.hears.fileno()], 2
    place.write()
    place.may_end.release(2)
    assert place.has_begun()
    assert first.fileno() == place.guest.wake_fd
    second.write()
    assert place.has_begun()


def test_a_guest_that_is_flooded_keeps_no_other_from_its_turns(host: Host, place: Place) -> None:
    """Its every turn makes another one due at once: until the queue was empty, nobody else's news were heard."""
    floods = Place()
    floods.waits.extend([0.0] * 100_000)
    floods.may_end.release(100_000)
    host.take_in(floods.guest)
    assert floods.has_begun()
    for _ in range(3):
        place.write()
        place.may_end.release()
        assert place.has_begun()
    assert floods.waits, "it was flooded all the time"
    floods.waits.clear()


def test_hosts_that_were_replaced_go(host: Host) -> None:
    places = [Place() for _ in range(4)]
    for place in places:
        host.take_in(place.guest)
    assert all(place.has_begun() for place in places)  # each in a thread of its own: all turns last
    before = hosting_threads()
    for place in places:
        place.may_end.release()
    until(lambda: hosting_threads() <= before - len(places) + 1)
    places[0].write()
    assert places[0].has_begun()
    places[0].may_end.release()


def hosting_threads() -> int:
    return sum(thread.name in ("iii-host", "iii-deputy") for thread in threading.enumerate())


def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def test_workers_count_until_they_leave_or_are_forgotten() -> None:
    before = hosting._count
    guests = [Guest(SilentLink(), -1, lambda: math.inf) for _ in range(3)]
    assert hosting._count == before + 3
    guests[0].leave()
    guests[0].leave()
    del guests[1]
    assert hosting._count == before + 1
    del guests
    assert hosting._count == before


class SilentLink:
    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.generation = 0


def test_a_child_counts_its_own_workers_only() -> None:
    guest = Guest(SilentLink(), -1, lambda: math.inf)
    child = os.fork()
    if not child:
        guest.leave()  # the parent's
        os._exit(0 if hosting._count == 0 and not hosting.many() else 1)
    assert os.waitpid(child, 0)[1] == 0
