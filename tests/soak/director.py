"""The director: starts a broker and many workers, lets faults loose, calms everybody, and asks where they stand.

It writes down what it did, and judges nothing: that is the checker's, who has the records alone.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.fault.proxy import Proxy

from .faults import Faults
from .plan import WORKERS_A_PROCESS
from .processes import Process
from .records import Recorder

TTL_S, BEATS = 2.0, 4  # the broker's default, and how many heartbeats it has
HISTORY = 300  # deltas held for those who resume: few, so that some have to take a snapshot
PROXIED = range(1, 1000, 3)  # the slots whose links can be broken, of both faces
COMPLETE_S = 60.0  # for each kind of fault to have come, however short the run
READY_S = 60.0  # for everybody to have joined: a start of Python each, on a busy machine
WHOLE_S = 90.0  # for everybody to be whole again after the last fault: seconds, on an idle machine
FINISH_S = 120.0
PORTS = (20_000, 32_000)  # below those that a connecting socket may be given: it could meet itself while nobody listens


class Slot:
    """A place that one process after another takes: `process` is the present one."""

    def __init__(self, name: str, start: Callable[[int], Process]) -> None:
        self.name = name
        self._start = start
        self._lives = itertools.count()
        self.process = start(next(self._lives))
        self.is_changing = False  # the process is about to end, and another one to come

    @property
    def is_away(self) -> bool:
        return self.is_changing or self.process.is_stopped

    def start(self) -> None:
        self.process = self._start(next(self._lives))
        self.is_changing = False


class Link:
    """The two proxies between one process and the broker, on an address of their own under the broker's ports."""

    def __init__(self, name: str, host: str, ports: tuple[int, int]) -> None:
        self.name = name
        control, stream = (Proxy(f"tcp://127.0.0.1:{port}", host=host, port=port) for port in ports)
        self.both = (control, stream)
        self.url = control.url
        self.is_disturbed = False


class Director:
    """One run; `close` ends whatever it started, also after a failure."""

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        seconds: float,
        workers: int,
        ttl_s: float = TTL_S,
        only: list[str] | None = None,
        in_one_process: bool = False,
    ) -> None:
        self.directory = directory
        self._seed, self._seconds, self._workers = seed, seconds, workers
        self.workers_a_process = workers if in_one_process else WORKERS_A_PROCESS
        self._proxied = range(1) if in_one_process else PROXIED
        self._ttl_s = ttl_s
        self._recorder = Recorder(directory / "director.jsonl")
        self._recorder.write("run", seed=seed, seconds=seconds, workers=workers)
        self._random = Random(seed)
        self._faults = Faults(self, self._random, only)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._processes: list[Process] = []
        self.links: list[Link] = []
        self.slots: list[Slot] = []
        self._ports = _free_ports(self._random)

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.broker = Slot("broker", self._start_broker)
        for slot in range(-(-self._workers // self.workers_a_process)):
            url = f"tcp://127.0.0.1:{self._ports[0]}"
            if slot in self._proxied:
                link = Link(f"link.{slot}", f"127.0.0.{2 + slot}", self._ports)
                self.links.append(link)
                url = link.url
            self.slots.append(Slot(f"host.{slot}", partial(self._start_host, slot, url)))
        self._await_level("ready", READY_S, idle=False)
        self._storm()
        self._calm()

    def _storm(self) -> None:
        began = next_fault = time.monotonic()
        over = began + self._seconds
        while (now := time.monotonic()) < over or not (self._faults.is_complete or now > began + COMPLETE_S):
            if now >= next_fault:
                self._faults.inject()
                next_fault = time.monotonic() + self._faults.pause_s()
            self._do_what_is_due(now)
            self._bury_the_dead()
            wake = min([next_fault, *(at for at, _, _ in self._later[:1])])
            time.sleep(max(0.0, min(wake - time.monotonic(), 0.1)))

    def _calm(self) -> None:
        """Undoes all faults, lets everybody finish, and asks."""
        while self._later:
            self._do_what_is_due(self._later[0][0])
            self._bury_the_dead()
            time.sleep(0.01)  # who waits for the end of a process asks again, and again
        for slot in self.slots:
            slot.process.order("calm")
        is_settled = self._await_level("settled", WHOLE_S, idle=True)
        if is_settled:
            for slot in self.slots:
                slot.process.order("finish")
            for slot in self.slots:
                if slot.process.answer(FINISH_S) is None:
                    self._recorder.write("trouble", process=slot.process.name, text="the last calls did not end")
        for slot in self.slots:
            slot.process.order("leave", must=is_settled)
        for slot in self.slots:
            slot.process.wait()
        self.broker.process.terminate()
        self.broker.process.wait()

    def close(self) -> None:
        for process in self._processes:
            process.bury()
        for link in self.links:
            for proxy in link.both:
                proxy.close()

    # -- for the faults ------------------------------------------------------------------------------------------------

    def note_fault(self, kind: str, names: list[str]) -> None:
        self._recorder.write("fault", kind=kind, processes=names)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), act))

    def replace(self, slot: Slot, seconds: float) -> str:
        """The process is ending; another one takes its place so long after its end. Returns the name of the first."""
        name, process = slot.process.name, slot.process
        slot.is_changing = True

        def follow() -> None:
            if process.is_over():
                slot.start()
            else:
                self.later(0.05, follow)

        self.later(seconds, follow)
        return name

    # -- processes -----------------------------------------------------------------------------------------------------

    def _start_broker(self, life: int) -> Process:
        words = [
            "tests.soak.broker", "--url", f"tcp://127.0.0.1:{self._ports[0]}",
            "--stream-url", f"tcp://127.0.0.1:{self._ports[1]}", "--history", str(HISTORY),
            "--heartbeat", str(self._ttl_s / BEATS), "--ttl", str(self._ttl_s),
        ]  # fmt: skip
        return self._start(f"broker.{life}", words)

    def _start_host(self, slot: int, url: str, life: int) -> Process:
        words = [
            "tests.soak.host", "--slot", str(slot), "--life", str(life), "--workers", str(self._workers),
            "--members", str(self.workers_a_process), "--url", url, "--seed", str(self._seed),
        ]  # fmt: skip
        return self._start(f"host.{slot}.{life}", words)

    def _start(self, name: str, words: list[str]) -> Process:
        process = Process(name, words, self.directory, self._recorder)
        self._processes.append(process)
        return process

    def _do_what_is_due(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, _, act = heapq.heappop(self._later)
            act()

    def _bury_the_dead(self) -> None:
        """Who ended unbidden is replaced too: the checker will have its word on that."""
        for process in [process for process in self._processes if process.is_over()]:
            process.bury()
            self._processes.remove(process)
            for slot in [self.broker, *self.slots]:
                if slot.process is process and not slot.is_changing:
                    self.replace(slot, 0.0)

    # -- where they stand ----------------------------------------------------------------------------------------------

    def _await_level(self, word: str, patience_s: float, *, idle: bool) -> bool:
        """Until everybody is connected and, if `idle`, sees the same registry with nothing left to do."""
        until = time.monotonic() + patience_s
        while True:
            wrong = self._what_is_wrong(until, idle)
            if not wrong:
                self._recorder.write(word, workers=self._workers)
                return True
            if time.monotonic() > until:
                self._recorder.write("unsettled", text=f"not {word} after {patience_s:g} s: {'; '.join(wrong)}")
                return False
            time.sleep(0.2)
            self._bury_the_dead()
            self._do_what_is_due(time.monotonic())

    def _what_is_wrong(self, until: float, idle: bool) -> list[str]:
        told: list[dict[str, Any]] = []
        for slot in self.slots:
            slot.process.order("tell")
        for slot in self.slots:
            answer = slot.process.answer(until - time.monotonic())
            if not isinstance(answer, dict):
                return [f"{slot.process.name} does not answer"]
            told += answer["workers"]
        wrong = [f"{one['worker']} is {one['state']}" for one in told if one["state"] != "connected"]
        if idle:
            wrong += [f"{one['worker']} is busy" for one in told if not one["idle"]]
            wrong += [f"{one['worker']} sees {one['workers']} workers" for one in told if one["workers"] != len(told)]
            views = {(*one["position"], one["digest"]) for one in told}
            wrong += [f"{len(views)} different views"] if len(views) > 1 else []
        return wrong


def _free_ports(random: Random) -> tuple[int, int]:
    found: list[int] = []
    for _ in range(1000):
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(set(found)) == 2:
            return found[0], found[1]
    raise AssertionError("no two free ports")
