"""The broker comes back at another address, under the name that the workers were given.

The workers' process has a mount namespace of its own, in which a file of the test stands for /etc/hosts.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from iii_zmq import Worker
from tests.fault.proxy import address
from tests.fault.victim import victim
from tests.net.brokers import free_url, running_broker

pytestmark = pytest.mark.fault

NAME = "broker.test"
PATIENCE_S = 30.0  # for what takes 0.1 s, or 2 s where the old address is silent
# By root, or else in a user namespace of one's own, where the system lets one.
NAMESPACES = (("unshare", "-m"), ("unshare", "-rm"))


def leads_to(hosts: Path, host: str) -> None:
    """In place: a new file would not be seen through the mount."""
    hosts.write_text(f"127.0.0.1 localhost\n{host} {NAME}\n")


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    hosts = tmp_path / "hosts"
    leads_to(hosts, "127.0.0.1")
    return hosts


@pytest.fixture
def prefix(hosts: Path) -> list[str]:
    """What runs a command with `hosts` as its /etc/hosts."""
    mounts = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    for namespace in NAMESPACES:
        try:
            done = subprocess.run([*namespace, *mounts, "getent", "hosts", NAME], capture_output=True, text=True)
        except FileNotFoundError:
            break
        if done.stdout.startswith("127.0.0.1"):
            return [*namespace, *mounts]
    pytest.skip("mount namespaces are not to be had here")


@contextmanager
def swallowing(*urls: str) -> Iterator[None]:
    """At these addresses connections are neither taken nor refused, as where no machine is: their queues are full."""
    with ExitStack() as stack:
        for url in urls:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address(url))
            listener.listen(0)
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address(url))
        yield


@pytest.mark.parametrize(
    "is_silent",
    [
        pytest.param(False, id="where the old address refuses"),
        pytest.param(True, id="where it is silent", marks=pytest.mark.slow),
    ],
)
def test_a_worker_follows_the_name_of_its_broker(hosts: Path, prefix: list[str], is_silent: bool) -> None:
    """libzmq alone tries a silent address as long as the system does, for minutes, and looks at the name only then."""
    old = free_url()
    port = address(old)[1]
    with victim(*prefix) as process, ExitStack() as stack:
        with running_broker(url=old) as first:
            assert process.join("sync", "moved", f"tcp://{NAME}:{port}") == "joined"
            first.process.kill()
            first.process.wait()
            if is_silent:
                stack.enter_context(swallowing(first.url, first.stream_url))
        second = stack.enter_context(running_broker(url=f"tcp://127.0.0.2:{port}"))
        watcher = stack.enter_context(Worker("watcher", second.url, observer=True))
        assert "victim::moved" not in watcher.functions
        leads_to(hosts, "127.0.0.2")
        began = time.monotonic()
        watcher.wait_for("victim::moved", timeout=PATIENCE_S)
        print(f"back {time.monotonic() - began:.2f} s after the name led there")
        assert watcher.call("victim::moved", 1) == 1
