"""Keeps the replica level with the broker: awaits one answer at a time and sends a Sync when something is missing.

    Hello or Sync(n) --> Snapshot / Replay parts with number n, each acknowledged by Received
                     --> or Invite(n): subscribe, and hear the parts on the stream
    the last Replay part ends the answer; after `LATE_S` without a part the worker asks again

Invariant: while an answer is awaited, no further Sync is sent unless the answer is late or the replica gave it up. The
replica knows what a part means; this module knows whether anybody asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ... import wire
from ..counters import Counters
from .changes import Change
from .events import BROKER, LINK, Outbox, Subscribe, Unsubscribe
from .replica import Replica

AGAIN_FIRST_S = 0.02  # between two Syncs in a row: if answers do not help, ask less and less often
AGAIN_MAX_S = 2.0
LATE_S = 2.0  # without progress on an answer; a busy broker takes far less between two parts


class Following:
    """Feeds the replica. `due` is when an awaited answer is late, or when the next Sync may be sent."""

    def __init__(self, replica: Replica, outbox: Outbox, counters: Counters, new_number: Callable[[], int]) -> None:
        self.replica = replica
        self._outbox = outbox
        self._counters = counters
        self._new_number = new_number
        self.awaited: int | None = None
        self.parts = 0  # awaited parts that came so far: shows progress
        self._broadcast: int | None = None  # the number on the parts of a broadcast
        self._topics: tuple[bytes, ...] = ()  # subscribed while the broadcast lasts
        self._asked = 0  # Syncs since the replica was last level
        self._ask_at = -math.inf
        self.due = math.inf

    @property
    def level(self) -> bool:
        """True if no answer is awaited and nothing is missing."""
        return self.awaited is None and self.replica.complete

    def expect(self, number: int) -> None:
        """A Hello with this number was sent: the answer follows its Welcome, and is never late before that."""
        self._leave_broadcast()
        self.awaited = number
        self.due = math.inf
        self.replica.expect(number)

    def begin(self, now: float) -> None:
        """The session is open: from now on the answer must make progress."""
        self.due = now + LATE_S

    def pause(self) -> None:
        """There is no session, so there is nobody to ask."""
        self.due = math.inf

    def on_invite(self, invite: wire.Invite, token: bytes, now: float) -> None:
        """The answer will be broadcast: subscribes, which also tells the broker that we listen."""
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
        """Takes one part of the answer, or of an answer that is no longer awaited."""
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
        """Sends a Sync if something is missing and no answer is on its way, or if the answer is broken or late."""
        wanted = self.replica.wanted
        if wanted is not None:
            if now >= self._ask_at:
                self._ask(wanted, now)
            else:
                self.due = self._ask_at
        elif self.awaited is not None and now >= self.due:
            self._ask("late", now)

    def overrun(self) -> None:
        """Too many stream messages waited; they were discarded unread."""
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
