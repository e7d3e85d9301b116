"""Small programs in processes of their own: given as text, spoken to by lines, and ended whatever happens."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.net.brokers import environment
from tests.net.commands import Done

PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine
QUICK = ("--heartbeat", "0.1", "--ttl", "0.5")  # a broker whose silences are short


class Program:
    """One that runs. Its lines are collected as they come, so that it never waits for a reader."""

    def __init__(self, code: str, *args: str, command: tuple[str, ...] = ()) -> None:
        pipe = subprocess.PIPE
        words = [*command, sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *args]
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())
        self.pid = self.process.pid
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._out: list[str] = []
        self._err = ""
        self._readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_err)]
        for reader in self._readers:
            reader.start()

    def line(self, patience_s: float = PATIENCE_S) -> str:
        """The next line that it prints."""
        try:
            line = self._lines.get(timeout=patience_s)
        except queue.Empty:
            raise AssertionError(f"it said nothing more; so far {self._out}, {self._err}") from None
        assert line is not None, f"it ended; it had said {self._out}, {self._err}"
        return line

    def expect(self, *lines: str) -> None:
        """That these are the next lines."""
        assert [self.line() for _ in lines] == list(lines)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As `kill -9`, or the power."""
        self.process.kill()
        self.process.wait()

    def finish(self, patience_s: float = PATIENCE_S) -> Done:
        """Waits for its end; where every thread of it stands is in `err` when it hangs."""
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return Done(self.process.returncode, "".join(line + "\n" for line in self._out), self._err)

    def end(self) -> None:
        """Whatever became of it, it is over."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(PATIENCE_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._out.append(line.rstrip("\n"))
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        self._err = self.process.stderr.read()


@contextmanager
def program(code: str, *args: str, command: tuple[str, ...] = ()) -> Iterator[Program]:
    """From the `with` to its end at the latest."""
    running = Program(code, *args, command=command)
    try:
        yield running
    finally:
        running.end()


def run(code: str, *args: str, patience_s: float = PATIENCE_S) -> Done:
    """Runs one to its end."""
    with program(code, *args) as running:
        return running.finish(patience_s)


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    """Waits for something that others bring about."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def descriptors(pid: int | str = "self") -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_kib(pid: int | str = "self") -> int:
    """What a process has in memory."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
