"""What the broker still holds of the past: a session of its own that asks for deltas and keeps no replica of them.

A replica can't begin in the middle: it needs the content that the first delta applies to. So the core is given one that
only collects the deltas of its first answer. Once that has come, or turns out to be a snapshot, the session ends.
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

TURN_MAX_MS = 100  # Ctrl-C is looked at between two waits


@dataclass(slots=True, frozen=True)
class Past:
    """The deltas after the position asked for; `digest` is the content's there, where the broker still knew it."""

    deltas: list[wire.Delta]
    digest: bytes | None


def fetch_past(url: str | None, start: Position, timeout_s: float) -> Past | None:
    """None when the broker does not hold (all of) it. Raises: IIIError."""
    if start.seq == 0:
        deltas = _fetch(url, start, timeout_s)
        return None if deltas is None else Past(deltas, bytes(wire.DIGEST_BYTES))
    deltas = _fetch(url, start._replace(seq=start.seq - 1), timeout_s)
    if deltas:  # the first one leads to `start`: it tells the digest there
        return Past(deltas[1:], deltas[0].digest)
    if deltas is not None:  # none after start - 1: `start` has not come yet
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
        raise errors.BrokerUnreachable(f"the broker at {profile.url} did not tell what it holds within {timeout_s:g} s")
    return None if collector.is_snapshot else collector.deltas


def _turn(core: WorkerCore, link: Link) -> None:
    link.flush()
    link.wait(min(TURN_MAX_MS, link.wait_ms()))
    link.pump()
    for event in core.take_events():
        if isinstance(event, JoinRefused):
            raise errors.Refused(event.text, event.code)
    link.flush()
