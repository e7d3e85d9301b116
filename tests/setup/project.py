"""A small project with the commands of bin/, in which venv, pip and pytest are stand-ins.

They do at once what takes the real ones seconds, and note down in `calls` that they were called.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BIN = Path(__file__).resolve().parents[2] / "bin"
BASE_PYTHON: str = getattr(sys, "_base_executable", sys.executable)
WAIT_S = 10  # for what takes milliseconds on an idle machine

FAKES = {
    "ensurepip.py": "",
    "venv/__init__.py": "",
    "venv/__main__.py": """
import pathlib, shutil, sys
option, path = sys.argv[1], pathlib.Path(sys.argv[2])
assert option == "--clear"
shutil.rmtree(path, ignore_errors=True)
(path / "bin").mkdir(parents=True)
(path / "bin" / "python").symlink_to(sys.executable)
(path / "pyvenv.cfg").write_text(f"home = {pathlib.Path(sys.executable).parent}")
with open("calls", "a") as calls:
    calls.write("venv\\n")
""",
    "pip/__init__.py": "",
    "pip/__main__.py": """
import os, pathlib, sys, time
with open("calls", "a") as calls:
    calls.write(f"pip {sys.argv[-1]}\\n")
if "PIP_FAILS" in os.environ:
    sys.exit("no such package")
if "PIP_HANGS" in os.environ:
    os.setsid()  # so that the test can kill the set-up without killing this
    pathlib.Path("hanging.new").write_text(str(os.getpid()))
    os.rename("hanging.new", "hanging")  # it is there only when it can be read
    for _ in range(3000):  # half a minute, lest a failed test leaves it behind for ever
        if pathlib.Path("go on").exists():
            break
        time.sleep(0.01)
script = pathlib.Path(".venv/bin/iii-broker")
script.write_text('#!/bin/sh\\necho "ran $* in $PWD"; cat')
script.chmod(0o755)
""",
    "pytest.py": "import sys; print('tested', *sys.argv[1:])",
}


class Project:
    """A clone that has nothing but bin/, and the environment that its commands are run in."""

    def __init__(self, place: Path) -> None:
        self.root = place / "the clone"
        self.fakes = place / "fakes"
        self.path = place / "path"
        self.root.mkdir()
        shutil.copytree(BIN, self.root / "bin")
        self.write("setup.cfg", "[metadata]\n")
        self.write("pyproject.toml", "[build-system]\n")
        for name, text in FAKES.items():
            (self.fakes / name).parent.mkdir(parents=True, exist_ok=True)
            (self.fakes / name).write_text(text)
        self.path.mkdir()
        self.python("python3", f'exec {BASE_PYTHON} "$@"')

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def python(self, name: str, script: str) -> Path:
        """Put a Python of that name first on the path."""
        (self.path / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.path / name).chmod(0o755)
        return self.path / name

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()

    def start(self, *command: str | Path, **env: str) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONHOME")}
        path = f"{self.path}:{os.environ['PATH']}"
        return subprocess.Popen(
            command or [self.root / "bin" / "iii-broker"],
            env=inherited | {"PATH": path, "PYTHONPATH": str(self.fakes)} | env,
            cwd=self.root.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str | Path, text: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        with self.start(*command, **env) as process:
            out, err = process.communicate(text, timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def interrupt_a_set_up(self) -> int:
        """Kill a set-up while its pip runs, but not that pip, whose process id is returned."""
        with self.start(PIP_HANGS="1") as process:
            wait_until((self.root / "hanging").exists)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return int((self.root / "hanging").read_text())


def wait_until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)
