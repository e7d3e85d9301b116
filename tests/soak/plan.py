"""Who offers what, and what a worker does next. All of it follows from a seed, but for when it happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

WORKERS_A_PROCESS = 5
LEADS = 3  # exclusive functions, each with a handful of providers
NAP_MAX_S = 4.0  # longer than the TTL, so that a worker that naps inline is stalled
DOZE_MAX_S = 0.4  # for any handler: calls that are under way when a fault comes
BATCH_MAX = 3  # functions in one registration
DESCRIPTION_CHARS_MAX = 4_000  # so that a snapshot has several parts
BURST_MAX = 20  # calls at once
LARGE_BYTES = (100_000, 2_000_000)  # two frames, by far

ANY, IDEMPOTENT, FAIL, NAP, RELAY, NOBODYS = (
    "soak::any", "soak::idempotent", "soak::fail", "soak::nap", "soak::relay", "soak::nobodys",
)  # fmt: skip


def slot_name(index: int) -> str:
    """What a worker is called through all lives of its process."""
    return f"w{index:02}"


def own(index: int) -> str:
    """The function that this worker alone offers."""
    return f"soak::own.{slot_name(index)}"


def lead(number: int) -> str:
    return f"soak::lead.{number}"


def offers(index: int) -> dict[str, dict[str, Any]]:
    """Function id -> options of `register`, for the functions that this worker offers from its start on."""
    found: dict[str, dict[str, Any]] = {own(index): {}}
    if index % 2 == 0:
        found[ANY] = {"description": "echoes the call's id"}
    if index % 3 == 0:
        found[IDEMPOTENT] = {"idempotent": True}
    if index % 9 < LEADS:
        found[lead(index % 9)] = {"exclusive": True}
    for divisor, rest, function_id in ((5, 1, FAIL), (7, 2, NAP), (5, 3, RELAY)):
        if index % divisor == rest:
            found[function_id] = {}
    return found


@dataclass(slots=True)
class Wish:
    """One call that somebody wants to make. `asks` goes into its payload."""

    function_id: str
    timeout: float
    style: str  # call, submit, cancel, send
    aimed: bool = False
    asks: dict[str, Any] = field(default_factory=dict)

    @property
    def is_idempotent(self) -> bool:
        return self.function_id == IDEMPOTENT


class Will:
    """What one worker wants to do next."""

    def __init__(self, workers: int, index: int, seed: str) -> None:
        self._workers = workers
        self._index = index
        self._random = Random(seed)
        self._functions = self._floods = 0
        self._churned: list[str] = []

    def pause_s(self) -> float:
        """Between two acts of calling."""
        return self._random.uniform(0.01, 0.4)

    def churn_pause_s(self) -> float:
        """Between two registrations or unregistrations: some ten changes a second of 50 workers."""
        return self._random.uniform(0.5, 9.0)

    def wishes(self) -> list[Wish]:
        """A call, or now and then many at once."""
        if self._random.random() < 0.03:
            style = self._random.choice(("submit", "submit", "send"))
            return [self._wish(style) for _ in range(self._random.randint(2, BURST_MAX))]
        return [self._wish(self._random.choices(("call", "submit", "cancel", "send"), (75, 17, 3, 5))[0])]

    def batch(self) -> list[str]:
        """Functions to register, never registered before."""
        first, self._functions = self._functions, self._functions + self._random.randint(1, BATCH_MAX)
        batch = [f"churn::{slot_name(self._index)}.{number}" for number in range(first, self._functions)]
        self._churned += batch
        return batch

    def flooding(self) -> str:
        """A function for one flood alone: there may be two at a time."""
        self._floods += 1
        return f"{own(self._index)}.flood{self._floods}"

    def description(self) -> str:
        """Of a function that comes and goes."""
        return "-" * self._random.randrange(DESCRIPTION_CHARS_MAX)

    def gone(self) -> list[str]:
        """Functions to unregister, perhaps none."""
        gone = [one for one in self._churned if self._random.random() < 0.5]
        self._churned = [one for one in self._churned if one not in gone]
        return gone

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def choice(self, choices: list[Any]) -> Any:
        return self._random.choice(choices)

    def _wish(self, style: str) -> Wish:
        rolls = self._random
        timeout = rolls.choice((0.1, 0.5, 2.0, 5.0, 5.0))
        kind = rolls.choices(("any", "own", "idempotent", "lead", "fail", "nap", "relay", "nobodys", "aimed"),
                             (25, 22, 14, 16, 5, 4, 6, 2, 6))[0]  # fmt: skip
        if kind == "own":
            wish = Wish(own(rolls.randrange(self._workers)), timeout, style)
        elif kind == "lead":
            wish = Wish(lead(rolls.randrange(LEADS)), timeout, style)
        elif kind == "nap":
            wish = Wish(NAP, timeout, style, asks={"nap": rolls.uniform(0.05, NAP_MAX_S)})
        elif kind == "relay":
            wish = Wish(RELAY, timeout, style, asks={"next": own(rolls.randrange(self._workers))})
        else:
            named = {"any": ANY, "idempotent": IDEMPOTENT, "fail": FAIL, "nobodys": NOBODYS, "aimed": ANY}
            wish = Wish(named[kind], timeout, style, aimed=kind == "aimed")
        if rolls.random() < 0.15:
            wish.asks.setdefault("nap", rolls.uniform(0.0, DOZE_MAX_S))
        if rolls.random() < 0.02:
            wish.asks["ballast"] = bytes(rolls.choice(LARGE_BYTES))
        return wish
