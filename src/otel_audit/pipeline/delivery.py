"""Brings records to a sink, from a thread of its own, and keeps each until the sink has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.complaints import complain
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.sink import Sink
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

_LAST_GRACE = 5.0
"""Seconds that the thread has to close its connections after the last write."""


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How delivery behaves; times in seconds.

    Attributes:
        queue_size: Records that may wait.
        batch_size: Records in one write.
        batch_interval: How long a record waits for company.
        first_pause: Pause after the first failed write; doubles with each, up to ``longest_pause``.
        longest_pause: The cap of the pause.
    """

    queue_size: int = 20_000
    batch_size: int = 512
    batch_interval: float = 0.2
    first_pause: float = 0.1
    longest_pause: float = 15.0


class Delivery:
    """A queue, and a worker thread with its own event loop that empties it into a sink.

    The thread starts with the first record, and again after a fork. What waits in a parent's queue
    is the parent's to deliver.
    """

    def __init__(
        self,
        make_sink: Callable[[], Sink],
        counters: Counters,
        options: DeliveryOptions = DeliveryOptions(),  # noqa: B008 - immutable
    ) -> None:
        """Name the sink; nothing is opened yet.

        Args:
            make_sink: Makes the sink, in the worker's thread.
            counters: Where everything is counted.
            options: Sizes and times.
        """
        self._make_sink = make_sink
        self._counters = counters
        self._options = options
        self._reset()
        alive = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _reset_after_fork(alive))

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[AuditRecord] = deque()
        self._underway = 0
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._asleep = False
        self._hurry = False
        self._closing = False
        self._closed = False
        self._oldest_failure: float | None = None

    @property
    def depth(self) -> int:
        """Records that the sink has not acknowledged."""
        return len(self._waiting) + self._underway

    @property
    def failing_for(self) -> float:
        """Seconds since the first of the writes that have been failing until now; else 0."""
        since = self._oldest_failure
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, record: AuditRecord) -> None:
        """Take over a record; returns in microseconds and never raises."""
        with self._lock:
            self._counters.add("emitted")
            if self._closed or self.depth >= self._options.queue_size:
                self._counters.add("dropped")
                why = "delivery has ended" if self._closed else "the queue is full"
                complain(_logger, why, "An audit record is lost: %s", why, level=logging.CRITICAL)
                return
            self._waiting.append(record)
            if self._thread is None:
                self._start()
            elif self._asleep or len(self._waiting) == self._options.batch_size:
                self._rouse()

    def flush(self, timeout: float) -> bool:
        """Wait until the sink has everything that was submitted before.

        Args:
            timeout: Seconds to wait.

        Returns:
            Whether it has.
        """
        with self._changed:
            if self._thread is None:
                return self.depth == 0
            self._hurry = True
            self._rouse()
            done = self._changed.wait_for(lambda: self.depth == 0, timeout)
            self._hurry = False
        return done

    def close(self, timeout: float) -> bool:
        """Deliver what waits, then end the thread.

        Args:
            timeout: Seconds to wait for delivery; what is left then is lost, counted and logged.

        Returns:
            Whether everything was delivered.
        """
        self.flush(timeout)
        with self._lock:
            self._closing = self._closed = True
            thread = self._thread
            self._rouse()
            if self.depth and self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        if thread is not None:
            thread.join(_LAST_GRACE)
        with self._lock:
            lost = self.depth
            self._waiting.clear()
            self._underway = 0
        if lost:
            self._counters.add("dropped", lost)
            _logger.critical(
                "%d audit records are lost: the store did not take them within %g seconds", lost,
                timeout,
            )  # fmt: skip
        return lost == 0

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="otel-audit-delivery", daemon=True)
        self._thread.start()

    def _rouse(self) -> None:
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None and not loop.is_closed():
            self._asleep = False
            loop.call_soon_threadsafe(wake.set)

    def _run(self) -> None:
        with (
            contextlib.suppress(asyncio.CancelledError),
            suppress_instrumentation(),
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        ):
            runner.run(self._work())

    async def _work(self) -> None:
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        sink = self._make_sink()
        try:
            while await self._something_to_do():
                await self._deliver(sink, self._take())
        finally:
            await sink.close()

    async def _something_to_do(self) -> bool:
        wake = self._wake
        assert wake is not None  # noqa: S101 - set before the first call
        while not self._closing:
            wake.clear()
            with self._lock:
                self._asleep = not self._waiting
            if self._asleep:
                await wake.wait()
            elif self._hurry or len(self._waiting) >= self._options.batch_size:
                return True
            else:
                await _wait(wake, self._options.batch_interval)
                return True
        return False

    def _take(self) -> list[AuditRecord]:
        with self._lock:
            count = min(len(self._waiting), self._options.batch_size)
            batch = [self._waiting.popleft() for _ in range(count)]
            self._underway = count
        return batch

    async def _deliver(self, sink: Sink, batch: list[AuditRecord]) -> None:
        pause = self._options.first_pause
        while batch and not self._closing:
            try:
                written = await sink.write(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the batch must be kept
                self._note_failure(error)
                await self._rest(pause)
                pause = min(pause * 2, self._options.longest_pause)
                continue
            self._counters.add("exported", written.stored)
            self._counters.add("quarantined", written.quarantined)
            with self._changed:
                self._underway = 0
                if self._oldest_failure is not None:
                    self._oldest_failure = None
                    _logger.warning("The audit store takes records again")
                self._changed.notify_all()
            return

    def _note_failure(self, error: Exception) -> None:
        self._counters.add("retries")
        if self._oldest_failure is None:
            self._oldest_failure = time.monotonic()
        if isinstance(error, StoreUnavailableError):
            complain(_logger, "unavailable", "Audit records wait: %s", error, level=logging.WARNING)
        elif isinstance(error, StoreError):
            complain(_logger, "store", "Audit records wait: %s", error)
        else:
            complain(_logger, "failure", "Writing audit records failed", error=error)

    async def _rest(self, pause: float) -> None:
        wake = self._wake
        assert wake is not None  # noqa: S101 - set before the first call
        wake.clear()
        await _wait(wake, pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, hides nothing


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _reset_after_fork(alive: weakref.ref[Delivery]) -> None:
    delivery = alive()
    if delivery is not None:
        delivery._reset()  # noqa: SLF001 - its own module
