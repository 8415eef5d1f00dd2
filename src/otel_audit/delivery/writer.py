"""The one loop that brings records to a sink: it writes batches, backs off, counts, and ends.

What waits is the sources' matter: the queue and the spools of dead processes (`Delivery`), the
outbox (`Relay`), the intents (`Intents`). Each has a writer of its own, with a thread, an event
loop and a connection, so that none of them holds up another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from otel_audit._util.backoff import Backoff
from otel_audit._util.loop_thread import LoopThread, ThreadState
from otel_audit._util.own_lock import OwnLock
from otel_audit._util.randomness import generator
from otel_audit._util.ratelimited_log import log_limited, log_postponed
from otel_audit.delivery.halving import write_by_halves
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.queue_entries import Entry
from otel_audit.delivery.sanitize import written_down
from otel_audit.delivery.sink import Refused, Sink, Written
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF: Final = Backoff()

LAST_GRACE: Final = 5.0
"""Seconds that a writer's thread has to close its connections after the last write."""

BadRecords = Literal["raise", "postpone", "quarantine"]
"""The treatment of a record for which a sink raises an unexpected error: the error of its batch is
raised; or it is found by halving, and waits or goes to quarantine while the others are stored."""

_MOST_TRIES: Final = 5
"""Failures in a row, other than the store's own, after which a record is taken to be the cause: a
fault that passes has passed by then."""

_MOST_BAD: Final = 8
"""Records that are found bad before any other is stored: then it is no matter of the records."""


@dataclass(frozen=True, slots=True)
class Messages:
    """The log messages of a writer.

    Attributes:
        waiting: While the store takes nothing; the store's reason follows.
        failed: After an unexpected error.
        again: Once the store takes records again; None if nothing is to be said.
    """

    waiting: str = "Audit records wait"
    failed: str = "Writing audit records failed"
    again: str | None = "The audit store takes records again"


class Writer(LoopThread):
    """A thread that writes what its source has, and tries again as long as it must.

    It is started when it is first needed. Make a new one in a forked child.

    Attributes:
        ending: Whether it is to end: nothing new is begun.
        observe: Called with the seconds of each successful write.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        counters: Counters,
        backoff: Backoff = _BACKOFF,
        messages: Messages = Messages(),
    ) -> None:
        """Remember what the thread does; it is not started yet.

        Args:
            name: Of the thread.
            work: Makes the coroutine that makes the sink and writes to it until `ending`.
            counters: Where everything is counted.
            backoff: Pauses between tries.
            messages: What is logged.
        """
        super().__init__(name, work)
        self.ending = False
        self.observe: Callable[[float], None] = ignore_duration
        self._counters = counters
        self._backoff = backoff
        self._messages = messages
        self._failing_since: float | None = None
        self.failures = 0
        self._odd_failures = 0
        self._clock: asyncio.TimerHandle | None = None

    @property
    def failing_for(self) -> float:
        """Seconds since the first of the tries that have been failing until now; else 0."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def suspects_records(self) -> bool:
        """Whether a record is more likely than the store to be why writing fails."""
        return self._odd_failures >= _MOST_TRIES

    def start(self) -> bool:
        """Start the thread, unless it runs, or is to end; say whether it runs."""
        return not self.ending and super().start()

    def end(self, *, at_once: bool = False) -> None:
        """End the work; what is under way is finished, or cancelled at once. Never raises."""
        self.ending = True
        if at_once:
            self.cancel()
        else:
            super().end()

    # --- what the source calls, in the thread

    async def write(self, sink: Sink, entries: Sequence[Entry], bad: BadRecords) -> Written:
        """Write a batch once; see `write_batch`."""
        began = time.perf_counter()
        written = await write_batch(sink, entries, self._counters, bad)
        self.observe(time.perf_counter() - began)
        return written

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Call until that succeeds, with pauses; None if the writer ends before.

        Who calls notes the success, as only then it is known what the store holds up.
        """
        pauses = self._backoff.pauses()
        while not self.ending:
            try:
                return await call()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_task_cancelled():
                    raise
                self.note_failure(error)
                if isinstance(error, StoreUnavailableError) and error.retry_after:
                    await self._rest_undisturbed(error.retry_after)
                else:
                    await self.rest(next(pauses))
        return None

    def note_failure(self, error: BaseException) -> None:
        """Count a failure, and log it, though not each time."""
        self._counters.add("retries")
        self.failures += 1
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if isinstance(error, StoreError):
            self._odd_failures = 0
            is_away = isinstance(error, StoreUnavailableError)
            log_limited(
                _logger, f"{self._messages.waiting} {is_away}", "%s: %s", self._messages.waiting,
                error, level=logging.WARNING if is_away else logging.ERROR,
            )  # fmt: skip
        else:
            self._odd_failures += 1
            log_limited(_logger, self._messages.failed, self._messages.failed, error=error)

    def note_success(self, *, complete: bool = True) -> None:
        """Note that the store has taken what it was given, or only a part of it."""
        self._odd_failures = 0
        if complete and self._failing_since is not None:
            self._failing_since = None
            if self._messages.again is not None:
                _logger.warning(self._messages.again)

    async def rest(self, pause: float) -> None:
        """Wait about so many seconds, or until it is roused; not all writers the same time."""
        self.wake.clear()
        await self.wait(pause * generator.uniform(0.5, 1.0))

    async def wait(self, seconds: float | None) -> None:
        """Wait until it is roused, or so many seconds are over; at once if it was roused before."""
        self._set_clock(seconds)
        try:
            await self.wake.wait()
        finally:
            self._set_clock(None)

    def _set_clock(self, seconds: float | None) -> None:
        # the clock rouses it, too: a limit of asyncio's would cost a batch a twentieth of its work
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if seconds is not None:
            self._clock = asyncio.get_running_loop().call_later(seconds, self.wake.set)

    def end_wait_in(self, seconds: float) -> None:
        """Let the `wait` under way end after so many seconds, instead of those it began with.

        May be called from any thread; never raises.
        """
        self.schedule(lambda: self._set_clock(seconds))

    def forget_rousing(self) -> None:
        """Let the next `wait` wait, although it was roused before."""
        self.wake.clear()

    async def _rest_undisturbed(self, seconds: float) -> None:
        # requested by the store: nothing wakes this up but the end
        until = time.monotonic() + seconds
        while not self.ending and time.monotonic() < until:
            self.wake.clear()
            await self.wait(until - time.monotonic())


async def write_batch(
    sink: Sink,
    entries: Sequence[Entry],
    counters: Counters,
    bad: BadRecords = "raise",
    stored_as: str = "exported",
) -> Written:
    """Write a batch once, and count the results.

    Args:
        sink: Where to.
        entries: The batch.
        counters: Where it is counted.
        bad: How records are treated for which the sink raises an unexpected error.
        stored_as: What counts the records that the sink has stored.

    Raises:
        StoreError: Nothing of it is known to be stored, or not all.
    """
    records = [entry for entry in entries if not isinstance(entry, Refused)]
    if refused := len(entries) - len(records):
        await sink.quarantine([entry for entry in entries if isinstance(entry, Refused)])
    written = await _write_records(sink, records, bad)
    counters.add(stored_as, written.stored)
    if quarantined := written.quarantined + refused:
        counters.add("quarantined", quarantined)
    if written.conflicts:
        counters.add("conflicts", written.conflicts)
    return written


async def _write_records(sink: Sink, records: Sequence[AuditRecord], bad: BadRecords) -> Written:
    if bad == "raise":
        return await sink.write(records)
    parts: list[Written] = []
    found: list[tuple[AuditRecord, str]] = []

    async def write(some: Sequence[AuditRecord]) -> Exception | None:
        try:
            parts.append(await sink.write(some))
        except (StoreError, asyncio.CancelledError):
            raise
        except Exception as error:
            if len(found) >= _MOST_BAD and not any(part.stored for part in parts):
                raise
            return error
        return None

    async def refuse(record: AuditRecord, error: Exception) -> None:
        found.append((record, f"an unexpected {type(error).__name__}"))
        log_limited(_logger, "bad record", "A record cannot be written: %s", bad, error=error)

    await write_by_halves(records, write, refuse)
    if bad == "postpone":
        parts += [
            Written(0, postponed=(record.record_id,), why_postponed=why) for record, why in found
        ]
    elif found:
        # only now: if it is no matter of the records after all, none of them is quarantined
        await sink.quarantine(
            [Refused(record.record_id, written_down(record), why) for record, why in found]
        )
        parts.append(Written(0, quarantined=len(found)))
    return _total(parts)


def _total(parts: Sequence[Written]) -> Written:
    if len(parts) == 1:
        return parts[0]
    return Written(
        sum(part.stored for part in parts),
        sum(part.quarantined for part in parts),
        sum(part.conflicts for part in parts),
        tuple(record_id for part in parts for record_id in part.postponed),
        next((part.why_postponed for part in parts if part.postponed), ""),
    )


def ignore_duration(_seconds: float) -> None:
    """The duration of a write is not needed."""


def _is_task_cancelled() -> bool:
    """Distinguish the end of this task, or of its loop, from a library's own cancelling.

    The latter is a failure like any other. Who went on after the former would keep a loop from
    closing whose thread is to start again.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class OwnsWriter:
    """A mixin for classes with a `Writer`: shows its thread's state, and restarts it."""

    _lock: OwnLock
    _writer: Writer

    @property
    def state(self) -> ThreadState:
        """The thread's state."""
        return self._writer.state

    def ensure(self) -> None:
        """Replace the thread if it is gone. Never raises."""
        with self._lock:
            self._writer.ensure()
        log_postponed()
