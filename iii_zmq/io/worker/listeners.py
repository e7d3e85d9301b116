"""Whoever listens to the registry: `on_change` and `on_state` callbacks, and the buffers behind `changes()`.

Invariant: a callback's exception is logged and goes no further, but for Ctrl-C. A reader that falls behind by
`WAITING_MAX` changes loses them and is told so by one `reset` change, never by a silent gap.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from ...core.worker.changes import Change, Position, reset_at
from .raising import is_interrupt

log = logging.getLogger("iii_zmq.worker")

WAITING_MAX = 100_000  # changes that one reader has not fetched: some 20 MB

Callback = Callable[[Any], Any]


def matches(pattern: str, change: Change) -> bool:
    """Whether a listener for `pattern` hears of this change: worker changes only with `*`."""
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
        """Whether they were too many, and what waited is lost."""
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
    """All of one worker's. `call` runs a callback: in place, or, where it may be a coroutine function, as a task."""

    def __init__(self, call: Callable[[Callback, Any], None]) -> None:
        self._call = call
        self._on_change: list[tuple[str, Callback]] = []
        self._on_state: list[Callback] = []
        self._buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()
        self.resets = 0  # times that a buffer had become too full

    def __bool__(self) -> bool:
        return bool(self._on_change or self._on_state)

    def hear_changes(self) -> bool:
        """Whether anybody does."""
        return bool(self._on_change) or len(self._buffers) > 0

    def add_on_change(self, pattern: str, callback: Callback) -> None:
        self._on_change.append((pattern, callback))

    def add_on_state(self, callback: Callback) -> None:
        self._on_state.append(callback)

    def add_buffer(self, buffer: Buffer) -> None:
        """Fed for as long as somebody holds it."""
        self._buffers.add(buffer)

    def tell_changes(self, changes: list[Change]) -> None:
        if not changes:
            return
        for buffer in list(self._buffers):
            self.resets += buffer.put(changes)
        everything = [callback for pattern, callback in self._on_change if pattern == "*"]
        if len(everything) == len(self._on_change) == 1:
            self._run_all(everything[0], changes)
            return
        for change in changes:
            for pattern, callback in tuple(self._on_change):
                if pattern == "*" or matches(pattern, change):
                    self._run(callback, change)

    def tell_state(self, state: str) -> None:
        for callback in list(self._on_state):
            self._run(callback, state)

    def _run_all(self, callback: Callback, changes: list[Change]) -> None:
        """The usual case, one listener for everything, without a call and a `try` of our own around each change."""
        call, rest = self._call, iter(changes)
        while True:
            try:
                if call is call_in_place:
                    for change in rest:
                        callback(change)
                else:
                    for change in rest:
                        call(callback, change)
                return
            except BaseException as error:
                if is_interrupt(error):
                    raise
                log.exception("the callback %r failed", getattr(callback, "__qualname__", callback))

    def _run(self, callback: Callback, value: Any) -> None:
        try:
            self._call(callback, value)
        except BaseException as error:
            if is_interrupt(error):
                raise
            log.exception("the callback %r failed", getattr(callback, "__qualname__", callback))


def call_in_place(callback: Callback, value: Any) -> None:
    """For workers without an event loop."""
    callback(value)
