"""A client of the protocol in plain pyzmq and msgpack, written from docs/protocol.md alone: nothing of iii_zmq is here.

As a program it offers functions and serves: `minimal_client.py URL NAME FUNCTION_ID...`; every handler returns the name
of its worker and the payload. It has no monitor and no thread: whoever waits for something calls `pump`.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgpack
import zmq

HELLO, WELCOME, REGISTER, ACK, HEARTBEAT, SYNC, SNAPSHOT, REPLAY = 1, 2, 3, 5, 6, 7, 8, 9
RECEIVED, INVITE, BYE, UNKNOWN, REFUSE, PROBE, DELTAS, BEACON = 10, 11, 13, 14, 15, 16, 18, 19
CALL, RESULT, FAILURE, CANCEL = 32, 33, 34, 35
PREFIX = struct.Struct(">2sBBIQ")
INLINE_BYTES_MAX = 65_536


def row_hash(row: bytes) -> int:
    return int.from_bytes(blake2b(row, digest_size=16).digest(), "big")


def entry(function_id: str) -> bytes:
    return bytes(msgpack.packb([function_id, None, None, None, None, 0]))


class Client:
    """One client, driven by `pump`. Its replica: `rows`, packed, by (worker id, function id), at (`epoch`, `seq`)."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name, self.worker_id, self.token = url, name, "", b""
        self.offered: list[str] = []
        self.heartbeat_s, self.ttl_s = 0.5, 2.0
        self.rows: dict[tuple[str, str], bytes] = {}
        self.total, self.epoch, self.seq = 0, "", 0
        self.staged: list[bytes] | None = None  # rows of the awaited answer, if it has any
        self.held: list[tuple[str, bytes]] = []  # (epoch, delta), while an answer is awaited
        self.joined, self.kept, self.complete = False, False, False
        self.number, self.hello_number, self.awaited, self.next_index = 0, 0, 0, 0
        self.broadcast, self.topics = 0, list[bytes]()  # of the broadcast under way
        self.answers: dict[int, tuple[int, list[Any], bytes]] = {}
        self.log: list[str] = []  # what happened to the replica: "resumed", "reset", reasons of Syncs
        self.context = zmq.Context()
        self.dealer, self.sub = self._socket(zmq.DEALER), self._socket(zmq.SUB)
        self.dealer.setsockopt(zmq.SNDHWM, 0)
        self.dealer.setsockopt(zmq.IMMEDIATE, 1)
        self.dealer.connect(url)
        self.heartbeat_at = self.heard_at = self.hello_at = self.part_at = 0.0

    # -- for the user --------------------------------------------------------------------------------------------------

    def join(self) -> None:
        self.greet()
        self.pump_until(lambda: self.complete)

    def greet(self) -> None:
        """Says Hello as soon as there is a broker."""
        assert self.dealer.poll(5000, zmq.POLLOUT), "no broker"
        self._hello()

    def register(self, *function_ids: str) -> list[Any]:
        """What was refused; what was accepted is visible here when it returns."""
        self.pump_until(lambda: self.joined)
        kind, fields, _ = self._answer(self.send_register(*function_ids))
        assert kind == ACK, fields
        refused = [index for index, _, _ in fields[2]]
        self.offered += [one for index, one in enumerate(function_ids) if index not in refused]
        self.pump_until(lambda: self.complete and self.seq >= fields[1])
        return list(fields[2])

    def send_register(self, *function_ids: str) -> int:
        return self._send(REGISTER, [[entry(one) for one in function_ids]])

    def call(self, function_id: str, payload: Any, timeout_s: float = 5.0) -> Any:
        """The result. Raises: RuntimeError(code, fate, type, text)."""
        self.pump_until(lambda: self.joined)
        header = [function_id, self.worker_id, int(timeout_s * 1000), "", 0, 0]
        number = self._send(CALL, header, msgpack.packb(payload))
        try:
            kind, fields, packed = self._answer(number, timeout_s + 0.03)
        except TimeoutError:
            self._send(CANCEL, [], number=number)
            raise RuntimeError("timeout", "possibly_executed", "", "") from None
        if kind == RESULT:
            return msgpack.unpackb(packed, strict_map_key=False)
        raise RuntimeError(*(fields if kind == FAILURE else ("broker_lost", "not_handed_over", "", "")))

    def digest(self) -> bytes:
        return (self.total % 2**128).to_bytes(16, "big")

    def functions(self) -> set[str]:
        return {function_id for _, function_id in self.rows if function_id}

    def workers(self) -> set[str]:
        return {msgpack.unpackb(row)[2] for (_, function_id), row in self.rows.items() if not function_id}

    def pump_until(self, done: Callable[[], bool], timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > until:
                raise TimeoutError(self.name, self.epoch, self.seq, self.log)
            self.pump()

    def pump(self, wait_ms: int = 10) -> None:
        """Handles what has come, and does what is due."""
        zmq.select([self.dealer, self.sub], [], [], wait_ms / 1000)
        while _is_ready(self.dealer, zmq.POLLIN):
            self.read_control()
        while _is_ready(self.sub, zmq.POLLIN):
            self._on_stream(*_decode(self.sub.recv()[2:])[:3])
        now = time.monotonic()
        if not _is_ready(self.dealer, zmq.POLLOUT):
            return
        if now > (self.heard_at + 3 * self.heartbeat_s if self.joined else self.hello_at + 2.0):
            self._hello()
        elif self.joined and self.awaited and now > self.part_at + 2.0:
            self._sync("late")
        elif self.joined and now >= self.heartbeat_at:
            self.heartbeat_at = now + self.heartbeat_s
            self._send(HEARTBEAT, [self.epoch, self.seq, 0, 0])

    def read_control(self) -> None:
        """Handles one message."""
        first, *others = self.dealer.recv_multipart()
        kind, number, fields, inline = _decode(first)
        self._on_control(kind, number, fields, b"".join(others) or inline)

    def close(self) -> None:
        if _is_ready(self.dealer, zmq.POLLOUT):
            self._send(BYE, [])
        self.context.destroy(linger=500)

    # -- the session ---------------------------------------------------------------------------------------------------

    def _on_control(self, kind: int, number: int, fields: list[Any], payload: bytes) -> None:
        if kind in (ACK, REFUSE, RESULT, FAILURE):
            self.answers[number] = (kind, fields, payload)
            if kind == RESULT and len(payload) > INLINE_BYTES_MAX:
                self._send(RECEIVED, [0], number=number)
        elif kind == CALL:
            self._send(RESULT, [], msgpack.packb([self.name, msgpack.unpackb(payload)]), number)
        elif kind in (SNAPSHOT, REPLAY, INVITE) and number == self.awaited:
            self._on_answer(kind, fields)
        elif kind == WELCOME and number == self.hello_number:
            self._on_welcome(fields)
        elif kind == UNKNOWN and fields[0] == CALL:
            self.answers[number] = (kind, [], b"")
        if kind in (UNKNOWN, PROBE) and self.joined:  # no session, or no presence: both are healed by a Hello
            self._hello()

    def _hello(self) -> None:
        functions = sum(row_hash(entry(one)) for one in self.offered) % 2**128
        who = [[], self.name, "host", os.getpid(), b"\x80", 16, False]
        session = [self.token, functions.to_bytes(16, "big")] if self.token else [b"", b""]
        self.joined, self.hello_at = False, time.monotonic()
        self.hello_number = self._await(HELLO, [*who, self.epoch, self.seq, *session])

    def _on_welcome(self, fields: list[Any]) -> None:
        self.worker_id, self.token, _, stream_url = fields[:4]
        self.heartbeat_s, self.ttl_s, self.kept = fields[4] / 1000, fields[5] / 1000, fields[9]
        self.sub.close()
        self.sub = self._socket(zmq.SUB)
        self.sub.subscribe(b"s|")
        self.sub.subscribe(self._presence())
        host = self.url.removeprefix("tcp://").rpartition(":")[0]
        self.sub.connect(stream_url.replace("tcp://*:", f"tcp://{host}:"))

    def _on_answer(self, kind: int, fields: list[Any]) -> None:
        self.part_at = time.monotonic()
        if not self.joined:
            self.joined, self.heard_at = True, self.part_at
            if self.offered and not self.kept:
                self.send_register(*self.offered)
        if kind == INVITE:
            self.broadcast = fields[1]
            self.topics = [fields[0], self._presence() + b"+"]
            for topic in self.topics:
                self.sub.subscribe(topic)
        else:
            if self.broadcast:  # the broker did not wait for us: its answer begins anew
                self._leave_broadcast()
                self.next_index, self.staged = 0, None
            self._send(RECEIVED, [fields[3 if kind == SNAPSHOT else 1]], number=self.awaited)
            self._on_part(kind, fields)

    def _presence(self) -> bytes:
        return b"w|" + blake2b(self.token, digest_size=16, person=b"presence").hexdigest().encode()

    # -- the replica ---------------------------------------------------------------------------------------------------

    def _on_stream(self, kind: int, number: int, fields: list[Any]) -> None:
        self.heard_at = time.monotonic()
        if kind in (SNAPSHOT, REPLAY):
            if number == self.broadcast:
                self._on_part(kind, fields)
        elif kind == DELTAS and (fields[0] == self.epoch or not self.complete):
            self.held += [(fields[0], delta) for delta in fields[1]]
            if self.complete:
                self._apply_held()
        elif not self.complete:
            pass  # the answer that is awaited has digests of its own
        elif fields[0] != self.epoch:
            self._hello()
        elif kind == BEACON and fields[1] > self.seq:
            self._sync("gap")
        elif kind == BEACON and fields[1] == self.seq and fields[2] != self.digest():
            self._sync("digest")

    def _on_part(self, kind: int, fields: list[Any]) -> None:
        if fields[3 if kind == SNAPSHOT else 1] != self.next_index:
            self._sync("gap")
            return
        self.next_index, self.part_at = self.next_index + 1, time.monotonic()
        if kind == SNAPSHOT:
            self.staged = (self.staged or []) + fields[5]
            if fields[4]:
                self._reset(fields[0], fields[1], fields[2], self.staged)
            return
        self.held += [(fields[0], delta) for delta in fields[3]]
        if fields[2]:
            self.log.append("resumed" if self.staged is None else "reset")
            self._leave_broadcast()
            self.complete, self.awaited = True, 0
            self._apply_held()

    def _reset(self, epoch: str, seq: int, digest: bytes, rows: list[bytes]) -> None:
        self.rows, self.total, self.epoch, self.seq = {}, 0, epoch, seq
        for row in rows:
            self._put(row)
        if self.digest() != digest:
            self._sync("digest")

    def _apply_held(self) -> None:
        held = sorted(msgpack.unpackb(delta) for epoch, delta in self.held if epoch == self.epoch)
        self.held = []
        for seq, digest, _, puts, drops, _ in held:
            if seq > self.seq + 1:
                self._sync("gap")
                return
            if seq == self.seq + 1:
                self._apply(seq, puts, msgpack.unpackb(drops))
                if self.digest() != digest:
                    self._sync("digest")
                    return

    def _apply(self, seq: int, puts: list[bytes], drops: list[list[str]]) -> None:
        self.seq = seq
        for worker_id, function_id in drops:
            self.total -= row_hash(self.rows.pop((worker_id, function_id)))
        for row in puts:
            self._put(row)

    def _put(self, row: bytes) -> None:
        worker_id, function_id = msgpack.unpackb(row)[:2]
        before = self.rows.get((worker_id, function_id))
        self.total += row_hash(row) - (row_hash(before) if before else 0)
        self.rows[worker_id, function_id] = row

    def _sync(self, reason: str) -> None:
        self.log.append(reason)
        at = ["", 0] if reason == "digest" else [self.epoch, self.seq]
        self._await(SYNC, [*at, reason])
        self.part_at = time.monotonic()

    # -- messages ------------------------------------------------------------------------------------------------------

    def _await(self, kind: int, fields: list[Any]) -> int:
        """Asks for what is missing: from now on deltas are held until the answer's end."""
        self._leave_broadcast()
        self.complete, self.next_index, self.staged, self.held = False, 0, None, []
        self.awaited = self._send(kind, fields)
        return self.awaited

    def _leave_broadcast(self) -> None:
        self.broadcast = 0
        for topic in self.topics:
            self.sub.unsubscribe(topic)
        self.topics = []

    def _answer(self, number: int, timeout_s: float = 10.0) -> tuple[int, list[Any], bytes]:
        self.pump_until(lambda: number in self.answers, timeout_s)
        return self.answers.pop(number)

    def _send(self, kind: int, fields: list[Any], payload: bytes = b"", number: int = 0) -> int:
        if not number:
            number = self.number = self.number + 1
        header = msgpack.packb(fields)
        frames = [PREFIX.pack(b"i3", 1, kind, len(header), number) + header, payload]
        if len(payload) <= INLINE_BYTES_MAX:
            frames = [b"".join(frames)]
        self.dealer.send_multipart(frames, zmq.NOBLOCK)
        return number

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 500)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
        socket.setsockopt(zmq.HEARTBEAT_IVL, int(self.heartbeat_s * 1000))
        for option in (zmq.HEARTBEAT_TIMEOUT, zmq.HEARTBEAT_TTL):
            socket.setsockopt(option, int(self.ttl_s * 1000))
        return socket


def _is_ready(socket: zmq.Socket[bytes], event: int) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & event)


def _decode(frame: bytes) -> tuple[int, int, list[Any], bytes]:
    """(kind, number, fields, what stands behind the header)."""
    magic, version, kind, header_bytes, number = PREFIX.unpack_from(frame)
    assert (magic, version) == (b"i3", 1), frame[:16]
    return kind, number, msgpack.unpackb(frame[16 : 16 + header_bytes]), frame[16 + header_bytes :]


if __name__ == "__main__":
    client = Client(sys.argv[1], sys.argv[2])
    client.join()
    assert not client.register(*sys.argv[3:])
    print(client.worker_id, flush=True)
    while True:
        client.pump(100)
