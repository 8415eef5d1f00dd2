"""Delivery: each record is kept, in memory and on disk, until the sink has it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from otel_audit._util.auto_reset_event import AutoResetEvent
from otel_audit._util.backoff import FIRST_PAUSE, LONGEST_PAUSE, Backoff
from otel_audit._util.fork import renew_in_child
from otel_audit._util.loop_thread import ThreadState
from otel_audit._util.own_lock import is_mine, own_lock
from otel_audit._util.ratelimited_log import (
    log_limited,
    log_postponed,
    log_when_free,
    postponed,
)
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.deliver_recovered import Adopt, Recovery
from otel_audit.delivery.group_fsync import GroupSync
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.queue import ChangedSince, Item, RecordQueue
from otel_audit.delivery.queue_entries import Entry
from otel_audit.delivery.sink import Sink
from otel_audit.delivery.spool import Spool, SpoolError
from otel_audit.delivery.writer import LAST_GRACE, BadRecords, Writer, ignore_duration
from otel_audit.errors import StoreError
from otel_audit.record import to_json

_logger = logging.getLogger(__name__)


_MOST_POSTPONED = 1000
"""Records that the store refuses for a reason of its own, before nothing more is tried: then it is
no matter of these records."""

_LOOK_EVERY = 0.1
"""Seconds between two looks whether a wait at shutdown is hopeless."""


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Options of delivery; times in seconds.

    Attributes:
        queue_size: Records that wait in memory.
        batch_size: Records in one write.
        batch_bytes: Bytes in one write, or one record.
        batch_interval: How long a record waits for others of its batch.
        first_pause: Pause after the first failed write; doubles with each, up to ``longest_pause``.
        longest_pause: The cap of the pause.
        sync_interval: Time between two syncs of the spool to disk.
        adopt_interval: Time between two looks for spools of dead processes.
    """

    queue_size: int = 20_000
    batch_size: int = 512
    batch_bytes: int = 1_000_000
    batch_interval: float = 0.2
    first_pause: float = FIRST_PAUSE
    longest_pause: float = LONGEST_PAUSE
    # so much of the latest is not on disk when the power fails
    sync_interval: float = 0.1
    # each look lists a directory, and opens what a dead process left
    adopt_interval: float = 10.0


class Delivery:
    """A queue, and a writer thread with its own event loop that empties it into a sink.

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
        """Open the spool; the sink is not connected yet.

        Args:
            make_sink: Makes the sink, in the writer's thread.
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
        self._recovery = None if adopt is None else Recovery(adopt, counters)
        self.queue = RecordQueue(spool, counters, options.queue_size)
        self._periodic: list[tuple[float, Callable[[], None]]] = []
        self.observe: Callable[[float], None] = ignore_duration
        self._reset()
        renew_in_child(self, Delivery._reset_in_child)

    def _reset(self) -> None:
        self._lock = own_lock()
        self._between: deque[Callable[[], None]] = deque()
        # the writer's thread takes the lock itself: a condition's own `with` can be cut off while
        # it holds the lock, and then no other ever gets it
        self._changed = threading.Condition(self._lock)
        backoff = Backoff(self._options.first_pause, self._options.longest_pause)
        self._writer = Writer("otel-audit-delivery", self._work, self._counters, backoff)
        self._writer.observe = lambda seconds: self.observe(seconds)  # noqa: PLW0108 - set later
        self._asleep = False
        self._full = self._options.batch_size
        self._hurry = 0
        self._closed = self._is_reached = False
        self._kept = 0
        self._next_adoption = 0.0
        self._looked = AutoResetEvent()
        self._size = BatchSize(self._options.batch_size, self._options.batch_bytes)
        self._postponed: list[Item] = []
        self._left: deque[Item] = deque()
        self._next_retry = 0.0
        self._left_in_recovery = False
        self._group = GroupSync(
            lambda: self.queue.open_spool,
            self._counters,
            self._options.sync_interval,
            lambda: self._writer.schedule(self._replace_gone),
            self._call_at_next_append,
        )

    def _reset_in_child(self) -> None:
        self._reset()
        self.queue.after_fork()

    @property
    def depth(self) -> int:
        """Records that the sink has not acknowledged."""
        return self.queue.depth

    @property
    def failing_for(self) -> float:
        """Seconds since the first of the writes that have been failing until now; else 0."""
        return self._writer.failing_for

    @property
    def oldest_age(self) -> float:
        """Seconds that the oldest record has waited, as far as is known; 0 where none does."""
        spool = self.queue.open_spool
        age = 0.0 if spool is None else spool.oldest_age
        return max(age, self.failing_for) if self.depth else age

    @property
    def spool_bytes(self) -> int:
        """Bytes of this process's spool on disk."""
        spool = self.queue.open_spool
        return 0 if spool is None else spool.bytes_used

    @property
    def spool_limit(self) -> int:
        """Bytes that the spools of this service may have together; 0 where there is none."""
        spool = self.queue.open_spool
        return 0 if spool is None else spool.settings.max_bytes

    def start(self) -> None:
        """Start the writer now: what dead processes left need not wait for the first record."""
        with self._lock:
            self._writer.start()
        log_postponed()

    @property
    def threads(self) -> dict[str, ThreadState]:
        """The states of its threads, by name."""
        return {"delivery": self._writer.state, "sync": self._group.state}

    def ensure(self) -> None:
        """Replace threads that are gone. Never raises."""
        with self._lock:
            self._writer.ensure()
        self._group.ensure()
        log_postponed()

    def hurry(self) -> None:
        """Deliver records that wait for a larger batch now."""
        if self.is_held:
            self._rouse()
            return
        with self._lock:
            self._rouse()

    def every(self, interval: float, call: Callable[[], None]) -> None:
        """Call a function regularly in the writer's thread; to be called before that starts.

        Args:
            interval: Seconds between two calls.
            call: Must not block or raise.
        """
        self._periodic.append((interval, call))

    async def synced(self) -> None:
        """Wait until everything that was noted before is on disk; see `GroupSync.wait`."""
        await self._group.wait()

    def discard(self, record_id: str) -> None:
        """Discard what was written down of an action that is not recorded after all."""
        if self.is_held:
            self._do_later(functools.partial(self.queue.discard, record_id))
        else:
            self.queue.discard(record_id)

    def submit(self, entry: Entry, text: bytes | ChangedSince | None = None) -> None:
        """Accept a finished entry; returns in microseconds and never raises.

        Args:
            entry: What is finished.
            text: As for `RecordQueue.put`.
        """
        if self.is_held:
            self._do_later(functools.partial(self._accept, entry, text))
            return
        with self._lock:
            self._accept(entry, text)
        if self._between:
            self._catch_up()
        if postponed:
            log_postponed()

    def _accept(self, entry: Entry, text: bytes | ChangedSince | None) -> None:
        self._counters.add("emitted")
        if self._closed and self.queue.leave(entry, text):
            log_limited(
                _logger, "late", "A record that was made after delivery had ended is kept in "
                "the spool; the next process of this service delivers it",
                level=logging.WARNING,
            )  # fmt: skip
            return
        if self._closed or not self.queue.put(entry, text):
            why = "delivery has ended" if self._closed else "the queue is full"
            self._counters.add("dropped")
            log_limited(_logger, why, "An audit record is lost: %s", why, level=logging.CRITICAL)
            return
        if not self._writer.alive:
            self._writer.start()
        elif self.queue.ready == self._full:
            self._rouse()
        elif self._asleep:
            # the thread is not woken up only to wait for company once more
            self._asleep = False
            self._writer.end_wait_in(self._options.batch_interval)

    @property
    def is_held(self) -> bool:
        """Whether this is called in the middle of our own work on the same thread: see `own_lock`.

        What comes in the middle must not go on at once, nor wait for what another thread holds: it
        may wait for what this one holds.
        """
        return is_mine(self._lock) or self._counters.is_held or self.queue.is_held

    def _do_later(self, act: Callable[[], None]) -> None:
        """Do something under the lock when the calling thread has left its own."""
        self._between.append(act)
        # if nothing is submitted then
        self._writer.schedule(self._catch_up)

    def _catch_up(self) -> None:
        while self._between and not self.is_held:
            with self._lock:
                if self._between:  # else another thread was faster
                    # it stays there until it is done: a thread that ends here loses nothing
                    try:
                        self._between[0]()
                    except Exception as error:  # noqa: BLE001 - the others must not wait for it
                        self._counters.add("dropped")
                        log_limited(
                            _logger, "between", "An audit record is lost", level=logging.CRITICAL,
                            error=error,
                        )  # fmt: skip
                    self._between.popleft()

    def flush(self, timeout: float) -> bool:
        """Wait until the sink has everything that was submitted before.

        Args:
            timeout: Seconds to wait; a signal handler that has stopped this thread in the middle of
                our own work does not wait.

        Returns:
            Whether it has.
        """
        if self.is_held:
            self._rouse()
            return False
        self._catch_up()
        with self._lock:
            if self.depth and not self._writer.alive and not self._closed:
                self._writer.start()
            if not self._writer.started:
                return self.depth == 0
            self._hurry += 1
            try:
                self._rouse()
                return self._changed.wait_for(lambda: self.depth == 0, timeout)
            finally:  # a signal handler may raise while this waits
                self._hurry -= 1

    def _flush_or_keep(self, timeout: float) -> bool:
        """Flush at the end, unless the store does not answer.

        A store that this process has never reached, and that fails once more, is not waited for
        where a spool keeps what is left: it is not there, as in a run of tests.
        """
        deadline, failures = time.monotonic() + timeout, self._writer.failures
        while True:
            left = deadline - time.monotonic()
            if self.flush(min(max(left, 0.0), _LOOK_EVERY)):
                return True
            is_hopeless = (
                not self._is_reached
                and self._writer.failures > failures
                and self.queue.open_spool is not None
            )
            if is_hopeless or left <= _LOOK_EVERY:
                return False

    def close(self, timeout: float) -> bool:
        """Deliver what waits, then end the thread.

        Args:
            timeout: Seconds to wait for delivery. What is left then stays in the spool for the next
                process of this service; without a spool it is lost, counted and logged. So is it if
                a signal handler of the application raises meanwhile, which ends the waiting.

        Returns:
            Whether everything was delivered; False if that is not known yet: where a signal handler
            has stopped this thread in the middle of our own work, another one does all this.
        """
        if self.is_held:
            # no daemon: the process waits for it
            threading.Thread(
                target=self.close, args=(timeout,), name="otel-audit-close", daemon=False
            ).start()
            return False
        why = "a signal handler ended delivery before the store took them"
        try:
            self._flush_or_keep(timeout)
            why = "the store did not take them in time"
        finally:
            is_delivered = self._end(why)
        return is_delivered

    def _end(self, why_lost: str) -> bool:
        try:
            self._end_writer()
        finally:  # a handler may raise here, too, and at whatever place
            is_delivered = self._close_queue(why_lost)
        self._group.close(LAST_GRACE)
        self._catch_up()
        log_postponed()
        return is_delivered

    def _end_writer(self) -> None:
        with self._lock:
            self._rouse()
            # what is under way and was not stored is kept, or counted below
            self._writer.end(at_once=True)
        self._writer.join(LAST_GRACE)

    def _close_queue(self, why_lost: str) -> bool:
        # a `discard` that was put off means nothing to a closed spool
        self._catch_up()
        with self._lock:
            if self._closed:
                return self.depth == 0
            if not self._writer.ending:  # an exception came before it
                self._writer.end(at_once=True)
            left = self.depth
            self.log_kept_records()
            lost = self.queue.close()
            if lost:
                self._counters.add("dropped", lost)
                log_when_free(
                    _logger, logging.CRITICAL, "%d audit records are lost: %s", lost, why_lost
                )
            # last: what an exception leaves here is found by whoever closes again
            self._closed = True
        log_postponed()
        return left == 0

    def adopt_left(self, timeout: float) -> None:
        """Deliver what dead processes left, where nothing of this process's own has begun that.

        Args:
            timeout: Seconds that it may take; what is not delivered then stays.
        """
        recovery = self._recovery
        if recovery is None or self._closed or self._writer.alive or not recovery.finds_any():
            return
        self.start()
        if self._looked.wait(timeout):
            self._looked.set()  # for whoever waits next

    def flush_and_rest(self, timeout: float) -> None:
        """Deliver what waits, and then remove the spool's files: the process may be killed next.

        Args:
            timeout: Seconds to wait for delivery. Delivery continues if there is more to do.
        """
        if self._flush_or_keep(timeout):
            self._kept = 0
            with self._lock:
                self.queue.rest()
        else:
            self.log_kept_records()

    def log_kept_records(self) -> None:
        """Log how many records stay in the spool, if any; not the same number twice in a row."""
        spool = self.queue.open_spool
        kept = 0 if spool is None else spool.pending
        before, self._kept = self._kept, kept
        if spool is not None and kept and kept != before:
            log_when_free(
                _logger, logging.WARNING,
                "%d audit records are kept in %s; the next process of this service delivers them",
                kept, spool.path,
            )  # fmt: skip

    def _rouse(self) -> None:
        self._asleep = False
        self._writer.rouse()

    async def _work(self) -> None:
        sink = self._make_sink()
        with self._lock:
            # the work before this may have ended at whatever place
            self._left = deque()
            self.queue.begin_again(self._postponed)
            self._changed.notify_all()
        if self.queue.spool is not None:
            self._group.start()
        periodic = [asyncio.create_task(_repeat(*wanted)) for wanted in self._periodic]
        try:
            while not self._writer.ending:
                try:
                    await self._adopt_the_dead(sink)
                    await self._try_postponed_again(sink)
                    if await self._something_to_do():
                        await self._deliver(sink)
                except Exception as error:  # noqa: BLE001 - the thread must outlive whatever it is
                    self._writer.note_failure(error)
                    await self._writer.rest(self._options.longest_pause)
        finally:
            for task in periodic:
                task.cancel()
            await sink.close()

    async def _something_to_do(self) -> bool:
        self._writer.forget_rousing()
        log_postponed()
        with self._lock:
            # who submits the last one of a full write ends the wait
            self._full = self._size.entries
            is_enough = bool(self._hurry) or self.queue.ready >= self._full
            self._asleep = asleep = not self._has_work
        if asleep:
            # who submits the first one lets it end when that one has waited for company
            await self._writer.wait(self._until_next())
            return not self._writer.ending and self._has_work
        if not is_enough:
            await self._writer.wait(self._options.batch_interval)
        return True

    @property
    def _has_work(self) -> bool:
        return self.queue.has_work and len(self._postponed) < _MOST_POSTPONED

    async def _deliver(self, sink: Sink) -> None:
        with self._lock:
            batch = self.queue.take(self._size)
            through = self.queue.begin_reading() if not batch else None
        if batch:
            await self._write_items(sink, deque(batch))
        elif through is not None:
            for items in self.queue.read(through, self._size):
                self._left = deque(items)
                if not await self._write_items(sink, self._left):
                    return
                if len(self._postponed) >= _MOST_POSTPONED:
                    await self._wait_for_postponed(sink)
            with self._lock:
                self._changed.notify_all()

    async def _write_items(self, sink: Sink, left: deque[Item]) -> bool:
        """Write until all are written or postponed; False where delivery ends before that."""
        while left:
            written = await self._writer.persist(lambda: self._write_some(sink, left, self._bad))
            if written is None:
                return False
            done, postponed = written
            # an entry is always somewhere, if twice for a moment
            self._postponed += postponed
            self._note_success(self._postponed)
            with self._lock:
                self.queue.done(done, postponed)
                self._changed.notify_all()
        return True

    async def _write_some(
        self, sink: Sink, left: deque[Item], bad: BadRecords = "raise"
    ) -> tuple[list[Item], list[Item]]:
        """Write as many as should go at once, and take them out of what is left to write.

        Args:
            sink: Where to.
            left: What waits.
            bad: As for `write_batch`.

        Returns:
            Which of them are stored, and which are postponed. After an error all are left as they
            were.
        """
        count = self._size.fitting(item.size for item in left)
        items = list(islice(left, count))
        try:
            written = await self._writer.write(sink, [item.entry for item in items], bad)
        except BaseException:
            self._size.failed(count)
            raise
        self._size.succeeded()
        for _ in items:
            left.popleft()
        postponed = set(written.postponed)
        if postponed:
            self._next_retry = time.monotonic() + self._options.longest_pause
            self._writer.note_failure(StoreError(written.why_postponed))
        return (
            [item for item in items if item.entry.record_id not in postponed],
            [item for item in items if item.entry.record_id in postponed],
        )

    async def _try_postponed_again(self, sink: Sink) -> None:
        """Offer the store once more what it refused for a reason of its own."""
        if not self._postponed or time.monotonic() < self._next_retry:
            return
        # before it is tried: one that fails altogether is no reason to try at once again
        self._next_retry = time.monotonic() + self._options.longest_pause
        left = deque(self._postponed)
        while left:
            done, _ = await self._write_some(sink, left, "postpone")
            gone = set(map(id, done))
            still = [item for item in self._postponed if id(item) not in gone]
            # before anybody is told that nothing waits: they may ask next whether writing fails
            self._note_success(still)
            with self._lock:
                self.queue.done(done)
                self._changed.notify_all()
            # last: what ends the thread before this finds an entry twice, and not nowhere
            self._postponed = still

    async def _wait_for_postponed(self, sink: Sink) -> None:
        while len(self._postponed) >= _MOST_POSTPONED and not self._writer.ending:
            # at least 0.1 s: a try that is overdue fails again at once while the store is away
            await self._writer.rest(max(self._next_retry - time.monotonic(), 0.1))
            try:
                await self._try_postponed_again(sink)
            except StoreError as error:
                self._writer.note_failure(error)

    async def _write(self, sink: Sink, entries: Sequence[Entry]) -> bool:
        """Write what a dead process left; False where not all of it can be stored now."""
        left = deque(Item(entry, None, _size_of(entry)) for entry in entries)
        while left:
            written = await self._writer.persist(lambda: self._write_some(sink, left, self._bad))
            if written is None:
                return False
            _, postponed = written
            self._left_in_recovery = self._left_in_recovery or bool(postponed)
            self._note_success(self._postponed)
        return not self._left_in_recovery

    async def _known(self, sink: Sink, record_ids: Sequence[str]) -> set[str] | None:
        """Query until there is an answer; None if delivery ends before that."""
        known = await self._writer.persist(lambda: sink.known(record_ids))
        if known is not None:
            self._note_success(self._postponed)
        return known

    @property
    def _bad(self) -> BadRecords:
        # a record that no sink can take waits, as it is sound for all that anybody knows, and
        # holds up no other: it is in the spool until a later version can write it
        return "postpone" if self._writer.suspects_records else "raise"

    def _note_success(self, postponed: Sequence[Item]) -> None:
        self._is_reached = True
        self._writer.note_success(complete=not postponed and not self._left_in_recovery)

    async def _adopt_the_dead(self, sink: Sink) -> None:
        if self._recovery is None or time.monotonic() < self._next_adoption:
            return
        self._next_adoption = time.monotonic() + self._options.adopt_interval
        self._left_in_recovery = False
        await self._recovery.deliver(
            functools.partial(self._write, sink),
            functools.partial(self._known, sink),
            self._options.batch_size,
        )
        self._looked.set()

    def _until_next(self) -> float | None:
        """Seconds until there is something to do whether or not a record comes."""
        times = [] if self._recovery is None else [self._next_adoption]
        if self._postponed:
            times.append(self._next_retry)
        return max(min(times) - time.monotonic(), 0.0) if times else None

    def _call_at_next_append(self, call: Callable[[], None]) -> None:
        self.queue.at_next_append = call

    def _replace_gone(self) -> None:
        """Open another spool if this one's directory is gone: why it may not have been synced."""
        spool = self.queue.open_spool
        if spool is not None and spool.is_gone:
            with self._lock:
                old = self.queue.replace_gone(len(self._left) + len(self._postponed))
            if old is not None:
                # not under the lock: it waits for a sync of the old one, and what the garbage
                # collector ends in that thread may wait for the lock
                with contextlib.suppress(SpoolError, OSError):
                    old.close()


def _size_of(entry: Entry) -> int:
    try:
        return len(to_json(entry))
    except (ValueError, TypeError, RecursionError):
        return 0


async def _repeat(interval: float, call: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the next time it may work
            log_limited(_logger, "periodic", "Something periodic failed", error=error)
