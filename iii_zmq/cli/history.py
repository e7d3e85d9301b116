"""Fetches the past deltas that the broker still holds, over a session of its own and without a replica.

A replica can't begin in the middle: it needs the content that the first delta applies to. So the core gets a collector
in its place, which only collects the deltas of the first answer. The session ends when that answer is complete or turns
out to be a snapshot.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from .. import errors, wire
from ..core.worker.changes import Position
from ..core.worker.collector import Collector
from ..core.worker.core import WorkerCore
from ..core.worker.events import JoinRefused
from ..io.worker.arguments import make_profile
from ..io.worker.link import Link
from .client import NAME

TURN_MAX_MS = 100  # Ctrl-C is noticed between two waits


@dataclass(slots=True, frozen=True)
class Past:
    """The deltas after the requested position; `digest` is the content's digest there, if the broker still knows it."""

    deltas: list[wire.Delta]
    digest: bytes | None


def fetch_past(url: str | None, start: Position, timeout_s: float) -> Past | None:
    """None if the broker no longer holds all of it. Raises: IIIError."""
    if start.seq == 0:
        deltas = _fetch(url, start, timeout_s)
        return None if deltas is None else Past(deltas, bytes(wire.DIGEST_BYTES))
    deltas = _fetch(url, start._replace(seq=start.seq - 1), timeout_s)
    if deltas:  # the first one leads to `start`, so it carries the digest there
        return Past(deltas[1:], deltas[0].digest)
    if deltas is not None:  # nothing after start - 1: `start` lies in the future
        return None
    deltas = _fetch(url, start, timeout_s)
    return None if deltas is None else Past(deltas, None)


def _fetch(url: str | None, start: Position, timeout_s: float) -> list[wire.Delta] | None:
    profile = make_profile(NAME, url, None, None, 1, observer=True)
    core = WorkerCore(profile, random=random.random)
    collector = core.replica = core.following.replica = Collector(start)
    link = Link(core)
    until = time.monotonic() + timeout_s
    core.connect(time.monotonic())
    try:
        while not collector.done and time.monotonic() < until:
            _turn(core, link)
        core.leave()
        link.flush()
    finally:
        link.close()
    if not collector.done:
        raise errors.BrokerUnreachable(f"the broker at {profile.url} did not send past changes within {timeout_s:g} s")
    return None if collector.is_snapshot else collector.deltas


def _turn(core: WorkerCore, link: Link) -> None:
    link.flush()
    link.wait(min(TURN_MAX_MS, link.wait_ms()))
    link.pump()
    for event in core.take_events():
        if isinstance(event, JoinRefused):
            raise errors.Refused(event.text, event.code)
    link.flush()
