"""A thread with an event loop of its own, so that nothing of the application holds it up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.complaints import complain
from otel_audit.pipeline.lasting import LastingLoop

_logger = logging.getLogger(__name__)


def begin_thread(name: str, run: Callable[[], object]) -> threading.Thread | None:
    """Start a daemon thread.

    Args:
        name: Of the thread.
        run: What it does.

    Returns:
        The thread; None where the system gives none now (a limit of processes, or the interpreter
        is on its way out), which is logged.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        complain(
            _logger, name, "Thread %s cannot be started; it is tried again", name,
            level=logging.CRITICAL, error=error,
        )  # fmt: skip
        return None
    return thread


class Worker:
    """Runs one coroutine in a daemon thread, untraced. Make a new one in a forked child.

    Attributes:
        wake: What the coroutine may wait for; set by `rouse`, cleared by the coroutine.
    """

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Name the thread and its work; nothing is started yet.

        Args:
            name: Of the thread.
            work: Makes the coroutine, in the thread.
        """
        self.wake = asyncio.Event()
        self._name = name
        self._work = work
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """Whether it was started; it may have ended since."""
        return self._thread is not None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; where there can be none now it is not `started`: try again later."""
        self._thread = begin_thread(self._name, self._run)

    def rouse(self) -> None:
        """Set ``wake``, if the coroutine runs. May be called from any thread; never raises."""
        self._have_called(self.wake.set)

    def cancel(self) -> None:
        """Cancel the coroutine, if it runs. May be called from any thread; never raises."""
        task = self._task
        if task is not None:
            self._have_called(task.cancel)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most so many seconds; not if this is the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _have_called(self, act: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        with (
            contextlib.suppress(asyncio.CancelledError),
            suppress_instrumentation(),
            asyncio.Runner(loop_factory=LastingLoop) as runner,
        ):
            runner.run(self._reachable())

    async def _reachable(self) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        await self._work()
