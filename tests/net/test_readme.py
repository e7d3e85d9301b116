"""Every program in README.md does what the page says, each as a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from iii_zmq import Worker
from tests.net.brokers import ROOT, running_broker
from tests.net.commands import Done, finish, running

pytestmark = pytest.mark.net

TEXT = (ROOT / "README.md").read_text()
# In the order of the page; a program more or less there is an error here.
NAMES = ("worker", "caller", "async", "watcher", "exclusive", "idempotent", "send", "failure")
PROGRAMS = dict(zip(NAMES, re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL), strict=True))
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_broker() as broker:
        yield broker.url


def test_every_program_is_run_here() -> None:
    source = (ROOT / "tests" / "net" / "test_readme.py").read_text()
    assert {name for name in NAMES if f'program("{name}"' not in source} == set()


def test_the_first_worker_is_called_by_the_first_caller(url: str) -> None:
    with program("worker", url) as charging, program("caller", url) as caller:
        assert finish(caller, PATIENCE_S) == Done(0, "{'charged': 10}\n", "")
        charging.send_signal(signal.SIGTERM)
        assert finish(charging, PATIENCE_S) == Done(0, "", "")


def test_the_async_worker_calls_itself(url: str) -> None:
    with program("async", url) as stock:
        assert finish(stock, PATIENCE_S) == Done(0, "['lamp reserved', 'desk reserved']\n", "")


def test_the_watcher_prints_what_its_comment_says(url: str) -> None:
    expected = "function_added payments::charge 1\n"
    assert f"# {expected}" in PROGRAMS["watcher"]
    printed = threading.Event()

    def come_and_go() -> None:  # nothing outside shows when the watcher's replica is complete
        while not printed.wait(0.05):
            worker.register("payments::charge", print)
            worker.unregister("payments::charge")

    with Worker("test", url) as worker, program("watcher", url) as watching:
        changing = threading.Thread(target=come_and_go)
        changing.start()
        assert watching.stdout is not None
        assert expected in watching.stdout
        printed.set()
        changing.join()
        watching.send_signal(signal.SIGINT)
        assert finish(watching, PATIENCE_S).code == 0


def test_of_two_nightly_workers_one_is_active_and_its_heir_has_a_higher_fence(url: str) -> None:
    with ExitStack() as stack, Worker("test", url) as worker:
        nights = [stack.enter_context(program("exclusive", url)) for _ in range(2)]
        worker.wait_for("nightly::report", timeout=PATIENCE_S)
        before = worker.call("nightly::report", "Monday")
        while len(worker.functions["nightly::report"].providers) < 2:
            pass
        assert worker.call("nightly::report", "Monday") == before
        pid = worker.workers[before["worker"]].pid
        next(night for night in nights if night.pid == pid).kill()
        while before["worker"] in worker.workers:
            pass
        after = worker.call("nightly::report", "Tuesday")
    assert (after["day"], after["worker"] != before["worker"]) == ("Tuesday", True)
    assert after["fence"] > before["fence"]


def test_the_rates_are_idempotent(url: str) -> None:
    with program("idempotent", url), Worker("test", url) as worker:
        worker.wait_for("rates::euro", timeout=PATIENCE_S)
        assert worker.functions["rates::euro"].idempotent
        assert worker.call("rates::euro", "USD") == 0.9


def test_what_is_sent_arrives(url: str) -> None:
    logged: list[Any] = []
    came = threading.Event()

    def log(entry: Any) -> None:
        logged.append(entry)
        came.set()

    worker = Worker("audit", url)
    worker.register("audit::log", log)
    with worker, program("send", url):
        worker.wait_for("web::page", timeout=PATIENCE_S)
        assert worker.call("web::page", "/cart") == "this is /cart"
        assert came.wait(PATIENCE_S)
    assert logged == [{"page": "/cart"}]


def test_a_failed_call_prints_what_its_comment_says(url: str) -> None:
    with program("failure", url) as failing:
        done = finish(failing, PATIENCE_S)
    assert done == Done(0, "not_handed_over no_provider\n", "")
    assert f"# {done.out}" in PROGRAMS["failure"]


def test_the_page_names_files_that_are_there() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", TEXT)
    assert len(links) > 5
    assert {link for link in links if not (ROOT / link).exists()} == set()


@contextmanager
def program(name: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """One of the page's programs, as a process whose output is not buffered."""
    with running("-u", "-c", PROGRAMS[name], url=url, command=(sys.executable,)) as process:
        yield process
