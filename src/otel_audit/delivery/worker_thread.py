"""A thread with an event loop of its own, so that nothing of the application holds it up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.worker_loop import WorkerLoop

_logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries of a thread whose work ends in an error; doubles up to this."""

_LONGEST_END: Final = 5.0
"""Seconds that the tasks of a loop have which is given up."""


class ThreadState(NamedTuple):
    """How a thread of ours does.

    Attributes:
        failure: Why it does not work although it should; None where it does, or need not.
        restarts: How often it had to begin again.
    """

    failure: str | None
    restarts: int

    @classmethod
    def of(cls, worker: Worker) -> ThreadState:
        """Look at a worker."""
        return cls(worker.failure, worker.restarts)


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
        log_limited(
            _logger, name, "Thread %s cannot be started; it is tried again", name,
            level=logging.CRITICAL, error=error,
        )  # fmt: skip
        return None
    return thread


class Worker:
    """Runs one coroutine in a daemon thread, untraced. Make a new one in a forked child.

    The coroutine ends by returning, or by being cancelled by `cancel`. Whatever else ends it, even
    before its loop is made (no file descriptors, no memory), is logged, and it is run anew after a
    pause. A thread that is gone all the same is replaced by `ensure`.

    Attributes:
        wake: What the coroutine may wait for; set by `rouse`, cleared by the coroutine.
        restarts: How often the coroutine was run anew.
    """

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Name the thread and its work; nothing is started yet.

        Args:
            name: Of the thread.
            work: Makes the coroutine, in the thread.
        """
        self.wake = asyncio.Event()
        self.restarts = 0
        self._name = name
        self._work = work
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._wanted = False
        self._failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_ending = False
        # to wait for its end: an event holds a lock at times, and a thread that is cut off at that
        # time keeps it for ever
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def started(self) -> bool:
        """Whether it was started in this process; it may have ended since."""
        return self._thread is not None and self._pid == os.getpid()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failure(self) -> str | None:
        """Why it does not work although it should; None where it does, or need not."""
        if not self._wanted or self._pid != os.getpid() or self._is_ending:
            return None
        if not self.alive:
            return "the thread has ended, or could not be started"
        return self._failure

    def start(self) -> None:
        """Start the thread, unless it runs; where there can be none now: try again later."""
        if self.alive:
            return
        if self._thread is not None:
            self._note("its thread was gone", None)
        self._wanted = True
        self._thread = begin_thread(self._name, self._run)

    def ensure(self) -> None:
        """Start the thread again if it was started, should go on, and is gone. Never raises."""
        if self._wanted and self._pid == os.getpid() and not self._is_ending:
            self.start()

    def rouse(self) -> None:
        """Set ``wake``, if the coroutine runs. May be called from any thread; never raises."""
        self._have_called(lambda: self.wake.set())  # noqa: PLW0108 - of the loop at that time

    def end(self) -> None:
        """Let the coroutine not be run again once it ends, and rouse it. Never raises."""
        self._set_ending()
        self.rouse()

    def cancel(self) -> None:
        """Cancel the coroutine, if it runs. May be called from any thread; never raises."""
        if self._wanted:
            self._set_ending()
        task = self._task
        if task is not None:
            self._have_called(task.cancel)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most so many seconds; not if this is the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _set_ending(self) -> None:
        self._is_ending = True
        self._ended.put(None)

    def _ends_within(self, pause: float) -> bool:
        with contextlib.suppress(queue.Empty):
            self._ended.get(timeout=pause)
        return self._is_ending

    def _have_called(self, act: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                self._run_once()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the work must go on
                if self._is_ending:
                    return
                self._note("it failed", error)
            else:
                return
            if self._ends_within(pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _run_once(self) -> None:
        with suppress_instrumentation(), contextlib.closing(WorkerLoop()) as loop:
            try:
                loop.run_until_complete(self._reachable())
            finally:
                _end_tasks(loop)

    def _note(self, what: str, error: BaseException | None) -> None:
        self.restarts += 1
        self._failure = what if error is None else f"{what} ({_reason(error)})"
        log_limited(
            _logger, f"restart {self._name}", "The work of thread %s has ended, as %s; it begins "
            "again", self._name, self._failure, level=logging.CRITICAL, error=error,
        )  # fmt: skip

    async def _reachable(self) -> None:
        # of this loop: the one before may have been waited for on another
        self.wake = asyncio.Event()
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        # it has not failed as long as it runs
        self._failure = None
        await self._work()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what runs in a loop, and wait for it, but not for ever as `asyncio.Runner` does.

    A loop that is cut off in its own code may have forgotten a task: nothing ends that one.
    """
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_LONGEST_END))
    loop.run_until_complete(loop.shutdown_asyncgens())


def _reason(error: BaseException) -> str:
    """Say what the system refused; of other errors the type: a message may quote values."""
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__
