"""How a command ends: the exit codes, and how each error is reported (code, one line, fate).

The table below is the only place that assigns exit codes. docs/cli.md explains them; a test compares the two.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from enum import IntEnum

from .. import errors


class Exit(IntEnum):
    OK = 0
    HANDLER_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMEOUT = 4
    REFUSED = 5
    NO_BROKER = 6
    PROVIDER_LOST = 7
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done",
    Exit.HANDLER_FAILED: "the handler raised, or the demo or a benchmark failed",
    Exit.USAGE: "wrong usage",
    Exit.NOT_FOUND: "no such function or worker",
    Exit.TIMEOUT: "timed out",
    Exit.REFUSED: "refused or busy, or the address is in use",
    Exit.NO_BROKER: "the broker can't be reached, or was lost",
    Exit.PROVIDER_LOST: "the provider was lost during the call",
    Exit.INTERRUPTED: "ended by Ctrl-C or SIGTERM (serve and watch: 0)",
}


class CommandError(Exception):
    """An error that the command itself found. `code` is the word for programs."""

    def __init__(self, exit: Exit, code: str, message: str) -> None:
        super().__init__(message)
        self.exit = exit
        self.code = code


def usage(message: str) -> CommandError:
    return CommandError(Exit.USAGE, "usage", message)


def not_found(message: str) -> CommandError:
    return CommandError(Exit.NOT_FOUND, "not_found", message)


@dataclass(slots=True, frozen=True)
class Problem:
    """One error, as it is reported to people and to programs."""

    exit: Exit
    code: str
    message: str
    fate: str | None = None

    def report(self, as_json: bool) -> int:
        """Prints one line on stderr; the exit code."""
        message = one_line(self.message)
        if as_json:
            line = json.dumps({"error": self.code, "message": message, "fate": self.fate})
        else:
            line = f"iii-broker: {message}"
        print(line, file=sys.stderr, flush=True)
        return self.exit


def problem_of(error: CommandError | errors.IIIError) -> Problem:
    """The exit code, code, text and fate of an error."""
    if isinstance(error, CommandError):
        return Problem(error.exit, error.code, str(error))
    if isinstance(error, errors.CallFailed):
        other = Exit.NO_BROKER if error.code == errors.CLOSING else Exit.REFUSED
        return Problem(_EXITS_OF_CALLS.get(type(error), other), error.code, str(error), error.fate)
    if isinstance(error, errors.WaitTimeout):
        return Problem(Exit.TIMEOUT, errors.TIMEOUT, str(error))
    if isinstance(error, errors.Refused):
        return Problem(Exit.REFUSED, error.code, str(error))
    return Problem(Exit.NO_BROKER, "unreachable", str(error))  # BrokerUnreachable, Closed


_EXITS_OF_CALLS: dict[type[errors.CallFailed], Exit] = {
    errors.RemoteError: Exit.HANDLER_FAILED,
    errors.NoProvider: Exit.NOT_FOUND,
    errors.CallTimeout: Exit.TIMEOUT,
    errors.Busy: Exit.REFUSED,
    errors.BrokerLost: Exit.NO_BROKER,
    errors.ProviderLost: Exit.PROVIDER_LOST,
}


def one_line(text: str) -> str:
    """The text without line breaks and without control characters, which could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
