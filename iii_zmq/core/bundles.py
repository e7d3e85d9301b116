"""Packs the messages for one peer into as few frames as possible: under load a frame costs more than its bytes.

Sending, waking libzmq's thread and receiving cost about 10 us per message and hop, whatever its size. So calls and
answers that are ready at the same moment leave as one Bundle; nothing ever waits for company. The order of messages to
one peer is kept; between peers there is none.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, TypeVar

from .. import wire

P = TypeVar("P", bound=Hashable)

PORTIONS: Final = 4  # a caller's open calls travel in at least this many bundles,
PORTION_MIN: Final = 16  # but a bundle need not be smaller than this: then a message would cost more than it gains

_IN_BUNDLES: Final = frozenset((wire.Call, wire.Result, wire.Failure, wire.Cancel))
_FRAME_BYTES: Final = 8  # bytes that a frame takes at most beside its own, including its part of the array's head

Packed = tuple[bytes, wire.Payload | None, Sequence[wire.Message]]
"""A frame, the payload if it travels separately, and the messages that they carry."""


def portion(open_calls: int) -> int:
    """How many messages a bundle may have, for a caller with this many open calls.

    In a single bundle all calls would travel together for ever, since their answers come together, and so do the next
    calls. Then caller, broker and provider would wait for one another, although each has its own processor.
    """
    if open_calls <= PORTION_MIN:
        return wire.BUNDLE_MAX
    return min(wire.BUNDLE_MAX, max(PORTION_MIN, open_calls // PORTIONS))


def packed(messages: Sequence[wire.Message], most: int = wire.BUNDLE_MAX) -> Iterator[Packed]:
    """The frames that carry these messages to one peer that takes bundles, at most `most` messages in each."""
    frames: list[bytes] = []
    size = first = 0
    for index, message in enumerate(messages):
        frame, payload = wire.encode(message)
        cost = len(frame) + _FRAME_BYTES
        alone = payload is not None or cost > wire.BUNDLE_BYTES_MAX or type(message) not in _IN_BUNDLES
        if frames and (alone or size + cost > wire.BUNDLE_BYTES_MAX or len(frames) >= most):
            yield _bundled(frames), None, messages[first:index]
            frames, size = [], 0
        if alone:
            yield frame, payload, (message,)
            continue
        if not frames:
            first = index
        frames.append(frame)
        size += cost
    if frames:
        yield _bundled(frames), None, messages[first:]


def _bundled(frames: list[bytes]) -> bytes:
    return frames[0] if len(frames) == 1 else wire.encode(wire.Bundle(0, frames))[0]


def by_peer(outbox: Sequence[tuple[P, wire.Message]]) -> dict[P, list[wire.Message]]:
    """The messages for each peer, in order."""
    found: dict[P, list[wire.Message]] = {}
    for to, message in outbox:
        found.setdefault(to, []).append(message)
    return found
