"""What every call passes through at its two ends: arguments checked, payloads packed, results unpacked.

Apart from arguments because this may be compiled. So whatever users pass is `Any` here: compiled code checks what it is
told before any line of ours could say what is wrong with it.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from typing import Any, Final

from ... import errors, wire
from ...core.worker.events import RunCall

running: Final[ContextVar[RunCall | None]] = ContextVar("iii_zmq_running", default=None)
"""The call being handled in the current context."""


# What msgpack raises for a value that it can't carry. Not all of Exception: that of a signal handler is the user's.
PACK_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)
_IDS_MAX = 10_000  # known to be well formed; a program calls a few dozen
_good_ids: set[str] = set()


def check_call(function_id: Any, payload: Any, timeout: Any, worker: Any) -> bytes | wire.Split:
    """The packed payload. Raises: TypeError, ValueError. Called for each call: what is usual passes quickly."""
    if function_id not in _good_ids:
        wire.check_function_id(function_id)
        if len(_good_ids) < _IDS_MAX:
            _good_ids.add(function_id)
    if type(timeout) is not float or not 0.0 <= timeout < math.inf:
        check_timeout(timeout)
    if worker is not None and not isinstance(worker, str):
        raise wrong(TypeError, "worker", worker, "a worker id")
    try:
        packed = wire.pack_payload(payload)
    except PACK_ERRORS:
        packed = pack_value("payload", payload)  # says what is wrong
    if len(packed) > wire.PAYLOAD_BYTES_MAX:
        raise ValueError(f"payload of {len(packed)} bytes; at most {wire.PAYLOAD_BYTES_MAX} are allowed")
    return packed


def check_timeout(timeout: Any) -> Any:
    """Seconds, as they came. Raises: TypeError, ValueError."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise wrong(TypeError, "timeout", timeout, "seconds, a number of at least 0")
    if not 0 <= timeout < math.inf:
        raise wrong(ValueError, "timeout", timeout, "seconds, a finite number of at least 0")
    return timeout


def inherit_deadline(timeout: Any) -> Any:
    """Inside a handler a call has at most what the handler itself has left."""
    run = running.get()
    if run is None:
        return timeout
    return min(timeout, max(0.0, run.deadline - time.monotonic()))


def pack_value(what: str, value: Any, limit: int = wire.PAYLOAD_BYTES_MAX) -> bytes | wire.Split:
    """One msgpack value; a map or array is one of bytes. Raises: TypeError, ValueError for what can't be carried."""
    try:
        packed = wire.pack_payload(value)
    except OverflowError as error:
        raise ValueError(f"{what}: msgpack carries integers of at most 64 bits ({error})") from error
    except TypeError as error:
        raise TypeError(f"{what}: msgpack can't carry it: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: msgpack can't carry it: {error}") from error
    if len(packed) > limit:
        raise ValueError(f"{what} of {len(packed)} bytes; at most {limit} are allowed")
    return packed


def unpack_result(data: wire.Payload) -> Any:
    """Raises: RemoteError when the provider sent what is no value."""
    try:
        return wire.unpack(data)
    except ValueError as error:
        raise errors.RemoteError("ValueError", str(error)) from error


def wrong(kind: type[Exception], what: str, seen: Any, expected: str) -> Exception:
    return kind(f"{what} is {seen!r:.100}; expected {expected}")
