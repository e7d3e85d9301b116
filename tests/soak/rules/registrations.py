"""What each worker registered and was told of it, against the broker's log and the registry as it is at the end."""

from __future__ import annotations

from collections import Counter, defaultdict

from ..records import Record
from .log import Log, Rows
from .verdict import Verdict


class Registrations:
    """Of all workers. What was asked for and not answered may be there or not; the living have no such thing left."""

    def __init__(self, log: Log, verdict: Verdict) -> None:
        self._log = log
        self._verdict = verdict
        self._asked: dict[str, list[str]] = {}  # worker -> functions of its `joining`
        self._held: dict[str, dict[str, bool]] = defaultdict(dict)  # worker -> function -> whether acknowledged
        self._acknowledged: Counter[tuple[str, str]] = Counter()
        self._levels: list[Record] = []

    # -- records, each worker's in the order in which they were written ------------------------------------------------

    def joining(self, record: Record) -> None:
        self._asked[record["worker"]] = record["functions"]

    def joined(self, record: Record) -> None:
        self._acknowledge(record, self._asked.get(record["worker"], []))

    def registering(self, record: Record) -> None:
        for function in record["functions"]:
            self._held[record["worker"]][function] = False

    def registered(self, record: Record) -> None:
        self._verdict.counts["registrations acknowledged"] += len(record["functions"])
        self._acknowledge(record, record["functions"])

    def refused(self, record: Record) -> None:
        for function in record["functions"]:
            self._held[record["worker"]].pop(function, None)

    def unregistering(self, record: Record) -> None:
        self.registering(record)  # not known for now

    def unregistered(self, record: Record) -> None:
        self._verdict.counts["unregistrations acknowledged"] += len(record["functions"])
        self.refused(record)

    def level(self, record: Record) -> None:
        self._levels.append(record)

    # -- the end -------------------------------------------------------------------------------------------------------

    def end(self, workers: int) -> None:
        """No more records; `workers` is how many there are to be."""
        if len(self._levels) != workers:
            self._verdict.offend("whole again", f"{len(self._levels)} of {workers} workers came to the end")
        for record in self._levels:
            self._check_level(record)
        if self._levels:
            self._check_ghosts(max(self._levels, key=lambda record: int(record["seq"])))

    def _acknowledge(self, record: Record, functions: list[str]) -> None:
        worker = record["worker"]
        for function in functions:
            self._held[worker][function] = True
            self._acknowledged[worker, function] += 1
            committed = self._log.times_added(worker, function, record["at"])
            if committed < self._acknowledged[worker, function]:
                text = f"{function} of {worker} was acknowledged, and not in the log"
                self._verdict.offend("acknowledged", text, record)

    def _check_level(self, record: Record) -> None:
        rows = self._rows_at(record)
        if rows is None:
            return
        there = {function for worker_id, function in rows if worker_id == record["id"] and function}
        held = self._held[record["worker"]]
        lost = [function for function, is_held in held.items() if is_held and function not in there]
        if lost:
            self._verdict.offend("present", f"{record['worker']} registered {lost}, which are not there", record)
        surplus = [function for function in there if function not in held]
        if surplus:
            self._verdict.offend(
                "present", f"{surplus} of {record['worker']} are there, which it does not offer", record
            )
        self._verdict.counts["functions at the end"] += len(there)

    def _rows_at(self, record: Record) -> Rows | None:
        history = self._log.histories.get(record["epoch"])
        if history is None or not history.holds(record["seq"]):
            self._verdict.offend("verified", f"{record['worker']} is where the broker never was", record)
            return None
        digest = history.digest_at(record["seq"])
        if record["digest"] != digest:
            self._verdict.offend("verified", f"{record['worker']} has another digest than {digest}", record)
        return history.rows_at(record["seq"])

    def _check_ghosts(self, latest: Record) -> None:
        history = self._log.histories.get(latest["epoch"])
        if history is None or not history.holds(latest["seq"]):
            return
        rows = history.rows_at(latest["seq"])
        living = {record["id"] for record in self._levels}
        there = {worker_id for worker_id, function in rows if not function}
        ghosts = there - living | {worker_id for worker_id, _ in rows} - there
        if ghosts:
            names = [rows[ghost, ""].name if (ghost, "") in rows else ghost for ghost in ghosts]
            self._verdict.offend("no ghosts", f"{sorted(names)} are in the registry, and do not live", latest)
        if living - there:
            self._verdict.offend("no ghosts", f"{sorted(living - there)} live, and are not in the registry", latest)
