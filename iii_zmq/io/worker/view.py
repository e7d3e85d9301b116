"""The read side of both faces: what a worker shows of itself and of the registry, and who listens to it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from ... import errors
from ...core.worker.changes import Position
from ...core.worker.core import WorkerCore
from ...core.worker.events import CLOSED
from ...core.worker.replica import Replica
from ...core.worker.views import Function, WorkerInfo
from . import arguments, payloads
from .handlers import Handlers
from .hub import FORKED
from .listeners import Callback, Listeners, check_pattern

_C = TypeVar("_C", bound=Callback)


class View:
    """What Worker and AsyncWorker have in common: they show, and differ only in how they wait."""

    def __init__(
        self,
        name: str,
        url: str | None = None,
        *,
        stream_url: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        threads: int = 8,
        credit: int = 128,
        connect_timeout: float = 5.0,
        retry: bool = False,
        observer: bool = False,
    ) -> None:
        self._profile = arguments.make_profile(name, url, stream_url, metadata, credit, observer)
        self._threads = arguments.check_threads(threads)
        self._connect_timeout = payloads.check_timeout(connect_timeout)
        self._patience_s = None if retry else self._connect_timeout
        self._listeners = self._prepare()
        self._handlers = Handlers()
        self._core = self._new_core()
        self._driver: Any = None  # of the face, once it has joined
        self._joining: Any = None  # until then
        self._closed = False

    # -- the registry --------------------------------------------------------------------------------------------------

    @property
    def functions(self) -> Mapping[str, Function]:
        """All functions of the system by id: live, read-only."""
        self._check_not_forked()
        return self._core.replica.functions

    @property
    def workers(self) -> Mapping[str, WorkerInfo]:
        """All workers of the system by worker id: live, read-only."""
        self._check_not_forked()
        return self._core.replica.workers

    @property
    def replica(self) -> Replica:
        """This worker's copy of the registry, for those who want to know more of it."""
        return self._core.replica

    @property
    def position(self) -> Position:
        """How far this worker's view is: `.epoch` and `.seq`."""
        self._check_not_forked()
        return self._core.replica.position

    @property
    def digest(self) -> str:
        """Hex digest of this worker's view; equal to the broker's at the same position."""
        self._check_not_forked()
        return self._core.replica.digest.hex()

    def on_change(self, pattern: str | _C = "*") -> Any:
        """A decorator: calls the function with each Change whose function id matches (worker changes only with "*").

        A Worker calls it in a callback thread: callbacks of one worker run in order and never two at once, and one that
        blocks holds up no other worker. An AsyncWorker calls it on its event loop; an `async def` function becomes a
        task of its own for each change.
        """
        if not isinstance(pattern, str) and callable(pattern):
            return self.on_change("*")(pattern)
        checked = check_pattern(pattern)

        def decorate(callback: _C) -> _C:
            self._check_not_forked()
            self._listeners.on_change.append((checked, callback))
            return callback

        return decorate

    def on_state(self, callback: _C) -> _C:
        """Calls the function with each new `state`, where `on_change` callbacks run; also a decorator."""
        self._check_not_forked()
        self._listeners.on_state.append(callback)
        return callback

    # -- itself --------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._profile.name

    @property
    def id(self) -> str | None:
        """The worker id that the broker gave; None before the start. A new one after a lost session."""
        welcome = self._core.membership.welcome
        return None if welcome is None else welcome.worker_id

    @property
    def state(self) -> str:
        """connecting, connected, stale or closed; "new" before the start."""
        return CLOSED if self._is_forked() else self._core.membership.state

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far, by name; docs/protocol.md explains each."""
        return self._core.counted() | {"readers_reset": self._listeners.resets + self._resets()}

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.name}: a worker can't be sent to another process: make a new one there")

    # -- for the faces -------------------------------------------------------------------------------------------------

    def _prepare(self) -> Listeners:
        """Makes what the face has of its own."""
        raise NotImplementedError

    def _resets(self) -> int:
        """How often callbacks lost changes because they fell behind."""
        raise NotImplementedError

    def _unusable(self) -> str | None:
        """Why a worker that was started can't be used any more."""
        raise NotImplementedError

    def _new_core(self) -> WorkerCore:
        return WorkerCore(
            self._profile, random=random.random, patience_s=self._connect_timeout,
            is_watched=self._listeners.hear_changes, shared=arguments.shared,
        )  # fmt: skip

    def _move_in(self) -> None:
        """A worker that was made before a fork, and not started, is the child's own."""
        self._profile = replace(self._profile, pid=os.getpid())
        self._core = self._new_core()

    def _is_forked(self) -> bool:
        return self._unusable() is FORKED

    def _check_not_forked(self) -> None:
        """Raises: Closed in a fork's child, where nothing would ever change."""
        if self._is_forked():
            raise errors.Closed(FORKED)

    def _check_not_closed(self) -> None:
        if self._closed:
            raise errors.Closed("the worker was closed")
        unusable = self._unusable()
        if unusable is not None:
            raise errors.Closed(unusable)

    def _record(self, items: list[Any], options: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Checks and takes over a batch: its entries, and what was there before. Raises: TypeError, ValueError."""
        if self._profile.observer:
            raise ValueError("an observer offers no functions")
        prepared = self._handlers.prepare(items, options)
        return {name: entry for name, (_, entry) in prepared.items()}, self._handlers.put(prepared)

    def _check_registered(self, function_ids: tuple[str, ...]) -> None:
        """Raises: TypeError, ValueError."""
        for function_id in function_ids:
            arguments.check_own_id(function_id)
            if function_id not in self._handlers:
                raise ValueError(f"{function_id} is not registered by this worker")

    def _missing(self, wanted: list[str]) -> list[str]:
        """Those of these functions that nobody provides."""
        has_provider: Callable[[str], bool] = self._core.replica.has_provider
        return [one for one in wanted if not has_provider(one)]
