"""How long one waits for a broker: only time in which the process got to run counts."""

from __future__ import annotations

from iii_zmq.core.worker.patience import SLICES, Patience


def slices(patience: Patience, late_s: float = 0.0, progress: object = None) -> int:
    """How many it lasts, when each takes so much longer than it was meant to."""
    for count in range(1, 1000):
        slice_s = patience.slice_s
        assert slice_s is not None
        assert slice_s > 0
        if patience.is_over(slice_s + late_s, progress):
            return count
    raise AssertionError("it never ends")


def test_without_progress_it_ends_after_the_timeout() -> None:
    assert slices(Patience(5.0, None)) in (SLICES, SLICES + 1)


def test_a_slice_that_took_longer_counts_as_what_it_was_meant_to_be() -> None:
    """The process was stopped, or got no CPU: it could not have heard anything."""
    assert slices(Patience(5.0, None), late_s=60.0) == slices(Patience(5.0, None))


def test_a_slice_that_ended_early_counts_as_what_it_took() -> None:
    patience = Patience(5.0, None)
    assert not any(patience.is_over(0.001, None) for _ in range(1000))


def test_progress_begins_the_timeout_anew() -> None:
    patience = Patience(5.0, 0)
    assert not any(patience.is_over(5.0, step) for step in range(1, 200))
    assert slices(patience, progress=199) in (SLICES, SLICES + 1)


def test_a_short_timeout_has_few_slices() -> None:
    assert slices(Patience(0.01, None)) == 2
    assert slices(Patience(0.001, None)) == 1


def test_without_a_timeout_it_is_over_when_the_wait_itself_has_ended() -> None:
    patience = Patience(None, 0)
    assert patience.slice_s is None
    assert not patience.is_over(3600.0, 1)
    assert patience.is_over(0.0, 1)
