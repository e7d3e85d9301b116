"""A real broker as a process of its own, on free ports of the loopback, for tests."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
END_S = 5.0
OWN_PORTS = (10_240, 32_768)  # below those that Linux gives to outgoing connections


@dataclass(slots=True, frozen=True)
class RunningBroker:
    """What the broker said of itself, and its process."""

    url: str
    stream_url: str
    epoch: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid


def free_url() -> str:
    """An address whose port, and the one after it, nobody has.

    Not port 0: the system also gives those ports to outgoing connections, so that a broker that ended and is to come
    back to its address may find it taken.
    """
    while True:
        port = random.randrange(*OWN_PORTS, 2)
        try:
            for one in (port, port + 1):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", one))
        except OSError:
            continue
        return f"tcp://127.0.0.1:{port}"


def environment() -> dict[str, str]:
    """Ours, with the clone importable and nothing that would name another broker."""
    return {name: value for name, value in os.environ.items() if not name.startswith("III_")} | {
        "PYTHONPATH": str(ROOT)
    }


@contextmanager
def running_broker(*args: str, url: str | None = None) -> Iterator[RunningBroker]:
    """Serves from the `with` to its end; `args` are further arguments of `serve`."""
    command = [sys.executable, "-m", "iii_zmq.cli", "serve", "--url", url or free_url(), "--json", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the broker ended with status {process.wait()}"
        told = json.loads(line)
        yield RunningBroker(told["url"], told["stream_url"], told["epoch"], process)
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL for what does not end by that."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
