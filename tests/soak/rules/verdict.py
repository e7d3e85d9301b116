"""What the rules found: counts of what happened, and offences with the records that prove them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..records import Record

RULES = {
    "one outcome": "every call has exactly one outcome at its caller, unless its caller was killed",
    "in time": "no call outlives its timeout by half a minute",
    "own answer": "a result is the call's own; a result, or a failure with the fate `executed`, was executed",
    "not handed over": "no call that failed as `not_handed_over` was ever executed",
    "at most once": "no call of a function that is not idempotent ran twice",
    "no invention": "nothing runs, and nothing ends, that nobody called",
    "callable again": "after the faults every call succeeds",
    "whole again": "after the faults everybody is connected, idle, and sees the same registry",
    "no accident": "nobody ends, raises or complains that no fault explains",
    "log numbered": "the broker's changes are numbered without a hole, and each digest is that of its content",
    "owned": "who leaves takes all of its rows along, once, and nothing of others",
    "one active": "an exclusive function has one active provider, never two, and never none while one offers it",
    "fences": "an exclusive function's calls carry the seq of their provider's promotion, rising within an epoch",
    "streams ordered": "what each worker hears follows the broker's log without a gap, but for what a `reset` tells of",
    "streams atomic": "all changes of one seq come together, and are those of the broker's log, none less, none more",
    "streams complete": "what each worker heard reaches from its joining to where it stands at the end",
    "acknowledged": "what was acknowledged as registered had been committed before",
    "present": "what was acknowledged to a living worker is there at the end, unless unregistered; and nothing else",
    "no ghosts": "at the end the registry holds the living workers, and nobody else",
    "verified": "each worker's digest at the end is that of the broker's log at its position",
}


@dataclass(slots=True)
class Offence:
    """A promise that was broken, and the records that show it."""

    rule: str
    text: str
    records: list[Record]


@dataclass(slots=True)
class Verdict:
    """Filled by the rules, printed by check.py."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fate, code)
    faults: Counter[str] = field(default_factory=Counter)  # kind
    offences: list[Offence] = field(default_factory=list)

    def offend(self, rule: str, text: str, *records: Record) -> None:
        assert rule in RULES, rule
        self.offences.append(Offence(rule, text, list(records)))

    @property
    def broken(self) -> set[str]:
        """The rules that were."""
        return {offence.rule for offence in self.offences}
