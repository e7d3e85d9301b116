"""The checker can fail: small forged ledgers, each with one lie, and the one rule that it breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.soak.check import check, main
from tests.soak.records import Record
from tests.soak.rules.calls import HUNG_S
from tests.soak.rules.log import NEVER
from tests.soak.rules.verdict import RULES

Ledger = dict[str, list[Record]]
EPOCH = "e1"
A, B = "ida", "idb"  # session ids of the workers w00.0 and w01.0
ROWS = {
    "a": [A, "", "1" * 32, "w00.0"],
    "b": [B, "", "2" * 32, "w01.0"],
    "a lead": [A, "lead", "3" * 32, True, True],
    "b waits": [B, "lead", "4" * 32, False, True],
    "b lead": [B, "lead", "5" * 32, True, True],
    "b any": [B, "any", "6" * 32, True, False],
    "a any": [A, "any", "7" * 32, True, False],
}


def told(seq: int, kind: str, function: str | None, worker_id: str, reason: str | None = None, left: int | None = None,
         epoch: str = EPOCH) -> list[Any]:  # fmt: skip
    return [epoch, seq, kind, function, worker_id, {A: "w00.0", B: "w01.0"}[worker_id], reason, left]


# The deltas of the one epoch: reason, puts and drops. w01.0 joins, offers `any` and waits for `lead`, which w00.0 leads
# and then gives back.
DELTAS: list[tuple[str, list[str], list[list[str]]]] = [
    ("", ["a"], []),
    ("", ["a lead"], []),
    ("", ["b"], []),
    ("", ["b any", "b waits"], []),
    ("unregistered", ["b lead"], [[A, "lead"]]),
    ("", ["a any"], []),
]
HEARD = {
    3: [told(3, "worker_joined", None, B)],
    4: [told(4, "function_added", "any", B, left=1), told(4, "function_added", "lead", B, left=2)],
    5: [told(5, "function_removed", "lead", A, "unregistered", 1), told(5, "function_changed", "lead", B, left=1)],
    6: [told(6, "function_added", "any", A, left=2)],
}


def delta(seq: int, reason: str, puts: list[list[Any]], drops: list[list[str]], rows: dict[Any, str]) -> Record:
    """Keeps `rows` (key -> hash) up to date, and so knows the digest."""
    for worker_id, function in drops:
        del rows[worker_id, function]
    for put in puts:
        rows[put[0], put[1]] = put[2]
    digest = f"{sum(int(row, 16) for row in rows.values()) % (1 << 128):032x}"
    return {
        "what": "delta", "at": float(seq), "epoch": EPOCH, "seq": seq, "digest": digest, "reason": reason,
        "puts": puts, "drops": drops,
    }  # fmt: skip


def log_of(deltas: list[tuple[str, list[str], list[list[str]]]]) -> list[Record]:
    rows: dict[Any, str] = {}
    made = [
        delta(seq, reason, [ROWS[name] for name in puts], drops, rows)
        for seq, (reason, puts, drops) in enumerate(deltas, 1)
    ]
    return [{"what": "serving", "at": 0.0, "epoch": EPOCH}, *made]


def said(what: str, at: float, **fields: Any) -> Record:
    return {"what": what, "at": at, **fields}


def heard(worker: str, change: list[Any]) -> Record:
    return said("heard", float(change[1]) + 0.1, worker=worker, change=change)


def calling(call: str, at: float = 7.0, *, idempotent: bool = False, must: bool = False) -> Record:
    worker = call.split(":")[0]
    return said("calling", at, call=call, worker=worker, function="any", timeout=1.0, idempotent=idempotent, must=must)


def running(call: str, function: str = "any", fence: int = 0, worker: str = "w01.0", epoch: str = EPOCH) -> Record:
    return said("running", 7.1, call=call, worker=worker, function=function, epoch=epoch, fence=fence)


def ended(call: str, at: float = 7.2, *, answer: str | None = None, fate: str = "") -> Record:
    if fate:
        return said("ended_call", at, call=call, ok=False, fate=fate, code="code")
    return said("ended_call", at, call=call, ok=True, answer=answer or call)


def honest() -> Ledger:
    """Two workers in two processes, with nothing wrong."""
    log = log_of(DELTAS)
    log.append(said("handed", 6.5, epoch=EPOCH, function="lead", fence=5))
    names = ("kept", "pauses", "resumes", "snapshots", "calls_rerouted", "results_late", "renewals", *NEVER)
    log.append(said("closing", 9.9, counters=dict.fromkeys(names, 0)))
    digest = log[6]["digest"]
    changes = [change for seq in (3, 4, 5, 6) for change in HEARD[seq]]
    first = [
        said("joining", 0.5, worker="w00.0", functions=["lead"]),
        said("joined", 2.1, worker="w00.0", epoch=EPOCH, seq=2),
        *[heard("w00.0", change) for change in changes[:3]],
        said("unregistering", 4.9, worker="w00.0", functions=["lead"]),
        *[heard("w00.0", change) for change in changes[3:5]],
        said("unregistered", 5.2, worker="w00.0", functions=["lead"]),
        said("registering", 5.9, worker="w00.0", functions=["any"]),
        heard("w00.0", changes[5]),
        said("registered", 6.2, worker="w00.0", functions=["any"]),
        calling("w00.0:1"),
        ended("w00.0:1"),
        said("level", 9.0, worker="w00.0", id=A, epoch=EPOCH, seq=6, digest=digest),
        calling("w00.0:2", 9.1, must=True),
        ended("w00.0:2", 9.3),
        said("left", 9.9, worker="w00.0"),
    ]
    second = [
        said("joining", 2.5, worker="w01.0", functions=["any", "lead"]),
        said("joined", 4.2, worker="w01.0", epoch=EPOCH, seq=4),
        *[heard("w01.0", change) for change in changes[3:]],
        running("w00.0:1"),
        running("w00.0:2", "lead", 5),
        said("level", 9.0, worker="w01.0", id=B, epoch=EPOCH, seq=6, digest=digest),
    ]
    processes = ("broker.0", "host.0.0", "host.1.0")
    director = [
        said("run", 0.0, seed=1, seconds=1.0, workers=2),
        *[said("started", 0.0, process=name) for name in processes],
        said("settled", 8.0, workers=2),
        *[said("ended", 10.0, process=name, status=0, meant=True) for name in processes],
    ]
    return deepcopy({"director": director, "broker.0": log, "host.0.0": first, "host.1.0": second})  # to be lied in


def written(ledger: Ledger, directory: Path) -> Path:
    for name, records in ledger.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.jsonl").write_text(text)
    return directory


def find(records: list[Record], what: str, **fields: Any) -> Record:
    """The first such record."""
    return next(
        one for one in records if one["what"] == what and all(one.get(name) == value for name, value in fields.items())
    )


def drop(records: list[Record], what: str, **fields: Any) -> None:
    records.remove(find(records, what, **fields))


def position_of(records: list[Record], change: list[Any]) -> int:
    return next(place for place, one in enumerate(records) if one.get("change") == change)


def end_by_kill(ledger: Ledger, process: str, at: float = 10.0) -> None:
    find(ledger["director"], "ended", process=process).update(status=-9, at=at)


# -- lies, one for each way in which a promise can be broken -----------------------------------------------------------

LIES: list[tuple[str, str, Callable[[Ledger], None]]] = []
Lie = Callable[[Ledger], None]


def breaks(rule: str) -> Callable[[Lie], Lie]:
    def note(lie: Lie) -> Lie:
        LIES.append((lie.__name__, rule, lie))
        return lie

    return note


@breaks("one outcome")
def a_call_that_never_ended(ledger: Ledger) -> None:
    drop(ledger["host.0.0"], "ended_call", call="w00.0:1")


@breaks("one outcome")
def a_call_that_hung_until_its_caller_was_killed(ledger: Ledger) -> None:
    drop(ledger["host.0.0"], "ended_call", call="w00.0:1")
    end_by_kill(ledger, "host.0.0", at=7.0 + 1.0 + HUNG_S + 0.1)


@breaks("one outcome")
def a_call_that_ended_twice(ledger: Ledger) -> None:
    ledger["host.0.0"].append(ended("w00.0:1", fate="possibly_executed"))


@breaks("in time")
def a_call_that_ended_long_after_its_timeout(ledger: Ledger) -> None:
    find(ledger["host.0.0"], "ended_call", call="w00.0:1")["at"] = 7.0 + 1.0 + HUNG_S + 0.1


@breaks("own answer")
def the_answer_of_another_call(ledger: Ledger) -> None:
    find(ledger["host.0.0"], "ended_call", call="w00.0:1")["answer"] = "w00.0:2"


@breaks("own answer")
def a_result_of_nothing_that_ran(ledger: Ledger) -> None:
    drop(ledger["host.1.0"], "running", call="w00.0:1")


@breaks("own answer")
def an_executed_failure_of_nothing_that_ran(ledger: Ledger) -> None:
    ledger["host.0.0"] += [calling("w00.0:3"), ended("w00.0:3", fate="executed")]


@breaks("not handed over")
def a_call_not_handed_over_that_ran(ledger: Ledger) -> None:
    ledger["host.0.0"] += [calling("w00.0:3"), ended("w00.0:3", fate="not_handed_over")]
    ledger["host.1.0"].append(running("w00.0:3"))


@breaks("at most once")
def a_call_that_ran_twice(ledger: Ledger) -> None:
    ledger["host.1.0"].append(running("w00.0:1"))


@breaks("at most once")
def a_call_without_an_answer_that_ran_twice(ledger: Ledger) -> None:
    ledger["host.0.0"].append(said("sending", 7.0, call="w00.0:3", worker="w00.0", function="any", idempotent=False))
    ledger["host.1.0"] += [running("w00.0:3"), running("w00.0:3")]


@breaks("no invention")
def a_call_that_nobody_made(ledger: Ledger) -> None:
    ledger["host.1.0"].append(running("w00.0:3"))


@breaks("no invention")
def an_outcome_that_nobody_awaited(ledger: Ledger) -> None:
    ledger["host.0.0"].append(ended("w00.0:3", fate="possibly_executed"))


@breaks("callable again")
def a_last_call_that_failed(ledger: Ledger) -> None:
    find(ledger["host.0.0"], "ended_call", call="w00.0:2").update(ok=False, fate="possibly_executed", code="timeout")


@breaks("whole again")
def a_cluster_that_never_settled(ledger: Ledger) -> None:
    drop(ledger["director"], "settled")


@breaks("whole again")
def a_cluster_that_was_given_up(ledger: Ledger) -> None:
    ledger["director"].append(said("unsettled", 8.0, text="w00.0 is stale"))


@breaks("whole again")
def a_worker_that_never_came_to_the_end(ledger: Ledger) -> None:
    find(ledger["director"], "run")["workers"] = 3


@breaks("no accident")
def a_process_that_fell(ledger: Ledger) -> None:
    find(ledger["director"], "ended", process="broker.0").update(status=-6, meant=False)


@breaks("no accident")
def a_process_that_left_with_an_error(ledger: Ledger) -> None:
    find(ledger["director"], "ended", process="host.0.0").update(status=1)


@breaks("no accident")
def a_traceback(ledger: Ledger) -> None:
    ledger["director"].append(said("trouble", 7.0, process="host.0.0", text="Traceback"))


@breaks("no accident")
def an_exception_that_no_fault_explains(ledger: Ledger) -> None:
    ledger["host.0.0"].append(said("trouble", 7.0, worker="w00.0", text="ValueError"))


@breaks("no accident")
def a_message_that_was_none(ledger: Ledger) -> None:
    find(ledger["broker.0"], "closing")["counters"]["malformed"] = 1


@breaks("log numbered")
def a_delta_with_a_wrong_digest(ledger: Ledger) -> None:
    ledger["broker.0"][3]["digest"] = "0" * 32


@breaks("log numbered")
def a_delta_that_drops_what_is_not_there(ledger: Ledger) -> None:
    add_delta(ledger, "unregistered", [], [[A, "any"]])
    ledger["broker.0"][-1]["drops"].append([A, "other"])


@breaks("log numbered")
def a_number_left_out_of_the_log(ledger: Ledger) -> None:
    ledger["broker.0"].append({**ledger["broker.0"][6], "seq": 8})


@breaks("owned")
def a_worker_that_leaves_a_row_behind(ledger: Ledger) -> None:
    add_delta(ledger, "died", [], [[B, ""], [B, "lead"]])


@breaks("owned")
def a_death_that_takes_rows_of_another(ledger: Ledger) -> None:
    add_delta(ledger, "died", [], [[B, ""], [B, "lead"], [B, "any"], [A, "any"]])


@breaks("owned")
def a_death_that_changes_rows_of_another(ledger: Ledger) -> None:
    add_delta(ledger, "died", [[A, "any", "8" * 32, True, False]], [[B, ""], [B, "lead"], [B, "any"]])


@breaks("owned")
def rows_that_go_without_a_reason(ledger: Ledger) -> None:
    add_delta(ledger, "", [], [[B, "lead"]])


@breaks("owned")
def a_worker_that_is_unregistered(ledger: Ledger) -> None:
    add_delta(ledger, "unregistered", [], [[B, ""], [B, "lead"], [B, "any"]])


@breaks("one active")
def two_active_providers(ledger: Ledger) -> None:
    add_delta(ledger, "", [[A, "lead", "8" * 32, True, True]], [])


@breaks("one active")
def no_active_provider_while_one_lives(ledger: Ledger) -> None:
    add_delta(ledger, "", [[B, "lead", "8" * 32, False, True]], [])


@breaks("one active")
def providers_that_disagree(ledger: Ledger) -> None:
    add_delta(ledger, "", [[A, "lead", "8" * 32, True, False]], [])


@breaks("one active")
def a_stand_by_of_a_function_for_all(ledger: Ledger) -> None:
    add_delta(ledger, "", [[A, "any", "8" * 32, False, False]], [])


def add_delta(ledger: Ledger, reason: str, puts: list[list[Any]], drops: list[list[str]]) -> None:
    """After the end of all that is heard."""
    rows = {(row[0], row[1]): row[2] for name, row in ROWS.items() if name in ("a", "b", "b lead", "b any", "a any")}
    ledger["broker.0"].append(delta(7, reason, puts, drops, rows))


@breaks("fences")
def a_fence_that_falls(ledger: Ledger) -> None:
    ledger["broker.0"].append(said("handed", 6.6, epoch=EPOCH, function="lead", fence=2))


@breaks("fences")
def a_fence_of_no_promotion(ledger: Ledger) -> None:
    find(ledger["host.1.0"], "running", call="w00.0:2")["fence"] = 6


@breaks("fences")
def a_fence_of_another_worker(ledger: Ledger) -> None:
    find(ledger["host.1.0"], "running", call="w00.0:2")["fence"] = 2


@breaks("fences")
def a_fence_of_another_epoch(ledger: Ledger) -> None:
    find(ledger["host.1.0"], "running", call="w00.0:2")["epoch"] = "e0"


@breaks("fences")
def an_exclusive_call_without_a_fence(ledger: Ledger) -> None:
    find(ledger["host.1.0"], "running", call="w00.0:2")["fence"] = 0


@breaks("fences")
def a_fence_where_none_belongs(ledger: Ledger) -> None:
    find(ledger["host.1.0"], "running", call="w00.0:1")["fence"] = 5


@breaks("streams ordered")
def a_gap(ledger: Ledger) -> None:
    for change in HEARD[4]:
        drop(ledger["host.0.0"], "heard", change=change)


@breaks("streams ordered")
def a_change_heard_again(ledger: Ledger) -> None:
    records = ledger["host.0.0"]
    records.insert(position_of(records, HEARD[5][0]), heard("w00.0", HEARD[3][0]))


@breaks("streams ordered")
def changes_in_the_wrong_order(ledger: Ledger) -> None:
    records = ledger["host.0.0"]
    fourth = [heard("w00.0", change) for change in HEARD[4]]
    for change in HEARD[4]:
        drop(records, "heard", change=change)
    place = position_of(records, HEARD[5][1]) + 1
    records[place:place] = fourth


@breaks("streams ordered")
def a_change_of_an_epoch_that_never_was(ledger: Ledger) -> None:
    ledger["host.1.0"].append(heard("w01.0", ["e9", 1, "reset", None, None, None, None, None]))


@breaks("streams ordered")
def a_change_before_it_was_committed(ledger: Ledger) -> None:
    ledger["host.1.0"].append(heard("w01.0", told(7, "worker_changed", None, A)))


@breaks("streams ordered")
def another_epoch_without_a_reset(ledger: Ledger) -> None:
    hear_an_earlier_epoch(ledger)


@breaks("streams atomic")
def a_part_of_a_change(ledger: Ledger) -> None:
    drop(ledger["host.1.0"], "heard", change=HEARD[5][1])


@breaks("streams atomic")
def a_last_change_in_part(ledger: Ledger) -> None:
    last = told(7, "function_removed", "any", B, "bye", 1)
    add_delta(ledger, "bye", [], [[B, ""], [B, "lead"], [B, "any"]])
    ledger["host.0.0"].append(heard("w00.0", last))


@breaks("streams atomic")
def a_change_that_says_something_else(ledger: Ledger) -> None:
    place = position_of(ledger["host.1.0"], HEARD[6][0])
    ledger["host.1.0"][place] = heard("w01.0", told(6, "function_added", "any", A, left=1))


@breaks("streams atomic")
def a_change_with_something_added(ledger: Ledger) -> None:
    place = position_of(ledger["host.1.0"], HEARD[6][0])
    ledger["host.1.0"].insert(place, heard("w01.0", told(6, "worker_changed", None, A)))


@breaks("streams atomic")
def a_change_told_twice(ledger: Ledger) -> None:
    place = position_of(ledger["host.1.0"], HEARD[6][0])
    ledger["host.1.0"].insert(place, heard("w01.0", HEARD[6][0]))


@breaks("streams atomic")
def a_reset_that_does_not_tell_all(ledger: Ledger) -> None:
    place = hear_an_earlier_epoch(ledger)
    ledger["host.0.0"].insert(place, heard("w00.0", [EPOCH, 2, "reset", None, None, None, None, None]))


def hear_an_earlier_epoch(ledger: Ledger) -> int:
    """w00.0 heard of itself in a life of the broker before; the place in its records where it heard of the next."""
    serving, joined = log_of(DELTAS[:1])
    ledger["broker.1"] = [{**serving, "epoch": "e0"}, {**joined, "epoch": "e0"}]
    place = position_of(ledger["host.0.0"], HEARD[3][0])
    ledger["host.0.0"].insert(place, heard("w00.0", told(1, "worker_joined", None, A, epoch="e0")))
    return place + 1


@breaks("streams complete")
def a_last_change_that_was_not_heard(ledger: Ledger) -> None:
    drop(ledger["host.1.0"], "heard", change=HEARD[6][0])


@breaks("streams complete")
def an_observer_that_heard_nothing(ledger: Ledger) -> None:
    ledger["host.1.0"] += [
        said("joining", 2.5, worker="o1.0", functions=[]),
        said("joined", 2.6, worker="o1.0", epoch=EPOCH, seq=3),
        said("standing", 9.0, worker="o1.0", epoch=EPOCH, seq=6),
    ]


@breaks("streams complete")
def a_worker_that_heard_nothing(ledger: Ledger) -> None:
    ledger["host.1.0"] = [one for one in ledger["host.1.0"] if one["what"] != "heard"]


@breaks("streams complete")
def a_first_change_that_was_not_heard(ledger: Ledger) -> None:
    for change in HEARD[5]:
        drop(ledger["host.1.0"], "heard", change=change)
    find(ledger["host.1.0"], "joined")["seq"] = 4


@breaks("acknowledged")
def a_registration_acknowledged_and_never_committed(ledger: Ledger) -> None:
    ledger["host.0.0"] += [
        said("registering", 6.3, worker="w00.0", functions=["new"]),
        said("registered", 6.4, worker="w00.0", functions=["new"]),
        said("unregistering", 6.5, worker="w00.0", functions=["new"]),
        said("unregistered", 6.6, worker="w00.0", functions=["new"]),
    ]


@breaks("acknowledged")
def a_registration_acknowledged_before_it_was_committed(ledger: Ledger) -> None:
    find(ledger["host.0.0"], "registered")["at"] = 5.95


@breaks("acknowledged")
def a_second_registration_that_only_the_first_stands_for(ledger: Ledger) -> None:
    place = ledger["host.0.0"].index(find(ledger["host.0.0"], "registered"))
    ledger["host.0.0"][place + 1 : place + 1] = [
        said("unregistering", 6.3, worker="w00.0", functions=["any"]),
        said("unregistered", 6.4, worker="w00.0", functions=["any"]),
        said("registering", 6.5, worker="w00.0", functions=["any"]),
        said("registered", 6.6, worker="w00.0", functions=["any"]),
    ]


@breaks("present")
def a_registration_that_was_lost(ledger: Ledger) -> None:
    drop(ledger["host.0.0"], "unregistering")
    drop(ledger["host.0.0"], "unregistered")


@breaks("present")
def a_registration_that_came_back(ledger: Ledger) -> None:
    ledger["host.0.0"] += [
        said("unregistering", 6.5, worker="w00.0", functions=["any"]),
        said("unregistered", 6.6, worker="w00.0", functions=["any"]),
    ]


@breaks("no ghosts")
def a_worker_that_is_dead_and_still_there(ledger: Ledger) -> None:
    drop(ledger["host.0.0"], "level")
    find(ledger["director"], "run")["workers"] = 1


@breaks("no ghosts")
def a_worker_that_lives_and_is_not_there(ledger: Ledger) -> None:
    ledger["host.1.0"] += [
        said("joining", 6.5, worker="w02.0", functions=[]),
        said("joined", 6.6, worker="w02.0", epoch=EPOCH, seq=6),
        {**find(ledger["host.1.0"], "level"), "worker": "w02.0", "id": "idc"},
    ]
    find(ledger["director"], "run")["workers"] = 3


@breaks("verified")
def a_digest_that_is_not_the_brokers(ledger: Ledger) -> None:
    find(ledger["host.1.0"], "level")["digest"] = "0" * 32


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "lie"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_is_found_out_by_its_rule_alone(rule: str, lie: Lie, tmp_path: Path) -> None:
    ledger = honest()
    lie(ledger)
    verdict = check(written(ledger, tmp_path))
    assert verdict.broken == {rule}, verdict.offences


def test_each_rule_has_a_lie() -> None:
    assert {rule for _, rule, _ in LIES} == set(RULES)


def test_an_honest_ledger_is_believed(tmp_path: Path) -> None:
    verdict = check(written(honest(), tmp_path))
    assert verdict.offences == []
    assert (verdict.counts["calls"], verdict.counts["changes committed"], verdict.counts["changes heard"]) == (2, 6, 9)


def test_the_lives_of_the_broker_are_read_in_their_order(tmp_path: Path) -> None:
    """By the names of their files the eleventh comes before the third, but what it committed is later."""
    ledger = honest()
    ledger["broker.2"] = ledger.pop("broker.0")
    for life in (10, 11):
        ledger[f"broker.{life}"] = [{**record, "at": 10.0 * life, "epoch": f"e{life}"} for record in log_of(DELTAS)]
    assert check(written(ledger, tmp_path)).offences == []


# -- what is not held against anybody ----------------------------------------------------------------------------------


def a_caller_that_was_killed_with_a_call_open(ledger: Ledger) -> None:
    drop(ledger["host.0.0"], "ended_call", call="w00.0:1")
    end_by_kill(ledger, "host.0.0", at=8.0)


def a_worker_that_was_killed_between_two_changes_of_one_seq(ledger: Ledger) -> None:
    add_delta(ledger, "bye", [], [[B, ""], [B, "lead"], [B, "any"]])
    ledger["host.0.0"].append(heard("w00.0", told(7, "function_removed", "any", B, "bye", 1)))
    end_by_kill(ledger, "host.0.0")


def an_idempotent_call_that_ran_twice(ledger: Ledger) -> None:
    ledger["host.0.0"] += [calling("w00.0:3", idempotent=True), ended("w00.0:3")]
    ledger["host.1.0"] += [running("w00.0:3"), running("w00.0:3")]


def a_possibly_executed_call_that_ran(ledger: Ledger) -> None:
    ledger["host.0.0"] += [calling("w00.0:3"), ended("w00.0:3", fate="possibly_executed")]
    ledger["host.1.0"].append(running("w00.0:3"))


def a_possibly_executed_call_that_did_not_run(ledger: Ledger) -> None:
    ledger["host.0.0"] += [calling("w00.0:3"), ended("w00.0:3", fate="possibly_executed")]


def a_registration_that_was_not_answered(ledger: Ledger) -> None:
    ledger["host.0.0"].append(said("registering", 6.5, worker="w00.0", functions=["new"]))


def a_gap_that_a_reset_tells_of(ledger: Ledger) -> None:
    records = ledger["host.1.0"]
    place = position_of(records, HEARD[5][0])
    reset = heard("w01.0", [EPOCH, 6, "reset", None, None, None, None, None])
    records[place : place + 3] = [
        reset,
        heard("w01.0", told(6, "function_removed", "lead", A, left=1)),
        heard("w01.0", told(6, "function_changed", "lead", B, left=1)),
        heard("w01.0", told(6, "function_added", "any", A, left=2)),
    ]
    # Nothing was heard before it: heard here, so that what it replaced is known.
    records[place:place] = [heard("w01.0", change) for change in HEARD[4]]
    find(records, "joined")["seq"] = 3


def another_epoch_that_a_reset_tells_of(ledger: Ledger) -> None:
    place = hear_an_earlier_epoch(ledger)
    ledger["host.0.0"][place:place] = [
        heard("w00.0", [EPOCH, 2, "reset", None, None, None, None, None]),
        heard("w00.0", told(2, "function_added", "lead", A, left=1)),
    ]


def a_delta_that_was_committed_and_never_published(ledger: Ledger) -> None:
    add_delta(ledger, "bye", [], [[B, ""], [B, "lead"], [B, "any"]])


ALLOWED = [
    a_caller_that_was_killed_with_a_call_open,
    a_worker_that_was_killed_between_two_changes_of_one_seq,
    an_idempotent_call_that_ran_twice,
    a_possibly_executed_call_that_ran,
    a_possibly_executed_call_that_did_not_run,
    a_registration_that_was_not_answered,
    a_gap_that_a_reset_tells_of,
    another_epoch_that_a_reset_tells_of,
    a_delta_that_was_committed_and_never_published,
]


@pytest.mark.parametrize("turn", ALLOWED, ids=[turn.__name__ for turn in ALLOWED])
def test_what_a_fault_explains_is_not_held_against_anybody(turn: Callable[[Ledger], None], tmp_path: Path) -> None:
    ledger = honest()
    turn(ledger)
    assert check(written(ledger, tmp_path)).offences == []


def test_a_line_that_a_kill_cut_short_is_not_read(tmp_path: Path) -> None:
    written(honest(), tmp_path)
    with (tmp_path / "host.0.0.jsonl").open("a") as file:
        file.write('{"what":"running","at":9.')
    assert check(tmp_path).offences == []


@pytest.mark.parametrize(
    ("lie", "status", "last"),
    [
        (lambda ledger: None, 0, "every promise was kept; seed 1"),
        (a_call_that_ran_twice, 1, "BROKEN: at most once; seed 1"),
    ],
)
def test_the_verdict_is_the_exit_status_and_the_last_line(
    lie: Lie,
    status: int,
    last: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = honest()
    lie(ledger)
    monkeypatch.setattr("sys.argv", ["check", str(written(ledger, tmp_path))])
    assert main() == status
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == last
    assert status == 0 or '"call": "w00.0:1"' in printed


def test_an_empty_directory_is_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["check", str(tmp_path)])
    assert main() == 2
