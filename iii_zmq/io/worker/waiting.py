"""What the threads of a sync worker wait on: the outcome of a call, or a condition that the driver looks at."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ... import errors, wire

CallOutcome = wire.Payload | errors.CallFailed


class Slot:
    """Where the outcome of a call goes that its own thread drives."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: CallOutcome | None = None

    def end(self, outcome: CallOutcome) -> None:
        self.outcome = outcome


class Conditions:
    """What threads that do not drive wait for. Only the driver uses this, but for `came.wait()`."""

    def __init__(self) -> None:
        self._open: list[Condition] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, condition: Condition) -> None:
        self._open.append(condition)

    def forget(self, condition: Condition) -> None:
        if condition in self._open:
            self._open.remove(condition)

    def look(self) -> None:
        """Tells those whose condition has come."""
        for condition in [one for one in self._open if one.is_true()]:
            self._open.remove(condition)
            condition.came.set()


class Condition:
    """One of them."""

    def __init__(self, is_true: Callable[[], bool]) -> None:
        self.is_true = is_true
        self.came = threading.Event()
