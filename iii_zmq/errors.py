"""Every exception that users meet, as one tree, and the code that each has on the wire.

    IIIError
    +-- ProtocolError         bytes that are no message of ours (never reaches users' scripts)
    +-- BrokerUnreachable     also a ConnectionError
    +-- Closed                the worker was closed
    +-- Refused               .code: the broker said no to a Hello or a registration
    +-- WaitTimeout           .missing: what `wait_for` still waits for; also a TimeoutError
    +-- CallFailed            .fate, .code
        +-- NoProvider        nobody offers the function
        +-- Busy              a limit was reached: credit, queue, open calls
        +-- CallTimeout       also a TimeoutError
        +-- ProviderLost      the provider went while it had the call
        +-- BrokerLost        the broker went while it had the call
        +-- RemoteError       .type, .text: the handler itself raised

A call that fails always tells its fate, one of the three words below.
"""

from __future__ import annotations

from typing import Literal, NoReturn, get_args

Fate = Literal["not_handed_over", "possibly_executed", "executed"]
"""What may have happened to a failed call: no handler can have seen it; one may have; one did, and failed."""

FATES: frozenset[str] = frozenset(get_args(Fate))


class IIIError(Exception):
    """The root: `except IIIError` catches everything that this library raises of its own."""


class ProtocolError(IIIError):
    """Bytes from the network that are no message of this protocol. Counted and dropped by the shells."""


class BrokerUnreachable(IIIError, ConnectionError):
    """No broker answered at the address within the connect timeout."""


class Closed(IIIError):
    """The worker was closed (or never started), so it can't do what was asked."""


class Refused(IIIError):
    """The broker said no; `code` is the wire's word for why."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class WaitTimeout(IIIError, TimeoutError):
    """`wait_for` ran out of time; `missing` lists the function ids without a provider."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        return "still missing: " + ", ".join(self.missing)


class CallFailed(IIIError):
    """A call ended without a result. `fate` tells whether a handler may have run, `code` why it failed."""

    def __init__(self, text: str, fate: Fate, code: str) -> None:
        super().__init__(text, fate, code)
        self.fate: Fate = fate
        self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.fate})"


class NoProvider(CallFailed):
    """Nobody offers the function now."""


class Busy(CallFailed):
    """A limit was reached: the providers' credit and the queue behind it, or the caller's open calls."""


class CallTimeout(CallFailed, TimeoutError):
    """The deadline passed first."""


class ProviderLost(CallFailed):
    """The provider died, fell silent or left while it had the call."""


class BrokerLost(CallFailed):
    """The connection to the broker ended while the call was open."""


class RemoteError(CallFailed):
    """The handler raised: `type` is its exception's class name, `text` its message. Fate is `executed`."""

    def __init__(self, type: str, text: str) -> None:
        super().__init__(f"{type}: {text}", "executed", HANDLER_FAILED)
        self.args = (type, text)
        self.type = type
        self.text = text

    def __str__(self) -> str:
        return f"{self.type}: {self.text}"


# Codes of failed calls, as they travel in a Failure.
NO_PROVIDER = "no_provider"
BUSY = "busy"
TIMEOUT = "timeout"
PROVIDER_LOST = "provider_lost"
BROKER_LOST = "broker_lost"
HANDLER_FAILED = "handler_failed"

# Codes of refusals, in a Refused, in an Ack's refusals, or in a Failure that is the caller's own fault.
INVALID = "invalid"  # malformed: id, entry, payload
RESERVED = "reserved"  # engine::
CONFLICT = "conflict"  # providers disagree about `exclusive`
TOO_LARGE = "too_large"  # beyond a limit of bytes or counts
LIMIT = "limit"  # the broker holds as many as it will
NOT_JOINED = "not_joined"  # before the presence subscription was heard
NOT_REGISTERED = "not_registered"  # to unregister what one does not offer
CLOSING = "closing"  # the broker or the worker is going
VERSION = "version"  # no common protocol version
UNKNOWN_KIND = "unknown_kind"  # a kind of message that came into the protocol later

_CALL_FAILURES: dict[str, type[CallFailed]] = {
    NO_PROVIDER: NoProvider,
    BUSY: Busy,
    TIMEOUT: CallTimeout,
    PROVIDER_LOST: ProviderLost,
    BROKER_LOST: BrokerLost,
}


def call_failure(code: str, fate: Fate, type: str, text: str) -> CallFailed:
    """The exception for a Failure as it came over the wire; unknown codes give a plain `CallFailed`."""
    if code == HANDLER_FAILED:
        return RemoteError(type, text)
    return _CALL_FAILURES.get(code, CallFailed)(text, fate, code)


def assert_never(value: NoReturn) -> NoReturn:
    """Ends a `match` over a union: the type checker names the member that was forgotten (`typing`'s needs 3.11)."""
    raise AssertionError(f"unexpected {value!r}")
