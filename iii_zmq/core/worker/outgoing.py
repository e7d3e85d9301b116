"""Calls that this worker makes, from the request to their one outcome.

    asked --(a session is open)--> sent --(Result, Failure, deadline, connection lost, given up)--> ended
    asked --(no session)--> waiting --(session opens)--> sent
                                    --(its timeout, or `patience_s`)--> ended: not handed over

Invariant: a number is in at most one of `_waiting` and `_sent`, and leaves with exactly one CallEnded, or with none if
the caller gives up. Numbers grow, so everything sent before a Hello has a smaller number than that Hello.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ... import errors, wire
from ..counters import Counters
from ..deadlines import whole_ms
from .events import BROKER, CallEnded, Events, Outbox
from .sends import Sends

GRACE_S: Final = 0.030  # the broker's time after a deadline to report the call's fate
OPEN_CALLS_MAX: Final = 4096  # until a Welcome says otherwise
SENDS: Final = 1 << 62  # marks numbers whose answer nobody awaits: a Failure for one is counted, not looked up


@dataclass(slots=True, init=False)
class _Sent:
    function_id: str
    deadline: float

    def __init__(self, function_id: str, deadline: float) -> None:
        self.function_id = function_id
        self.deadline = deadline


@dataclass(slots=True)
class _Waiting:
    call: wire.Call
    deadline: float
    until: float  # the earlier of the deadline and the end of patience


class Outgoing:
    """The table of open calls. `due` is when `tick` has work to do; it may be one scan too early, never late."""

    def __init__(self, outbox: Outbox, events: Events, counters: Counters, patience_s: float) -> None:
        self._outbox = outbox
        self._events = events
        self._counters = counters
        self._patience_s = patience_s
        self._sent: dict[int, _Sent] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._sends = Sends(outbox)
        self.open_calls_max = OPEN_CALLS_MAX
        self.caller: str | None = None  # our worker id while the broker accepts calls
        self._closed = False
        self.due = math.inf

    def __len__(self) -> int:
        return len(self._sent) + len(self._waiting)

    # -- from the facade -----------------------------------------------------------------------------------------------

    def call(
        self,
        number: int,
        function_id: str,
        payload: wire.Payload,
        timeout_s: float,
        target: str,
        flags: int,
        now: float,
    ) -> None:
        """Raises: Busy if too many calls are open; Closed after `close`."""
        if self._closed:
            raise errors.Closed("the worker was closed")
        if len(self._sent) + len(self._waiting) >= self.open_calls_max:
            text = f"{function_id}: this worker already has {self.open_calls_max} open calls, which is the limit"
            self._counters["calls_refused"] += 1
            raise errors.Busy(text, "not_handed_over", errors.BUSY)
        if flags & wire.NO_ANSWER and self._sends.is_full:
            self._counters["calls_refused"] += 1
            text = f"{function_id}: too many sends are on their way that the broker has not read yet"
            raise errors.Busy(text, "not_handed_over", errors.BUSY)
        deadline = now + timeout_s
        call = wire.Call(number, function_id, self.caller or "", whole_ms(timeout_s), target, flags, 0, payload)
        if self.caller is None:
            self._wait(call, deadline, now)
        else:
            self._send(call, deadline)

    def is_open(self, number: int) -> bool:
        """True until the call's CallEnded is told."""
        return number in self._sent or number in self._waiting

    def give_up(self, number: int) -> None:
        """The caller gives up: the broker is told, and no CallEnded comes."""
        if self._waiting.pop(number, None) is None and self._sent.pop(number, None) is not None:
            self._counters["calls_given_up"] += 1
            self._outbox.append((BROKER, wire.Cancel(number)))

    # -- from the broker -----------------------------------------------------------------------------------------------

    def on_result(self, result: wire.Result) -> None:
        if len(result.payload) > wire.INLINE_BYTES_MAX:  # it came as a frame of its own, which the broker counts
            self._outbox.append((BROKER, wire.Received(result.number, 0)))
        if self._sent.pop(result.number, None) is not None:
            self._events.append(CallEnded(result.number, result.payload))
        elif not self._sends.has_answered(result.number) and not result.number & SENDS:
            self._counters["answers_late"] += 1
        if not self._sent and not self._waiting:
            self.due = math.inf

    def on_failure(self, failure: wire.Failure) -> None:
        if self._sent.pop(failure.number, None) is not None:
            error = errors.call_failure(failure.code, failure.fate, failure.type, failure.text or failure.code)
            self._events.append(CallEnded(failure.number, error))
        elif self._sends.has_answered(failure.number):
            pass
        elif failure.number & SENDS:
            self._counters["sends_failed"] += 1
        else:
            self._counters["answers_late"] += 1

    def on_unknown(self, number: int) -> None:
        """The broker has no session for us: this call reached no provider."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._end(number, f"{sent.function_id}: the broker no longer knew this worker's session", "not_handed_over")

    # -- from the core -------------------------------------------------------------------------------------------------

    def opened(self, caller: str, open_calls_max: int, now: float) -> None:
        """The broker takes calls from now on: waiting ones are sent in order, with their remaining time."""
        self.caller = caller
        self.open_calls_max = open_calls_max
        waiting, self._waiting = list(self._waiting.values()), {}
        for one in waiting:
            one.call.caller = caller
            one.call.remaining_ms = whole_ms(one.deadline - now)
            self._send(one.call, one.deadline)

    def paused(self) -> None:
        """There is no session: further calls wait."""
        self.caller = None
        self._sends.reset()

    def close(self) -> None:
        """Takes no further calls; the open ones may still end."""
        self._closed = True

    def unsent(self, call: wire.Call, now: float) -> None:
        """The socket did not take the call, so nobody can have seen it: it waits for the next session."""
        sent = self._sent.pop(call.number, None)
        if sent is not None:
            self._wait(call, sent.deadline, now)
        elif call.flags & wire.NO_ANSWER:
            self._counters["sends_failed"] += 1

    def lose_sent(self, before: int, text: str) -> None:
        """The session is gone that carried the calls numbered below `before`."""
        for number in [number for number in self._sent if number < before]:
            sent = self._sent.pop(number)
            self._end(number, f"{sent.function_id}: {text}", "possibly_executed")

    def lose_all(self, text: str) -> None:
        """There will be no further session: every open call fails."""
        self.lose_sent(wire.NUMBER_MAX, text)
        waiting, self._waiting = self._waiting, {}
        for number, one in waiting.items():
            self._end(number, f"{one.call.function_id}: {text}", "not_handed_over")
        self.due = math.inf

    def tick(self, now: float, trouble: str = "") -> None:
        """Ends expired calls; `trouble` is why there is no session. Scans the open calls if a deadline has come."""
        if now < self.due:
            return
        for number in [number for number, sent in self._sent.items() if sent.deadline + GRACE_S <= now]:
            self._expire(number, self._sent.pop(number))
        for number in [number for number, one in self._waiting.items() if one.until <= now]:
            self._run_out(number, self._waiting.pop(number), now, trouble)
        ends = [sent.deadline + GRACE_S for sent in self._sent.values()]
        ends.extend(one.until for one in self._waiting.values())
        self.due = min(ends, default=math.inf)

    # -- private -------------------------------------------------------------------------------------------------------

    def _send(self, call: wire.Call, deadline: float) -> None:
        self._outbox.append((BROKER, call))
        if call.flags & wire.NO_ANSWER:
            self._sends.add(call)
            return
        self._sent[call.number] = _Sent(call.function_id, deadline)
        if deadline + GRACE_S < self.due:
            self.due = deadline + GRACE_S

    def _wait(self, call: wire.Call, deadline: float, now: float) -> None:
        until = min(deadline, now + self._patience_s)
        self._waiting[call.number] = _Waiting(call, deadline, until)
        self.due = min(self.due, until)

    def _expire(self, number: int, sent: _Sent) -> None:
        self._counters["calls_expired"] += 1
        self._outbox.append((BROKER, wire.Cancel(number)))
        text = f"{sent.function_id}: timed out, and the broker did not report why"
        self._tell(number, errors.CallTimeout(text, "possibly_executed", errors.TIMEOUT))

    def _run_out(self, number: int, waiting: _Waiting, now: float, trouble: str) -> None:
        text = f"{waiting.call.function_id}: no session with the broker"
        why = f": {trouble}" if trouble else ""
        if now < waiting.deadline:
            self._end(number, text + why, "not_handed_over")
        else:
            text = f"{text} within its timeout{why}"
            self._tell(number, errors.CallTimeout(text, "not_handed_over", errors.TIMEOUT))

    def _end(self, number: int, text: str, fate: errors.Fate) -> None:
        self._counters["calls_broker_lost"] += 1
        self._tell(number, errors.BrokerLost(text, fate, errors.BROKER_LOST))

    def _tell(self, number: int, error: errors.CallFailed) -> None:
        if number & SENDS:
            self._counters["sends_failed"] += 1
        else:
            self._events.append(CallEnded(number, error))
