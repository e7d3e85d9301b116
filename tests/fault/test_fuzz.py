"""The fuzzer runs for a moment in the suite, finds what is there to be found, and says how to repeat it."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from iii_zmq import wire
from tests.fault.entrypoints import ENTRIES
from tests.fault.fuzz import EntryPoint, Failure, Fuzzer, main
from tests.net.brokers import ROOT, environment

pytestmark = [pytest.mark.net, pytest.mark.fault]

SEED = 20_260  # the same runs each time; bin/fuzz draws others
SECONDS_MAX = 10.0  # for one entry point: what a slow machine does not get through is left out
RUNS = {"broker": 20, "worker": 50, "shell": 300}
RUNS_OF_BYTES = 1_000


@pytest.mark.parametrize("name", ENTRIES)
def test_nothing_that_comes_in_breaks_what_must_hold(name: str) -> None:
    entry = ENTRIES[name]()
    try:
        fuzzer = Fuzzer(entry, Random(SEED))
        fuzzer.fuzz(SECONDS_MAX, RUNS.get(name, RUNS_OF_BYTES))
    finally:
        entry.close()
    assert fuzzer.runs > len(entry.seeds)
    assert fuzzer.reached or wire.COMPILED  # steps of compiled code are not seen


# -- the fuzzer itself -------------------------------------------------------------------------------------------------


def breaks_on_a_kind(data: bytes) -> None:
    heading = wire.read_heading(data)
    if heading is not None and heading.kind == 0x90:
        raise ZeroDivisionError


def broken() -> EntryPoint:
    """A frame of 116 bytes, of which 16 are needed for the failure, and one of them is another."""
    return EntryPoint("broken", breaks_on_a_kind, [wire.PREFIX.pack(wire.MAGIC, 1, 1, 100, 1) + bytes(100)])


def test_a_failure_is_found_and_made_as_small_as_it_goes() -> None:
    with pytest.raises(Failure) as found:
        Fuzzer(broken(), Random(1)).fuzz(60.0)
    assert "ZeroDivisionError" in found.value.report
    assert (len(found.value.data), found.value.data[:2], found.value.data[3]) == (16, b"i3", 0x90)


@pytest.mark.skipif(wire.COMPILED, reason="steps of compiled code are not seen")
def test_what_reaches_new_code_is_kept_and_what_does_not_is_not() -> None:
    fuzzer = Fuzzer(
        EntryPoint("headings", breaks_on_a_kind, [b"", b"", bytes(16), bytes(16), b"i3" + bytes(14)]), Random(1)
    )
    fuzzer.fuzz(0.0)
    assert fuzzer.corpus == [b"", b"i3" + bytes(14)]


def test_a_seed_repeats_a_run() -> None:
    fuzzers = [Fuzzer(ENTRIES["decode"](), Random(5)) for _ in range(2)]
    for fuzzer in fuzzers:
        fuzzer.fuzz(60.0, 300)
    assert fuzzers[0].corpus == fuzzers[1].corpus


def test_the_command_prints_seed_and_input_and_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broken", "--seed", "3", "--seconds", "60"], {"broken": broken}) == 1
    told = capsys.readouterr().out
    assert told.startswith("seed 3\n")
    again = told.rsplit("again: bin/fuzz broken --input ", 1)[1].strip()
    assert main(["broken", "--input", again], {"broken": broken}) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_the_command_fuzzes_all_entry_points_for_as_long_as_it_is_told() -> None:
    command = [sys.executable, "-m", "tests.fault.fuzz", "--seconds", "1", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0].split(" ")[0] for line in done.stdout.splitlines()] == ["seed", *ENTRIES]
