"""docs/limits.md names constants, values, counters and tests that are there, and forgets no constant of ours."""

from __future__ import annotations

import importlib
from decimal import Decimal
from pkgutil import walk_packages

import iii_zmq
from iii_zmq.core.counters import BROKER_COUNTERS, BROKER_GAUGES, WORKER_COUNTERS
from tests.net.test_protocol_doc import ROOT, table, tables

TEXT = (ROOT / "docs" / "limits.md").read_text()
ROWS = [row for head, rows in tables(TEXT) if head[:2] == ["What", "Constant"] for row in rows]
# Not of something that piles up: how much of a name is shown, the widest value that is taken, parts of an algorithm.
OTHERS = {"NAMES_SHOWN_MAX", "BUCKET_MAX", "DEPTH_MAX"}


def constants() -> dict[str, set[Decimal]]:
    """Every number of ours by its name; several modules may have one of the same name."""
    found: dict[str, set[Decimal]] = {}
    for module in walk_packages(iii_zmq.__path__, "iii_zmq."):
        if not module.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if name.upper() == name and type(value) in (int, float):
                    found.setdefault(name, set()).add(Decimal(str(value)))
    return found


def test_there_are_tables() -> None:
    assert len(ROWS) > 50


def test_constants_have_the_values_that_are_told() -> None:
    known = constants()
    for row in ROWS:
        what, name, value = row[:3]
        assert bool(name) or value.startswith("of "), what
        if name:
            assert Decimal(value.replace(",", "")) in known[name], what


def test_counters_are_those_of_the_broker_and_the_worker() -> None:
    known = {*BROKER_COUNTERS, *BROKER_GAUGES, *WORKER_COUNTERS}
    assert {row[4] for row in ROWS if row[4]} <= known


def test_tests_are_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("*/test_*.py"))
    missing = {row[5] for row in ROWS if row[5] and f"def {row[5]}(" not in sources}
    assert missing == set()


def test_no_limit_is_forgotten() -> None:
    told = {row[1] for row in ROWS} | {row[0] for row in table("Constant")} | OTHERS
    assert {name for name in constants() if name.endswith("_MAX")} <= told
