"""Makes the clone's .venv, or mends it. Called by _setup.sh when no stamp says that this is done.

The invariant: a stamp is there only for a set-up that ran to its end, and holds all that it was
made from, so that _setup.sh sees at a glance whether it still holds. One process at a time works
on .venv: the one with the lock. The lock file holds a word from before the first change until after
the last, so whoever finds that word knows that .venv was left half done, and starts from nothing.

Not here: which Python will do, and when to call this (_setup.sh). The standard library only.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / ".venv.lock"
LOG = ROOT / ".venv.log"

# What each level installs, and the levels it is good for.
EXTRAS = {"run": "", "dev": "[dev]"}
INCLUDES = {"run": ["run"], "dev": ["run", "dev"]}

FAILED = 125  # the exit status, see _setup.sh
TAIL_LINES = 15  # of the log, when a step fails: enough for pip's reason


def main(level: str) -> None:
    with LOCK.open("a+b") as lock:
        acquire(lock)
        if not is_fresh(level):
            make(level, lock)


def acquire(lock: BinaryIO) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another set-up of .venv to end ...")
        fcntl.flock(lock, fcntl.LOCK_EX)


def make(level: str, lock: BinaryIO) -> None:
    if VENV.is_symlink():
        fail(f".venv is a link to {VENV.resolve()}, which may be another clone's: remove the link, and run this again")
    keep = not is_half_done(lock) and not has_moved() and is_ours()
    say("updating .venv ..." if keep else "setting up .venv (once, about 20 s) ...")
    for stamp in VENV.glob(".setup-*"):
        stamp.unlink()
    mark(lock, b"half done\n")
    LOG.write_bytes(b"")
    if not keep:
        # Not sys.executable: that may be the very .venv which is cleared here.
        base = getattr(sys, "_base_executable", sys.executable)
        run(lock, base, "-m", "venv", "--clear", str(VENV))
    run(lock, str(PYTHON), "-m", "pip", "install", "--no-input", "-e", f".{EXTRAS[level]}")
    mark(lock, b"")
    for included in INCLUDES[level]:
        stamp_of(included).write_bytes(stamp_text())


def run(lock: BinaryIO, *command: str) -> None:
    """Run one step. It inherits the lock, and so holds it even when this process is killed."""
    with LOG.open("ab") as log:
        status = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
        ).returncode
    if status > 0:
        mark(lock, b"")  # it ended by itself and tidied up, so what was there can be built upon
    if status:
        lines = LOG.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        what = " ".join(("python", *command[1:4]))
        fail(f"set-up failed: {what} ended with {status}; .venv.log ends:", *lines)


def is_fresh(level: str) -> bool:
    try:
        if stamp_of(level).read_bytes() != stamp_text():
            return False
    except OSError:
        return False
    return not os.environ.get("PYTHON") or is_ours()


def is_half_done(lock: BinaryIO) -> bool:
    lock.seek(0)
    return lock.read() != b""


def mark(lock: BinaryIO, text: bytes) -> None:
    lock.truncate(0)
    lock.write(text)
    lock.flush()


def is_ours() -> bool:
    """Whether .venv works, has pip, and was made with the Python that runs this."""
    question = "import sys, pip; print((sys.version, sys.base_prefix))"
    try:
        answer = subprocess.run([PYTHON, "-c", question], capture_output=True, text=True)
    except OSError:
        return False
    return answer.stdout.strip() == repr((sys.version, sys.base_prefix))


def has_moved() -> bool:
    """Whether the clone was moved or copied with its .venv, whose scripts name the old place."""
    paths = [stamp.read_bytes().split(b"\n")[1:2] for stamp in VENV.glob(".setup-*")]
    return any(path != [os.fsencode(ROOT)] for path in paths)


def stamp_of(level: str) -> Path:
    return VENV / f".setup-{level}"


def stamp_text() -> bytes:
    sources = [os.fsencode(os.path.realpath(PYTHON)), os.fsencode(ROOT)]
    sources += [(ROOT / name).read_bytes() for name in ("setup.cfg", "pyproject.toml")]
    # bash's $(<file) drops the newlines at the end, so they must not count.
    return b"\n".join(source.rstrip(b"\n") for source in sources) + b"\n"


def say(*lines: str) -> None:
    print("iii_zmq:", "\n    ".join(lines), file=sys.stderr, flush=True)


def fail(*lines: str) -> NoReturn:
    say(*lines)
    sys.exit(FAILED)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as error:
        fail(f"set-up failed: {error}")
    except KeyboardInterrupt:
        say("set-up interrupted; the next command starts it anew")
        sys.exit(130)
