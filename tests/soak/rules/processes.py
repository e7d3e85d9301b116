"""What the director did and saw: who was killed, and who ended or complained without its doing."""

from __future__ import annotations

from collections.abc import Iterable

from ..records import Record
from .verdict import Verdict


class Processes:
    """Of one run. `killed`: process -> when it ended; `workers` and `seed` as the run was asked for."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self.killed: dict[str, float] = {}
        self.seed: int | None = None
        self.workers = 0

    def read(self, records: Iterable[Record]) -> None:
        is_settled = False
        for record in records:
            match record["what"]:
                case "run":
                    self.seed, self.workers = record["seed"], record["workers"]
                case "started":
                    self._verdict.counts["processes"] += 1
                case "ended":
                    self._take_end(record)
                case "fault":
                    self._verdict.faults[record["kind"]] += 1
                case "trouble":
                    self._verdict.offend("no accident", f"{record['process']} is in trouble", record)
                case "unsettled":
                    self._verdict.offend("whole again", record["text"][:200], record)
                case "settled":
                    is_settled = True
        if not is_settled:
            self._verdict.offend("whole again", "the cluster never settled")

    def _take_end(self, record: Record) -> None:
        if not record["meant"]:
            self._verdict.offend("no accident", f"{record['process']} ended with {record['status']}", record)
        if record["status"] < 0:
            self.killed[record["process"]] = record["at"]
        elif record["status"] > 0 and record["meant"]:
            self._verdict.offend("no accident", f"{record['process']} ended with {record['status']}", record)
