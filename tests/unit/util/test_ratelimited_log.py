"""Lines that are logged once a minute, and never under a lock of ours."""

from __future__ import annotations

import logging
import threading

import pytest

from otel_audit._util import ratelimited_log
from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited, log_postponed, log_when_free

LOGGER = logging.getLogger("test_ratelimited_log")


@pytest.fixture(autouse=True)
def forget_lines():
    ratelimited_log.forget()


def test_a_line_that_waits_is_logged_by_another_thread_too(caplog):
    """Whichever holds no lock: the one that said it may have no more to do with us."""
    with own_lock():
        log_limited(LOGGER, "key", "The disk is %s", "full")
        other = threading.Thread(target=log_postponed)
        other.start()
        other.join()
        assert "The disk is full" in caplog.messages


@pytest.mark.usefixtures("only_the_test_logs")
def test_a_line_is_put_off_while_its_thread_holds_a_lock(caplog):
    with own_lock():
        log_limited(LOGGER, "key", "The disk is %s", "full")
        assert not caplog.messages
    log_postponed()
    assert caplog.messages == ["The disk is full"]


def test_of_lines_with_the_same_key_one_is_logged(caplog):
    for _ in range(3):
        log_limited(LOGGER, "key", "The disk is full")
    assert caplog.messages == ["The disk is full"]


@pytest.mark.usefixtures("only_the_test_logs")
def test_a_handler_that_records_something_has_its_line_after(caplog):
    """However many there are: none is logged within another."""

    class Recording(logging.Handler):
        depth = deepest = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
            if record.levelno == logging.ERROR:
                log_when_free(LOGGER, logging.WARNING, "recorded")
            self.depth -= 1

    handler = Recording()
    LOGGER.addHandler(handler)
    try:
        with own_lock():
            for number in range(500):
                log_when_free(LOGGER, logging.ERROR, "line %d", number)
        log_postponed()
    finally:
        LOGGER.removeHandler(handler)
    assert handler.deepest == 1
    assert caplog.messages == [f"line {number}" for number in range(500)] + ["recorded"] * 500
