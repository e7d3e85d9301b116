"""The demo's child processes: starts them, prompts them, collects their reports in one queue, and always ends them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

END_S = 2.0  # time for all children together to end by themselves
STATUS_S = 0.5  # a child whose stdout is closed will soon end
STDERR_TAIL = 2000  # bytes of a failed child's stderr that are shown

Report = dict[str, Any]


class ChildFailed(Exception):
    """A child ended too early, or did not answer in time."""


@dataclass(slots=True)
class Child:
    """One process. Its reports carry its title as `child`; the last one has the event `ended`."""

    title: str
    process: subprocess.Popen[str]
    stderr: IO[bytes]
    reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, do: str, worker: str, **details: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, "worker": worker, **details}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailed(self.failure()) from error

    def signal(self, number: signal.Signals) -> int:
        """Sends the signal; the moment just before, on the clock that all reports use."""
        now = time.monotonic_ns()
        self.process.send_signal(number)
        return now

    def close(self) -> None:
        """Call it only after the process has ended."""
        if self.reader is not None:
            self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # the child ended before it read its orders

    def failure(self) -> str:
        """The error text for a child that ended too early."""
        try:
            self.process.wait(STATUS_S)
        except subprocess.TimeoutExpired:
            pass
        size = os.fstat(self.stderr.fileno()).st_size
        text = os.pread(self.stderr.fileno(), STDERR_TAIL, max(0, size - STDERR_TAIL)).decode(errors="replace")
        return f"{self.title} ended too early (exit status {self.process.poll()}): {text.strip() or 'no word'}"


class Cast:
    """All children. Leaving the `with` block ends them."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._reports: queue.Queue[Report] = queue.Queue()

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_: object) -> None:
        """Sends SIGTERM to all at once, to the broker last, then SIGKILL to those that are left."""
        until = time.monotonic() + END_S
        for child in reversed(self._children):
            child.process.terminate()
        for child in reversed(self._children):
            try:
                child.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.close()

    def start(self, title: str, *words: str, url: str | None = None) -> Child:
        """Starts a child on its stage, without waiting for it."""
        stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed at the end of the block)
        process = subprocess.Popen(
            [sys.executable, "-m", "iii_zmq.cli.demo.stage", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=_environment(url),
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the children
        )
        child = Child(title, process, stderr)
        self._children.append(child)
        child.reader = threading.Thread(target=self._read, args=[child], daemon=True)
        child.reader.start()
        return child

    def next(self, timeout_s: float) -> Report | None:
        """The next report of any child; None on timeout."""
        try:
            return self._reports.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def _read(self, child: Child) -> None:
        assert child.process.stdout is not None
        for line in child.process.stdout:
            try:
                report = json.loads(line)
            except ValueError:  # it was killed in the middle of a line
                break
            self._reports.put({**report, "child": child.title})
        self._reports.put({"event": "ended", "worker": None, "child": child.title})


def _environment(url: str | None) -> dict[str, str]:
    """This process's environment, with this package importable and the demo's broker instead of any other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("III_")}
    root = str(Path(__file__).resolve().parents[3])
    kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept if url is None else {**kept, "III_URL": url}
