"""What happened, in order and readable: the last events are shown when a check fails."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass
from typing import Any

from iii_zmq import wire
from iii_zmq.errors import ProtocolError

from .clock import Clock

LINES_KEPT = 400


class Violation(AssertionError):
    """A promise was broken; the text says which and how."""


class Trace:
    """The latest events. Messages are kept as bytes, and read only when somebody looks."""

    def __init__(self, clock: Clock, *, is_verbose: bool = False) -> None:
        self._clock = clock
        self._began = clock.now
        self._is_verbose = is_verbose
        self._events: deque[tuple[float, str, str, bytes | None]] = deque(maxlen=LINES_KEPT)

    def note(self, who: str, what: str, frame: bytes | None = None) -> None:
        """`frame` is a message on its way, without routing id or topic."""
        event = (self._clock.now - self._began, who, what, frame)
        self._events.append(event)
        if self._is_verbose:
            print(_line(*event))

    def lines(self) -> list[str]:
        return [_line(*event) for event in self._events]


def _line(at: float, who: str, what: str, frame: bytes | None) -> str:
    return f"{at:10.4f} {who:>8} {what}" + ("" if frame is None else f" {describe(frame)}")


def describe(frame: bytes) -> str:
    """One message in one line."""
    try:
        message = wire.decode(frame, header_bytes_max=wire.STREAM_BYTES_MAX)
    except ProtocolError:  # its payload travels in a second frame
        message = wire.decode(frame, wire.pack("large"), header_bytes_max=wire.STREAM_BYTES_MAX)
    words = [f"{type(message).__name__}({message.number})"]
    for name in (field.name for field in fields(message)):
        if name not in ("number", "capabilities", "metadata", "header", "version", "stream_url", "host", "pid"):
            words.append(f"{name}={_short(name, getattr(message, name))}")
    return " ".join(words)


def describe_value(value: object) -> str:
    """An order, a happening or an event in one line."""
    if not is_dataclass(value):
        return repr(value)[:120]
    words = [type(value).__name__]
    words += [f"{field.name}={_short(field.name, getattr(value, field.name))}" for field in fields(value)]
    return " ".join(words)


def _short(name: str, value: Any) -> str:
    if name == "deltas":
        return "[" + ", ".join(_delta(wire.decode_delta(data)) for data in value) + "]"
    if name == "entries":
        return "[" + ", ".join(wire.decode_entry(data).id for data in value) + "]"
    if name == "rows":
        return f"{len(value)} rows"
    if name in ("payload", "outcome") and isinstance(value, (bytes, memoryview)):
        return repr(wire.unpack(value))[:60]
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()[:8] or "-"
    if name == "changes":
        return "[" + ", ".join(str(change) for change in value[:6]) + "]"
    return str(value)[:100]


def _delta(delta: wire.Delta) -> str:
    puts = []
    for data in delta.puts:
        row = wire.decode_row(data)
        if isinstance(row, wire.ProviderRow):
            puts.append(f"+{row.worker_id}/{row.function_id}{'' if row.active else '(stand-by)'}")
        else:
            puts.append(f"+{row.worker_id}({row.state})")
    drops = [f"-{worker_id}/{function_id}" for worker_id, function_id in delta.drops]
    return f"{delta.seq}:{delta.reason}{' '.join(puts + drops)}"
