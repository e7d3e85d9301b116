"""Each call's way: asked for, executed or not, and ended at its caller."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Record
from .log import Log
from .verdict import Verdict

HUNG_S = 30.0  # beyond a call's timeout: more than all the times together that a process is stopped or busy for


@dataclass(slots=True)
class _Call:
    process: str  # its caller's
    begun: Record | None = None
    ended: Record | None = None
    ends: int = 0
    runs: int = 0


class Calls:
    """All of them, by id."""

    def __init__(self, log: Log, verdict: Verdict) -> None:
        self._log = log
        self._verdict = verdict
        self._calls: dict[str, _Call] = {}

    # -- records -------------------------------------------------------------------------------------------------------

    def calling(self, process: str, record: Record) -> None:
        call = self._call(record["call"])
        call.process, call.begun = process, record
        self._verdict.counts["calls" if record["what"] == "calling" else "calls without an answer"] += 1

    def ended(self, record: Record) -> None:
        call = self._call(record["call"])
        call.ended, call.ends = record, call.ends + 1
        if call.ends > 1:
            self._verdict.offend("one outcome", f"{record['call']} ended {call.ends} times", record)
        if record["ok"]:
            self._verdict.counts["calls that succeeded"] += 1
        else:
            self._verdict.failures[record["fate"], record["code"]] += 1

    def running(self, record: Record) -> None:
        self._call(record["call"]).runs += 1
        self._verdict.counts["executions"] += 1
        function, worker = record["function"], record["worker"]
        promoted = self._log.promotions.get((function, worker), set())
        if function not in self._log.exclusive:
            if record["fence"]:
                self._verdict.offend("fences", f"{function} is not exclusive, and came with a fence", record)
        elif (record["epoch"], record["fence"]) not in promoted:
            text = f"{worker} ran {function} with the fence {record['epoch']}:{record['fence']}, never promoted by it"
            self._verdict.offend("fences", text, record)

    # -- the end -------------------------------------------------------------------------------------------------------

    def end(self, killed: dict[str, float]) -> None:
        """No more records. `killed`: the processes that were, and when."""
        for name, call in self._calls.items():
            if call.begun is None:
                self._verdict.offend("no invention", f"nobody called {name}", *_those(call.ended))
            else:
                self._check_outcome(name, call, call.begun, killed)
                self._check_runs(name, call, call.begun)

    def _check_outcome(self, name: str, call: _Call, begun: Record, killed: dict[str, float]) -> None:
        if begun["what"] == "sending":
            return
        if call.ended is None:
            died_at = killed.get(call.process)
            self._verdict.counts["calls whose caller was killed"] += died_at is not None
            if died_at is None or died_at > begun["at"] + begun["timeout"] + HUNG_S:
                self._verdict.offend("one outcome", f"{name} never ended", begun)
            return
        if call.ended["at"] > begun["at"] + begun["timeout"] + HUNG_S:
            self._verdict.offend("in time", f"{name} took {call.ended['at'] - begun['at']:.1f} s", begun, call.ended)
        if begun["must"] and not call.ended["ok"]:
            self._verdict.offend("callable again", f"{name} failed", begun, call.ended)

    def _check_runs(self, name: str, call: _Call, begun: Record) -> None:
        offend, ended = self._verdict.offend, call.ended
        records = (begun, *_those(ended))
        if call.runs > 1 and not begun["idempotent"]:
            offend("at most once", f"{name} ran {call.runs} times", *records)
        self._verdict.counts["idempotent calls that ran again"] += call.runs > 1 and begun["idempotent"]
        if ended is None:
            return
        if ended["ok"] and ended["answer"] != name:
            offend("own answer", f"{name} was answered by {ended['answer']!r}", *records)
        if not call.runs and (ended["ok"] or ended["fate"] == "executed"):
            offend("own answer", f"{name} was never executed", *records)
        if call.runs and not ended["ok"] and ended["fate"] == "not_handed_over":
            offend("not handed over", f"{name} was executed", *records)
        if not ended["ok"] and ended["fate"] == "possibly_executed":
            self._verdict.counts["possibly executed: was" if call.runs else "possibly executed: was not"] += 1

    def _call(self, name: str) -> _Call:
        call = self._calls.get(name)
        if call is None:
            call = self._calls[name] = _Call("")
        return call


def _those(record: Record | None) -> tuple[Record, ...]:
    return () if record is None else (record,)
