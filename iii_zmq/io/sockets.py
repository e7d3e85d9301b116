"""The only file that creates sockets and sets their options; gives a reason for the value of each option.

Facts behind the choices: libzmq aborts the process if a socket has HEARTBEAT_IVL and a finite RCVHWM, and its peer goes
while that mark stops its input. So a socket with heartbeats has RCVHWM 0: both sockets of a worker, and the broker's
stream. The broker's ROUTER, whose mark holds back a flood, relies on the TTL that workers announce. But a TTL begins
with a worker's first PING and ends with any frame, so it would miss a worker that falls silent before the next PING.
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
from .edge import Socket

# Messages for one slow reader. Above it libzmq drops deltas, and the gap in seq leads to a sync: a reader that is that
# far behind has, with one delta per message, missed more than the history holds and needs a snapshot anyway.
STREAM_SNDHWM = 32_768
# Messages for one worker: above the calls and Cancels of its credit (2 x 4,096) and the outcomes of its own open calls
# (4,096) together with acks, parts and probes. Bytes are bounded by the core.
ROUTER_SNDHWM = 16_384
ROUTER_RCVHWM = 10_000  # messages of one worker; beyond it TCP pushes back on that worker alone
BACKLOG = 4096  # 100, the default, overflows under a burst of connects
HANDSHAKE_IVL_MS = 3_000  # cuts strangers that connect and stay silent
RECONNECT_IVL_MS = 10
RECONNECT_IVL_MAX_MS = 100
CONNECT_TIMEOUT_MS = 2_000  # a machine that is gone neither accepts nor refuses; TCP itself would try for minutes, at
# the name's old address. Long enough for one lost SYN, which is sent again after 1 s.
CONTEXT_DESCRIPTORS = 16  # must be free before a context is made: with 4 to 6 libzmq aborts, and a socket takes more
# How long a conversation waits for the ROUTER or DEALER alone. Longer than a tick of the kernel's clock (4 ms): a timer
# that is due before the next tick is set in hardware, which costs a virtual machine 5 us per wait.
ALONE_MS = 5
LINGER_MS = 500  # time for a Bye, a last result or a Closing to leave

Context = zmq.Context[Socket]
IO_ERRORS = (zmq.ZMQError, OSError)


def new_context() -> Context:
    """A context whose I/O thread lets the thread that wakes it finish first, if the system has SCHED_BATCH.

    Otherwise the I/O thread takes the CPU from us at each send, to send that one message: on one CPU a call with 10 in
    flight costs all processes 107 us that way and 80 this way, with 100 in flight 60 and 49.

    Raises: OSError if too few descriptors are left: libzmq aborts the process if its threads can't make their epolls.
    """
    held: list[int] = []
    try:
        for _ in range(CONTEXT_DESCRIPTORS):
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for descriptor in held:
            os.close(descriptor)
    context: Context = zmq.Context()
    if hasattr(os, "SCHED_BATCH"):
        context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
    return context


def raise_descriptor_limit() -> int:
    """Takes as many descriptors as the system allows, two per worker; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def seed_routing_ids() -> None:
    """Seeds libc's generator, from which libzmq draws its first routing id, so that ids can't be guessed."""
    ctypes.CDLL(None).srandom(secrets.randbits(32))
    ctypes.CDLL(None).srand(secrets.randbits(32))


def router(context: Context, ttl_ms: int) -> Socket:
    """The broker's control and call socket, not yet bound."""
    seed_routing_ids()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unknown peer raises EHOSTUNREACH, a full pipe EAGAIN
    socket.setsockopt(zmq.SNDHWM, ROUTER_SNDHWM)
    socket.setsockopt(zmq.RCVHWM, ROUTER_RCVHWM)
    socket.setsockopt(zmq.RCVTIMEO, ALONE_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.PAYLOAD_BYTES_MAX + wire.INLINE_BYTES_MAX)
    _listening(socket, ttl_ms)
    return socket


def xpub(context: Context, heartbeat_ms: int, ttl_ms: int) -> Socket:
    """The broker's registry stream, not yet bound.

    From the handshake on its PINGs find a silent worker within a heartbeat and a TTL, whatever the worker sent before.
    Any frame from a worker, even its own PING, counts as an answer.
    """
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.RCVHWM, 0)  # see above; every turn reads what waits, and XPUB itself keeps it without a bound
    socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, ttl_ms)
    socket.setsockopt(zmq.SNDHWM, STREAM_SNDHWM)
    socket.setsockopt(zmq.MAXMSGSIZE, 1024)  # subscriptions only
    _listening(socket, ttl_ms)
    return socket


def _listening(socket: Socket, ttl_ms: int) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_IVL_MS)
    socket.setsockopt(zmq.TCP_MAXRT, ttl_ms)  # ends a connection whose network is cut while we send


def dealer(context: Context, heartbeat_ms: int, ttl_ms: int) -> Socket:
    """A worker's control and call socket, not yet connected."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 0)  # bounded by the worker's open calls and sends, and by the broker's credit
    socket.setsockopt(zmq.RCVTIMEO, ALONE_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a broker that is away: no replay to the next one
    _connecting(socket, heartbeat_ms, ttl_ms)
    return socket


def sub(context: Context, heartbeat_ms: int, ttl_ms: int) -> Socket:
    """A worker's end of the registry stream, not yet connected."""
    socket = context.socket(zmq.SUB)
    _connecting(socket, heartbeat_ms, ttl_ms)
    return socket


def _connecting(socket: Socket, heartbeat_ms: int, ttl_ms: int) -> None:
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


def send_payload(socket: Socket, payload: wire.Payload) -> None:
    """Sends the frames of a large payload, after a first frame that was sent with SNDMORE.

    A payload that came as a frame is sent on as that same frame: anything else pyzmq's collector thread would have to
    keep alive.
    """
    memory.keep()
    if isinstance(payload, wire.Split):
        socket.send(payload.head, _MORE)
        payload = payload.rest
    whole = payload.obj if isinstance(payload, memoryview) else payload
    is_frame = isinstance(whole, zmq.Frame) and len(whole) == len(payload)
    socket.send(whole if is_frame else payload, _NOBLOCK, copy=False)


def receive_payload(socket: Socket) -> wire.Payload:
    """The payload in the frames after the first one of a message, not copied. Even more frames may follow."""
    memory.keep()
    frame = socket.recv(_NOBLOCK, copy=False)
    if not frame.more:
        return frame.buffer
    return wire.Split(frame.buffer, socket.recv(_NOBLOCK, copy=False).buffer)


_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
MONITORED = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
ARRIVALS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
"""The events that a broker watches. Not the failures, since libzmq does not report all of them. And not ACCEPT_FAILED:
while there are no descriptors, libzmq retries without a pause and would report each time."""


def monitor(context: Context, watched: Socket, events: int = MONITORED) -> Socket:
    """A PAIR that reports these connection events of `watched`.

    Read it before `watched`; call `watched.disable_monitor()` before you close either. It has no bound on purpose: an
    unread monitor with a high-water mark freezes the I/O thread.
    """
    address = f"inproc://iii-monitor-{os.getpid()}-{secrets.token_hex(8)}"
    watched.monitor(address, events)
    pair = context.socket(zmq.PAIR)
    pair.setsockopt(zmq.RCVHWM, 0)
    pair.setsockopt(zmq.LINGER, 0)
    pair.connect(address)
    return pair
