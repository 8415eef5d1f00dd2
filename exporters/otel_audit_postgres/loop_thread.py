"""An event loop on a thread of its own, for calling asynchronous code from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")

_LEFT_BEHIND: Final[list[object]] = []
"""Loops of a parent process: a child that closed one would disturb the sockets it shares."""


class BackgroundLoop:
    """Runs coroutines on a private thread, started when first needed, and again after a fork."""

    def __init__(self, name: str) -> None:
        """Name the thread; nothing is started yet."""
        self._name = name
        self._reset()
        alive = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _reset_in_child(alive))

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._running = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.kept: Any = None
        """What belongs to the loop, such as connections: left behind with it at a fork."""

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Run a coroutine there and wait for it here.

        Args:
            work: Makes the coroutine.
            timeout: Seconds to wait; then it is cancelled.

        Returns:
            What it returns.

        Raises:
            TimeoutError: It did not end in time.
            Exception: What it raises.
        """
        with self._changed:
            loop = self._started()
            self._running += 1
        future: Future[T] = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing runs.

        Args:
            timeout: Seconds to wait.

        Returns:
            Whether nothing runs.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout)

    def stop(self, timeout: float) -> None:
        """End the thread.

        Args:
            timeout: Seconds to wait for it.
        """
        with self._changed:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            loop = asyncio.SelectorEventLoop()
            thread = threading.Thread(target=_serve, args=(loop,), name=self._name, daemon=True)
            try:
                thread.start()
            except BaseException:
                loop.close()
                raise
            # what belonged to a loop whose thread is gone can be used no more
            self._loop, self._thread, self.kept = loop, thread, None
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        unfinished = asyncio.all_tasks(loop)
        for task in unfinished:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(asyncio.gather(*unfinished, return_exceptions=True))
        loop.close()


def _reset_in_child(reference: weakref.ref[BackgroundLoop]) -> None:
    background = reference()
    if background is not None:
        _LEFT_BEHIND.append((background._loop, background.kept))  # noqa: SLF001 - our own
        background._reset()  # noqa: SLF001 - our own
