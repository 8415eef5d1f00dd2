"""Support for asyncio and Trio: the application may run on either, our own code runs on asyncio.

Trio is not a dependency: it is looked at only where the application has imported it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar

_MOST_CANCELLATIONS = 3
"""Times that work is cancelled, as it may wait again in order to end."""

_TIME_TO_END = 1.0
"""Seconds that it has after each cancellation."""

P = ParamSpec("P")
T = TypeVar("T")


class Timer(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> object:
        """Cancel the call."""


def call_after(seconds: float, act: Callable[[], None]) -> Timer | None:
    """Call a function after some seconds, unless the timer is cancelled first.

    Args:
        seconds: Seconds to wait.
        act: Is called on the event loop, in an empty context; must not raise.

    Returns:
        The timer; None if no event loop runs here.
    """
    # an empty context: what the request's own holds is not kept alive by the clock
    context = contextvars.Context()
    trio = running_trio()
    if trio is not None:
        cancellation = trio.CancelScope()

        async def wait() -> None:
            with cancellation:
                await trio.sleep(seconds)
                act()

        trio.lowlevel.spawn_system_task(wait, name="otel-audit-clock", context=context)
        found: Timer = cancellation
        return found
    try:
        return asyncio.get_running_loop().call_later(seconds, act, context=context)
    except RuntimeError:
        return None


async def in_thread(act: Callable[[], T]) -> T:
    """Call something that blocks without holding up the event loop."""
    trio = running_trio()
    if trio is None:
        return await asyncio.get_running_loop().run_in_executor(None, act)
    found: T = await trio.to_thread.run_sync(act)
    return found


async def in_slices(steps: Iterator[object]) -> None:
    """Take all steps, and yield to the event loop between one and the next.

    If the task is cancelled meanwhile, it takes the remaining steps at once: none is skipped.

    Args:
        steps: Each does its part when the iterator advances; must not raise.
    """
    try:
        for _ in steps:
            trio = running_trio()
            if trio is None:
                await asyncio.sleep(0)
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
    finally:
        for _ in steps:
            pass


def on_any_loop(ask: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a coroutine function of asyncio one that may be awaited under Trio, too.

    There it runs on an event loop of its own in a thread, which costs some 100 microseconds.
    """

    async def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        return await ask(*args, **kwargs)

    @functools.wraps(ask)
    async def asked_anywhere(*args: P.args, **kwargs: P.kwargs) -> T:
        if running_trio() is None:
            return await ask(*args, **kwargs)
        return await in_thread(lambda: asyncio.run(asked(*args, **kwargs)))

    return asked_anywhere


def is_cancellation(error: BaseException | None) -> bool:
    """Return whether an exception is the cancellation of a task by asyncio or Trio."""
    if isinstance(error, asyncio.CancelledError):
        return True
    cancelled = getattr(sys.modules.get("trio"), "Cancelled", None)
    return cancelled is not None and isinstance(error, cancelled)


def running_trio() -> Any:
    """Return Trio if it runs the calling task, else None."""
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    # while another thread imports it, as AnyIO does when it is first asked, it has nothing yet
    lowlevel = getattr(trio, "lowlevel", None)
    return trio if lowlevel is not None and lowlevel.in_trio_task() else None


def is_in_loop() -> bool:
    """Return whether an event loop of asyncio runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, or so many seconds are over."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def begin_in_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Begin something that blocks, in a thread of the event loop's.

    Wait for it through `asyncio.shield`, and at last by `has_ended`: a thread cannot be cancelled,
    and what it uses must not be closed under it. It is no task, as a loop that ends cancels those.
    """
    call = functools.partial(contextvars.copy_context().run, act, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(None, call)


async def has_ended(doing: asyncio.Future[Any]) -> None:
    """Wait until something is done, also where the waiting task is cancelled, which comes after.

    What it raised is left for whoever asks it.
    """
    cancellation: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError as error:
            cancellation = error
    if not doing.cancelled():
        doing.exception()
    if cancellation is not None:
        raise cancellation


async def unless_stopped(
    work: Coroutine[Any, Any, T], stop: asyncio.Event, seconds: float
) -> T | None:
    """Run a coroutine; once an event is set, it has so many seconds left, and is cancelled then.

    Returns:
        What it returns; None where it was cancelled.
    """
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait([task], timeout=seconds)
        return task.result() if task.done() else None
    finally:
        stopping.cancel()
        # what it does to end may wait again: for the answer to a ROLLBACK, or for a last message
        for _ in range(_MOST_CANCELLATIONS):
            if task.done():
                break
            task.cancel()
            await asyncio.wait([task], timeout=_TIME_TO_END)
        if task.done() and not task.cancelled():
            task.exception()
