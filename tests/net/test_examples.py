"""The examples do what they say, each as a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from iii_zmq import Worker
from tests.net.brokers import ROOT, running_broker
from tests.net.commands import Done, example, finish, run

pytestmark = pytest.mark.net

LINES_MAX = 40
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_broker() as broker:
        yield broker.url


def test_every_example_is_short_and_tested() -> None:
    examples = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    tests = (ROOT / "tests" / "net" / "test_examples.py").read_text()
    assert {name for name, text in examples.items() if text.count("\n") > LINES_MAX} == set()
    assert {name for name in examples if f'example("{name}"' not in tests} == set()


def test_worker_serves_until_it_is_told_to_end(url: str) -> None:
    with example("worker.py", url=url) as worker:
        assert run("wait", "payments::refund", url=url).code == 0
        assert run("call", "payments::charge", "amount=10", url=url).json == {"charged": 10}
        assert run("call", "payments::refund", "amount=3", url=url).json == {"refunded": 3}
        worker.send_signal(signal.SIGINT)
        assert finish(worker) == Done(0, "", "")


def test_caller(url: str) -> None:
    with example("caller.py", url=url) as caller, example("worker.py", url=url):
        assert finish(caller, PATIENCE_S) == Done(
            0,
            "{'charged': 10}\n4950\nexecuted: KeyError: 'amount'\nnot_handed_over: no_provider\n",
            "",
        )


def test_async_pair(url: str) -> None:
    with example("async_pair.py", url=url) as pair:
        assert pair.stdout is not None
        assert pair.stdout.readline() == "['lamp reserved', 'desk reserved']\n"
        assert run("call", "orders::create", 'items=["chair"]', url=url).json == ["chair reserved"]
        pair.terminate()
        assert finish(pair) == Done(0, "", "")


def test_watch(url: str) -> None:
    with example("watch.py", url=url) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "connecting: 0 functions of 0 workers\n"
        assert watching.stdout.readline() == "connected: 0 functions of 0 workers\n"
        with Worker("guest", url) as guest:
            assert watching.stdout.readline().split()[1:3] == ["worker_joined", "guest"]
            guest.register("guest::hi", print)
            assert watching.stdout.readline().split()[1:3] == ["function_added", "guest::hi"]
        watching.send_signal(signal.SIGINT)
        done = finish(watching)
    assert (done.code, done.err) == (0, "")


def test_rolling_deploy_loses_nothing(url: str) -> None:
    with example("rolling_deploy.py", url=url) as deploying:
        done = finish(deploying, PATIENCE_S)
    assert (done.code, done.err) == (0, "")
    old, new, verdict = done.out.splitlines()
    assert old.startswith("hello from v1: ")
    assert new.startswith("hello from v2: ")
    assert verdict == "none was lost"


def test_wait_for_gets_what_it_needs(url: str) -> None:
    with example("wait_for.py", url=url) as waiting, example("worker.py", url=url), example("async_pair.py", url=url):
        done = finish(waiting, PATIENCE_S)
    assert done == Done(0, "payments::charge is offered by payments\norders::create is offered by orders\n", "")


def test_wait_for_says_what_is_missing(url: str) -> None:
    with Worker("payments", url) as payments:
        payments.register("payments::charge", print)
        with example("wait_for.py", "0.2", url=url) as waiting:
            done = finish(waiting, PATIENCE_S)
    assert done == Done(1, "", "gave up after 0.2 s: still missing: orders::create\n")
