"""The listeners of one worker: `on_change` and `on_state` callbacks, and the buffers behind `changes()`.

Invariant: a callback's exception is logged and goes no further, except Ctrl-C. A reader that falls behind by
`WAITING_MAX` changes loses them and is told so by one `reset` change, never by a silent gap.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from ...core.worker.changes import Change, Position, reset_at
from .forks import end_child, forks

log = logging.getLogger("iii_zmq.worker")

WAITING_MAX = 100_000  # changes that one reader has not fetched: some 20 MB

Callback = Callable[[Any], Any]


def is_interrupt(error: BaseException) -> bool:
    """True for Ctrl-C, which ends whatever the main thread does. Anything else that user code raises is a failure of
    its own: a handler or callback that exits does not end the worker or the thread it runs in."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def matches(pattern: str, change: Change) -> bool:
    """True if a listener for `pattern` hears of this change; only `*` hears of changes of workers."""
    if pattern == "*":
        return True
    return change.function_id is not None and fnmatchcase(change.function_id, pattern)


def check_pattern(pattern: str) -> str:
    """Raises: TypeError. Catches `@worker.on_change` without parentheses."""
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern is a str such as 'orders::*', not {pattern!r:.60}; write @worker.on_change('*')")
    return pattern


class Buffer:
    """The changes that one reader has not fetched yet. `wake` is called when there is something new."""

    def __init__(self, pattern: str, wake: Callable[[], None] | None = None) -> None:
        self.pattern = check_pattern(pattern)
        self.waiting: deque[Change] = deque()
        self._wake = wake

    def put(self, changes: Iterable[Change]) -> bool:
        """Returns True if they were too many, and all that waited is lost."""
        wanted = [change for change in changes if matches(self.pattern, change)]
        if not wanted:
            return False
        is_too_much = len(self.waiting) + len(wanted) > WAITING_MAX
        if is_too_much:
            self.waiting.clear()
            wanted = [reset_at(Position(wanted[-1].epoch, wanted[-1].seq))]
        self.waiting.extend(wanted)
        if self._wake is not None:
            self._wake()
        return is_too_much


class Listeners:
    """The callbacks and buffers of one worker. `call` runs one callback, if it is not simply called."""

    def __init__(self, call: Callable[[Callback, Any], None] | None = None) -> None:
        self._call = call
        self.on_change: list[tuple[str, Callback]] = []
        self.on_state: list[Callback] = []
        self._buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()
        self.resets = 0  # how often a buffer was too full

    def hear_changes(self) -> bool:
        """True if anybody hears of changes."""
        return bool(self.on_change) or len(self._buffers) > 0

    def add_buffer(self, buffer: Buffer) -> None:
        """The buffer is fed for as long as somebody holds it."""
        self._buffers.add(buffer)

    def feed(self, changes: list[Change]) -> None:
        """Fills the buffers."""
        for buffer in list(self._buffers):
            self.resets += buffer.put(changes)

    def tell_changes(self, changes: list[Change]) -> None:
        """Runs the `on_change` callbacks."""
        everything = [callback for pattern, callback in self.on_change if pattern == "*"]
        if len(everything) == len(self.on_change) == 1:
            self._run_all(everything[0], changes)
            return
        for change in changes:
            for pattern, callback in tuple(self.on_change):
                if pattern == "*" or matches(pattern, change):
                    self._run_all(callback, (change,))

    def tell_reset(self, changes: list[Change]) -> None:
        """Tells all `on_change` callbacks, whatever their pattern, that changes were lost."""
        for _, callback in tuple(self.on_change):
            self._run_all(callback, changes)

    def tell_state(self, state: str) -> None:
        """Runs the `on_state` callbacks."""
        for callback in list(self.on_state):
            self._run_all(callback, (state,))

    def _run_all(self, callback: Callback, values: Iterable[Any]) -> None:
        """One `try` around all values, except those that raise: the usual case is a listener for everything."""
        call, rest, born_in = self._call, iter(values), forks.count
        while True:
            try:
                for value in rest:
                    if call is not None:
                        call(callback, value)
                        continue
                    callback(value)
                    if forks.count != born_in:
                        end_child(None)
                return
            except BaseException as error:
                if call is not None and is_interrupt(error):
                    raise
                if call is None and forks.count != born_in:
                    end_child(error)
                log.exception("the callback %r failed", getattr(callback, "__qualname__", callback))
