"""Malformed messages: counts and drops them, and answers a sender that uses this protocol and waits for an answer.

    no prefix of this protocol                  random bytes, another protocol: no answer
    another version                             Refuse `version`, in the sender's own version: it reads no other
    an unknown kind                             Refuse `unknown_kind`
    Hello, Register, Unregister, Sync or Drain  Refuse `invalid`, with what is wrong
    Call                                        Failure `invalid`, `not_handed_over`
    anything else                               nobody waits for an answer

Invariant: a Refuse is never answered, so two programs can't keep each other busy with refusals. A connection gets at
most REFUSALS_MAX of them, so that nothing piles up for one that sends garbage and never reads.
"""

from __future__ import annotations

from ... import errors, wire
from ..counters import Counters
from .events import Address, Malformed, Outbox
from .sessions import Sessions

REFUSALS_MAX = 16  # refusals to one connection; after that it gets no more
REFUSED_PEERS_MAX = 10_000  # connections remembered for that, about 1.5 MB; the oldest is forgotten

_WAIT_FOR_ANSWER = frozenset(
    wire.KIND[one] for one in (wire.Hello, wire.Register, wire.Unregister, wire.Sync, wire.Drain)
)


class Refusing:
    """Answers to messages that could not be decoded."""

    def __init__(self, sessions: Sessions, outbox: Outbox, counters: Counters) -> None:
        self._sessions = sessions
        self._outbox = outbox
        self._counters = counters
        self._told: dict[Address, int] = {}  # refusals by connection, at most REFUSED_PEERS_MAX

    def on_malformed(self, address: Address, malformed: Malformed) -> None:
        """Counts the message, and answers it if its sender waits for an answer."""
        self._counters["malformed"] += 1
        heading = malformed.heading
        answer = None if heading is None else _answer(heading, malformed.text[: wire.TEXT_CHARS_MAX])
        if answer is not None and not self._is_open_call(address, answer) and self._may_tell(address):
            self._counters["refused"] += 1
            self._outbox.append((address, answer))

    def _is_open_call(self, address: Address, answer: wire.Refuse | wire.Failure) -> bool:
        """True if a call was accepted under the same number: its one outcome will come."""
        session = self._sessions.by_address.get(address)
        return isinstance(answer, wire.Failure) and session is not None and answer.number in session.open

    def _may_tell(self, address: Address) -> bool:
        told = self._told.get(address, 0)
        if told >= REFUSALS_MAX:
            return False
        if not told and len(self._told) >= REFUSED_PEERS_MAX:
            del self._told[next(iter(self._told))]
        self._told[address] = told + 1
        return True


def _answer(heading: wire.Heading, text: str) -> wire.Refuse | wire.Failure | None:
    version, kind, number = heading.version, heading.kind, heading.number
    if kind == wire.KIND[wire.Refuse]:
        return None
    if version != wire.VERSION:
        text = f"this broker speaks version {wire.VERSION} of the protocol, not version {version}"
        return wire.Refuse(number, kind, errors.VERSION, text, version)
    if kind not in wire.KINDS:
        return wire.Refuse(number, kind, errors.UNKNOWN_KIND, f"this broker knows no message of kind {kind}")
    if kind == wire.KIND[wire.Call]:
        return wire.Failure(number, errors.INVALID, "not_handed_over", "", text)
    return wire.Refuse(number, kind, errors.INVALID, text) if kind in _WAIT_FOR_ANSWER else None
