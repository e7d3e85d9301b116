"""The exceptions' tree as users catch it, and what each says."""

from __future__ import annotations

import pickle

import pytest

from iii_zmq import errors

FAILURES = {
    errors.NO_PROVIDER: errors.NoProvider,
    errors.BUSY: errors.Busy,
    errors.TIMEOUT: errors.CallTimeout,
    errors.PROVIDER_LOST: errors.ProviderLost,
    errors.BROKER_LOST: errors.BrokerLost,
    "of a later version": errors.CallFailed,
}
EXAMPLES: list[errors.IIIError] = [
    errors.BrokerUnreachable("no broker at tcp://x"),
    errors.Closed("closed"),
    errors.Refused("id is reserved", errors.RESERVED),
    errors.WaitTimeout(["a", "b"]),
    errors.RemoteError("KeyError", "'x'"),
    *[errors.call_failure(code, "not_handed_over", "", "nobody") for code in FAILURES],
]


@pytest.mark.parametrize("code", FAILURES)
def test_a_failures_code_chooses_its_exception(code: str) -> None:
    error = errors.call_failure(code, "possibly_executed", "", "it broke")
    assert type(error) is FAILURES[code]
    assert (error.code, error.fate, str(error)) == (code, "possibly_executed", "it broke (possibly_executed)")


def test_what_the_handler_raised_is_told_by_type_and_text() -> None:
    error = errors.call_failure(errors.HANDLER_FAILED, "executed", "KeyError", "'x'")
    assert isinstance(error, errors.RemoteError)
    assert (error.type, error.text, error.fate, error.code) == ("KeyError", "'x'", "executed", "handler_failed")
    assert str(error) == "KeyError: 'x'"


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_is_one_of_ours(error: errors.IIIError) -> None:
    assert isinstance(error, errors.IIIError)
    assert isinstance(error, errors.CallFailed) == hasattr(error, "fate")


@pytest.mark.parametrize(
    ("ours", "known"),
    [
        (errors.BrokerUnreachable, ConnectionError),
        (errors.WaitTimeout, TimeoutError),
        (errors.CallTimeout, TimeoutError),
    ],
)
def test_some_are_also_what_python_programs_catch_already(ours: type[Exception], known: type[Exception]) -> None:
    assert issubclass(ours, known)


def test_the_others_say_what_they_know() -> None:
    assert str(errors.WaitTimeout(["a", "b"])) == "still missing: a, b"
    assert errors.WaitTimeout(["a", "b"]).missing == ["a", "b"]
    refused = errors.Refused("id is reserved", errors.RESERVED)
    assert (str(refused), refused.code) == ("id is reserved", "reserved")


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_reaches_another_process_as_it_was(error: errors.IIIError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_what_cannot_be_ends_loudly() -> None:
    with pytest.raises(AssertionError, match="unexpected 3"):
        errors.assert_never(3)  # type: ignore[arg-type]
