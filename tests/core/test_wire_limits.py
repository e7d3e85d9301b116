"""Where the wire's limits stand: the last value that is taken, and the first that is not.

And what any one wrong field does to a message that is right otherwise: it is refused, or else comes back as it was.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_zmq import wire
from iii_zmq.errors import FATES, ProtocolError


def framed(kind: int, header: list[Any], payload: bytes = b"", *, number: int = 1, magic: bytes = b"i3") -> bytes:
    packed = wire.pack(header)
    return wire.PREFIX.pack(magic, wire.VERSION, kind, len(packed), number) + packed + payload


def entry(**fields: Any) -> bytes:
    return wire.encode_entry(wire.FunctionEntry("f", **fields))


# -- the last that is taken, the first that is not ---------------------------------------------------------------------


def test_a_function_id_has_at_most_200_characters() -> None:
    longest = "::".join(["x" * 64, "y" * 64, "z" * 64, "a" * 2])
    assert len(longest) == 200
    wire.check_function_id(longest)
    with pytest.raises(ValueError, match="function id of 201 characters; at most 200"):
        wire.check_function_id(longest + "a")


def test_an_int_is_at_most_2_to_the_63_less_1() -> None:
    assert wire.decode(framed(wire.KIND[wire.Received], [2**63 - 1])) == wire.Received(1, 2**63 - 1)
    with pytest.raises(ProtocolError):
        wire.decode(framed(wire.KIND[wire.Received], [2**63]))


# A stranger's megabyte of empty arrays held the broker's loop for 180 ms.


@pytest.mark.parametrize("inner", [b"\x80", b"\x90", b"\x81\x01\x01"])
def test_a_large_header_has_at_most_4096_containers(inner: bytes) -> None:
    filled = wire.pack(bytes(wire.LARGE_BYTES))
    for count, is_taken in ((wire.CONTAINERS_MAX - 3, True), (wire.CONTAINERS_MAX - 2, False)):  # beside three arrays
        header = b"\x92\x91" + filled + b"\xdc" + count.to_bytes(2, "big") + inner * count
        frame = wire.PREFIX.pack(b"i3", wire.VERSION, wire.KIND[wire.Register], len(header), 1) + header
        if is_taken:
            assert wire.decode(frame) == wire.Register(1, [bytes(wire.LARGE_BYTES)])
        else:
            with pytest.raises(ProtocolError, match="more than 4096 containers"):
                wire.decode(frame)


def test_a_large_header_has_no_ext_types_and_a_small_one_ignores_what_it_does_not_know() -> None:
    stamp = b"\xd6\xff" + bytes(4)
    for size, is_taken in ((0, True), (wire.LARGE_BYTES, False)):
        header = b"\x92\x91" + wire.pack(bytes(size)) + stamp
        frame = wire.PREFIX.pack(b"i3", wire.VERSION, wire.KIND[wire.Register], len(header), 1) + header
        if is_taken:
            assert wire.decode(frame) == wire.Register(1, [b""])
        else:
            with pytest.raises(ProtocolError, match="no msgpack array: ValueError"):
                wire.decode(frame)


def test_an_ack_that_refuses_a_whole_batch_is_taken() -> None:
    ack = wire.Ack(1, "e", 2, [(index, "invalid", "x" * 100) for index in range(wire.BATCH_MAX)])
    assert wire.decode(wire.encode(ack)[0]) == ack


def test_an_entrys_flags_are_an_int_like_any_other() -> None:
    assert wire.decode_entry(entry(flags=2**63 - 1)).flags == 2**63 - 1
    with pytest.raises(ProtocolError):
        wire.decode_entry(entry(flags=2**63))


def test_a_deltas_seq_is_an_int_above_zero() -> None:
    last = wire.Delta(2**63 - 1, bytes(16), "", (), ())
    assert wire.decode_delta(wire.encode_delta(last)) == last
    with pytest.raises(ProtocolError):
        wire.decode_delta(wire.pack([2**63, bytes(16), "", [], []]))


@pytest.mark.parametrize("number", [0, 2**64 - 1])
def test_a_number_takes_all_its_64_bits(number: int) -> None:
    assert wire.decode(framed(wire.KIND[wire.Bye], [], number=number)) == wire.Bye(number)


def test_a_refusal_has_three_parts_and_no_more() -> None:
    with pytest.raises(ProtocolError):
        wire.decode(framed(wire.KIND[wire.Ack], ["e", 1, [[0, "invalid", "no", "new"]]]))


def test_another_magic_is_refused_in_a_frame_that_is_right_otherwise() -> None:
    assert wire.decode(framed(wire.KIND[wire.Bye], []))
    with pytest.raises(ProtocolError, match="magic b'i4' version 1"):
        wire.decode(framed(wire.KIND[wire.Bye], [], magic=b"i4"))


@pytest.mark.parametrize("attached", [False, True], ids=["inline", "as its own frame"])
def test_a_payload_has_at_most_its_limit_wherever_it_travels(attached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.codec, "PAYLOAD_BYTES_MAX", 100)

    def decode(payload: bytes) -> wire.Message:
        if attached:
            return wire.decode(framed(wire.KIND[wire.Result], []), payload)
        return wire.decode(framed(wire.KIND[wire.Result], [], payload))

    assert decode(bytes(100)) == wire.Result(1, bytes(100))
    with pytest.raises(ProtocolError, match="payload of 101 bytes; at most 100"):
        decode(bytes(101))


def test_a_header_has_at_most_what_its_reader_allows() -> None:
    frame = framed(wire.KIND[wire.Closing], ["e" * 20_000])
    size = len(frame) - wire.PREFIX.size
    assert wire.decode(frame, header_bytes_max=size) == wire.Closing(1, "e" * 20_000)
    with pytest.raises(ProtocolError, match=f"header of {size} bytes"):
        wire.decode(frame, header_bytes_max=size - 1)


# -- one wrong field ---------------------------------------------------------------------------------------------------

RIGHT: dict[Any, Any] = {
    int: 3, str: "e", bool: True, bytes: bytes(16), wire.BYTES_LIST: [b"x"], wire.STRINGS: ["x"],
    wire.REFUSALS: [[1, "invalid", "no"]],
}  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=70)
    | st.binary(max_size=20) | st.sampled_from(sorted(FATES))
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A frame of any kind with one field replaced, and sometimes fields too few or too many."""
    kind = draw(st.sampled_from(wire.MESSAGES))
    header = [RIGHT[expected] for expected in wire.FIELDS[kind]]
    if header:
        header[draw(st.integers(0, len(header) - 1))] = draw(VALUES)
    header = draw(st.sampled_from([header, header, header, header[:-1], [*header, "new"]]))
    return framed(wire.KIND[kind], header, draw(st.sampled_from([b"", b"\xc0"])))


def attempt(frame: bytes, payload: wire.Buffer | None) -> wire.Message | None:
    try:
        return wire.decode(frame, payload)
    except ProtocolError:
        return None


@given(nearly_right(), st.sampled_from([None, b"", b"\xc0", memoryview(b""), memoryview(b"\xc0")]))
def test_with_one_field_wrong_a_message_is_refused_or_comes_back_as_it_was(
    frame: bytes, payload: wire.Buffer | None
) -> None:
    message = attempt(frame, payload)
    if message is not None:
        assert wire.decode(*wire.encode(message)) == message


@given(st.lists(VALUES, max_size=8).map(wire.pack))
def test_a_row_or_delta_of_any_values_is_refused_or_comes_back_as_it_was(data: bytes) -> None:
    for decode, encode in ((wire.decode_row, wire.encode_row), (wire.decode_delta, wire.encode_delta)):
        try:
            value = decode(data)
        except ProtocolError:
            continue
        assert decode(encode(value)) == value


@given(st.binary(max_size=60) | VALUES.map(wire.pack))
def test_a_payload_of_any_bytes_is_a_value_or_a_value_error(data: bytes) -> None:
    for payload in (data, memoryview(data)):
        try:
            wire.unpack(payload)
        except ValueError:
            pass


@given(st.binary(max_size=60) | VALUES.map(wire.pack), st.integers(0, 60))
def test_a_payload_in_two_parts_is_what_it_is_in_one(data: bytes, at: int) -> None:
    outcomes = []
    for payload in (data, wire.Split(data[:at], data[at:])):
        try:
            outcomes.append(repr(wire.unpack(payload)))
        except ValueError as error:
            outcomes.append(f"payload of {len(data)} bytes" * str(error).startswith(f"payload of {len(data)} bytes"))
    assert outcomes[0] == outcomes[1]
