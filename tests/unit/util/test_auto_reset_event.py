"""An event between threads that a thread which is cut off at any point leaves whole."""

from __future__ import annotations

import threading
import time

import pytest

from otel_audit._util.auto_reset_event import AutoResetEvent


@pytest.fixture
def event() -> AutoResetEvent:
    return AutoResetEvent()


def test_it_is_not_set_at_first(event):
    assert not event.wait(0)


def test_a_wait_resets_it(event):
    event.set()
    assert event.wait(0)
    assert not event.wait(0)


def test_to_set_it_twice_is_to_set_it_once(event):
    event.set()
    event.set()
    assert event.wait(0)
    assert not event.wait(0)


def test_to_clear_it_takes_back_that_it_was_set(event):
    event.clear()
    event.set()
    event.clear()
    assert not event.wait(0)


def test_a_wait_ends_when_another_thread_sets_it(event):
    threading.Timer(0.01, event.set).start()
    assert event.wait(None)


@pytest.mark.parametrize("seconds", [0.0, -1.0, -1e-9, float("-inf")])
def test_without_time_it_only_looks(event, seconds):
    assert not event.wait(seconds)
    event.set()
    assert event.wait(seconds)


def test_any_time_may_be_given(event):
    event.set()
    assert event.wait(float("inf"))


def test_no_wait_is_longer_than_asked_for(event):
    """Also where its time is over before it begins, as in a process that is held up."""
    began = time.monotonic()
    for _ in range(30_000):
        assert not event.wait(1e-6)
    assert time.monotonic() - began < 60


def test_no_setting_is_missed(event):
    """Whatever the two threads do at the time."""
    seen = []
    echo = AutoResetEvent()

    def answer():
        for number in range(2_000):
            assert event.wait(30)
            seen.append(number)
            echo.set()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(2_000):
        event.set()
        assert echo.wait(30)
    thread.join()
    assert seen == list(range(2_000))
