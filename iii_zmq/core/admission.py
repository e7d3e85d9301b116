"""What a Hello and a function's entry must be to be let in. Pure checks: they look at bytes, not at tables."""

from __future__ import annotations

from typing import Any

from .. import errors, wire
from ..errors import ProtocolError
from ..wire import FunctionEntry

CAPABILITIES_MAX = 64  # and characters in each: they are kept as long as the session
EPOCH_CHARS_MAX = 64
TOO_DEEP = "is nested too deep: msgpack packs some 500 levels, and lists need a few around what they show"


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
    if not _can_be_listed(metadata):
        return errors.INVALID, f"metadata {TOO_DEEP}"
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
    if not _can_be_listed([entry.request_schema, entry.response_schema, entry.metadata]):
        return errors.INVALID, f"schema or metadata of {entry.id!r} {TOO_DEEP}"
    return entry


def _can_be_listed(value: Any) -> bool:
    """msgpack unpacks twice as many levels as it packs: one such value would make every list that has it fail."""
    try:
        wire.pack([[[[[[[[value]]]]]]]])
    except ValueError:
        return False
    return True
