"""Payloads as people type them, results as programs read them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_zmq import wire
from iii_zmq.cli.exits import CommandError, Exit
from iii_zmq.cli.payloads import read_payload, to_json, to_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.binary(),
    lambda children: st.lists(children) | st.dictionaries(st.text().filter(lambda key: key != "$bytes"), children),
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        ([], None),
        (["null"], None),
        (["-5"], -5),
        (['"a=b"'], "a=b"),
        (['{"a": 1}'], {"a": 1}),
        (["a=1"], {"a": 1}),
        (["a=1", "b=x", "c=[1]", "d=", 'e="1"'], {"a": 1, "b": "x", "c": [1], "d": "", "e": "1"}),
        (["url=http://x/?a=b"], {"url": "http://x/?a=b"}),
        (["a=NaN"], {"a": "NaN"}),
        (["größe=1"], {"größe": 1}),
        (['{"$bytes": "aGk="}'], b"hi"),
        (['a={"$bytes": "aGk="}'], {"a": b"hi"}),
        (['{"$bytes": "aGk=", "more": 1}'], {"$bytes": "aGk=", "more": 1}),
    ],
)
def test_words_become_a_payload(words: list[str], payload: Any) -> None:
    assert read_payload(words) == payload


@pytest.mark.parametrize(
    "words",
    [
        ["hello"],
        ["{"],
        ["NaN"],
        ["1", "2"],
        ["a=1", "2"],
        ["a=1", "a=2"],
        ["a b=1"],
        ['{"$bytes": "?"}'],
        ["[" * 100_000],
    ],
)
def test_what_is_no_payload_is_wrong_usage(words: list[str]) -> None:
    with pytest.raises(CommandError) as caught:
        read_payload(words)
    assert caught.value.exit is Exit.USAGE


@given(VALUES)
def test_what_is_printed_can_be_passed_on(value: Any) -> None:
    assert read_payload([json.dumps(to_json([value]))]) == [value]


def test_what_json_lacks_is_still_json() -> None:
    odd = {1: math.nan, b"k": math.inf, None: (1, 2), False: bytearray(b"x")}
    assert to_json(odd) == {"1": None, "aw==": None, "null": [1, 2], "false": {"$bytes": "eA=="}}


# A provider's result of 500 levels ended the command by a traceback, and so did such a payload.


@pytest.mark.parametrize("levels", [100, 600, 900, 5_000])
def test_a_payload_that_is_nested_too_deep_is_told_in_one_line(levels: int) -> None:
    text = "[" * levels + "]" * levels
    if levels == 100:
        assert json.dumps(read_payload([text])) == text
    else:
        with pytest.raises(CommandError, match=r"^the payload is (nested too deeply|neither JSON nor key=value)"):
            read_payload([text])


@pytest.mark.parametrize("for_people", [False, True])
def test_a_result_that_is_nested_too_deep_is_told_in_one_line(for_people: bool) -> None:
    with pytest.raises(CommandError, match=r"^the result is nested too deeply for JSON$") as raised:
        to_text(wire.unpack(b"\x91" * 1_000 + b"\xc0"), for_people=for_people)
    assert raised.value.exit == Exit.HANDLER_FAILED
