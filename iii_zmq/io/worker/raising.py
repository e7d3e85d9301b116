"""What users' code raises, told apart: what is theirs, to be logged or sent to a caller, and Ctrl-C.

A handler or a callback that exits has failed: the worker, and the thread that it runs in, are not its to end. Only
KeyboardInterrupt in the main thread goes on, for there it is what Python makes of Ctrl-C, wherever it strikes.
"""

from __future__ import annotations

import threading


def is_interrupt(error: BaseException) -> bool:
    """Whether this is Ctrl-C, which is to end whatever the main thread does."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
