"""Reads payloads from a command line and writes results as JSON. Does not talk to a broker.

JSON has no bytes: they are `{"$bytes": base64}` in both directions.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import errors
from .exits import CommandError, Exit, usage

BYTES_KEY = "$bytes"
_PAIR = re.compile(r"([^\W\d][\w.\-]*)=(.*)", re.DOTALL)


def read_payload(words: Sequence[str]) -> Any:
    """The payload: None for no words, JSON from stdin for `-`, else one JSON text or the object of `key=value` words.

    Raises: CommandError.
    """
    try:
        if not words:
            return None
        if list(words) == ["-"]:
            return _from_json(_parse(sys.stdin.buffer.read(), "standard input"))
        if len(words) == 1 and not _PAIR.fullmatch(words[0]):
            return _from_json(_parse(words[0], "the payload"))
        return _from_pairs(words)
    except RecursionError as error:
        raise usage("the payload is nested too deeply") from error


def to_text(value: Any, *, for_people: bool = False) -> str:
    """A result as JSON text. Raises: CommandError if it has more levels than Python can follow (about 500)."""
    try:
        return json.dumps(to_json(value), indent=2 if for_people else None, ensure_ascii=not for_people)
    except RecursionError as error:
        text = "the result is nested too deeply for JSON"
        raise CommandError(Exit.HANDLER_FAILED, errors.TOO_LARGE, text) from error


def to_json(value: Any) -> Any:
    """The value in a form that `json.dumps` accepts and every JSON parser reads."""
    if isinstance(value, dict):
        return {_key(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {BYTES_KEY: base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # msgpack's Timestamp and extension types


# -- private -----------------------------------------------------------------------------------------------------------


def _from_pairs(words: Sequence[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for word in words:
        match = _PAIR.fullmatch(word)
        if match is None:
            raise usage(f"{word!r} is not key=value; expected one JSON text, key=value words, or - for standard input")
        key, text = match.groups()
        if key in pairs:
            raise usage(f"the key {key!r} appears twice")
        pairs[key] = _from_json(_value(text))
    return pairs


def _value(text: str) -> Any:
    """The value of a JSON text; any other text as it is."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _parse(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        hint = f"""; a string needs its quotes: '"{text}"'""" if isinstance(text, str) and text.isalnum() else ""
        raise usage(f"{what} is neither JSON nor key=value: {error}{hint}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {BYTES_KEY}:
        return _from_base64(value[BYTES_KEY])
    return {key: _from_json(item) for key, item in value.items()}


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise usage(f"the value of {BYTES_KEY} is not base64: {error}") from error


def _key(key: Any) -> str:
    """A key as text: JSON allows only strings, msgpack allows more."""
    if isinstance(key, bytes):
        return base64.b64encode(key).decode()
    return key if isinstance(key, str) else json.dumps(to_json(key))
