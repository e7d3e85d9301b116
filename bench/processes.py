"""Children: started, pinned, asked over a pipe, and ended, whatever happens.

Invariant: no child outlives the `Children` block that started it, and none outlives this
process (the kernel kills them when it goes). Only the main thread may start children, because
that promise is tied to the thread that forked.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER_TIMEOUT_S = 60.0  # no single question of a benchmark takes longer
BROKER_END_S = 3.0  # what a broker gets to end by itself after SIGTERM
STDERR_TAIL = 2_000  # bytes of a child's stderr that an error message shows

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ChildFailed(Exception):
    """A child died, answered with an error, or did not answer in time."""


class Child:
    """One process: JSON lines in on its stdin, JSON lines out on its stdout."""

    def __init__(self, name: str, argv: list[str], pinned: bool) -> None:
        self.name = name
        self._unread = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in end())
        self._process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            preexec_fn=lambda: _prepare(pinned),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, what: str, **details: Any) -> None:
        """Ask without waiting; `answer()` fetches the answer later."""
        assert self._process.stdin is not None
        line = json.dumps({"do": what, **details}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("is gone") from None

    def answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The value of the next answer.

        Raises: ChildFailed, also when the child answered with an error.
        """
        found = self.read(timeout_s)
        if "error" in found:
            raise self._failed(f"failed:\n{found['error']}")
        return found["value"]

    def ask(self, what: str, *, wait_s: float = ANSWER_TIMEOUT_S, **details: Any) -> Any:
        """`tell` and `answer` in one."""
        self.tell(what, **details)
        return self.answer(wait_s)

    def read(self, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """The next line of the child's output, as the JSON object that it is."""
        assert self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise self._failed(f"said nothing for {timeout_s} s")
            piece = os.read(fd, 1 << 20)
            if not piece:
                raise self._failed("ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def signal(self, number: signal.Signals) -> int:
        """Send a signal; the moment just before, in monotonic nanoseconds."""
        now = time.monotonic_ns()
        self._process.send_signal(number)
        return now

    def end(self, grace_s: float = 0.0) -> None:
        """End the child: SIGTERM and `grace_s` seconds when given, then SIGKILL."""
        if grace_s and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                pass
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # unsent bytes for a child that is gone

    def _failed(self, how: str) -> ChildFailed:
        try:
            code = self._process.wait(0.2)  # a child whose pipe just closed is about to end
        except subprocess.TimeoutExpired:
            code = None
        said = _tail(self._stderr.fileno()).decode(errors="replace").strip()
        state = "" if code is None else f" (exit status {code})"
        return ChildFailed(f"{self.name}{state} {how}" + (f"\n{said}" if said else ""))


@dataclass(frozen=True, slots=True)
class Broker:
    """A running product broker."""

    url: str
    stream_url: str
    pid: int
    child: Child


class Children:
    """All processes of one measurement; leaving the block ends them."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._children: list[Child] = []
        self._brokers: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.end()
        for child in self._brokers:
            child.end(BROKER_END_S)

    def start(self, role: str, **details: Any) -> Child:
        """Start `role` ("floors.echo" is `bench.floors.echo`) without waiting for it.

        Its first `answer()` says that it is ready.
        """
        argv = [sys.executable, "-m", "bench.roles", role, json.dumps(details)]
        child = Child(role, argv, self._pinned)
        self._children.append(child)
        return child

    def start_all(self, roles: Iterable[tuple[str, dict[str, Any]]]) -> list[Child]:
        """Start several side by side and wait until all are ready."""
        children = [self.start(role, **details) for role, details in roles]
        for child in children:
            child.answer()
        return children

    def broker(self) -> Broker:
        """Start the product's broker on free loopback ports and wait until it listens."""
        argv = [sys.executable, "-m", "iii_zmq.cli", "serve"]
        child = Child("broker", [*argv, "--url", "tcp://127.0.0.1:0", "--json"], self._pinned)
        self._brokers.append(child)
        found = child.read()
        return Broker(found["url"], found["stream_url"], found["pid"], child)


def _prepare(pinned: bool) -> None:
    """In the child, before exec, so that libzmq's threads inherit it all."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _tail(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, STDERR_TAIL, max(0, size - STDERR_TAIL))
