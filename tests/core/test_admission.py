"""How deep what is let in may be nested: asked at the speed of C, so the answer is compared with the obvious one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_zmq import wire
from iii_zmq.core.broker import registrations
from iii_zmq.core.broker.registrations import DEPTH_MAX, is_too_deep

VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=30,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@given(VALUES, st.integers(0, 6))
def test_too_deep_is_what_has_more_levels_than_allowed(value: Any, depth_max: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registrations, "DEPTH_MAX", depth_max)
        assert is_too_deep(wire.pack(value), [value]) == (depth(value) > depth_max)


def test_metadata_at_the_limit_is_let_in_and_one_level_more_is_not() -> None:
    values = [nested(DEPTH_MAX), nested(DEPTH_MAX + 1)]
    assert [is_too_deep(wire.pack(value), [value]) for value in values] == [False, True]
