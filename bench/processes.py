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
import socket
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
PORT_PAUSE_S = 0.05  # between two tries to reach a server that is starting
STDERR_TAIL = 2_000  # bytes of a child's stderr that an error message shows

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ChildFailed(Exception):
    """A child died, answered with an error, or did not answer in time."""


class Child:
    """One process: JSON lines in on its stdin, JSON lines out on its stdout.

    A foreign server (`talks` is false) talks no JSON: what it prints is kept with its stderr.
    """

    def __init__(
        self,
        name: str,
        argv: list[str],
        pinned: bool,
        *,
        env: dict[str, str] | None = None,
        talks: bool = True,
    ) -> None:
        self.name = name
        self._unread = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in end())
        self._process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if talks else self._stderr,
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

    def await_port(self, port: int, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Wait until something listens on this port of loopback.

        Raises: ChildFailed when the process ended first, or time was up.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failed("ended before it listened")
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                return
            except OSError:
                time.sleep(PORT_PAUSE_S)
        raise self._failed(f"did not listen within {timeout_s} s")

    def pids(self) -> list[int]:
        """This process and all that it started (crossbar's router is a child of its controller)."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getsid(int(entry)) == self.pid:
                    found.append(int(entry))
            except OSError:
                pass  # ended meanwhile
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
        try:
            os.killpg(self.pid, signal.SIGKILL)  # its session, so also what it started itself
        except ProcessLookupError:
            pass  # ended and gone
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                if pipe is not None:
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
        self._directories: list[tempfile.TemporaryDirectory[str]] = []

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
        for directory in self._directories:
            directory.cleanup()

    def start(self, role: str, **details: Any) -> Child:
        """Start `role` ("floors.echo" is `bench.floors.echo`) without waiting for it.

        Its first `answer()` says that it is ready.
        """
        return self.run(role, [sys.executable, "-m", "bench.roles", role, json.dumps(details)])

    def run(self, name: str, argv: list[str]) -> Child:
        """Start a program that keeps to the protocol of roles.py, without waiting for it."""
        child = Child(name, argv, self._pinned)
        self._children.append(child)
        return child

    def serve(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> Child:
        """Start a foreign server, without waiting for it; it is ended like the broker."""
        child = Child(name, argv, self._pinned, env=env, talks=False)
        self._brokers.append(child)
        return child

    def directory(self) -> Path:
        """A directory for a server's data, removed when the block is left."""
        directory = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        self._directories.append(directory)
        return Path(directory.name)

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


def free_port() -> int:
    """A port of loopback that was free just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _prepare(pinned: bool) -> None:
    """In the child, before exec, so that libzmq's threads inherit it all."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _tail(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, STDERR_TAIL, max(0, size - STDERR_TAIL))
