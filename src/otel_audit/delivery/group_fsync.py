"""``fsync = always``: whoever must not go on before the disk has it waits here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.spool import Position, Spool, SpoolError
from otel_audit.delivery.worker_thread import ThreadState, begin_thread

_logger = logging.getLogger(__name__)

LONGEST_WAIT: Final = 10.0
"""Seconds after which whoever waits goes on; a disk that hangs must not hang the application."""


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[bool]
    position: Position


class GroupSync:
    """Brings the spool to disk for all who wait at the time, from a thread of its own.

    The thread is started when it is first needed. Make a new one in a forked child.
    """

    def __init__(self, spool: Callable[[], Spool | None], counters: Counters) -> None:
        """Name what is synced.

        Args:
            spool: Gives this process's open spool; None where nothing needs syncing.
            counters: Where a sync that failed is counted.
        """
        self._spool = spool
        self._counters = counters
        self._lock = threading.Lock()
        # not a condition: a thread that is cut off inside of one may keep its lock for ever
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting: list[_Waiter] = []
        self._thread: threading.Thread | None = None
        self._restarts = 0

    @property
    def state(self) -> ThreadState:
        """How its thread does; it need not run before somebody waits."""
        gone = self._thread is not None and not self._thread.is_alive()
        return ThreadState("the thread has ended" if gone else None, self._restarts)

    def ensure(self) -> None:
        """Replace the thread if it is gone. Never raises."""
        with self._lock:
            if self._thread is not None:
                self._begin()

    def _begin(self) -> bool:
        """See that the thread runs; the lock is held."""
        if self._thread is not None and not self._thread.is_alive():
            self._restarts += 1
            self._thread = None
        if self._thread is None:
            self._thread = begin_thread("otel-audit-sync", self._run)
        return self._thread is not None

    async def wait(self) -> bool:
        """Wait until everything that was spooled before is on disk.

        Returns:
            Whether it is. Where the disk did not take it, or not in time, that is counted and
            logged: whoever waits goes on, as the record is then only as durable as the kernel.
        """
        spool = self._spool()
        if spool is None or spool.synced >= spool.appended:
            return True
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future(), spool.appended)
        with self._lock:
            self._waiting.append(waiter)
            can_wait = self._begin()
            if can_wait:
                self._asked.put(None)
            else:
                self._waiting.remove(waiter)
        done = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_WAIT):
                done = can_wait and await waiter.future
        if not done:
            self._counters.add("spool_errors")
            log_limited(
                _logger, "sync", "An action was answered before its record was on disk",
                level=logging.CRITICAL,
            )  # fmt: skip
        return done

    def _run(self) -> None:
        while True:
            try:
                self._serve()
            except BaseException as error:  # noqa: BLE001 - those who wait must be told
                self._restarts += 1
                log_limited(
                    _logger, "restart", "Bringing the spool to disk failed; it begins again",
                    level=logging.CRITICAL, error=error,
                )  # fmt: skip

    def _serve(self) -> None:
        if not self._waiting:
            self._asked.get()
        with self._lock:
            waiting = list(self._waiting)
        if not waiting:
            return  # those who asked were served together with others
        synced = self._sync()
        for waiter in waiting:
            done = synced >= waiter.position
            with contextlib.suppress(RuntimeError):  # its loop has ended, and so has it
                waiter.loop.call_soon_threadsafe(_tell, waiter.future, done)
        with self._lock:
            # not before they were told: if this fails in its middle, they are told the next time
            del self._waiting[: len(waiting)]

    def _sync(self) -> Position:
        spool = self._spool()
        try:
            # at rest: everything in it was stored, and the files are gone
            return 2**63 if spool is None else spool.sync()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            log_limited(_logger, "failure", "The spool is not on disk: %s", reason_of(error))
            return -1


def reason_of(error: Exception) -> str:
    """Say why the spool was not synced: in our own words, or by the error's type."""
    return str(error) if isinstance(error, SpoolError) else type(error).__name__


def _tell(future: asyncio.Future[bool], done: bool) -> None:  # noqa: FBT001 - a callback's argument
    if not future.done():
        future.set_result(done)
