"""The set-up that the commands in bin/ share: made once, under a lock, and redone when needed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.setup.project import BASE_PYTHON, Project, wait_until

FAILED = 125


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_first_command_sets_up_and_the_next_finds_it_done(project: Project) -> None:
    first = project.run()
    assert (first.returncode, project.calls()) == (0, ["venv", "pip ."])
    assert first.stderr == "iii_zmq: setting up .venv (once, about 20 s) ...\n"

    project.write("bin/_setup.py", "raise AssertionError")  # nor is Python asked whether it is
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


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "-m not slow"), (["--all"], ""), (["--all", "-x"], "-x"), (["tests/fault", "-k", "x"], "tests/fault -k x")],
)
def test_slow_tests_are_run_when_all_are_or_when_they_are_named(project: Project, words: list[str], told: str) -> None:
    assert project.run(project.root / "bin" / "test", *words).stdout.split() == ["tested", *told.split()]


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


def test_an_environment_that_is_a_link_is_left_alone(project: Project) -> None:
    """It was emptied once: the other clone had to be set up anew."""
    elsewhere = project.root.parent / "another clone's"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (project.root / ".venv").symlink_to(elsewhere)
    done = project.run()
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert f".venv is a link to {elsewhere.resolve()}" in line
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]


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
        f"iii_zmq: Python 3.10 or later is needed, and {old} is 3.9; PYTHON=/path/to/python names another\n"
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
        "iii_zmq: Python 3.10 or later is needed, and /nowhere/python3 does not run; PYTHON=/path/to/python names one\n"
    )


def test_no_command_runs_with_what_was_compiled_of_another_source(project: Project) -> None:
    """Python imports the compiled module: an edit, or another branch, would be without effect."""
    project.run()
    made = project.root / "iii_zmq" / "core" / "broker.cpython-311-x86_64-linux-gnu.so"
    made.parent.mkdir(parents=True)
    made.write_text("")
    project.write("iii_zmq/core/broker.py", "")
    os.utime(made.with_name("broker.py"), (made.stat().st_mtime - 10,) * 2)
    assert project.run().returncode == 0

    os.utime(made.with_name("broker.py"), (made.stat().st_mtime + 10,) * 2)
    done = project.run()
    assert (done.returncode, done.stdout) == (FAILED, "")
    expected = "iii_zmq: iii_zmq/core/broker.py changed after it was compiled: bin/compile, or bin/compile --remove\n"
    assert done.stderr == expected

    assert project.run(project.root / "bin" / "compile", "--remove").returncode == 0
    assert not made.exists()
    assert project.run().returncode == 0


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


@pytest.mark.slow
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
