"""What tests/conftest.py promises, seen from the shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.net.brokers import environment

LEAVES_A_PROCESS = """
import subprocess, sys

left = []

def test_it_fails():
    code = "import time; from signal import *; print(getsignal(SIGINT), getsignal(SIGHUP), flush=True); time.sleep(600)"
    left.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
    with open("seen", "w") as seen:
        print(left[0].stdout.readline(), left[0].pid, file=seen)
    assert False
"""


def test_where_ctrl_c_is_ignored_processes_of_tests_heed_it_and_none_is_left_behind(tmp_path: Path) -> None:
    """23 tests failed behind `&`, and left processes that nobody ended."""
    (tmp_path / "test_left.py").write_text(LEAVES_A_PROCESS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", str(tmp_path)]
    ignoring = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", *command]
    done = subprocess.run(ignoring, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    signals, pid = (tmp_path / "seen").read_text().splitlines()
    assert signals == f"{signal.default_int_handler} {signal.SIG_DFL}"
    assert not os.path.exists(f"/proc/{int(pid)}")
