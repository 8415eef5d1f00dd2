"""The time that all waits of one shutdown may take together."""

from __future__ import annotations

import asyncio
import time

import pytest

from otel_audit.config import AuditConfig
from otel_audit.delivery.shutdown_time import ShutdownTime
from otel_audit.runtime import Runtime


class Recorded:
    number = 0


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def shutdown(recorded) -> ShutdownTime:
    return ShutdownTime(10.0, lambda: recorded.number)


@pytest.fixture
def clock(monkeypatch):
    """Advances only when it is told so."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_first_wait_has_all_of_it(shutdown, clock):
    with shutdown.waits() as left:
        assert left() == 10.0


def test_each_wait_has_what_is_left(shutdown, clock):
    with shutdown.waits() as left:
        clock[0] += 4
        assert left() == 6.0
        clock[0] += 7
        assert left() == 0.0


def test_the_exit_behind_a_lifespan_has_what_that_has_left(shutdown, clock):
    with shutdown.waits():
        clock[0] += 4
    with shutdown.waits() as left:
        assert left() == 6.0
        clock[0] += 6
    with shutdown.waits() as left:
        assert left() == 0.0


def test_the_time_between_two_waits_is_not_used_up(shutdown, clock):
    """Threads that the process waits for before it exits."""
    with shutdown.waits():
        clock[0] += 4
    clock[0] += 100
    with shutdown.waits() as left:
        assert left() == 6.0


def test_another_lifespan_has_all_of_it_again(shutdown, clock):
    with shutdown.waits():
        clock[0] += 10
    shutdown.renew()
    with shutdown.waits() as left:
        assert left() == 10.0


def test_what_is_recorded_while_it_waits_is_waited_for(shutdown, recorded, clock):
    with shutdown.waits():
        recorded.number += 1
        clock[0] += 10
    with shutdown.waits() as left:
        assert left() == 10.0


def test_what_is_recorded_after_it_has_all_of_it_again(shutdown, recorded, clock):
    """The process went on: another lifespan, or the work of a script."""
    with shutdown.waits():
        clock[0] += 40
    recorded.number += 1
    with shutdown.waits() as left:
        assert left() == 10.0


def test_a_forked_child_has_all_of_it_again(shutdown, clock, monkeypatch):
    with shutdown.waits():
        clock[0] += 40
    monkeypatch.setattr("os.getpid", lambda: 4711)
    with shutdown.waits() as left:
        assert left() == 10.0


def test_delivery_ends_although_a_signal_handler_raises_before(tmp_path, monkeypatch):
    """While the record of the end is made: what waits is delivered, kept or counted all the same."""
    runtime = Runtime(AuditConfig(dsn="postgresql://nowhere/x", spool_dir=tmp_path))

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime._producer, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtime.close()
    assert runtime.delivery is not None
    assert runtime.delivery._closed


def test_a_lifespan_and_the_exit_behind_it_share_it(tmp_path, monkeypatch):
    """The store takes nothing: one of them waits, and not both."""
    runtime = Runtime(
        AuditConfig(dsn="postgresql://nowhere/x", spool_dir=tmp_path, shutdown_timeout=0.4)
    )
    given = []

    def wait(seconds: float) -> None:
        given.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(runtime.delivery, "flush_and_rest", wait)
    close = runtime.delivery.close
    monkeypatch.setattr(runtime.delivery, "close", lambda seconds: wait(seconds) or close(0))
    asyncio.run(runtime.stopping())
    runtime.close()
    assert [round(one, 1) for one in given] == [0.4, 0.0]
