"""The protocol on one page: the messages, their grammar, and one dataclass for each.

    kind  message      who says it            over              answered by
      1   Hello        worker                 control           Welcome or Refuse, then Snapshot and Replay parts
      2   Welcome      broker                 control
      3   Register     worker                 control           Ack
      4   Unregister   worker                 control           Ack
      5   Ack          broker                 control
      6   Heartbeat    worker                 control
      7   Sync         worker                 control           Snapshot and Replay parts, or Invite
      8   Snapshot     broker                 control, stream   Received, over the control connection
      9   Replay       broker                 control, stream   Received, over the control connection
     10   Received     worker                 control
     11   Invite       broker                 control           two subscriptions
     12   Drain        worker                 control           Ack, after the last call
     13   Bye          worker                 control
     14   Unknown      broker                 control           Hello
     15   Refuse       broker                 control
     16   Probe        broker                 control
     17   Closing      broker                 stream            Hello, to the next broker
     18   Deltas       broker                 stream            Sync, if there is a gap
     19   Beacon       broker                 stream            Sync, if the position or digest differs
     32   Call         caller, then broker    control           Result or Failure
     33   Result       provider, then broker  control           Received, if large
     34   Failure      provider or broker     control
     35   Cancel       caller, then broker    control
     36   Bundle       worker, broker         control           what is in it

    message  = prefix header [payload]
    prefix   = magic "i3" | version u8 | kind u8 | header length u32 | number u64      (16 bytes, big-endian)
    header   = msgpack array of the message's fields, in the order of its dataclass
    payload  = one msgpack value, in Call and Result only: behind the header if it has at most
               `INLINE_BYTES_MAX` bytes, else as a second frame, or in two parts as a second and a third

    control and calls   DEALER <-> ROUTER   one frame (two or three with a large payload) behind the routing id
    registry stream     XPUB -> SUB         one frame: topic | message

`number` ties an answer to its question: a Call to its Result, a Hello to its Welcome and to the snapshot that follows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from ..errors import Fate

# Constants that each message needs are `Final`: compiled code contains them, and looks up all others.
MAGIC: Final = b"i3"
VERSION: Final = 1
PREFIX: Final = struct.Struct(">2sBBIQ")

# Limits. Without each of them a stranger could make something grow.
INLINE_BYTES_MAX: Final = 64 * 1024  # a larger payload travels as its own frame, which pyzmq need not copy
PAYLOAD_BYTES_MAX = 32 * 1024 * 1024  # one call's payload or result; the ROUTER's MAXMSGSIZE is derived from it
CONTROL_BYTES_MAX = 1024 * 1024  # header of a worker's message; unpacking it takes at most about 75 MB for a moment
LARGE_BYTES: Final = 16 * 1024  # a larger header is checked before it is unpacked: see CONTAINERS_MAX
CONTAINERS_MAX = 4096  # maps and arrays in a large header; an Ack that refuses a whole batch has 1,026
STREAM_BYTES_MAX = 256 * 1024 * 1024  # header of a broker's message; a worker trusts its broker
ENTRY_BYTES_MAX = 64 * 1024  # one function's entry, schemas included
METADATA_BYTES_MAX = 64 * 1024  # one worker's metadata
BUNDLE_BYTES_MAX: Final = LARGE_BYTES  # header of a Bundle
BUNDLE_MAX: Final = 64  # messages in a Bundle: these are answered before more is read
BATCH_MAX = 1024  # functions in one Register: about 10 ms of the broker's loop
NAME_CHARS_MAX = 64  # one name between two `::`, and a worker's name
FUNCTION_ID_CHARS_MAX = 200
FUNCTION_ID_NAMES_MAX = 8
TEXT_CHARS_MAX = 4096  # a failure's text
NUMBER_MAX: Final = 2**64 - 1
INT_MAX: Final = 2**63 - 1
PARTS_OPEN_MAX = 4  # parts of a snapshot or replay that one worker has not acknowledged
DIGEST_BYTES = 16
TOKEN_BYTES = 16

# Topics. A reconnecting SUB resubscribes in byte order. The stream must come before any presence, so that the broker
# knows, once it hears the presence, that the stream is subscribed.
STREAM_TOPIC: Final = b"s|"
SNAPSHOT_TOPIC: Final = b"t|"
PRESENCE_PREFIX = b"w|"

Buffer = bytes | memoryview


@dataclass(slots=True, frozen=True)
class Split:
    """A large payload in two frames: the bytes of `head`, then those of `rest`, are the msgpack value.

    So the sender need not copy one large piece of memory (a bytes of 16 MB) to make it part of a value.
    """

    head: Buffer
    rest: Buffer

    def __len__(self) -> int:
        return len(self.head) + len(self.rest)

    def __bytes__(self) -> bytes:
        return b"".join((self.head, self.rest))


Payload = Buffer | Split


# -- messages ----------------------------------------------------------------------------------------------------------
# `number` is in the prefix, the other fields are in the header; `_TABLE` below has the fields' types.

Refusal = tuple[int, str, str]
"""(index in the batch, code, text)."""

BYTES_LIST, STRINGS, REFUSALS = list[bytes], list[str], list[Refusal]


@dataclass(slots=True)
class Hello:
    """worker -> broker: I am here, or (with the token of a session) here again. Opens a session.

    `metadata` is a packed msgpack map. `epoch` ("" if none) and `seq` are the replica's position. `functions` is the
    `functions_digest` of the session's functions ("" without a token): if the broker holds the same, the rows stay. An
    observer has no row and offers nothing.
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
    """broker -> worker: the session. The host `*` in `stream_url` means the host that the worker used for the broker.

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
    """worker -> broker: function ids to remove, atomically. Answered by Ack."""

    number: int
    function_ids: list[str]


@dataclass(slots=True)
class Ack:
    """broker -> worker: a Register, Unregister or Drain is done and part of the registry at `seq`.

    `refusals` lists what was refused, by its index in the batch.
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
    """broker -> worker: nothing to do; the broker only wants to know whether it can be sent."""

    number: int


@dataclass(slots=True)
class Closing:
    """broker -> everyone, on the stream: the broker shuts down. Say Hello again when it is back."""

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
    """broker -> everyone, on the stream at every heartbeat: the position and the content's digest."""

    number: int
    epoch: str
    seq: int
    digest: bytes


NO_ANSWER: Final = 1  # Call.flags: the caller wants no Result, only a Failure if the call was not handed over


# Every call makes these two, several times: their `__init__` is written out, since a dataclass's is not compiled.


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
        """Another call with the same header."""
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

# Each message: its kind in the prefix, its class, and the types of its header's fields, which follow `number` in the
# class. They are not in the classes themselves, because compiled dataclasses have no ClassVar.
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
