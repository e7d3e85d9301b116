"""A worker of the soak with the plain face: one thread calls, one registers, and the library's own ones serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from iii_zmq import Closed, IIIError, Worker

from .deeds import Deeds, Refusing
from .plan import ANY, FAIL, RELAY, Will, Wish, lead, offers, own
from .processes import wait_until
from .records import Recorder

MUST_S = 20.0  # for a call that nothing may disturb any more: milliseconds, on an idle machine
DRAIN_S = 5.0


class Member:
    """From `begin` to `leave`; `calm` ends its own acts but goes on serving and listening."""

    def __init__(self, name: str, index: int, url: str, will: Will, recorder: Recorder) -> None:
        self.deeds = Deeds(name, recorder)
        self.index = index
        self._will = will
        self._worker = Worker(name, url, retry=True, threads=0 if index % 4 == 0 else 4, credit=8)
        self._is_calm = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, name=f"{name} calls", daemon=True),
            threading.Thread(target=self._churn, name=f"{name} registers", daemon=True),
        ]
        self._joined = threading.Event()
        self._offered = offers(index)
        self._worker.on_change("*")(self.deeds.heard)
        self._worker.on_state(lambda state: self.deeds.state(state, self._worker.id))
        for function_id, options in self._offered.items():
            self._worker.register(function_id, self._handler(function_id), **options)

    # -- orders of the host --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def calm(self) -> None:
        """No further act of its own; what is under way ends."""
        self._is_calm.set()

    def flood(self, count: int) -> None:
        """As many changes as fast as they go, of a function that is registered and unregistered again."""
        flood = threading.Thread(target=self._flood, args=(count,), daemon=True)
        self._threads.append(flood)
        flood.start()

    def tell(self) -> dict[str, Any]:
        """Where it stands."""
        worker = self._worker
        is_idle = self._joined.is_set() and not self.deeds.open_calls and not any(map(_is_alive, self._threads))
        return {
            "worker": self.deeds.name, "id": worker.id, "state": worker.state, "idle": is_idle,
            "position": list(worker.position), "digest": worker.digest, "workers": len(worker.workers),
        }  # fmt: skip

    def finish(self, workers: int) -> None:
        """Nothing is wrong any more: the calls that must succeed, and the registry as it is."""
        for function_id in (own((self.index + 1) % workers), ANY, lead(0)):
            wish = Wish(function_id, MUST_S, "call")
            call = self.deeds.begin_call(wish, must=True)
            self._call(call, wish, None)
        self.deeds.level(self._worker.id, *self._worker.position, self._worker.digest)

    def leave(self, *, must: bool) -> None:
        """`must`: nothing disturbs it, so that it can't fail to hand over all that it has."""
        self.calm()
        self.deeds.leaving()
        try:
            is_drained = self._worker.drain(MUST_S if must else DRAIN_S)
            if must and not is_drained:
                self.deeds.trouble(f"something is still open after a drain of {MUST_S:g} s")
        except Closed:  # it had not joined yet
            self._worker.close()
        for thread in self._threads:
            thread.join(DRAIN_S)
        wait_until(lambda: not self.deeds.open_calls, DRAIN_S)  # a handler may be about to hear of its own call's end
        self.deeds.left()

    # -- its own acts --------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        with _Watched(self.deeds):
            self.deeds.joining(list(self._offered))
            try:
                self._worker.start()
            except Closed:
                return
            self.deeds.joined(*self._worker.position)
            self._joined.set()
            while not self._is_calm.wait(self._will.pause_s()):
                self._act(self._will.wishes())

    def _act(self, wishes: list[Wish]) -> None:
        futures: list[Future[Any]] = []
        for wish in wishes:
            target = self._target(wish)
            if wish.style == "send":
                self._send(wish)
                continue
            call = self.deeds.begin_call(wish)
            if wish.style == "call":
                self._call(call, wish, target)
            else:
                futures.append(self._submit(call, wish, target))
        for future in futures:
            try:
                future.exception()
            except CancelledError:
                pass

    def _target(self, wish: Wish) -> str | None:
        function = self._worker.functions.get(wish.function_id) if wish.aimed else None
        return None if function is None else self._will.choice([one.worker_id for one in function.providers])

    def _call(self, call: str, wish: Wish, target: str | None) -> None:
        try:
            answer = self._worker.call(
                wish.function_id, {"call": call, **wish.asks}, timeout=wish.timeout, worker=target
            )
        except IIIError as error:
            self.deeds.end_call(call, error=error)
        else:
            self.deeds.end_call(call, answer)

    def _submit(self, call: str, wish: Wish, target: str | None) -> Future[Any]:
        try:
            future = self._worker.submit(
                wish.function_id, {"call": call, **wish.asks}, timeout=wish.timeout, worker=target
            )
        except IIIError as error:
            self.deeds.end_call(call, error=error)
            return _done()
        future.add_done_callback(lambda done: self._note_end(call, done))
        if wish.style == "cancel":
            time.sleep(self._will.pause_s() / 20)
            future.cancel()
        return future

    def _note_end(self, call: str, done: Future[Any]) -> None:
        if done.cancelled():
            self.deeds.give_call_up(call)
        elif (error := done.exception()) is not None:
            self.deeds.end_call(call, error=error)
        else:
            self.deeds.end_call(call, done.result())

    def _send(self, wish: Wish) -> None:
        call = self.deeds.begin_send(wish)
        try:
            self._worker.send(wish.function_id, {"call": call, **wish.asks}, timeout=wish.timeout)
        except IIIError:
            pass  # whether it runs or not: at most once

    def _churn(self) -> None:
        with _Watched(self.deeds):
            self._joined.wait()
            while not self._is_calm.wait(self._will.churn_pause_s()):
                self._register(self._will.batch())
                self._unregister(self._will.gone())

    def _flood(self, count: int) -> None:
        with _Watched(self.deeds):
            self._joined.wait()  # before, registering only records
            function_id = self._will.flooding()
            for _ in range(count):
                if self._is_calm.is_set():
                    return
                self._register([function_id])
                self._unregister([function_id])

    def _register(self, functions: list[str]) -> None:
        self.deeds.registering(functions)
        try:
            batch = [(one, self._handler(one)) for one in functions]
            self._worker.register_many(batch, description=self._will.description())
        except IIIError as error:
            self.deeds.registered(functions, error)
        else:
            self.deeds.registered(functions)

    def _unregister(self, functions: list[str]) -> None:
        if not functions:
            return
        self.deeds.unregistering(functions)
        try:
            self._worker.unregister(*functions)
        except IIIError as error:
            self.deeds.unregistered(functions, error)
        else:
            self.deeds.unregistered(functions)

    def _handler(self, function_id: str) -> Callable[[dict[str, Any]], Any]:
        def echo(payload: dict[str, Any]) -> str:
            call = self.deeds.run(payload)
            time.sleep(payload.get("nap", 0.0))
            return call

        def fail(payload: dict[str, Any]) -> str:
            raise Refusing(echo(payload))

        def relay(payload: dict[str, Any]) -> str:
            call = self.deeds.run(payload)
            wish = Wish(payload["next"], MUST_S, "call")  # inherits what is left of its own time
            self._call(self.deeds.begin_call(wish), wish, None)
            return call

        return {FAIL: fail, RELAY: relay}.get(function_id, echo)


class Watcher:
    """An observer that reads `changes()`: no row, no function, and a stream like everybody's."""

    def __init__(self, name: str, url: str, recorder: Recorder) -> None:
        self._deeds = Deeds(name, recorder)
        self._worker = Worker(name, url, retry=True, observer=True)
        self._thread = threading.Thread(target=self._watch, name=f"{name} watches", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self._deeds.standing(*self._worker.position)

    def leave(self) -> None:
        self._worker.close()
        self._thread.join(DRAIN_S)

    def _watch(self) -> None:
        with _Watched(self._deeds):
            changes = self._worker.changes()
            self._deeds.joining([])
            try:
                self._worker.start()
            except Closed:
                return
            self._deeds.joined(*self._worker.position)
            for change in changes:
                self._deeds.heard(change)


class _Watched:
    """A thread of ours never ends without a word."""

    def __init__(self, deeds: Deeds) -> None:
        self._deeds = deeds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._deeds.trouble(f"{threading.current_thread().name}: {error!r}")


def _is_alive(thread: threading.Thread) -> bool:
    return thread.is_alive()


def _done() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future
