"""A LAN of three machines in one: network namespaces `broker` and `worker` with a `router` between them, whose
forwarding can be switched off. Then packets vanish without a word, as behind a pulled cable.

    with lan() as link:
        link.at("broker")        begins a command line that is to run there
        link.cut(), link.mend()

Needs root and `ip`: `missing()` tells what is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

PLACES = ("broker", "router", "worker")
ADDRESSES = {"broker": "10.77.1.2", "worker": "10.77.2.2"}  # of namespaces of our own: nobody else sees them
COMMAND_S = 10.0


def missing() -> str | None:
    """Why there can be no namespaces here; None when there can."""
    if shutil.which("ip") is None:
        return "network namespaces need `ip`, of the package iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"iii-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=COMMAND_S)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Link:
    """The way between the two, through the router."""

    def __init__(self) -> None:
        self._names = {place: f"iii-{os.getpid()}-{place}" for place in PLACES}

    def at(self, place: str) -> tuple[str, ...]:
        return "ip", "netns", "exec", self._names[place]

    def cut(self) -> None:
        self._forward(0)

    def mend(self) -> None:
        self._forward(1)

    def make(self) -> None:
        for name in self._names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        router = self._names["router"]
        for place, address in ADDRESSES.items():
            name, gateway = self._names[place], address[:-1] + "1"
            _ip("-n", name, "link", "add", "lan", "type", "veth", "peer", "name", place, "netns", router)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "lan")
            _ip("-n", router, "addr", "add", f"{gateway}/24", "dev", place)
            _ip("-n", name, "link", "set", "lan", "up")
            _ip("-n", router, "link", "set", place, "up")
            _ip("-n", name, "route", "add", "default", "via", gateway)
        self.mend()

    def unmake(self) -> None:
        for name in self._names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=COMMAND_S)

    def _forward(self, value: int) -> None:
        script = f"echo {value} > /proc/sys/net/ipv4/ip_forward"
        subprocess.run([*self.at("router"), "sh", "-c", script], check=True, timeout=COMMAND_S)


@contextmanager
def lan() -> Iterator[Link]:
    link = Link()
    try:
        link.make()
        yield link
    finally:
        link.unmake()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=COMMAND_S)
