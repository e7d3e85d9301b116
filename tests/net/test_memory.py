"""Freed memory is kept: by a broker as mallopt says, by a process with workers from its first large payload on."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from iii_zmq import wire
from iii_zmq.io import memory
from tests.net.brokers import environment, running_broker

# Eight blocks of 1 MB, freed together, a hundred times: 2,000 pages each time, if they are fresh ones.
PROGRAM = """
import resource, sys
from iii_zmq import Worker

url, size = sys.argv[1], int(sys.argv[2])
worker = Worker("w", url)
worker.register("f::echo", lambda payload: payload)
with worker:
    assert len(worker.call("f::echo", bytes(size))) == size
del worker

def use():
    held = [b"x" * 1_000_000 for _ in range(8)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    use()
before = faults()
for _ in range(100):
    use()
print(faults() - before)
"""
FRESH = 100_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns")
@pytest.mark.parametrize(
    ("size", "decided", "is_kept"),
    [(1_000_000, {}, True), (100, {}, False), (1_000_000, {"MALLOC_TRIM_THRESHOLD_": "131072"}, False)],
    ids=["after a large payload", "small ones alone", "the user has decided"],
)
def test_a_worker_keeps_freed_memory_from_its_first_large_payload_on(
    size: int, decided: dict[str, str], is_kept: bool
) -> None:
    with running_broker() as broker:
        command = [sys.executable, "-c", PROGRAM, broker.url, str(size)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=environment() | decided
        )
    found = int(done.stdout)
    assert found < FRESH / 10 if is_kept else found > FRESH


@pytest.mark.parametrize("decided", [False, True])
def test_the_broker_keeps_freed_memory_unless_the_user_has_decided(
    monkeypatch: pytest.MonkeyPatch, decided: bool
) -> None:
    told: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda what, value: told.append((what, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if decided:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    memory.keep_in_broker()
    assert told == ([] if decided else [(-8, 1), (-3, wire.PAYLOAD_BYTES_MAX), (-1, memory.BROKER_FREE_BYTES_KEPT)])
