"""The entry points that bin/fuzz feeds: what takes bytes or messages from strangers, and what must hold afterwards."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from iii_zmq import errors, wire
from iii_zmq.cli import payloads
from iii_zmq.cli.exits import CommandError
from iii_zmq.core.broker.events import EVERYONE, Malformed
from iii_zmq.core.broker.registrations import DEPTH_MAX, read_entry
from iii_zmq.core.counters import WORKER_COUNTERS
from iii_zmq.core.worker.core import WorkerCore
from iii_zmq.core.worker.events import (
    BROKER,
    LINK,
    STREAM,
    CallEnded,
    Connected,
    Disconnected,
    Failed,
    RunCall,
    StreamConnected,
    StreamDisconnected,
    Unsent,
)
from iii_zmq.core.worker.membership import Profile
from iii_zmq.core.worker.outgoing import OPEN_CALLS_MAX
from iii_zmq.errors import ProtocolError
from iii_zmq.io.broker import Broker
from tests.core.brokerage import entry as function_entry
from tests.core.truth import Truth, offer, worker
from tests.fault.fuzz import EntryPoint, Source
from tests.model.test_any_messages import PEERS, AnyMessages
from tests.net.raw import RawPeer

NIL = wire.pack(None)
OPEN_MAX = 50  # calls that the fuzzed worker makes at most, and never ends
PATIENCE_S = 20.0

# -- bytes -------------------------------------------------------------------------------------------------------------


def _examples() -> list[wire.Message]:
    """One of each kind, as simple as it goes."""
    values: dict[Any, Any] = {
        str: "f",
        int: 1,
        bool: True,
        bytes: b"\x80",
        wire.BYTES_LIST: [b"\x80"],
        wire.STRINGS: ["f"],
    }
    messages: list[wire.Message] = []
    for kind in wire.MESSAGES:
        fields = [values.get(one, [(0, "invalid", "no")]) for one in wire.FIELDS[kind]]
        message = kind(1, *fields, *([NIL] if kind in (wire.Call, wire.Result) else []))
        for name in ("token", "digest", "functions"):
            if isinstance(getattr(message, name, None), bytes):
                setattr(message, name, bytes(16))
        if isinstance(message, wire.Failure):
            message.fate = "executed"
        messages.append(message)
    return messages


FRAMES = [wire.encode(message)[0] for message in _examples()]
ROWS = [wire.encode_row(worker("w1")), wire.encode_row(offer("w1", "f"))]
DELTA = wire.encode_delta(wire.Delta(1, bytes(16), "died", tuple(ROWS), (("w2", ""), ("w2", "f")), "w2"))


def _plain(message: wire.Message) -> wire.Message:
    """Without the header as it came, which another encoding of the same call has not."""
    if isinstance(message, wire.Call):
        message.header = None
    return message


def run_decode(data: bytes) -> None:
    """ProtocolError or a message, which is the same after another round trip."""
    second = data[1:][-(data[0] % 64) :] if data and data[0] else None
    try:
        message = _plain(wire.decode(data[1:], second))
    except ProtocolError:
        wire.read_heading(data[1:])
        return
    assert _plain(wire.decode(*wire.encode(message))) == message


def run_decode_on_stream(data: bytes) -> None:
    try:
        message = wire.decode_on_stream(data)
    except ProtocolError:
        return
    assert wire.decode_on_stream(wire.STREAM_TOPIC + wire.encode(message)[0]) == message


def run_decode_delta(data: bytes) -> None:
    try:
        delta = wire.decode_delta(data)
    except ProtocolError:
        return
    assert wire.decode_delta(wire.encode_delta(delta)) == delta


def run_decode_row(data: bytes) -> None:
    try:
        row = wire.decode_row(data)
    except ProtocolError:
        row = None
    try:
        key = wire.row_key(data)
    except ProtocolError:
        key = None
    if row is None:
        assert key is None
        return
    assert key == (row.worker_id, row.function_id if isinstance(row, wire.ProviderRow) else "")
    assert wire.decode_row(wire.encode_row(row)) == row


def run_decode_entry(data: bytes) -> None:
    """What is let into the registry can be encoded again, and its nesting is bounded."""
    taken = read_entry(data)
    try:
        decoded = wire.decode_entry(data)
    except ProtocolError:
        assert not isinstance(taken, wire.FunctionEntry)
        return
    if isinstance(taken, wire.FunctionEntry):
        assert wire.decode_entry(wire.encode_entry(taken)) == decoded or _has_nan(data)
        assert max(map(_depth, (taken.metadata, taken.request_schema, taken.response_schema))) <= DEPTH_MAX


def _depth(value: Any) -> int:
    """Of maps and arrays in one another; msgpack itself takes no more than some 1,000."""
    if isinstance(value, dict | list):
        return 1 + max([_depth(one) for one in (value.values() if isinstance(value, dict) else value)], default=0)
    return 0


def _has_nan(data: bytes) -> bool:
    """A float that does not equal itself."""
    return b"\xca" in data or b"\xcb" in data


def run_payload(data: bytes) -> None:
    """Words of a command line, and the result of the call as JSON."""
    words = [word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")[:4]]
    try:
        value = payloads.read_payload([word for word in words if word != "-"])
        packed = wire.pack(value)
    except (CommandError, TypeError, ValueError, OverflowError):
        return
    json.loads(payloads.to_text(wire.unpack(packed)), parse_constant=_no_json)


def run_result(data: bytes) -> None:
    """A result as any provider may send it, told as JSON."""
    try:
        text = payloads.to_text(wire.unpack(data))
    except (ValueError, CommandError):
        return
    json.loads(text, parse_constant=_no_json)


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


# -- messages in any order ---------------------------------------------------------------------------------------------

TEXTS = [
    "",
    "f",
    "i",
    "x",
    "g",
    "e",
    "other",
    "engine::status",
    "engine::functions::list",
    "gap",
    "digest",
    "\x00",
    "n" * 70,
]
INTS = [0, 1, 2, 3, 9, 255, 5_000, 30_000, wire.INT_MAX]


def built(source: Source, texts: list[str], tokens: list[bytes], numbers: list[int]) -> wire.Message | Malformed:
    """Any message, of values that mean something here or nothing at all; or any bytes. As it came over the network."""
    if source.byte() % 8 == 7:
        return received(source.take(16 + source.byte()))
    kind = source.choose(wire.MESSAGES)
    entries = [function_entry(name) for name in ("f", "x", "g")] + [b"", b"\xc1", *ROWS, DELTA]
    makers: dict[Any, Callable[[], Any]] = {
        str: lambda: source.choose(texts + TEXTS),
        int: lambda: source.choose(numbers + INTS),
        bool: lambda: bool(source.byte() % 2),
        bytes: lambda: source.choose([*tokens, b"\x80", b"", bytes(16), b"t|", b"\xc1"]),
        wire.BYTES_LIST: lambda: [source.choose(entries) for _ in range(source.byte() % 4)],
        wire.STRINGS: lambda: [source.choose(texts + TEXTS) for _ in range(source.byte() % 4)],
        wire.REFUSALS: lambda: [(source.byte(), source.choose(TEXTS), "no") for _ in range(source.byte() % 3)],
    }
    number = source.choose(numbers + INTS)
    fields = [makers[one]() for one in wire.FIELDS[kind]]
    message = kind(number, *fields, *([source.take(3) or NIL] if kind in (wire.Call, wire.Result) else []))
    if isinstance(message, wire.Failure):
        message.fate = source.choose(sorted(errors.FATES))
    return received(*wire.encode(message))


def received(frame: bytes, payload: wire.Payload | None = None) -> wire.Message | Malformed:
    """As a shell hands it on."""
    try:
        return wire.decode(frame, payload)
    except ProtocolError as error:
        return Malformed(str(error), wire.read_heading(frame))


def run_broker(data: bytes) -> None:
    """Peers and tables are those of tests/model/test_any_messages.py, and so are the invariants after each step."""
    machine = AnyMessages()
    try:
        machine.a_caller_and_providers_are_here()
        source = Source(data)
        while source:
            _step_of_broker(machine, source)
            machine.whatever_is_sent_can_be_read()
            machine.no_table_is_larger_than_its_limit()
            machine.whoever_is_owed_something_is_here()
    finally:
        machine.teardown()


def _step_of_broker(machine: AnyMessages, source: Source) -> None:
    core, peer = machine.core, source.choose(PEERS)
    sessions = list(core.sessions.by_address.values())
    session = core.sessions.by_address.get(peer)
    tokens = [one.token for one in sessions]
    match source.byte() % 8:
        case 0:
            machine.hello(peer, source.choose(["", "e"]))
        case 1:
            machine.live_topic(source.byte(), bool(source.byte() % 2), bool(source.byte() % 2))
        case 2:
            machine.answer(source.byte(), source.choose(["", "executed", "not_handed_over", "possibly_executed"]))
        case 3:
            machine.undelivered(source.byte(), bool(source.byte() % 4 == 0))
        case 4:
            machine.time(source.choose([0.0, 0.001, 0.11, 0.5, 2.0, 20.0]))
        case 5:
            machine.call(peer, source.choose(["f", "i", "x"]), source.byte(), NIL, "", 9000, 1 + source.byte() % 4)
        case 6:
            machine.return_(peer, source.byte())
        case _:
            own = [] if session is None else [session.worker_id]
            numbers = [] if session is None else [*session.open, *session.in_flight]
            core.receive(peer, built(source, [*own, "w1", "w2"], tokens, numbers), machine.now)
            core.receive(EVERYONE, Malformed("garbage"), machine.now)


class WorkerRun:
    """One WorkerCore, a registry that its broker may tell of, and what must hold after each step."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = WorkerCore(Profile("w", "h", 7, "tcp://broker:1", credit=4), random=lambda: 1.0, patience_s=2.0)
        self.truth = Truth()
        self.truth.change(worker("other"), offer("other", "f"))
        self.hello = 0
        self.asked: list[int] = []  # the numbers of Hello and Sync
        self.sent: list[wire.Message] = []
        self.running: list[RunCall] = []
        self.open: set[int] = set()
        self.core.connect(self.now)
        self.core.register({"g": function_entry("g")})

    def step(self, source: Source) -> None:
        core, now = self.core, self.now
        match source.byte() % 13:
            case 0:
                core.receive(LINK, source.choose([Connected(), Connected(), Disconnected(), Failed("no")]), now)
            case 1:
                core.receive(LINK, StreamConnected() if source.byte() % 2 else StreamDisconnected(), now)
            case 2:
                self.welcome(bool(source.byte() % 2))
            case 3:
                self.answer(source)
            case 4:
                self.truth.change(worker("other", n=source.byte()))
                core.receive(STREAM, source.choose([self.truth.message(), self.truth.beacon()]), now)
            case 5:
                self.now += source.choose([0.001, 0.05, 0.5, 2.0, 6.0])
                core.tick(self.now)
            case 6:
                self.call(source)
            case 7:
                source.choose([self.offer, self.withdraw, core.drain, self.overrun])()
            case 8:
                self.hand_back(source)
            case 9 if self.sent:
                core.receive(LINK, Unsent(self.sent[source.byte() % len(self.sent)]), now)
            case 10 if source.byte() % 8 == 0:
                source.choose([core.leave, core.end])()
            case 11:
                number, function_id = source.byte() % 4, source.choose(["g", "f", "nothing"])
                core.receive(BROKER, wire.Call(number, function_id, "other", 900, "", 0, 0, NIL), now)
            case _:
                numbers = [*self.asked[-2:], *sorted(self.open)[:4], *[run.number for run in self.running[-2:]]]
                message = built(source, ["other", "w9"], [bytes(16)], numbers)
                if not isinstance(message, Malformed):
                    core.receive(source.choose([BROKER, STREAM]), message, now)
        self.check()

    def welcome(self, kept: bool) -> None:
        url, limits = "tcp://*:2", (500, 2000, 64, 8, wire.PAYLOAD_BYTES_MAX)
        welcome = wire.Welcome(self.hello, "w9", b"t" * 16, self.truth.epoch, url, *limits, kept, "1")
        self.core.receive(BROKER, welcome, self.now)

    def answer(self, source: Source) -> None:
        """To the latest question, as a broker would or with parts left out."""
        if self.asked:
            number = self.asked[-1]
            parts: list[wire.Snapshot | wire.Replay] = [*self.truth.rows_parts(number, size=1)]
            parts.append(wire.Replay(number, self.truth.epoch, len(parts), True, []))
            for part in parts:
                if source.byte() % 8:
                    self.core.receive(BROKER, part, self.now)

    def call(self, source: Source) -> None:
        if len(self.open) < OPEN_MAX:
            flags = wire.NO_ANSWER * (source.byte() % 2)
            try:
                number = self.core.call("f", NIL, source.choose([0.01, 1.0, 30.0]), self.now, "", flags)
            except (errors.Busy, errors.Closed):
                return
            if not flags:
                self.open.add(number)

    def offer(self) -> None:
        self.core.register({"f": function_entry("f"), "g": function_entry("g", description="new")})

    def withdraw(self) -> None:
        self.core.offers.unregister(["f", "nothing"])

    def overrun(self) -> None:
        self.core.overrun(self.now)

    def hand_back(self, source: Source) -> None:
        if self.running:
            run = self.running.pop(source.byte() % len(self.running))
            incoming = self.core.incoming
            source.choose([lambda: incoming.finish(run, NIL), lambda: incoming.decline(run), lambda: None])()

    def check(self) -> None:
        """What it sends can be read, no call ends twice, and nothing is counted that is not told in the docs."""
        core = self.core
        core.tick(self.now)
        for to, message in core.take_outbox():
            if to == BROKER:
                assert not isinstance(wire.decode(*wire.encode(message)), Malformed)  # type: ignore[arg-type]
                self.sent = [*self.sent[-20:], message]  # type: ignore[list-item]
                if isinstance(message, wire.Hello | wire.Sync):
                    self.asked = [*self.asked[-5:], message.number]
                    self.hello = message.number if isinstance(message, wire.Hello) else self.hello
        for event in core.take_events():
            if isinstance(event, RunCall):
                others = [run for run in self.running if not run.cancelled]
                assert event.number not in [run.number for run in others], f"call {event.number} runs twice"
                self.running.append(event)
            elif isinstance(event, CallEnded) and event.number in self.open:
                self.open.remove(event.number)
            else:
                assert not isinstance(event, CallEnded), f"call {event.number} ended, and was not open"
        assert len(core.outgoing) <= max(OPEN_MAX, OPEN_CALLS_MAX)
        assert set(core.counters) | set(core.replica.counters) <= set(WORKER_COUNTERS)

    def finish(self) -> None:
        """Whatever came before: in the end every call has had its outcome."""
        self.core.end()
        self.check()
        assert self.open == set()


def run_worker(data: bytes) -> None:
    run, source = WorkerRun(), Source(data)
    while source:
        run.step(source)
    run.finish()


# -- the broker's shell ------------------------------------------------------------------------------------------------


class Shell:
    """A real broker in a thread, with a peer that sends the frames and one that asks whether it still serves."""

    def __init__(self) -> None:
        logging.getLogger("iii_zmq.broker").setLevel(logging.CRITICAL)
        self.broker = Broker("tcp://127.0.0.1:0")
        self.broker.bind()
        self.thread = threading.Thread(target=self.broker.run, daemon=True)
        self.thread.start()
        self.peer = RawPeer(self.broker.url)
        self.witness = RawPeer(self.broker.url).join("witness", observer=True)

    def run(self, data: bytes) -> None:
        """A first byte below 128 makes one frame, another as many as it says."""
        source = Source(data)
        while source:
            count = max(1, source.byte() - 127)
            self.peer.send_frames(*[source.take(source.byte()) for _ in range(min(count, 8))])
        while self.peer.dealer.poll(0):
            self.peer.dealer.recv_multipart()
        number = self.witness.call("engine::ping")
        assert self.witness.read(wire.Result, within_s=PATIENCE_S).number == number
        assert self.thread.is_alive()

    def close(self) -> None:
        self.peer.close()
        self.witness.close()
        self.broker.stop()
        self.thread.join(PATIENCE_S)


def shell() -> EntryPoint:
    one = Shell()
    return EntryPoint("shell", one.run, [bytes([0, len(frame)]) + frame for frame in FRAMES], one.close)


def _plain_entry(name: str, run: Callable[[bytes], None], seeds: list[bytes]) -> Callable[[], EntryPoint]:
    return lambda: EntryPoint(name, run, seeds)


DEEP = function_entry("f", metadata={"a": wire.unpack(b"\x91" * 90 + b"\x01")})
PROGRAMS = [bytes([number, step, *range(step, step + 12)]) for number in range(3) for step in range(13)]
JOINING = bytes([0, 0, 2, 1, 3, 1, 1, 1, 1])  # Connected, Welcome, the answer: the worker is in
ENTRIES: dict[str, Callable[[], EntryPoint]] = {
    "decode": _plain_entry("decode", run_decode, [b"\0" + frame for frame in FRAMES]),
    "decode_on_stream": _plain_entry("decode_on_stream", run_decode_on_stream, [b"s|" + frame for frame in FRAMES]),
    "decode_delta": _plain_entry("decode_delta", run_decode_delta, [DELTA]),
    "decode_row": _plain_entry("decode_row", run_decode_row, ROWS),
    "decode_entry": _plain_entry(
        "decode_entry", run_decode_entry, [function_entry("f", metadata={"a": [1]}, description="d"), DEEP]
    ),
    "payload": _plain_entry(
        "payload", run_payload, [b'{"a": [1, 2.5, null]}', b"[" * 450 + b"]" * 450, b"a=1\0b=x", b'{"$bytes": "AAA="}']
    ),
    "result": _plain_entry(
        "result", run_result, [wire.pack({"a": [1, b"x", 2.5]}), b"\xd6\xff\0\0\0\0", b"\x91" * 450 + b"\xc0"]
    ),
    "broker": _plain_entry("broker", run_broker, PROGRAMS),
    "worker": _plain_entry("worker", run_worker, [JOINING, *[JOINING + one for one in PROGRAMS]]),
    "shell": shell,
}
