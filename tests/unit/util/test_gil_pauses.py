"""Long computations of a background thread let other threads run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from otel_audit._util.gil_pauses import with_pauses

_WORK = 0.0005
_MOST_ITEMS = 4_000


@pytest.fixture
def no_switching() -> Iterator[None]:
    """The interpreter takes its lock from no thread that does not give it up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(100.0)
    yield
    sys.setswitchinterval(before)


def _compute() -> None:
    until = time.perf_counter() + _WORK
    while time.perf_counter() < until:
        pass


def test_all_items_come_in_order() -> None:
    """Nothing is left out, in the main thread and in another."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(with_pauses(range(1_000))))
    thread.start()
    thread.join()
    assert found == list(with_pauses(range(1_000))) == list(range(1_000))


@pytest.mark.usefixtures("no_switching")
def test_another_thread_runs_between_two_items() -> None:
    """A thread that waits for the interpreter gets it long before the work is done."""
    begun = threading.Event()
    has_run: list[bool] = []
    needed: list[int] = []

    def work() -> None:
        begun.set()
        for item in with_pauses(range(_MOST_ITEMS)):
            _compute()
            if has_run:
                needed.append(item)
                return

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(30)
    has_run.append(True)
    thread.join()
    assert needed, "the other thread ran only after all items"
