"""Ctrl-C and SIGTERM for `run()`: the worker ends, and the signal handlers that were there before are back.

Only the usual handlers are replaced, that of `asyncio.run` among them; the user's own stay as they are. An event loop
has one handler for each signal, so of two `run()`s the later one's would replace the earlier one's: there the first
that comes sets the handlers, everybody who is inside is told, and the last that goes puts back what was found.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Then = Callable[[], Any]


class RunSignals:
    """While a sync worker's `run()` runs in the main thread: the first signal ends it, a second one the draining."""

    def __init__(self) -> None:
        self.then: Then | None = None  # called by the signal handler
        self.came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> RunSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        if self.then is not None:
            self.then()


class _Caught:
    """The signals of one loop, as long as somebody wants to be told of them."""

    def __init__(self) -> None:
        self.thens: list[Then] = []
        self.before: dict[signal.Signals, Any] = {}

    def tell(self) -> None:
        for then in tuple(self.thens):
            then()


_caught: dict[asyncio.AbstractEventLoop, _Caught] = {}  # one entry per loop in which somebody is inside


@contextmanager
def told_of_signals(then: Then) -> Iterator[None]:
    """Calls `then` in the running loop at Ctrl-C and SIGTERM; does nothing where it is not the main thread's."""
    loop = asyncio.get_running_loop()
    caught = _caught.get(loop)
    if caught is None:
        caught = _caught[loop] = _Caught()
        _catch(loop, caught)
    caught.thens.append(then)
    try:
        yield
    finally:
        caught.thens.remove(then)
        if not caught.thens:
            del _caught[loop]
            _put_back(loop, caught)


def _catch(loop: asyncio.AbstractEventLoop, caught: _Caught) -> None:
    for number in SIGNALS:
        before = signal.getsignal(number)
        if not _is_usual(before):
            continue
        try:
            loop.add_signal_handler(number, caught.tell)
        except (NotImplementedError, RuntimeError, ValueError):  # another thread's loop, or one that can't
            return
        caught.before[number] = before


def _put_back(loop: asyncio.AbstractEventLoop, caught: _Caught) -> None:
    """A loop that was closed meanwhile has given its handlers back by itself."""
    for number, before in caught.before.items():
        if loop.remove_signal_handler(number):
            signal.signal(number, before)


def _is_usual(handler: Any) -> bool:
    """Python's own, the system's, or what `asyncio.run` sets from Python 3.11 on to cancel the main task."""
    if handler in (signal.default_int_handler, signal.SIG_DFL):
        return True
    runner = getattr(asyncio, "Runner", None)
    return runner is not None and isinstance(getattr(getattr(handler, "func", None), "__self__", None), runner)


def heed() -> None:
    """Lets Python run the handlers of signals that have come. Compiled code calls this: it never looks by itself."""
