"""What the command line asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    modes: tuple[str, ...]  # "pinned": every process on one CPU; "free": wherever they like
    quick: bool  # fewer and shorter rounds: to see that it runs, not to quote
    floors_only: bool  # bare pyzmq alone: needs no product
    seconds: float | None  # how long `churn` changes; None: as long as was asked for
