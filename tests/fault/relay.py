"""A stream that a test can damage: an XSUB and an XPUB between a broker's stream and whoever reads it.

    with Relay(broker.stream_url) as relay:         workers use `relay.url` as their stream_url
        relay.lose(lambda frame: ...)               the next frame of which this is true is swallowed
        relay.replace(b"this", b"that")             from now on, in every frame

Subscriptions go through, so that the broker hears the presence of who reads here. One thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import zmq

POLL_MS = 20


class Relay:
    """From the `with` to its end."""

    def __init__(self, target_url: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._up = self._context.socket(zmq.XSUB)
        self._down = self._context.socket(zmq.XPUB)
        for one in (self._up, self._down):
            one.linger = 0
        self._up.connect(target_url)
        port = self._down.bind_to_random_port("tcp://127.0.0.1")
        self.url = f"tcp://127.0.0.1:{port}"
        self.lost = 0
        self._to_lose: Callable[[bytes], bool] | None = None
        self._replaced: tuple[bytes, bytes] | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def lose(self, is_it: Callable[[bytes], bool]) -> None:
        self._to_lose = is_it

    def replace(self, old: bytes, new: bytes) -> None:
        """Of one length, or the frame would be none."""
        assert len(old) == len(new)
        self._replaced = (old, new)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._thread.join()
        self._up.close()
        self._down.close()
        self._context.term()

    def _run(self) -> None:
        poller = zmq.Poller()
        for one in (self._up, self._down):
            poller.register(one, zmq.POLLIN)
        while not self._is_over:
            for ready, _ in poller.poll(POLL_MS):
                if ready is self._down:
                    self._up.send(self._down.recv())
                else:
                    self._pass_on(self._up.recv())

    def _pass_on(self, frame: bytes) -> None:
        if self._to_lose is not None and self._to_lose(frame):
            self._to_lose = None
            self.lost += 1
            return
        self._down.send(frame.replace(*self._replaced) if self._replaced is not None else frame)
