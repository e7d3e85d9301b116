"""The promises, checked at every step against an independent record of what the broker went through.

    History         one epoch: each delta as it was published, what it may do, and the content after it
    ReplicaCheck    one worker: its replica, and what its user was told of it, are the history's states, in order
    AnswerCheck     what a worker lacked is what it was sent: exactly the missing deltas, or a snapshot where need be
    RouteCheck      every call that the broker accepted is queued, or with a session that lives, until it is answered

Nothing here calls anything of a core that would change it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from iii_zmq import errors, wire
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.liveness import HOLD_S
from iii_zmq.core.worker.changes import (
    FUNCTION_ADDED,
    FUNCTION_REMOVED,
    RESET,
    WORKER_JOINED,
    WORKER_LEFT,
    Change,
    Position,
)
from iii_zmq.core.worker.content import Content
from iii_zmq.core.worker.core import WorkerCore
from iii_zmq.core.worker.events import Changes
from iii_zmq.wire import ProviderRow, RowKey, WorkerRow

from .clock import Clock
from .trace import Violation

Rows = dict[RowKey, bytes]

CHECKPOINT_EVERY = 64
DEADLINE_SLACK_S = 0.002  # a shell waits in whole milliseconds
IMPATIENT_S = 3.0
ROWS_EVERY = 16  # looks at a replica between two comparisons of all its rows

LEAVING = ("bye", "died", "silent", "replaced")


def require(is_kept: bool, text: str) -> None:
    if not is_kept:
        raise Violation(text)


# -- the truth ---------------------------------------------------------------------------------------------------------


class History:
    """One epoch of the broker: `deltas[seq - 1]` led to the content at `seq`."""

    def __init__(self, epoch: str, rank: int, history_max: int) -> None:
        self.epoch = epoch
        self.rank = rank  # later epochs have higher ones
        self.history_max = history_max
        self.rows: Rows = {}
        self.deltas: list[wire.Delta] = []
        self.digests = [wire.digest_bytes(0)]
        self.promotions: dict[RowKey, list[int]] = {}  # of exclusive functions: the seqs at which it became active
        self._total = 0
        self._checkpoints: list[Rows] = [{}]

    @property
    def seq(self) -> int:
        return len(self.deltas)

    def take(self, data: bytes) -> None:
        """The next delta, as published."""
        delta = wire.decode_delta(data)
        before = self.rows
        require(delta.seq == self.seq + 1, f"delta {delta.seq} was published after {self.seq}")
        puts = {_key(row): row for row in delta.puts}
        require(len(puts) == len(delta.puts), f"delta {delta.seq} puts a row twice")
        _check_ownership(delta, puts, before)
        after = apply(before, delta)
        self._total += sum(map(wire.row_hash, puts.values()))
        self._total -= sum(wire.row_hash(before[key]) for key in (*delta.drops, *puts) if key in before)
        digest = wire.digest_bytes(self._total)
        require(digest == delta.digest, f"delta {delta.seq} says digest {delta.digest.hex()}, not {digest.hex()}")
        self.rows = after
        self.deltas.append(delta)
        self.digests.append(digest)
        if self.seq % CHECKPOINT_EVERY == 0:
            self._checkpoints.append(after)
        self._check_functions(delta, puts, before)

    def rows_at(self, seq: int) -> Rows:
        rows = self._checkpoints[seq // CHECKPOINT_EVERY]
        for delta in self.deltas[seq // CHECKPOINT_EVERY * CHECKPOINT_EVERY : seq]:
            rows = apply(rows, delta)
        return rows

    def fences(self, key: RowKey, since: int) -> list[int]:
        """The fences that a call handed to this provider may carry when the broker's turn began at `since`."""
        promotions = self.promotions.get(key, [])
        return [*[seq for seq in promotions if seq <= since][-1:], *[seq for seq in promotions if seq > since]]

    def _check_functions(self, delta: wire.Delta, puts: Rows, before: Rows) -> None:
        """Exclusive: one active provider, promoted by a delta whose seq is its fence; providers agree on the flag."""
        for function_id in dict.fromkeys(key[1] for key in (*delta.drops, *puts) if key[1]):
            offers = {key: _offer(row) for key, row in self.rows.items() if key[1] == function_id}
            entries = {key: wire.decode_entry(offer.entry) for key, offer in offers.items()}
            flags = {entry.exclusive for entry in entries.values()}
            require(len(flags) <= 1, f"providers of {function_id} disagree about exclusive at {self.seq}")
            active = [key for key, offer in offers.items() if offer.active]
            if flags == {True}:
                require(len(active) == 1, f"{function_id} has {len(active)} active providers at {self.seq}")
                was = before.get(active[0])
                if was is None or not _is_exclusively_active(was):
                    self.promotions.setdefault(active[0], []).append(self.seq)
            else:
                require(len(active) == len(offers), f"a provider of {function_id} stands by at {self.seq}")


def apply(rows: Rows, delta: wire.Delta) -> Rows:
    """The content after the delta; both stay."""
    after = dict(rows)
    for key in delta.drops:
        require(key in after, f"delta {delta.seq} drops {key}, which is not there")
        del after[key]
    for row in delta.puts:
        after[_key(row)] = row
    return after


def _key(row: bytes) -> RowKey:
    decoded = wire.decode_row(row)
    return decoded.worker_id, decoded.function_id if isinstance(decoded, ProviderRow) else ""


def _offer(row: bytes) -> ProviderRow:
    offer = wire.decode_row(row)
    assert isinstance(offer, ProviderRow)
    return offer


def _worker(row: bytes) -> WorkerRow:
    worker = wire.decode_row(row)
    assert isinstance(worker, WorkerRow)
    return worker


def _is_exclusively_active(row: bytes) -> bool:
    offer = _offer(row)
    return offer.active and wire.decode_entry(offer.entry).exclusive


def _check_ownership(delta: wire.Delta, puts: Rows, before: Rows) -> None:
    """What goes is one worker's; when a worker goes, all of its rows do; others are at most promoted."""
    where = f"delta {delta.seq} ({delta.reason or 'change'})"
    owners = list(dict.fromkeys(worker_id for worker_id, _ in delta.drops))
    if not delta.reason:
        require(not owners, f"{where} drops {delta.drops} without a reason")
        _check_change(where, puts, before)
        return
    require(len(owners) == 1, f"{where} drops rows of {owners}")
    owner = owners[0]
    if delta.reason == "unregistered":
        require((owner, "") not in delta.drops, f"{where} drops the worker itself")
    else:
        require(delta.reason in LEAVING, f"{where} has an unknown reason")
        left = [key for key in before if key[0] == owner and key not in delta.drops]
        require(not left, f"{where} leaves {left} behind")
        require((owner, "") in delta.drops, f"{where} does not drop the worker's row")
    dropped = {function_id for _, function_id in delta.drops}
    for key, row in puts.items():
        require(key[0] != owner and key in before and key[1] in dropped, f"{where} also puts {key}")
        was, now = _offer(before[key]), _offer(row)
        is_promotion = not was.active and now.active and was.entry == now.entry
        require(is_promotion, f"{where} changes {key}, which is another worker's")


def _check_change(where: str, puts: Rows, before: Rows) -> None:
    owners = list(dict.fromkeys(worker_id for worker_id, _ in puts))
    if len(owners) > 1:  # a worker that drains hands over what it leads
        for function_id in dict.fromkeys(function_id for _, function_id in puts):
            keys = [key for key in puts if key[1] == function_id]
            is_pair = function_id != "" and len(keys) == 2 and all(key in before for key in keys)
            require(is_pair, f"{where} puts rows of {owners}")
            swapped = [_offer(before[key]).active != _offer(puts[key]).active for key in keys]
            require(all(swapped), f"{where} changes {keys} without a hand-over")
        return
    for owner, _ in puts:
        require((owner, "") in before or (owner, "") in puts, f"{where} puts a row of {owner}, who is not here")


# -- replicas ----------------------------------------------------------------------------------------------------------


class ReplicaCheck:
    """Follows one worker's replica, and what its user is told, state by state."""

    def __init__(self, name: str, core: WorkerCore, checks: Checks) -> None:
        self._name = name
        self._core = core
        self._checks = checks
        self._position = Position("", 0)
        self._rows: Rows = {}
        self._is_loaded = False
        self._told: Position | None = None  # how far the user was told; None until the replica was complete
        self._keys: dict[RowKey, None] = {}  # what the user believes to be there
        self._looks = 0
        self.is_corrupt = False  # on purpose
        self.was_corrupt = False

    def look(self, told: list[Changes]) -> None:
        """After each thing that the core was told."""
        replica = self._core.replica
        position = replica.position
        self._looks += 1
        has_moved = position != self._position
        if has_moved or (not self._is_loaded and replica.complete):
            self._move(position)
        was_corrupt = self.is_corrupt
        if self._is_loaded:
            self._compare(told, has_moved)
        for changes in told:
            self._hear(changes.changes, was_corrupt)
        if was_corrupt and self._told is not None:
            self._told = position  # a delta that only did what was done to the replica already tells nothing
        if self._told is None:
            if replica.complete:
                self._told, self._keys = position, dict.fromkeys(self._rows)
            return
        require(self._told == position, f"{self._name} is at {position}, its user was told until {self._told}")
        if told and not self.is_corrupt:
            missing, extra = self._rows.keys() - self._keys.keys(), self._keys.keys() - self._rows.keys()
            text = f"{self._name}'s user misses {sorted(missing)} and believes in {sorted(extra)} at {position}"
            require(not missing and not extra, text)

    def corrupt(self, key: RowKey, row: bytes | None) -> None:
        """Puts a wrong row there, or takes one away: as a bug or a bad memory would."""
        rows = dict(self._core.replica._content.items())
        if row is None:
            del rows[key]
            self._keys.pop(key, None)
        else:
            rows[key] = row
        content = Content()
        content.load(rows.values())
        self._core.replica._content = content
        self.is_corrupt = self.was_corrupt = True

    def _move(self, position: Position) -> None:
        before, self._position = self._position, position
        history = self._checks.histories.get(position.epoch)
        if history is None:
            raise Violation(f"{self._name} is at {position}, an epoch that no broker had")
        require(position.seq <= history.seq, f"{self._name} is at {position}, ahead of the broker at {history.seq}")
        self._is_loaded = True
        if position.epoch == before.epoch:
            require(position.seq >= before.seq, f"{self._name} went back from {before} to {position}")
            for delta in history.deltas[before.seq : position.seq]:
                self._rows = apply(self._rows, delta)
        else:
            old = self._checks.histories.get(before.epoch)
            require(old is None or old.rank < history.rank, f"{self._name} went back from {before} to {position}")
            self._rows = history.rows_at(position.seq)

    def _compare(self, told: list[Changes], has_moved: bool) -> None:
        replica = self._core.replica
        expected = self._checks.histories[self._position.epoch].digests[self._position.seq]
        if self.is_corrupt:
            self.is_corrupt = replica.digest != expected
            text = f"{self._name} went on to {self._position} with wrong rows, whose digest tells"
            require(not (has_moved and self.is_corrupt), text)
            return
        require(replica.digest == expected, f"{self._name} has not the broker's content at {self._position}")
        mismatches = replica.counters["digest_mismatches"]
        text = f"{self._name} found {mismatches} wrong digests, and nothing was put there on purpose"
        require(self.was_corrupt or not mismatches, text)
        if told and self._looks % ROWS_EVERY == 0:
            self.compare_rows()

    def compare_rows(self) -> None:
        rows = dict(self._core.replica._content.items())
        require(rows == self._rows, f"{self._name}'s rows are not the broker's at {self._position}")

    def _hear(self, changes: list[Change], was_corrupt: bool) -> None:
        for change in changes:
            at = Position(change.epoch, change.seq)
            told = self._told
            if told is None:
                raise Violation(f"{self._name}'s user was told {change} before the replica was complete")
            if change.kind == RESET:
                self._told = at
            elif at != told:
                is_next = at == Position(told.epoch, told.seq + 1) or (was_corrupt and at > told)
                require(is_next, f"{self._name}'s user was told {at} after {told}")
                self._told = at
            self._believe(change)

    def _believe(self, change: Change) -> None:
        if change.kind == RESET:
            return
        assert change.worker_id is not None
        key = (change.worker_id, change.function_id or "")
        if change.kind in (WORKER_JOINED, FUNCTION_ADDED):
            require(key not in self._keys, f"{self._name}'s user was told twice of {change}")
            self._keys[key] = None
        else:
            require(key in self._keys, f"{self._name}'s user was told {change}, of something that is not there")
            if change.kind in (WORKER_LEFT, FUNCTION_REMOVED):
                del self._keys[key]


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Question:
    """A Hello or a Sync that the broker read. `asked_at`: the seq when it could be answered."""

    number: int
    epoch: str
    seq: int
    asked_at: int | None
    index: int = 0
    rows: list[bytes] = field(default_factory=list)
    at: int = -1  # how far the answer has come; -1 before its first part
    is_in_rows: bool = False


class AnswerCheck:
    """The parts of answers, as the broker sends them."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._questions: dict[bytes, _Question] = {}
        self._presences: dict[bytes, bytes] = {}  # presence topic -> peer
        self._present: dict[bytes, None] = {}
        self._drains: dict[tuple[bytes, int], None] = {}  # may end while a new presence is awaited
        self._broadcast = _Question(0, "", 0, 0)

    def on_read(self, peer: bytes, message: wire.Message) -> None:
        if isinstance(message, wire.Hello):
            self._questions[peer] = _Question(message.number, message.epoch, message.seq, None)
        elif isinstance(message, wire.Sync):
            self._questions[peer] = _Question(message.number, message.epoch, message.seq, self._history.seq)
        elif isinstance(message, wire.Drain):
            self._drains[peer, message.number] = None

    def on_presence(self, topic: bytes) -> None:
        peer = self._presences.get(topic)
        if peer is not None:
            self._present[peer] = None
            question = self._questions.get(peer)
            if question is not None and question.asked_at is None:
                question.asked_at = self._history.seq

    def on_welcome(self, peer: bytes, welcome: wire.Welcome) -> None:
        self._presences = {topic: one for topic, one in self._presences.items() if one != peer}
        self._presences[wire.presence_topic(welcome.token)] = peer
        self._present.pop(peer, None)

    def on_ack(self, peer: bytes, ack: wire.Ack) -> None:
        require(ack.seq <= self._history.seq, f"acknowledged {ack.epoch}:{ack.seq} before it was published")
        is_fit = peer in self._present or (peer, ack.number) in self._drains
        require(is_fit, f"acknowledged {ack} before the presence was heard")

    def on_part(self, peer: bytes, part: wire.Snapshot | wire.Replay | wire.Invite) -> None:
        question = self._questions.get(peer)
        if question is None or question.number != part.number:
            if isinstance(part, wire.Invite):
                return  # another question came in the very turn in which it was sent
            raise Violation(f"an answer to {part.number}, which {peer.hex()} did not ask last")
        require(peer in self._present, f"answered Hello {part.number} before the presence was heard")
        if not isinstance(part, wire.Replay):
            self._check_need(question)
        if not isinstance(part, wire.Invite) and self._take(question, part):
            require(question.at >= (question.asked_at or 0), f"answer {part.number} ended short, at {question.at}")
            del self._questions[peer]

    def on_broadcast(self, part: wire.Snapshot | wire.Replay) -> None:
        if part.index == 0:
            self._broadcast = _Question(part.number, "", 0, 0)
        require(part.number == self._broadcast.number, f"a part of broadcast {part.number} amid another")
        self._take(self._broadcast, part)

    def _check_need(self, question: _Question) -> None:
        """A snapshot is sent only where the missing deltas are not held."""
        history = self._history
        is_held = question.epoch == history.epoch and 0 <= history.seq - question.seq <= history.history_max
        if question.asked_at is not None and question.asked_at < question.seq:
            is_held = False
        require(not is_held, f"a snapshot for a replica at {question.epoch}:{question.seq}, which could resume")

    def _take(self, question: _Question, part: wire.Snapshot | wire.Replay) -> bool:
        """Whether this was the answer's end."""
        history = self._history
        where = f"answer {part.number}, part {part.index}"
        require(part.epoch == history.epoch, f"{where} is of epoch {part.epoch}")
        require(part.index == question.index, f"{where} follows part {question.index - 1}")
        question.index += 1
        if isinstance(part, wire.Snapshot):
            require(question.at < 0, f"{where}: rows after the last row")
            question.rows += part.rows
            question.is_in_rows = not part.last
            if part.last:
                rows = {_key(row): row for row in question.rows}
                require(len(rows) == len(question.rows), f"{where} repeats a row")
                require(rows == history.rows_at(part.seq), f"{where} is not the content at {part.seq}")
                require(part.digest == history.digests[part.seq], f"{where} has a wrong digest")
                question.at = part.seq
            return False
        require(not question.is_in_rows, f"{where}: deltas before the last row")
        if question.at < 0:
            require(question.epoch == history.epoch, f"{where} resumes another epoch")
            question.at = question.seq
        for data in part.deltas:
            delta = wire.decode_delta(data)
            require(delta.seq == question.at + 1, f"{where}: delta {delta.seq} after {question.at}")
            require(delta == history.deltas[delta.seq - 1], f"{where}: delta {delta.seq} is not the one published")
            question.at = delta.seq
        return part.last


# -- calls at the broker -----------------------------------------------------------------------------------------------


_At = tuple[bytes, str]
"""A session, by its routing id and its worker id: one of them may be the same in the next session."""


@dataclass(slots=True)
class _Open:
    """A call that the broker has read, and not answered yet."""

    call_id: int
    caller: _At
    function_id: str
    target: str
    is_no_answer: bool
    provider: _At | None = None
    hand_overs: int = 0
    tried: list[str] = field(default_factory=list)
    arrived_in: int = 0  # the turn
    deadline: float = 0.0
    is_unsure: bool = False  # answered, or told as undelivered, when its provider's session may have been replaced


def call_id_of(payload: wire.Payload) -> int | None:
    """The simulated users' call in this payload; None for what the broker itself is asked."""
    value = wire.unpack(payload)
    return value[0] if isinstance(value, list) else None


class RouteCheck:
    """Calls between a caller's Call and its one answer."""

    def __init__(self, core: BrokerCore, history: History) -> None:
        self._core = core
        self._history = history
        self._open: dict[tuple[bytes, int], _Open] = {}
        self._by_id: dict[int, _Open] = {}
        self._handed: dict[_At, dict[int, int]] = {}  # route number -> call id
        self._credit: dict[bytes, int] = {}
        self._workers: dict[bytes, str] = {}
        self._arrived: dict[tuple[bytes, int], None] = {}  # results that lie in the ROUTER
        self._seq_before = 0
        self._heard_hello = False
        self.impatient_until = 0.0  # a loss was told before all messages were read: results may be lost
        self._turn = 0
        self._closed: dict[int, int] = {}  # call id -> the turn in which nobody waited for it any more
        self._byes: list[str] = []  # worker ids
        self._fences: dict[str, int] = {}  # function id -> the highest that was handed out

    def on_arrival(self, peer: bytes, number: int) -> None:
        self._arrived[peer, number] = None

    def on_turn(self) -> None:
        self._turn += 1
        self._seq_before = self._history.seq
        self._heard_hello = False
        self._byes.clear()

    def on_read(self, peer: bytes, message: wire.Message, now: float) -> None:
        match message:
            case wire.Hello():
                self._credit[peer] = message.credit
                self._heard_hello = True
            case wire.Call():
                call_id = call_id_of(message.payload)
                if call_id is not None:
                    is_no_answer = bool(message.flags & wire.NO_ANSWER)
                    call = _Open(call_id, self._at(peer), message.function_id, message.target, is_no_answer)
                    call.arrived_in = self._turn
                    call.deadline = now + message.remaining_ms / 1000
                    self._open[peer, message.number] = self._by_id[call_id] = call
            case wire.Cancel():
                given_up = self._open.get((peer, message.number))
                if given_up is not None:
                    self._close(given_up)
            case wire.Bye():
                self._byes.append(self._workers.get(peer, ""))
                for one in [one for one in self._open.values() if one.caller[0] == peer]:
                    self._close(one)
            case wire.Result() | wire.Failure():
                self._arrived.pop((peer, message.number), None)
                self._on_answer(peer, message)
            case _:
                pass

    def _on_answer(self, peer: bytes, message: wire.Result | wire.Failure) -> None:
        at = self._at(peer)
        call_id = self._handed.get(at, {}).pop(message.number, None)
        call = self._by_id.get(call_id) if call_id is not None else None
        if call is None or call.provider != at:
            return
        call.provider = None
        call.is_unsure = call.is_unsure or self._heard_hello
        if isinstance(message, wire.Failure) and message.fate == "not_handed_over":
            call.hand_overs -= 1
            call.tried.append(at[1])
        elif call.is_no_answer:  # whether the broker took the answer is not to be seen: the call may go elsewhere
            self._close(call)
            del self._closed[call.call_id]

    def on_undelivered(self, message: wire.Message) -> None:
        """It never left, so that it was not handed over."""
        if isinstance(message, wire.Call):
            call = self._by_id.get(call_id_of(message.payload) or 0)
            if call is not None:
                call.hand_overs -= 1
                # Once its session was replaced or held, the broker had to take it for handed over, and told so.
                call.is_unsure = call.is_unsure or call.provider is None or not self._serves(call.provider)
                call.provider = None

    def on_sent(self, peer: bytes, message: wire.Message, now: float) -> None:
        match message:
            case wire.Welcome():
                self._workers[peer] = message.worker_id
            case wire.Call():
                self._on_hand_over(peer, message)
            case wire.Result():
                self._on_outcome(peer, message.number, None, now)
            case wire.Failure():
                self._on_outcome(peer, message.number, message, now)
            case wire.Unknown():
                if message.kind == wire.KIND[wire.Call]:
                    self._on_outcome(peer, message.number, None, now)
            case _:
                pass

    def _on_hand_over(self, peer: bytes, message: wire.Call) -> None:
        call_id = call_id_of(message.payload)
        assert call_id is not None
        call = self._by_id.get(call_id)
        if call is None:  # given up in this very turn, after it was handed over
            is_late = call_id in self._closed and self._closed[call_id] < self._turn
            require(not is_late, f"call {call_id} is handed over, and nobody waits for it")
            return
        where = f"call {call_id} of {call.function_id}"
        worker_id = self._workers[peer]
        if call.provider is not None:
            call.tried.append(call.provider[1])
        key = (worker_id, call.function_id)
        require(call.target in ("", worker_id), f"{where} was aimed at {call.target}, handed to {worker_id}")
        require(worker_id not in call.tried, f"{where} was handed to {worker_id} again")
        rows = [self._history.rows_at(seq).get(key) for seq in range(self._seq_before, self._history.seq + 1)]
        offers = [_offer(row) for row in rows if row is not None]
        require(any(offer.active for offer in offers), f"{where} was handed to {worker_id}, not its active provider")
        if any(_is_exclusively_active(row) for row in rows if row is not None):
            fences = self._history.fences(key, self._seq_before)
            require(message.fence in (*fences, 0), f"{where} has fence {message.fence}, not {fences}")
            is_fenced = message.fence != 0 or not all(_is_exclusively_active(row) for row in rows if row is not None)
            require(is_fenced, f"{where} has no fence")
        if message.fence:
            highest = self._fences.get(call.function_id, 0)
            require(message.fence >= highest, f"{where} has fence {message.fence}, after {highest} was handed out")
            self._fences[call.function_id] = message.fence
        is_new = call.arrived_in == self._turn and not self._has_changed(call.function_id)
        require(not is_new or not self._is_draining(worker_id), f"{where}, a new one, was handed to one that drains")
        entry = wire.decode_entry(offers[-1].entry)
        is_again = call.hand_overs > 0
        require(not is_again or entry.idempotent, f"{where} was handed over twice, and is not idempotent")
        call.provider = self._at(peer)
        call.hand_overs += 1
        handed = self._handed.setdefault(call.provider, {})
        handed[message.number] = call_id
        require(len(handed) <= self._credit[peer], f"{worker_id} was handed {len(handed)} calls, beyond its credit")

    def _has_changed(self, function_id: str) -> bool:
        """Somebody began or ceased to offer it in this turn: a new call may have waited for a moment."""
        changed = self._history.deltas[self._seq_before :]
        keys = [key for delta in changed for key in (*delta.drops, *map(_key, delta.puts))]
        return any(key[1] == function_id for key in keys)

    def _is_draining(self, worker_id: str) -> bool:
        """All through this turn."""
        for seq in range(self._seq_before, self._history.seq + 1):
            row = self._history.rows_at(seq).get((worker_id, ""))
            if row is not None and _worker(row).state != wire.DRAINING:
                return False
        return True

    def _on_outcome(self, peer: bytes, number: int, failure: wire.Failure | None, now: float) -> None:
        call = self._open.get((peer, number))
        if call is None:
            return  # asked of the broker itself, or answered in the turn in which it was given up; the caller counts
        if failure is not None and failure.fate != "executed":
            known = "possibly_executed" if call.hand_overs > 0 else "not_handed_over"
            text = f"call {call.call_id} was told {failure.fate} ({failure.code}), after {call.hand_overs} hand-overs"
            require(failure.fate == known or self._heard_hello or call.is_unsure, text)
        if failure is not None and failure.code == errors.NO_PROVIDER:
            self._check_no_provider(call)
        if failure is not None and failure.code == errors.PROVIDER_LOST and call.provider is not None:
            for route, call_id in self._handed.get(call.provider, {}).items():
                is_here = call_id == call.call_id and (call.provider[0], route) in self._arrived
                text = f"call {call_id} failed as provider_lost, but its result had arrived"
                is_excused = self._heard_hello or now < self.impatient_until
                require(not is_here or is_excused, text)
        self._close(call)

    def _check_no_provider(self, call: _Open) -> None:
        """Nobody is told "no provider" while some worker that is ready offers the function."""
        if call.target or call.tried or call.hand_overs:
            return
        for seq in range(self._seq_before, self._history.seq + 1):
            rows = self._history.rows_at(seq)
            workers = [worker_id for worker_id, function_id in rows if function_id == call.function_id]
            if not any(_worker(rows[worker_id, ""]).state == wire.READY for worker_id in workers):
                return
        raise Violation(f"call {call.call_id} of {call.function_id} found no provider, but there is a ready one")

    def _close(self, call: _Open) -> None:
        self._by_id.pop(call.call_id, None)
        self._closed[call.call_id] = self._turn
        for key in [key for key, one in self._open.items() if one is call]:
            del self._open[key]

    def on_turn_ended(self, now: float) -> None:
        for worker_id in self._byes:
            require((worker_id, "") not in self._history.rows, f"{worker_id} said Bye, and is still there")
        for call in list(self._open.values()):
            if not self._is_here(call.caller):
                self._close(call)
                continue
            is_late = now > call.deadline + DEADLINE_SLACK_S and not call.is_no_answer
            require(not is_late, f"call {call.call_id} is still open at the broker after its deadline")
            if call.provider is not None and not self._serves(call.provider):
                worker_id = call.provider[1]
                is_lost = not call.is_no_answer and not self._is_queued(call)
                require(not is_lost, f"call {call.call_id} is still with {worker_id}, whose session is gone")
                call.provider = None
                call.tried.append(worker_id)
        for at in [at for at in self._handed if not self._serves(at)]:
            del self._handed[at]

    def _is_queued(self, call: _Open) -> bool:
        waiting = [route.call for route in self._core._calls._queues.of(call.function_id)]
        return any(one is not None and call_id_of(one.payload) == call.call_id for one in waiting)

    def _at(self, peer: bytes) -> _At:
        return peer, self._workers.get(peer, "")

    def _is_here(self, at: _At) -> bool:
        session = self._core.sessions.by_worker.get(at[1])
        return session is not None and session.address == at[0]

    def _serves(self, at: _At) -> bool:
        """A session that is held has lost the calls that it was handed; those that it made stay open."""
        session = self._core.sessions.by_worker.get(at[1])
        return self._is_here(at) and session is not None and session.held_until is None


# -- all of it ---------------------------------------------------------------------------------------------------------


class Checks:
    """What is shown to the checks by the cluster's shells, one method for each moment."""

    def __init__(self, clock: Clock, rng: Random) -> None:
        self.histories: dict[str, History] = {}
        self.history: History | None = None
        self.messages_sent = 0
        self._clock = clock
        self._rng = rng
        self._answers: AnswerCheck | None = None
        self._routes: RouteCheck | None = None
        self._held_until = 0.0  # the broker has just slept: nobody of these is taken for dead before
        self._held: dict[str, None] = {}

    def watch(self, name: str, core: WorkerCore) -> ReplicaCheck:
        return ReplicaCheck(name, core, self)

    # -- the broker ----------------------------------------------------------------------------------------------------

    def on_broker_started(self, core: BrokerCore, history_max: int) -> None:
        history = History(core.registry.epoch, len(self.histories), history_max)
        self.history = self.histories[history.epoch] = history
        self._answers = AnswerCheck(history)
        self._routes = RouteCheck(core, history)
        self._held_until = 0.0

    def on_broker_ended(self) -> None:
        self.history = self._answers = self._routes = None

    def on_broker_slept(self, core: BrokerCore, until: float) -> None:
        """The broker wakes from a sleep that it must have noticed: who was well before is not taken for dead."""
        sessions = [core.sessions.by_worker.get(worker_id) for worker_id in core.registry.workers]
        self._held = {one.worker_id: None for one in sessions if one is not None and one.routable}
        self._held_until = until + HOLD_S

    def on_arrival(self, peer: bytes, frame: bytes) -> None:
        assert self._routes is not None
        _, _, kind, _, number = wire.PREFIX.unpack_from(frame)
        if kind in (wire.KIND[wire.Result], wire.KIND[wire.Failure]):
            self._routes.on_arrival(peer, number)

    def on_turn(self, core: BrokerCore, now: float) -> None:
        assert self._routes is not None
        self._routes.on_turn()

    def on_presence(self, topic: bytes) -> None:
        assert self._answers is not None
        self._answers.on_presence(topic)

    def on_bad_news(self, is_drained: bool) -> None:
        """Losses are told now, after the ROUTER was read empty, or because it never is."""
        assert self._routes is not None
        if not is_drained:
            self._routes.impatient_until = self._clock.now + IMPATIENT_S

    def on_undelivered(self, message: wire.Message) -> None:
        assert self._routes is not None
        self._routes.on_undelivered(message)

    def on_broker_read(self, peer: bytes, message: wire.Message, now: float) -> None:
        assert self._answers is not None
        assert self._routes is not None
        self._answers.on_read(peer, message)
        self._routes.on_read(peer, message, now)

    def on_published(self, topic: bytes, message: wire.Message) -> None:
        assert self._answers is not None
        history = self.history
        assert history is not None
        match message:
            case wire.Deltas():
                require(message.epoch == history.epoch, f"{message} is of another epoch")
                for data in message.deltas:
                    history.take(data)
                    self._check_hold(history.deltas[-1])
            case wire.Beacon():
                at = (message.epoch, message.seq, message.digest)
                require(at == (history.epoch, history.seq, history.digests[-1]), f"{message} is wrong")
            case wire.Snapshot() | wire.Replay():
                self._answers.on_broadcast(message)
            case _:
                pass

    def _check_hold(self, delta: wire.Delta) -> None:
        is_early = self._clock.now < self._held_until and any(key[0] in self._held for key in delta.drops)
        is_verdict = delta.reason in ("died", "silent")
        require(
            not is_early or not is_verdict,
            f"delta {delta.seq} ({delta.reason}) right after the broker itself had slept",
        )

    def on_broker_sends(self, core: BrokerCore, peer: bytes, message: wire.Message, now: float) -> None:
        assert self._answers is not None
        assert self._routes is not None
        self._routes.on_sent(peer, message, now)
        match message:
            case wire.Welcome():
                self._answers.on_welcome(peer, message)
            case wire.Ack():
                self._answers.on_ack(peer, message)
            case wire.Snapshot() | wire.Replay() | wire.Invite():
                self._answers.on_part(peer, message)
            case _:
                pass

    def on_turn_ended(self, core: BrokerCore, now: float, is_drained: bool) -> None:
        history = self.history
        assert history is not None
        assert self._routes is not None
        registry = core.registry
        require(registry.seq == history.seq, f"the broker is at {registry.seq}, published was {history.seq}")
        require(registry.digest == history.digests[-1], "the broker's digest is not that of what it published")
        if self._rng.random() < 0.02:
            self.compare_content(core)
        self._routes.on_turn_ended(now)

    def compare_content(self, core: BrokerCore) -> None:
        """The broker's rows are what was published, and belong to somebody."""
        history = self.history
        assert history is not None
        require(core.registry._rows == history.rows, "the broker's rows are not what it published")
        for worker_id in core.registry.workers:
            session = core.sessions.by_worker.get(worker_id)
            require(session is not None and not session.ended, f"{worker_id} has rows, but no session")

    # -- workers -------------------------------------------------------------------------------------------------------

    def on_worker_sends(self, message: wire.Message) -> None:
        self.messages_sent += 1


def worker_ids(rows: Iterable[RowKey]) -> list[str]:
    return [worker_id for worker_id, function_id in rows if not function_id]
