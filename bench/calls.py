"""`call`: latency, calls per second and the broker's CPU, beside two floors.

Floors: `zmq.proxy` as the broker with bare DEALERs on both sides (three processes, like the
product); the same with `*_multipart` instead of plain sends and receives, which is how most
programs use pyzmq and less than half as fast with many calls in flight; and a bare
DEALER/ROUTER round trip (two processes, no broker at all).

A second table is about the product alone: callers after `start()`, and providers with `threads=8`, which are the usual
ones, each beside the quickest, in the same rounds: a caller in a `with`, and a provider with `threads=0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.measure import alternate
from bench.processes import Child, Children
from bench.report import Bound, Row, Section, row
from bench.settings import Settings

FUNCTION_ID, THREADED_ID = "bench::echo", "bench::echo.threads"  # by a provider with threads=0, and one with 8
CALLS = {1: 3_000, 10: 6_000, 100: 20_000}  # in flight: calls a round
ROUNDS, QUICK_ROUNDS, QUICK_SHARE = 7, 3, 5

PROXY, MULTIPART, DIRECT = "zmq.proxy", "zmq.proxy, multipart", "DEALER/ROUTER"
PRODUCT, ASYNC = "Worker", "AsyncWorker"
STARTED, THREADED, USUAL = "start()", "threads=8", "start(), threads=8"  # else: in a `with`, and threads=0

LATENCY = Bound("at most", 1.8, "ratio")  # p50, 1 in flight, beside zmq.proxy
# The bounds were asked beside a zmq.proxy floor of 104 us and 65,000 calls/s. That is bare pyzmq with its usual
# recv_multipart and send_multipart; with plain recv and send it goes three times as fast. Both stand in the table.
RATE = Bound("at least", 0.4, "ratio")  # calls/s, 100 in flight, beside zmq.proxy
BROKER_CPU = Bound("at most", 25)  # microseconds a call, 100 in flight; with 1, C takes more

UNITS = {
    "p50_us": "us", "p99_us": "us", "calls_per_s": "calls/s", "broker_cpu_us": "us/call", "caller_cpu_us": "us/call",
}  # fmt: skip

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Subject:
    """A caller to measure, and the process whose CPU counts as the broker's."""

    caller: Child
    broker_pid: int
    asks: dict[str, Any] = field(default_factory=dict)

    def sample(self, window: int, count: int) -> Sample:
        found: Sample = self.caller.ask("calls", window=window, count=count, cpu_of=self.broker_pid, **self.asks)
        return found


def call(settings: Settings) -> Iterator[Section]:
    """Two sections a mode: beside bare pyzmq, and beside the product at its quickest."""
    for mode in settings.modes:
        with Children(pinned=mode == "pinned") as children:
            subjects = {} if settings.floors_only else _product(children)
            subjects |= _floors(children)
            section = Section("calls, 100 bytes, one caller, one provider", mode)
            usual = Section("the same calls after start() and to threads=8, beside the first table's", mode)
            for window in CALLS:
                samples = _measure(settings, subjects, window)
                section.rows += _rows(window, samples, judged=mode == "pinned")
                usual.rows += _usual_rows(window, samples)
            if mode == "pinned":
                section.notes.append("the bounds were asked for pinned, p50 and calls/s as ratios")
            yield section
            if usual.rows:
                yield usual


def _product(children: Children) -> dict[str, Subject]:
    broker = children.broker()
    inline, threaded = ({"url": broker.url, "function_id": one} for one in (FUNCTION_ID, THREADED_ID))
    children.start_all([("workers.provider", inline), ("workers.provider", {**threaded, "threads": 8})])
    plain, started, on_loop = children.start_all(
        [("workers.caller", inline), ("workers.caller", {**inline, "started": True}), ("workers.async_caller", inline)]
    )
    to_threads = {"function_id": THREADED_ID}
    return {
        PRODUCT: Subject(plain, broker.pid),
        ASYNC: Subject(on_loop, broker.pid),
        STARTED: Subject(started, broker.pid),
        THREADED: Subject(plain, broker.pid, to_threads),
        USUAL: Subject(started, broker.pid, to_threads),
    }


def _floors(children: Children) -> dict[str, Subject]:
    direct = children.start("floors.direct_echo")
    straight = children.start("floors.caller", url=direct.answer()["url"])
    straight.answer()
    return {
        PROXY: _proxied(children, multipart=False),
        MULTIPART: _proxied(children, multipart=True),
        DIRECT: Subject(straight, direct.pid),
    }


def _proxied(children: Children, multipart: bool) -> Subject:
    proxy = children.start("floors.proxy")
    urls = proxy.answer()
    children.start("floors.proxied_echo", url=urls["back"], multipart=multipart).answer()
    caller = children.start("floors.caller", url=urls["front"], multipart=multipart)
    caller.answer()
    return Subject(caller, proxy.pid)


def _measure(settings: Settings, subjects: dict[str, Subject], window: int) -> dict[str, list[Sample]]:
    count = CALLS[window] // (QUICK_SHARE if settings.quick else 1)
    takes: dict[str, Callable[[], Sample]] = {
        name: lambda subject=subject: subject.sample(window, count)  # type: ignore[misc]
        for name, subject in subjects.items()
    }
    return alternate(QUICK_ROUNDS if settings.quick else ROUNDS, takes)


def _rows(window: int, samples: dict[str, list[Sample]], judged: bool) -> Iterator[Row]:
    """Every figure beside every floor that means something for it."""
    flying = f"{window} in flight"
    for who, floor, value, bound in _lines(window):
        if who == PRODUCT or who in samples:
            name = {"p50_us": "p50", "p99_us": "p99", "calls_per_s": "calls"}.get(value, "CPU")
            name = f"{'broker' if name == 'CPU' else who} {name}, {flying}"
            figures = [sample[value] for sample in samples.get(who, [])]
            floors = [sample[value] for sample in samples[floor]]
            yield row(name, UNITS[value], figures, floor, floors, bound if judged else None)


def _usual_rows(window: int, samples: dict[str, list[Sample]]) -> Iterator[Row]:
    """The usual ways to call, beside the quickest one; nothing with `--floors`, where there is no product."""
    for name, value in (
        ("p50", "p50_us") if window == 1 else ("calls", "calls_per_s"),
        ("caller's CPU", "caller_cpu_us"),
    ):
        quickest = [sample[value] for sample in samples.get(PRODUCT, [])]
        for who in (STARTED, THREADED, USUAL):
            if who in samples:
                figures = [sample[value] for sample in samples[who]]
                yield row(f"{name}, {window} in flight: {who}", UNITS[value], figures, "with, threads=0", quickest)


def _lines(window: int) -> Iterator[tuple[str, str, str, Bound | None]]:
    """Subject, floor, field, bound."""
    if window == 1:
        for floor in (PROXY, MULTIPART, DIRECT):
            yield PRODUCT, floor, "p50_us", LATENCY if floor == MULTIPART else None
        yield PRODUCT, PROXY, "p99_us", None
        yield PRODUCT, DIRECT, "p99_us", None
        yield ASYNC, PROXY, "p50_us", None
    for floor in (PROXY, MULTIPART, DIRECT):
        yield PRODUCT, floor, "calls_per_s", RATE if (window, floor) == (100, MULTIPART) else None
    yield ASYNC, PROXY, "calls_per_s", None
    if window in (1, 100):
        yield PRODUCT, PROXY, "broker_cpu_us", BROKER_CPU if window == 100 else None
