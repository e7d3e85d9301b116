"""The only file that creates sockets and sets their options; each option with the reason for its value.

Facts behind the choices: libzmq aborts the process when a socket with HEARTBEAT_IVL and a finite RCVHWM has its input
stopped by that mark while its peer goes. So whoever sets heartbeats sets RCVHWM 0: workers on both sockets, the broker
on its stream only. Its ROUTER, where the mark is what holds back a flood, has the TTL that workers announce; but that
begins with a worker's first PING and ends with any frame, and so would miss who falls silent before the next one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import sys

import zmq

from .. import wire
from . import memory

# Messages for one slow reader. Above it libzmq drops deltas, which gaps in seq turn into a sync: whoever is that far
# behind has, with one delta in each, missed more than the history holds and needs a snapshot anyway.
STREAM_SNDHWM = 32_768
# Messages for one worker: above the calls and Cancels of its credit (2 x 4,096) and the outcomes of its own open calls
# (4,096) together with acks, parts and probes. Bytes are bounded by the core.
ROUTER_SNDHWM = 16_384
ROUTER_RCVHWM = 10_000  # messages of one worker; beyond it TCP pushes back on that worker alone
BACKLOG = 4096  # 100, the default, overflows under a burst of connects
HANDSHAKE_IVL_MS = 3_000  # cuts strangers that connect and say nothing
RECONNECT_IVL_MS = 10
RECONNECT_IVL_MAX_MS = 100
CONNECT_TIMEOUT_MS = 2_000  # a machine that went takes nothing and refuses nothing; TCP itself would try for minutes,
# at the address that the name had. Long enough for one lost SYN, which is sent again after 1 s.
CONTEXT_DESCRIPTORS = 16  # free when a context is made: with 4 to 6 libzmq aborts, and a socket takes some more
# How long a ROUTER or DEALER alone is waited for in a conversation. Longer than a tick of the kernel's clock (4 ms):
# a timer that is due before the next tick is set in hardware, which on a virtual machine costs 5 us a wait.
ALONE_MS = 5
LINGER_MS = 500  # time for a Bye, a last result or a Closing to leave

IO_ERRORS = (zmq.ZMQError, OSError)


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context whose I/O thread lets whoever wakes it finish its turn first, where the system knows SCHED_BATCH.

    Else the I/O thread takes the CPU from us at each send, to send that one message: on one CPU a call with 10 in
    flight costs 107 us of all processes' time that way and 80 this way, with 100 in flight 60 and 49.

    Raises: OSError when too few descriptors are left: libzmq would end the process.
    """
    _check_descriptors()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    if hasattr(os, "SCHED_BATCH"):
        context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
    return context


def _check_descriptors() -> None:
    """An abort (SIGABRT) is how libzmq takes it that its threads can't make their epolls. Raises: OSError."""
    held: list[int] = []
    try:
        for _ in range(CONTEXT_DESCRIPTORS):
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for descriptor in held:
            os.close(descriptor)


def raise_descriptor_limit() -> int:
    """Two descriptors a worker: take as many as the system allows, and tell how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def seed_routing_ids() -> None:
    """libzmq draws its first routing id from libc's generator: seed it, so that ids can't be guessed."""
    ctypes.CDLL(None).srandom(secrets.randbits(32))
    ctypes.CDLL(None).srand(secrets.randbits(32))


def router(context: zmq.Context[zmq.Socket[bytes]], ttl_ms: int) -> zmq.Socket[bytes]:
    """The broker's control and call socket, not bound yet."""
    seed_routing_ids()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unknown peer raises EHOSTUNREACH, a full pipe EAGAIN
    socket.setsockopt(zmq.SNDHWM, ROUTER_SNDHWM)
    socket.setsockopt(zmq.RCVHWM, ROUTER_RCVHWM)
    socket.setsockopt(zmq.RCVTIMEO, ALONE_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.PAYLOAD_BYTES_MAX + wire.INLINE_BYTES_MAX)
    _listening(socket, ttl_ms)
    return socket


def xpub(context: zmq.Context[zmq.Socket[bytes]], heartbeat_ms: int, ttl_ms: int) -> zmq.Socket[bytes]:
    """The broker's registry stream, not bound yet.

    Its PINGs find the silent at the latest after a heartbeat and a TTL, from the handshake on and whatever they sent
    before: every word of a worker, its own PINGs too, is an answer.
    """
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.RCVHWM, 0)  # see above; what waits is read at every turn, and XPUB itself keeps it unbounded
    socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, ttl_ms)
    socket.setsockopt(zmq.SNDHWM, STREAM_SNDHWM)
    socket.setsockopt(zmq.MAXMSGSIZE, 1024)  # subscriptions only
    _listening(socket, ttl_ms)
    return socket


def _listening(socket: zmq.Socket[bytes], ttl_ms: int) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_IVL_MS)
    socket.setsockopt(zmq.TCP_MAXRT, ttl_ms)  # ends a connection whose network is cut while we send


def dealer(context: zmq.Context[zmq.Socket[bytes]], heartbeat_ms: int, ttl_ms: int) -> zmq.Socket[bytes]:
    """A worker's control and call socket, not connected yet."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 0)  # bounded by the worker's open calls and sends, and by the broker's credit
    socket.setsockopt(zmq.RCVTIMEO, ALONE_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a broker that is away: no replay to the next one
    _connecting(socket, heartbeat_ms, ttl_ms)
    return socket


def sub(context: zmq.Context[zmq.Socket[bytes]], heartbeat_ms: int, ttl_ms: int) -> zmq.Socket[bytes]:
    """A worker's end of the registry stream, not connected yet."""
    socket = context.socket(zmq.SUB)
    _connecting(socket, heartbeat_ms, ttl_ms)
    return socket


def _connecting(socket: zmq.Socket[bytes], heartbeat_ms: int, ttl_ms: int) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.RCVHWM, 0)  # see above: never finite together with heartbeats
    socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, ttl_ms)
    socket.setsockopt(zmq.HEARTBEAT_TTL, ttl_ms)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_IVL_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_IVL_MAX_MS)


_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE) | _NOBLOCK


def send_payload(socket: zmq.Socket[bytes], payload: wire.Payload) -> None:
    """The frames of a large payload, behind a first one that was sent with SNDMORE.

    What came as a frame goes on as that very frame: pyzmq would have its collector's thread keep anything else alive.
    """
    memory.keep()
    if isinstance(payload, wire.Split):
        socket.send(payload.head, _MORE)
        payload = payload.rest
    whole = payload.obj if isinstance(payload, memoryview) else payload
    if isinstance(whole, zmq.Frame) and len(whole) == len(payload):
        socket.send(whole, _NOBLOCK, copy=False)
    else:
        socket.send(payload, _NOBLOCK, copy=False)


def receive_payload(socket: zmq.Socket[bytes]) -> wire.Payload:
    """The frames behind the first one of a message that has more; uncopied. There may be more still."""
    memory.keep()
    frame = socket.recv(_NOBLOCK, copy=False)
    if not frame.more:
        return frame.buffer
    return wire.Split(frame.buffer, socket.recv(_NOBLOCK, copy=False).buffer)


MONITORED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


ARRIVALS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
"""What a broker watches. Not the failures: libzmq keeps some to itself. And not ACCEPT_FAILED: while descriptors lack,
libzmq tries again without a pause, and would tell each time."""


def monitor(
    context: zmq.Context[zmq.Socket[bytes]], watched: zmq.Socket[bytes], events: int = MONITORED
) -> zmq.Socket[bytes]:
    """A PAIR that tells these connection events of `watched`.

    Read it before `watched`; call `watched.disable_monitor()` before closing either. Unbounded on purpose: an undrained
    monitor with a mark freezes the I/O thread.
    """
    address = f"inproc://iii-monitor-{os.getpid()}-{secrets.token_hex(8)}"
    watched.monitor(address, events)
    pair = context.socket(zmq.PAIR)
    pair.setsockopt(zmq.RCVHWM, 0)
    pair.setsockopt(zmq.LINGER, 0)
    pair.connect(address)
    return pair
