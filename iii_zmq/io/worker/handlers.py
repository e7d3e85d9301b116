"""The user's functions: which handler belongs to which id, where it runs, and what comes of it.

Invariant: the outcome of a call is decided here and nowhere else: a packed result, or the name and text of what was
raised. Nothing that a handler does, or returns, gets past `run_here` as an exception, except Ctrl-C.

A sync worker's handlers run in the threads of its Pool, or inline (see Inline in sync_guest).
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, Final

from ... import wire
from ...core.worker.events import RunCall
from ...core.worker.incoming import Incoming
from .arguments import Handler, make_entry
from .forks import end_child, forks
from .listeners import is_interrupt
from .payloads import PACK_ERRORS, pack_value, running

log = logging.getLogger("iii_zmq.worker")

QUICK_S: Final = 0.0002  # a handler that takes less is quick
HOLD_S: Final = 0.0002  # how long an answer that is ready waits for those of quick handlers
PACE_KEPT: Final = 0.9  # of a slow run's time, at each run after it

_clock: Final = time.monotonic


class Raised:
    """What a handler raised, as it travels."""

    __slots__ = ("text", "type")

    def __init__(self, error: BaseException) -> None:
        self.type = type(error).__name__
        self.text = str(error)


class NotRun(Enum):
    """Why there is no outcome of a handler's."""

    TOO_LATE = "its time was over, or nobody waits for it any more"
    NOT_OFFERED = "it was unregistered while the call waited for its turn"


NOT_STARTED = NotRun.TOO_LATE
Outcome = bytes | wire.Split | Raised | NotRun
"""A packed result, what was raised, or why the handler was not started."""


class Handlers:
    """Function id -> handler, and the entries that the broker is to know."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self.entries: dict[str, bytes] = {}
        self._coroutines: set[str] = set()  # of these, those whose handler is an `async def`
        self._paces: dict[str, float] = {}  # how long it took in seconds, at the worst of late; of those that ran here

    def __contains__(self, function_id: str) -> bool:
        return function_id in self._handlers

    def __len__(self) -> int:
        return len(self._handlers)

    def coroutine(self, function_id: str) -> Handler | None:
        """The handler, if there is one that is an `async def`."""
        return self._handlers.get(function_id) if function_id in self._coroutines else None

    def prepare(
        self, batch: list[tuple[str, Handler, dict[str, Any]]], common: Mapping[str, Any]
    ) -> dict[str, tuple[Handler, bytes]]:
        """Checks a whole batch before any of it counts. Raises: TypeError, ValueError."""
        prepared: dict[str, tuple[Handler, bytes]] = {}
        for function_id, handler, own in batch:
            options = {**common, **own}
            replace = options.pop("replace", False)
            entry = make_entry(function_id, handler, **options)
            if function_id in prepared or (function_id in self._handlers and not replace):
                raise ValueError(f"{function_id} is registered by this worker already; replace=True changes it")
            prepared[function_id] = (handler, entry)
        return prepared

    def put(self, prepared: Mapping[str, tuple[Handler, bytes]]) -> dict[str, tuple[Handler, bytes] | None]:
        """Takes the batch over; returns what was there before, for `put_back`."""
        before = {name: self._pair(name) for name in prepared}
        for name, (handler, entry) in prepared.items():
            self._set(name, handler, entry)
            self._paces.pop(name, None)
        return before

    def put_back(self, before: Mapping[str, tuple[Handler, bytes] | None], names: list[str]) -> None:
        """The broker refused these: what was there before is there again."""
        for name in names:
            pair = before.get(name)
            if pair is None:
                self.remove([name])
            else:
                self._set(name, *pair)

    def remove(self, names: list[str]) -> None:
        for name in names:
            self._handlers.pop(name, None)
            self.entries.pop(name, None)
            self._coroutines.discard(name)
            self._paces.pop(name, None)

    def _set(self, name: str, handler: Handler, entry: bytes) -> None:
        self._handlers[name] = handler
        self.entries[name] = entry
        if inspect.iscoroutinefunction(handler):
            self._coroutines.add(name)
        else:
            self._coroutines.discard(name)

    def _pair(self, name: str) -> tuple[Handler, bytes] | None:
        return (self._handlers[name], self.entries[name]) if name in self._handlers else None

    def is_quick(self, function_id: str) -> bool:
        """Whether an answer that is ready may wait for this one: it ran before, and never took long of late."""
        return self._paces.get(function_id, QUICK_S) < QUICK_S

    def note_pace(self, function_id: str, took_s: float) -> None:
        """Records a run time. One slow run is forgotten in time: one pause of the system proves nothing."""
        if function_id in self._handlers:
            self._paces[function_id] = max(took_s, self._paces.get(function_id, 0.0) * PACE_KEPT)

    # -- running -------------------------------------------------------------------------------------------------------

    def run_here(self, run: RunCall, now: float) -> Outcome:
        """Runs a plain handler in this thread, unless nobody waits for it any more. `now` is on the core's clock.

        Raises: KeyboardInterrupt, in the main thread. The call is then still to be handed back.
        """
        handler = self._handlers.get(run.function_id)
        if run.cancelled or now >= run.deadline:
            return NOT_STARTED
        if handler is None:
            return NotRun.NOT_OFFERED
        token = running.set(run)
        begun_in = forks.count
        try:
            value = handler(take_payload(run))
            if forks.count != begun_in:
                end_child(None)
            try:
                packed = wire.pack_payload(value)
            except PACK_ERRORS:
                return pack_outcome(run, value)  # says what is wrong with it
            return packed if len(packed) <= wire.PAYLOAD_BYTES_MAX else pack_outcome(run, value)
        except BaseException as error:  # a handler that exits has failed: the worker is not its to end
            if forks.count != begun_in:
                end_child(error)
            if is_interrupt(error):
                raise
            return raised(run, error)
        finally:
            running.reset(token)


def take_payload(run: RunCall) -> Any:
    """The value that the handler gets; what it came in is let go: 16 MB are there once while the handler runs."""
    payload, run.payload = run.payload, b""
    return wire.unpack(payload)


def pack_outcome(run: RunCall, value: Any) -> bytes | wire.Split:
    """Raises: TypeError, ValueError when msgpack can't carry what the handler returned."""
    return pack_value(f"result of {run.function_id}", value)


def raised(run: RunCall, error: BaseException) -> Raised:
    """A handler's exception: logged here with its traceback, told to the caller by name and text."""
    log.info("handler of %s raised %s", run.function_id, type(error).__name__, exc_info=error)
    return Raised(error)


def hand_back(incoming: Incoming, run: RunCall, outcome: Outcome) -> None:
    """Tells the core how it went."""
    if outcome is NotRun.TOO_LATE:
        incoming.decline(run)
    elif outcome is NotRun.NOT_OFFERED:
        incoming.disown(run)
    elif isinstance(outcome, Raised):
        incoming.fail(run, outcome.type, outcome.text)
    else:
        incoming.finish(run, outcome)


class Pool:
    """At most `threads_max` threads, started when they are needed; calls beyond that wait, bounded by the credit.

    Daemon threads, unlike those of `concurrent.futures`: a handler that hangs keeps no interpreter from ending.
    """

    def __init__(self, name: str, threads_max: int, handlers: Handlers, hand_back: Callable[[], None]) -> None:
        self._name = name
        self._threads_max = threads_max
        self._handlers = handlers
        self._hand_back = hand_back
        self._runs: SimpleQueue[RunCall | None] = SimpleQueue()
        self.done: deque[tuple[RunCall, Outcome]] = deque()  # what `hand_back` takes
        self._threads = 0
        self._open = 0  # calls that were put and have not ended
        self._lock = threading.RLock()

    def put(self, run: RunCall) -> None:
        with self._lock:
            self._open += 1
            if self._threads < min(self._open, self._threads_max):
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        self._runs.put(run)

    def close(self) -> None:
        """The threads end when what was put has ended; nobody waits for that."""
        for _ in range(self._threads):
            self._runs.put(None)

    def _work(self) -> None:
        """Results of quick handlers that follow each other in one thread leave together, as those of Inline do."""
        held_from = math.inf  # since then a result of this thread may wait
        while True:
            try:
                run = self._runs.get(block=held_from == math.inf)
            except Empty:
                held_from = self._hand_back_now()
                continue
            began = _clock()
            is_next_quick = run is not None and self._handlers.is_quick(run.function_id)
            if held_from != math.inf and (began - held_from > HOLD_S or not is_next_quick):
                held_from = self._hand_back_now()
            if run is None:
                return
            self.done.append((run, self._handlers.run_here(run, began)))
            ended = _clock()
            self._handlers.note_pace(run.function_id, ended - began)
            held_from = min(held_from, ended)
            with self._lock:
                self._open -= 1

    def _hand_back_now(self) -> float:
        self._hand_back()
        return math.inf
