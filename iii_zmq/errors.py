"""Every exception that users meet, as one tree, and the code of each on the wire.

    IIIError
    +-- ProtocolError         bytes that are not a message of this protocol (never reaches users' scripts)
    +-- BrokerUnreachable     also a ConnectionError
    +-- Closed                the worker is closed
    +-- Refused               .code: the broker refused a Hello or a registration
    +-- WaitTimeout           .missing: the functions that `wait_for` still waits for; also a TimeoutError
    +-- CallFailed            .fate, .code
        +-- NoProvider        nobody offers the function
        +-- Busy              a limit was reached: credit, queue, open calls
        +-- CallTimeout       also a TimeoutError
        +-- ProviderLost      the provider was lost while it had the call
        +-- BrokerLost        the broker was lost while it had the call
        +-- RemoteError       .type, .text: the handler raised

Every failed call has a fate, one of the three words below.
"""

from __future__ import annotations

from typing import Literal, NoReturn, get_args

Fate = Literal["not_handed_over", "possibly_executed", "executed"]
"""How far a failed call got: no handler can have seen it; a handler may have run it; a handler ran it and failed."""

FATES: frozenset[str] = frozenset(get_args(Fate))


class IIIError(Exception):
    """The root: `except IIIError` catches every exception that this library defines."""


class ProtocolError(IIIError):
    """Bytes from the network are not a message of this protocol. The shells count and drop them."""


class BrokerUnreachable(IIIError, ConnectionError):
    """No broker answered at the address within the connect timeout."""


class Closed(IIIError):
    """The worker is closed (or was never started), so it can't do what you asked."""


class Refused(IIIError):
    """The broker refused; `code` is the reason, in the wire's words."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class WaitTimeout(IIIError, TimeoutError):
    """`wait_for` timed out; `missing` lists the function ids that still have no provider."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        return "still missing: " + ", ".join(self.missing)


class CallFailed(IIIError):
    """A call failed. `fate` says whether a handler may have run it, `code` says why it failed."""

    def __init__(self, text: str, fate: Fate, code: str) -> None:
        super().__init__(text, fate, code)
        self.fate: Fate = fate
        self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.fate})"


class NoProvider(CallFailed):
    """No worker offers the function at the moment."""


class Busy(CallFailed):
    """A limit was reached: the providers' credit and the queue behind it are full, or you have too many open calls."""


class CallTimeout(CallFailed, TimeoutError):
    """The call timed out."""


class ProviderLost(CallFailed):
    """The provider died, fell silent or left while it had the call."""


class BrokerLost(CallFailed):
    """The connection to the broker ended while the call was open."""


class RemoteError(CallFailed):
    """The handler raised: `type` is the class name of its exception, `text` the message. The fate is `executed`."""

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

# Codes of refusals: in a Refused, in the refusals of an Ack, or in a Failure that is the caller's own fault.
INVALID = "invalid"  # malformed: id, entry, payload
RESERVED = "reserved"  # engine::
CONFLICT = "conflict"  # providers disagree about `exclusive`
TOO_LARGE = "too_large"  # over a limit of bytes or counts
LIMIT = "limit"  # the broker holds as many as it allows
NOT_JOINED = "not_joined"  # sent before the broker heard the presence subscription
NOT_REGISTERED = "not_registered"  # unregisters a function that the worker does not offer
CLOSING = "closing"  # the broker or the worker is closing
VERSION = "version"  # no common protocol version
UNKNOWN_KIND = "unknown_kind"  # a kind of message that was added to the protocol later

_CALL_FAILURES: dict[str, type[CallFailed]] = {
    NO_PROVIDER: NoProvider,
    BUSY: Busy,
    TIMEOUT: CallTimeout,
    PROVIDER_LOST: ProviderLost,
    BROKER_LOST: BrokerLost,
}


def call_failure(code: str, fate: Fate, type: str, text: str) -> CallFailed:
    """The exception for a Failure from the wire; an unknown code gives a plain `CallFailed`."""
    if code == HANDLER_FAILED:
        return RemoteError(type, text)
    return _CALL_FAILURES.get(code, CallFailed)(text, fate, code)


def assert_never(value: NoReturn) -> NoReturn:
    """Ends a `match` over a union: the type checker names the member you forgot (the one in `typing` needs 3.11)."""
    raise AssertionError(f"unexpected {value!r}")
