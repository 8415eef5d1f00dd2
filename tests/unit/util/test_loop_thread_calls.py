"""Calls of coroutines on a thread of their own."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from otel_audit._util import loop_thread
from otel_audit._util.loop_thread import LoopThread


@pytest.fixture
def background():
    loop = LoopThread("test-loop")
    yield loop
    loop.stop(60)


async def name_of_thread():
    return threading.current_thread().name


class TestRun:
    def test_runs_on_the_private_thread(self, background):
        """The caller's thread and its loop, if any, are not used."""
        assert background.call(name_of_thread, 60) == "test-loop"

    def test_hands_on_what_is_raised(self, background):
        """An error there is an error here."""

        async def fail():
            raise KeyError("x")

        with pytest.raises(KeyError):
            background.call(fail, 60)

    def test_cancels_what_takes_too_long(self, background):
        """Who stops waiting stops the work too."""
        begun, cancelled = threading.Event(), threading.Event()

        async def sleep():
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        for timeout in (0.05, 0.5, 5):
            with pytest.raises(TimeoutError):
                background.call(sleep, timeout)
            if begun.is_set():
                break
        assert cancelled.wait(60)

    def test_makes_nothing_that_cannot_run(self, background, monkeypatch):
        """Without a thread there is no coroutine that nobody awaits."""
        made = []
        monkeypatch.setattr(loop_thread, "begin_thread", lambda *_: None)
        with pytest.raises(TimeoutError):
            background.call(lambda: made.append(name_of_thread()), 0.01)
        assert not made

    def test_starts_again_after_a_stop(self, background):
        """A stopped loop is no obstacle to further work."""
        background.call(name_of_thread, 60)
        background.stop(60)
        assert background.call(name_of_thread, 60) == "test-loop"


class TestWaitIdle:
    def test_waits_for_work_under_way(self, background):
        """It is idle when all that was begun has ended."""
        begun, let_go = threading.Event(), threading.Event()

        async def work():
            begun.set()
            while not let_go.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)

        thread = threading.Thread(target=lambda: background.call(work, 60))
        thread.start()
        assert begun.wait(60)
        assert not background.wait_idle(0.01)
        let_go.set()
        assert background.wait_idle(60)
        thread.join()


class TestStop:
    def test_ends_what_is_under_way(self, background):
        """The thread ends, and who waits is told so."""
        seen = []
        begun = threading.Event()

        async def work():
            begun.set()
            await asyncio.sleep(300)

        def wait():
            try:
                background.call(work, 100)
            except BaseException as error:
                seen.append(type(error).__name__)

        thread = threading.Thread(target=wait)
        thread.start()
        assert begun.wait(60)
        background.stop(60)
        thread.join(60)
        assert seen == ["CancelledError"]


class TestFork:
    @pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
    def test_works_in_the_child_too(self, background):
        """A child process gets a loop of its own, and leaves its parent's alone."""
        background.call(name_of_thread, 60)
        child = os.fork()
        if child == 0:
            fine = background.kept is None and background.call(name_of_thread, 60) == "test-loop"
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert background.call(name_of_thread, 60) == "test-loop"
