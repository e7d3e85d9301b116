"""The set-up that the commands in bin/ share: made once, under a lock, and redone when it must be.

All but the last test work on a small project whose Python finds stand-ins for venv, pip and pytest
on its path: they do at once what takes the real ones seconds, and note down that they were called.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(__file__).resolve().parents[2] / "bin"
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
FAILED = 125

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
    pathlib.Path("hanging").write_text(str(os.getpid()))
    while not pathlib.Path("go on").exists():
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
        self.write("pyproject.toml", "")
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

    def run(
        self, *command: str | Path, text: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
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
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_first_command_sets_up_and_the_next_finds_it_done(project: Project) -> None:
    first = project.run()
    assert (first.returncode, project.calls()) == (0, ["venv", "pip ."])
    assert first.stderr == "iii_zmq: setting up .venv (once, about 20 s) ...\n"

    project.python("python3", "exit 1")  # nor is any Python needed to find that out
    second = project.run()
    assert (second.returncode, second.stderr, project.calls()) == (0, "", ["venv", "pip ."])


def test_standard_input_and_output_are_the_commands_own(project: Project) -> None:
    done = project.run(project.root / "bin" / "iii-broker", "call", "a b", text="{}")
    assert done.stdout == f"ran call a b in {project.root.parent}\n{{}}"


def test_the_command_takes_the_place_of_the_shell_so_that_signals_reach_it(
    project: Project,
) -> None:
    project.run()
    project.write(".venv/bin/iii-broker", "#!/bin/sh\necho $$")
    with project.start() as process:
        out, _ = process.communicate()
    assert int(out) == process.pid


def test_a_command_works_through_a_symbolic_link(project: Project) -> None:
    link = project.path / "broker"
    link.symlink_to(project.root / "bin" / "iii-broker")
    assert project.run("broker").returncode == 0


def test_the_level_of_the_tests_adds_to_what_is_there_and_includes_it(project: Project) -> None:
    project.run()
    assert project.run(project.root / "bin" / "test", "-k", "x").stdout == "tested -k x\n"
    project.run()
    assert project.calls() == ["venv", "pip .", "pip .[dev]"]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_changed_dependencies_are_installed_into_what_is_there(project: Project, name: str) -> None:
    project.run()
    project.write(name, "# other dependencies\n")
    assert project.run().stderr == "iii_zmq: updating .venv ...\n"
    assert project.calls() == ["venv", "pip .", "pip ."]


def test_an_interrupted_set_up_is_redone_from_nothing(project: Project) -> None:
    os.kill(project.interrupt_a_set_up(), signal.SIGKILL)
    assert project.run().returncode == 0
    assert project.calls() == ["venv", "pip .", "venv", "pip ."]


def test_an_interrupted_update_is_redone_from_nothing(project: Project) -> None:
    project.run()
    project.write("setup.cfg", "# other dependencies\n")
    os.kill(project.interrupt_a_set_up(), signal.SIGKILL)
    assert project.run().returncode == 0
    assert project.calls() == ["venv", "pip .", "pip .", "venv", "pip ."]


def test_a_clone_that_was_moved_is_set_up_anew(project: Project) -> None:
    project.run()
    project.root = project.root.rename(project.root.parent / "moved")
    assert project.run().returncode == 0
    assert project.calls() == ["venv", "pip .", "venv", "pip ."]


def test_an_environment_whose_python_is_gone_is_made_anew(project: Project) -> None:
    project.run()
    (project.root / ".venv/bin/python").unlink()
    (project.root / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert project.run().returncode == 0
    assert project.calls() == ["venv", "pip .", "venv", "pip ."]


def test_an_environment_made_by_hand_is_kept(project: Project) -> None:
    project.run()
    for stamp in (project.root / ".venv").glob(".setup-*"):
        stamp.unlink()
    (project.root / ".venv.lock").unlink()
    project.run()
    assert project.calls() == ["venv", "pip .", "pip ."]


def test_a_set_up_waits_for_another_one_and_finds_its_work_done(project: Project) -> None:
    first = project.start(PIP_HANGS="1")
    wait_until((project.root / "hanging").exists)
    second = project.start()
    assert second.stderr is not None
    assert second.stderr.readline() == "iii_zmq: waiting for another set-up of .venv to end ...\n"
    assert second.poll() is None

    project.write("go on", "")
    for process in (first, second):
        with process:
            process.communicate(timeout=30)
            assert process.returncode == 0
    assert project.calls() == ["venv", "pip ."]


def test_what_a_killed_set_up_started_still_holds_the_lock(project: Project) -> None:
    pip = project.interrupt_a_set_up()
    with (project.root / ".venv.lock").open("a") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(pip, signal.SIGKILL)
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_a_failed_installation_shows_the_logs_end_and_keeps_what_was_there(
    project: Project,
) -> None:
    project.run()
    project.write("setup.cfg", "# other dependencies\n")
    failed = project.run(PIP_FAILS="1")
    assert (failed.returncode, failed.stdout) == (FAILED, "")
    assert failed.stderr.splitlines()[1:] == [
        "iii_zmq: set-up failed: python -m pip install ended with 1; .venv.log ends:",
        "    no such package",
    ]
    assert project.run().returncode == 0
    assert project.calls() == ["venv", "pip .", "pip .", "pip ."]


def test_an_old_python_is_refused_in_one_line(project: Project) -> None:
    pretend = "import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])"
    old = project.python("old", f"exec {BASE_PYTHON} -c '{pretend}' \"$2\"")
    refused = project.run(PYTHON=str(old))
    assert (refused.returncode, refused.stdout) == (FAILED, "")
    assert refused.stderr == (
        f"iii_zmq: Python 3.10 or later is needed, and {old} is 3.9; "
        "PYTHON=/path/to/python names another\n"
    )


def test_a_newer_python_on_the_path_is_taken_when_python3_is_old(project: Project) -> None:
    pretend = "import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])"
    project.python("python3.12", (project.path / "python3").read_text())
    project.python("python3", f"exec {BASE_PYTHON} -c '{pretend}' \"$2\"")
    assert project.run().returncode == 0


def test_a_missing_venv_module_is_told_in_one_line(project: Project) -> None:
    (project.fakes / "ensurepip.py").write_text("raise ModuleNotFoundError")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    refused = project.run(PYTHON=BASE_PYTHON)
    assert (refused.returncode, refused.stdout) == (FAILED, "")
    assert refused.stderr == (
        f"iii_zmq: Python {version} lacks its venv module: "
        f"install it (Debian, Ubuntu: apt install python{version}-venv)\n"
    )


def test_a_missing_python_is_told_in_one_line(project: Project) -> None:
    refused = project.run(PYTHON="/nowhere/python3")
    assert (refused.returncode, refused.stdout) == (FAILED, "")
    assert refused.stderr == (
        "iii_zmq: Python 3.10 or later is needed, and /nowhere/python3 does not run; "
        "PYTHON=/path/to/python names one\n"
    )


BACKEND = """
import zipfile

def build_editable(directory, settings=None, metadata=None):
    name, info = "tiny-1-py3-none-any.whl", "tiny-1.dist-info"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("tiny.py", "import sys\\ndef main(): print(*sys.argv[1:], sys.prefix)")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\niii-broker = tiny:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name

def build_wheel(directory, settings=None, metadata=None):
    raise NotImplementedError
"""


def test_the_real_venv_and_pip_make_an_environment(project: Project) -> None:
    pytest.importorskip("ensurepip")
    shutil.rmtree(project.fakes)
    project.write("backend.py", BACKEND)
    project.write(
        "pyproject.toml",
        '[build-system]\nrequires = []\nbackend-path = ["."]\nbuild-backend = "backend"\n',
    )
    done = project.run(project.root / "bin" / "iii-broker", "--version", PIP_NO_INDEX="1")
    assert (done.stdout, done.returncode) == (f"--version {project.root / '.venv'}\n", 0)
