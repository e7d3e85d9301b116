"""The functions that this worker offers: as the user wants them, as the broker holds them, and who awaits the rest.

    `wanted`   function id -> packed entry: what the user registered, the single truth
    `_held`    the same, as the broker acknowledged it in this line of sessions
    tickets    one for each register or unregister that somebody waits for

A ticket is settled when the broker has answered for each of its functions *and* the replica shows the result, so that a
worker sees its own registration. When a session is lost, `_held` is lost with it unless the broker says `kept`. Then
the difference between `wanted` and `_held` is sent again, and the tickets wait for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ... import errors, wire
from .changes import Position
from .events import BROKER, Events, NotOffered, Outbox, Settled

FRAME_BYTES_MAX = 900_000  # bytes of entries in one Register: with its framing below CONTROL_BYTES_MAX

Refusal = tuple[str, str, str]
"""(function id, code, text)."""

_Items = list[tuple[str, "bytes | None"]]
"""(function id, its entry, or None to unregister it), in the order of one Register or Unregister."""


@dataclass(slots=True)
class _Ticket:
    items: dict[str, bytes | None]  # everything requested
    open: dict[str, bytes | None]  # the part that the broker has not answered yet
    refusals: list[Refusal] = field(default_factory=list)
    epoch: str = ""
    seq: int = 0


class Offers:
    """Registrations, sent in batches and acknowledged by name."""

    def __init__(self, outbox: Outbox, events: Events, new_number: Callable[[], int]) -> None:
        self._outbox = outbox
        self._events = events
        self._new_number = new_number
        self.wanted: dict[str, bytes] = {}
        self._held: dict[str, bytes] = {}
        self._batches: dict[int, _Items] = {}  # on their way
        self._tickets: dict[int, _Ticket] = {}
        self._open = False
        self._batch_max = wire.BATCH_MAX
        self._acknowledged = Position("", 0)  # the registry's position in the latest Ack

    def is_settled(self, position: Position) -> bool:
        """True if nothing is on its way, nobody waits, and a replica at `position` shows the latest Ack."""
        if self._batches or self._tickets:
            return False
        return position.epoch != self._acknowledged.epoch or position.seq >= self._acknowledged.seq

    @property
    def waiting(self) -> bool:
        """True if somebody waits for a ticket."""
        return bool(self._tickets)

    def digest(self) -> bytes:
        """For a Hello: the digest of our functions that the broker should hold."""
        return wire.functions_digest(list(self._held.values()))

    # -- from the facade -----------------------------------------------------------------------------------------------

    def register(self, entries: Mapping[str, bytes]) -> int:
        """Starts a registration; returns the number of its ticket, which its Settled carries."""
        self.wanted.update(entries)
        return self._change(dict(entries))

    def unregister(self, function_ids: Iterable[str]) -> int:
        """Starts an unregistration; returns the number of its ticket, which its Settled carries."""
        gone: dict[str, bytes | None] = dict.fromkeys(function_ids)
        for function_id in gone:
            self.wanted.pop(function_id, None)
        return self._change(gone)

    def has(self, number: int) -> bool:
        """True until the ticket's Settled is told."""
        return number in self._tickets

    def abandon(self, number: int) -> None:
        """Nobody waits for this ticket any more: no Settled comes. What it requested stays wanted."""
        self._tickets.pop(number, None)

    # -- from the core -------------------------------------------------------------------------------------------------

    def opened(self, kept: bool, batch_max: int) -> None:
        """The broker takes registrations from now on. `kept`: it still holds everything that it acknowledged before."""
        self._open = True
        self._batch_max = max(1, batch_max)
        if not kept:
            self._held = {}
        for ticket in self._tickets.values():
            refused = {name for name, _, _ in ticket.refusals}
            ticket.open = {name: entry for name, entry in ticket.items.items() if name not in refused}
            ticket.epoch, ticket.seq = "", 0  # its old position may be another broker's: being level is enough
        self._send([(name, entry) for name, entry in self.wanted.items() if self._held.get(name) != entry])
        self._send([(name, None) for name in self._held if name not in self.wanted])
        for ticket in self._tickets.values():  # what the broker holds as it is wanted was not sent again
            for name in [name for name in ticket.open if self._held.get(name) == self.wanted.get(name)]:
                del ticket.open[name]

    def paused(self) -> None:
        """The session is gone: a batch on its way may or may not have arrived."""
        self._open = False
        self._batches.clear()

    def on_ack(self, ack: wire.Ack) -> bool:
        """Takes an Ack; False if it does not answer a batch."""
        batch = self._batches.pop(ack.number, None)
        if batch is None:
            return False
        self._acknowledged = Position(ack.epoch, ack.seq)
        refused = {index: (code, text) for index, code, text in ack.refusals}
        self._take_answer(ack.number, batch, refused, (ack.epoch, ack.seq))
        return True

    def on_refuse(self, refuse: wire.Refuse) -> bool:
        """Takes a Refuse of a whole batch; False if it does not refuse one."""
        batch = self._batches.pop(refuse.number, None)
        if batch is None:
            return False
        refused = dict.fromkeys(range(len(batch)), (refuse.code, refuse.text))
        self._take_answer(refuse.number, batch, refused, ("", 0))
        return True

    def settle(self, position: Position, level: bool) -> None:
        """Tells the tickets that are answered and, in a replica at `position`, visible."""
        for number, ticket in list(self._tickets.items()):
            if ticket.open or not level:
                continue
            if not ticket.epoch or (ticket.epoch == position.epoch and ticket.seq <= position.seq):
                del self._tickets[number]
                self._events.append(Settled(number, ticket.refusals))

    # -- private -------------------------------------------------------------------------------------------------------

    def _change(self, items: dict[str, bytes | None]) -> int:
        number = self._new_number()
        self._tickets[number] = _Ticket(items, dict(items))
        if self._open:
            self._send(list(items.items()))
        return number

    def _send(self, items: _Items) -> None:
        for batch in _batches(items, self._batch_max):
            number = self._new_number()
            self._batches[number] = batch
            entries = [entry for _, entry in batch if entry is not None]
            names = [name for name, _ in batch]
            message = wire.Register(number, entries) if entries else wire.Unregister(number, names)
            self._outbox.append((BROKER, message))

    # Tickets and batches share one sequence of numbers: a batch answers only tickets that are older than itself. The
    # entries can't tell that: in "unregister, register, unregister" the first answer looks like the third one.

    def _take_answer(
        self, number: int, batch: _Items, refused: dict[int, tuple[str, str]], at: tuple[str, int]
    ) -> None:
        homeless: list[Refusal] = []
        for index, (name, entry) in enumerate(batch):
            refusal = None if entry is None else refused.get(index)
            if refusal is not None:
                if not self._refuse_tickets(number, name, entry, (name, *refusal)):
                    homeless.append((name, *refusal))
                continue
            if entry is None:
                self._held.pop(name, None)
            else:
                self._held[name] = entry
            # An answer for the version that is wanted now also ends the wait for earlier versions.
            for ticket in self._tickets_before(number, name, entry):
                del ticket.open[name]
                ticket.epoch, ticket.seq = at
        if homeless:
            self._events.append(NotOffered(homeless))

    def _refuse_tickets(self, number: int, name: str, entry: bytes | None, refusal: Refusal) -> bool:
        """True if a ticket waits for this one: it is then no longer wanted. Else the next session tries again."""
        is_latest = self._is_latest(number, name, entry)
        waiting = self._tickets_before(number, name, entry)
        for ticket in waiting:
            del ticket.open[name]
            ticket.refusals.append(refusal)
        if waiting and is_latest:
            held = self._held.get(name)
            if held is None:
                del self.wanted[name]
            else:
                self.wanted[name] = held
        return bool(waiting)

    def _tickets_before(self, number: int, name: str, entry: bytes | None) -> list[_Ticket]:
        """The tickets for which the answer to batch `number` settles this function."""
        is_latest = self._is_latest(number, name, entry)
        return [
            ticket
            for asked, ticket in self._tickets.items()
            if asked < number and name in ticket.open and (is_latest or ticket.open[name] == entry)
        ]

    def _is_latest(self, number: int, name: str, entry: bytes | None) -> bool:
        """True if nothing newer was requested for this function since the batch was sent."""
        later = any(asked > number and name in ticket.open for asked, ticket in self._tickets.items())
        return not later and self.wanted.get(name) == entry


def _batches(items: _Items, batch_max: int) -> Iterable[_Items]:
    """Runs of at most `batch_max` items and FRAME_BYTES_MAX bytes."""
    start = size = 0
    for end, (name, entry) in enumerate(items):
        item_bytes = len(name) if entry is None else len(entry)
        if end > start and (end - start >= batch_max or size + item_bytes > FRAME_BYTES_MAX):
            yield items[start:end]
            start, size = end, 0
        size += item_bytes
    if items:
        yield items[start:]


def first_refusal(refusals: list[Refusal], asked: int) -> errors.Refused:
    """The exception to raise: the first refusal, and how many functions were accepted."""
    name, code, text = refusals[0]
    accepted = asked - len(refusals)
    rest = f"; {accepted} of {asked} functions were accepted" if accepted else ""
    return errors.Refused(f"the broker refused {name}: {text} ({code}){rest}", code)
