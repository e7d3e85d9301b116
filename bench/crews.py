"""Asking crews (roles `workers.crew` and `workers.joiner`) what their replicas saw and hold."""

from __future__ import annotations

import time
from typing import Any

from bench.processes import Child, Children

PER_PROCESS = 10  # workers that share an interpreter
SEEN_TIMEOUT_S = 5.0
AGREE_TIMEOUT_S = 60.0
AGREE_PAUSE_S = 0.05


def shares(count: int) -> list[int]:
    """`count` workers spread over processes of at most ten."""
    return [min(PER_PROCESS, count - at) for at in range(0, count, PER_PROCESS)]


def crew_of(
    url: str, prefix: str, count: int, functions: int = 0, *, checks: bool = False
) -> tuple[str, dict[str, Any]]:
    """A role for `Children.start_all`: workers PREFIX-0 ..., each with `functions` functions.

    With `checks` their callbacks count gaps and resets instead of noting what they saw.
    """
    details = {"url": url, "prefix": prefix, "count": count, "functions": functions, "checks": checks}
    return "workers.crew", details


def start_probe(children: Children, url: str) -> Child:
    """A joined observer that tells the broker's `status`."""
    return children.start_all([("workers.probe", {"url": url})])[0]


def arm(crews: list[Child], kind: str) -> None:
    """Let all forget what they saw, and note changes of this kind from now on."""
    for crew in crews:
        crew.ask("arm", kind=kind)


def seen_by(
    crews: list[Child],
    field: str,
    values: list[str],
    timeout_s: float = SEEN_TIMEOUT_S,
) -> list[int]:
    """The moments (monotonic nanoseconds) at which each member saw each value.

    Raises: AssertionError when one of them did not see one in time.
    """
    for crew in crews:
        crew.tell("seen", field=field, values=values, timeout_s=timeout_s)
    found = [at for crew in crews for member in crew.answer() for at in member]
    missing = found.count(None)
    assert not missing, f"{missing} of {len(found)} times what was armed for of {values} was not seen"
    return found


def await_agreement(crews: list[Child], probe: Child) -> float | None:
    """Seconds until every member's digest is the broker's; None when it never was."""
    began = time.monotonic()
    while time.monotonic() - began < AGREE_TIMEOUT_S:
        for crew in crews:
            crew.tell("digests")
        found = {digest for crew in crews for digest in crew.answer()}
        if found == {probe.ask("status")["digest"]}:
            return time.monotonic() - began
        time.sleep(AGREE_PAUSE_S)
    return None
