"""What every worker of the soak writes down, whichever face it has: each act before it begins and after it ended.

Invariant: `running` is the handler's first act, before anything that could fail or wait; a call's outcome is written
once, by whoever got it.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from iii_zmq import CallFailed, Change, Closed, IIIError, current_call

from .plan import Wish
from .records import Recorder


class Refusing(Exception):
    """What a handler of `soak::fail` raises."""


class Deeds:
    """Those of one worker. Any thread may use it."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        self.name = name
        self._write = recorder.write
        self._numbers = itertools.count(1)
        self._open = 0
        self._lock = threading.Lock()
        self._slow_s = 0.0  # how long the listener takes for each change,
        self._slow_until = 0.0  # until then, however many there are

    @property
    def open_calls(self) -> int:
        return self._open

    # -- calling -------------------------------------------------------------------------------------------------------

    def begin_call(self, wish: Wish, *, must: bool = False) -> str:
        """The call's id, which is to be in its payload."""
        call = f"{self.name}:{next(self._numbers)}"
        with self._lock:
            self._open += 1
        self._write(
            "calling", call=call, worker=self.name, function=wish.function_id, timeout=wish.timeout,
            idempotent=wish.is_idempotent, must=must,
        )  # fmt: skip
        return call

    def begin_send(self, wish: Wish) -> str:
        call = f"{self.name}:{next(self._numbers)}"
        self._write("sending", call=call, worker=self.name, function=wish.function_id, idempotent=wish.is_idempotent)
        return call

    def end_call(self, call: str, answer: Any = None, error: BaseException | None = None) -> None:
        if error is None:
            self._write("ended_call", call=call, ok=True, answer=answer)
        elif isinstance(error, CallFailed):
            self._write("ended_call", call=call, ok=False, fate=error.fate, code=error.code)
        elif isinstance(error, Closed):  # it was never asked for
            self._write("ended_call", call=call, ok=False, fate="not_handed_over", code="closed")
        else:
            self.trouble(f"call {call} ended by {error!r}")
        with self._lock:
            self._open -= 1

    def give_call_up(self, call: str) -> None:
        """Its caller cancelled it, and hears no more of it."""
        self._write("ended_call", call=call, ok=False, fate="possibly_executed", code="given_up")
        with self._lock:
            self._open -= 1

    # -- serving -------------------------------------------------------------------------------------------------------

    def run(self, payload: dict[str, Any]) -> str:
        """Begins every handler. Returns the call's id, which is what it is to answer."""
        call, now = str(payload["call"]), current_call()
        self._write("running", call=call, worker=self.name, function=now.function_id, epoch=now.epoch, fence=now.fence)
        return call

    # -- registering ---------------------------------------------------------------------------------------------------

    def joining(self, functions: list[str]) -> None:
        self._write("joining", worker=self.name, functions=functions)

    def joined(self, epoch: str, seq: int) -> None:
        self._write("joined", worker=self.name, epoch=epoch, seq=seq)

    def registering(self, functions: list[str]) -> None:
        self._write("registering", worker=self.name, functions=functions)

    def registered(self, functions: list[str], error: IIIError | None = None) -> None:
        if error is None:
            self._write("registered", worker=self.name, functions=functions)
        else:
            self._write("refused", worker=self.name, functions=functions)
            self._fail("registering", error)

    def unregistering(self, functions: list[str]) -> None:
        self._write("unregistering", worker=self.name, functions=functions)

    def unregistered(self, functions: list[str], error: IIIError | None = None) -> None:
        if error is None:
            self._write("unregistered", worker=self.name, functions=functions)
        else:
            self._fail("unregistering", error)

    def _fail(self, what: str, error: IIIError) -> None:
        """Only who leaves may be interrupted."""
        if not isinstance(error, Closed):
            self.trouble(f"{what}: {error!r}")

    # -- listening -----------------------------------------------------------------------------------------------------

    def heard(self, change: Change) -> None:
        self._write(
            "heard", worker=self.name,
            change=[change.epoch, change.seq, change.kind, change.function_id, change.worker_id, change.worker_name,
                    change.reason, change.providers],
        )  # fmt: skip
        if time.monotonic() < self._slow_until:
            time.sleep(self._slow_s)

    def slow_down(self, seconds_a_change: float, seconds: float) -> None:
        self._slow_s, self._slow_until = seconds_a_change, time.monotonic() + seconds

    def state(self, state: str, worker_id: str | None) -> None:
        self._write("state", worker=self.name, state=state, id=worker_id)

    def level(self, worker_id: str | None, epoch: str, seq: int, digest: str) -> None:
        self._write("level", worker=self.name, id=worker_id, epoch=epoch, seq=seq, digest=digest)

    def standing(self, epoch: str, seq: int) -> None:
        self._write("standing", worker=self.name, epoch=epoch, seq=seq)

    # -- the end -------------------------------------------------------------------------------------------------------

    def leaving(self) -> None:
        self._write("leaving", worker=self.name)

    def left(self) -> None:
        self._write("left", worker=self.name)

    def trouble(self, text: str) -> None:
        self._write("trouble", worker=self.name, text=text)
