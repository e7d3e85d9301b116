"""One simulated run: a climate and a life chosen by the seed, then peace, in which everything must come right.

Simulation(seed).run()      raises Violation, with the seed and the last events in its text
"""

from __future__ import annotations

from functools import partial
from random import Random

from iii_zmq import wire
from iii_zmq.core.broker.answers import BROADCAST_BYTES_MIN, PART_BYTES_MAX
from iii_zmq.core.worker.events import CONNECTED
from tests.core.brokerage import leftovers

from .checks import require
from .cluster import BrokerHost, Climate, Cluster, WorkerHost
from .faults import Faults
from .trace import Violation
from .users import FUNCTIONS, NEVER, OK, RAISE, Entry, Ledger, User

PEACE_MIN_S = 3.5  # until a half-open connection is noticed
PEACE_MAX_S = 20.0  # until everything is quiet: reconnecting with backoff, a lost presence, drains
LOOK_EVERY_S = 0.25
REPAIR_MAX_S = 1.0
BLOW_S = 6.5
CALL_MAX_S = 3.0
LEAVE_MAX_S = 5.0
TRACE_LINES = 160


def climate_of(rng: Random) -> Climate:
    """Small and large clusters, calm and stormy ones, with plenty of room and with hardly any."""
    is_calm = rng.random() < 0.4
    is_tight = rng.random() < 0.5
    return Climate(
        workers=rng.choice((3, 4, 6, 8)) if rng.random() < 0.9 else rng.randint(12, 30),
        steps=400,
        step_s=rng.choice((0.01, 0.04, 0.1)) * (2 if is_calm else 1),
        fault_every_s=rng.choice((3.0, 6.0)) if is_calm else rng.choice((0.15, 0.4, 1.0)),
        history_max=rng.choice((0, 3, 20)) if rng.random() < 0.3 else 1000,
        part_bytes_max=300 if is_tight else PART_BYTES_MAX,
        broadcast_bytes_min=1 if is_tight else BROADCAST_BYTES_MIN,
        broadcast_from=rng.choice((1, 2, 4)),
        burst_max=rng.choice((2, 16, 256)),
        stream_waiting_max=rng.choice((10, 200)),
        image_age_max=rng.choice((None, 20)),
    )


class Simulation:
    """A cluster, its users and its faults."""

    def __init__(
        self, seed: int, *, steps: int | None = None, workers: int | None = None, is_verbose: bool = False
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.climate = climate_of(self.rng)
        self.climate.steps = steps or self.climate.steps
        self.climate.workers = workers or self.climate.workers
        self.cluster = Cluster(self.climate, self.rng, is_verbose=is_verbose)
        self.ledger = Ledger(self.cluster.clock)
        self.users: dict[str, User] = {}
        self.faults = Faults(self.cluster, self._add_worker)

    def run(self) -> None:
        """Raises: Violation."""
        try:
            with self.climate.applied():
                self.live()
                self.settle()
        except Exception as error:  # also what a core raises: its own assertions are promises too
            events = "\n".join(self.cluster.trace.lines()[-TRACE_LINES:])
            text = f"{events}\n\n{type(error).__name__}: {error}\nreplay: bin/sim {self.seed} (climate: {self.climate})"
            raise Violation(text) from error

    # -- life ----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The broker starts, and the first workers."""
        self.cluster.start_broker()
        for _ in range(self.climate.workers):
            self._add_worker()

    def live(self) -> None:
        """Users act, and faults strike."""
        clock, rng, climate = self.cluster.clock, self.rng, self.climate
        if not self.users:
            self.begin()
        clock.run_for(rng.choice((0.0, 0.05, 1.0)))
        fault_at = clock.now + rng.expovariate(1 / climate.fault_every_s)
        for _ in range(climate.steps):
            next_at = clock.now + rng.expovariate(1 / climate.step_s)
            while fault_at < next_at:
                clock.run_until(fault_at)
                self.faults.strike()
                fault_at += rng.expovariate(1 / climate.fault_every_s)
            clock.run_until(next_at)
            self._act()

    def _add_worker(self) -> WorkerHost:
        is_observer = self.rng.random() < 0.1
        worker = self.cluster.start_worker(observer=is_observer, credit=self.rng.choice((1, 2, 128)))
        user = self.users[worker.name] = User(self.cluster, worker, self.ledger)
        if not is_observer and self.rng.random() < 0.7:
            worker.soon(lambda: user.register(self._some_functions(4)))
        return worker

    def _act(self) -> None:
        """One user does one thing."""
        rng = self.rng
        workers = list(self.cluster.workers.values())
        if not workers:
            return
        worker = rng.choice(workers)
        user = self.users[worker.name]
        if user.is_leaving:
            return
        chance = rng.random()
        if chance < 0.12 and not worker.core.profile.observer:
            functions = self._some_functions(3)
            worker.soon(lambda: user.register(functions))
        elif chance < 0.15 and not worker.core.profile.observer:
            function_id = rng.choice(FUNCTIONS)
            worker.soon(lambda: user.change_mind(function_id))
        elif chance < 0.2:
            offered = user.offered()
            if offered:
                gone = rng.sample(offered, rng.randint(1, min(2, len(offered))))
                worker.soon(lambda: user.unregister(gone))
        elif chance < 0.23:
            worker.soon(user.give_up)
        else:
            for _ in range(rng.choice((1, 1, 2, 6))):
                worker.soon(lambda: self._call(user, worker))

    def _some_functions(self, most: int) -> list[str]:
        return self.rng.sample(FUNCTIONS, self.rng.randint(1, most))

    def _call(self, user: User, worker: WorkerHost) -> None:
        rng = self.rng
        if user.is_leaving:
            return
        function_id = rng.choice(FUNCTIONS)
        chance = rng.random()
        target = ""
        if rng.random() < 0.1:
            ids = sorted(worker.core.replica.workers)
            target = rng.choice(ids) if ids else ""
        user.call(
            function_id,
            timeout_s=rng.uniform(0.005, 0.05) if chance < 0.2 else rng.uniform(0.3, 3) if chance < 0.6 else 120.0,
            target=target,
            behaviour=rng.choices((OK, RAISE, NEVER), (80, 10, 2))[0],
            took_s=rng.choice((0.0, 0.0, rng.uniform(0, 0.05), rng.uniform(0, 1.0))),
            is_no_answer=rng.random() < 0.1,
            is_large=rng.random() < self.climate.large_share,
        )

    # -- peace ---------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything heals: within a while all agree, nothing is open, and every function is callable."""
        self.faults.end()
        self.cluster.clock.run_for(PEACE_MIN_S)
        self._wait_until_quiet()
        self._check_ledger()
        self._spoil_everything()
        self._check_all()
        self._strike_once()
        self._check_all()
        self._leave()

    def _check_all(self) -> None:
        """What was acknowledged is there, nothing else is, and all of it can be called."""
        self._check_content()
        self._call_everything()
        self._wait_until_quiet()

    def _strike_once(self) -> None:
        """One fault amid peace, so that nothing else can excuse what follows from it; then peace again."""
        blow = self.rng.choice(self.faults.blows)
        self.faults.begin_again()
        blow()
        self.cluster.clock.run_for(BLOW_S)
        self.faults.end()
        self.cluster.clock.run_for(PEACE_MIN_S)
        self._wait_until_quiet()

    def _leave(self) -> None:
        """All go, one after the other: whatever they left behind would stay for ever."""
        broker = self.cluster.broker
        assert broker is not None
        for name, worker in list(self.cluster.workers.items()):
            worker.soon(self.users[name].leave)
            self.cluster.clock.run_for(self.rng.choice((0.0, 0.5)))
        self.cluster.clock.run_for(LEAVE_MAX_S)
        require(not self.cluster.workers, f"{list(self.cluster.workers)} can't leave")
        left = leftovers(broker.core)
        require(not left, f"everybody has left, and the broker still holds {left}")

    def _wait_until_quiet(self) -> None:
        clock = self.cluster.clock
        end = clock.now + PEACE_MAX_S
        while troubles := self._troubles():
            if clock.now >= end:
                text = "\n  ".join(troubles)
                raise Violation(f"after {PEACE_MAX_S} s of peace:\n  {text}")
            for name, worker in self.cluster.workers.items():
                worker.soon(self.users[name].wake_sleepers)
            clock.run_for(LOOK_EVERY_S)

    def _spoil_everything(self) -> None:
        """Nothing happens any more: only a beacon can tell that a row is wrong."""
        for worker in self.cluster.workers.values():
            self.faults.spoil(worker)
        self.cluster.clock.run_for(REPAIR_MAX_S)
        for name, worker in self.cluster.workers.items():
            require(not worker.check.is_corrupt, f"{name}'s replica is still wrong")

    def _troubles(self) -> list[str]:
        broker = self.cluster.broker
        assert broker is not None
        troubles = self._broker_troubles(broker)
        for name, worker in self.cluster.workers.items():
            core, user = worker.core, self.users[name]
            replica = core.replica
            found = {
                f"is {core.membership.state} ({core.membership.phase})": core.membership.state != CONNECTED,
                "is still leaving": user.is_leaving,
                f"is at {replica.position}": replica.position != (broker.core.registry.epoch, broker.core.registry.seq),
                "has another digest": replica.digest != broker.core.registry.digest or not replica.complete,
                f"has {len(core.outgoing)} calls open": bool(len(core.outgoing)),
                f"runs {len(core.incoming)} calls": bool(len(core.incoming)),
                "has registrations open": not (core.offers.is_settled(replica.position) and user.is_settled()),
            }
            troubles += [f"{name} {text}" for text, is_true in found.items() if is_true]
        return troubles

    def _broker_troubles(self, broker: BrokerHost) -> list[str]:
        core = broker.core
        status = core.status(self.cluster.clock.now)
        troubles = []
        if status["sessions"] != len(self.cluster.workers):
            troubles.append(f"the broker has {status['sessions']} sessions of {len(self.cluster.workers)} workers")
        for worker_id in core.registry.workers:
            session = core.sessions.by_worker.get(worker_id)
            if session is None:
                troubles.append(f"{worker_id} has no session")
            elif session.in_flight or session.open or session.waiting or session.answer is not None:
                troubles.append(
                    f"the broker has {len(session.in_flight)} calls in flight to {worker_id}, {len(session.open)} of "
                    f"it open, {list(session.waiting)} waiting for it, answer {session.answer}"
                )
            elif session.state != wire.READY:
                troubles.append(f"{worker_id} is {session.state}")
        return troubles

    def _check_ledger(self) -> None:
        for entry in self.ledger.entries.values():
            require(entry.caller not in self.users or not self._is_lost(entry), f"{entry} never ended")

    def _is_lost(self, entry: Entry) -> bool:
        return entry.is_open and entry.caller in self.cluster.workers

    def _check_content(self) -> None:
        """What was acknowledged is there, and nothing else."""
        broker = self.cluster.broker
        assert broker is not None
        self.cluster.checks.compare_content(broker.core)
        registry = broker.core.registry
        offerers = {}
        for name, worker in self.cluster.workers.items():
            worker.check.compare_rows()
            welcome = worker.core.membership.welcome
            assert welcome is not None
            if not worker.core.profile.observer:
                offerers[welcome.worker_id] = name
        ghosts = registry.workers.keys() - offerers.keys()
        missing = offerers.keys() - registry.workers.keys()
        require(not ghosts and not missing, f"ghosts: {sorted(ghosts)}, missing: {sorted(missing)}")
        for worker_id, name in offerers.items():
            require(registry.workers[worker_id].name == name, f"{worker_id} is not {name}'s row")
            user = self.users[name]
            unsure = user.uncertain()
            held = {key: one.entry for key, one in registry.offered[worker_id].items() if key not in unsure}
            expected = user.expected()
            text = f"{name} was acknowledged {sorted(expected)}, the broker holds {sorted(held)}"
            require(held == expected, text + (" with other entries" if held.keys() == expected.keys() else ""))

    def _call_everything(self) -> None:
        """Each function of each worker is really called, by somebody else if there is anybody."""
        asked: list[Entry] = []
        workers = list(self.cluster.workers.values())
        for worker in workers:
            welcome = worker.core.membership.welcome
            assert welcome is not None
            for function_id, entry in self.users[worker.name].expected().items():
                caller = self.rng.choice(workers)
                is_exclusive = wire.decode_entry(entry).exclusive
                target = "" if is_exclusive else welcome.worker_id
                caller.soon(partial(self._ask, asked, self.users[caller.name], function_id, target))
        self.cluster.clock.run_for(CALL_MAX_S)
        for one in asked:
            require(one.outcome == "result", f"{one} at {one.target or 'any'}: {one.outcome or 'no outcome'} in peace")

    def _ask(self, asked: list[Entry], user: User, function_id: str, target: str) -> None:
        entry = user.call(function_id, timeout_s=CALL_MAX_S - 0.5, target=target)
        assert entry is not None
        asked.append(entry)
