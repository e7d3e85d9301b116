"""Joins as an observer, which does not show up in the registry: every verb but serve starts with this."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .. import errors, wire
from .exits import usage

if TYPE_CHECKING:
    from ..io.worker.sync_worker import Worker

CONNECT_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_MIN_S = 0.25  # with less, a broker across the LAN could seem unreachable
NAME = "iii-broker"

# The verb reports an error in one line. Without any handler Python would also print the library's warnings.
_SILENT = logging.NullHandler()


@contextmanager
def joined(url: str | None, timeout: float | None = None) -> Iterator[Worker]:
    """An observer whose replica is complete. Raises: CommandError, IIIError."""
    from ..io.worker.sync_worker import Worker

    patience_s = CONNECT_TIMEOUT_S if timeout is None else min(CONNECT_TIMEOUT_S, timeout)
    try:
        worker = Worker(NAME, url, threads=0, connect_timeout=max(CONNECT_TIMEOUT_MIN_S, patience_s), observer=True)
    except (TypeError, ValueError) as error:
        raise usage(str(error)) from error
    logging.getLogger("iii_zmq").addHandler(_SILENT)
    with worker:
        yield worker


def check_id(function_id: str) -> str:
    """Raises: CommandError."""
    try:
        wire.check_function_id(function_id)
    except ValueError as error:
        raise usage(str(error)) from error
    return function_id


def is_known(worker: Worker, function_id: str) -> bool:
    """True if a worker, or the broker itself, offers this function."""
    if not wire.is_reserved(function_id):
        return function_id in worker.functions
    try:
        worker.call("engine::functions::info", {"id": function_id})
    except errors.RemoteError:
        return False
    return True
