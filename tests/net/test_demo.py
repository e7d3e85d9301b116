"""`iii-broker demo`: the main job, seen from outside."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path

import pytest

from iii_zmq.cli.demo import script
from tests.net.brokers import ROOT
from tests.net.commands import finish, run, running

pytestmark = pytest.mark.net

WITHIN_S = 60.0
END_S = 5.0


def test_the_demo_shows_the_main_job() -> None:
    done = run("demo", "--json", patience_s=WITHIN_S)
    assert (done.code, done.err) == (0, "")
    *events, outcome = done.lines
    assert outcome["ok"] is True
    assert outcome["problems"] == []
    workers = {row["worker"]: row for row in outcome["workers"]}
    assert {name: row["end"] for name, row in workers.items()} == {
        "watcher": "alive",
        "payments-1": "alive",
        "payments-2": "killed",
        "stock": "left",
        "orders": "left",
    }
    assert {row["missed"] for row in workers.values()} == {0}
    assert workers["watcher"]["digest"] == workers["payments-1"]["digest"]
    reasons = {(event["change"]["reason"], event["change"]["worker_name"]) for event in events if "change" in event}
    assert {("died", "payments-2"), ("bye", "orders"), ("bye", "stock"), ("unregistered", "payments-1")} <= reasons
    assert len({event["worker"] for event in events if event["event"] == "called"}) == 3
    assert all(event["ms"] > 0 for event in events if event["event"] == "change")


def test_the_demo_reads_well_through_a_pipe() -> None:
    done = run("demo", patience_s=WITHIN_S)
    assert (done.code, done.err) == (0, "")
    assert "- payments-2 (died)" in done.out
    assert "Nobody missed anything" in done.out
    assert [line for line in done.out.splitlines() if line != line.rstrip() or len(line) > 200] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_takes_its_children_with_it(number: signal.Signals) -> None:
    with running("demo") as demo:
        _read_until(demo.stdout, "   watcher (watch.py) joined")
        demo.send_signal(signal.SIGSTOP)
        children = _children(demo.pid)
        assert len(children) == 5
        demo.send_signal(number)
        demo.send_signal(signal.SIGCONT)
        assert finish(demo, END_S).code == 130
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []


@pytest.mark.slow
def test_children_end_when_the_demo_is_killed() -> None:
    with running("demo") as demo:
        _read_until(demo.stdout, "   watcher (watch.py) joined")
        demo.send_signal(signal.SIGSTOP)
        pidfds = [os.pidfd_open(pid) for pid in _children(demo.pid)]
        demo.kill()
        for pidfd in pidfds:
            assert _ends(pidfd)
            os.close(pidfd)


@pytest.mark.slow
def test_the_demo_fails_when_a_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (ROOT / "examples").iterdir():
        if path.suffix == ".py":
            (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "async_pair.py").write_text("raise SystemExit('out of order')")
    monkeypatch.setattr(script, "EXAMPLES", tmp_path)
    assert script.play(as_json=True) == 1
    outcome = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert outcome["ok"] is False
    assert outcome["problems"] == ["pair ended too early (exit status 1): out of order"]


def _read_until(lines: object, start: str) -> None:
    assert lines is not None
    assert any(line.startswith(start) for line in lines)  # type: ignore[attr-defined]


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _ends(pidfd: int) -> bool:
    """Whether the process ends in time."""
    return bool(select.select([pidfd], [], [], END_S)[0])
