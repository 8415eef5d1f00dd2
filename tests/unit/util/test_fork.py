"""What begins anew in a forked child."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from otel_audit._util.fork import call_in_child, renew_in_child

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class Renewed:
    """Counts how often it began anew."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name
        renew_in_child(self, Renewed.renew)

    def renew(self) -> None:
        self.log.append(self.name)


def in_child(log: list[str]) -> str:
    """Fork, and return what a child has in the log then."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, " ".join(log).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as seen:
        return seen.read().decode()


def test_each_begins_anew_in_the_order_of_registration() -> None:
    """In the child only; one that fails holds up none of the others."""
    log: list[str] = []
    first = Renewed(log, "first")
    failing = [True]

    def fail() -> None:
        if failing:
            raise RuntimeError

    call_in_child(fail)
    second = Renewed(log, "second")
    assert in_child(log) == "first second"
    assert log == []
    failing.clear()
    assert (first.name, second.name) == ("first", "second")


def test_what_is_gone_is_let_go() -> None:
    """An object that nobody uses is not kept for the sake of a fork."""
    log: list[str] = []
    one = Renewed(log, "gone")
    alive = weakref.ref(one)
    del one
    gc.collect()
    assert alive() is None
    assert in_child(log) == ""
