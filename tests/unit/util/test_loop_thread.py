"""A thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_audit._util import loop_thread
from otel_audit._util.backoff import Backoff
from otel_audit._util.loop_thread import LoopThread


class Waiter:
    """Waits to be roused, again and again, and remembers how it went."""

    def __init__(self) -> None:
        self.worker = LoopThread("test-worker", self.work)
        self.begun, self.roused = threading.Event(), threading.Event()
        self.seen: list[str] = []
        self.traced = True

    async def work(self) -> None:
        self.traced = is_instrumentation_enabled()
        self.worker.join(60)  # does not wait for itself
        self.begun.set()
        try:
            await self.worker.wake.wait()
            self.seen.append(threading.current_thread().name)
            self.roused.set()
            await asyncio.sleep(300)
        finally:
            self.seen.append("ended")


def test_it_is_roused_and_cancelled_from_another_thread() -> None:
    """The coroutine runs untraced in a thread of that name, and may be cut off in order."""
    waiter = Waiter()
    assert (waiter.worker.started, waiter.worker.alive) == (False, False)
    waiter.worker.start()
    assert waiter.begun.wait(60)
    waiter.worker.rouse()
    assert waiter.roused.wait(60)
    waiter.worker.cancel()
    waiter.worker.join(60)
    assert waiter.seen == ["test-worker", "ended"]
    assert (waiter.worker.started, waiter.worker.alive) == (True, False)
    assert not waiter.traced


def test_what_does_not_run_is_left_alone() -> None:
    """Before the start and after the end nobody is roused, and nothing is raised."""
    waiter = Waiter()
    waiter.worker.rouse()
    waiter.worker.cancel()
    waiter.worker.join(60)
    waiter.worker.start()
    assert waiter.begun.wait(60)
    assert not waiter.worker.wake.is_set()
    waiter.worker.cancel()
    waiter.worker.join(60)
    waiter.worker.rouse()
    waiter.worker.cancel()
    assert waiter.seen == ["ended"]


class Stubborn:
    """Work that ends in what it is given, and then goes on."""

    def __init__(self, *ends: BaseException) -> None:
        self.ends = list(ends)
        self.worker = LoopThread("test-stubborn", self.work)
        self.goes_on = threading.Event()

    async def work(self) -> None:
        if self.ends:
            raise self.ends.pop(0)
        self.goes_on.set()
        await self.worker.wake.wait()


@pytest.mark.parametrize(
    "end", [OSError(24, "Too many open files"), SystemExit(1), asyncio.CancelledError(),
            MemoryError(), ValueError("secret")],
)  # fmt: skip
@pytest.mark.allow_errors
def test_work_that_fails_is_run_anew(end: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever ends it: it is logged without the error's own words, counted, and begins again."""
    stubborn = Stubborn(end)
    stubborn.worker.start()
    assert stubborn.goes_on.wait(60)
    assert (stubborn.worker.restarts, stubborn.worker.failure) == (1, None)
    assert "The work of thread test-stubborn has ended" in caplog.text
    assert "secret" not in caplog.text
    stubborn.worker.end()
    stubborn.worker.join(60)
    assert not stubborn.worker.alive
    assert stubborn.worker.failure is None


@pytest.mark.allow_errors
class Forgotten:
    """Work whose loop is cut off when it has taken the task off its list, before it turned to it."""

    def __init__(self) -> None:
        self.worker = LoopThread("test-forgotten", self.work)
        self.ended_within: list[bool] = []
        self.again = threading.Event()

    async def work(self) -> None:
        if self.ended_within or self.again.is_set():
            return
        self.again.set()
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def cut_off() -> None:
            future.set_result(None)
            loop._ready.clear()  # type: ignore[attr-defined]
            raise SystemExit

        loop.call_soon(cut_off)
        try:
            await future
        finally:
            self.ended_within.append(asyncio._get_running_loop() is None)


@pytest.mark.allow_errors
def test_a_task_that_the_loop_has_forgotten_is_ended_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not left to the garbage collector, which makes CPython 3.11 crash at such a task."""
    monkeypatch.setattr(loop_thread, "_LONGEST_END", 0.01)
    monkeypatch.setattr(loop_thread, "_BACKOFF", Backoff(first=0.01))
    forgotten = Forgotten()
    gc.disable()
    try:
        forgotten.worker.start()
        forgotten.worker.join(60)
        assert forgotten.ended_within == [False]
    finally:
        gc.enable()


class Cleaning(Forgotten):
    """The same, with something open: it takes several turns of the loop to close that."""

    turns = 3

    async def work(self) -> None:
        try:
            await super().work()
        finally:
            await self.close()

    async def close(self) -> None:
        self.closed: list[str] = getattr(self, "closed", [])
        for turn in range(self.turns):
            await asyncio.sleep(0.001)
            self.closed.append(f"turn {turn}")


@pytest.mark.allow_errors
def test_what_a_forgotten_task_has_open_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ``finally`` blocks are waited for on the loop, as those of any other task are."""
    monkeypatch.setattr(loop_thread, "_BACKOFF", Backoff(first=0.01))
    monkeypatch.setattr(loop_thread, "_LONGEST_END", 1.0)
    cleaning = Cleaning()
    cleaning.worker.start()
    cleaning.worker.join(60)
    # of the first work, and of the second one, which begins and ends in order
    assert cleaning.closed == [f"turn {turn}" for turn in range(3)] * 2
    # within a running loop
    assert cleaning.ended_within == [False]


class Endless(Cleaning):
    """It closes longer than anybody waits."""

    async def close(self) -> None:
        if not self.ended_within or hasattr(self, "closed"):
            return
        self.closed = []
        loop = asyncio.get_running_loop()
        while len(self.closed) < 5:
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                self.closed.append("once more")


@pytest.mark.allow_errors
def test_a_task_that_waits_again_and_again_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left to the garbage collector, however often it waits."""
    monkeypatch.setattr(loop_thread, "_BACKOFF", Backoff(first=0.01))
    monkeypatch.setattr(loop_thread, "_LONGEST_END", 0.05)
    endless = Endless()
    gc.disable()
    try:
        endless.worker.start()
        endless.worker.join(60)
        assert endless.closed == ["once more"] * 5
    finally:
        gc.enable()


def test_it_says_why_it_does_not_work_and_ends_within_its_pause() -> None:
    """Between two tries it names the failure; an end does not wait for the next try."""
    stubborn = Stubborn(*[OSError(24, "Too many open files") for _ in range(1000)])
    stubborn.worker.start()
    until(lambda: stubborn.worker.restarts > 3)
    assert stubborn.worker.failure == "it failed (Too many open files)"
    stubborn.worker.end()
    stubborn.worker.join(60)
    assert not stubborn.worker.alive


def test_a_thread_that_is_gone_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended without a word: it shows as a failure until somebody looks, and then it works."""
    waiter = Waiter()
    with monkeypatch.context() as patched:
        patched.setattr(waiter.worker, "_run", lambda: None)
        waiter.worker.start()
        waiter.worker.join(60)
    assert waiter.worker.failure == "the thread has ended, or could not be started"
    waiter.worker.ensure()
    assert waiter.begun.wait(60)
    assert (waiter.worker.failure, waiter.worker.restarts) == (None, 1)
    waiter.worker.cancel()
    waiter.worker.join(60)
    waiter.worker.ensure()
    assert not waiter.worker.alive


def test_what_was_never_wanted_is_not_started() -> None:
    """Looking after threads starts none that nobody has needed yet."""
    waiter = Waiter()
    waiter.worker.ensure()
    assert (waiter.worker.started, waiter.worker.failure) == (False, None)


NO_DESCRIPTORS = """
import os, resource, threading, time
from otel_audit._util import loop_thread
from otel_audit._util.backoff import Backoff
from otel_audit._util.loop_thread import LoopThread

def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)

done = threading.Event()
async def work():
    done.set()

worker = LoopThread("w", work)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
lowest = os.dup(0)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
worker.start()
until(lambda: worker.restarts > 1)
print(worker.failure, done.is_set())
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(done.wait(30))
"""


def test_a_loop_that_cannot_be_made_is_made_later() -> None:
    """No file descriptor is left when the thread begins: it works once there are some again."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_DESCRIPTORS],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.stdout.split("\n")[:2] == ["it failed (Too many open files) False", "True"]
    assert "Exception ignored" not in found.stderr


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)
