"""Keeping the replica level with the broker: one answer awaited at a time, and a Sync whenever something is missing.

    Hello or Sync(n) --> Snapshot / Replay parts with number n, each acknowledged by Received
                     --> or Invite(n): subscribe, and hear the parts on the stream
    the last Replay part ends the answer; no part for `LATE_S` means asking again

Invariant: while an answer is awaited and the replica has not given it up, no further Sync is sent unless it is late.
What a part means is the replica's business; who asked for it, and whether anybody did, is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ... import wire
from ..counters import Counters
from .changes import Change
from .events import BROKER, LINK, Outbox, Subscribe, Unsubscribe
from .replica import Replica

AGAIN_FIRST_S = 0.02  # between two Syncs in a row: when answers do not help, ask less and less often
AGAIN_MAX_S = 2.0
LATE_S = 2.0  # without progress on an answer; far above what a busy broker takes between two parts


class Following:
    """The replica's feed. `due` is when an awaited answer is late, or a Sync may go out."""

    def __init__(self, replica: Replica, outbox: Outbox, counters: Counters, new_number: Callable[[], int]) -> None:
        self.replica = replica
        self._outbox = outbox
        self._counters = counters
        self._new_number = new_number
        self.awaited: int | None = None
        self.parts = 0  # that were awaited and came, ever: whether there is progress
        self._broadcast: int | None = None  # the number that the parts of a broadcast have
        self._topics: tuple[bytes, ...] = ()  # subscribed for as long as the broadcast lasts
        self._asked = 0  # Syncs since the replica was last level
        self._ask_at = -math.inf
        self.due = math.inf

    @property
    def level(self) -> bool:
        """Nothing is awaited and nothing is missing."""
        return self.awaited is None and self.replica.complete

    def expect(self, number: int) -> None:
        """A Hello with this number was sent: what follows its Welcome is the answer. Nothing is late before that."""
        self._leave_broadcast()
        self.awaited = number
        self.due = math.inf
        self.replica.expect(number)

    def begin(self, now: float) -> None:
        """The session is open: from here on the answer must make progress."""
        self.due = now + LATE_S

    def pause(self) -> None:
        """No session: nobody can be asked."""
        self.due = math.inf

    def on_invite(self, invite: wire.Invite, token: bytes, now: float) -> None:
        """The answer will be broadcast: listen, then tell the broker so."""
        if invite.number != self.awaited:
            self._counters["parts_late"] += 1
            return
        self._leave_broadcast()
        self._broadcast = invite.broadcast
        self._topics = (invite.topic, wire.receipt_topic(token))
        self._outbox.extend([(LINK, Subscribe(topic)) for topic in self._topics])
        self.replica.invited(invite.broadcast)
        self.due = now + LATE_S

    def on_part(self, sender: str, part: wire.Snapshot | wire.Replay, now: float) -> list[Change]:
        """One part of the answer, or of one that nobody awaits any more."""
        if part.number != (self.awaited if sender == BROKER else self._broadcast):
            self._counters["parts_late"] += 1
            return []
        if sender == BROKER:
            self._outbox.append((BROKER, wire.Received(part.number, part.index)))
        self.due = now + LATE_S
        self.parts += 1
        if isinstance(part, wire.Snapshot):
            return self.replica.on_snapshot(part)
        changes = self.replica.on_replay(part)
        if part.last:
            self._finish()
        return changes

    def sync(self, now: float) -> None:
        """Ask for what is missing, if something is and nobody was asked yet, or the answer is of no use or late."""
        wanted = self.replica.wanted
        if wanted is not None:
            if now >= self._ask_at:
                self._ask(wanted, now)
            else:
                self.due = self._ask_at
        elif self.awaited is not None and now >= self.due:
            self._ask("late", now)

    def overrun(self) -> None:
        """Too much waited unread and was thrown away."""
        self._counters["streams_discarded"] += 1
        self.replica.discard()

    # -- private -------------------------------------------------------------------------------------------------------

    def _ask(self, reason: str, now: float) -> None:
        self._counters[f"syncs_{reason}"] += 1
        number = self._new_number()
        epoch, seq = self.replica.sync_position()
        self._outbox.append((BROKER, wire.Sync(number, epoch, seq, reason)))
        self.expect(number)
        self.due = now + LATE_S
        self._asked += 1
        self._ask_at = now + min(AGAIN_MAX_S, AGAIN_FIRST_S * 2 ** min(self._asked, 10))

    def _finish(self) -> None:
        self.awaited = None
        self.due = math.inf
        if self.replica.wanted is None:
            self._asked, self._ask_at = 0, -math.inf
        self._leave_broadcast()

    def _leave_broadcast(self) -> None:
        self._outbox.extend([(LINK, Unsubscribe(topic)) for topic in self._topics])
        self._broadcast, self._topics = None, ()
