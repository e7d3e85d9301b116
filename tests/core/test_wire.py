"""The protocol's bytes: pinned for every kind, read strictly, refused in one way only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import blake2b
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_zmq import wire
from iii_zmq.errors import FATES, ProtocolError

DIGEST = bytes(range(16))
DIGEST_HEX = "000102030405060708090a0b0c0d0e0f"
TOKEN = bytes(range(16, 32))
TOKEN_HEX = "101112131415161718191a1b1c1d1e1f"

# Each line: magic, version, kind, header length, number; then the header (and payload).
GOLDEN: list[tuple[wire.Message, str]] = [
    (
        wire.Hello(1, ["zip"], "orders", "shop", 42, b"\x80", 128, False, "e", 7, TOKEN, DIGEST),
        "6933 01 01 00000040 0000000000000001"
        "9b 91a37a6970 a66f7264657273 a473686f70 2a c40180 cc80 c2 a165 07"
        f"c410{TOKEN_HEX} c410{DIGEST_HEX}",
    ),
    (
        wire.Welcome(1, "w1", TOKEN, "e", "tcp://*:5571", 500, 2000, 4096, 1024, 33554432, True, "0.1"),
        "6933 01 02 0000003b 0000000000000001"
        f"9b a27731 c410{TOKEN_HEX} a165 ac7463703a2f2f2a3a35353731"
        "cd01f4 cd07d0 cd1000 cd0400 ce02000000 c3 a3302e31",
    ),
    (wire.Register(2, [b"\x01", b"\x02"]), "6933 01 03 00000008 0000000000000002 9192c40101c40102"),
    (wire.Unregister(3, ["a::b", "c"]), "6933 01 04 00000009 0000000000000003 9192a4613a3a62a163"),
    (
        wire.Ack(3, "e", 8, [(1, "reserved", "no")]),
        "6933 01 05 00000013 0000000000000003 93a16508 91 9301a87265736572766564a26e6f",
    ),
    (wire.Heartbeat(4, "e", 8, 3, 250), "6933 01 06 00000007 0000000000000004 94a1650803ccfa"),
    (wire.Sync(5, "e", 8, "gap"), "6933 01 07 00000008 0000000000000005 93a16508a3676170"),
    (
        wire.Snapshot(5, "e", 9, DIGEST, 0, True, [b"\x01"]),
        f"6933 01 08 0000001c 0000000000000005 96a16509 c410{DIGEST_HEX} 00 c3 91c40101",
    ),
    (wire.Replay(5, "e", 1, True, [b"\x02"]), "6933 01 09 00000009 0000000000000005 94a16501c391c40102"),
    (wire.Received(5, 1), "6933 01 0a 00000002 0000000000000005 9101"),
    (wire.Invite(6, b"t|", 77), "6933 01 0b 00000006 0000000000000006 92c402747c4d"),
    (wire.Drain(7), "6933 01 0c 00000001 0000000000000007 90"),
    (wire.Bye(8), "6933 01 0d 00000001 0000000000000008 90"),
    (wire.Unknown(9, 4), "6933 01 0e 00000002 0000000000000009 9104"),
    (
        wire.Refuse(10, 1, "version", "too old"),
        "6933 01 0f 00000012 000000000000000a 9301a776657273696f6ea7746f6f206f6c64",
    ),
    (wire.Probe(0), "6933 01 10 00000001 0000000000000000 90"),
    (wire.Closing(0, "e"), "6933 01 11 00000003 0000000000000000 91a165"),
    (wire.Deltas(0, "e", [b"\x01", b"\x02"]), "6933 01 12 0000000a 0000000000000000 92a16592c40101c40102"),
    (wire.Beacon(0, "e", 9, DIGEST), f"6933 01 13 00000016 0000000000000000 93a16509 c410{DIGEST_HEX}"),
    (
        wire.Call(2**64 - 1, "a::b", "w1", 30000, "w2", 1, 12, b"\xc0"),
        "6933 01 20 00000011 ffffffffffffffff 96a4613a3a62a27731cd7530a27732010c c0",
    ),
    (wire.Result(12, b"\x01"), "6933 01 21 00000001 000000000000000c 90 01"),
    (
        wire.Failure(13, "handler_failed", "executed", "KeyError", "x"),
        "6933 01 22 00000024 000000000000000d"
        "94ae68616e646c65725f6661696c6564 a86578656375746564 a84b65794572726f72 a178",
    ),
    (wire.Cancel(14), "6933 01 23 00000001 000000000000000e 90"),
    (wire.Bundle(0, [b"\x01", b"\x02"]), "6933 01 24 00000008 0000000000000000 9192c40101c40102"),
]  # fmt: skip
EXAMPLES = {type(message): message for message, _ in GOLDEN}
FRAMES = [bytes.fromhex(golden) for _, golden in GOLDEN]

ENTRY = wire.FunctionEntry("a::b", "does", {"type": "object"}, None, {"n": 1}, wire.EXCLUSIVE | wire.INTERNAL)
ENTRY_HEX = "96 a4613a3a62 a4646f6573 81a474797065a66f626a656374 c0 81a16e01 05"
WORKER_ROW = wire.WorkerRow("w1", "orders", "shop", 42, b"\x80", wire.READY)
WORKER_ROW_HEX = "97 a27731 a0 a66f7264657273 a473686f70 2a c40180 a57265616479"
PROVIDER_ROW = wire.ProviderRow("w1", "a::b", True, b"\x01")
PROVIDER_ROW_HEX = "94 a27731 a4613a3a62 c3 c40101"
DELTA = wire.Delta(9, DIGEST, "died", (b"\x01",), (("w1", ""), ("w1", "a::b")), "w1")
NO_DROPS = b"\x90"
DELTA_HEX = f"96 09 c410{DIGEST_HEX} a464696564 91c40101 c40f 92 92a27731a0 92a27731a4613a3a62 a27731"


def frame_of(message: wire.Message) -> bytes:
    frame, payload = wire.encode(message)
    assert payload is None
    return frame


def plain(message: wire.Message) -> wire.Message:
    """Without the header that a decoded call keeps for passing it on."""
    return replace(message, header=None) if isinstance(message, wire.Call) else message


def raw(kind: int, header: bytes, rest: bytes = b"") -> bytes:
    return wire.PREFIX.pack(wire.MAGIC, wire.VERSION, kind, len(header), 1) + header + rest


def refused(decode: Callable[[bytes], object], data: bytes, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        decode(data)


# -- golden bytes ------------------------------------------------------------------------------------------------------


def test_every_message_has_golden_bytes() -> None:
    assert [type(message) for message, _ in GOLDEN] == list(wire.MESSAGES)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_a_message_encodes_to_its_golden_bytes(message: wire.Message, golden: str) -> None:
    assert frame_of(message) == bytes.fromhex(golden)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_bytes_decode_to_their_message(message: wire.Message, golden: str) -> None:
    assert plain(wire.decode(bytes.fromhex(golden))) == message


def test_an_entry_has_golden_bytes() -> None:
    assert wire.encode_entry(ENTRY) == bytes.fromhex(ENTRY_HEX)
    assert wire.decode_entry(bytes.fromhex(ENTRY_HEX)) == ENTRY
    assert (ENTRY.exclusive, ENTRY.idempotent, ENTRY.internal) == (True, False, True)


@pytest.mark.parametrize(
    ("row", "golden", "key"),
    [(WORKER_ROW, WORKER_ROW_HEX, ("w1", "")), (PROVIDER_ROW, PROVIDER_ROW_HEX, ("w1", "a::b"))],
    ids=["worker", "provider"],
)
def test_a_row_has_golden_bytes_and_a_key(row: wire.Row, golden: str, key: wire.RowKey) -> None:
    assert wire.encode_row(row) == bytes.fromhex(golden)
    assert wire.decode_row(bytes.fromhex(golden)) == row
    assert wire.row_key(bytes.fromhex(golden)) == key


def test_a_delta_has_golden_bytes() -> None:
    assert wire.encode_delta(DELTA) == bytes.fromhex(DELTA_HEX)
    assert wire.decode_delta(bytes.fromhex(DELTA_HEX)) == DELTA


def test_the_digest_is_the_sum_of_the_rows_hashes() -> None:
    rows = [bytes.fromhex(WORKER_ROW_HEX), bytes.fromhex(PROVIDER_ROW_HEX)]
    hashes = [wire.row_hash(row) for row in rows]
    assert hashes == [0x33C003A115BE80C6A0585D38A21912E7, 0x637109D4045C9490FD30E486765B0EBF]
    assert hashes == [int(blake2b(row, digest_size=16).hexdigest(), 16) for row in rows]
    assert wire.digest_bytes(sum(hashes)).hex() == "97310d751a1b15579d8941bf187421a6"
    assert wire.functions_digest(rows) == wire.digest_bytes(sum(hashes))


@pytest.mark.parametrize(("total", "last"), [(0, 0), (2**128 + 5, 5), (-(2**128) + 7, 7)])
def test_the_digest_is_taken_modulo_2_to_the_128(total: int, last: int) -> None:
    assert wire.digest_bytes(total) == bytes(15) + bytes([last])


def test_topics_have_golden_bytes() -> None:
    assert wire.presence_topic(TOKEN) == b"w|ea539c458c379627b9a030092cc1ecf2"
    assert wire.receipt_topic(TOKEN) == b"w|ea539c458c379627b9a030092cc1ecf2+"


def test_the_streams_topics_sort_before_every_presence() -> None:
    assert wire.STREAM_TOPIC < wire.SNAPSHOT_TOPIC < wire.PRESENCE_PREFIX
    assert wire.presence_topic(TOKEN) < wire.receipt_topic(TOKEN)


# -- round trips -------------------------------------------------------------------------------------------------------

INTS = st.integers(0, wire.INT_MAX)
TEXTS = st.text(max_size=20)
FIELD_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: INTS,
    str: TEXTS,
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    wire.BYTES_LIST: st.lists(st.binary(max_size=20), max_size=3),
    wire.STRINGS: st.lists(TEXTS, max_size=3),
    wire.REFUSALS: st.lists(st.tuples(INTS, TEXTS, TEXTS), max_size=3),
}
SIXTEEN = st.binary(min_size=16, max_size=16)
CHECKED = {"digest": SIXTEEN, "token": SIXTEEN, "functions": SIXTEEN, "fate": st.sampled_from(sorted(FATES))}


def messages_of(kind: type[Any]) -> st.SearchStrategy[wire.Message]:
    names = [field.name for field in fields(kind)]
    expected = zip(names[1:], wire.FIELDS[kind], strict=False)
    values = {name: CHECKED.get(name, FIELD_VALUES[type_]) for name, type_ in expected}
    if "payload" in names:
        values["payload"] = st.binary(min_size=1, max_size=40)
    return st.builds(kind, number=st.integers(0, wire.NUMBER_MAX), **values)


ANY_MESSAGE = st.one_of([messages_of(kind) for kind in wire.MESSAGES])


@given(ANY_MESSAGE)
def test_what_was_encoded_decodes_to_the_same(message: wire.Message) -> None:
    assert plain(wire.decode(frame_of(message))) == message


@given(
    st.builds(
        wire.FunctionEntry,
        TEXTS,
        st.none() | TEXTS,
        st.none() | st.dictionaries(TEXTS, INTS | TEXTS | st.none(), max_size=3),
        flags=INTS,
    )
)
def test_an_entry_comes_back_as_it_was(entry: wire.FunctionEntry) -> None:
    assert wire.decode_entry(wire.encode_entry(entry)) == entry


@given(
    st.builds(wire.WorkerRow, TEXTS, TEXTS, TEXTS, INTS, st.binary(max_size=9), TEXTS)
    | st.builds(wire.ProviderRow, TEXTS, st.text(min_size=1), st.booleans(), st.binary(max_size=9))
)
def test_a_row_comes_back_as_it_was(row: wire.Row) -> None:
    assert wire.decode_row(wire.encode_row(row)) == row


def test_a_call_that_was_received_is_passed_on_with_its_header_unchanged() -> None:
    received = wire.decode(frame_of(EXAMPLES[wire.Call]))
    assert isinstance(received, wire.Call)
    header = bytes.fromhex("96a4613a3a62a27731cd7530a27732010c")
    assert received.header == header
    received.header = raw(0, b"")[:1] + header[1:]  # whatever it is, it is taken
    assert frame_of(received)[16:17] == b"i"


# -- payloads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [wire.Call, wire.Result])
def test_a_payload_up_to_the_limit_travels_inline_and_a_larger_one_as_its_own_frame(kind: type[Any]) -> None:
    inline = replace(EXAMPLES[kind], payload=bytes(wire.INLINE_BYTES_MAX))
    assert plain(wire.decode(frame_of(inline))) == inline
    large = replace(EXAMPLES[kind], payload=bytes(wire.INLINE_BYTES_MAX + 1))
    frame, payload = wire.encode(large)
    assert len(frame) < 100
    assert payload is large.payload
    assert plain(wire.decode(frame, payload)) == large


def test_a_payload_of_its_own_frame_may_be_small() -> None:
    assert wire.decode(raw(33, b"\x90"), b"\x01") == wire.Result(1, b"\x01")


LONG = {
    "bytes": bytes(range(256)) * 300,
    "str": "grün" * 20_000,
    "bytearray": bytearray(b"ab" * 40_000),
    "map": {"image": bytes(70_000), "n": 1},
    "just too short": bytes(wire.INLINE_BYTES_MAX),
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_a_long_value_is_the_same_value_in_one_part_or_in_two(value: Any) -> None:
    packed = wire.pack(value)
    assert bytes(wire.pack_payload(value)) == packed
    assert wire.unpack(wire.pack_payload(value)) == value
    for at in (0, 1, 4, 5, 6, len(packed) - 1, len(packed)):
        split = wire.Split(memoryview(packed)[:at], memoryview(packed)[at:])
        assert (len(split), wire.unpack(split)) == (len(packed), value)
        frame, payload = wire.encode(wire.Result(1, split))
        assert payload is split
        assert wire.decode(frame, payload) == wire.Result(1, split)


def test_long_bytes_are_packed_and_unpacked_without_a_copy() -> None:
    value = bytes(wire.INLINE_BYTES_MAX + 1)
    split = wire.pack_payload(value)
    assert isinstance(split, wire.Split)
    assert split.rest is value
    assert wire.unpack(split) is value


def test_what_is_packed_does_not_change_when_the_user_changes_it() -> None:
    value = bytearray(70_000)
    packed = wire.pack_payload(value)
    value[:4] = b"late"
    assert wire.unpack(packed) == bytes(70_000)


def test_two_parts_that_are_no_value_are_the_callers_fault() -> None:
    for head, rest in ((b"\xc6\x00\x00\x00\x05", b"four"), (b"\xdb\x00\x00\x00\x01", b"\xff"), (b"\x01", b"\x02")):
        with pytest.raises(ValueError, match="is no msgpack value"):
            wire.unpack(wire.Split(head, rest))


def test_two_parts_have_at_most_the_limit_together() -> None:
    half = bytes(wire.PAYLOAD_BYTES_MAX // 2)
    assert wire.decode(raw(33, b"\x90"), wire.Split(half, half))
    with pytest.raises(ProtocolError, match="payload of 33554433 bytes; at most 33554432"):
        wire.decode(raw(33, b"\x90"), wire.Split(half, half + b"1"))
    with pytest.raises(ProtocolError, match="Result without a payload"):
        wire.decode(raw(33, b"\x90"), wire.Split(b"", b""))


def test_two_small_parts_travel_on_as_one() -> None:
    assert wire.encode(wire.Result(1, wire.Split(b"\xa1", b"x"))) == (frame_of(wire.Result(1, b"\xa1x")), None)


def test_two_payloads_are_refused() -> None:
    with pytest.raises(ProtocolError, match="Result with two payloads"):
        wire.decode(raw(33, b"\x90", b"\x01"), b"\x01")


@pytest.mark.parametrize("payload", [None, b""])
def test_a_call_or_result_without_a_payload_is_refused(payload: bytes | None) -> None:
    with pytest.raises(ProtocolError, match="Result without a payload"):
        wire.decode(raw(33, b"\x90"), payload)


def test_a_payload_above_the_limit_is_refused() -> None:
    data = bytes(wire.PAYLOAD_BYTES_MAX + 1)
    assert wire.decode(raw(33, b"\x90"), memoryview(data)[1:])
    with pytest.raises(ProtocolError, match="payload of 33554433 bytes; at most 33554432"):
        wire.decode(raw(33, b"\x90"), data)


def test_a_message_that_carries_no_payload_is_refused_with_one() -> None:
    refused(wire.decode, frame_of(wire.Bye(1)) + b"\xc0", "Bye carries no payload")
    with pytest.raises(ProtocolError, match="Bye carries no payload"):
        wire.decode(frame_of(wire.Bye(1)), b"\xc0")


def test_a_payload_that_is_no_value_is_the_callers_fault() -> None:
    assert wire.unpack(b"\x81\x01\xa1x") == {1: "x"}
    with pytest.raises(ValueError, match="payload of 1 bytes is no msgpack value"):
        wire.unpack(b"\xc1")


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800"], ids=["object", "too large an int", "half a surrogate"])
def test_what_msgpack_cannot_carry_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        wire.pack(value)


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (b"", "frame of 0 bytes; a message has at least 16"),
        (b"GET / HTTP/1.1\r\n\r\n", "magic b'GE'"),
        (b"i3\x02" + bytes(13), "version 2; expected b'i3' version 1"),
        (raw(99, b"\x90"), "unknown kind 99"),
        (raw(13, b"\x90")[:-1], "header of 1 bytes in a frame of 16"),
        (raw(13, b"\xc1"), "no msgpack array: FormatError"),
        (raw(13, b""), "no msgpack array"),
        (raw(13, b"\x90\x90"), "no msgpack array: ExtraData"),
        (raw(13, b"\x80"), "dict where an array is expected"),
        (raw(10, b"\x90"), "Received with 0 fields; expected 1"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_what_was_seen(frame: bytes, match: str) -> None:
    refused(wire.decode, frame, match)


@pytest.mark.parametrize("version", [wire.VERSION, 0, 7])
def test_a_refuse_goes_out_in_the_version_of_whom_it_is_for(version: int) -> None:
    golden = f"6933 {version:02x} 0f 00000006 000000000000000a 9301a176a17a"
    assert frame_of(wire.Refuse(10, 1, "v", "z", version)) == bytes.fromhex(golden)


@pytest.mark.parametrize("data", [b"", b"i3\x01\x01" + bytes(11), b"i4\x01\x01" + bytes(12)])
def test_what_has_no_prefix_of_ours_has_no_heading(data: bytes) -> None:
    assert wire.read_heading(data) is None


def test_a_heading_is_what_the_prefix_says_of_any_version() -> None:
    assert wire.read_heading(b"i3\x07\xc8\xff\xff\xff\xff" + bytes(7) + b"\x05rest") == wire.Heading(7, 200, 5)


def test_no_text_of_a_peer_gets_into_what_is_said_of_it() -> None:
    # The reason goes into the log: a fate of a megabyte filled it.
    frame = raw(34, wire.pack(["c", "f" * 100_000, "", ""]))
    refused(wire.decode, frame, "^a fate of 100000 characters that is none$")


@pytest.mark.parametrize("value", ["1", 1.0, True, None, -1, wire.INT_MAX + 1, [1]], ids=repr)
def test_a_field_of_another_type_or_range_is_refused(value: Any) -> None:
    refused(wire.decode, raw(10, wire.pack([value])), "Received has a field of a wrong type")


@pytest.mark.parametrize("value", [b"x", [b"x", "y"], ["x", 1]], ids=repr)
def test_a_list_with_anything_else_in_it_is_refused(value: Any) -> None:
    refused(wire.decode, raw(3, wire.pack([value])), "Register has a field of a wrong type")
    refused(wire.decode, raw(4, wire.pack([value])), "Unregister has a field of a wrong type")


@pytest.mark.parametrize("value", [[1], [[1, "a"]], [[1, "a", 2]], [["a", "b", "c"]]], ids=repr)
def test_a_malformed_refusal_is_refused(value: Any) -> None:
    refused(wire.decode, raw(5, wire.pack(["e", 1, value])), "Ack has a field of a wrong type")


@pytest.mark.parametrize("kind", wire.MESSAGES, ids=lambda kind: kind.__name__)
def test_unknown_trailing_fields_are_ignored(kind: type[Any]) -> None:
    message = EXAMPLES[kind]
    frame = frame_of(message)
    body = 16 + wire.PREFIX.unpack_from(frame)[3]
    header = wire.pack([*msgpack.unpackb(frame[16:body]), "new", {1: 2}])
    prefix = wire.PREFIX.pack(wire.MAGIC, wire.VERSION, wire.KIND[kind], len(header), message.number)
    assert plain(wire.decode(prefix + header + frame[body:])) == message


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (replace(EXAMPLES[wire.Hello], metadata=bytes(wire.METADATA_BYTES_MAX + 1)), "metadata of 65537 bytes"),
        (replace(EXAMPLES[wire.Hello], token=bytes(15)), "16 bytes or none"),
        (replace(EXAMPLES[wire.Hello], functions=bytes(17)), "16 bytes or none"),
        (replace(EXAMPLES[wire.Hello], name="x" * (wire.NAME_CHARS_MAX + 1)), "name, host or capabilities"),
        (replace(EXAMPLES[wire.Hello], host="x" * 256), "name, host or capabilities"),
        (replace(EXAMPLES[wire.Welcome], token=b""), "token has 16 bytes"),
        (replace(EXAMPLES[wire.Failure], fate="unclear"), "a fate of 7 characters that is none"),
        (replace(EXAMPLES[wire.Snapshot], digest=b""), "digest of 0 bytes; expected 16"),
        (replace(EXAMPLES[wire.Beacon], digest=bytes(17)), "digest of 17 bytes; expected 16"),
    ],
)
def test_a_field_beyond_its_limit_is_refused(message: wire.Message, match: str) -> None:
    refused(wire.decode, frame_of(message), match)


def test_a_hello_at_its_limits_is_taken() -> None:
    hello = replace(
        EXAMPLES[wire.Hello],
        metadata=bytes(wire.METADATA_BYTES_MAX),
        name="x" * wire.NAME_CHARS_MAX,
        host="x" * 255,
        token=b"",
        functions=b"",
    )
    assert wire.decode(frame_of(hello)) == hello


def test_a_workers_header_above_its_limit_is_refused() -> None:
    at = wire.Register(1, [bytes(wire.CONTROL_BYTES_MAX - 7)])
    assert wire.decode(frame_of(at)) == at
    refused(wire.decode, frame_of(wire.Register(1, [bytes(wire.CONTROL_BYTES_MAX - 6)])), "header of 1048577 bytes")


# -- the stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", [wire.STREAM_TOPIC, wire.SNAPSHOT_TOPIC])
@pytest.mark.parametrize("kind", [wire.Deltas, wire.Beacon, wire.Closing, wire.Snapshot, wire.Replay])
def test_a_stream_message_travels_behind_its_topic(kind: type[Any], topic: bytes) -> None:
    assert wire.decode_on_stream(topic + frame_of(EXAMPLES[kind])) == EXAMPLES[kind]


def test_the_streams_topic_has_two_bytes() -> None:
    assert wire.decode_on_stream(b"s|" + frame_of(wire.Closing(0, "e"))) == wire.Closing(0, "e")


def test_what_does_not_belong_on_the_stream_is_refused_there() -> None:
    refused(wire.decode_on_stream, b"s|" + frame_of(wire.Bye(1)), "Bye does not belong on the stream")


def test_a_brokers_header_may_be_larger_up_to_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = wire.STREAM_TOPIC + frame_of(wire.Deltas(0, "e", [bytes(2 * wire.CONTROL_BYTES_MAX)]))
    assert wire.decode_on_stream(frame)
    monkeypatch.setattr(wire.messages, "STREAM_BYTES_MAX", wire.CONTROL_BYTES_MAX)
    refused(wire.decode_on_stream, frame, "header of 2097161 bytes")


# -- entries, rows, deltas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (["f", None, None, None, None], "function entry of 5 fields; expected 6"),
        ([1, None, None, None, None, 0], "without an id and flags"),
        (["f", None, None, None, None, True], "without an id and flags"),
        (["f", None, None, None, None, -1], "without an id and flags"),
        (["f", b"x", None, None, None, 0], "description is bytes; expected str"),
        (["f", None, [], None, None, 0], "schema or metadata is list; expected a map"),
        (["f", None, None, "x", None, 0], "schema or metadata is str; expected a map"),
        (["f", None, None, None, 1, 0], "schema or metadata is int; expected a map"),
        ("f", "str where an array is expected"),
    ],
)
def test_a_malformed_entry_is_refused(value: Any, match: str) -> None:
    refused(wire.decode_entry, wire.pack(value), match)


def test_an_entrys_unknown_trailing_fields_are_ignored() -> None:
    assert wire.decode_entry(wire.pack([*msgpack.unpackb(wire.encode_entry(ENTRY)), "new"])) == ENTRY


@pytest.mark.parametrize(
    "value",
    [
        [],
        ["w", "f", True],
        ["w", "f", 1, b""],
        ["w", "f", True, "x"],
        [1, "f", True, b""],
        ["w", 2, True, b""],
        ["w", "", True, b""],
        ["w", "", "n", "h", 1, b""],
        ["w", "", "n", "h", -1, b"", "ready"],
        ["w", "f", "n", "h", 1, b"", "ready"],
        ["w", "", "n", "h", True, b"", "ready"],
    ],
    ids=repr,
)
def test_a_malformed_row_is_refused_also_where_only_its_key_is_read(value: Any) -> None:
    refused(wire.decode_row, wire.pack(value), "neither a worker row nor a provider row")
    refused(wire.row_key, wire.pack(value), "neither a worker row nor a provider row")


@pytest.mark.parametrize("row", [WORKER_ROW, PROVIDER_ROW], ids=["worker", "provider"])
def test_a_rows_unknown_trailing_fields_are_ignored(row: wire.Row) -> None:
    data = wire.pack([*msgpack.unpackb(wire.encode_row(row)), "new"])
    assert wire.decode_row(data) == row
    assert wire.row_key(data) == wire.row_key(wire.encode_row(row))


@given(st.lists(st.text(max_size=2) | INTS | st.booleans() | st.binary(max_size=2), max_size=8))
def test_a_rows_key_is_read_exactly_where_the_row_is(value: list[Any]) -> None:
    data = wire.pack(value)
    try:
        row = wire.decode_row(data)
    except ProtocolError:
        refused(wire.row_key, data, "neither")
    else:
        assert wire.row_key(data) == (row.worker_id, row.function_id if isinstance(row, wire.ProviderRow) else "")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([1, DIGEST, "", [], NO_DROPS], "a delta is"),
        ([1, DIGEST, "", {}, NO_DROPS, ""], "a delta is"),
        (["1", DIGEST, "", [], NO_DROPS, ""], "a delta is"),
        ([1, DIGEST, "", [], [], ""], "a delta is"),
        ([1, DIGEST, "", [], NO_DROPS, None], "a delta is"),
        ([0, DIGEST, "", [], NO_DROPS, ""], "seq, digest or puts"),
        ([1, DIGEST[1:], "", [], NO_DROPS, ""], "seq, digest or puts"),
        ([1, DIGEST, "", ["x"], NO_DROPS, ""], "seq, digest or puts"),
        ([1, DIGEST, "", [], b"\xc1", ""], "no msgpack"),
        ([1, DIGEST, "", [], wire.pack(["ab"]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], wire.pack([1]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], wire.pack([["w"]]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], wire.pack([["w", 1]]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], wire.pack([["w", []]]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], wire.pack([["w", "f", "g"]]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], wire.pack([{"w": 1, "f": 2}]), ""], r"drops \[worker_id, function_id\]"),
        ([1, DIGEST, "", [], NO_DROPS, "w"], "says that 'w' left, and drops other rows"),
        ([1, DIGEST, "", [], wire.pack([["w", "f"]]), "w"], "says that 'w' left, and drops other rows"),
        ([1, DIGEST, "", [], wire.pack([["w", ""], ["v", "f"]]), "w"], "says that 'w' left, and drops other rows"),
    ],
)
def test_a_malformed_delta_is_refused(value: Any, match: str) -> None:
    refused(wire.decode_delta, wire.pack(value), match)


def test_a_deltas_unknown_trailing_fields_are_ignored() -> None:
    assert wire.decode_delta(wire.pack([*msgpack.unpackb(wire.encode_delta(DELTA)), "new"])) == DELTA


@pytest.mark.parametrize(("data", "match"), [(b"\x90", "metadata is list; expected a map"), (b"\xc1", "no msgpack")])
def test_metadata_that_is_no_map_is_refused(data: bytes, match: str) -> None:
    refused(wire.unpack_map, data, match)


def test_metadata_is_a_map() -> None:
    assert wire.unpack_map(b"\x81\xa1a\x01") == {"a": 1}


# -- nothing but ProtocolError -----------------------------------------------------------------------------------------

NASTY = [
    b"\x81\x90\x01",  # a list as a map's key
    b"\x91" * 5000,  # deeper than any recursion
    b"\xdd\xff\xff\xff\xff",  # four milliards of elements announced
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91\xa1\xff",  # no UTF-8
    b"\xd7\xff" + b"\xff" * 8,  # a timestamp out of range
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\x91\xcf" + b"\xff" * 8,
]
ANY_BYTES = st.binary(max_size=80) | st.sampled_from(NASTY) | st.lists(st.sampled_from(NASTY)).map(b"".join)
GOOD = [*FRAMES, *map(bytes.fromhex, (ENTRY_HEX, WORKER_ROW_HEX, PROVIDER_ROW_HEX, DELTA_HEX))]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Something valid with some of its bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(
            ANY_BYTES if draw(st.booleans()) else st.binary(max_size=2)
        )
    return bytes(data)


@st.composite
def header_replaced(draw: st.DrawFn) -> bytes:
    """A frame whose prefix is right, so that it is the header that must be refused."""
    return raw(draw(st.sampled_from(sorted(wire.KINDS))), draw(ANY_BYTES), draw(st.binary(max_size=2)))


def survives(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError:
        pass


@given(ANY_BYTES | damaged() | header_replaced())
def test_whatever_the_bytes_nothing_but_protocol_error_is_raised(data: bytes) -> None:
    survives(wire.decode, data)
    survives(lambda frame: wire.decode(frame, b"\x01"), data)
    survives(wire.decode_on_stream, data)
    survives(wire.decode_on_stream, wire.STREAM_TOPIC + data)
    survives(wire.decode_entry, data)
    survives(wire.decode_row, data)
    survives(wire.row_key, data)
    survives(wire.decode_delta, data)
    survives(wire.unpack_map, data)


@pytest.mark.parametrize("frame", FRAMES, ids=[type(message).__name__ for message, _ in GOLDEN])
def test_a_frame_that_was_cut_off_anywhere_is_refused(frame: bytes) -> None:
    whole = len(frame) - 1 if frame[3] in (wire.KIND[wire.Call], wire.KIND[wire.Result]) else len(frame)
    for end in range(whole):
        refused(wire.decode, frame[:end], "frame of|header of")


# -- function ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function_id",
    ["f", "orders::create", "a-b_c.d::0", "::".join("abcdefgh"), "x" * 64, "::".join(["x" * 64, "y" * 64, "z" * 64])],
)
def test_a_function_id_is_up_to_eight_names(function_id: str) -> None:
    wire.check_function_id(function_id)


@pytest.mark.parametrize(
    ("function_id", "match"),
    [
        ("", "'' is not a name"),
        ("a::", "'' is not a name"),
        ("::a", "'' is not a name"),
        ("a:b", "'a:b' is not a name"),
        ("a:::b", "':b' is not a name"),
        ("a b", "'a b' is not a name"),
        ("a\n", "is not a name"),
        ("a\x00", "is not a name"),
        ("ü", "is not a name"),
        ("x" * 65, "expected 1 to 64 letters"),
        ("::".join("abcdefghi"), "has 9 names; at most 8"),
        ("::".join(["x" * 50] * 4), "function id of 206 characters; at most 200"),
    ],
)
def test_any_other_function_id_is_refused_with_what_is_expected(function_id: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        wire.check_function_id(function_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function_id", [None, 1, b"f"], ids=repr)
def test_a_function_id_is_a_str(function_id: Any) -> None:
    with pytest.raises(TypeError, match="a function id is a str such as 'orders::create', not"):
        wire.check_function_id(function_id)


def test_the_brokers_own_ids_are_reserved() -> None:
    ids = ["engine", "engine::", "engine::x", "engines::x", "x::engine", "engine.x"]
    assert [function_id for function_id in ids if wire.is_reserved(function_id)] == ["engine", "engine::", "engine::x"]


# -- headers that are known --------------------------------------------------------------------------------------------


def call_frame(number: int, function_id: str = "known::header", payload: bytes = b"\xc0") -> bytes:
    return wire.encode(wire.Call(number, function_id, "caller", 30_000, "", 0, 0, payload))[0]


def test_a_call_with_a_known_header_is_one_of_its_own() -> None:
    """Headers are read once; whoever changes a call, as the broker does, must not change the next one with it."""
    header = call_frame(1)[wire.PREFIX.size : -1]
    for number in (1, 2, 3):  # the first makes it known
        call = wire.decode(call_frame(number, payload=b"\x01"))
        assert call == wire.Call(number, "known::header", "caller", 30_000, "", 0, 0, b"\x01", header)
        assert isinstance(call, wire.Call)
        call.number, call.fence, call.remaining_ms, call.header, call.payload = 99, 7, 1, None, b"\x02"


@pytest.mark.parametrize("told", [0, 1, 5000, 65_535])
@pytest.mark.parametrize("end", [None, -1], ids=["with its payload", "where the payload is missing"])
def test_a_known_header_of_another_length_than_is_told_is_not_taken(told: int, end: int | None) -> None:
    frame = call_frame(1)
    wire.decode(frame)
    with pytest.raises(ProtocolError):
        wire.decode((frame[:4] + told.to_bytes(4, "big") + frame[8:])[:end])


@pytest.mark.parametrize("left", range(wire.PREFIX.size + 2))
def test_a_known_header_without_its_end_or_payload_is_not_taken(left: int) -> None:
    frame = call_frame(1)
    wire.decode(frame)
    with pytest.raises(ProtocolError):
        wire.decode(frame[: len(frame) - 1 - left])


def test_known_headers_are_limited() -> None:
    long = "long::" + "x" * 250
    for at in range(wire.codec._KNOWN_COUNT + 10):
        wire.decode(call_frame(1, f"known::header{at}"))
        assert len(wire.codec._known_headers) <= wire.codec._KNOWN_COUNT
    assert wire.decode(call_frame(1, long)) == wire.decode(call_frame(1, long))
    assert sum(map(len, wire.codec._known_headers)) <= wire.codec._KNOWN_COUNT * wire.codec._KNOWN_BYTES
