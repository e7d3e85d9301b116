"""What a Hello and a function's entry must be to be let in. Pure checks: they look at bytes, not at tables."""

from __future__ import annotations

from typing import Any

from ... import errors, wire
from ...errors import ProtocolError
from ...wire import FunctionEntry

CAPABILITIES_MAX = 64  # and characters in each: they are kept as long as the session
EPOCH_CHARS_MAX = 64
DEPTH_MAX = 100  # maps and arrays inside each other; msgpack unpacks 1,023 levels, and lists put some around these

_NO_CONTAINERS = bytes([byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF)])


def hello_refusal(hello: wire.Hello) -> tuple[str, str] | None:
    """(code, text) for a Hello that can't be accepted from anybody."""
    if not hello.name.isprintable() or not hello.name or not hello.host.isprintable():
        return errors.INVALID, "name and host must be printable, and the name not empty"
    if hello.credit < 1:
        return errors.INVALID, f"credit is {hello.credit}; expected at least 1"
    if len(hello.capabilities) > CAPABILITIES_MAX or any(len(one) > CAPABILITIES_MAX for one in hello.capabilities):
        return errors.INVALID, f"more than {CAPABILITIES_MAX} capabilities, or one of more characters"
    if len(hello.epoch) > EPOCH_CHARS_MAX:
        return errors.INVALID, f"epoch of {len(hello.epoch)} characters; at most {EPOCH_CHARS_MAX}"
    try:
        metadata = wire.unpack_map(hello.metadata)
    except ProtocolError as error:
        return errors.INVALID, str(error)
    if is_too_deep(hello.metadata, [metadata]):
        return errors.INVALID, f"metadata is nested deeper than {DEPTH_MAX}"
    return None


def read_entry(data: bytes) -> FunctionEntry | tuple[str, str]:
    """The entry, or (code, text) of why it is refused."""
    if len(data) > wire.ENTRY_BYTES_MAX:
        return errors.TOO_LARGE, f"entry of {len(data)} bytes; at most {wire.ENTRY_BYTES_MAX}"
    try:
        entry = wire.decode_entry(data)
        wire.check_function_id(entry.id)
    except (ProtocolError, ValueError) as error:
        return errors.INVALID, str(error)[: wire.TEXT_CHARS_MAX]
    if wire.is_reserved(entry.id):
        return errors.RESERVED, f"{entry.id!r} is reserved for the broker"
    if is_too_deep(data, [entry.request_schema, entry.response_schema, entry.metadata]):
        return errors.INVALID, f"schema or metadata of {entry.id!r} is nested deeper than {DEPTH_MAX}"
    return entry


def is_too_deep(data: bytes, values: list[Any]) -> bool:
    """Whether one of `values`, which were unpacked from `data`, is nested deeper than DEPTH_MAX.

    One such value would make every list that contains it unreadable for everybody. There are no more levels than bytes
    that begin a map or an array: that settles nearly all cases at the speed of C.
    """
    if len(data.translate(None, _NO_CONTAINERS)) <= DEPTH_MAX:
        return False
    level: list[Any] = [values]
    for _ in range(DEPTH_MAX + 1):
        level = [inner for outer in level for inner in (outer.values() if type(outer) is dict else outer)]
        level = [inner for inner in level if type(inner) is dict or type(inner) is list]
    return bool(level)
