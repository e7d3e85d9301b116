"""The protocol on one page: grammar, one dataclass per message, encode, decode, limits.

    message  = prefix header [payload]
    prefix   = magic "i3" | version u8 | kind u8 | header length u32 | number u64      (16 bytes, big-endian)
    header   = msgpack array of the message's fields, in the order of its dataclass
    payload  = one msgpack value, in Call and Result only: behind the header when it has at most
               `INLINE_BYTES_MAX` bytes, else as a second frame, or in two parts as a second and a third

    control and calls   DEALER <-> ROUTER   one frame (two or three with a large payload) behind the routing id
    registry stream     XPUB -> SUB         one frame: topic | message

`number` ties an answer to its question: a Call to its Result, a Hello to its Welcome and to the snapshot that follows.

Decoding is strict about what it knows and lenient about what it does not: unknown trailing fields are ignored (that
is how the protocol grows), everything else that is not exactly a message raises `ProtocolError`, and nothing else does.
No dict passes `decode`: what users put into metadata and schemas travels as packed bytes inside rows and entries.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from hashlib import blake2b
from typing import Any, Final

import msgpack

from .errors import FATES, Fate, ProtocolError

COMPILED = not __file__.endswith(".py")  # to C, with all of core/: see setup.py

# `Final` is what each message needs: compiled code has such constants in itself, others it looks up.
MAGIC: Final = b"i3"
VERSION: Final = 1
PREFIX: Final = struct.Struct(">2sBBIQ")
_pack_prefix: Final = PREFIX.pack
_unpack_prefix: Final = PREFIX.unpack_from
_unpackb: Final = msgpack.unpackb
_from_bytes: Final = int.from_bytes

# Limits. Each bounds something that a stranger could otherwise make grow.
INLINE_BYTES_MAX: Final = 64 * 1024  # a larger payload travels as its own frame, which pyzmq need not copy
PAYLOAD_BYTES_MAX = 32 * 1024 * 1024  # one call's payload or result; what the ROUTER's MAXMSGSIZE rests on
CONTROL_BYTES_MAX = 1024 * 1024  # header of what a worker sends; unpacking it costs at most some 75 MB for a moment
LARGE_BYTES: Final = 16 * 1024  # a larger header is looked through before it is unpacked: see CONTAINERS_MAX
CONTAINERS_MAX = 4096  # maps and arrays in a large header; an Ack that refuses a whole batch has 1,026
STREAM_BYTES_MAX = 256 * 1024 * 1024  # header of what a broker sends; a worker trusts its broker
ENTRY_BYTES_MAX = 64 * 1024  # one function's entry, schemas included
METADATA_BYTES_MAX = 64 * 1024  # one worker's metadata
BUNDLE_BYTES_MAX: Final = LARGE_BYTES  # header of a Bundle
BUNDLE_MAX: Final = 64  # messages in a Bundle: what has come is answered before more is read
BATCH_MAX = 1024  # functions in one Register: about 10 ms of the broker's loop
NAME_CHARS_MAX = 64  # one name between two `::`, and a worker's name
FUNCTION_ID_CHARS_MAX = 200
FUNCTION_ID_NAMES_MAX = 8
TEXT_CHARS_MAX = 4096  # a failure's text
NUMBER_MAX: Final = 2**64 - 1
INT_MAX: Final = 2**63 - 1

RESERVED_PREFIX = "engine::"
DIGEST_BYTES = 16
TOKEN_BYTES = 16
_DIGEST_MASK: Final = (1 << 128) - 1

# Topics. A reconnecting SUB resubscribes in byte order: the stream must come before any presence, so that a broker that
# hears the presence knows that the stream is subscribed.
STREAM_TOPIC: Final = b"s|"
SNAPSHOT_TOPIC: Final = b"t|"
PRESENCE_PREFIX = b"w|"

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")

Buffer = bytes | memoryview


@dataclass(slots=True, frozen=True)
class Split:
    """A large payload in two frames, `head` and `rest`, whose bytes in this order are the msgpack value.

    What the sender has as one piece of memory (a bytes of 16 MB) needs no copy to be the `rest` of a value.
    """

    head: Buffer
    rest: Buffer

    def __len__(self) -> int:
        return len(self.head) + len(self.rest)

    def __bytes__(self) -> bytes:
        return b"".join((self.head, self.rest))


Payload = Buffer | Split
_LONG = struct.Struct(">BI")  # the head of a bin or str of more than 65,535 bytes
_BIN32, _STR32 = 0xC6, 0xDB


# -- what users write: function ids and entries ------------------------------------------------------------------------


def check_function_id(function_id: object) -> None:
    """Raises: TypeError, ValueError with one line that says what was seen and what is expected."""
    if not isinstance(function_id, str):
        raise TypeError(f"a function id is a str such as 'orders::create', not {type(function_id).__name__}")
    if len(function_id) > FUNCTION_ID_CHARS_MAX:
        raise ValueError(f"function id of {len(function_id)} characters; at most {FUNCTION_ID_CHARS_MAX} are allowed")
    names = function_id.split("::")
    if len(names) > FUNCTION_ID_NAMES_MAX:
        raise ValueError(
            f"function id {function_id!r} has {len(names)} names; at most {FUNCTION_ID_NAMES_MAX} are allowed"
        )
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"function id {function_id!r}: {name!r} is not a name; expected 1 to {NAME_CHARS_MAX} letters, digits, "
                "'_', '-' or '.', joined by '::'"
            )


def is_reserved(function_id: str) -> bool:
    """Whether the broker itself answers under this id."""
    return function_id.startswith(RESERVED_PREFIX) or function_id == "engine"


EXCLUSIVE: Final = 1
IDEMPOTENT: Final = 2
INTERNAL: Final = 4


@dataclass(slots=True, frozen=True)
class FunctionEntry:
    """What a provider says of a function. Schemas and metadata are JSON objects, or None where not given."""

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
    """The entry's bytes: `[id, description, request_schema, response_schema, metadata, flags]`.

    Raises: TypeError, ValueError for what msgpack can't carry.
    """
    return pack(
        [
            entry.id,
            entry.description,
            entry.request_schema,
            entry.response_schema,
            entry.metadata,
            entry.flags,
        ]
    )


def decode_entry(data: bytes) -> FunctionEntry:
    """Raises: ProtocolError."""
    fields = _unpack_array(data)
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


# -- rows: the registry's content --------------------------------------------------------------------------------------

READY = "ready"
STALLED = "stalled"
DRAINING = "draining"
STATES = frozenset((READY, STALLED, DRAINING))

RowKey = tuple[str, str]
"""(worker id, function id), the function id empty for a worker's own row."""


@dataclass(slots=True, frozen=True)
class WorkerRow:
    """A worker as everybody sees it. `metadata` is a packed msgpack map."""

    worker_id: str
    name: str
    host: str
    pid: int
    metadata: bytes
    state: str


@dataclass(slots=True, frozen=True)
class ProviderRow:
    """That a worker offers a function. `active` is False for a stand-by; `entry` is a packed FunctionEntry."""

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
    fields = _unpack_array(data)
    if len(fields) >= 4 and _fits(fields, (str, str, bool, bytes)) and fields[1]:
        return ProviderRow(*fields[:4])
    if len(fields) >= 7 and _fits(fields, (str, str, str, str, int, bytes, str)) and not fields[1]:
        return WorkerRow(fields[0], *fields[2:7])
    raise ProtocolError("neither a worker row nor a provider row")


def row_key(data: bytes) -> RowKey:
    """The key of a row that `decode_row` takes, for loading many: a quarter of its time. Raises: ProtocolError."""
    fields = _unpack_array(data)
    if len(fields) >= 4 and type(fields[2]) is bool and type(fields[3]) is bytes:
        worker_id, function_id = fields[0], fields[1]
        if type(worker_id) is str and type(function_id) is str and function_id:
            return worker_id, function_id
    return decode_row(data).worker_id, ""


def row_hash(row: bytes) -> int:
    """The row's share in the digest: BLAKE2b of 128 bits over its bytes exactly as sent."""
    return int.from_bytes(blake2b(row, digest_size=DIGEST_BYTES).digest(), "big")


def digest_bytes(total: int) -> bytes:
    """The digest of a registry whose row hashes add up to `total`: 16 bytes, big-endian, modulo 2**128."""
    return (total & _DIGEST_MASK).to_bytes(DIGEST_BYTES, "big")


def functions_digest(entries: list[bytes]) -> bytes:
    """What a worker puts into Hello, so that the broker can tell whether it still offers the same functions."""
    return digest_bytes(sum(map(row_hash, entries)))


def presence_topic(token: bytes) -> bytes:
    """The topic that only the holder of this session token can know."""
    return PRESENCE_PREFIX + blake2b(token, digest_size=16, person=b"presence").hexdigest().encode()


def receipt_topic(token: bytes) -> bytes:
    """Subscribed after the snapshot topic, it tells the broker that a broadcast snapshot will be heard."""
    return presence_topic(token) + b"+"


# -- deltas ------------------------------------------------------------------------------------------------------------

REASONS = frozenset(("", "bye", "died", "silent", "unregistered", "replaced"))


@dataclass(slots=True, frozen=True)
class Delta:
    """One numbered, atomic change: rows to drop by key, then rows to put; `digest` is the content's afterwards.

    `reason` says why rows were dropped (one of `REASONS`). A key is never in both `drops` and `puts`. `leaver`, if not
    empty, is a worker of which the delta drops every row there is, and nothing else: who holds its rows need not read
    `drops`, which travel packed for that reason.
    """

    seq: int
    digest: bytes
    reason: str
    puts: tuple[bytes, ...]
    drops: tuple[RowKey, ...]
    leaver: str = ""


DeltaFields = tuple[int, bytes, str, "list[bytes]", bytes, str]
"""A delta's fields as they travel: `drops` is still packed."""


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
    fields = _unpack_array(data)
    if len(fields) < 6 or not _fits(fields, (int, bytes, str, list, bytes, str)):
        raise ProtocolError("a delta is [seq, digest, reason, puts, drops, leaver]")
    seq, digest, reason, puts, drops, leaver = fields[:6]
    if not _is_list_of(puts, bytes) or len(digest) != DIGEST_BYTES or not 0 < seq <= INT_MAX:
        raise ProtocolError("a delta's seq, digest or puts are malformed")
    return seq, digest, reason, puts, drops, leaver


def decode_drops(data: bytes) -> tuple[RowKey, ...]:
    """The keys of the rows that a delta drops. Raises: ProtocolError."""
    drops = _unpack_array(data)
    if {type(key) for key in drops} <= {list} and {len(key) for key in drops} <= {2}:
        keys = tuple([(worker_id, function_id) for worker_id, function_id in drops])
        if {type(part) for key in keys for part in key} <= {str}:
            return keys
    raise ProtocolError("a delta drops [worker_id, function_id]")


# -- messages ----------------------------------------------------------------------------------------------------------
# `number` stands in the prefix, the other fields in the header; `_TABLE` below has the kinds and the fields' types.

Refusal = tuple[int, str, str]
"""(index in the batch, code, text)."""

BYTES_LIST, STRINGS, REFUSALS = list[bytes], list[str], list[Refusal]


@dataclass(slots=True)
class Hello:
    """worker -> broker: I am here, or (with the token of a session) here again. Opens a session.

    `metadata` is a packed msgpack map. `epoch` ("" if none) and `seq` are the replica's position. `functions` is
    `functions_digest` of what the session offered ("" without a token): if it is what the broker holds, the rows stay.
    An observer is no row and offers nothing.
    """

    number: int
    capabilities: list[str]
    name: str
    host: str
    pid: int
    metadata: bytes
    credit: int
    observer: bool
    epoch: str
    seq: int
    token: bytes
    functions: bytes


@dataclass(slots=True)
class Welcome:
    """broker -> worker: the session. `stream_url` may have the host `*`: the host that the worker used for the broker.

    Times in milliseconds. `kept` says that the rows of the session named in Hello stayed as they were.
    """

    number: int
    worker_id: str
    token: bytes
    epoch: str
    stream_url: str
    heartbeat_ms: int
    ttl_ms: int
    open_calls_max: int
    batch_max: int
    payload_bytes_max: int
    kept: bool
    version: str


@dataclass(slots=True)
class Register:
    """worker -> broker: a batch of packed entries, applied atomically under one seq. Answered by Ack."""

    number: int
    entries: list[bytes]


@dataclass(slots=True)
class Unregister:
    """worker -> broker: function ids that go, atomically. Answered by Ack."""

    number: int
    function_ids: list[str]


@dataclass(slots=True)
class Ack:
    """broker -> worker: a Register, Unregister or Drain was done and is part of the registry at `seq`.

    `refusals` names what was not done, by its index in the batch.
    """

    number: int
    epoch: str
    seq: int
    refusals: list[Refusal]


@dataclass(slots=True)
class Heartbeat:
    """worker -> broker: my loop runs. Position, calls running, and the loop's worst lag since the last one."""

    number: int
    epoch: str
    seq: int
    load: int
    lag_ms: int


@dataclass(slots=True)
class Sync:
    """worker -> broker: tell me what I lack from this position on; the epoch "" asks for a snapshot.

    `number` is chosen anew for each Sync and comes back in every part. `reason` is for the broker's counters:
    `gap`, `digest`, `overrun` (too much waited unread) or `late` (an earlier answer did not come).
    """

    number: int
    epoch: str
    seq: int
    reason: str


@dataclass(slots=True)
class Snapshot:
    """broker -> worker: one part of the registry at (epoch, seq): packed rows. The last part completes it.

    Over the ROUTER `number` is that of the Hello or Sync which asked; over the stream that of the Invite.
    """

    number: int
    epoch: str
    seq: int
    digest: bytes
    index: int
    last: bool
    rows: list[bytes]


@dataclass(slots=True)
class Replay:
    """broker -> worker: one part of the packed deltas that the worker missed. It may be empty: nothing was missed.

    A Sync is answered by Replay alone (resumed), or by Snapshot parts and then Replay parts with what came since.
    The part with `last` ends the answer; a Snapshot's `last` is never the end of an answer.
    """

    number: int
    epoch: str
    index: int
    last: bool
    deltas: list[bytes]


@dataclass(slots=True)
class Received:
    """worker -> broker: part `index` of answer `number` arrived. At most `PARTS_OPEN_MAX` are on their way.

    Also, with index 0, for a Result whose payload travelled as a frame of its own.
    """

    number: int
    index: int


@dataclass(slots=True)
class Invite:
    """broker -> worker: the snapshot that answers `number` will be broadcast on `topic`.

    Subscribe to `topic`, then to `receipt_topic(token)`; unsubscribe both after the last Replay part.
    """

    number: int
    topic: bytes
    broadcast: int


@dataclass(slots=True)
class Drain:
    """worker -> broker: hand me no new calls. Answered by Ack once my running and queued calls have ended."""

    number: int


@dataclass(slots=True)
class Bye:
    """worker -> broker: I leave on purpose. My functions go at once; results of running calls are still taken."""

    number: int


@dataclass(slots=True)
class Unknown:
    """broker -> worker: you have no session here; say Hello. `number` and `kind` are those of what was refused."""

    number: int
    kind: int


@dataclass(slots=True)
class Refuse:
    """broker -> worker: message `number` of kind `kind` is refused; a refused Hello ends the attempt for good.

    Kind 15 and these fields are the same in every version, and `version` is what the prefix says: a peer of another
    version is answered in its own, because it reads nothing else.
    """

    number: int
    kind: int
    code: str
    text: str
    version: int = VERSION


@dataclass(slots=True)
class Probe:
    """broker -> worker: nothing to do; that it could be sent is what the broker wants to know."""

    number: int


@dataclass(slots=True)
class Closing:
    """broker -> everyone, on the stream: the broker ends on purpose. Say Hello again when it is back."""

    number: int
    epoch: str


@dataclass(slots=True)
class Deltas:
    """broker -> everyone, on the stream: the packed deltas of one turn of the broker's loop, in order."""

    number: int
    epoch: str
    deltas: list[bytes]


@dataclass(slots=True)
class Beacon:
    """broker -> everyone, on the stream when it is quiet: the position and the content's digest."""

    number: int
    epoch: str
    seq: int
    digest: bytes


NO_ANSWER: Final = 1  # Call.flags: the caller wants no Result, only a Failure if the call was not handed over


# Every call makes these two, several times; an `__init__` that a dataclass makes is not compiled with the rest.


@dataclass(slots=True, init=False)
class Call:
    """caller -> broker -> provider. `number` is the caller's, behind the broker the route's.

    `caller` is the caller's worker id (the broker checks it), `target` a worker id or "" for any provider,
    `remaining_ms` the time left, `fence` the seq of the promotion for an exclusive function, else 0. `header` is the
    encoded header as it was received, None when a field was changed: with it, a call is passed on without encoding.
    """

    number: int
    function_id: str
    caller: str
    remaining_ms: int
    target: str
    flags: int
    fence: int
    payload: Payload
    header: bytes | None

    def __init__(
        self,
        number: int,
        function_id: str,
        caller: str,
        remaining_ms: int,
        target: str,
        flags: int,
        fence: int,
        payload: Payload,
        header: bytes | None = None,
    ) -> None:
        self.number = number
        self.function_id = function_id
        self.caller = caller
        self.remaining_ms = remaining_ms
        self.target = target
        self.flags = flags
        self.fence = fence
        self.payload = payload
        self.header = header

    def again(self, number: int, payload: Payload) -> Call:
        """Another one with the same header."""
        return Call(
            number, self.function_id, self.caller, self.remaining_ms, self.target, self.flags, self.fence, payload,
            self.header,
        )  # fmt: skip


@dataclass(slots=True, init=False)
class Result:
    """provider -> broker -> caller: the handler's return value."""

    number: int
    payload: Payload

    def __init__(self, number: int, payload: Payload) -> None:
        self.number = number
        self.payload = payload


@dataclass(slots=True)
class Failure:
    """provider or broker -> caller: the call ended without a result. `type` is an exception's name, or "".

    From a provider the fate is `executed` (the handler raised) or `not_handed_over` (it never started).
    """

    number: int
    code: str
    fate: Fate
    type: str
    text: str


@dataclass(slots=True)
class Cancel:
    """caller -> broker -> provider: nobody waits for this call any more. A late answer is counted and dropped."""

    number: int


@dataclass(slots=True)
class Bundle:
    """either way: small messages that leave together in one, each a whole frame. They count as if each came alone.

    No bundle is in a bundle. The broker sends one only to who says in Hello that it takes them.
    """

    number: int
    frames: list[bytes]


BUNDLES = "bundles"  # the capability in Hello

FromWorker = (
    Hello | Register | Unregister | Heartbeat | Sync | Received | Drain | Bye | Call | Result | Failure | Cancel
    | Bundle
)  # fmt: skip
FromBroker = (
    Welcome | Ack | Snapshot | Replay | Invite | Unknown | Refuse | Probe | Call | Result | Failure | Cancel | Bundle
)  # fmt: skip
OnStream = Deltas | Beacon | Closing | Snapshot | Replay
Message = FromWorker | FromBroker | OnStream

# Each message: its kind in the prefix, its class, and the types of its header's fields, which in the class stand behind
# `number`. Not in the classes themselves: compiled dataclasses have no ClassVar.
_TABLE: tuple[tuple[int, type[Any], tuple[Any, ...]], ...] = (
    (1, Hello, (STRINGS, str, str, int, bytes, int, bool, str, int, bytes, bytes)),
    (2, Welcome, (str, bytes, str, str, int, int, int, int, int, bool, str)),
    (3, Register, (BYTES_LIST,)),
    (4, Unregister, (STRINGS,)),
    (5, Ack, (str, int, REFUSALS)),
    (6, Heartbeat, (str, int, int, int)),
    (7, Sync, (str, int, str)),
    (8, Snapshot, (str, int, bytes, int, bool, BYTES_LIST)),
    (9, Replay, (str, int, bool, BYTES_LIST)),
    (10, Received, (int,)),
    (11, Invite, (bytes, int)),
    (12, Drain, ()),
    (13, Bye, ()),
    (14, Unknown, (int,)),
    (15, Refuse, (int, str, str)),
    (16, Probe, ()),
    (17, Closing, (str,)),
    (18, Deltas, (str, BYTES_LIST)),
    (19, Beacon, (str, int, bytes)),
    (32, Call, (str, str, int, str, int, int)),
    (33, Result, ()),
    (34, Failure, (str, str, str, str)),
    (35, Cancel, ()),
    (36, Bundle, (BYTES_LIST,)),
)
MESSAGES: tuple[type[Any], ...] = tuple(message for _, message, _ in _TABLE)
KIND: Final[dict[type[Any], int]] = {message: kind for kind, message, _ in _TABLE}
KINDS: Final[dict[int, type[Any]]] = {kind: message for kind, message, _ in _TABLE}
FIELDS: Final[dict[type[Any], tuple[Any, ...]]] = {message: types for _, message, types in _TABLE}

_NO_FIELDS: Final = b"\x90"
_SMALL_CALL: Final = PREFIX.pack(MAGIC, VERSION, KIND[Call], 0, 0)[:6]  # its header has less than 65,536 bytes
_known_headers: Final[dict[bytes, Call]] = {}  # what was in them, in a Call without a payload
_KNOWN_COUNT: Final = 1024  # in that table: a program calls a few functions with a few timeouts; then it begins anew
_KNOWN_BYTES: Final = 512  # of a header: two ids take some hundred, and the table half a megabyte at most
_SIX: Final = 0x96  # how an array of six begins
_QUICK_INT: Final = 2**60  # integers that compiled code compares quickly
_RESULT_BYTES: Final = PREFIX.size + len(_NO_FIELDS)  # what stands before the payload of a Result
_SMALL_RESULT: Final = PREFIX.pack(MAGIC, VERSION, KIND[Result], len(_NO_FIELDS), 0)[:8]  # all but the number
PARTS_OPEN_MAX = 4  # parts of a snapshot or replay that one worker has not acknowledged


# -- encode ------------------------------------------------------------------------------------------------------------


# Packers that nobody uses just then: making one takes longer than packing with it. Taken out and put back, because what
# a user's object does while it is packed may come to pack another one, or let another thread do so.
_packers: Final[list[msgpack.Packer]] = []


def pack(value: Any) -> bytes:
    """One msgpack value. Raises: TypeError, ValueError, OverflowError for what msgpack can't carry."""
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(use_bin_type=True, buf_size=2 * LARGE_BYTES)
    packed: bytes = packer.pack(value)
    if len(packed) <= LARGE_BYTES:  # its buffer never shrinks
        _packers.append(packer)
    return packed


def pack_payload(value: Any) -> bytes | Split:
    """As `pack`; long bytes and strings are not copied to stand behind their five bytes of head."""
    kind = type(value)
    if (kind is bytes or kind is str or kind is bytearray) and len(value) > INLINE_BYTES_MAX:
        rest: bytes = value.encode() if kind is str else bytes(value)  # the same object, if it is one of bytes
        if len(rest) >> 32 == 0:  # pragma: no branch  # msgpack itself refuses what is longer
            return Split(_LONG.pack(_STR32 if kind is str else _BIN32, len(rest)), rest)
    return pack(value)


def encode(message: Message) -> tuple[bytes, Payload | None]:
    """The first frame, and the payload where it travels in frames of its own."""
    if isinstance(message, Call):
        header = message.header or _call_header(message)
        return _with_payload(KIND[Call], message.number, header, message.payload)
    if isinstance(message, Result):
        payload = message.payload
        if type(payload) is not bytes or len(payload) > INLINE_BYTES_MAX:
            return _with_payload(KIND[Result], message.number, _NO_FIELDS, payload)
        return b"".join((_SMALL_RESULT, message.number.to_bytes(8, "big"), _NO_FIELDS, payload)), None
    if isinstance(message, Bundle):
        header = pack(message.frames)
        return _pack_prefix(MAGIC, VERSION, KIND[Bundle], len(header) + 1, message.number) + b"\x91" + header, None
    header = pack([getattr(message, name) for name in _FIELD_NAMES[type(message)]])
    version = message.version if isinstance(message, Refuse) else VERSION
    return _pack_prefix(MAGIC, version, KIND[type(message)], len(header), message.number) + header, None


def encode_on_stream(message: OnStream, topic: bytes = STREAM_TOPIC) -> bytes:
    """The one frame of a stream message: the topic, then the message."""
    return topic + encode(message)[0]


def _with_payload(kind: int, number: int, header: bytes, payload: Payload) -> tuple[bytes, Payload | None]:
    prefix = _pack_prefix(MAGIC, VERSION, kind, len(header), number)
    if len(payload) > INLINE_BYTES_MAX:
        return prefix + header, payload
    if isinstance(payload, Split):
        payload = bytes(payload)
    return b"".join((prefix, header, payload)), None


def _call_header(call: Call) -> bytes:
    return pack((call.function_id, call.caller, call.remaining_ms, call.target, call.flags, call.fence))


_FIELD_NAMES: dict[type[Any], tuple[str, ...]] = {
    message: tuple(field.name for field in dataclass_fields(message))[1 : 1 + len(FIELDS[message])]
    for message in MESSAGES
}


# -- decode ------------------------------------------------------------------------------------------------------------


def decode(frame: bytes, payload: Payload | None = None, *, header_bytes_max: int = CONTROL_BYTES_MAX) -> Message:
    """The message in `frame`, with `payload` if there were further frames. Raises: ProtocolError, and nothing else.

    `header_bytes_max` has a meaning above LARGE_BYTES only: what is smaller is taken in any case.
    """
    if frame[:8] == _SMALL_RESULT and payload is None and _RESULT_BYTES < len(frame) <= PAYLOAD_BYTES_MAX:
        return Result(_from_bytes(frame[8:16], "big"), frame[_RESULT_BYTES:])
    if payload is None and len(frame) > PREFIX.size and frame[:6] == _SMALL_CALL:
        end = PREFIX.size + (frame[6] << 8 | frame[7])
        known = _known_headers.get(frame[PREFIX.size : end])
        if known is not None and end < len(frame) <= PAYLOAD_BYTES_MAX:
            return known.again(_from_bytes(frame[8:16], "big"), frame[end:])
    if len(frame) < PREFIX.size:
        raise ProtocolError(f"frame of {len(frame)} bytes; a message has at least {PREFIX.size}")
    header_bytes: int
    number: int
    magic, version, kind, header_bytes, number = _unpack_prefix(frame)
    if magic != MAGIC or version != VERSION:
        raise ProtocolError(f"magic {magic!r} version {version}; expected {MAGIC!r} version {VERSION}")
    message = KINDS.get(kind)
    if message is None:
        raise ProtocolError(f"unknown kind {kind}")
    body = PREFIX.size + header_bytes
    header = frame[PREFIX.size : body]
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
    if message is Ack:
        fields[2] = [tuple(refusal) for refusal in fields[2]]
    check = _CHECKS.get(message)
    decoded: Message = message(number, *fields)
    if check is not None:
        check(decoded)
    return decoded


@dataclass(slots=True, frozen=True)
class Heading:
    """What the prefix of a frame says: the same 16 bytes in every version."""

    version: int
    kind: int
    number: int


def read_heading(frame: bytes) -> Heading | None:
    """For a frame that `decode` refused: whether its sender at least means this protocol, and what it wanted."""
    if len(frame) < PREFIX.size or not frame.startswith(MAGIC):
        return None
    _, version, kind, _, number = _unpack_prefix(frame)
    return Heading(version, kind, number)


def decode_on_stream(frame: bytes) -> OnStream:
    """The message behind the topic of a stream frame. Raises: ProtocolError."""
    topic_bytes = len(SNAPSHOT_TOPIC) if frame.startswith(SNAPSHOT_TOPIC) else len(STREAM_TOPIC)
    message = decode(frame[topic_bytes:], header_bytes_max=STREAM_BYTES_MAX)
    if isinstance(message, (Deltas, Beacon, Closing, Snapshot, Replay)):
        return message
    raise ProtocolError(f"{type(message).__name__} does not belong on the stream")


def unpack(data: Payload) -> Any:
    """The value in a payload, as handlers and callers get it. Raises: ValueError when it is no msgpack value."""
    try:
        if isinstance(data, Split):
            return _unpack_split(data)
        return _unpackb(data, raw=False, strict_map_key=False)
    except Exception as error:  # msgpack raises several unrelated kinds, and what ext types raise
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


def _unpack_array(data: bytes) -> list[Any]:
    try:
        fields = _unpackb(data, raw=False, strict_map_key=False)
    except Exception as error:  # as in `unpack`: on hostile bytes msgpack is not limited to ValueError
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
    left = CONTAINERS_MAX

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ProtocolError(f"more than {CONTAINERS_MAX} containers")

    try:
        _unpackb(header, raw=False, strict_map_key=False, object_hook=count, list_hook=count, max_ext_len=0)
    except Exception as error:  # as in `unpack`
        text = str(error) if isinstance(error, ProtocolError) else f"no msgpack array: {type(error).__name__}"
        raise ProtocolError(text) from error


def _small_call(number: int, header: bytes, payload: bytes) -> Call | None:
    """What the general way takes thrice as long for; None where that must look closer."""
    if not header or header[0] != _SIX:
        return None
    try:
        fields: list[Any] = _unpackb(header)
    except Exception:  # no msgpack: see `_unpack_array`
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
    fields = _unpack_array(header)
    types = FIELDS[message]
    if len(fields) < len(types):
        raise ProtocolError(f"{message.__name__} with {len(fields)} fields; expected {len(types)}")
    if len(fields) > len(types):
        del fields[len(types) :]
    if not _fits(fields, types):
        raise ProtocolError(f"{message.__name__} has a field of a wrong type")
    return fields


def _fits(fields: list[Any], types: tuple[Any, ...]) -> bool:
    for at in range(len(types)):
        value, expected = fields[at], types[at]
        if type(value) is not expected and not _is_list(value, expected):
            return False
        if expected is int and not 0 <= value <= INT_MAX:
            return False
    return True


def _is_list(value: Any, expected: Any) -> bool:
    if type(value) is not list:
        return False
    if expected is BYTES_LIST:
        return _is_list_of(value, bytes)
    if expected is STRINGS:
        return _is_list_of(value, str)
    return bool(expected is REFUSALS) and all(
        type(item) is list and len(item) == 3 and _fits(item, (int, str, str)) for item in value
    )


def _is_list_of(value: list[Any], item: type) -> bool:
    return all(type(element) is item for element in value)


def _decode_with_payload(
    message: type[Any],
    number: int,
    header: bytes,
    fields: list[Any],
    inline: bytes,
    attached: Payload | None,
) -> Message:
    payload: Payload = inline
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


def _check_hello(hello: Hello) -> None:
    if len(hello.metadata) > METADATA_BYTES_MAX:
        raise ProtocolError(f"metadata of {len(hello.metadata)} bytes; at most {METADATA_BYTES_MAX}")
    if len(hello.token) not in (0, TOKEN_BYTES) or len(hello.functions) not in (0, DIGEST_BYTES):
        raise ProtocolError("a Hello's token and functions digest have 16 bytes or none")
    if len(hello.name) > NAME_CHARS_MAX or len(hello.host) > 255:
        raise ProtocolError("a Hello's name, host or capabilities are malformed")


def _check_welcome(welcome: Welcome) -> None:
    if len(welcome.token) != TOKEN_BYTES:
        raise ProtocolError("a Welcome's token has 16 bytes")


def _check_failure(failure: Failure) -> None:
    if failure.fate not in FATES:
        raise ProtocolError(f"a fate of {len(failure.fate)} characters that is none")


def _check_digest(message: Snapshot | Beacon) -> None:
    if len(message.digest) != DIGEST_BYTES:
        raise ProtocolError(f"digest of {len(message.digest)} bytes; expected {DIGEST_BYTES}")


def _check_bundle(bundle: Bundle) -> None:
    size = sum(map(len, bundle.frames))
    if len(bundle.frames) > BUNDLE_MAX or size > BUNDLE_BYTES_MAX:
        raise ProtocolError(f"a Bundle of {len(bundle.frames)} messages and {size} bytes: too many")


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    Bundle: _check_bundle,
    Hello: _check_hello,
    Welcome: _check_welcome,
    Failure: _check_failure,
    Snapshot: _check_digest,
    Beacon: _check_digest,
}
