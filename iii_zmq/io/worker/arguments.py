"""Shared by both faces: checks of the users' arguments, the entries that they register, and `current_call()`.

Every check raises at the call site, before anything is recorded or sent, in one line that says what was seen and what
was expected.
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
    """The options of `register` besides id and handler, so that editors and mypy know them if they are passed on."""

    description: str | None
    metadata: Mapping[str, Any] | None
    request_schema: Mapping[str, Any] | None
    response_schema: Mapping[str, Any] | None
    exclusive: bool
    idempotent: bool
    internal: bool
    replace: bool  # this worker has already registered the function, and changes it


HANDLER_OPTIONS = tuple(HandlerOptions.__annotations__)

_TCP_URL = re.compile(r"tcp://(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})")


# -- the worker's own arguments ----------------------------------------------------------------------------------------


def make_profile(
    name: str,
    url: str | None,
    stream_url: str | None,
    metadata: Mapping[str, Any] | None,
    credit: int,
    observer: bool,
) -> Profile:
    """The checked profile. III_URL and III_STREAM_URL are the defaults. Raises: TypeError, ValueError."""
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


# -- functions ---------------------------------------------------------------------------------------------------------


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
    """Checks an id that a worker wants to register. Raises: TypeError, ValueError."""
    wire.check_function_id(function_id)
    if wire.is_reserved(function_id):
        raise ValueError(f"function id {function_id!r}: {wire.RESERVED_PREFIX} is reserved for the broker itself")


def check_json_object(what: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: TypeError, ValueError for anything that JSON can't express."""
    if not isinstance(value, Mapping):
        raise wrong(TypeError, what, value, "a JSON object (a dict)")
    plain = dict(value)
    if not all(isinstance(key, str) for key in plain):
        raise ValueError(f"{what} is not a JSON object: its keys must be str")
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"{what} is not a JSON object: {error}") from error
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
    """The functions to wait for, without reserved ids, which the broker answers. Raises: TypeError, ValueError."""
    for function_id in function_ids:
        wire.check_function_id(function_id)
    return [one for one in dict.fromkeys(function_ids) if not wire.is_reserved(one)]


# -- inside a handler --------------------------------------------------------------------------------------------------


class CurrentCall:
    """The call being handled in the current context."""

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
        """The epoch of the broker that handed over the call: only fences of the same epoch can be compared."""
        return self._run.epoch

    @property
    def fence(self) -> int:
        """For an exclusive function the seq of this worker's promotion, which only grows within an epoch; else 0."""
        return self._run.fence

    @property
    def cancelled(self) -> bool:
        """True if nobody waits for the outcome any more: the caller gave up, or the call timed out."""
        return self._run.cancelled or time.monotonic() >= self._run.deadline

    def remaining(self) -> float:
        """Seconds until the call's deadline; 0.0 afterwards."""
        return max(0.0, self._run.deadline - time.monotonic())

    def __repr__(self) -> str:
        return f"<call of {self.function_id} by {self.caller}, {self.remaining():.3f} s left>"


def current_call() -> CurrentCall:
    """The call being handled in the current context. Raises: RuntimeError outside of a handler."""
    run = running.get()
    if run is None:
        raise RuntimeError("current_call() works only inside a handler, in the thread or task that runs it")
    return CurrentCall(run)
