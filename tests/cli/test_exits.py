"""Exit codes: one table, one page of documentation, and a place in it for every error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iii_zmq import errors
from iii_zmq.cli.exits import MEANINGS, Exit, Problem, one_line, problem_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_documentation_has_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert {int(code): text for code, text in rows} == {exit.value: text for exit, text in MEANINGS.items()}


def test_every_exit_code_has_its_meaning() -> None:
    assert set(MEANINGS) == set(Exit)


@pytest.mark.parametrize(
    ("error", "exit", "code", "fate"),
    [
        (errors.RemoteError("KeyError", "x"), 1, "handler_failed", "executed"),
        (errors.NoProvider("none", "not_handed_over", "no_provider"), 3, "no_provider", "not_handed_over"),
        (errors.CallTimeout("late", "possibly_executed", "timeout"), 4, "timeout", "possibly_executed"),
        (errors.WaitTimeout(["a::b"]), 4, "timeout", None),
        (errors.Busy("full", "not_handed_over", "busy"), 5, "busy", "not_handed_over"),
        (errors.Refused("no", "limit"), 5, "limit", None),
        (errors.CallFailed("big", "not_handed_over", "too_large"), 5, "too_large", "not_handed_over"),
        (errors.CallFailed("going", "not_handed_over", "closing"), 6, "closing", "not_handed_over"),
        (errors.BrokerUnreachable("none"), 6, "unreachable", None),
        (errors.BrokerLost("gone", "possibly_executed", "broker_lost"), 6, "broker_lost", "possibly_executed"),
        (errors.Closed("closed"), 6, "unreachable", None),
        (errors.ProviderLost("gone", "possibly_executed", "provider_lost"), 7, "provider_lost", "possibly_executed"),
    ],
)
def test_every_error_has_its_exit_code(error: errors.IIIError, exit: int, code: str, fate: str | None) -> None:
    assert problem_of(error) == Problem(Exit(exit), code, str(error), fate)


def test_an_error_is_one_line_and_steers_no_terminal() -> None:
    assert one_line("no\nway\t\x1b[31m out") == "no way ?[31m out"
