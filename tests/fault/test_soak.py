"""The ledger, for a short while: `bin/soak` by hand goes on for ten minutes and more."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.brokers import ROOT, environment
from tests.soak.faults import WEIGHTS

pytestmark = [pytest.mark.net, pytest.mark.fault, pytest.mark.slow]

SECONDS = 7  # of faults, or as long as it takes for each kind to come once
PATIENCE_S = 110.0  # below the time after which the suite takes a test for hung; an idle machine takes 25 and 40 s


@pytest.mark.parametrize("how", [[], ["--one-process"]], ids=["many processes", "one process"])
def test_every_promise_is_kept_under_each_kind_of_fault(tmp_path: Path, how: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.soak",
        "--seconds",
        str(SECONDS),
        "--seed",
        "1",
        "--keep",
        str(tmp_path),
        *how,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    try:
        printed, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends what it started
            process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, printed
    faults = printed.split("\nfaults\n")[1].split("\n\n")[0]
    assert [kind for kind in WEIGHTS if f" {kind}\n" not in faults + "\n"] == []
