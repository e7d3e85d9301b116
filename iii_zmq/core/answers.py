"""What a worker lacks, sent in bounded parts: exactly the missing deltas, or a snapshot and the deltas since.

So that a big registry or a storm of joiners never stalls calls, a worker has at most `PARTS_OPEN_MAX` parts that it has
not acknowledged, and one turn of the broker's loop makes at most `PARTS_PER_TURN`. When several workers need a big
snapshot at once it is broadcast: they are invited to a topic, tell by a receipt that they listen, and hear it once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from .. import wire
from .registry import Image, Registry
from .session import BROADCAST, Outbox, Session

PART_BYTES_MAX = 128 * 1024  # some 1,000 rows: packing one takes well under 1 ms
PARTS_PER_TURN = 4
BROADCAST_FROM = 4  # this many snapshots under way make the next one a broadcast
BROADCAST_BYTES_MIN = 512 * 1024  # smaller registries are sent directly: no detour through an invitation
GATHER_S = 0.1  # how long invitations are collected before a broadcast starts


class Answer:
    """The parts of one answer, made when asked for."""

    __slots__ = ("_next", "_parts", "number", "unacknowledged")

    def __init__(self, number: int, parts: Iterator[wire.Snapshot | wire.Replay]) -> None:
        self.number = number
        self._parts = parts
        self._next: wire.Snapshot | wire.Replay | None = next(parts)
        self.unacknowledged = 0

    def has_part(self) -> bool:
        return self._next is not None

    def is_open(self) -> bool:
        """Whether another part may be sent now."""
        return self._next is not None and self.unacknowledged < wire.PARTS_OPEN_MAX

    def pop_part(self) -> wire.Snapshot | wire.Replay:
        """The next part; only while `has_part()`."""
        part = self._next
        assert part is not None
        self._next = next(self._parts, None)
        self.unacknowledged += 1
        return part


class Answers:
    """Who is owed parts, and the broadcast under way."""

    def __init__(self, registry: Registry, outbox: Outbox, counters: Counter[str]) -> None:
        self._registry = registry
        self._outbox = outbox
        self._counters = counters
        self._owed: deque[Session] = deque()  # sessions that may be sent a part now, in turns
        self._snapshots_open = 0
        self._invited: dict[bytes, Session] = {}  # receipt topic -> session, the receipt not heard yet
        self._gathered: list[Session] = []
        self._gather_until: float | None = None
        self._broadcast = 0
        self._broadcasting: Answer | None = None

    def answer(self, session: Session, number: int, position: tuple[str, int], now: float) -> None:
        """Begins to send what a replica at `position` lacks; an answer under way is given up."""
        self.forget(session)
        missing = self._registry.since(position[1]) if position[0] == self._registry.epoch else None
        if missing is not None:
            self._counters["resumes"] += 1
            self._owe(session, Answer(number, _parts(number, self._registry, None, missing)))
        elif self._is_crowded():
            self._invite(session, number, now)
        else:
            self._send_snapshot(session, number)

    def acknowledge(self, session: Session, number: int) -> None:
        """A part arrived; another may follow."""
        answer = session.answer
        if answer is None or answer.number != number or not answer.unacknowledged:
            self._counters["unexpected"] += 1
            return
        answer.unacknowledged -= 1
        if not answer.has_part():
            if not answer.unacknowledged:
                self.forget(session)
        elif answer.unacknowledged == wire.PARTS_OPEN_MAX - 1:
            self._owed.append(session)

    def forget(self, session: Session) -> None:
        """The session is gone or its answer complete."""
        if session.answer is not None:
            self._snapshots_open -= 1
            session.answer = None
        receipt = wire.receipt_topic(session.token)
        self._invited.pop(receipt, None)
        if session in self._gathered:
            self._gathered.remove(session)

    def heard_receipt(self, topic: bytes) -> bool:
        """Whether this topic was a receipt: its session hears the broadcast."""
        session = self._invited.pop(topic, None)
        if session is None:
            return False
        self._gathered.append(session)
        return True

    def next_deadline(self) -> float | None:
        if self._owed or self._broadcasting:
            return 0.0
        return self._gather_until

    def tick(self, now: float) -> None:
        """Sends this turn's parts, in turns among those who are owed some."""
        if self._gather_until is not None and now >= self._gather_until and self._broadcasting is None:
            self._start_broadcast()
        if self._broadcasting is not None:
            self._send_broadcast_part()
        for _ in range(min(PARTS_PER_TURN, len(self._owed))):
            self._send_part(self._owed.popleft())

    # -- private -------------------------------------------------------------------------------------------------------

    def _is_crowded(self) -> bool:
        if self._snapshots_open + len(self._invited) < BROADCAST_FROM:
            return False
        return self._registry.image().bytes_total >= BROADCAST_BYTES_MIN

    def _send_snapshot(self, session: Session, number: int) -> None:
        self._counters["snapshots"] += 1
        self._owe(session, _snapshot_answer(number, self._registry))

    def _owe(self, session: Session, answer: Answer) -> None:
        session.answer = answer
        self._snapshots_open += 1
        self._owed.append(session)

    def _send_part(self, session: Session) -> None:
        answer = session.answer
        if session.ended or answer is None or not answer.is_open():
            return
        self._outbox.append((session.peer, answer.pop_part()))
        if answer.is_open():
            self._owed.append(session)

    def _invite(self, session: Session, number: int, now: float) -> None:
        if self._gather_until is None:
            self._broadcast += 1
            self._gather_until = now + GATHER_S
        self._invited[wire.receipt_topic(session.token)] = session
        self._outbox.append((session.peer, wire.Invite(number, BROADCAST, self._broadcast)))

    def _start_broadcast(self) -> None:
        """Serves those who listen. Who has not answered the invitation asks again by itself (Sync, `late`)."""
        self._gather_until = None
        self._invited.clear()
        if self._gathered:
            self._gathered = []
            self._counters["broadcasts"] += 1
            self._broadcasting = _snapshot_answer(self._broadcast, self._registry)

    def _send_broadcast_part(self) -> None:
        """One part a turn. Nobody acknowledges these: the stream's high-water mark and `late` stand in."""
        answer = self._broadcasting
        assert answer is not None
        self._outbox.append((BROADCAST, answer.pop_part()))
        if not answer.has_part():
            self._broadcasting = None


def _snapshot_answer(number: int, registry: Registry) -> Answer:
    image = registry.image()
    missing = registry.since(image.seq)
    assert missing is not None
    return Answer(number, _parts(number, registry, image, missing))


def _parts(
    number: int, registry: Registry, image: Image | None, deltas: list[bytes]
) -> Iterator[wire.Snapshot | wire.Replay]:
    """All parts of one answer, indexes counting up: rows if there is an image, then deltas; the last is a Replay."""
    index = 0
    epoch = registry.epoch
    if image is not None:
        for rows, last in _chunks(image.rows):
            yield wire.Snapshot(number, epoch, image.seq, image.digest, index, last, rows)
            index += 1
    for some, last in _chunks(deltas):
        yield wire.Replay(number, epoch, index, last, some)
        index += 1


def _chunks(items: list[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """(items of at most PART_BYTES_MAX together, whether they are the last); one empty chunk when there are none."""
    start = size = 0
    for end, item in enumerate(items):
        if size and size + len(item) > PART_BYTES_MAX:
            yield items[start:end], False
            start, size = end, 0
        size += len(item)
    yield items[start:], True
