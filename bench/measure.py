"""Clocks, percentiles and rounds. Pure of sockets and processes; reads /proc where it must.

All moments that cross a process border are `time.monotonic_ns()`: on Linux one clock for all.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_RECEIVED_OFFSET = 128  # tcpi_bytes_received, a u64, in struct tcp_info of <linux/tcp.h>
_TCP_INFO_MAX = 256


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds, with the lowest and the highest round."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def alternate(rounds: int, subjects: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Each subject's samples, taken a, b, a, b ...; one warm-up round is thrown away."""
    samples: dict[str, list[T]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, take in subjects.items():
            sample = take()
            if turn:
                samples[name].append(sample)
    return samples


def cpu_seconds(pid: int) -> float:
    """CPU time (user and system, all threads) that a live process has used so far.

    The kernel's per-process CPU clock, clock_getcpuclockid(3): nanoseconds, where the utime and
    stime of /proc/PID/stat count in hundredths of a second.
    """
    return time.clock_gettime((~pid << 3) | 2)


def memory_mib(pid: int) -> float:
    """Resident memory of a live process in MiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def tcp_bytes_received() -> int:
    """Payload bytes that the kernel received on all TCP connections this process has open.

    Read from TCP_INFO of the sockets that libzmq owns, so it counts ZMTP framing and everything
    else on the wire above TCP, and needs no word from the code being measured.
    """
    return sum(_received_by(int(entry)) for entry in os.listdir("/proc/self/fd"))


def _received_by(fd: int) -> int:
    try:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            return 0
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_MAX)
        return int(struct.unpack_from("=Q", info, _RECEIVED_OFFSET)[0])
    except (OSError, struct.error):
        return 0  # gone meanwhile, or no TCP connection
