"""A signal whose handler raises, at any moment of anything that waits: the user's exception comes out, all goes on.

SIGALRM's handler raises an exception of the user's, SIGINT's a KeyboardInterrupt, as Python's own does. Each is raised
between two bytecodes of the main thread, so also in the middle of ours: after a lock was taken and before that was
noted, or while an answer is handed over, which may be another thread's. A program of its own is interrupted some
hundred times, and then uses its worker as if nothing had been.

`with`, `started`: how it joined. `listening`: started, with an `on_change` callback. `shared`: another thread calls
meanwhile. `serving`: started, with a function that another worker calls meanwhile. Whatever is interrupted, no call of
those others ends only by its timeout, as it would if its answer, or the call itself, was read and then forgotten.

Not here: payloads that pyzmq sends uncopied. It has a thread of its own for them, and loses what strikes in its midst.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from iii_zmq import Worker
from tests.net.brokers import RunningBroker, environment, running_broker

pytestmark = pytest.mark.net

LIMITS_S = {200: 15.0, 2000: 30.0}  # by how many interrupts, which take 0.6 and 4 s

PROGRAM = """
import faulthandler, itertools, json, os, queue, random, signal, sys, threading, time, traceback
from iii_zmq import Busy, CallTimeout, IIIError, WaitTimeout, Worker

url, way, life, use, count, limit = sys.argv[1:]
faulthandler.dump_traceback_later(float(limit), exit=True)  # says where a thread waits for ever


class Alarm(Exception):
    pass


def on_signal(number, frame):
    global struck
    struck = frame
    raise expected


def interrupt_main():
    while True:
        arming.get()
        time.sleep(random.uniform(0.0002, 0.003))
        os.kill(os.getpid(), signal.SIGINT)


expected = {"alarm": Alarm, "sigint": KeyboardInterrupt}[way]
arming = queue.SimpleQueue()
if way == "alarm":
    signal.signal(signal.SIGALRM, on_signal)
    arm = lambda: signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.003))
else:
    signal.signal(signal.SIGINT, on_signal)
    threading.Thread(target=interrupt_main, daemon=True).start()
    arm = lambda: arming.put(None)

worker, neighbour = Worker("interrupted", url), Worker("neighbour", url)
heard = []
if life == "serving":
    worker.register("own::echo", lambda value: value)
if life == "listening":
    worker.on_change("i::moved")(heard.append)
worker.__enter__() if life in ("with", "shared") else worker.start()
worker.wait_for("i::echo")
if life == "serving":
    neighbour.start()
    neighbour.wait_for("own::echo")
others_call = {"shared": (worker, "i::echo"), "serving": (neighbour, "own::echo")}.get(life)


def call(number):
    assert worker.call("i::echo", number, timeout=5.0) == number


def submit(number):
    assert worker.submit("i::echo", number, timeout=5.0).result(5.0) == number


def send(number):
    try:
        worker.send("i::echo", number)
    except Busy:  # the broker has not read that many yet
        time.sleep(0.001)


def register(number):
    worker.register("own::f", lambda value: value, replace=True)  # an unregistration may have been interrupted
    worker.unregister("own::f")


def wait_for(number):
    worker.wait_for("i::echo", timeout=5.0)
    try:
        worker.wait_for("absent::f", timeout=0.001)
    except WaitTimeout:
        pass


uses = {"call": call, "submit": submit, "send": send, "register": register, "wait_for": wait_for}
act = uses[use]
numbers = itertools.count()
interrupted, swallowed, wrong = 0, [], []
over = threading.Event()


def call_beside(caller, function_id):
    while not over.is_set():
        try:
            assert caller.call(function_id, -2, timeout=5.0) == -2
        except CallTimeout as error:
            wrong.append(f"in another thread: {error!r}")
        except IIIError:
            pass  # failed in time


if others_call:
    beside = threading.Thread(target=call_beside, args=others_call, daemon=True)
    beside.start()
while interrupted < int(count):
    try:
        arm()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            act(next(numbers))
        swallowed.append("".join(traceback.format_stack(struck)))
    except BaseException as error:
        if type(error) is expected:
            interrupted += 1
        else:
            while True:  # until the interrupt that may still be to come is here
                try:
                    time.sleep(0.5)
                    break
                except expected:
                    pass
            wrong.append("".join(traceback.format_exception(error)))

def use_all():
    for one in uses.values():
        one(-1)


over.set()
if others_call:
    beside.join(8.0)
    wrong += ["the other thread never came back"] * beside.is_alive()
patience = time.monotonic() + 5.0
while time.monotonic() < patience:  # for sends that are still on their way, as many as may be
    try:
        call(-1)
        break
    except Busy:
        time.sleep(0.01)
use_all()
using = threading.Thread(target=use_all, daemon=True)
using.start()
using.join(5.0)
worker.close()
neighbour.close()
print(json.dumps({
    "wrong": wrong[:3], "swallowed": swallowed[:3], "another thread waits": using.is_alive(), "state": worker.state,
    "heard": bool(heard),
}))
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture(scope="module")
def url(broker: RunningBroker) -> Iterator[str]:
    """Of a broker where `i::echo` is offered, and the registry changes all the time."""
    over = threading.Event()
    with Worker("provider", broker.url, threads=0) as provider, Worker("mover", broker.url) as mover:
        provider.register("i::echo", lambda value: value)
        provider.start()

        def move() -> None:
            while not over.wait(0.01):
                mover.register("i::moved", lambda value: value)
                mover.unregister("i::moved")

        moving = threading.Thread(target=move, daemon=True)
        moving.start()
        yield broker.url
        over.set()
        moving.join(10.0)


CASES = [
    ("with", "call"), ("started", "call"), ("listening", "call"), ("shared", "call"), ("serving", "call"),
    ("with", "submit"), ("started", "submit"), ("listening", "submit"),
    ("with", "send"), ("started", "send"),
    ("with", "register"), ("started", "register"),
    ("with", "wait_for"), ("started", "wait_for"),
]  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(count, marks=[pytest.mark.slow] * (count > 200)) for count in LIMITS_S])
@pytest.mark.parametrize("way", ["alarm", "sigint"])
@pytest.mark.parametrize(("life", "use"), CASES)
def test_an_interrupt_comes_out_as_itself_and_all_goes_on(url: str, life: str, use: str, way: str, count: int) -> None:
    """A lock could stay held for ever: it was taken in one bytecode, and the next one was to see to its release."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), url, way, life, use, str(count), str(LIMITS_S[count])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMITS_S[count] + 5.0, env=environment())
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    # Python itself reports what strikes in a `__del__`, and goes on.
    told["swallowed"] = [stack for stack in told["swallowed"] if "__del__" not in stack]
    assert told == {
        "wrong": [], "swallowed": [], "another thread waits": False, "state": "closed", "heard": life == "listening",
    }, ended.stderr  # fmt: skip
