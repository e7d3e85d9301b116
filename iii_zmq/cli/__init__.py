"""The `iii-broker` command: parses, calls, prints; decides nothing.

    app       the verbs with their options and help          exits     exit codes, and what each error becomes
    serving   serve                                          payloads  JSON and key=value, in and out
    looking   functions, workers, info, status, ping         tables    what people read
    calling   call, wait                                     watching  watch; history: the changes that were
    demo/     demo

Invariant: an error that was foreseen is one line on stderr and an exit code of `exits`. Verbs import what they need
when they run, so that `--help` and usage errors come at once.
"""

from __future__ import annotations

import os
import signal
import sys

SERVES_WHEN_FIRST = ("--help", "--version", "--install-completion", "--show-completion")


def main() -> int:
    """Runs the command in `sys.argv`; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
    except (BrokenPipeError, SystemExit):  # the reader had enough; click makes a SystemExit of it
        return _leave_broken_pipe()


def _run(words: list[str]) -> int:
    from .app import run

    if not words or (words[0].startswith("-") and words[0] not in SERVES_WHEN_FIRST):
        words = ["serve", *words]
    exit = run(words)
    sys.stdout.flush()
    return exit


def _leave_broken_pipe() -> int:
    """Python would complain once more when it flushes stdout at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
