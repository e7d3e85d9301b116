"""The proxy that other tests break proxies with does what it says."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fault.proxy import BUFFERED_BYTES_MAX, Proxy

PATIENCE_S = 5.0

pytestmark = pytest.mark.fault


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        yield listener


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    with Proxy(f"tcp://127.0.0.1:{server.getsockname()[1]}") as proxy:
        yield proxy


@pytest.fixture
def pair(server: socket.socket, proxy: Proxy) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of one connection through the proxy."""
    near = socket.create_connection((proxy.host, proxy.port), PATIENCE_S)
    far, _ = server.accept()
    far.settimeout(PATIENCE_S)
    with near, far:
        yield near, far


def is_quiet(one: socket.socket) -> bool:
    """Nothing comes, and it is open: said by a timeout, which is what a swallowed byte looks like."""
    one.settimeout(0.05)
    try:
        one.recv(1)
        return False
    except TimeoutError:
        return True
    finally:
        one.settimeout(PATIENCE_S)


Pair = tuple[socket.socket, socket.socket]


def test_bytes_go_both_ways(pair: Pair) -> None:
    near, far = pair
    near.sendall(b"up")
    assert far.recv(9) == b"up"
    far.sendall(b"down")
    assert near.recv(9) == b"down"


def test_what_is_swallowed_is_lost_and_what_is_held_comes_later(pair: Pair, proxy: Proxy) -> None:
    near, far = pair
    proxy.blackhole(down=False)
    near.sendall(b"lost")
    far.sendall(b"heard")
    assert near.recv(9) == b"heard"
    assert is_quiet(far)
    proxy.hold()
    near.sendall(b"held")
    assert is_quiet(far)
    proxy.forward()
    assert far.recv(9) == b"held"


def test_a_cut_ends_both_sides(pair: Pair, proxy: Proxy) -> None:
    proxy.cut()
    assert [end.recv(1) for end in pair] == [b"", b""]
    assert proxy.open == 0


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_cut_leaves_the_other_half_open(pair: Pair, proxy: Proxy, side: int) -> None:
    (Proxy.cut_worker_side, Proxy.cut_broker_side)[side](proxy)
    assert pair[side].recv(1) == b""
    assert is_quiet(pair[1 - side])
    proxy.drop_halves()
    assert pair[1 - side].recv(1) == b""


def test_a_link_that_refuses_can_accept_again(pair: Pair, server: socket.socket, proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port))
    pair[0].sendall(b"still there")
    assert pair[1].recv(99) == b"still there"
    proxy.accept()
    with socket.create_connection((proxy.host, proxy.port), PATIENCE_S) as near, server.accept()[0] as far:
        near.sendall(b"again")
        assert far.recv(9) == b"again"


def test_more_than_the_buffer_gets_through_whole(pair: Pair) -> None:
    near, far = pair
    near.setblocking(False)
    sent = received = 0
    while sent < 4 * BUFFERED_BYTES_MAX:
        try:
            sent += near.send(bytes(65_536))
        except BlockingIOError:
            received += len(far.recv(1_000_000))
    while received < sent:
        received += len(far.recv(1_000_000))
    assert is_quiet(far)
