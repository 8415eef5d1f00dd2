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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.complaints import complain
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.pipeline.backlog import Backlog
from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.recovery import Adopt, batches_of
from otel_audit.pipeline.sink import Sink
from otel_audit.pipeline.spool import Kind, Spool, SpoolError
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

_LAST_GRACE = 5.0
"""Seconds that the thread has to close its connections after the last write."""


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How delivery behaves; times in seconds.

    Attributes:
        queue_size: Records that wait in memory.
        batch_size: Records in one write.
        batch_interval: How long a record waits for company.
        first_pause: Pause after the first failed write; doubles with each, up to ``longest_pause``.
        longest_pause: The cap of the pause.
        sync_interval: How often the spool is brought to disk.
        adopt_interval: How often the spools of dead processes are looked for.
    """

    queue_size: int = 20_000
    batch_size: int = 512
    batch_interval: float = 0.2
    first_pause: float = 0.1
    longest_pause: float = 15.0
    sync_interval: float = 0.1
    adopt_interval: float = 10.0


class Delivery:
    """A backlog, and a worker thread with its own event loop that empties it into a sink.

    The thread starts when it is first needed, and again after a fork.
    """

    def __init__(
        self,
        make_sink: Callable[[], Sink],
        counters: Counters,
        options: DeliveryOptions = DeliveryOptions(),
        *,
        spool: Callable[[], Spool] | None = None,
        adopt: Adopt | None = None,
    ) -> None:
        """Name the sink, and open the spool; nothing is connected yet.

        Args:
            make_sink: Makes the sink, in the worker's thread.
            counters: Where everything is counted.
            options: Sizes and times.
            spool: Opens the spool; None: records wait in memory only.
            adopt: Locks the spools of dead processes.

        Raises:
            ConfigurationError: The spool cannot be kept.
        """
        self._make_sink = make_sink
        self._counters = counters
        self._options = options
        self._adopt = adopt
        self.backlog = Backlog(spool, counters, options.queue_size)
        self._reset()
        alive = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_anew(alive))

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._asleep = False
        self._hurry = False
        self._closing = False
        self._closed = False
        self._failing_since: float | None = None
        self._next_adoption = 0.0

    @property
    def depth(self) -> int:
        """Records that the sink has not acknowledged."""
        return self.backlog.depth

    @property
    def failing_for(self) -> float:
        """Seconds since the first of the writes that have been failing until now; else 0."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        """Start the worker now: what dead processes left need not wait for the first record."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._start()

    def note(self, kind: Kind, record: AuditRecord) -> None:
        """Write down what is known of an action that is not over.

        Raises:
            SpoolFullError: A bound of the spool is reached, and the action has only begun.
        """
        self.backlog.note(kind, record)

    def discard(self, record_id: str) -> None:
        """Take back what was written down of an action that is not recorded after all."""
        self.backlog.discard(record_id)

    def submit(self, record: AuditRecord) -> None:
        """Take over a finished record; returns in microseconds and never raises."""
        with self._lock:
            self._counters.add("emitted")
            if self._closed or not self.backlog.put(record):
                why = "delivery has ended" if self._closed else "the queue is full"
                self._counters.add("dropped")
                complain(_logger, why, "An audit record is lost: %s", why, level=logging.CRITICAL)
                return
            if self._thread is None:
                self._start()
            elif self._asleep or self.backlog.ready == self._options.batch_size:
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
            timeout: Seconds to wait for delivery. What is left then stays in the spool for the next
                process of this service; without a spool it is lost, counted and logged.

        Returns:
            Whether everything was delivered.
        """
        self.flush(timeout)
        with self._lock:
            if self._closed:
                return self.depth == 0
            self._closing = self._closed = True
            thread = self._thread
            self._rouse()
            if self.depth and self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        if thread is not None:
            thread.join(_LAST_GRACE)
        with self._lock:
            left = self.depth
            self.tell_what_is_kept()
            lost = self.backlog.close()
        if lost:
            self._counters.add("dropped", lost)
            _logger.critical(
                "%d audit records are lost: the store did not take them within %g seconds", lost,
                timeout,
            )  # fmt: skip
        return left == 0

    def settle(self, timeout: float) -> None:
        """Deliver what waits, and leave as little behind as can be: the process may be killed next.

        Args:
            timeout: Seconds to wait for delivery. Delivery goes on if there is more to do.
        """
        if self.flush(timeout):
            with self._lock:
                self.backlog.rest()
        else:
            self.tell_what_is_kept()

    def tell_what_is_kept(self) -> None:
        """Log how many records stay in the spool, if any."""
        spool = self.backlog.open_spool
        if spool is not None and spool.pending:
            _logger.warning(
                "%d audit records are kept in %s; the next process of this service delivers them",
                spool.pending, spool.path,
            )  # fmt: skip

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
        syncing = asyncio.create_task(self._keep_in_sync())
        try:
            while not self._closing:
                try:
                    await self._adopt_the_dead(sink)
                    if await self._something_to_do(self._wake):
                        await self._deliver(sink)
                except Exception as error:  # noqa: BLE001 - the thread must outlive whatever it is
                    self._note_failure(error)
                    await self._rest(self._options.longest_pause)
        finally:
            syncing.cancel()
            await sink.close()

    async def _something_to_do(self, wake: asyncio.Event) -> bool:
        wake.clear()
        with self._lock:
            self._asleep = not self.backlog.has_work
        if self._asleep:
            await _wait(wake, self._until_adoption())
            wake.clear()
            if self._closing or not self.backlog.has_work:
                return False
        if not self._hurry and self.backlog.ready < self._options.batch_size:
            await _wait(wake, self._options.batch_interval)
        return True

    async def _deliver(self, sink: Sink) -> None:
        with self._lock:
            batch = self.backlog.take(self._options.batch_size)
        if batch:
            if await self._write(sink, [item.record for item in batch]):
                with self._changed:
                    self.backlog.done(batch)
                    self._changed.notify_all()
            return
        for items in self.backlog.take_from_disk(self._options.batch_size):
            if not await self._write(sink, [item.record for item in items]):
                return
            with self._changed:
                self.backlog.done(items)
                self._changed.notify_all()

    async def _write(self, sink: Sink, records: Sequence[AuditRecord]) -> bool:
        """Write until it succeeds; False where delivery ends before that."""
        pause = self._options.first_pause
        while not self._closing:
            try:
                written = await sink.write(records)
            except Exception as error:  # noqa: BLE001 - whatever it is, the batch must be kept
                self._note_failure(error)
                await self._rest(pause)
                pause = min(pause * 2, self._options.longest_pause)
                continue
            self._counters.add("exported", written.stored)
            self._counters.add("quarantined", written.quarantined)
            if self._failing_since is not None:
                self._failing_since = None
                _logger.warning("The audit store takes records again")
            return True
        return False

    async def _adopt_the_dead(self, sink: Sink) -> None:
        if self._adopt is None or time.monotonic() < self._next_adoption:
            return
        self._next_adoption = time.monotonic() + self._options.adopt_interval
        for spool in self._adopt():
            recovered = 0
            try:
                for batch in batches_of(spool, self._options.batch_size, self._counters):
                    if not await self._write(sink, batch):
                        return
                    recovered += len(batch)
                spool.remove()
            finally:
                spool.release()
            if recovered:
                _logger.warning(
                    "Delivered %d audit records that a dead process had left", recovered
                )

    def _until_adoption(self) -> float | None:
        if self._adopt is None:
            return None
        return max(self._next_adoption - time.monotonic(), 0.0)

    async def _keep_in_sync(self) -> None:
        while self.backlog.spool is not None:
            await asyncio.sleep(self._options.sync_interval)
            spool = self.backlog.open_spool
            if spool is None:
                continue
            try:
                await asyncio.to_thread(spool.sync)
            except (SpoolError, RuntimeError) as error:
                self._counters.add("spool_errors")
                complain(_logger, "sync", "The spool is not on disk: %s", error)

    def _note_failure(self, error: Exception) -> None:
        self._counters.add("retries")
        if self._failing_since is None:
            self._failing_since = time.monotonic()
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


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _begin_anew(alive: weakref.ref[Delivery]) -> None:
    delivery = alive()
    if delivery is not None:
        delivery._reset()  # noqa: SLF001 - its own module
        delivery.backlog.after_fork()
