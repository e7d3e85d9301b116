"""The `iii-broker` command: parses, calls, prints; decides nothing.

    app       the verbs with their options and help          exits     exit codes, and the code of each error
    serving   serve                                          payloads  JSON and key=value, in and out
    lists     functions, workers, info, status               tables    tables for people
    calls     call, wait, ping                               watching  watch; history and change_lines: past changes
    demo/     demo

Invariant: an expected error is one line on stderr and an exit code from `exits`. Each verb imports what it needs when
it runs, so that `--help` and usage errors appear at once.
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
    except (BrokenPipeError, SystemExit):  # the reader closed the pipe; click turns that into SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        return 0


def _run(words: list[str]) -> int:
    from .app import run

    if not words or (words[0].startswith("-") and words[0] not in SERVES_WHEN_FIRST):
        words = ["serve", *words]
    exit = run(words)
    sys.stdout.flush()
    return exit
