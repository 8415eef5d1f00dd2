"""What is ours works the same whether asyncio or Trio runs the application."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import trio
from asgi_app import Kept, Tapped, say

from otel_audit._util.aio import (
    call_after,
    in_thread,
    is_cancellation,
    is_in_loop,
    on_any_loop,
    running_trio,
    unless_stopped,
    wait_at_most,
)
from otel_audit.http.exchange_record import outcome_of

SOON = 0.02
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="empty")


@pytest.fixture(params=["asyncio", "trio"])
def run_on_loop(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a coroutine function to its end, on either."""
    return trio.run if request.param == "trio" else lambda act: asyncio.run(act())


async def sleep(seconds: float) -> None:
    if trio.lowlevel.in_trio_run():
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def say_hello(scope: Any, receive: Any, send: Any) -> None:
    await say(send)


class TestTimer:
    def test_it_goes_off_in_an_empty_context(self, run_on_loop: Any) -> None:
        """Nothing of the request is kept alive by it."""
        seen: list[str] = []

        async def act() -> None:
            variable.set("full")
            assert call_after(SOON, lambda: seen.append(variable.get())) is not None
            while not seen:
                await sleep(SOON)

        run_on_loop(act)
        assert seen == ["empty"]

    def test_it_may_be_cancelled(self, run_on_loop: Any) -> None:
        """As long as it has not gone off."""
        seen: list[int] = []

        async def act() -> None:
            timer = call_after(SOON, lambda: seen.append(1))
            assert timer is not None
            timer.cancel()
            await sleep(SOON * 5)

        run_on_loop(act)
        assert seen == []

    def test_without_an_event_loop_there_is_none(self) -> None:
        """Nothing could ever go off."""
        assert call_after(1, lambda: None) is None


class TestWaiting:
    def test_what_blocks_runs_in_a_thread(self, run_on_loop: Any) -> None:
        """And gives back what it returns."""

        async def act() -> int:
            return await in_thread(lambda: 7)

        assert run_on_loop(act) == 7

    def test_a_future_of_asyncio_may_be_awaited(self, run_on_loop: Any) -> None:
        """On an event loop of its own, where the application has another kind."""

        async def answer(word: str) -> str:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(SOON, future.set_result, word)
            return await future

        async def act() -> str:
            return await on_any_loop(answer)("yes")

        assert run_on_loop(act) == "yes"

    def test_what_it_raises_arrives(self, run_on_loop: Any) -> None:
        """The caller sees the very exception."""

        async def fail() -> None:
            raise KeyError("x")

        async def act() -> None:
            with pytest.raises(KeyError, match="x"):
                await on_any_loop(fail)()

        run_on_loop(act)


class TestCancellation:
    def test_both_kinds_are_told_apart_from_failures(self) -> None:
        """Whoever was cut off has not failed."""
        seen: list[BaseException] = []

        async def under_trio() -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                try:
                    await trio.sleep(1)
                except trio.Cancelled as error:
                    seen.append(error)
                    raise

        trio.run(under_trio)
        assert is_cancellation(seen[0])
        assert is_cancellation(asyncio.CancelledError())
        assert not is_cancellation(ValueError())
        assert not is_cancellation(None)
        assert outcome_of(status=200, error=seen[0], transaction="none") == "unknown"


class TestWhileTrioIsImported:
    @pytest.fixture(autouse=True)
    def _import_under_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What another thread sees of a module whose import has only begun."""
        monkeypatch.setitem(sys.modules, "trio", types.ModuleType("trio"))

    async def test_asyncio_runs_the_task(self) -> None:
        """Nothing fails, and a timer is asyncio's."""
        assert running_trio() is None
        done = asyncio.Event()
        assert call_after(0, done.set) is not None
        await asyncio.wait_for(done.wait(), 30)

    def test_an_error_is_no_cancellation(self) -> None:
        """Trio has cut nothing off yet."""
        assert not is_cancellation(ValueError())
        assert is_cancellation(asyncio.CancelledError())

    async def test_a_request_is_answered_and_recorded(self) -> None:
        """As at any other time."""
        tapped = Tapped(say_hello, kept=Kept())
        await tapped.ask()
        (record,) = tapped.kept.all("closed")
        assert record.outcome == "success"


class TestUnderTrio:
    def test_a_long_action_leaves_a_record_when_it_starts(self) -> None:
        """As on asyncio: two records of one action."""

        kept = Kept()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            while not kept.all("closed"):  # noqa: ASYNC110 - a list is watched
                await trio.sleep(SOON)
            await say(send)

        tapped = Tapped(slow, kept=kept, long_action_after=SOON)
        trio.run(tapped.ask)
        started, completed = tapped.kept.all("closed")
        assert (started.phase, completed.phase) == ("started", "completed")
        assert started.action_id == completed.action_id


class TestWaitAtMost:
    async def test_an_event_ends_the_wait(self) -> None:
        event = asyncio.Event()
        waiting = asyncio.create_task(wait_at_most(event, 3600))
        await asyncio.sleep(0)
        assert not waiting.done()
        event.set()
        await waiting

    async def test_so_does_the_time(self) -> None:
        event = asyncio.Event()
        await wait_at_most(event, 0.01)
        assert not event.is_set()


async def test_a_coroutine_is_in_a_loop_and_its_threads_are_not() -> None:
    assert is_in_loop()
    assert not await asyncio.to_thread(is_in_loop)


class TestUnlessStopped:
    async def test_returns_and_raises_what_the_work_does(self):
        """Also where it is stopped, and ends within its time."""
        stop = asyncio.Event()

        async def fails():
            raise ValueError("of the work")

        assert await unless_stopped(asyncio.sleep(0, 7), stop, 60) == 7
        stop.set()
        assert await unless_stopped(asyncio.sleep(SOON, 8), stop, 60) == 8
        with pytest.raises(ValueError, match="of the work"):
            await unless_stopped(fails(), stop, 60)

    async def test_cuts_off_what_goes_on(self):
        """Where it waits again as it ends, it is cut off there, too."""
        stop, ends = asyncio.Event(), []

        async def works():
            try:
                await asyncio.Event().wait()
            finally:
                ends.append("first")
                try:
                    await asyncio.Event().wait()
                finally:
                    ends.append("second")

        stop.set()
        assert await unless_stopped(works(), stop, SOON) is None
        assert ends == ["first", "second"]

    async def test_is_cancelled_with_its_work(self):
        """Nothing is left behind."""
        ended = asyncio.Event()

        async def works():
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        running = asyncio.create_task(unless_stopped(works(), asyncio.Event(), 60))
        await asyncio.sleep(SOON)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended.is_set()
