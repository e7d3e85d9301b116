"""Register and Unregister: checked function by function, applied as one change, acknowledged with its seq.

Order: the registry changes, the Ack is put out (behind the deltas of this turn), then what waits for the functions is
looked at again.
"""

from __future__ import annotations

from ... import errors, wire
from ...wire import FunctionEntry
from ..counters import Counters
from .admission import read_entry
from .calls import Calls
from .registry import Registry
from .session import Outbox, Session

FUNCTIONS_PER_WORKER_MAX = 150_000  # so that the list of their ids still fits into one payload

Refusal = tuple[str, str]
"""(code, text)."""


class Registrations:
    """What workers say of their functions."""

    def __init__(self, registry: Registry, calls: Calls, outbox: Outbox, counters: Counters) -> None:
        self._registry = registry
        self._calls = calls
        self._outbox = outbox
        self._counters = counters

    def on_register(self, session: Session, register: wire.Register, now: float) -> None:
        """Offers what is fit to be offered; the rest is refused by name."""
        refusal = self._refusal(session, len(register.entries))
        if refusal is not None:
            self.refuse(session, register, *refusal)
            return
        refusals: list[wire.Refusal] = []
        batch: dict[str, tuple[int, FunctionEntry, bytes]] = {}  # of two entries with one id the later one counts
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
        """Withdraws what is offered; the rest is refused by name."""
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
        """The message is not done at all."""
        self._counters["refused"] += 1
        self._outbox.append((session.peer, wire.Refuse(message.number, wire.KIND[type(message)], code, text)))

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
        self._outbox.append((session.peer, ack))
