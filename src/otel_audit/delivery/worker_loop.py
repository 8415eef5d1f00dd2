"""An event loop that can still work while the interpreter ends."""

from __future__ import annotations

import asyncio
import queue
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MOST_THREADS: Final = 8


class WorkerLoop(asyncio.SelectorEventLoop):
    """Has daemon threads of its own for what blocks, looking up a host's name among that.

    The threads of `concurrent.futures` end with the main thread, which is before `atexit` has the
    last records delivered, and then refuse all work. From Python 3.12 on no new thread starts at
    that time: those that ran before go on.
    """

    def __init__(self) -> None:
        """Start nothing yet.

        Raises:
            OSError: There are no file descriptors left; nothing of this loop is open then.
        """
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._complete = False
        selector = selectors.DefaultSelector()
        try:
            super().__init__(selector)
        except BaseException:
            selector.close()
            raise
        self._complete = True

    def is_closed(self) -> bool:
        """Whether it is closed; one that could not be made counts as closed."""
        return not self._complete or super().is_closed()

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call something in a thread; see asyncio.

        Raises:
            RuntimeError: There is no thread, and none can be started.
        """
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        self._find_thread()
        done: Future[T] = Future()

        def job() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                found = func(*args)
            except BaseException as error:  # noqa: BLE001 - whoever awaits it gets it
                done.set_exception(error)
            else:
                done.set_result(found)

        self._jobs.put(job)
        return asyncio.wrap_future(done, loop=self)

    def close(self) -> None:
        """Close, and let the threads end when they are done; does not wait for them."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0
        super().close()

    def _find_thread(self) -> None:
        if self._idle.acquire(blocking=False) or self._threads == _MOST_THREADS:
            return
        try:
            threading.Thread(
                target=_serve, args=(self._jobs, self._idle), name="otel-audit-blocking",
                daemon=True,
            ).start()  # fmt: skip
        except RuntimeError:
            # a busy one will come to it
            if not self._threads:
                raise
        else:
            self._threads += 1


def run_lasting(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, but wait at its end for no thread that blocks.

    Looking up a host's name takes as long as the resolver takes, which may be minutes, and
    `asyncio.run` waits for that although nobody wants to know any more.
    """
    with asyncio.Runner(loop_factory=WorkerLoop) as runner:
        return runner.run(work)


def _serve(jobs: queue.SimpleQueue[Any], idle: threading.Semaphore) -> None:
    while (job := jobs.get()) is not None:
        job()
        # neither the call nor its answer is kept alive by waiting for the next
        del job
        idle.release()
