"""The demo, step by step, and the verdict at its end.

Each step has a cause at a known moment and ends when every worker has heard of it. So every notice belongs to one
cause, and the demo shows the milliseconds between the two. The truth that all workers are compared with comes from this
process's own observer, which joins first.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..client import joined
from ..exits import Exit, usage
from .cast import Cast, Child, ChildFailed, Report
from .narration import Narration, Outcome, narration
from .verdict import Changes, Record, missed, problems

if TYPE_CHECKING:
    from ...core.worker.changes import Change
    from ...io.worker.sync_worker import Worker

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
STARTED_S = 15.0  # time for a child to start on a busy machine
HEARD_S = 5.0  # time for every worker to hear of a change; it takes milliseconds

# (the child's title, the example, its workers' names in the order in which they join, old=new names)
PROGRAMS = (
    ("watcher", "watch.py", ("watcher",), ()),
    ("payments-1", "worker.py", ("payments-1",), ("payments=payments-1",)),
    ("payments-2", "worker.py", ("payments-2",), ("payments=payments-2",)),
    ("pair", "async_pair.py", ("stock", "orders"), ()),
)
NEW = "payments::report"


def play(as_json: bool) -> int:
    """Runs the demo; the exit code. Raises: CommandError, IIIError."""
    if not EXAMPLES.is_dir():
        raise usage("demo needs a checkout of the project: the installed package does not contain the examples")
    tell = narration(as_json)
    began = time.monotonic()
    try:
        with Cast() as cast:
            outcome = _play(cast, tell)
    except ChildFailed as failure:
        outcome = Outcome([str(failure)], [])
    tell.outcome(outcome, time.monotonic() - began)
    return Exit.HANDLER_FAILED if outcome.problems else Exit.OK


def _play(cast: Cast, tell: Narration) -> Outcome:
    tell.title("A live registry: one broker, four programs, no polling.")
    tell.step("The broker starts.")
    cast.start("broker", "serve", "--url", "tcp://127.0.0.1:0", "--json", "--log-level", "error")
    listening = _expect(cast, lambda report: report["event"] == "listening", STARTED_S)
    tell.broker(listening)
    with joined(listening["url"]) as observer:
        script = Script(cast, tell, observer, listening["url"])
        script.play()
        return script.verdict()


def _expect(cast: Cast, is_it: Callable[[Report], bool], timeout_s: float) -> Report:
    until = time.monotonic() + timeout_s
    while (report := cast.next(until - time.monotonic())) is not None:
        if is_it(report):
            return report
        if report["event"] == "ended":
            raise ChildFailed(f"{report['child']} ended too early")
    raise ChildFailed(f"nothing heard for {timeout_s:g} s")


class Script:
    """Plays the steps and keeps track of what each worker has heard."""

    def __init__(self, cast: Cast, tell: Narration, observer: Worker, url: str) -> None:
        self._cast = cast
        self._tell = tell
        self._observer = observer
        self._truth: list[Change] = []
        observer.on_change("*")(self._truth.append)
        self._url = url
        self._children: dict[str, Child] = {}
        self._records: dict[str, Record] = {}
        self._homes: dict[str, str] = {}  # worker -> its child process
        self._waiting: list[Report] = []  # notices of the current step
        self._answers: list[Report] = []  # all other reports of children
        self._spans_ms: dict[str, list[float]] = {}
        self._expected_end: set[str] = set()
        self._troubles: list[str] = []

    # -- the steps -----------------------------------------------------------------------------------------------------

    def play(self) -> None:
        self._tell.step("Four programs start: three of the examples, one of them twice. They join one after another.")
        for title, example, _, names in PROGRAMS:
            self._children[title] = self._cast.start(title, str(EXAMPLES / example), *names, url=self._url)
        for title, example, workers, _ in PROGRAMS:
            for worker in workers:
                self._join(title, example, worker)
        self._tell.views([self._view(record) for record in self._alive()])
        self._tell.step("They call one another by name.")
        self._call("payments-1", "orders::create", {"items": ["lamp", "desk", "chair"]})
        self._call("orders", "payments::charge", {"amount": 10})
        self._call("watcher", "stock::reserve", "lamp")
        self._tell.step("payments-1 registers one more function, changes its description, and unregisters it.")
        self._change("payments-1", "register", "function_added", description="What was paid")
        self._change("payments-1", "register", "function_changed", description="What was paid today")
        self._change("payments-1", "unregister", "function_removed")
        self._tell.step("kill -9 payments-2: it has no chance to say goodbye.")
        self._end("payments-2", "killed", signal.SIGKILL)
        self._call("watcher", "payments::charge", {"amount": 20})
        self._tell.step("The async pair leaves in good order: on SIGTERM orders drains, then stock.")
        self._end("pair", "left", signal.SIGTERM)

    def _join(self, title: str, example: str, worker: str) -> None:
        self._homes[worker] = title
        self._until(lambda: self._said("ready", worker), STARTED_S, f"{worker} to start")
        record = self._records[worker] = Record(worker)
        self._children[title].tell("go", worker)
        self._until(lambda: self._said("joined", worker), STARTED_S, f"{worker} to join")
        caused, report = self._pop("caused", worker), self._pop("joined", worker)
        record.start = report["seq"]
        self._tell.joined(worker, example, (report["at"] - caused["at"]) / 1e6)
        self._finish(caused["at"])

    def _call(self, worker: str, id: str, payload: Any) -> None:
        self._child_of(worker).tell("call", worker, id=id, payload=payload)
        self._until(lambda: self._said("called", worker), HEARD_S, f"an answer to {worker}")
        called = self._pop("called", worker)
        if "error" in called:
            self._troubles.append(f"{worker} called {id}: {called['error']}")
        self._tell.called(called)

    def _change(self, worker: str, do: str, kind: str, **details: Any) -> None:
        self._child_of(worker).tell(do, worker, id=NEW, **details)
        self._until(lambda: self._said("caused", worker), HEARD_S, f"{worker} to {do}")
        self._await_notices([(kind, NEW)])
        self._finish(self._pop("caused", worker)["at"])

    def _end(self, title: str, how: str, number: signal.Signals) -> None:
        """Ends a child and its workers by a signal."""
        self._expected_end.add(title)
        workers = [worker for worker, home in self._homes.items() if home == title]
        for worker in workers:
            self._records[worker].end = how
        caused_at = self._children[title].signal(number)
        self._await_notices([("worker_left", worker) for worker in workers])
        self._until(lambda: any(one["child"] == title for one in self._answers), HEARD_S, f"{title} to end")
        self._finish(caused_at)

    # -- hearing -------------------------------------------------------------------------------------------------------

    def _await_notices(self, wanted: list[tuple[str, str]]) -> None:
        """Waits until every live worker has heard of all of these: (kind, function id or worker name)."""
        for kind, subject in wanted:
            for record in self._alive():
                text = f"{record.worker} to hear of {kind} {subject}"
                self._until(lambda: _has_told(record, kind, subject), HEARD_S, text)  # noqa: B023  (called at once)

    def _until(self, is_true: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Reads reports until `is_true()`. Raises: ChildFailed on timeout."""
        until = time.monotonic() + timeout_s
        while not is_true():
            report = self._cast.next(until - time.monotonic())
            if report is None:
                raise ChildFailed(f"timed out after {timeout_s:g} s, waiting for {what}")
            self._take(report)

    def _take(self, report: Report) -> None:
        if report["event"] == "changes":
            self._records[report["worker"]].told.append((report["seq"], report["changes"]))
            self._waiting.append(report)
        elif report["event"] == "said":
            self._tell.said(report)
        else:
            self._answers.append(report)
            if report["event"] == "ended" and report["child"] not in self._expected_end:
                raise ChildFailed(self._children[report["child"]].failure())

    def _said(self, event: str, worker: str) -> bool:
        return any((one["event"], one["worker"]) == (event, worker) for one in self._answers)

    def _pop(self, event: str, worker: str) -> Report:
        found = next(one for one in self._answers if (one["event"], one["worker"]) == (event, worker))
        self._answers.remove(found)
        return found

    def _finish(self, caused_at: int) -> None:
        """Waits until every live worker has reached the registry's position, then shows what was heard in this step."""
        seq = self._observer.call("engine::status")["seq"]
        for record in self._alive():
            self._until(lambda: _reached(record) >= seq, HEARD_S, f"{record.worker} to reach {seq}")  # noqa: B023
        notices = [(one["seq"], (one["at"] - caused_at) / 1e6, one) for one in self._waiting]
        self._waiting.clear()
        for _, ms, report in sorted(notices, key=lambda notice: notice[:2]):
            self._spans_ms.setdefault(report["worker"], []).append(ms)
            self._tell.notice(report, ms)
        self._tell.notices_end()

    def _alive(self) -> list[Record]:
        return [record for record in self._records.values() if record.end == "alive" and record.start is not None]

    def _child_of(self, worker: str) -> Child:
        return self._children[self._homes[worker]]

    # -- the end -------------------------------------------------------------------------------------------------------

    def verdict(self) -> Outcome:
        """Compares what every worker heard with what happened."""
        self._tell.step("Did anybody miss anything?")
        status = self._observer.call("engine::status")
        happened = self._happened(status["seq"])
        for record in self._alive():
            self._view(record)
        found = self._troubles + problems(happened, self._records.values(), status["epoch"], status["digest"])
        rows = [self._row(record, happened) for record in self._records.values()]
        return Outcome(found, rows, status["digest"], status["seq"])

    def _happened(self, last: int) -> dict[int, Changes]:
        """The changes that this process's observer heard: with the answer to a call it has heard all earlier ones."""
        until = time.monotonic() + HEARD_S
        while not self._truth or self._truth[-1].seq < last:
            self._observer.call("engine::ping")
            if time.monotonic() > until:
                raise ChildFailed(f"the demo's own observer is at {self._observer.position.seq}, not at {last}")
        self._observer.call("engine::ping")
        happened: dict[int, Changes] = {}
        for change in self._truth:
            happened.setdefault(change.seq, []).append(change.to_json())
        return happened

    def _view(self, record: Record) -> Report:
        self._child_of(record.worker).tell("view", record.worker)
        self._until(lambda: self._said("view", record.worker), HEARD_S, f"{record.worker}'s view")
        view = self._pop("view", record.worker)
        record.position, record.digest = (view["epoch"], view["seq"]), view["digest"]
        return view

    def _row(self, record: Record, happened: dict[int, Changes]) -> dict[str, Any]:
        spans = self._spans_ms.get(record.worker, [])
        return {
            "worker": record.worker,
            "end": record.end,
            "heard": sum(len(changes) for _, changes in record.told),
            "missed": missed(happened, record),
            "digest": record.digest if record.end == "alive" else None,
            "median_ms": round(median(spans), 3) if spans else None,
            "max_ms": round(max(spans), 3) if spans else None,
        }


def _has_told(record: Record, kind: str, subject: str) -> bool:
    return any(
        change["kind"] == kind and subject in (change["function_id"], change["worker_name"])
        for _, changes in record.told
        for change in changes
    )


def _reached(record: Record) -> int:
    return max([record.start or 0, *[seq for seq, _ in record.told]])
