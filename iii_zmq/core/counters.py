"""What is counted, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

Counters = dict[str, int]


def new_counters(names: Iterable[str] = ()) -> Counters:
    """These names at zero; others begin when they are first counted.

    No collections.Counter, which is written in Python and so takes twice as long to add one: each call adds two.
    """
    return defaultdict(int, dict.fromkeys(names, 0))
