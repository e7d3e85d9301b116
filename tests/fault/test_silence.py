"""Silence: processes that are stopped, links that swallow packets. Known within TTL and one interval; and whoever is
back is whole again by itself, without a ghost.

How soon is counted in beacons of the broker, one each heartbeat; its TTL is short, so that the tests are.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from iii_zmq.io import sockets
from tests.fault.beacons import counting
from tests.fault.crews import Watcher, ask, crew, eventually, start, watching
from tests.fault.netns import ADDRESSES, lan, missing
from tests.fault.programs import Program, program, run, until
from tests.fault.proxy import Proxies, Proxy
from tests.net.brokers import RunningBroker, running_broker
from tests.net.commands import COMMAND, running
from tests.net.raw import HEARTBEAT_MS, TTL_MS

pytestmark = [pytest.mark.net, pytest.mark.fault]

HEARTBEAT_S, TTL_S = 0.2, 0.8
TIMES = ("--heartbeat", str(HEARTBEAT_S), "--ttl", str(TTL_S))
VICTIM = {"name": "victim", "functions": {"victim::echo": "echo"}}
OTHER = {"name": "other", "functions": {"other::echo": "echo"}}


def beacons(seconds: float, heartbeat_s: float = HEARTBEAT_S) -> int:
    """At most so many in that time, and one more: at its start that may have been on its way already."""
    return math.ceil(seconds / heartbeat_s) + 1


SILENT = beacons(TTL_S + HEARTBEAT_S)
# Who hears nothing talks on until it notices, which for its first control connection takes as long as by default: it
# was made before the broker's times were known.
DEAF = beacons(TTL_MS / 1000 + HEARTBEAT_MS / 1000)


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with running_broker(*TIMES) as served:
        yield served


@pytest.fixture
def watcher(broker: RunningBroker) -> Iterator[Watcher]:
    with watching(broker.url) as one:
        yield one


def wait_for_traffic(watcher: Watcher) -> None:
    """Calls go to and fro."""
    (before,) = watcher.counters("results")
    until(lambda: watcher.counters("results")[0] > before + 50)


def check_whole(watcher: Watcher, *crews: Program) -> None:
    """Every worker is here once, its functions can be called, everybody sees the same, and nothing else is left."""
    workers = [one for each in crews for one in ask(each)]
    count = len(workers) + 1
    eventually(lambda: len({one["id"] for each in crews for one in ask(each)} & set(watcher.worker.workers)), count - 1)
    eventually(lambda: watcher.tables()[0::3], (count, count))
    eventually(lambda: {one["state"] for each in crews for one in ask(each)}, {"connected"})
    eventually(lambda: {one["digest"] for each in crews for one in ask(each)}, {watcher.worker.digest})
    for function_id in watcher.worker.functions:
        assert watcher.worker.call(function_id, 7) == 7


# -- a worker ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["idle", "talking", "fresh"])
def test_a_stopped_worker_is_missed_and_comes_back_whole(broker: RunningBroker, watcher: Watcher, manner: str) -> None:
    """`talking`: it sends calls and results until that moment. `fresh`: it has not lived for a heartbeat yet."""
    victim, other = dict(VICTIM), dict(OTHER)
    if manner == "talking":
        victim["calls"], other["calls"] = "other::echo", "victim::echo"
    with (
        counting(broker.url) as counter,
        crew(broker.url, other) as others,
        start(broker.url, victim | {"stops": manner == "fresh"}) as stopped,
    ):
        watcher.worker.wait_for("victim::echo")
        if manner != "fresh":
            stopped.expect("joined")
        if manner == "talking":
            wait_for_traffic(watcher)
        worker_id = watcher.id_of("victim")
        counter.start(worker_id)
        if manner != "fresh":  # which has done it itself
            stopped.signal(signal.SIGSTOP)
        assert counter.beacons() <= SILENT
        watcher.wait_until_left(worker_id)
        assert watcher.reasons() == ["silent"]
        assert "victim::echo" not in watcher.worker.functions
        stopped.signal(signal.SIGCONT)
        if manner == "fresh":
            stopped.expect("joined")
        watcher.worker.wait_for("victim::echo")
        check_whole(watcher, others, stopped)
        assert worker_id not in watcher.worker.workers


def test_a_worker_that_is_stopped_for_less_than_the_ttl_has_never_left() -> None:
    with (
        running_broker("--heartbeat", "0.2", "--ttl", "60") as broker,
        watching(broker.url) as watcher,
        crew(broker.url, VICTIM) as stopped,
    ):
        watcher.worker.wait_for("victim::echo")
        worker_id = watcher.id_of("victim")
        stopped.signal(signal.SIGSTOP)
        eventually(lambda: watcher.state_of("victim"), "stalled")
        stopped.signal(signal.SIGCONT)
        eventually(lambda: watcher.state_of("victim"), "ready")
        check_whole(watcher, stopped)
        assert watcher.reasons() == []
        assert watcher.id_of("victim") == worker_id


JOIN = """
    import asyncio, sys
    from iii_zmq import AsyncWorker, Worker
    def handler(payload): return payload
    async def join():
        worker = AsyncWorker("late", sys.argv[1], connect_timeout=2.0)
        await worker.register("async::f", handler)
        print("joining", flush=True)
        await worker.start()
        await worker.close()
    if sys.argv[2] == "async":
        asyncio.run(join())
    else:
        worker = Worker("late", sys.argv[1], connect_timeout=2.0)
        worker.register("sync::f", handler)
        print("joining", flush=True)
        worker.start()
        worker.close()
    print("joined", flush=True)
"""


@pytest.mark.slow
def test_a_worker_that_was_stopped_while_it_joined_does_not_say_that_there_is_no_broker(broker: RunningBroker) -> None:
    """It was away for longer than its connect_timeout, and so could not hear the broker, which was there."""
    broker.process.send_signal(signal.SIGSTOP)  # so that it can't be faster than the test
    with program(JOIN, broker.url, "sync") as one, program(JOIN, broker.url, "async") as other:
        for joining in (one, other):
            joining.expect("joining")
            joining.signal(signal.SIGSTOP)
        time.sleep(2.5)  # the stop itself
        broker.process.send_signal(signal.SIGCONT)
        for joining in (one, other):
            joining.signal(signal.SIGCONT)
        for joining in (one, other):
            joining.expect("joined")


# -- the broker --------------------------------------------------------------------------------------------------------


def test_a_broker_that_slept_for_longer_than_the_ttl_takes_all_rows_over_without_a_leave(
    broker: RunningBroker, watcher: Watcher
) -> None:
    members = [{"name": f"w{i}", "functions": {f"w{i}::echo": "echo"}} for i in range(10)]
    with crew(broker.url, *members) as crew_of_ten:
        watcher.worker.wait_for("w9::echo")
        ids = sorted(watcher.worker.workers)
        broker.process.send_signal(signal.SIGSTOP)
        time.sleep(2 * TTL_S)  # the pause itself
        broker.process.send_signal(signal.SIGCONT)
        eventually(lambda: watcher.counters("pauses")[0] > 0, True)
        check_whole(watcher, crew_of_ten)
        assert sorted(watcher.worker.workers) == ids
        assert watcher.reasons() == []
        assert watcher.counters("left_died", "left_silent", "left_replaced") == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["broker", "worker"])
def test_a_worker_and_the_broker_both_stopped_are_whole_again(
    broker: RunningBroker, watcher: Watcher, first: str
) -> None:
    with crew(broker.url, OTHER) as others, crew(broker.url, VICTIM) as stopped:
        watcher.worker.wait_for("victim::echo")
        stopped.signal(signal.SIGSTOP)
        broker.process.send_signal(signal.SIGSTOP)
        time.sleep(2 * TTL_S)  # the pause itself
        if first == "worker":
            stopped.signal(signal.SIGCONT)
            eventually(lambda: ask(stopped)[0]["state"] != "connected", True)
            broker.process.send_signal(signal.SIGCONT)
        else:
            broker.process.send_signal(signal.SIGCONT)
            watcher.wait_until_gone("victim")
            stopped.signal(signal.SIGCONT)
        watcher.worker.wait_for("victim::echo")
        check_whole(watcher, others, stopped)


# -- a link ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down"),
    [
        pytest.param(True, True, id="both"),
        pytest.param(True, False, id="up", marks=pytest.mark.slow),
        pytest.param(False, True, id="down", marks=pytest.mark.slow),
    ],
)
def test_a_link_that_swallows_everything_is_noticed_at_both_ends(
    broker: RunningBroker, watcher: Watcher, up: bool, down: bool
) -> None:
    """`up` is what the worker says, `down` what it is told. Calls and results went over it until that moment."""
    with (
        Proxies(broker) as proxies,
        counting(broker.url) as counter,
        crew(broker.url, OTHER | {"calls": "victim::echo"}) as others,
        crew(proxies.url, VICTIM | {"calls": "other::echo"}) as far,
    ):
        wait_for_traffic(watcher)
        worker_id = watcher.id_of("victim")
        counter.start(worker_id)
        proxies.each(lambda proxy: Proxy.blackhole(proxy, up=up, down=down))
        assert counter.beacons() <= (SILENT if up else DEAF)
        watcher.wait_until_left(worker_id)
        eventually(lambda: ask(far)[0]["state"] == "connected", False)
        proxies.each(Proxy.forward)
        proxies.each(Proxy.cut)  # what was swallowed of these connections would not come again
        watcher.worker.wait_for("victim::echo")
        check_whole(watcher, others, far)
        assert worker_id not in watcher.worker.workers


@pytest.mark.slow
def test_a_control_connection_that_swallows_everything_is_noticed_though_the_stream_lives() -> None:
    """With the default times, of which README.md tells. The worker's end notices within the TTL and one interval, and
    closes; a probe finds that out at the broker, within another TTL."""
    heartbeat_s, ttl_s = HEARTBEAT_MS / 1000, TTL_MS / 1000
    with (
        running_broker() as broker,
        watching(broker.url) as watcher,
        Proxies(broker) as proxies,
        counting(broker.url) as counter,
        crew(proxies.url, VICTIM) as far,
    ):
        watcher.worker.wait_for("victim::echo")
        worker_id = watcher.id_of("victim")
        counter.start(worker_id)
        proxies.control.blackhole()
        assert counter.beacons() <= beacons(2 * ttl_s + heartbeat_s, heartbeat_s)
        watcher.wait_until_left(worker_id)
        assert watcher.reasons() == ["silent"]
        proxies.control.forward()
        proxies.control.cut()  # what was swallowed of these connections would not come again
        watcher.worker.wait_for("victim::echo")
        check_whole(watcher, far)


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_a_network_that_drops_packets_is_noticed_at_both_ends() -> None:
    """Real silence: not even the kernels acknowledge. The watcher and a function to call are on the broker's side."""
    with lan() as link, serving_at(link.at("broker")) as url:
        near = crew(url, {"name": "near", "functions": {"near::echo": "echo"}}, command=link.at("broker"))
        far = crew(url, VICTIM | {"calls": "near::echo"}, command=link.at("worker"))
        with near as watching, counting(url, command=link.at("broker")) as counter, far as cut_off:
            (victim,) = ask(cut_off)
            eventually(lambda: "victim::echo" in ask(watching)[0]["functions"], True)
            counter.start(victim["id"])
            link.cut()
            assert counter.beacons() <= SILENT
            eventually(lambda: victim["id"] in ask(watching)[0]["workers"], False)
            eventually(lambda: ask(cut_off)[0]["state"] == "connected", False)
            link.mend()
            eventually(lambda: ask(cut_off)[0]["state"], "connected")
            eventually(lambda: ask(watching)[0]["functions"], ["near::echo", "victim::echo"])
            eventually(lambda: ask(watching)[0]["digest"] == ask(cut_off)[0]["digest"], True)
            assert len(ask(watching)[0]["workers"]) == 2


@contextmanager
def serving_at(place: tuple[str, ...]) -> Iterator[str]:
    words = ("serve", "--url", f"tcp://{ADDRESSES['broker']}:0", "--json", *TIMES)
    with running(*words, command=(*place, *COMMAND)) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]


# -- libzmq ------------------------------------------------------------------------------------------------------------


IDLE = """
    import sys, time, zmq
    from iii_zmq.io import sockets
    dealer = sockets.dealer(zmq.Context(), 100, 500)
    dealer.connect(sys.argv[1])
    dealer.send(b"here")
    time.sleep(600)
"""


def test_a_control_connection_of_which_nothing_comes_any_more_is_closed_at_the_broker() -> None:
    """The ROUTER has no heartbeats of its own: the worker's PINGs tell it after how long without one to close."""
    with zmq.Context() as context, sockets.router(context, 500) as router:
        url = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        with program(IDLE, url) as worker:
            assert router.poll(20_000)
            peer, _ = router.recv_multipart()
            time.sleep(0.3)  # a PING or two: what it said itself put an end to those before
            worker.signal(signal.SIGSTOP)
            with pytest.raises(zmq.ZMQError, match="Host unreachable"):
                until(lambda: router.send_multipart([peer, b"still there?"]))


def test_a_stream_that_nobody_reads_survives_its_subscribers_deaths() -> None:
    """The stream has heartbeats. With a finite RCVHWM, libzmq aborts the process when that mark has stopped the input
    of a connection whose peer goes: with the default, 1000, at the first of these subscribers. See ZEROMQ.md."""
    done = run(
        """
        import os, time, zmq
        from iii_zmq.io import sockets
        xpub = sockets.xpub(sockets.new_context(), 50, 500)
        xpub.bind("tcp://127.0.0.1:*")
        url = bytes(xpub.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\\0").decode()
        children = []
        for child in range(5):
            children.append(os.fork())
            if not children[-1]:
                sub = zmq.Context().socket(zmq.SUB)
                sub.setsockopt(zmq.SNDHWM, 0)
                sub.connect(url)
                for topic in range(5000):
                    sub.subscribe(b"%d-%d" % (child, topic))
                time.sleep(0.4)
                os._exit(0)
        for pid in children:
            os.waitpid(pid, 0)
        time.sleep(0.3)  # several heartbeats
        heard = 0
        while xpub.poll(0):
            xpub.recv()
            heard += 1
        print(heard)
        """
    )
    assert (done.code, int(done.out)) == (0, 50_000), done.err
