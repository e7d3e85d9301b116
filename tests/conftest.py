"""What holds for all tests: with which signals their processes start, and that none of these is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def pytest_configure() -> None:
    """After `nohup`, or behind `&` in a script, a program ignores signals, and so does all that it starts: no test
    could end anything by Ctrl-C. What has a handler instead starts with the default."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # `nohup` holds for the tests themselves


def pytest_sessionfinish() -> None:
    """Kills what a test that failed has left."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)
