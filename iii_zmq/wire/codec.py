"""Messages and payloads as bytes: `encode` and `decode`, `pack` and `unpack`.

Decoding ignores unknown trailing fields, so that the protocol can grow. Anything else that is not exactly a message
raises `ProtocolError`, and nothing else is ever raised. No dict passes `decode`: the users' metadata and schemas travel
as packed bytes inside rows and entries.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Final

import msgpack
from msgpack.exceptions import UnpackException

from ..errors import FATES, ProtocolError
from . import messages
from .messages import INLINE_BYTES_MAX, KIND, LARGE_BYTES, MAGIC, PAYLOAD_BYTES_MAX, VERSION, Call, Result, Split

COMPILED = not __file__.endswith(".py")  # to C, with all of core/: see setup.py

_PREFIX: Final = messages.PREFIX
_pack_prefix: Final = _PREFIX.pack
_unpack_prefix: Final = _PREFIX.unpack_from
_unpackb: Final = msgpack.unpackb
_from_bytes: Final = int.from_bytes
_LONG = struct.Struct(">BI")  # the head of a bin or str of more than 65,535 bytes
_BIN32, _STR32 = 0xC6, 0xDB
_NO_FIELDS: Final = b"\x90"
_SMALL_CALL: Final = _PREFIX.pack(MAGIC, VERSION, KIND[Call], 0, 0)[:6]  # its header has less than 65,536 bytes
_known_headers: Final[dict[bytes, Call]] = {}  # header -> its Call, without a payload
_KNOWN_COUNT: Final = 1024  # headers in it, which is then cleared: a program calls few functions with few timeouts
_KNOWN_BYTES: Final = 512  # bytes of a header: two ids take a few hundred; the table takes half a megabyte at most
_SIX: Final = 0x96  # the first byte of an array of six
_QUICK_INT: Final = 2**60  # integers that compiled code compares quickly
_RESULT_BYTES: Final = _PREFIX.size + len(_NO_FIELDS)  # bytes before the payload of a Result
_SMALL_RESULT: Final = _PREFIX.pack(MAGIC, VERSION, KIND[Result], len(_NO_FIELDS), 0)[:8]  # all but the number


# -- encode ------------------------------------------------------------------------------------------------------------


# Unused Packers: making one takes longer than packing with it. They are taken out and put back, because a user's object
# may pack another one while it is packed itself, or let another thread do so.
_packers: Final[list[msgpack.Packer]] = []


def pack(value: Any) -> bytes:
    """One msgpack value. Raises: TypeError, ValueError, OverflowError for what msgpack can't carry."""
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(use_bin_type=True, buf_size=2 * LARGE_BYTES)
    packed: bytes = packer.pack(value)
    if len(packed) <= LARGE_BYTES:  # a Packer's buffer never shrinks
        _packers.append(packer)
    return packed


def pack_payload(value: Any) -> bytes | Split:
    """Like `pack`, but does not copy long bytes and strings behind their five bytes of head."""
    kind = type(value)
    if (kind is bytes or kind is str or kind is bytearray) and len(value) > INLINE_BYTES_MAX:
        rest: bytes = value.encode() if kind is str else bytes(value)  # the same object, if it is one of bytes
        if len(rest) >> 32 == 0:  # pragma: no branch  # msgpack itself refuses what is longer
            return Split(_LONG.pack(_STR32 if kind is str else _BIN32, len(rest)), rest)
    return pack(value)


def encode(message: messages.Message) -> tuple[bytes, messages.Payload | None]:
    """The first frame, and the payload if it travels in frames of its own."""
    if isinstance(message, Call):
        header = message.header or pack(
            (message.function_id, message.caller, message.remaining_ms, message.target, message.flags, message.fence)
        )
        return _with_payload(KIND[Call], message.number, header, message.payload)
    if isinstance(message, Result):
        payload = message.payload
        if type(payload) is not bytes or len(payload) > INLINE_BYTES_MAX:
            return _with_payload(KIND[Result], message.number, _NO_FIELDS, payload)
        return b"".join((_SMALL_RESULT, message.number.to_bytes(8, "big"), _NO_FIELDS, payload)), None
    if isinstance(message, messages.Bundle):
        header = b"\x91" + pack(message.frames)
        return _pack_prefix(MAGIC, VERSION, KIND[messages.Bundle], len(header), message.number) + header, None
    header = pack([getattr(message, name) for name in _FIELD_NAMES[type(message)]])
    version = message.version if isinstance(message, messages.Refuse) else VERSION
    return _pack_prefix(MAGIC, version, KIND[type(message)], len(header), message.number) + header, None


def _with_payload(
    kind: int, number: int, header: bytes, payload: messages.Payload
) -> tuple[bytes, messages.Payload | None]:
    prefix = _pack_prefix(MAGIC, VERSION, kind, len(header), number)
    if len(payload) > INLINE_BYTES_MAX:
        return prefix + header, payload
    if isinstance(payload, Split):
        payload = bytes(payload)
    return b"".join((prefix, header, payload)), None


_FIELD_NAMES: dict[type[Any], tuple[str, ...]] = {
    message: tuple(field.name for field in dataclass_fields(message))[1 : 1 + len(messages.FIELDS[message])]
    for message in messages.MESSAGES
}


# -- decode ------------------------------------------------------------------------------------------------------------


def decode(
    frame: bytes, payload: messages.Payload | None = None, *, header_bytes_max: int = messages.CONTROL_BYTES_MAX
) -> messages.Message:
    """The message in `frame`, with `payload` if there were further frames. Raises: ProtocolError, and nothing else.

    `header_bytes_max` has a meaning above LARGE_BYTES only: what is smaller is taken in any case.
    """
    if frame[:8] == _SMALL_RESULT and payload is None and _RESULT_BYTES < len(frame) <= PAYLOAD_BYTES_MAX:
        return Result(_from_bytes(frame[8:16], "big"), frame[_RESULT_BYTES:])
    if payload is None and len(frame) > _PREFIX.size and frame[:6] == _SMALL_CALL:
        end = _PREFIX.size + (frame[6] << 8 | frame[7])
        known = _known_headers.get(frame[_PREFIX.size : end])
        if known is not None and end < len(frame) <= PAYLOAD_BYTES_MAX:
            return known.again(_from_bytes(frame[8:16], "big"), frame[end:])
    if len(frame) < _PREFIX.size:
        raise ProtocolError(f"frame of {len(frame)} bytes; a message has at least {_PREFIX.size}")
    header_bytes: int
    number: int
    magic, version, kind, header_bytes, number = _unpack_prefix(frame)
    if magic != MAGIC or version != VERSION:
        raise ProtocolError(f"magic {magic!r} version {version}; expected {MAGIC!r} version {VERSION}")
    message = messages.KINDS.get(kind)
    if message is None:
        raise ProtocolError(f"unknown kind {kind}")
    body = _PREFIX.size + header_bytes
    header = frame[_PREFIX.size : body]
    if body > len(frame) or header_bytes > LARGE_BYTES:
        _check_large(header_bytes, header, len(frame), header_bytes_max)
    if message is Call and payload is None and body < len(frame) <= PAYLOAD_BYTES_MAX:
        call = _small_call(number, header, frame[body:])
        if call is not None:
            _remember(call)
            return call
    fields = _header_fields(message, header)
    if message is Call or message is Result:
        return _decode_with_payload(message, number, header, fields, frame[body:], payload)
    if payload is not None or body != len(frame):
        raise ProtocolError(f"{message.__name__} carries no payload")
    if message is messages.Ack:
        fields[2] = [tuple(refusal) for refusal in fields[2]]
    check = _CHECKS.get(message)
    decoded: messages.Message = message(number, *fields)
    if check is not None:
        check(decoded)
    return decoded


@dataclass(slots=True, frozen=True)
class Heading:
    """The content of a frame's prefix: the same 16 bytes in every version."""

    version: int
    kind: int
    number: int


def read_heading(frame: bytes) -> Heading | None:
    """For a frame that `decode` refused: its heading if the sender uses this protocol at all, else None."""
    if len(frame) < _PREFIX.size or not frame.startswith(MAGIC):
        return None
    _, version, kind, _, number = _unpack_prefix(frame)
    return Heading(version, kind, number)


def decode_on_stream(frame: bytes) -> messages.OnStream:
    """The message behind the topic of a stream frame. Raises: ProtocolError."""
    topic = messages.SNAPSHOT_TOPIC if frame.startswith(messages.SNAPSHOT_TOPIC) else messages.STREAM_TOPIC
    message = decode(frame[len(topic) :], header_bytes_max=messages.STREAM_BYTES_MAX)
    if isinstance(message, (messages.Deltas, messages.Beacon, messages.Closing, messages.Snapshot, messages.Replay)):
        return message
    raise ProtocolError(f"{type(message).__name__} does not belong on the stream")


# What msgpack raises on hostile bytes. Not all of Exception: that of a signal handler, at any moment, is the user's.
UNPACK_ERRORS: Final = (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError, UnpackException)


def unpack(data: messages.Payload) -> Any:
    """The value in a payload, as handlers and callers get it. Raises: ValueError if it is not a msgpack value."""
    try:
        if isinstance(data, Split):
            return _unpack_split(data)
        return _unpackb(data, raw=False, strict_map_key=False)
    except UNPACK_ERRORS as error:
        raise ValueError(f"payload of {len(data)} bytes is no msgpack value: {error}") from error


def _unpack_split(data: Split) -> Any:
    """What `pack_payload` makes is taken with one copy, or none when it is bytes already."""
    if len(data.head) == _LONG.size:
        kind, size = _LONG.unpack(data.head)
        if size == len(data.rest) and kind == _BIN32:
            return bytes(data.rest)
        if size == len(data.rest) and kind == _STR32:
            return str(data.rest, "utf-8")
    return _unpackb(bytes(data), raw=False, strict_map_key=False)


def unpack_map(data: bytes) -> dict[Any, Any]:
    """The map in a row's metadata. Raises: ProtocolError."""
    try:
        value = unpack(data)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    if type(value) is not dict:
        raise ProtocolError(f"metadata is {type(value).__name__}; expected a map")
    return value


def unpack_array(data: bytes) -> list[Any]:
    try:
        fields = _unpackb(data, raw=False, strict_map_key=False)
    except UNPACK_ERRORS as error:
        raise ProtocolError(f"no msgpack array: {type(error).__name__}") from error
    if type(fields) is not list:
        raise ProtocolError(f"{type(fields).__name__} where an array is expected")
    return fields


def _check_large(header_bytes: int, header: bytes, frame_bytes: int, header_bytes_max: int) -> None:
    """Raises: ProtocolError for a header that is too long, or a bomb.

    A megabyte of empty arrays takes 180 ms to unpack, and so does one of timestamps: ext types have no place in it.
    """
    if header_bytes > len(header) or header_bytes > header_bytes_max:
        raise ProtocolError(f"header of {header_bytes} bytes in a frame of {frame_bytes}")
    left = messages.CONTAINERS_MAX

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ProtocolError(f"more than {messages.CONTAINERS_MAX} containers")

    try:
        _unpackb(header, raw=False, strict_map_key=False, object_hook=count, list_hook=count, max_ext_len=0)
    except (ProtocolError, *UNPACK_ERRORS) as error:
        text = str(error) if isinstance(error, ProtocolError) else f"no msgpack array: {type(error).__name__}"
        raise ProtocolError(text) from error


def _small_call(number: int, header: bytes, payload: bytes) -> Call | None:
    """What the general way takes thrice as long for; None where that must look closer."""
    if not header or header[0] != _SIX:
        return None
    try:
        fields: list[Any] = _unpackb(header)
    except UNPACK_ERRORS:
        return None
    function_id, caller, remaining_ms, target, flags, fence = (
        fields[0], fields[1], fields[2], fields[3], fields[4], fields[5],
    )  # fmt: skip
    if (
        type(function_id) is type(caller) is type(target) is str
        and type(remaining_ms) is type(flags) is type(fence) is int
        and 0 <= remaining_ms <= _QUICK_INT
        and 0 <= flags <= _QUICK_INT
        and 0 <= fence <= _QUICK_INT
    ):
        return Call(number, function_id, caller, remaining_ms, target, flags, fence, payload, header)
    return None


def _remember(call: Call) -> None:
    """The next call with this header takes a third of the time: a program calls a few functions again and again."""
    if call.header is not None and len(call.header) <= _KNOWN_BYTES:
        if len(_known_headers) >= _KNOWN_COUNT:
            _known_headers.clear()
        _known_headers[call.header] = call.again(0, b"")


def _header_fields(message: type[Any], header: bytes) -> list[Any]:
    if message is Result and header == _NO_FIELDS:
        return []
    fields = unpack_array(header)
    types = messages.FIELDS[message]
    if len(fields) < len(types):
        raise ProtocolError(f"{message.__name__} with {len(fields)} fields; expected {len(types)}")
    if len(fields) > len(types):
        del fields[len(types) :]
    if not fits(fields, types):
        raise ProtocolError(f"{message.__name__} has a field of a wrong type")
    return fields


def fits(fields: list[Any], types: tuple[Any, ...]) -> bool:
    for at in range(len(types)):
        value, expected = fields[at], types[at]
        if type(value) is not expected and not _is_list(value, expected):
            return False
        if expected is int and not 0 <= value <= messages.INT_MAX:
            return False
    return True


def _is_list(value: Any, expected: Any) -> bool:
    if type(value) is not list:
        return False
    if expected is messages.BYTES_LIST:
        return is_list_of(value, bytes)
    if expected is messages.STRINGS:
        return is_list_of(value, str)
    return bool(expected is messages.REFUSALS) and all(
        type(item) is list and len(item) == 3 and fits(item, (int, str, str)) for item in value
    )


def is_list_of(value: list[Any], item: type) -> bool:
    return all(type(element) is item for element in value)


def _decode_with_payload(
    message: type[Any], number: int, header: bytes, fields: list[Any], inline: bytes, attached: messages.Payload | None
) -> messages.Message:
    payload: messages.Payload = inline
    if attached is not None:
        if inline:
            raise ProtocolError(f"{message.__name__} with two payloads")
        payload = attached
    if not payload:
        raise ProtocolError(f"{message.__name__} without a payload")
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"payload of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}")
    if message is Result:
        return Result(number, payload)
    function_id, caller, remaining_ms, target, flags, fence = fields
    return Call(number, function_id, caller, remaining_ms, target, flags, fence, payload, header)


def _check_hello(hello: messages.Hello) -> None:
    if len(hello.metadata) > messages.METADATA_BYTES_MAX:
        raise ProtocolError(f"metadata of {len(hello.metadata)} bytes; at most {messages.METADATA_BYTES_MAX}")
    if len(hello.token) not in (0, messages.TOKEN_BYTES) or len(hello.functions) not in (0, messages.DIGEST_BYTES):
        raise ProtocolError("a Hello's token and functions digest have 16 bytes or none")
    if len(hello.name) > messages.NAME_CHARS_MAX or len(hello.host) > 255:
        raise ProtocolError("a Hello's name, host or capabilities are malformed")


def _check_welcome(welcome: messages.Welcome) -> None:
    if len(welcome.token) != messages.TOKEN_BYTES:
        raise ProtocolError("a Welcome's token has 16 bytes")


def _check_failure(failure: messages.Failure) -> None:
    if failure.fate not in FATES:
        raise ProtocolError(f"a fate of {len(failure.fate)} characters that is none")


def _check_digest(message: messages.Snapshot | messages.Beacon) -> None:
    if len(message.digest) != messages.DIGEST_BYTES:
        raise ProtocolError(f"digest of {len(message.digest)} bytes; expected {messages.DIGEST_BYTES}")


def _check_bundle(bundle: messages.Bundle) -> None:
    size = sum(map(len, bundle.frames))
    if len(bundle.frames) > messages.BUNDLE_MAX or size > messages.BUNDLE_BYTES_MAX:
        raise ProtocolError(f"a Bundle of {len(bundle.frames)} messages and {size} bytes: too many")


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    messages.Bundle: _check_bundle,
    messages.Hello: _check_hello,
    messages.Welcome: _check_welcome,
    messages.Failure: _check_failure,
    messages.Snapshot: _check_digest,
    messages.Beacon: _check_digest,
}
