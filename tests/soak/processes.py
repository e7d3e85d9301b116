"""The processes of a soak as the director holds them: started, stopped, killed, and asked where they stand."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.net.brokers import ROOT, environment

from .records import Recorder

END_S = 30.0  # for one that was asked to end: what runs there is given 5 s, an idle machine takes far less
ANSWER_S = 30.0  # for an answer on stdout; a host may be busy with earlier orders for some seconds
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Called by a child: a director that was killed leaves nobody behind, not even who is stopped. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One child. Its records are `NAME.jsonl`, what it writes to stderr is `NAME.err`."""

    def __init__(self, name: str, words: list[str], directory: Path, recorder: Recorder) -> None:
        self.name = name
        self.meant = False  # the director ended it, or asked it to end
        self.is_stopped = False
        self._recorder = recorder
        self._said: queue.SimpleQueue[dict[str, Any] | str | None] = queue.SimpleQueue()
        self.errors = directory / f"{name}.err"
        recorder.write("started", process=name)
        command = [sys.executable, "-m", *words, "--records", str(directory / f"{name}.jsonl")]
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment()
            )
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    # -- signals -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        self.meant = True
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.meant = True
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        self._recorder.write("stopped", process=self.name)
        self.is_stopped = True
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._recorder.write("continued", process=self.name)
        self.is_stopped = False
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    # -- orders --------------------------------------------------------------------------------------------------------

    def order(self, what: str, **fields: Any) -> None:
        """Does not wait for it; one that ended meanwhile has no use for it."""
        if what == "leave":
            self.meant = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # the second: it was buried
            pass

    def answer(self, patience_s: float = ANSWER_S) -> dict[str, Any] | str | None:
        """The next line that it prints; None when it ended, or after `patience_s`."""
        try:
            return self._said.get(timeout=max(0.0, patience_s))
        except queue.Empty:
            return None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode()
            self._said.put(json.loads(text) if text.startswith("{") else text)
        self._said.put(None)

    # -- its end -------------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def wait(self, patience_s: float = END_S) -> bool:
        """Whether it ended in time."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def bury(self) -> None:
        """Notes how it ended, kills it if it has not, and closes what it leaves behind."""
        if not self.wait(0):
            self._recorder.write("trouble", process=self.name, text="it did not end when it was asked to")
            self.kill()
            self._process.wait()
        self._recorder.write("ended", process=self.name, status=self._process.returncode, meant=self.meant)
        self._reader.join(END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        complaint = _complaint(self.errors)
        if complaint:
            self._recorder.write("trouble", process=self.name, text=complaint)


def _complaint(errors: Path) -> str:
    """What a process said on stderr from its first traceback on; "" if there is none."""
    lines = errors.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("Traceback", "Fatal Python error", "Assertion failed")) or " CRITICAL " in line:
            return "\n".join(lines[max(0, number - 1) : number + 25])
    return ""


def wait_until(is_true: Any, patience_s: float) -> bool:
    """Looks every few milliseconds; whether it became true in time."""
    until = time.monotonic() + patience_s
    while not is_true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
