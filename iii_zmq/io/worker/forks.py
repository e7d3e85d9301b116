"""How many forks this process is away from the one that was started, and the end of a child that user code forked.

Code that remembers the number sees by it that it runs in a child: sockets, threads and locks are the parent's there.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Final, NoReturn


class Forks:
    """`count`, in a class because each call reads it: compiled code is slow to find a variable of a module."""

    def __init__(self) -> None:
        self.count = 0

    def forked(self) -> None:
        """In the child."""
        self.count += 1


forks: Final = Forks()
os.register_at_fork(after_in_child=forks.forked)


def end_child(error: BaseException | None) -> NoReturn:
    """Ends the child of a handler or callback that forked, once the user's code is left: it has no worker to use.

    The child ends as a process of its own would. The answer to a call is the parent's to give.
    """
    code = 0
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        code = error.code if isinstance(error.code, int) else 0
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # closed, or nobody reads it
    os._exit(code & 0xFF)
