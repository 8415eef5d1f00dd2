"""Brings the spool to disk: now and then, and at once where callers wait (``fsync = always``)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from otel_audit._util.auto_reset_event import AutoResetEvent
from otel_audit._util.loop_thread import LoopThread, ThreadState
from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited, log_postponed
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.spool import Position, Spool, SpoolError

_logger = logging.getLogger(__name__)

_QUIET: Final = 2
"""Syncs in a row without anything new, after one more of which the thread sleeps until there is."""

_LOOK_AFTER: Final = 1.0
"""Seconds that it sleeps then at most: the spool looks around so often (`Spool.sync`)."""

LONGEST_WAIT: Final = 10.0
"""Seconds after which a caller continues; a disk that hangs must not hang the application."""


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[bool]
    position: Position


class GroupSync:
    """Brings the spool to disk for all who wait at the time, from a thread of its own.

    The thread also syncs what nobody waits for. It sleeps without an event loop: that and a sync
    ask for the interpreter's lock three times. A loop that hands each sync to another thread asks
    ten times, and each time the thread that serves requests has to stop. Where nothing is appended
    for a while it wakes up once a second, not at each interval.

    Make a new one in a forked child.
    """

    def __init__(
        self,
        spool: Callable[[], Spool | None],
        counters: Counters,
        interval: float | None = None,
        on_failure: Callable[[], None] = lambda: None,
        at_next_append: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Remember what is synced.

        Args:
            spool: Gives this process's open spool; None if nothing needs syncing.
            counters: Where a sync that failed is counted.
            interval: Seconds between two syncs that nobody waits for, from `start` on; None: there
                are none.
            on_failure: Called in the thread after a sync that failed.
            at_next_append: Has its argument called once when the next frame has been appended;
                None: nobody can tell, and each interval is looked at.
        """
        self._spool = spool
        self._counters = counters
        self._interval = interval
        self._on_failure = on_failure
        self._at_next_append = at_next_append
        self._last: tuple[Spool | None, Position] = (None, -1)
        self._syncs_without_news = 0
        self._next_sync = 0.0
        self._lock = own_lock()
        self._waiting: list[_Waiter] = []
        self._closing = False
        self._roused = AutoResetEvent()
        self._thread = LoopThread("otel-audit-sync", self._serve)

    @property
    def state(self) -> ThreadState:
        """Its thread's state; it need not run before a caller waits."""
        return self._thread.state

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._lock:
            self._thread.start()

    def ensure(self) -> None:
        """Replace the thread if it is gone. Never raises."""
        with self._lock:
            self._thread.ensure()

    def close(self, timeout: float) -> None:
        """End the thread when nobody waits any more. Never raises.

        Args:
            timeout: Seconds to wait for its end.
        """
        self._closing = True
        self._thread.end()
        self._roused.set()
        self._thread.join(timeout)

    async def wait(self) -> bool:
        """Wait until everything that was spooled before is on disk.

        Returns:
            Whether it is. Where the disk did not take it, or not in time, that is counted and
            logged: the caller continues, and the record is then only as durable as the kernel.
        """
        spool = self._spool()
        if spool is None or spool.synced >= spool.appended:
            return True
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future(), spool.appended)
        with self._lock:
            can_wait = self._thread.start()
            if can_wait:
                self._waiting.append(waiter)
        self._roused.set()
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

    async def _serve(self) -> None:
        # it blocks, here and in a sync: the loop is here for nothing else
        while True:
            # before the waiting callers are read: a later one rouses it again
            self._roused.clear()
            with self._lock:
                waiting = list(self._waiting)
            if not waiting:
                if self._closing:
                    return
                if self._interval is None or time.monotonic() < self._next_sync:
                    self._rest()
                    continue
                if self._is_quiet() and self._rest_until_appended(self._interval):
                    continue
            synced = self._sync(waited_for=bool(waiting))
            log_postponed()
            self._plan_next(synced)
            for waiter in waiting:
                done = synced >= waiter.position
                with contextlib.suppress(RuntimeError):  # its loop has ended, and so has it
                    waiter.loop.call_soon_threadsafe(_answer, waiter.future, done)
            with self._lock:
                # not before they have their answer: if this fails in its middle, they get it later
                del self._waiting[: len(waiting)]

    def _rest(self) -> None:
        """Wait until a caller waits, or the next sync is due."""
        pause = None
        if self._interval is not None:
            pause = max(self._next_sync - time.monotonic(), 0.0)
        self._roused.wait(pause)

    def _plan_next(self, synced: Position) -> None:
        if synced < 0:
            self._syncs_without_news = 0  # what is not on disk yet is tried again soon
        rests = self._at_next_append is not None and self._syncs_without_news > _QUIET
        self._next_sync = time.monotonic() + (0.0 if rests else self._interval or 0.0)

    def _is_quiet(self) -> bool:
        """Count the syncs without anything new; return whether they were many."""
        now = self._seen()
        self._syncs_without_news = self._syncs_without_news + 1 if now == self._last else 0
        self._last = now
        return self._syncs_without_news > _QUIET

    def _seen(self) -> tuple[Spool | None, Position]:
        spool = self._spool()
        return spool, -1 if spool is None else spool.appended

    def _rest_until_appended(self, interval: float) -> bool:
        """Wait until something is appended, or it is time to look around.

        Args:
            interval: Seconds within which what is appended is to be on disk.

        Returns:
            Whether it was roused, and there is nothing to be synced yet.
        """
        if self._at_next_append is None:
            return False
        self._at_next_append(self._rouse)
        # only now: what is appended after this look rouses it
        if self._seen() == self._last and not self._roused.wait(_LOOK_AFTER):
            return False
        self._syncs_without_news = 0
        self._next_sync = time.monotonic() + interval
        return True

    def _rouse(self) -> None:
        self._roused.set()

    def _sync(self, *, waited_for: bool) -> Position:
        spool = self._spool()
        try:
            # at rest: everything in it was stored, and the files are gone
            return 2**63 if spool is None else spool.sync()
        except Exception as error:  # noqa: BLE001 - whatever it is, waiting callers must get it
            if not waited_for:  # who waits counts it
                self._counters.add("spool_errors")
            log_limited(_logger, "failure", "The spool is not on disk: %s", reason_of(error))
            self._on_failure()
            return -1


def reason_of(error: Exception) -> str:
    """Say why the spool was not synced: in our own words, or by the error's type."""
    return str(error) if isinstance(error, SpoolError) else type(error).__name__


def _answer(future: asyncio.Future[bool], done: bool) -> None:  # noqa: FBT001 - a callback's argument
    if not future.done():
        future.set_result(done)
