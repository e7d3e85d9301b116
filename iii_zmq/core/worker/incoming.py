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
            run = self._running[number] = RunCall(call, now + call.remaining_ms / 1000, self.epoch)
            self._events.append(run)

    def on_cancel(self, number: int) -> None:
        run = self._running.get(number)
        if run is not None:
            run.cancelled = True
            self._events.append(CancelCall(run))

    def finish(self, run: RunCall, payload: wire.Payload) -> None:
        """The handler returned."""
        self._answer(run, wire.Result(run.number, payload))

    def fail(self, run: RunCall, type_name: str, text: str) -> None:
        """The handler raised."""
        self._answer(run, _raised(run.number, type_name, text))

    def decline(self, run: RunCall) -> None:
        """Declines a call that was cancelled or expired in the queue."""
        self._answer(run, _too_late(run.number, run.function_id))

    def disown(self, run: RunCall) -> None:
        """Returns a call whose function was unregistered before it started: another provider may take it."""
        self._answer(run, _not_offered(run.number, run.function_id))

    def orphan(self) -> None:
        """Orphans all running calls: their broker is gone, so nobody hears of their outcome."""
        running, self._running = self._running, {}
        for run in running.values():
            run.cancelled = True
            self._events.append(CancelCall(run))

    def _answer(self, run: RunCall, message: wire.Result | wire.Failure) -> None:
        if self._running.get(run.number) is run:
            del self._running[run.number]
            self._outbox.append((BROKER, message))
        else:
            self._counters["results_orphaned"] += 1


def _not_offered(number: int, function_id: str) -> wire.Failure:
    return wire.Failure(number, errors.NO_PROVIDER, "not_handed_over", "", f"{function_id} is no longer offered here")


def _too_late(number: int, function_id: str) -> wire.Failure:
    text = f"{function_id}: timed out before it was started"
    return wire.Failure(number, errors.TIMEOUT, "not_handed_over", "", text)


def _raised(number: int, type_name: str, text: str) -> wire.Failure:
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate in the message must not stop the answer
    if len(text) > wire.TEXT_CHARS_MAX:
        text = text[: wire.TEXT_CHARS_MAX - 3] + "..."
    return wire.Failure(number, errors.HANDLER_FAILED, "executed", type_name, text)
