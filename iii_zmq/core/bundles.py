"""What leaves for one peer in one turn, in as few frames as may be: under load a message costs more than its bytes.

Sending, waking libzmq's thread and receiving cost some 10 us a message and hop, whatever is in it; so calls and answers
that are there at the same moment leave as one Bundle. Nothing ever waits for company. The order of messages to one
peer is kept, between peers there is none.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, TypeVar

from .. import wire

P = TypeVar("P", bound=Hashable)

PORTIONS: Final = 4  # a caller's open calls travel in so many bundles at least,
PORTION_MIN: Final = 16  # unless these were smaller than this: then what a message costs is more than what it gains

_IN_BUNDLES: Final = frozenset((wire.Call, wire.Result, wire.Failure, wire.Cancel))
_FRAME_BYTES: Final = 8  # what a frame takes in a header beside its bytes, at most, and the array itself a part of

Packed = tuple[bytes, wire.Payload | None, Sequence[wire.Message]]
"""A frame, the payload where it travels as a second one, and the messages that leave with them."""


def portion(open_calls: int) -> int:
    """How many messages a bundle of a caller's may have that has so many open calls.

    In one bundle all would travel together for ever: their answers come together, and so do the next calls. Caller,
    broker and provider would wait for one another, each with a processor of its own.
    """
    if open_calls <= PORTION_MIN:
        return wire.BUNDLE_MAX
    return min(wire.BUNDLE_MAX, max(PORTION_MIN, open_calls // PORTIONS))


def packed(messages: Sequence[wire.Message], most: int = wire.BUNDLE_MAX) -> Iterator[Packed]:
    """The frames that carry these messages, at most so many in one, to one peer, which takes bundles."""
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
    """What each peer is sent."""
    found: dict[P, list[wire.Message]] = {}
    for to, message in outbox:
        found.setdefault(to, []).append(message)
    return found
