"""call, wait, ping: the verbs that wait for an answer from a provider or the broker."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from .. import errors, wire
from .client import check_id, is_known, joined
from .exits import not_found, usage
from .payloads import read_payload, to_text


def call(url: str | None, id: str, words: Sequence[str], timeout: float, worker_id: str | None, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    check_id(id)
    payload = read_payload(words)
    _check_carried(payload)
    with joined(url, timeout) as worker:
        result = worker.call(id, payload, timeout=timeout, worker=worker_id)
    print(to_text(result, for_people=not as_json and sys.stdout.isatty()))


def _check_carried(payload: object) -> None:
    try:
        packed = wire.pack(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise usage(f"msgpack can't carry this payload: {error}") from error
    if len(packed) > wire.PAYLOAD_BYTES_MAX:
        raise usage(f"the payload has {len(packed)} bytes; at most {wire.PAYLOAD_BYTES_MAX} are allowed")


def wait(url: str | None, ids: Sequence[str], timeout: float, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    ids = list(dict.fromkeys(map(check_id, ids)))
    until = time.monotonic() + timeout
    with joined(url, timeout) as worker:
        own = [id for id in ids if not wire.is_reserved(id)]
        for id in ids:
            if id not in own and not is_known(worker, id):
                raise not_found(f"the broker has no function {id!r}")
        try:
            worker.wait_for(*own, timeout=max(0.0, until - time.monotonic()))
        except errors.WaitTimeout as error:
            _tell_found(ids, error.missing, as_json)
            raise
    _tell_found(ids, [], as_json)


def _tell_found(ids: Sequence[str], missing: Sequence[str], as_json: bool) -> None:
    found = [id for id in ids if id not in missing]
    if as_json:
        print(json.dumps({"found": found, "missing": list(missing)}))
    else:
        for id in found:
            print(f"found {id}")


def ping(url: str | None, timeout: float, as_json: bool) -> None:
    """Raises: CommandError, IIIError."""
    with joined(url, timeout) as worker:
        worker.call("engine::ping", timeout=timeout)  # the first call pays for one-time set-up
        began = time.perf_counter()
        worker.call("engine::ping", timeout=timeout)
        ms = (time.perf_counter() - began) * 1000
    print(json.dumps({"ms": round(ms, 3)}) if as_json else f"answered in {ms:.3f} ms")
