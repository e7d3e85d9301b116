"""Checks what workers say of themselves and their functions, and handles Register and Unregister.

Each function of a batch is checked; the batch is applied as one change and acknowledged with its seq.

The order: the registry changes, the Ack goes into the outbox (behind the deltas of this turn), then calls that wait for
these functions are reviewed.
"""

from __future__ import annotations

from typing import Any

from ... import errors, wire
from ...errors import ProtocolError
from ...wire import FunctionEntry
from ..counters import Counters
from .calls import Calls
from .events import Outbox
from .registry import Registry
from .session import Session

FUNCTIONS_PER_WORKER_MAX = 150_000  # the list of their ids still fits into one payload
CAPABILITIES_MAX = 64  # capabilities, and characters in each: they are kept as long as the session
EPOCH_CHARS_MAX = 64
DEPTH_MAX = 100  # maps and arrays inside each other; msgpack unpacks 1,023 levels, and lists put some around these

_NO_CONTAINERS = bytes([byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF)])

Refusal = tuple[str, str]
"""(code, text)."""


class Registrations:
    """Handles what workers register and unregister."""

    def __init__(self, registry: Registry, calls: Calls, outbox: Outbox, counters: Counters) -> None:
        self._registry = registry
        self._calls = calls
        self._outbox = outbox
        self._counters = counters

    def on_register(self, session: Session, register: wire.Register, now: float) -> None:
        """Registers the valid functions; refuses the others by name."""
        refusal = self._refusal(session, len(register.entries))
        if refusal is not None:
            self.refuse(session, register, *refusal)
            return
        refusals: list[wire.Refusal] = []
        batch: dict[str, tuple[int, FunctionEntry, bytes]] = {}  # of two entries with the same id the later one counts
        for index, data in enumerate(register.entries):
            entry = read_entry(data)
            if isinstance(entry, FunctionEntry):
                batch[entry.id] = (index, entry, data)
            else:
                refusals.append((index, *entry))
        refusals += self._registry.register(session.worker_id, batch.values())
        self._counters["registered"] += len(register.entries) - len(refusals)
        self._acknowledge(session, register.number, refusals)
        for function_id in batch:
            self._calls.review(function_id, now)

    def on_unregister(self, session: Session, unregister: wire.Unregister, now: float) -> None:
        """Unregisters the functions that are offered; refuses the others by name."""
        refusal = self._refusal(session, 0, len(unregister.function_ids))
        if refusal is not None:
            self.refuse(session, unregister, *refusal)
            return
        refusals = self._registry.unregister(session.worker_id, unregister.function_ids)
        self._counters["unregistered"] += len(unregister.function_ids) - len(refusals)
        self._acknowledge(session, unregister.number, refusals)
        for function_id in unregister.function_ids:
            session.waiting.pop(function_id, None)
        for function_id in unregister.function_ids:
            self._calls.review(function_id, now)

    def refuse(self, session: Session, message: wire.Message, code: str, text: str) -> None:
        """Refuses the whole message."""
        self._counters["refused"] += 1
        self._outbox.append((session.address, wire.Refuse(message.number, wire.KIND[type(message)], code, text)))

    def _refusal(self, session: Session, new: int, going: int = 0) -> Refusal | None:
        offered = self._registry.offered.get(session.worker_id)
        if not session.joined or offered is None:
            return errors.NOT_JOINED, "not joined: before the presence was heard, after Bye, or an observer"
        if max(new, going) > wire.BATCH_MAX:
            return errors.TOO_LARGE, f"batch of {max(new, going)} functions; at most {wire.BATCH_MAX}"
        if len(offered) + new > FUNCTIONS_PER_WORKER_MAX:
            return errors.LIMIT, f"more than {FUNCTIONS_PER_WORKER_MAX} functions in one worker"
        return None

    def _acknowledge(self, session: Session, number: int, refusals: list[wire.Refusal]) -> None:
        self._counters["refused"] += len(refusals)
        ack = wire.Ack(number, self._registry.epoch, self._registry.seq, sorted(refusals))
        self._outbox.append((session.address, ack))


# -- what may be let in: these look at bytes, not at tables ------------------------------------------------------------


def hello_refusal(hello: wire.Hello) -> tuple[str, str] | None:
    """(code, text) for a Hello that must be refused whoever sends it, else None."""
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
    """The entry, or (code, text) if it is refused."""
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
    """True if one of `values`, which were unpacked from `data`, is nested deeper than DEPTH_MAX.

    One such value would make every list that contains it unreadable for everybody. There can't be more levels than
    bytes that begin a map or an array: that check settles nearly all cases at the speed of C.
    """
    if len(data.translate(None, _NO_CONTAINERS)) <= DEPTH_MAX:
        return False
    level: list[Any] = [values]
    for _ in range(DEPTH_MAX + 1):
        level = [inner for outer in level for inner in (outer.values() if type(outer) is dict else outer)]
        level = [inner for inner in level if type(inner) is dict or type(inner) is list]
    return bool(level)
