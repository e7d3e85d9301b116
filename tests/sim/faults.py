"""What goes wrong, at random: processes die, stop, stall; networks break, lose, double, delay; replicas rot.

Each fault says what the promises have to say about it, if nothing else happens meanwhile: by when everybody knows of a
death or a silence, that a merely busy worker stays, that a rotten replica is whole again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from iii_zmq import wire
from iii_zmq.core.broker.liveness import HOLD_S

from .checks import require
from .cluster import Cluster, WorkerHost
from .network import Connection
from .users import FUNCTIONS

PROMPT_S = 0.05  # a death is known in milliseconds: here after the network's delays, and a probe that "succeeded"
SLACK_S = 0.3  # on top of what heartbeats and TTL explain: delays, and turns of loops
CALM_S = 6.0  # as long after a fault nothing of it is left


class Faults:
    """One method for each kind; `strike` chooses one."""

    def __init__(self, cluster: Cluster, add_worker: Callable[[], WorkerHost]) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._rng = cluster.rng
        self._network = cluster.network
        self._add_worker = add_worker
        self._broker_disturbed_at = -CALM_S
        self._is_over = False
        kinds: list[tuple[int, Callable[[], None]]] = [
            (4, self.kill_worker), (3, self.kill_after_answer), (4, self.stop_worker), (4, self.stick_worker),
            (4, self.cut_path), (4, self.cut_connections), (3, self.cut_after_register), (2, self.make_half_open),
            (3, self.lose_stream), (2, self.double_stream), (2, self.delay_path), (2, self.read_slowly),
            (4, self.leave_politely), (3, self.corrupt_replica), (2, self.kill_broker), (1, self.close_broker),
            (3, self.stop_broker), (4, self.stick_broker), (2, self.cut_broker), (1, self.fill_queue),
            (2, self.cut_again_and_again), (3, self.cut_after_unregister),
        ]  # fmt: skip
        self._kinds = [strike for _, strike in kinds]
        # A life in which some things never happen and others often finds more than one with a bit of everything.
        self._weights = [weight * self._rng.choice((0, 1, 1, 5)) for weight, _ in kinds]

        # What one of them leads to is known exactly when nothing else happens.
        self.blows: list[Callable[[], None]] = [
            self.kill_worker,
            partial(self.stop_worker, 5.0),
            partial(self.stick_worker, 5.0),
            partial(self.cut_path, 5.0),
            partial(self.stop_broker, 5.0),
            self.cut_after_register,
            self.cut_after_unregister,
            self.kill_broker,
            self.cut_connections,
        ]

    def begin_again(self) -> None:
        """Peace has lasted: whatever was wrong before is over."""
        self._is_over = False
        self._broker_disturbed_at = -CALM_S
        for worker in self._cluster.workers.values():
            worker.disturbed_at = -CALM_S

    def strike(self) -> None:
        if any(self._weights):
            self._rng.choices(self._kinds, self._weights)[0]()

    def end(self) -> None:
        """Everything is as it should be from now on: nothing is stopped, cut, slow or away."""
        self._is_over = True
        self._note("all is well from now on")
        cluster = self._cluster
        self._network.broker_cut = False
        if cluster.broker is None:
            cluster.start_broker()
        elif cluster.broker.stopped:
            self._resume_broker(cluster.broker.stopped_at)
        for worker in list(cluster.workers.values()):
            worker.path.cut = False
            worker.path.slow_s = worker.path.loss = worker.path.doubled = 0.0
            worker.reads_stream_at = 0.0
            worker.ambush = None
            worker.busy_until = min(worker.busy_until, self._clock.now)
            if worker.stopped:
                worker.resume()
            worker.wake()
        for connection in self._network.connections.values():
            connection.is_full = False
        self._network.heal()

    # -- processes -----------------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        worker = self._some_worker()
        if worker is None:
            return
        is_calm = self._is_calm(worker)
        self._disturb(worker)
        self._cluster.end_worker(worker, is_killed=True)
        if is_calm:
            self._expect_gone(worker, PROMPT_S, "was killed")
        self._clock.after(self._rng.uniform(0, 2.0), self._replace)

    def kill_after_answer(self) -> None:
        """What it sent last is still unread when its end is known."""
        worker = self._some_worker()
        if worker is not None:
            worker.ambush = wire.Result, partial(self._kill, worker)

    def _kill(self, worker: WorkerHost) -> None:
        self._disturb(worker)
        self._cluster.end_worker(worker, is_killed=self._rng.random() < 0.5)
        self._clock.after(self._rng.uniform(0, 2.0), self._replace)

    def leave_politely(self) -> None:
        worker = self._some_worker()
        if worker is None or worker.user is None or worker.user.is_leaving:
            return
        self._disturb(worker)
        worker.soon(worker.user.leave)
        self._clock.after(self._rng.uniform(0, 2.0), self._replace)

    def stop_worker(self, span_s: float | None = None) -> None:
        worker = self._some_worker()
        if worker is None or worker.stopped:
            return
        is_calm = self._is_calm(worker)
        self._disturb(worker)
        span_s = self._span(0.05, 6.0) if span_s is None else span_s
        self._note(f"{worker.name} is stopped for {span_s:.2f} s")
        worker.stop()
        if is_calm and span_s > self._silence_s():
            self._expect_gone(worker, self._silence_s(), "was stopped")
        self._clock.after(span_s, partial(self._resume_worker, worker))

    def _resume_worker(self, worker: WorkerHost) -> None:
        if worker.alive and worker.stopped:
            self._note(f"{worker.name} continues")
            self._disturb(worker)
            worker.resume()

    def stick_worker(self, span_s: float | None = None) -> None:
        """Its Python is stuck in a handler; its I/O thread is not."""
        worker = self._some_worker()
        if worker is None or worker.stopped:
            return
        is_calm = self._is_calm(worker)
        self._disturb(worker)
        span_s = self._span(0.02, 8.0) if span_s is None else span_s
        self._note(f"{worker.name} is stuck for {span_s:.2f} s")
        worker.busy_until = self._clock.now + span_s
        self._clock.at(worker.busy_until, partial(self._disturb, worker))
        if is_calm:
            self._expect_stalled(worker, span_s)

    def kill_broker(self) -> None:
        if self._cluster.broker is not None:
            self._cluster.kill_broker()
            self._restart_later()

    def close_broker(self) -> None:
        if self._cluster.broker is not None and not self._cluster.broker.stopped:
            self._cluster.close_broker()
            self._restart_later()

    def _restart_later(self) -> None:
        self._disturb_broker()
        self._clock.after(self._span(0.0, 4.0), self._restart)

    def _restart(self) -> None:
        if self._cluster.broker is None:
            self._disturb_broker()
            self._cluster.start_broker()

    def stop_broker(self, span_s: float | None = None) -> None:
        broker = self._cluster.broker
        if broker is None or broker.stopped or broker.busy_until > self._clock.now:
            return
        self._disturb_broker()
        span_s = self._span(0.05, 6.0) if span_s is None else span_s
        self._note(f"the broker is stopped for {span_s:.2f} s")
        broker.stop()
        broker.stopped_at = self._clock.now
        self._clock.after(span_s, partial(self._resume_broker, self._clock.now))

    def stick_broker(self) -> None:
        """For less time than it would notice."""
        broker = self._cluster.broker
        if broker is not None:
            settings = broker.core.settings
            span_s = self._span(0.001, settings.ttl_s / 2 - settings.heartbeat_s)
            self._note(f"the broker is slow for {span_s:.3f} s")
            self._disturb_broker()
            broker.busy_until = self._clock.now + span_s

    def _resume_broker(self, since: float) -> None:
        broker = self._cluster.broker
        if broker is None or not broker.stopped or broker.stopped_at != since:
            return
        self._note("the broker continues")
        self._disturb_broker()
        settings = broker.core.settings
        if self._clock.now - since > settings.ttl_s / 2 + settings.heartbeat_s + 0.01:
            self._cluster.checks.on_broker_slept(broker.core, self._clock.now)
        broker.resume()

    # -- the network ---------------------------------------------------------------------------------------------------

    def cut_path(self, span_s: float | None = None) -> None:
        worker = self._some_worker()
        if worker is None or worker.path.cut:
            return
        is_calm = self._is_calm(worker)
        self._disturb(worker)
        span_s = self._span(0.05, 6.0) if span_s is None else span_s
        self._note(f"{worker.name} is cut off for {span_s:.2f} s")
        worker.path.cut = True
        if is_calm and span_s > self._silence_s():
            self._expect_gone(worker, self._silence_s(), "was cut off")
        self._clock.after(span_s, partial(self._mend_path, worker))

    def _mend_path(self, worker: WorkerHost) -> None:
        if worker.path.cut:
            self._note(f"{worker.name} is linked again")
            self._disturb(worker)
            worker.path.cut = False
            self._network.heal()

    def cut_broker(self) -> None:
        if self._network.broker_cut:
            return
        self._disturb_broker()
        span_s = self._span(0.05, 6.0)
        self._note(f"the broker is cut off for {span_s:.2f} s")
        self._network.broker_cut = True
        self._clock.after(span_s, self._mend_broker)

    def _mend_broker(self) -> None:
        if self._network.broker_cut:
            self._note("the broker is linked again")
            self._disturb_broker()
            self._network.broker_cut = False
            self._network.heal()

    def cut_connections(self) -> None:
        """Both ends see it at about the same time; the worker connects anew at once."""
        worker = self._some_worker()
        if worker is None:
            return
        self._disturb(worker)
        is_both = self._rng.random() < 0.5
        for connection in self._connections(worker):
            if is_both or self._rng.random() < 0.5:
                self._note(f"{connection} is cut")
                if self._rng.random() < 0.5:
                    connection.close_worker_end()
                else:
                    connection.close_broker_end()

    def cut_after_register(self) -> None:
        """The broker does what was asked, and the answer never arrives."""
        worker = self._some_worker()
        if worker is not None:
            wait_s = self._rng.uniform(0.0005, 0.003)
            worker.ambush = wire.Register, lambda: self._cut_soon(worker, wait_s)
            if worker.user is not None and not worker.core.profile.observer:
                worker.soon(partial(worker.user.register, [self._rng.choice(FUNCTIONS)]))

    def cut_after_unregister(self) -> None:
        """The same, and its user changes their mind while it is away: what was held is not there any more."""
        worker = self._some_worker()
        if worker is not None and worker.user is not None and not worker.user.is_leaving:
            wait_s = self._rng.uniform(0.0005, 0.003)
            worker.ambush = wire.Unregister, lambda: self._cut_soon(worker, wait_s)
            worker.soon(worker.user.think_better_of_it)

    def _cut_soon(self, worker: WorkerHost, wait_s: float) -> None:
        for connection in self._connections(worker):
            if not connection.is_stream:
                connection.down.is_stuck = True
        self._clock.after(wait_s, partial(self._cut_if_alive, worker))

    def cut_again_and_again(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            for turn in range(self._rng.randint(2, 6)):
                self._clock.after(turn * self._rng.uniform(0.01, 0.3), partial(self._cut_if_alive, worker))

    def _cut_if_alive(self, worker: WorkerHost) -> None:
        if worker.alive and not self._is_over:
            self._disturb(worker)
            for connection in self._connections(worker):
                self._note(f"{connection} is cut")
                connection.close_worker_end(is_told=self._rng.random() < 0.5)

    def make_half_open(self) -> None:
        """Something between them forgot the connection: nothing arrives, and at most one side knows."""
        worker = self._some_worker()
        if worker is None:
            return
        self._disturb(worker)
        for connection in self._connections(worker):
            if self._rng.random() < 0.6:
                self._note(f"{connection} is half open")
                connection.is_black_hole = True
                if self._rng.random() < 0.7:
                    connection.close_worker_end()

    def lose_stream(self) -> None:
        self._spell("loses much of its stream", "loss", self._rng.uniform(0.1, 1.0))

    def double_stream(self) -> None:
        self._spell("hears its stream twice", "doubled", self._rng.uniform(0.1, 1.0))

    def delay_path(self) -> None:
        self._spell("is far away", "slow_s", self._rng.uniform(0.01, 0.4))

    def _spell(self, text: str, name: str, value: float) -> None:
        worker = self._some_worker()
        if worker is None:
            return
        self._disturb(worker)
        span_s = self._span(0.1, 4.0)
        self._note(f"{worker.name} {text} for {span_s:.2f} s")
        setattr(worker.path, name, value)
        self._clock.after(span_s, partial(self._end_spell, worker, name))

    def _end_spell(self, worker: WorkerHost, name: str) -> None:
        self._disturb(worker)
        setattr(worker.path, name, 0.0)

    def read_slowly(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self._disturb(worker)
            span_s = self._span(0.1, 5.0)
            self._note(f"{worker.name} leaves its stream unread for {span_s:.2f} s")
            worker.reads_stream_at = self._clock.now + span_s
            self._clock.at(worker.reads_stream_at, worker.wake)

    def fill_queue(self) -> None:
        """The broker's queue for one worker is full: the next send finds no room."""
        worker = self._some_worker()
        if worker is not None:
            self._disturb(worker)
            for connection in self._connections(worker):
                if not connection.is_stream:
                    self._note(f"the broker's queue for {worker.name} is full")
                    connection.is_full = True

    # -- memory --------------------------------------------------------------------------------------------------------

    def corrupt_replica(self) -> None:
        worker = self._some_worker()
        if worker is None or not worker.core.replica.complete or worker.stopped:
            return
        is_calm = self._is_calm(worker)
        self._disturb(worker)
        self.spoil(worker)
        if is_calm:
            settings = self._cluster.climate
            self._expect(worker, 3 * settings.heartbeat_s + SLACK_S, partial(self._check_whole, worker))

    def spoil(self, worker: WorkerHost) -> None:
        """One row of its replica, if there are any, is not what the broker has any more."""
        keys = [key for key, _ in worker.core.replica._content.items()]
        if keys:
            key = self._rng.choice(keys)
            row = self._wrong_row(key)
            self._note(f"{worker.name}'s replica gets a wrong {key}: {'none' if row is None else 'another'}")
            worker.check.corrupt(key, row)

    def _wrong_row(self, key: wire.RowKey) -> bytes | None:
        if self._rng.random() < 0.4:
            return None
        if not key[1]:
            return wire.encode_row(wire.WorkerRow(key[0], "wrong", "host", 1, b"\x80", wire.READY))
        return wire.encode_row(wire.ProviderRow(*key, True, wire.encode_entry(wire.FunctionEntry(key[1], "wrong"))))

    def _check_whole(self, worker: WorkerHost) -> None:
        require(not worker.check.is_corrupt, f"{worker.name}'s replica is still wrong")

    # -- what is promised ----------------------------------------------------------------------------------------------

    def _expect_gone(self, worker: WorkerHost, within_s: float, what: str) -> None:
        worker_id = self._worker_id(worker)
        if worker_id:
            self._expect(worker, within_s, partial(self._check_gone, worker_id, f"{worker.name} {what}"))

    def _check_gone(self, worker_id: str, what: str) -> None:
        history = self._cluster.checks.history
        assert history is not None
        require((worker_id, "") not in history.rows, f"{what}, and {worker_id} is still there")

    def _expect_stalled(self, worker: WorkerHost, span_s: float) -> None:
        worker_id = self._worker_id(worker)
        if not worker_id:
            return
        late_s = 4.5 * self._cluster.climate.heartbeat_s + SLACK_S
        if span_s > late_s:
            self._expect(worker, late_s, partial(self._check_stalled, worker_id, worker.name))
        self._expect(worker, span_s - 0.001, partial(self._check_there, worker_id, worker.name))

    def _check_stalled(self, worker_id: str, name: str) -> None:
        self._check_there(worker_id, name)
        history = self._cluster.checks.history
        assert history is not None
        row = wire.decode_row(history.rows[worker_id, ""])
        is_marked = isinstance(row, wire.WorkerRow) and row.state in (wire.STALLED, wire.DRAINING)
        require(is_marked, f"{name} is stuck, and not shown as stalled")

    def _check_there(self, worker_id: str, name: str) -> None:
        history = self._cluster.checks.history
        assert history is not None
        require((worker_id, "") in history.rows, f"{name} is merely busy, and {worker_id} is gone")

    def _expect(self, worker: WorkerHost, within_s: float, check: Callable[[], None]) -> None:
        """After `within_s`, if nothing else is done to the worker or the broker until then."""
        since = self._clock.now

        def look() -> None:
            is_calm = self._broker_disturbed_at < since and worker.disturbed_at <= since and not self._is_over
            if is_calm:
                check()

        self._clock.after(within_s, look)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _is_calm(self, worker: WorkerHost) -> bool:
        """Nothing has been wrong with it, or with the broker, for a while."""
        since = self._clock.now - CALM_S
        return (
            self._broker_disturbed_at < since
            and worker.disturbed_at < since
            and worker.core.membership.phase == "open"
            and not self._is_over
        )

    def _worker_id(self, worker: WorkerHost) -> str:
        history = self._cluster.checks.history
        welcome = worker.core.membership.welcome
        if history is None or welcome is None or (welcome.worker_id, "") not in history.rows:
            return ""
        return welcome.worker_id

    def _silence_s(self) -> float:
        climate = self._cluster.climate
        return climate.ttl_s + climate.heartbeat_s + SLACK_S

    def _some_worker(self) -> WorkerHost | None:
        workers = list(self._cluster.workers.values())
        return self._rng.choice(workers) if workers else None

    def _connections(self, worker: WorkerHost) -> list[Connection]:
        return [one for one in list(self._network.connections.values()) if one.host is worker and one.worker_open]

    def _span(self, least_s: float, most_s: float) -> float:
        """Mostly short, sometimes long."""
        return least_s + (most_s - least_s) * self._rng.random() ** 2

    def _disturb(self, worker: WorkerHost) -> None:
        worker.disturbed_at = self._clock.now

    def _disturb_broker(self) -> None:
        self._broker_disturbed_at = self._clock.now + HOLD_S

    def _replace(self) -> None:
        if not self._is_over:
            self._add_worker()

    def _note(self, text: str) -> None:
        self._cluster.trace.note("fault", text)
