"""The registry against a slow, obvious twin: plain lists, every digest from scratch, every past content kept.

After each step the deltas that were published lead from the old content to the new one, byte by byte; who is active,
and under which fence, is what the twin says; and whatever is still held of the past leads to the present.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iii_zmq import wire
from iii_zmq.core.broker.registry import Registry
from iii_zmq.wire import FunctionEntry, ProviderRow, RowKey, WorkerRow

HISTORY_MAX = 5

WORKERS = st.sampled_from(["a", "b", "c", "d"])
FUNCTIONS = st.sampled_from(["f", "g", "h"])
STATES = st.sampled_from([wire.READY, wire.STALLED, wire.DRAINING])
ENTRIES = st.tuples(FUNCTIONS, st.booleans(), st.integers(0, 2))  # id, exclusive, version
FITNESS = [wire.READY, wire.STALLED, wire.DRAINING]


@dataclass
class Offer:
    worker: str
    function: str
    exclusive: bool
    entry: bytes
    active: bool
    fence: int


def replayed(rows: dict[RowKey, bytes], delta: wire.Delta) -> dict[RowKey, bytes]:
    after = dict(rows)
    for key in delta.drops:
        del after[key]
    for data in delta.puts:
        after[wire.row_key(data)] = data
    return after


def digest_of(rows: dict[RowKey, bytes]) -> bytes:
    return wire.digest_bytes(sum(map(wire.row_hash, rows.values())))


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry("e", history_max=HISTORY_MAX)
        self.states: list[tuple[str, str]] = []
        self.offers: list[Offer] = []
        self.past: list[dict[RowKey, bytes]] = [{}]  # content at each seq
        self.fences: dict[str, int] = {}  # function -> the highest fence that any active provider had

    # -- what the twin thinks ------------------------------------------------------------------------------------------

    def state_of(self, worker: str) -> str:
        return dict(self.states)[worker]

    def offers_of(self, function: str) -> list[Offer]:
        return [one for one in self.offers if one.function == function]

    def find(self, worker: str, function: str) -> Offer | None:
        return next((one for one in self.offers_of(function) if one.worker == worker), None)

    def promote(self, function: str, seq: int) -> None:
        """One active provider for an exclusive function that has none."""
        offers = self.offers_of(function)
        if offers and offers[0].exclusive and not any(one.active for one in offers):
            heir = sorted(offers, key=lambda one: FITNESS.index(self.state_of(one.worker)))[0]
            heir.active, heir.fence = True, seq

    def content(self) -> dict[RowKey, bytes]:
        rows: dict[RowKey, bytes] = {}
        for worker, state in self.states:
            rows[worker, ""] = wire.encode_row(WorkerRow(worker, worker, "host", 1, b"\x80", state))
        for one in self.offers:
            rows[one.worker, one.function] = wire.encode_row(
                ProviderRow(one.worker, one.function, one.active, one.entry)
            )
        return rows

    def expect(self, reason: str) -> None:
        """What was published since the last step is at most one delta, and leads to the twin's content."""
        deltas = [wire.decode_delta(data) for data in self.registry.history.take_fresh()]
        now = self.content()
        if now == self.past[-1]:
            assert deltas == []
        else:
            (delta,) = deltas
            assert (delta.seq, delta.digest) == (len(self.past), digest_of(now))
            assert replayed(self.past[-1], delta) == now
            assert not {wire.row_key(data) for data in delta.puts} & set(delta.drops)
            assert all(self.past[-1].get(wire.row_key(data)) != data for data in delta.puts)
            assert delta.reason == (reason if delta.drops else "")
            self.past.append(now)

    # -- steps ---------------------------------------------------------------------------------------------------------

    @rule(worker=WORKERS)
    def join(self, worker: str) -> None:
        if worker not in dict(self.states):
            self.registry.join(WorkerRow(worker, worker, "host", 1, b"\x80", wire.READY))
            self.states.append((worker, wire.READY))
            self.expect("")

    @precondition(lambda self: self.states)
    @rule(data=st.data(), reason=st.sampled_from(["died", "bye"]))
    def leave(self, data: st.DataObject, reason: str) -> None:
        worker = data.draw(st.sampled_from([worker for worker, _ in self.states]))
        functions = [one.function for one in self.offers if one.worker == worker]
        assert self.registry.leave(worker, reason) == functions
        self.states = [one for one in self.states if one[0] != worker]
        self.offers = [one for one in self.offers if one.worker != worker]
        for function in functions:
            self.promote(function, len(self.past))
        self.expect(reason)

    @precondition(lambda self: self.states)
    @rule(data=st.data(), state=STATES)
    def set_state(self, data: st.DataObject, state: str) -> None:
        worker = data.draw(st.sampled_from([worker for worker, _ in self.states]))
        self.registry.set_state(worker, state)
        self.states = [(one, state if one == worker else old) for one, old in self.states]
        self.expect("")

    @precondition(lambda self: self.states)
    @rule(data=st.data(), entries=st.lists(ENTRIES, max_size=3, unique_by=lambda one: one[0]))
    def register(self, data: st.DataObject, entries: list[tuple[str, bool, int]]) -> None:
        worker = data.draw(st.sampled_from([worker for worker, _ in self.states]))
        batch, refused = [], []
        for index, (function, exclusive, version) in enumerate(entries):
            entry = FunctionEntry(function, f"version {version}", flags=wire.EXCLUSIVE if exclusive else 0)
            batch.append((index, entry, wire.encode_entry(entry)))
            if any(one.worker != worker and one.exclusive != exclusive for one in self.offers_of(function)):
                refused.append((index, "conflict"))
            else:
                self.offer(worker, function, exclusive, wire.encode_entry(entry))
        assert [(index, code) for index, code, _ in self.registry.register(worker, batch)] == refused
        self.expect("")

    def offer(self, worker: str, function: str, exclusive: bool, entry: bytes) -> None:
        known = self.find(worker, function)
        if known is None:
            known = Offer(worker, function, exclusive, entry, not exclusive, 0)
            self.offers.append(known)
        elif known.exclusive != exclusive:
            known.active, known.fence = not exclusive, 0
        known.exclusive, known.entry = exclusive, entry
        self.promote(function, len(self.past))

    @precondition(lambda self: self.states)
    @rule(data=st.data(), functions=st.lists(FUNCTIONS, max_size=3))
    def unregister(self, data: st.DataObject, functions: list[str]) -> None:
        worker = data.draw(st.sampled_from([worker for worker, _ in self.states]))
        refused = []
        for index, function in enumerate(functions):
            known = self.find(worker, function)
            if known is None:
                refused.append(index)
            else:
                self.offers.remove(known)
                self.promote(function, len(self.past))
        assert [index for index, _, _ in self.registry.unregister(worker, functions)] == refused
        self.expect("unregistered")

    @precondition(lambda self: any(one.exclusive and one.active for one in self.offers))
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([one.worker for one in self.offers if one.exclusive and one.active]))
        mine = [one for one in self.offers if one.worker == worker and one.exclusive and one.active]
        done = []
        for one in mine:
            heirs = [heir for heir in self.offers_of(one.function) if heir is not one]
            heirs = [heir for heir in heirs if self.state_of(heir.worker) != wire.DRAINING]
            if heirs:
                heir = sorted(heirs, key=lambda heir: FITNESS.index(self.state_of(heir.worker)))[0]
                one.active, heir.active, heir.fence = False, True, len(self.past)
                done.append(one.function)
        assert set(self.registry.hand_over(worker, [one.function for one in mine])) == set(done)
        self.expect("")

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def the_content_is_the_twins(self) -> None:
        assert self.registry._rows == self.content() == self.past[-1]
        assert (self.registry.digest, self.registry.seq) == (digest_of(self.past[-1]), len(self.past) - 1)
        assert self.registry.rows_bytes == sum(map(len, self.past[-1].values()))
        assert self.registry.provider_rows == len(self.offers)

    @invariant()
    def exclusive_functions_have_one_active_provider_and_their_fences_rise(self) -> None:
        for function, providers in self.registry.providers.items():
            told = [(one.worker_id, one.active, one.fence if one.active else 0) for one in providers]
            offers = self.offers_of(function)
            assert told == [(one.worker, one.active, one.fence if one.active else 0) for one in offers]
            if offers[0].exclusive:
                (active,) = [one for one in offers if one.active]
                assert self.fences.get(function, 0) <= active.fence <= self.registry.seq
                self.fences[function] = active.fence
            else:
                assert all(one.active for one in offers)
        leads = {worker: set(functions) for worker, functions in self.registry.leads.items() if functions}
        assert leads == {
            one.worker: {lead.function for lead in self.offers if lead.worker == one.worker and self.leads(lead)}
            for one in self.offers
            if self.leads(one)
        }

    def leads(self, offer: Offer) -> bool:
        return offer.exclusive and offer.active

    @invariant()
    def what_is_held_of_the_past_leads_to_the_present(self) -> None:
        newest = len(self.past) - 1
        for seq in range(newest + 2):
            missing = self.registry.history.since(seq)
            if seq > newest or newest - seq > HISTORY_MAX:
                assert missing is None
                continue
            assert missing is not None
            rows = self.past[seq]
            for data in missing:
                rows = replayed(rows, wire.decode_delta(data))
            assert (len(missing), rows) == (newest - seq, self.past[-1])

    @invariant()
    def an_image_and_the_deltas_since_are_the_content(self) -> None:
        image = self.registry.image()
        rows = {wire.row_key(data): data for data in image.rows}
        assert (rows, image.digest) == (self.past[image.seq], digest_of(rows))
        missing = self.registry.history.since(image.seq)
        assert missing is not None

    @invariant()
    def every_worker_s_functions_have_their_digest(self) -> None:
        for worker, _ in self.states:
            entries = [one.entry for one in self.offers if one.worker == worker]
            assert self.registry.functions_digest(worker) == wire.functions_digest(entries)


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
