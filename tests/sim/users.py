"""The programs around the workers: they register, call, answer, fail, give up; and the book of all their calls.

    User     one worker's program: what it offers, the calls it makes, its handlers
    Ledger   every call from the moment it is asked for: who executed it, and its one outcome

A handler counts as executed from the moment its code would start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from random import Random

from iii_zmq import errors, wire
from iii_zmq.core.worker.events import (
    CallEnded,
    Drained,
    Event,
    JoinRefused,
    NotOffered,
    RunCall,
    Settled,
    StateChanged,
)
from iii_zmq.core.worker.outgoing import GRACE_S

from .checks import require
from .clock import Clock
from .cluster import Cluster, WorkerHost
from .trace import Violation, describe_value

FUNCTIONS = (
    *(f"f::{index}" for index in range(5)),
    *(f"x::{index}" for index in range(3)),
    *(f"i::{index}" for index in range(2)),
    "xi::0",
    "m::0",
)
LARGE = b"x" * (wire.INLINE_BYTES_MAX + 1)
LATE_S = 0.05  # how much later than its deadline and the grace a caller may be told
LEAVE_S = 3.0

OK, RAISE, NEVER = "ok", "raise", "never"


def flags_of(function_id: str, rng: Random) -> int:
    """A function's name tells its flags; about `m::0` its providers disagree."""
    kind = function_id.partition("::")[0]
    is_exclusive = "x" in kind or (kind == "m" and rng.random() < 0.5)
    return (wire.EXCLUSIVE if is_exclusive else 0) | (wire.IDEMPOTENT if "i" in kind else 0)


# -- the book of calls -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Entry:
    """One call. `executed_by`: the worker ids whose handlers started it."""

    call_id: int
    caller: str
    function_id: str
    asked_at: float
    deadline: float
    target: str
    is_no_answer: bool
    executed_by: list[str] = field(default_factory=list)
    outcome: str = ""
    is_given_up: bool = False

    @property
    def is_open(self) -> bool:
        return not self.outcome and not self.is_given_up and not self.is_no_answer

    def __str__(self) -> str:
        return f"call {self.call_id} of {self.function_id} by {self.caller}"


class Ledger:
    """All calls of a run."""

    def __init__(self, clock: Clock) -> None:
        self.entries: dict[int, Entry] = {}
        self._clock = clock

    def asked(self, caller: str, function_id: str, timeout_s: float, target: str, is_no_answer: bool) -> Entry:
        now = self._clock.now
        entry = Entry(len(self.entries) + 1, caller, function_id, now, now + timeout_s, target, is_no_answer)
        self.entries[entry.call_id] = entry
        return entry

    def executed(self, call_id: int, function_id: str, worker_id: str) -> None:
        entry = self.entries[call_id]
        require(entry.function_id == function_id, f"{entry} was executed as {function_id}")
        require(entry.outcome != "not_handed_over", f"{entry} ended as not_handed_over, and is executed now")
        require(worker_id not in entry.executed_by, f"{entry} is executed twice by {worker_id}")
        is_again = bool(entry.executed_by) and "i" not in function_id.partition("::")[0]
        require(not is_again, f"{entry} is executed by {worker_id} after {entry.executed_by}")
        require(entry.target in ("", worker_id), f"{entry} was aimed at {entry.target}, executed by {worker_id}")
        entry.executed_by.append(worker_id)

    def ended(self, call_id: int, caller: str, outcome: wire.Payload | errors.CallFailed) -> None:
        entry = self.entries[call_id]
        require(entry.caller == caller, f"{entry} ended at {caller}")
        require(entry.is_open, f"{entry} ended again (or after it was given up): {outcome!r}")
        if isinstance(outcome, errors.CallFailed):
            self._failed(entry, outcome)
        else:
            value = wire.unpack(outcome)
            is_ours = value[0] == call_id and value[1] in entry.executed_by
            require(is_ours, f"{entry} got {value[:2]}, executed by {entry.executed_by}")
            entry.outcome = "result"

    def _failed(self, entry: Entry, error: errors.CallFailed) -> None:
        entry.outcome = error.fate
        if error.fate == "not_handed_over":
            require(not entry.executed_by, f"{entry} failed as not_handed_over, executed by {entry.executed_by}")
        if error.fate == "executed":
            is_told = isinstance(error, errors.RemoteError) and error.text == str(entry.call_id)
            require(is_told and bool(entry.executed_by), f"{entry} failed as executed: {error}")
        if isinstance(error, errors.CallTimeout):
            early_s = entry.deadline - self._clock.now
            require(early_s < 0.003, f"{entry} timed out {early_s:.3f} s before its deadline")


# -- one worker's program ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Wish:
    """The latest that a user asked of one function: the entry offered, or None for none."""

    ticket: int
    entry: bytes | None
    is_open: bool = True
    is_certain: bool = True  # nothing was refused


class User:
    """What one worker's program does, driven by `act` and by what the core tells."""

    def __init__(self, cluster: Cluster, host: WorkerHost, ledger: Ledger) -> None:
        self._cluster = cluster
        self._host = host
        self._core = host.core
        self._ledger = ledger
        self._rng = cluster.rng
        self._clock = cluster.clock
        self._wishes: dict[str, _Wish] = {}
        self._calls: dict[int, int] = {}  # our number -> call id
        self._sleepers: list[RunCall] = []  # handlers that never end by themselves
        self._version = 0
        self.is_leaving = False
        host.user = self

    # -- acts ----------------------------------------------------------------------------------------------------------

    def register(self, function_ids: list[str], flags: int | None = None) -> None:
        """Adds or replaces these functions."""
        entries = {}
        for function_id in function_ids:
            self._version += 1
            chosen = flags_of(function_id, self._rng) if flags is None else flags
            entries[function_id] = wire.encode_entry(
                wire.FunctionEntry(function_id, f"{self._host.name} v{self._version}", flags=chosen)
            )
        self._offer(entries)

    def _offer(self, entries: dict[str, bytes]) -> None:
        self._host.trace.note(self._host.name, f"registers {', '.join(entries)}")
        ticket = self._core.register(entries)
        self._wishes.update({name: _Wish(ticket, entry) for name, entry in entries.items()})

    def unregister(self, function_ids: list[str]) -> None:
        self._host.trace.note(self._host.name, f"unregisters {', '.join(function_ids)}")
        ticket = self._core.offers.unregister(function_ids)
        self._wishes.update({name: _Wish(ticket, None) for name in function_ids})

    def change_mind(self, function_id: str) -> None:
        """Offers and withdraws one function several times, each time in the same words."""
        self._version += 1
        data = wire.FunctionEntry(
            function_id, f"{self._host.name} v{self._version}", flags=flags_of(function_id, self._rng)
        )
        entry = wire.encode_entry(data)
        is_offered = self._rng.random() < 0.5
        for _ in range(self._rng.randint(2, 4)):
            is_offered = not is_offered
            if is_offered:
                self._offer({function_id: entry})
            else:
                self.unregister([function_id])

    def think_better_of_it(self) -> None:
        """Withdraws something, and offers it again, in the same words, a moment later."""
        offered = [name for name, wish in self._wishes.items() if wish.entry is not None and not wish.is_open]
        if not offered:
            return
        function_id = self._rng.choice(offered)
        entry = self._wishes[function_id].entry
        assert entry is not None
        self.unregister([function_id])
        self._clock.after(0.005, lambda: self._host.soon(partial(self._offer, {function_id: entry})))

    def call(
        self,
        function_id: str,
        *,
        timeout_s: float = 30.0,
        target: str = "",
        behaviour: str = OK,
        took_s: float = 0.0,
        is_no_answer: bool = False,
        is_large: bool = False,
    ) -> Entry | None:
        """None when the worker refuses at once: too many are open."""
        entry = self._ledger.asked(self._host.name, function_id, timeout_s, target, is_no_answer)
        payload = wire.pack([entry.call_id, behaviour, took_s, LARGE if is_large else b""])
        flags = wire.NO_ANSWER if is_no_answer else 0
        self._host.trace.note(self._host.name, f"asks {entry}, {behaviour} in {took_s:.3f} s, timeout {timeout_s:.3f}")
        try:
            number = self._core.call(function_id, payload, timeout_s, self._clock.now, target, flags)
        except errors.Busy:
            entry.outcome = "not_handed_over"
            return None
        self._calls[number] = entry.call_id
        self._clock.at(entry.deadline + GRACE_S + LATE_S, partial(self._check_in_time, entry, self._clock.now))
        return entry

    def give_up(self) -> None:
        """One of the open calls is not waited for any more."""
        numbers = [number for number, call_id in self._calls.items() if self._ledger.entries[call_id].is_open]
        if numbers:
            number = self._rng.choice(numbers)
            entry = self._ledger.entries[self._calls[number]]
            self._host.trace.note(self._host.name, f"gives up {entry}")
            entry.is_given_up = True
            self._core.outgoing.give_up(number)

    def leave(self) -> None:
        """Drain, Bye, end: as a worker that is closed politely."""
        self._host.trace.note(self._host.name, "drains")
        self.is_leaving = True
        self._core.drain()
        self._clock.after(LEAVE_S, lambda: self._host.soon(self._say_bye))

    def wake_sleepers(self) -> None:
        """The handlers that never ended do so now."""
        sleepers, self._sleepers = self._sleepers, []
        for run in sleepers:
            self._finish(run, wire.unpack(run.payload)[0], RAISE, "")

    # -- what the core tells -------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        match event:
            case RunCall():
                self._clock.after(self._start_delay(), lambda: self._host.soon(partial(self._run, event)))
            case CallEnded():
                call_id = self._calls.pop(event.number)
                self._host.trace.note(self._host.name, f"call {call_id}: {describe_value(event)}")
                self._ledger.ended(call_id, self._host.name, event.outcome)
            case Settled():
                self._on_settled(event)
            case NotOffered():
                for function_id, _, _ in event.refusals:
                    self._wishes[function_id].is_certain = False
            case Drained():
                if self.is_leaving:
                    self._host.soon(self._say_bye)
            case StateChanged():
                self._host.trace.note(self._host.name, f"is {event.state} {event.text}")
            case JoinRefused():
                raise Violation(f"{self._host.name} was refused: {event.code} {event.text}")
            case _:
                pass

    def _on_settled(self, event: Settled) -> None:
        self._host.trace.note(self._host.name, f"settled {describe_value(event)}")
        refused = {name for name, _, _ in event.refusals}
        for name, wish in self._wishes.items():
            if wish.ticket != event.ticket:
                continue
            require(wish.is_open, f"{self._host.name}: ticket {event.ticket} settled twice")
            wish.is_open = False
            wish.is_certain = name not in refused
            if wish.is_certain:
                self._check_visible(name, wish.entry)

    def _check_visible(self, function_id: str, entry: bytes | None) -> None:
        """Acknowledged means visible in the own replica, unless the broker meanwhile let the whole worker go."""
        welcome = self._core.membership.welcome
        assert welcome is not None
        content = self._core.replica._content
        if content.get((welcome.worker_id, "")) is None:
            return
        row = content.get((welcome.worker_id, function_id))
        shown = None
        if row is not None:
            offer = wire.decode_row(row)
            assert isinstance(offer, wire.ProviderRow)
            shown = offer.entry
        require(shown == entry, f"{self._host.name} was told that {function_id} is settled, but does not see it")

    # -- handlers ------------------------------------------------------------------------------------------------------

    def _start_delay(self) -> float:
        return self._rng.uniform(0, 0.01) if self._rng.random() < 0.1 else 0.0

    def _run(self, run: RunCall) -> None:
        if run.cancelled or self._clock.now >= run.deadline:
            self._core.incoming.decline(run)
            return
        call_id, behaviour, took_s, _ = wire.unpack(run.payload)
        welcome = self._core.membership.welcome
        assert welcome is not None
        require(run.epoch == welcome.epoch, f"call {call_id} of epoch {run.epoch} is executed in {welcome.epoch}")
        self._host.trace.note(self._host.name, f"executes call {call_id}")
        self._ledger.executed(call_id, run.function_id, welcome.worker_id)
        if behaviour == NEVER:
            self._sleepers.append(run)
        elif took_s:
            finish = partial(self._finish, run, call_id, behaviour, welcome.worker_id)
            self._clock.after(took_s, lambda: self._host.soon(finish))
        else:
            self._finish(run, call_id, behaviour, welcome.worker_id)

    def _finish(self, run: RunCall, call_id: int, behaviour: str, worker_id: str) -> None:
        welcome = self._core.membership.welcome
        is_ours = run.cancelled or not worker_id or (welcome is not None and welcome.worker_id == worker_id)
        require(is_ours, f"{self._host.name} still runs call {call_id} of {worker_id}, whose session has ended")
        if behaviour == OK:
            extra = LARGE if len(run.payload) > len(LARGE) else b""
            self._core.incoming.finish(run, wire.pack([call_id, worker_id, extra]))
        else:
            self._core.incoming.fail(run, "ValueError", str(call_id))

    # -- leaving -------------------------------------------------------------------------------------------------------

    def _say_bye(self) -> None:
        if self._core.membership.phase in ("left", "over"):
            return
        self._core.leave()
        self._end_soon()

    def _end_soon(self) -> None:
        """What still runs may finish."""
        if len(self._core.incoming) and self._rng.random() < 0.9:
            self._clock.after(0.1, lambda: self._host.soon(self._end_soon))
            return
        self._core.end()
        self._clock.after(0.01, self._exit)

    def _exit(self) -> None:
        if self._host.alive:
            self._check_all_ended()
            self._cluster.end_worker(self._host, is_killed=False)

    # -- what must hold ------------------------------------------------------------------------------------------------

    def _check_in_time(self, entry: Entry, asked_at: float) -> None:
        """At its deadline, and the grace after it, the caller knows; if its Python could run meanwhile."""
        host = self._host
        is_disturbed = not host.is_sound or host.disturbed_at >= asked_at
        require(is_disturbed or not entry.is_open, f"{entry} has no outcome at its deadline")

    def _check_all_ended(self) -> None:
        for call_id in self._calls.values():
            entry = self._ledger.entries[call_id]
            require(not entry.is_open, f"{entry} has no outcome although its worker has ended")

    def expected(self) -> dict[str, bytes]:
        """What was acknowledged and not withdrawn."""
        return {name: wish.entry for name, wish in self._wishes.items() if wish.entry is not None and wish.is_certain}

    def uncertain(self) -> list[str]:
        """Functions of which a refusal leaves open what is offered."""
        return [name for name, wish in self._wishes.items() if not wish.is_certain]

    def is_settled(self) -> bool:
        return not any(wish.is_open for wish in self._wishes.values())

    def offered(self) -> list[str]:
        return [name for name, wish in self._wishes.items() if wish.entry is not None]
