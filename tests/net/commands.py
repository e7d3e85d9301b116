"""`iii-broker` as its users run it: a process, its exit code and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.net.brokers import END_S, ROOT, environment

COMMAND = (sys.executable, "-m", "iii_zmq.cli")
PATIENCE_S = 60.0  # no command of a test takes that long, unless it hangs


@dataclass(slots=True, frozen=True)
class Done:
    """What a command that ended has left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be one JSON text."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """What it printed, one JSON text a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error that it told programs: the only line on stderr, and nothing on stdout."""
        assert self.err.count("\n") == 1, self.err
        error = json.loads(self.err)
        assert isinstance(error, dict)
        assert list(error) == ["error", "message", "fate"]
        return error


def run(*words: str, url: str | None = None, stdin: str = "", patience_s: float = PATIENCE_S) -> Done:
    """Runs `iii-broker` with these arguments to its end. `url` goes into III_URL."""
    done = subprocess.run(
        [*COMMAND, *words], input=stdin, capture_output=True, text=True, timeout=patience_s, env=_environment(url)
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def running(*words: str, url: str | None = None, command: tuple[str, ...] = COMMAND) -> Iterator[subprocess.Popen[str]]:
    """Starts one, and kills it at the end of the block if it is still there."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, *words], stdout=pipe, stderr=pipe, text=True, env=_environment(url))
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def example(name: str, *words: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """One of the examples, as a process."""
    with running(*words, url=url, command=(sys.executable, str(ROOT / "examples" / name))) as process:
        yield process


def finish(process: subprocess.Popen[str], patience_s: float = END_S) -> Done:
    """Waits for its end."""
    out, err = process.communicate(timeout=patience_s)
    return Done(process.returncode, out, err)


def _environment(url: str | None) -> dict[str, str]:
    plain = environment() | {"COLUMNS": "80", "NO_COLOR": "1"}
    return plain if url is None else plain | {"III_URL": url}
