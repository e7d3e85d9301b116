"""An observer's side: several observers in one process, and the moments at which each saw what.

The standard library only, as in lanes.py. What is seen is a token: "+NAME" for an entry that came, "-NAME" for one that
went. A peer's file makes the members and lets each note its tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.roles import answer_async, ready

PAUSE_S = 0.02  # between two looks whether all have seen it
TOKENS_MAX = 4096  # of one member: those that nobody asks for any more are forgotten
JOINING_MAX = 20  # members of one process that connect at the same time, but for a storm


class Member:
    """What one observer saw, and when first."""

    def __init__(self) -> None:
        self.moments: dict[str, int] = {}

    def note(self, token: str) -> None:
        if token not in self.moments:
            self.moments[token] = time.monotonic_ns()
            if len(self.moments) > TOKENS_MAX:
                del self.moments[next(iter(self.moments))]


Join = Callable[[Member, int], Awaitable[Any]]  # connect one member, watching; what it returns is kept
Enter = Callable[[Any, str], Awaitable[Any]]  # add an entry over the connection that `Join` returned
Sees = Callable[[Any], int]  # how many entries of a storm that connection has seen


async def serve(
    join: Join,
    enter: Enter | None = None,
    sees: Sees | None = None,
    digest: Callable[[Any], str] = str,
    join_storm: Join | None = None,
) -> None:
    """Be a process full of observers; with `enter` and `sees` also one side of a storm.

    Who enters something may have to join in another way than who only watches: `join_storm`.
    """
    members: list[Member] = []
    kept: list[Any] = []  # connections that nothing else holds

    async def observe(count: int) -> None:
        """`count` more of them; returns when all watch."""
        slots = asyncio.Semaphore(JOINING_MAX)

        async def one(member: Member, number: int) -> None:
            async with slots:
                kept.append(await join(member, number))

        made = [Member() for _ in range(count)]
        await asyncio.gather(*(one(member, len(members) + i) for i, member in enumerate(made)))
        members.extend(made)

    async def seen(token: str, timeout_s: float) -> list[int | None]:
        """Each member's moment; waits until all have one or time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [member.moments.get(token) for member in members]
            if None not in found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(PAUSE_S)

    async def storm(names: list[str], total: int, timeout_s: float) -> int | None:
        """Join and enter under each name at once; the moment when all of these saw `total`, None if in vain."""
        assert enter is not None
        assert sees is not None
        joining, entering, seeing = join_storm or join, enter, sees

        async def one(number: int, name: str) -> Any:
            connection = await joining(Member(), number)
            await entering(connection, name)
            return connection

        deadline = time.monotonic() + timeout_s
        kept[:] = await asyncio.gather(*(one(number, name) for number, name in enumerate(names)))
        while any(seeing(connection) < total for connection in kept):
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(PAUSE_S)
        return time.monotonic_ns()

    async def digests() -> list[str]:
        """What the product's replicas hold, to be compared."""
        return sorted({digest(connection) for connection in kept})

    ready()
    await answer_async(observe=observe, seen=seen, storm=storm, digests=digests)


async def change(enter: Callable[[str], Awaitable[Any]]) -> None:
    """Be the one who changes the registry: `change(name)` tells the moment just before."""

    async def made(name: str) -> int:
        began = time.monotonic_ns()
        await enter(name)
        return began

    ready()
    await answer_async(change=made)
