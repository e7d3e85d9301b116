"""Calls that this worker runs, from their arrival to the one answer that frees their slot at the broker.

Invariant: every call that arrives is answered exactly once, even if it is cancelled or wants no answer, because the
answer frees the slot. The exception is a call from another epoch: by now its number may mean another call. This module
does not watch deadlines: the broker does, and sends Cancel.
"""

from __future__ import annotations

from ... import errors, wire
from ..counters import Counters
from .events import BROKER, CancelCall, Events, Outbox, RunCall

NIL = wire.pack(None)


class Incoming:
    """The table of running calls."""

    def __init__(self, outbox: Outbox, events: Events, counters: Counters) -> None:
        self._outbox = outbox
        self._events = events
        self._counters = counters
        self._running: dict[int, RunCall] = {}
        self.epoch = ""  # the session's epoch, once there is a session

    def __len__(self) -> int:
        return len(self._running)

    def on_call(self, call: wire.Call, offered: bool, now: float) -> None:
        """Runs the call, or answers it at once if it can't run."""
        number = call.number
        if number in self._running:
            self._counters["unexpected"] += 1
        elif not offered:
            self._outbox.append((BROKER, _not_offered(number, call.function_id)))
        elif call.remaining_ms <= 0:
            self._outbox.append((BROKER, _too_late(number, call.function_id)))
        else:
            deadline = now + call.remaining_ms / 1000
            run = RunCall(call, deadline, self.epoch)
            self._running[number] = run
            self._events.append(run)

    def on_cancel(self, number: int) -> None:
        run = self._running.get(number)
        if run is not None:
            run.cancelled = True
            self._events.append(CancelCall(run))

    def finish(self, run: RunCall, payload: wire.Payload) -> None:
        """The handler returned."""
        if self._close(run):
            self._outbox.append((BROKER, wire.Result(run.number, payload)))

    def fail(self, run: RunCall, type_name: str, text: str) -> None:
        """The handler raised."""
        if self._close(run):
            self._outbox.append((BROKER, _raised(run.number, type_name, text)))

    def decline(self, run: RunCall) -> None:
        """Declines a call that was cancelled or expired in the queue."""
        if self._close(run):
            self._outbox.append((BROKER, _too_late(run.number, run.function_id)))

    def disown(self, run: RunCall) -> None:
        """Returns a call whose function was unregistered before it started: another provider may take it."""
        if self._close(run):
            self._outbox.append((BROKER, _not_offered(run.number, run.function_id)))

    def orphan(self) -> None:
        """Orphans all running calls: their broker is gone, so nobody hears of their outcome."""
        running, self._running = self._running, {}
        for run in running.values():
            run.cancelled = True
            self._events.append(CancelCall(run))

    def _close(self, run: RunCall) -> bool:
        if self._running.get(run.number) is run:
            del self._running[run.number]
            return True
        self._counters["results_orphaned"] += 1
        return False


def _not_offered(number: int, function_id: str) -> wire.Failure:
    text = f"{function_id} is no longer offered here"
    return wire.Failure(number, errors.NO_PROVIDER, "not_handed_over", "", text)


def _too_late(number: int, function_id: str) -> wire.Failure:
    text = f"{function_id}: timed out before it was started"
    return wire.Failure(number, errors.TIMEOUT, "not_handed_over", "", text)


def _raised(number: int, type_name: str, text: str) -> wire.Failure:
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate in the message must not stop the answer
    if len(text) > wire.TEXT_CHARS_MAX:
        text = text[: wire.TEXT_CHARS_MAX - 3] + "..."
    return wire.Failure(number, errors.HANDLER_FAILED, "executed", type_name, text)
