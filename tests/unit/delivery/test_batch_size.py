"""How much goes into one write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_audit.delivery.batch_size import BatchSize


def test_begins_with_as_much_as_there_may_be() -> None:
    """Entries and bytes bound it, and one entry always fits."""
    size = BatchSize(10, 1000)
    assert size.fitting([1] * 100) == 10
    assert size.fitting([300] * 100) == 3
    assert size.fitting([5000, 1]) == 1
    assert size.fitting([]) == 0


def test_halves_with_each_failure_and_grows_again() -> None:
    """Down to one entry, and back to all."""
    size = BatchSize(8, 8000)
    seen = []
    for _ in range(5):
        seen.append(size.fitting([1] * 100))
        size.failed(seen[-1])
    assert seen == [8, 4, 2, 1, 1]
    for _ in range(100):
        size.succeeded()
    assert size.fitting([1] * 100) == 8


def test_does_not_try_at_once_again_what_failed() -> None:
    """A size that ran into a limit is tried only after several writes that did not."""
    size = BatchSize(8, 8000)
    size.failed(8)
    assert [size.entries for _ in range(8) if size.succeeded() is None] == [4] * 7 + [8]


def test_a_small_write_that_failed_is_halved_itself() -> None:
    """Not the size that it might have had."""
    size = BatchSize(512, 10**6)
    size.failed(6)
    assert size.entries == 3


@given(st.lists(st.booleans()), st.lists(st.integers(0, 10**7), min_size=1))
def test_there_is_always_progress(steps: list[bool], waiting: list[int]) -> None:
    """Whatever happened before, a write has at least one entry, and never too many."""
    size = BatchSize(512, 10**6)
    for went_well in steps:
        if went_well:
            size.succeeded()
        else:
            size.failed(size.fitting(waiting))
    count = size.fitting(waiting)
    assert 1 <= count <= 512
    assert count == 1 or sum(waiting[:count]) <= 10**6
