"""The registry's content as bytes: function entries, rows, deltas and digests, and what users write into them.

A row's hash is of its bytes exactly as sent: whoever holds a row never encodes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from ..errors import ProtocolError
from . import messages
from .codec import fits, is_list_of, pack, unpack_array
from .messages import DIGEST_BYTES, FUNCTION_ID_CHARS_MAX, FUNCTION_ID_NAMES_MAX, INT_MAX, NAME_CHARS_MAX

RESERVED_PREFIX = "engine::"
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_DIGEST_MASK: Final = (1 << 128) - 1


# -- what users write: function ids and entries ------------------------------------------------------------------------


def check_function_id(function_id: object) -> None:
    """Raises: TypeError, ValueError with one line that says what was seen and what was expected."""
    if not isinstance(function_id, str):
        raise TypeError(f"a function id is a str such as 'orders::create', not {type(function_id).__name__}")
    if len(function_id) > FUNCTION_ID_CHARS_MAX:
        raise ValueError(f"function id of {len(function_id)} characters; at most {FUNCTION_ID_CHARS_MAX} are allowed")
    names = function_id.split("::")
    if len(names) > FUNCTION_ID_NAMES_MAX:
        text = f"has {len(names)} names; at most {FUNCTION_ID_NAMES_MAX} are allowed"
        raise ValueError(f"function id {function_id!r} {text}")
    for name in names:
        if not _NAME.fullmatch(name):
            text = f"expected 1 to {NAME_CHARS_MAX} letters, digits, '_', '-' or '.', joined by '::'"
            raise ValueError(f"function id {function_id!r}: {name!r} is not a name; {text}")


def is_reserved(function_id: str) -> bool:
    """True if only the broker itself may offer this id."""
    return function_id.startswith(RESERVED_PREFIX) or function_id == "engine"


EXCLUSIVE: Final = 1
IDEMPOTENT: Final = 2
INTERNAL: Final = 4


@dataclass(slots=True, frozen=True)
class FunctionEntry:
    """A provider's description of a function. Schemas and metadata are JSON objects, or None if not given."""

    id: str
    description: str | None = None
    request_schema: Mapping[str, Any] | None = None
    response_schema: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    flags: int = 0

    @property
    def exclusive(self) -> bool:
        return bool(self.flags & EXCLUSIVE)

    @property
    def idempotent(self) -> bool:
        return bool(self.flags & IDEMPOTENT)

    @property
    def internal(self) -> bool:
        return bool(self.flags & INTERNAL)


def encode_entry(entry: FunctionEntry) -> bytes:
    """The fields in their order, as an array. Raises: TypeError, ValueError for what msgpack can't carry."""
    return pack([entry.id, entry.description, entry.request_schema, entry.response_schema, entry.metadata, entry.flags])


def decode_entry(data: bytes) -> FunctionEntry:
    """Raises: ProtocolError."""
    fields = unpack_array(data)
    if len(fields) < 6:
        raise ProtocolError(f"function entry of {len(fields)} fields; expected 6")
    function_id, description, request, response, metadata, flags = fields[:6]
    if type(function_id) is not str or type(flags) is not int or not 0 <= flags <= INT_MAX:
        raise ProtocolError("function entry without an id and flags")
    if description is not None and type(description) is not str:
        raise ProtocolError(f"description is {type(description).__name__}; expected str")
    for value in (request, response, metadata):
        if value is not None and type(value) is not dict:
            raise ProtocolError(f"schema or metadata is {type(value).__name__}; expected a map")
    return FunctionEntry(function_id, description, request, response, metadata, flags)


_SHOWN = ("id", "description", "metadata", "exclusive", "idempotent", "internal", "request_schema", "response_schema")


def function_json(function: object, providers: list[dict[str, Any]]) -> dict[str, Any]:
    """One element of `engine::functions::list` and of `functions --json`, for an entry or a view of one."""
    shown = {name: getattr(function, name) for name in _SHOWN}
    return {**shown, "metadata": shown["metadata"] or {}, "providers": providers}


# -- rows: the registry's content --------------------------------------------------------------------------------------

READY = "ready"
STALLED = "stalled"
DRAINING = "draining"
STATES = frozenset((READY, STALLED, DRAINING))

RowKey = tuple[str, str]
"""(worker id, function id), the function id empty for a worker's own row."""


@dataclass(slots=True, frozen=True)
class WorkerRow:
    """A worker in the registry. `metadata` is a packed msgpack map."""

    worker_id: str
    name: str
    host: str
    pid: int
    metadata: bytes
    state: str


@dataclass(slots=True, frozen=True)
class ProviderRow:
    """One worker's offer of one function. `active` is False for a stand-by; `entry` is a packed FunctionEntry."""

    worker_id: str
    function_id: str
    active: bool
    entry: bytes


Row = WorkerRow | ProviderRow


def encode_row(row: Row) -> bytes:
    """`[worker_id, "", name, host, pid, metadata, state]` or `[worker_id, function_id, active, entry]`."""
    if isinstance(row, ProviderRow):
        return pack([row.worker_id, row.function_id, row.active, row.entry])
    return pack([row.worker_id, "", row.name, row.host, row.pid, row.metadata, row.state])


def decode_row(data: bytes) -> Row:
    """Raises: ProtocolError."""
    fields = unpack_array(data)
    if len(fields) >= 4 and fits(fields, (str, str, bool, bytes)) and fields[1]:
        return ProviderRow(*fields[:4])
    if len(fields) >= 7 and fits(fields, (str, str, str, str, int, bytes, str)) and not fields[1]:
        return WorkerRow(fields[0], *fields[2:7])
    raise ProtocolError("neither a worker row nor a provider row")


def row_key(data: bytes) -> RowKey:
    """The key of a row, in a quarter of the time of `decode_row`, for loading many. Raises: ProtocolError."""
    fields = unpack_array(data)
    if len(fields) >= 4 and type(fields[2]) is bool and type(fields[3]) is bytes:
        worker_id, function_id = fields[0], fields[1]
        if type(worker_id) is str and type(function_id) is str and function_id:
            return worker_id, function_id
    return decode_row(data).worker_id, ""


def row_hash(row: bytes) -> int:
    """The row's share of the digest: BLAKE2b of 128 bits over its bytes exactly as sent."""
    return int.from_bytes(blake2b(row, digest_size=DIGEST_BYTES).digest(), "big")


def digest_bytes(total: int) -> bytes:
    """The digest of a registry whose row hashes add up to `total`: 16 bytes, big-endian, modulo 2**128."""
    return (total & _DIGEST_MASK).to_bytes(DIGEST_BYTES, "big")


def functions_digest(entries: list[bytes]) -> bytes:
    """The digest in a Hello, by which the broker can tell whether the worker still offers the same functions."""
    return digest_bytes(sum(map(row_hash, entries)))


def presence_topic(token: bytes) -> bytes:
    """The session's presence topic, which only the holder of its token can know."""
    return messages.PRESENCE_PREFIX + blake2b(token, digest_size=16, person=b"presence").hexdigest().encode()


def receipt_topic(token: bytes) -> bytes:
    """The session's receipt topic: subscribed after the snapshot topic, it shows that a broadcast will be heard."""
    return presence_topic(token) + b"+"


# -- deltas ------------------------------------------------------------------------------------------------------------

REASONS = frozenset(("", "bye", "died", "silent", "unregistered", "replaced"))


@dataclass(slots=True, frozen=True)
class Delta:
    """One numbered, atomic change: rows to drop by key, then rows to put; `digest` is the content's afterwards.

    `reason` says why rows were dropped (one of `REASONS`). A key is never in both `drops` and `puts`. If `leaver` is
    not empty, the delta drops exactly the rows of that worker: a replica that holds them need not read `drops`, which
    travel packed for that reason.
    """

    seq: int
    digest: bytes
    reason: str
    puts: tuple[bytes, ...]
    drops: tuple[RowKey, ...]
    leaver: str = ""


DeltaFields = tuple[int, bytes, str, "list[bytes]", bytes, str]
"""A delta's fields, with `drops` still packed."""


def encode_delta(delta: Delta) -> bytes:
    return pack([delta.seq, delta.digest, delta.reason, delta.puts, pack(delta.drops), delta.leaver])


def decode_delta(data: bytes) -> Delta:
    """Raises: ProtocolError."""
    seq, digest, reason, puts, packed, leaver = delta_fields(data)
    drops = decode_drops(packed)
    if leaver and ({worker_id for worker_id, _ in drops} != {leaver} or (leaver, "") not in drops):
        raise ProtocolError(f"delta {seq} says that {leaver!r:.100} left, and drops other rows")
    return Delta(seq, digest, reason, tuple(puts), drops, leaver)


def delta_fields(data: bytes) -> DeltaFields:
    """The fields of a delta, its drops unread. Raises: ProtocolError."""
    fields = unpack_array(data)
    if len(fields) < 6 or not fits(fields, (int, bytes, str, list, bytes, str)):
        raise ProtocolError("a delta is [seq, digest, reason, puts, drops, leaver]")
    seq, digest, reason, puts, drops, leaver = fields[:6]
    if not is_list_of(puts, bytes) or len(digest) != DIGEST_BYTES or not 0 < seq <= INT_MAX:
        raise ProtocolError("a delta's seq, digest or puts are malformed")
    return seq, digest, reason, puts, drops, leaver


def decode_drops(data: bytes) -> tuple[RowKey, ...]:
    """The keys of the rows that a delta drops. Raises: ProtocolError."""
    drops = unpack_array(data)
    if {type(key) for key in drops} <= {list} and {len(key) for key in drops} <= {2}:
        keys = tuple([(worker_id, function_id) for worker_id, function_id in drops])
        if {type(part) for key in keys for part in key} <= {str}:
            return keys
    raise ProtocolError("a delta drops [worker_id, function_id]")
