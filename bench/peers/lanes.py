"""A caller's side: keep so many calls in flight for so long, and tell what came of it.

The standard library only: this runs in every peer's own environment. A lane is one call after the other; so many lanes
are so many calls in flight, and each makes one at least. Rounds are bounded by time, because the subjects differ by a
factor of fifty in speed, and a round ends when its last call was answered: the rate is calls answered by the time that
all of them took.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.measure import percentile
from bench.roles import answer, answer_async, ready

FUNCTION = "bench.echo"  # the names differ by what a peer allows


async def serve_async(call: Callable[[Any], Awaitable[Any]], payload_of: Callable[[int], Any] = bytes) -> None:
    """Be a caller on an event loop; `payload_of(size)` is a payload of so many bytes."""

    async def calls(window: int, seconds: float, size: int, at_ns: int) -> dict[str, Any]:
        payload, spans = payload_of(size), list[int]()
        await asyncio.sleep(_until(at_ns))
        clock, began = time.monotonic_ns, time.monotonic_ns()
        until = began + int(seconds * 1e9)

        async def lane() -> int:
            count = 0
            while not count or clock() < until:
                found = await call(payload)
                count += 1
            assert len(found) == size, f"{len(found)} bytes came back of {size}"
            return count

        if window == 1:
            while not spans or clock() < until:
                sent = clock()
                await call(payload)
                spans.append(clock() - sent)
            count = len(spans)
        else:
            count = sum(await asyncio.gather(*(lane() for _ in range(window))))
        return sample(spans, count, began)

    ready()
    await answer_async(calls=calls)


def serve(
    call: Callable[[Any], Any],
    many: Callable[[Any, int, int], int],
    payload_of: Callable[[int], Any] = bytes,
) -> None:
    """Be a caller that blocks: `call` one; `many(payload, window, until_ns)` keeps a window and counts."""

    def calls(window: int, seconds: float, size: int, at_ns: int) -> dict[str, Any]:
        payload, spans = payload_of(size), list[int]()
        time.sleep(_until(at_ns))
        clock, began = time.monotonic_ns, time.monotonic_ns()
        until = began + int(seconds * 1e9)
        if window == 1:
            while not spans or clock() < until:
                sent = clock()
                call(payload)
                spans.append(clock() - sent)
        count = len(spans) if window == 1 else many(payload, window, until)
        return sample(spans, count, began)

    ready()
    answer(calls=calls)


def sample(spans: list[int], count: int, began_ns: int) -> dict[str, Any]:
    """What one caller tells of a round; the percentiles in microseconds."""
    found: dict[str, Any] = {"count": count, "began": began_ns, "ended": time.monotonic_ns()}
    if spans:
        found |= {f"p{percent}": percentile(spans, percent) / 1e3 for percent in (50, 99, 99.9)}
    return found


def _until(at_ns: int) -> float:
    return max(0.0, (at_ns - time.monotonic_ns()) / 1e9)
