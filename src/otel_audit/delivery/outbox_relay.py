"""Brings to the store what the application's own transactions have left in its outbox.

A thread of its own with an event loop of its own, so that a store that is away holds up nothing
else. There is no leader: every process of every host may run one, and `otel-audit relay` another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_audit._util.ids import uuid7
from otel_audit._util.randomness import generator
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused, Sink, Written
from otel_audit.delivery.worker_thread import ThreadState, Worker
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

BATCH_BYTES: Final = 1_000_000
"""Bytes of records in one write, or one record."""

_decode = msgspec.json.Decoder(AuditRecord).decode


class Waiting(NamedTuple):
    """A record that waits: its id, and its JSON text."""

    record_id: str
    text: str


class OutboxState(NamedTuple):
    """How many records wait (counted up to a bound), and seconds that the oldest has waited."""

    depth: int
    oldest_age: float


class Outbox(Protocol):
    """Where the application's transactions leave records. Used from one event loop only."""

    async def take(self, most: int, most_bytes: int) -> Sequence[Waiting]:
        """Claim the earliest records, so many of them and of their bytes, or one."""

    async def remove(self, record_ids: Collection[str]) -> None:
        """Delete records that were taken."""

    async def release(self, record_ids: Collection[str]) -> None:
        """Let others take records that were taken."""

    async def state(self) -> OutboxState:
        """Say how much waits, and how long."""

    async def holds_earlier(self, record_id: str) -> bool:
        """Tell whether a record waits whose id is not greater."""

    async def check(self) -> None:
        """See whether records can be taken; raises `StoreError` where they cannot."""

    async def close(self) -> None:
        """Give back connections. Never raises."""


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How the relay behaves; times in seconds.

    Attributes:
        interval: Pause after the outbox was found empty, unless something is known to wait.
        batch_size: Records that are taken at once.
        batch_bytes: Bytes of records that are taken at once, or one record.
        first_pause: Pause after the first failure; doubles with each, up to ``longest_pause``.
        longest_pause: The cap of the pause.
    """

    interval: float = 1.0
    batch_size: int = 512
    batch_bytes: int = BATCH_BYTES
    first_pause: float = 0.1
    longest_pause: float = 15.0


class HeldError(StoreError):
    """The store refuses sound records for a reason of its own: they stay in the outbox.

    Attributes:
        taken: How many records were looked at.
    """

    def __init__(self, why: str, taken: int) -> None:
        """Say why, and how many records there were."""
        super().__init__(why)
        self.taken = taken


async def relay_once(outbox: Outbox, sink: Sink, counters: Counters, size: BatchSize) -> int:
    """Bring one batch to the store. Doing so twice stores once, as the store knows records by id.

    Nothing of the application's database is locked while the store is written.

    Args:
        outbox: Where from.
        sink: Where to.
        counters: Where it is counted.
        size: How much at once; adapted to what succeeds.

    Returns:
        How many records have left the outbox; 0 where nothing waits that is not taken by others.

    Raises:
        HeldError: Some of them stay, and are left alone for a while.
        StoreError: One of the two cannot be reached, or is not as it must be; nothing is lost.
    """
    waiting = await outbox.take(size.entries, size.bytes)
    if not waiting:
        return 0
    ids = [one.record_id for one in waiting]
    try:
        records, refused = _read(waiting)
        if refused:
            await sink.quarantine(refused)
        written = await _write(sink, records)
    except BaseException:
        size.failed(len(waiting))
        with contextlib.suppress(StoreError):
            await outbox.release(ids)
        raise
    size.succeeded()
    held = set(written.held)
    await outbox.remove([record_id for record_id in ids if record_id not in held])
    counters.add("relayed", written.stored)
    counters.add("quarantined", written.quarantined + len(refused))
    counters.add("conflicts", written.conflicts)
    if held:
        # still claimed, so that what waits behind them comes first
        raise HeldError(written.why_held, len(waiting))
    return len(waiting)


async def relay_all(
    outbox: Outbox, sink: Sink, counters: Counters, size: BatchSize | None = None
) -> int:
    """Bring over all that waits now; returns how many records that was.

    Raises:
        StoreError: As for `relay_once`.
    """
    size = BatchSize(512, BATCH_BYTES) if size is None else size
    total, held = 0, None
    while True:
        try:
            taken = await relay_once(outbox, sink, counters, size)
        except HeldError as error:
            held, taken = error, error.taken
        if not taken:
            break
        total += taken
    if held is not None:
        raise held
    return total


async def _write(sink: Sink, records: Sequence[AuditRecord]) -> Written:
    try:
        return await sink.write(records)
    except (StoreError, asyncio.CancelledError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is
        # one record that no sink can take must not hold up the others for ever
        if len(records) == 1:
            log_limited(_logger, "poison", "A record of the outbox is put aside", error=error)
            text = msgspec.json.encode(records[0])
            await sink.quarantine([Refused(records[0].record_id, text, type(error).__name__)])
            return Written(stored=0, quarantined=1)
        middle = len(records) // 2
        first, second = await _write(sink, records[:middle]), await _write(sink, records[middle:])
        return Written(
            first.stored + second.stored,
            first.quarantined + second.quarantined,
            first.conflicts + second.conflicts,
            (*first.held, *second.held),
            first.why_held or second.why_held,
        )


def _read(waiting: Sequence[Waiting]) -> tuple[list[AuditRecord], list[Refused]]:
    records, refused = [], []
    for one in waiting:
        try:
            record = _decode(one.text)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            reason = f"the outbox holds no record ({type(error).__name__})"
            refused.append(Refused(one.record_id, one.text.encode("utf-8", "replace"), reason))
            continue
        if record.record_id == one.record_id:
            records.append(record)
        else:
            reason = "the outbox holds it under another id"
            refused.append(Refused(one.record_id, one.text.encode("utf-8", "replace"), reason))
    if refused:
        log_limited(
            _logger, "outbox", "%d entries of the outbox are no audit records; put aside",
            len(refused),
        )  # fmt: skip
    return records, refused


class Relay:
    """A thread that empties an outbox into a sink, for as long as the process lives.

    It starts when it is first needed, and again after a fork.
    """

    def __init__(
        self,
        make_outbox: Callable[[], Outbox],
        make_sink: Callable[[], Sink],
        counters: Counters,
        options: RelayOptions = RelayOptions(),
    ) -> None:
        """Name where from and where to; nothing is connected yet.

        Args:
            make_outbox: Makes the outbox, in the relay's thread.
            make_sink: Makes the sink, in the relay's thread.
            counters: Where everything is counted.
            options: Sizes and times.
        """
        self._make_outbox = make_outbox
        self._make_sink = make_sink
        self._counters = counters
        self._options = options
        self._reset()
        alive = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_anew(alive))

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._emptied = threading.Condition(self._lock)
        self._worker = Worker("otel-audit-relay", self._work)
        self._closing = False
        self._seen = OutboxState(0, 0.0)
        self._failing_since: float | None = None
        self._size = BatchSize(self._options.batch_size, self._options.batch_bytes)
        self._wanted = ""
        self._through = ""

    @property
    def depth(self) -> int:
        """Records that waited when the outbox was looked at last."""
        return self._seen.depth

    @property
    def oldest_age(self) -> float:
        """Seconds that the oldest of them has waited, or that relaying fails."""
        return max(self._seen.oldest_age, self.failing_for)

    @property
    def failing_for(self) -> float:
        """Seconds since the first of the tries that have been failing until now; else 0."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        """Start now: what others have left need not wait for this process's first record."""
        with self._lock:
            if not self._worker.alive and not self._closing:
                self._worker.start()

    @property
    def state(self) -> ThreadState:
        """How its thread does."""
        return ThreadState.of(self._worker)

    def ensure(self) -> None:
        """Replace the thread if it is gone. Never raises."""
        with self._lock:
            self._worker.ensure()

    def nudge(self) -> None:
        """Say that something waits. Costs next to nothing; never raises."""
        if not self._worker.alive:
            self.start()
        self._worker.rouse()

    def flush(self, timeout: float) -> bool:
        """Wait until what stands in the outbox now has left it.

        Args:
            timeout: Seconds to wait.

        Returns:
            Whether it has.
        """
        marker = uuid7()
        with self._emptied:
            self._wanted = max(self._wanted, marker)
        self.nudge()
        with self._emptied:
            return self._emptied.wait_for(lambda: self._through >= marker, timeout)

    def close(self, timeout: float) -> None:
        """End, after a last look at the outbox. What is left stays there. Never raises.

        Args:
            timeout: Seconds that the last look may take.
        """
        if not self._worker.started:
            return
        if not self.flush(timeout) and self.depth:
            _logger.warning(
                "About %d audit records wait in the outbox; another process, or "
                "`otel-audit relay`, delivers them", self.depth,
            )  # fmt: skip
        with self._lock:
            self._closing = True
        self._worker.end()
        self._worker.join(5.0)

    async def _work(self) -> None:
        outbox, sink = self._make_outbox(), self._make_sink()
        pause = self._options.first_pause
        try:
            while not self._closing:
                try:
                    await self._pass(outbox, sink)
                except Exception as error:  # noqa: BLE001 - the thread must outlive whatever it is
                    self._note_failure(error)
                    await self._look(outbox)
                    await self._rest(pause * generator.uniform(0.5, 1.0))  # spreads retries
                    pause = min(pause * 2, self._options.longest_pause)
                    continue
                pause = self._options.first_pause
                if self._failing_since is not None:
                    self._failing_since = None
                    _logger.warning("The audit outbox is relayed again")
                if self._wanted <= self._through:
                    await self._rest(self._options.interval)
                else:
                    # others have locked what is waited for
                    await asyncio.sleep(0.02)
        finally:
            await outbox.close()
            await sink.close()

    async def _pass(self, outbox: Outbox, sink: Sink) -> None:
        wanted = self._wanted
        held = None
        while not self._closing:
            try:
                if await relay_once(outbox, sink, self._counters, self._size) == 0:
                    break
            except HeldError as error:
                held = error
        self._seen = await outbox.state()
        if wanted > self._through and not await outbox.holds_earlier(wanted):
            with self._lock:
                self._through = wanted
                self._emptied.notify_all()
        if held is not None:
            raise held

    async def _look(self, outbox: Outbox) -> None:
        """See how much waits while the store is away, if the outbox itself can be seen."""
        with contextlib.suppress(StoreError):
            self._seen = await outbox.state()

    def _note_failure(self, error: Exception) -> None:
        self._counters.add("retries")
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if isinstance(error, StoreError):
            level = logging.WARNING if isinstance(error, StoreUnavailableError) else logging.ERROR
            log_limited(
                _logger, "relay", "Audit records wait in the outbox: %s", error, level=level
            )  # fmt: skip
        else:
            log_limited(_logger, "relay failure", "Relaying the outbox failed", error=error)

    async def _rest(self, pause: float) -> None:
        wake = self._worker.wake
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await wake.wait()
        wake.clear()


def publish_outbox(meter: Meter, relay: Relay) -> None:
    """Offer the outbox's depth and oldest age as OpenTelemetry metrics."""

    def depth(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(relay.depth)]

    def age(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(relay.oldest_age)]

    meter.create_observable_gauge("audit.outbox.depth", callbacks=[depth], unit="{record}")
    meter.create_observable_gauge("audit.outbox.oldest_age", callbacks=[age], unit="s")


def _begin_anew(alive: weakref.ref[Relay]) -> None:
    relay = alive()
    if relay is not None:
        relay._reset()  # noqa: SLF001 - its own module
