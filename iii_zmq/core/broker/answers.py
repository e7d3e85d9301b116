"""Sends what a worker lacks, in bounded parts: exactly the missing deltas, or a snapshot and the deltas since.

So that a big registry or a storm of joiners never stalls calls, a worker has at most `PARTS_OPEN_MAX` unacknowledged
parts, and one turn of the broker's loop makes at most `PARTS_PER_TURN`. If several workers need a big snapshot at once,
it is broadcast: they are invited to a topic, show by a receipt that they listen, and hear it once. A worker that is too
slow to listen is sent its own snapshot after all.

Invariant: a session has at most one answer, one invitation and one place in the line, so that asking often costs no
more than asking once. The content of an answer is looked up only when its first part is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ... import wire
from ..counters import Counters
from ..deadlines import Alarm, Deadlines
from .answer import Answer, Part
from .events import BROADCAST, Outbox
from .history import chunks
from .registry import Registry
from .session import Session

PART_BYTES_MAX = 128 * 1024  # about 1,000 rows: packing a part takes well under 1 ms
PARTS_PER_TURN = 4
BROADCAST_FROM = 4  # with this many snapshots under way the next one is a broadcast
BROADCAST_BYTES_MIN = 512 * 1024  # a smaller registry is sent directly, without an invitation
GATHER_S = 0.1  # how long invitations are collected before a broadcast starts
GATHER_MORE_S = 0.4  # and how much longer it waits for invited sessions that do not listen yet
PROGRESS_S = 10.0  # an answer is given up if nobody acknowledges its parts; workers ask again far earlier

Position = tuple[str, int]
"""(epoch, seq)."""

NOWHERE: Position = ("", 0)  # no position: a snapshot is needed


class Answers:
    """The sessions that still get parts, and the current broadcast."""

    def __init__(self, registry: Registry, outbox: Outbox, counters: Counters, alarm: Alarm) -> None:
        self._registry = registry
        self._outbox = outbox
        self._counters = counters
        self._alarm = alarm
        self._line: OrderedDict[Session, None] = OrderedDict()  # sessions that may get a part now, in turns
        self._snapshots: dict[Session, None] = {}  # sessions whose answer is a snapshot
        self._progress: Deadlines[Session] = Deadlines(alarm)  # of sessions with an answer
        self._invited: dict[Session, int] = {}  # invited sessions without a receipt -> number of their Hello or Sync
        self._receipts: dict[bytes, Session] = {}  # receipt topic -> invited session
        self._gathered: dict[Session, None] = {}  # sessions whose receipt was heard: they listen
        self._gather_until: float | None = None
        self._broadcast = 0
        self._broadcasting: Answer | None = None

    def answer(self, session: Session, number: int, position: Position, now: float) -> None:
        """Starts to send what a replica at `position` lacks; gives up an unfinished answer."""
        self.forget(session)
        resumes = position[0] == self._registry.epoch and self._registry.history.holds(position[1])
        if not resumes and self._is_crowded():
            self._invite(session, number, now)
        else:
            self._owe(session, Answer(number, self._parts(number, position), is_snapshot=not resumes), now)

    def acknowledge(self, session: Session, number: int, now: float) -> None:
        """A part arrived, so another may follow."""
        answer = session.answer
        if answer is None or answer.number != number or not answer.unacknowledged:
            self._counters["unexpected"] += 1
            return
        answer.unacknowledged -= 1
        if answer.has_part:
            self._stand_in_line(session)
            self._progress.set(session, now + PROGRESS_S)
        elif not answer.unacknowledged:
            self.forget(session)

    def forget(self, session: Session) -> None:
        """Forgets a session: it is gone, asks for something else, or its answer is complete."""
        if session.answer is not None:
            session.answer = None
            self._line.pop(session, None)
            self._snapshots.pop(session, None)
            self._progress.cancel(session)
        elif self._invited.pop(session, None) is not None:
            del self._receipts[wire.receipt_topic(session.token)]
        self._gathered.pop(session, None)

    def heard_receipt(self, topic: bytes) -> None:
        """If this topic is a receipt, its session will hear the broadcast."""
        session = self._receipts.pop(topic, None)
        if session is not None:
            del self._invited[session]
            self._gathered[session] = None
            self._alarm.no_later_than(0.0)

    def next_deadline(self) -> float | None:
        if self._line or self._broadcasting is not None:
            return 0.0
        gathered = self._gathered_at()
        progress = self._progress.next()
        if gathered is None or (progress is not None and progress < gathered):
            return progress
        return gathered

    def tick(self, now: float) -> None:
        """Sends this turn's parts, in turns among the waiting sessions."""
        while (session := self._progress.pop_due(now)) is not None:
            self._counters["answers_abandoned"] += 1
            self.forget(session)
        gathered = self._gathered_at()
        if gathered is not None and now >= gathered and self._broadcasting is None:
            self._start_broadcast(now)
        if self._broadcasting is not None:
            # Nobody acknowledges these parts: the stream's high-water mark and a late Sync take over.
            self._outbox.append((BROADCAST, self._broadcasting.pop_part()))
            if not self._broadcasting.has_part:
                self._broadcasting = None
        for _ in range(min(PARTS_PER_TURN, len(self._line))):
            session, _ = self._line.popitem(last=False)
            answer = session.answer
            assert answer is not None
            self._outbox.append((session.address, answer.pop_part()))
            if answer.is_open():
                self._line[session] = None

    # -- private: to one -----------------------------------------------------------------------------------------------

    def _owe(self, session: Session, answer: Answer, now: float) -> None:
        session.answer = answer
        self._stand_in_line(session)
        self._progress.set(session, now + PROGRESS_S)
        if answer.is_snapshot:
            self._snapshots[session] = None

    def _stand_in_line(self, session: Session) -> None:
        self._line[session] = None
        self._alarm.no_later_than(0.0)

    # -- private: to many ----------------------------------------------------------------------------------------------

    def _is_crowded(self) -> bool:
        under_way = len(self._snapshots) + len(self._invited)
        return under_way >= BROADCAST_FROM and self._registry.rows_bytes >= BROADCAST_BYTES_MIN

    def _invite(self, session: Session, number: int, now: float) -> None:
        if self._gather_until is None:
            self._broadcast += 1
            self._gather_until = now + GATHER_S
            self._alarm.no_later_than(self._gather_until)
        self._invited[session] = number
        self._receipts[wire.receipt_topic(session.token)] = session
        self._outbox.append((session.address, wire.Invite(number, BROADCAST, self._broadcast)))

    def _gathered_at(self) -> float | None:
        """When the next broadcast starts, as far as is known now."""
        if self._gather_until is None:
            return None
        return self._gather_until + (GATHER_MORE_S if self._invited else 0.0)

    def _start_broadcast(self, now: float) -> None:
        self._gather_until = None
        for session, number in list(self._invited.items()):
            self.forget(session)
            self._owe(session, Answer(number, self._parts(number, NOWHERE), is_snapshot=True), now)
        if self._gathered:
            self._gathered.clear()
            self._counters["broadcasts"] += 1
            parts = self._parts(self._broadcast, NOWHERE)
            self._broadcasting = Answer(self._broadcast, parts, is_snapshot=True)

    # -- private: parts ------------------------------------------------------------------------------------------------

    def _parts(self, number: int, position: Position) -> Iterator[Part]:
        """All parts of one answer, with ascending indexes: rows if needed, then deltas; the last part is a Replay."""
        registry = self._registry
        epoch = registry.epoch
        missing = registry.history.since(position[1]) if position[0] == epoch else None
        index = 0
        if missing is None:
            self._counters["snapshots"] += 1
            image = registry.image()
            missing = registry.history.since(image.seq)
            assert missing is not None
            for rows, last in chunks(image.rows, PART_BYTES_MAX):
                yield wire.Snapshot(number, epoch, image.seq, image.digest, index, last, rows)
                index += 1
        else:
            self._counters["resumes"] += 1
        for deltas, last in chunks(missing, PART_BYTES_MAX):
            yield wire.Replay(number, epoch, index, last, deltas)
            index += 1
