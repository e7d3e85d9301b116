"""The command line over real processes: each verb for people and for programs, and each exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from iii_zmq import Worker, wire
from iii_zmq.cli.app import run as run_here
from iii_zmq.core.worker.changes import Position
from tests.net.brokers import RunningBroker, running_broker
from tests.net.commands import Done, finish, run, running
from tests.net.raw import RawPeer

pytestmark = pytest.mark.net

NOBODY = "tcp://127.0.0.1:9"  # discard: nothing listens there
END_S = 2.0  # how soon everything ends when it is told to
HELP_S = 1.0  # far above the 0.1 s it takes, below what a start of everything would take on a slow machine


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    with running_broker() as served:
        yield served


@pytest.fixture(scope="module")
def url(broker: RunningBroker) -> str:
    return broker.url


@pytest.fixture(scope="module")
def provider(url: str) -> Iterator[Worker]:
    """Offers one function for each way in which a call can end."""
    worker = Worker("payments", url, metadata={"zone": "a"})
    release = threading.Event()

    def fail(payload: Any) -> None:
        raise ValueError(f"no\nway: {payload}")

    worker.register("payments::echo", lambda payload: payload, description="Give it back", metadata={"tier": 1})
    worker.register("payments::fail", fail, request_schema={"type": "object"}, idempotent=True)
    worker.register("payments::stuck", lambda payload: release.wait(30), internal=True)
    worker.register(
        "audit::bytes", lambda payload: {"raw": b"\x00\xff", "kind": type(payload).__name__}, exclusive=True
    )
    with worker:
        yield worker
        release.set()


# -- looking -----------------------------------------------------------------------------------------------------------


def test_functions_for_programs(url: str, provider: Worker) -> None:
    told = run("functions", "--json", url=url).json
    assert list(told) == ["position", "functions"]
    assert told["position"] == provider.position._asdict()
    assert [function["id"] for function in told["functions"]] == ["audit::bytes", "payments::echo", "payments::fail"]
    assert told["functions"][1] == {
        "id": "payments::echo",
        "description": "Give it back",
        "metadata": {"tier": 1},
        "exclusive": False,
        "idempotent": False,
        "internal": False,
        "request_schema": None,
        "response_schema": None,
        "providers": [{"worker_id": provider.id, "worker_name": "payments", "state": "ready", "active": True}],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["--prefix", "audit::"], ["audit::bytes"]),
        (["--search", "GIVE it"], ["payments::echo"]),
        (["--worker", "payments", "--search", "fail"], ["payments::fail"]),
        (["--worker", "nobody"], []),
        (["--all", "--prefix", "payments::"], ["payments::echo", "payments::fail", "payments::stuck"]),
        (["--all", "--search", "ping"], ["engine::ping"]),
    ],
)
def test_functions_are_filtered_as_the_broker_does_it(
    url: str, provider: Worker, words: list[str], ids: list[str]
) -> None:
    names = {"--prefix": "prefix", "--search": "search", "--worker": "worker"}
    asked = {names[name]: value for name, value in pairwise(words) if name in names}
    listed = provider.call("engine::functions::list", {**asked, "all": "--all" in words})
    assert [function["id"] for function in listed["functions"]] == ids
    assert run("functions", "--json", *words, url=url).json["functions"] == listed["functions"]


def test_functions_for_people(url: str, provider: Worker) -> None:
    done = run("functions", url=url)
    assert done.code == 0
    assert done.out.splitlines()[0].split() == ["FUNCTION", "PROVIDERS", "FLAGS", "DESCRIPTION"]
    assert done.out.splitlines()[2].split(maxsplit=2) == ["payments::echo", "payments", "Give it back"]


def test_workers_for_programs(url: str, provider: Worker) -> None:
    told = run("workers", "--json", url=url).json
    assert told["position"] == provider.position._asdict()
    assert told["workers"] == [
        {
            "id": provider.id,
            "name": "payments",
            "host": provider.workers[provider.id].host,
            "pid": os.getpid(),
            "state": "ready",
            "metadata": {"zone": "a"},
            "functions": ["audit::bytes", "payments::echo", "payments::fail", "payments::stuck"],
            "in_flight": 0,
        }
    ]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--prefix", "pay"], 1),
        (["--prefix", "x"], 0),
        (["--search", "AYM"], 1),
        (["--worker", "payments", "--all"], 1),
    ],
)
def test_workers_are_filtered(url: str, provider: Worker, words: list[str], count: int) -> None:
    assert len(run("workers", "--json", *words, url=url).json["workers"]) == count


def test_calls_in_flight_are_shown(url: str, provider: Worker) -> None:
    with Worker("caller", url) as caller:
        stuck = caller.submit("payments::stuck")
        while caller.call("engine::status")["in_flight"] == 0:
            pass
        (row,) = run("workers", "--worker", "payments", "--json", url=url).json["workers"]
        assert row["in_flight"] == 1
        assert run("workers", "--worker", "payments", url=url).out.splitlines()[1].split()[5] == "1"
        assert run("status", "--json", url=url).json["in_flight"] == 1
        stuck.cancel()


@pytest.mark.slow
def test_a_stalled_worker_stands_out() -> None:
    script = "from iii_zmq import Worker; w = Worker('sleepy'); w.register('s::s', print); w.run()"
    with (
        running_broker("--heartbeat", "0.05", "--ttl", "600") as quick,
        Worker("watcher", quick.url) as watcher,
        running("-c", script, url=quick.url, command=(sys.executable,)) as sleepy,
    ):
        watcher.wait_for("s::s", timeout=60)
        changes = watcher.changes(timeout=60)
        sleepy.send_signal(signal.SIGSTOP)
        assert next(changes).kind == "worker_changed"
        (line,) = [line for line in run("workers", url=quick.url).out.splitlines() if line.startswith("sleepy")]
        assert "stalled" in line
        assert "sleepy (stalled)" in run("functions", url=quick.url).out
        sleepy.kill()
        assert next(change.reason for change in changes if change.kind == "worker_left") == "died"
        assert "1 died" in run("status", url=quick.url).out


@pytest.mark.slow
def test_info_is_one_element_of_the_lists(url: str, provider: Worker) -> None:
    functions = run("functions", "--all", "--json", url=url).json["functions"]
    (worker,) = run("workers", "--json", url=url).json["workers"]
    for function in functions[:1] + functions[-1:]:
        assert run("info", function["id"], "--json", url=url).json == function
    assert run("info", worker["id"], "--json", url=url).json == worker
    assert run("info", "payments", "--json", url=url).json == worker


def test_info_for_people(url: str, provider: Worker) -> None:
    assert "tier" in run("info", "payments::echo", url=url).out
    assert "payments::stuck" in run("info", "payments", url=url).out


@pytest.mark.parametrize("id", ["payments::missing", "engine::missing", "no such thing", ""])
def test_info_of_what_is_not_there(url: str, provider: Worker, id: str) -> None:
    assert _failed(run("info", id, url=url), 3) == f"iii-broker: no function or worker '{id}'"


def test_status(broker: RunningBroker, provider: Worker) -> None:
    told = run("status", "--json", url=broker.url).json
    assert list(told)[:9] == [
        "version", "epoch", "seq", "digest", "uptime_s", "workers", "functions", "in_flight", "counters",
    ]  # fmt: skip
    assert (told["epoch"], told["seq"], told["digest"]) == (*provider.position, provider.digest)
    assert (told["workers"], told["functions"]) == (1, 4)
    assert provider.digest in run("status", url=broker.url).out


def test_looking_is_no_change(url: str, provider: Worker) -> None:
    before = provider.position
    for verb in ("functions", "workers", "status", "ping"):
        run(verb, url=url)
    assert provider.position == before


def test_ping(url: str) -> None:
    told = run("ping", "--json", url=url).json
    assert list(told) == ["ms"]
    assert 0 < told["ms"] < 1000
    assert run("ping", url=url).out.startswith("answered in ")


# -- calling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "stdin", "result"),
    [
        ([], "", None),
        (['{"amount": 10}'], "", {"amount": 10}),
        (["amount=10", "currency=EUR"], "", {"amount": 10, "currency": "EUR"}),
        (["-"], '[1, "größe"]', [1, "größe"]),
        (["-5"], "", -5),
        (['{"$bytes": "aGk="}'], "", {"$bytes": "aGk="}),
    ],
)
def test_call(url: str, provider: Worker, words: list[str], stdin: str, result: Any) -> None:
    assert run("call", "payments::echo", *words, "--json", url=url, stdin=stdin).json == result


def test_bytes_arrive_as_bytes(url: str, provider: Worker) -> None:
    done = run("call", "audit::bytes", '{"$bytes": ""}', "--worker", str(provider.id), url=url)
    assert done.json == {"raw": {"$bytes": "AP8="}, "kind": "bytes"}


def test_exit_1_when_the_handler_fails(url: str, provider: Worker) -> None:
    assert _failed(run("call", "payments::fail", "x=1", url=url), 1) == "iii-broker: ValueError: no way: {'x': 1}"
    done = run("call", "payments::fail", "--json", url=url)
    assert (done.code, done.out) == (1, "")
    assert done.error == {"error": "handler_failed", "message": "ValueError: no way: None", "fate": "executed"}


@pytest.mark.parametrize(
    "words",
    [
        ["functoins"],
        ["functions", "--perfix", "x"],
        ["call"],
        ["call", "not an id"],
        ["call", "a:b"],
        ["call", "a::"],
        ["call", "a::b", "{"],
        ["call", "a::b", "18446744073709551616"],
        ["call", "a::b", '"\\ud800"'],
        ["call", "a::b", "--timeout", "-1"],
        ["call", "a::b", "--timeout", "nan"],
        ["call", "a::b", "--timeuot", "1"],
        ["wait"],
        ["wait", "a b"],
        ["watch", "--from", "soon"],
        ["watch", "--from", ":1"],
        ["watch", "--count", "-1"],
        ["ping", "--url", "localhost"],
        ["serve", "--url", "nonsense"],
        ["serve", "--url", "tcp://127.0.0.1:65535"],
        ["serve", "--log-level", "loud"],
        ["serve", "--heartbeat", "0"],
        ["serve", "--heartbeat", "2", "--ttl", "1"],
    ],
)
def test_exit_2_for_wrong_usage(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    _failed(Done(run_here(words), *capfd.readouterr()), 2)


def test_wrong_usage_for_programs() -> None:
    _failed(run("functions", "--perfix", "x"), 2)
    done = run("functions", "--perfix", "x", "--json")
    assert (done.code, done.out) == (2, "")
    assert done.error["error"] == "usage"


@pytest.mark.parametrize(
    "words", [["payments::missing"], ["engine::missing"], ["payments::echo", "--worker", "nobody"]]
)
def test_exit_3_when_nobody_offers_it(url: str, provider: Worker, words: list[str]) -> None:
    done = run("call", *words, "--json", url=url)
    assert done.code == 3
    assert (done.error["error"], done.error["fate"]) == ("no_provider", "not_handed_over")


def test_exit_4_when_the_time_is_over(url: str, provider: Worker) -> None:
    done = run("call", "payments::stuck", "--timeout", "0.3", "--json", url=url)
    assert done.code == 4
    assert (done.error["error"], done.error["fate"]) == ("timeout", "possibly_executed")


def test_exit_5_when_all_are_busy(url: str) -> None:
    release = threading.Event()
    slow = Worker("slow", url, credit=1, threads=1)
    slow.register("slow::work", lambda payload: release.wait(30))
    with slow, Worker("caller", url) as caller:
        crowd = [caller.submit("slow::work", timeout=60) for _ in range(1025)]  # one runs, 1,024 are queued
        caller.call("engine::ping")
        done = run("call", "slow::work", "--json", url=url)
        release.set()
        assert all(future.result() for future in crowd)
    assert done.code == 5
    assert (done.error["error"], done.error["fate"]) == ("busy", "not_handed_over")


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["ping"], ["call", "a::b"], ["wait", "a::b"], ["watch"]])
def test_exit_6_when_no_broker_answers(verb: list[str]) -> None:
    done = run(*verb, "--timeout", "0.3", "--url", NOBODY, "--json")
    assert done.code == 6
    assert NOBODY in done.error["message"]


@pytest.mark.slow
def test_exit_6_when_the_broker_is_lost_during_a_call() -> None:
    script = "import time; from iii_zmq import Worker; w = Worker('w'); w.register('w::w', time.sleep); w.run()"
    with (
        running_broker() as mortal,
        Worker("watcher", mortal.url) as watcher,
        running("-c", script, url=mortal.url, command=(sys.executable,)),
    ):
        watcher.wait_for("w::w", timeout=10)
        with running("call", "w::w", "30", "--json", url=mortal.url) as calling:
            while watcher.call("engine::status")["in_flight"] == 0:
                pass
            mortal.process.kill()
            done = finish(calling)
    assert done.code == 6
    assert done.error["fate"] == "possibly_executed"


def test_exit_7_when_the_provider_is_lost(url: str) -> None:
    script = (
        "import os; from iii_zmq import Worker; w = Worker('m'); w.register('m::m', lambda p: os._exit(1)); w.run()"
    )
    with running("-c", script, url=url, command=(sys.executable,)):
        assert run("wait", "m::m", url=url).code == 0
        done = run("call", "m::m", "--json", url=url)
    assert done.code == 7
    assert (done.error["error"], done.error["fate"]) == ("provider_lost", "possibly_executed")


def test_wait(url: str, provider: Worker) -> None:
    assert run("wait", "payments::echo", "engine::ping", "--json", url=url).json == {
        "found": ["payments::echo", "engine::ping"],
        "missing": [],
    }


def test_wait_ends_when_the_function_comes(url: str, provider: Worker) -> None:
    with running("wait", "late::comer", "payments::echo", url=url) as waiting:
        _joined(provider, 1)
        with Worker("late", url) as late:
            late.register("late::comer", print)
            assert finish(waiting).out == "found late::comer\nfound payments::echo\n"


def test_wait_tells_what_is_missing(url: str, provider: Worker) -> None:
    done = run("wait", "payments::echo", "a::b", "--timeout", "0.1", "--json", url=url)
    assert (done.code, done.json) == (4, {"found": ["payments::echo"], "missing": ["a::b"]})
    assert done.error["message"] == "still missing: a::b"
    assert run("wait", "engine::missing", url=url).code == 3


# -- watching ----------------------------------------------------------------------------------------------------------


def test_watch_tells_the_start_and_every_change(url: str, provider: Worker) -> None:
    at = _position(provider)
    with running("watch", "--count", "3", "--json", url=url) as watching:
        first = watching.stdout.readline() if watching.stdout else ""
        with Worker("guest", url) as guest:
            guest.register("guest::hi", print)
            guest_id = guest.id
        told = finish(watching).lines
    assert Done(0, first, "").json == {"start": "snapshot", "position": at._asdict()}
    assert [line["seq"] for line in told] == [at.seq + 1, at.seq + 2, at.seq + 3]
    assert told[1] == {
        "kind": "function_added",
        "function_id": "guest::hi",
        "worker_id": guest_id,
        "worker_name": "guest",
        "reason": None,
        "epoch": at.epoch,
        "seq": at.seq + 2,
        "providers": 1,
    }


def test_watch_resumes_with_exactly_what_was_missed(url: str, provider: Worker) -> None:
    heard = provider.changes()
    at = _position(provider)
    with Worker("guest", url) as guest:
        guest.register("guest::hi", print)
        guest.register("guest::hi", print, description="again", replace=True)
        guest.unregister("guest::hi")
    missed = []
    for change in heard:
        missed.append(change.to_json())
        if change.kind == "worker_left":
            break
    for start in (f"{at.seq}", f"{at.epoch}:{at.seq}"):
        start_line, *told = run("watch", "--from", start, "--count", str(len(missed)), "--json", url=url).lines
        assert start_line == {"start": "resumed", "position": at._asdict()}
        assert told == missed


def test_watch_tells_new_from_replaced_functions_of_one_batch(url: str) -> None:
    """The missed deltas alone do not say it: what came before them does."""
    with Worker("guest", url) as guest:
        guest.register("mix::old", print)
        at = guest.position
        guest.register_many([("mix::old", print, {"description": "again"}), ("mix::new", print)], replace=True)
        _, *told = run("watch", "--from", str(at.seq), "--count", "1", "--json", url=url).lines
    assert [(line["kind"], line["function_id"]) for line in told] == [
        ("function_added", "mix::new"),
        ("function_changed", "mix::old"),
    ]


def test_watch_goes_on_live_after_the_past(url: str, provider: Worker) -> None:
    at = _position(provider)
    with Worker("early", url), running("watch", "--from", str(at.seq), "--count", "3", "--json", url=url) as watching:
        assert watching.stdout is not None
        watching.stdout.readline(), watching.stdout.readline()
        with Worker("late", url):
            pass
        told = finish(watching).lines
    assert [(line["kind"], line["worker_name"], line["seq"]) for line in told] == [
        ("worker_joined", "late", at.seq + 2),
        ("worker_left", "late", at.seq + 3),
    ]


BATCH = [f"batch::f{number:02}" for number in range(50)]


def test_watch_counts_whole_changes_and_what_comes_after_them_can_be_resumed(url: str) -> None:
    """It stopped in the middle of a batch, and `--from` that seq left the rest of it out."""
    with Worker("guest", url) as guest:
        at = guest.position.seq
        with running("watch", "--count", "2", "--json", url=url) as watching:
            assert watching.stdout is not None
            watching.stdout.readline()
            guest.register("batch::before", print)
            guest.register_many([(function_id, print) for function_id in BATCH])
            told = finish(watching).lines
        guest.register("batch::after", print)
        _, *resumed = run("watch", "--from", str(told[-1]["seq"]), "--count", "1", "--json", url=url).lines
    assert [(line["function_id"], line["seq"]) for line in told + resumed] == [
        ("batch::before", at + 1),
        *((function_id, at + 2) for function_id in BATCH),
        ("batch::after", at + 3),
    ]


def test_watch_counts_whole_changes_of_the_past_and_those_that_are_asked_for(url: str) -> None:
    with Worker("guest", url) as guest:
        at = guest.position.seq
        guest.register("other::before", print)
        guest.register_many([(function_id, print) for function_id in BATCH])
        for count, patterns, expected in ((2, (), ["other::before", *BATCH]), (1, ("batch::f1*",), BATCH[10:20])):
            words = ["watch", *patterns, "--from", str(at), "--count", str(count), "--json"]
            assert [line["function_id"] for line in run(*words, url=url).lines[1:]] == expected


def test_watch_shows_how_a_worker_changed_with_the_last_of_its_count(url: str) -> None:
    with RawPeer(url) as guest:
        at = guest.join("guest").status()["seq"]
        guest.send(wire.Drain(guest.number()))
        guest.read(wire.Ack)
        done = run("watch", "--from", str(at), "--count", "1", url=url)
    assert (done.code, done.err) == (0, "")
    assert "worker_changed guest" in done.out
    assert done.out.endswith("draining now\n")


@pytest.mark.parametrize("start", ["1000000", "0123456789abcdef:1"])
def test_watch_says_when_it_cannot_resume(url: str, provider: Worker, start: str) -> None:
    (line,) = run("watch", "--from", start, "--timeout", "0", "--json", url=url).lines
    assert line == {"start": "snapshot", "position": provider.position._asdict()}


def test_watch_from_now_misses_nothing(url: str, provider: Worker) -> None:
    at = _position(provider)
    (line,) = run("watch", "--from", str(at.seq), "--timeout", "0", "--json", url=url).lines
    assert line == {"start": "resumed", "position": at._asdict()}


def test_watch_only_some_functions(url: str, provider: Worker) -> None:
    at = _position(provider)
    with Worker("guest", url) as guest:
        guest.register("guest::a", print)
        guest.register("guest::b", print)
    done = run("watch", "guest::b*", "--from", str(at.seq), "--count", "2", url=url)
    assert [line.split()[1:3] for line in done.out.splitlines()[1:]] == [
        ["function_added", "guest::b"],
        ["function_removed", "guest::b"],
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_with_0(url: str, number: signal.Signals) -> None:
    with running("watch", url=url) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("snapshot at ")
        watching.send_signal(number)
        assert finish(watching, END_S) == Done(0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_130_for_everything_else(url: str, provider: Worker, number: signal.Signals) -> None:
    with running("wait", "a::b", url=url) as waiting:
        _joined(provider, 1)
        waiting.send_signal(number)
        assert finish(waiting, END_S) == Done(130, "", "")


def test_a_reader_that_had_enough_is_no_error(url: str, provider: Worker) -> None:
    with running("watch", "--from", "0", url=url) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.stdout.close()
        with Worker("guest", url), Worker("guest", url):
            pass
        assert watching.wait(END_S) == 0
        assert watching.stderr is not None
        assert watching.stderr.read() == ""


# -- serving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", [[], ["serve"]])
def test_serve_says_where_and_ends_soon(verb: list[str], number: signal.Signals) -> None:
    with running(*verb, "--url", "tcp://127.0.0.1:0") as serving:
        assert serving.stdout is not None
        words = serving.stdout.readline().split()
        assert [words[0], words[1], words[3], words[5]] == ["listening", "on", "stream", "epoch"]
        with Worker("worker", words[2]) as worker:
            assert worker.position.epoch == words[6]
            serving.send_signal(number)
            done = finish(serving, END_S)
    assert (done.code, done.out) == (0, "")
    assert [line.split()[2:4] for line in done.err.splitlines()] == [
        ["INFO", "serving"], ["INFO", "joined:"], ["INFO", "closing,"],
    ]  # fmt: skip


def test_exit_5_when_the_port_is_taken(broker: RunningBroker) -> None:
    done = run("serve", "--url", broker.url, "--json")
    assert done.code == 5
    assert done.error["error"] == "address_in_use"
    done = run("serve", "--url", "tcp://127.0.0.1:0", "--stream-url", broker.stream_url)
    assert broker.stream_url in _failed(done, 5)


@pytest.mark.slow
def test_an_ipc_path_is_served_by_one_broker(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/broker"
    with running_broker(url=address) as served:
        assert (served.url, served.stream_url) == (address, f"{address}.stream")
        assert address in _failed(run("serve", "--url", address), 5)
        assert run("ping", url=address).code == 0
    with running_broker(url=address):
        assert run("ping", "--url", address).code == 0


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    _failed(run("serve", "--url", f"ipc://{tmp_path}/missing/broker"), 5)


def test_other_addresses_are_served_with_a_warning() -> None:
    with running("serve", "--url", "tcp://0.0.0.0:0", "--log-level", "warning") as serving:
        assert serving.stdout is not None
        port = serving.stdout.readline().split()[2].rsplit(":", 1)[1]
        assert run("ping", url=f"tcp://127.0.0.1:{port}").code == 0
        serving.terminate()
        done = finish(serving)
    assert done.code == 0
    assert done.err.startswith("warning: tcp://0.0.0.0:")
    assert done.err.count("\n") == 1


# -- help --------------------------------------------------------------------------------------------------------------


def test_every_verb_has_help_with_examples(capfd: pytest.CaptureFixture[str]) -> None:
    told = run("--help").out
    verbs = [line.split()[0] for line in told.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert verbs == [
        "serve",
        "demo",
        "functions",
        "workers",
        "info",
        "watch",
        "call",
        "wait",
        "ping",
        "status",
        "bench",
    ]
    assert "Exit codes:" in told
    for verb in verbs:
        assert run_here([verb, "--help"]) == 0
        assert f"  iii-broker {verb}" in capfd.readouterr().out


def test_help_comes_at_once() -> None:
    run("--help")
    began = time.monotonic()
    assert run("--help").code == 0
    assert time.monotonic() - began < HELP_S


def test_version() -> None:
    from iii_zmq import __version__

    assert run("--version").out == f"iii-broker {__version__}{' (compiled)' if wire.COMPILED else ''}\n"


def test_bench_hands_its_arguments_on() -> None:
    done = run("bench", "no-such-benchmark")
    assert done.code == 2
    assert "no-such-benchmark" in done.err


# -- helpers -----------------------------------------------------------------------------------------------------------


def _failed(done: Done, code: int) -> str:
    """The one line that says why."""
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("iii-broker: ")
    assert done.err.count("\n") == 1
    return done.err.rstrip("\n")


def _position(watcher: Worker) -> Position:
    """Of the broker now: whoever left in the test before may still be there, as far as the watcher knows."""
    seq = watcher.call("engine::status")["seq"]
    until = time.monotonic() + 10
    while watcher.position.seq < seq:
        assert time.monotonic() < until
        time.sleep(0.005)
    return watcher.position


def _joined(watcher: Worker, count: int) -> None:
    """An observer is no row: the broker's sessions tell that one more than this worker is there."""
    until = time.monotonic() + 10
    while watcher.call("engine::status")["sessions"] < 1 + count:
        assert time.monotonic() < until
