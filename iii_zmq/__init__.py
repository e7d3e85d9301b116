"""iii_zmq: a ZeroMQ broker that is the live function registry of a LAN, and the workers that meet there.

    from iii_zmq import Worker                   programs without an event loop
    from iii_zmq import AsyncWorker              programs with one

Only the exceptions are imported at once. Everything else is imported at first use, so `import iii_zmq` costs almost
nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import (
    BrokerLost,
    BrokerUnreachable,
    Busy,
    CallFailed,
    CallTimeout,
    Closed,
    IIIError,
    NoProvider,
    ProtocolError,
    ProviderLost,
    Refused,
    RemoteError,
    WaitTimeout,
)

if TYPE_CHECKING:
    from .core.worker.changes import Change, Position
    from .io.worker.arguments import CurrentCall, current_call
    from .io.worker.async_worker import AsyncWorker
    from .io.worker.sync_worker import Worker

_HOMES = {
    "AsyncWorker": ".io.worker.async_worker",
    "Change": ".core.worker.changes",
    "CurrentCall": ".io.worker.arguments",
    "Position": ".core.worker.changes",
    "Worker": ".io.worker.sync_worker",
    "current_call": ".io.worker.arguments",
}

__all__ = [
    "AsyncWorker", "BrokerLost", "BrokerUnreachable", "Busy", "CallFailed", "CallTimeout", "Change", "Closed",
    "CurrentCall", "IIIError", "NoProvider", "Position", "ProtocolError", "ProviderLost", "Refused", "RemoteError",
    "WaitTimeout", "Worker", "__version__", "current_call",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
