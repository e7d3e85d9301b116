"""What both workers' faces share: checks of what users pass, the entries they register, and `current_call()`.

Every check raises at the call site, before anything is recorded or sent, in one line that says what was seen and what
is expected.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from ... import wire
from ...core.worker.events import RunCall
from ...core.worker.membership import Profile
from ...core.worker.shared import Shared
from .payloads import pack_value, running, wrong

DEFAULT_URL = "tcp://127.0.0.1:5570"

CREDIT_MAX = 2**31 - 1

Handler = Callable[[Any], Any]

shared = Shared()  # by all workers of this process


class HandlerOptions(TypedDict, total=False):
    """What `register` takes besides id and handler, for those who pass it on: editors and mypy know it by this."""

    description: str | None
    metadata: Mapping[str, Any] | None
    request_schema: Mapping[str, Any] | None
    response_schema: Mapping[str, Any] | None
    exclusive: bool
    idempotent: bool
    internal: bool
    replace: bool  # it is registered by this worker already, and changes


HANDLER_OPTIONS = tuple(HandlerOptions.__annotations__)

_TCP_URL = re.compile(r"tcp://(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})")


# -- what a worker is --------------------------------------------------------------------------------------------------


def make_profile(
    name: str,
    url: str | None,
    stream_url: str | None,
    metadata: Mapping[str, Any] | None,
    credit: int,
    observer: bool,
) -> Profile:
    """Checked; III_URL and III_STREAM_URL stand in for what was not given. Raises: TypeError, ValueError."""
    _check_name(name)
    if type(credit) is not int:
        raise wrong(TypeError, "credit", credit, "an int of at least 1")
    if not 1 <= credit <= CREDIT_MAX:
        raise wrong(ValueError, "credit", credit, f"1 to {CREDIT_MAX}")
    chosen = check_url("url", url or os.environ.get("III_URL") or DEFAULT_URL)
    stream = stream_url or os.environ.get("III_STREAM_URL") or None
    if stream is not None:
        check_url("stream_url", stream)
    packed = pack_metadata(metadata)
    return Profile(name, socket.gethostname()[:255], os.getpid(), chosen, stream, packed, credit, bool(observer))


def check_url(what: str, url: str) -> str:
    """Raises: TypeError, ValueError."""
    expected = "tcp://HOST:PORT or ipc://PATH"
    if not isinstance(url, str):
        raise wrong(TypeError, what, url, expected)
    if url.startswith("ipc://") and len(url) > len("ipc://"):
        return url
    match = _TCP_URL.fullmatch(url)
    if match is None or not 1 <= int(match[2]) <= 65535 or match[1] == "*":
        raise wrong(ValueError, what, url, expected)
    return url


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise wrong(TypeError, "name", name, "a str")
    if not 1 <= len(name) <= wire.NAME_CHARS_MAX or not name.isprintable():
        raise wrong(ValueError, "name", name, f"1 to {wire.NAME_CHARS_MAX} printable characters")


def pack_metadata(metadata: Mapping[str, Any] | None) -> bytes:
    """Raises: TypeError, ValueError."""
    if metadata is None:
        return wire.pack({})
    packed = pack_value("metadata", check_json_object("metadata", metadata))
    assert isinstance(packed, bytes)  # a map is never split
    if len(packed) > wire.METADATA_BYTES_MAX:
        raise ValueError(f"metadata of {len(packed)} bytes; at most {wire.METADATA_BYTES_MAX} are allowed")
    return packed


def check_threads(threads: int) -> int:
    """Raises: TypeError, ValueError."""
    if type(threads) is not int:
        raise wrong(TypeError, "threads", threads, "an int of at least 0")
    if threads < 0:
        raise wrong(ValueError, "threads", threads, "an int of at least 0")
    return threads


# -- what is registered ------------------------------------------------------------------------------------------------


def make_entry(
    function_id: str,
    handler: Handler,
    *,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    request_schema: Mapping[str, Any] | None = None,
    response_schema: Mapping[str, Any] | None = None,
    exclusive: bool = False,
    idempotent: bool = False,
    internal: bool = False,
) -> bytes:
    """The packed entry of a function. Raises: TypeError, ValueError."""
    check_own_id(function_id)
    if not callable(handler):
        raise wrong(TypeError, f"{function_id}: handler", handler, "something callable with the payload")
    if description is not None and not isinstance(description, str):
        raise wrong(TypeError, f"{function_id}: description", description, "a str")
    flags = wire.EXCLUSIVE * bool(exclusive) | wire.IDEMPOTENT * bool(idempotent) | wire.INTERNAL * bool(internal)
    objects = {"request_schema": request_schema, "response_schema": response_schema, "metadata": metadata}
    for what, value in objects.items():
        if value is not None:
            objects[what] = check_json_object(f"{function_id}: {what}", value)
    try:
        packed = wire.encode_entry(wire.FunctionEntry(function_id, description, **objects, flags=flags))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{function_id}: msgpack can't carry its description, schemas or metadata: {error}") from error
    if len(packed) > wire.ENTRY_BYTES_MAX:
        raise ValueError(f"{function_id}: entry of {len(packed)} bytes; at most {wire.ENTRY_BYTES_MAX} are allowed")
    return packed


def check_own_id(function_id: str) -> None:
    """An id that a worker may register. Raises: TypeError, ValueError."""
    wire.check_function_id(function_id)
    if wire.is_reserved(function_id):
        raise ValueError(f"function id {function_id!r}: {wire.RESERVED_PREFIX} is reserved for the broker itself")


def check_json_object(what: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: TypeError, ValueError for what JSON can't say."""
    if not isinstance(value, Mapping):
        raise wrong(TypeError, what, value, "a JSON object (a dict)")
    plain = dict(value)
    if not all(isinstance(key, str) for key in plain):
        raise ValueError(f"{what} is no JSON object: its keys are to be str")
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"{what} is no JSON object: {error}") from error
    return plain


def read_batch(batch: Mapping[str, Handler] | Iterable[Any]) -> list[tuple[str, Handler, dict[str, Any]]]:
    """(id, handler, options) for each element of `register_many`'s batch. Raises: TypeError, ValueError."""
    items = batch.items() if isinstance(batch, Mapping) else batch
    read = []
    for item in items:
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            raise TypeError(f"register_many takes (id, handler) or (id, handler, options), not {item!r:.100}")
        options = dict(item[2]) if len(item) == 3 else {}
        unknown = set(options) - set(HANDLER_OPTIONS)
        if unknown:
            raise TypeError(f"{item[0]}: unknown options {sorted(unknown)}; expected some of {HANDLER_OPTIONS}")
        read.append((item[0], item[1], options))
    return read


def check_wanted(function_ids: tuple[str, ...]) -> list[str]:
    """What `wait_for` is to wait for: the broker itself answers reserved ids. Raises: TypeError, ValueError."""
    for function_id in function_ids:
        wire.check_function_id(function_id)
    return [one for one in dict.fromkeys(function_ids) if not wire.is_reserved(one)]


# -- inside a handler --------------------------------------------------------------------------------------------------


class CurrentCall:
    """The call that the running handler answers."""

    __slots__ = ("_run",)

    def __init__(self, run: RunCall) -> None:
        self._run = run

    @property
    def function_id(self) -> str:
        return self._run.function_id

    @property
    def caller(self) -> str:
        """The caller's worker id."""
        return self._run.caller

    @property
    def epoch(self) -> str:
        """The life of the broker that handed the call over: fences can be compared within one epoch only."""
        return self._run.epoch

    @property
    def fence(self) -> int:
        """The seq of this worker's promotion for an exclusive function, which only grows in an epoch; 0 for others."""
        return self._run.fence

    @property
    def cancelled(self) -> bool:
        """Nobody waits for the outcome any more: the caller gave up, or its time is over."""
        return self._run.cancelled or time.monotonic() >= self._run.deadline

    def remaining(self) -> float:
        """Seconds until the call's deadline; 0.0 afterwards."""
        return max(0.0, self._run.deadline - time.monotonic())

    def __repr__(self) -> str:
        return f"<call of {self.function_id} by {self.caller}, {self.remaining():.3f} s left>"


def current_call() -> CurrentCall:
    """The call that this handler answers. Raises: RuntimeError outside of a handler."""
    run = running.get()
    if run is None:
        raise RuntimeError("current_call() works only inside a handler, in the thread or task that runs it")
    return CurrentCall(run)
