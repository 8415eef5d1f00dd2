"""Brings to the store what the application's own transactions have left in its outbox.

A thread of its own with an event loop of its own, so that a store that is away holds up nothing
else. There is no leader: every process of every host may run one, and `otel-audit relay` another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_audit._util.backoff import FIRST_PAUSE, LONGEST_PAUSE, Backoff
from otel_audit._util.fork import renew_in_child
from otel_audit._util.ids import uuid7
from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused, Sink
from otel_audit.delivery.writer import LAST_GRACE, Messages, OwnsWriter, Writer, write_batch
from otel_audit.errors import StoreError
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

BATCH_BYTES: Final = 1_000_000
"""Bytes of records in one write, or one record."""

_MESSAGES: Final = Messages(
    waiting="Audit records wait in the outbox",
    failed="Relaying the outbox failed",
    again="The audit outbox is relayed again",
)

_decode = msgspec.json.Decoder(AuditRecord).decode


class Waiting(NamedTuple):
    """A record that waits: its id, and its JSON text."""

    record_id: str
    text: str


class OutboxState(NamedTuple):
    """The number of waiting records (counted up to a bound), and the oldest one's age (seconds)."""

    depth: int
    oldest_age: float


class Outbox(Protocol):
    """The table of records from the application's transactions. Used from one event loop only."""

    async def take(self, most: int, most_bytes: int) -> Sequence[Waiting]:
        """Claim the earliest records, so many of them and of their bytes, or one."""

    async def remove(self, record_ids: Collection[str]) -> None:
        """Delete records that were taken."""

    async def release(self, record_ids: Collection[str]) -> None:
        """Give claimed records back, so that others may claim them."""

    async def state(self) -> OutboxState:
        """Say how much waits, and how long."""

    async def holds_earlier(self, record_id: str) -> bool:
        """Return whether a record waits whose id is not greater."""

    async def check(self) -> None:
        """See whether records can be taken; raises `StoreError` where they cannot."""

    async def close(self) -> None:
        """Give back connections. Never raises."""


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Options of the relay; times in seconds.

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
    first_pause: float = FIRST_PAUSE
    longest_pause: float = LONGEST_PAUSE


class PostponedError(StoreError):
    """The store refuses sound records for a reason of its own: they stay in the outbox.

    Attributes:
        taken: How many records were looked at.
    """

    def __init__(self, why: str, taken: int) -> None:
        """Make the error.

        Args:
            why: The store's reason.
            taken: How many records were looked at.
        """
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
        PostponedError: Some of them stay, and are left alone for a while.
        StoreError: One of the two cannot be reached, or is not as it must be; nothing is lost.
    """
    waiting = await outbox.take(size.entries, size.bytes)
    if not waiting:
        return 0
    ids = [one.record_id for one in waiting]
    try:
        records, refused = _read(waiting)
        # one record that no sink can take must not hold up the others for ever
        written = await write_batch(
            sink, [*refused, *records], counters, bad="quarantine", stored_as="relayed"
        )
    except BaseException:
        size.failed(len(waiting))
        with contextlib.suppress(StoreError):
            await outbox.release(ids)
        raise
    size.succeeded()
    postponed = set(written.postponed)
    await outbox.remove([record_id for record_id in ids if record_id not in postponed])
    if postponed:
        # still claimed, so that what waits behind them comes first
        raise PostponedError(written.why_postponed, len(waiting))
    return len(waiting)


async def relay_all(
    outbox: Outbox, sink: Sink, counters: Counters, size: BatchSize | None = None
) -> int:
    """Bring over all that waits now; returns how many records that was.

    Raises:
        StoreError: As for `relay_once`.
    """
    size = BatchSize(512, BATCH_BYTES) if size is None else size
    total, postponed = 0, None
    while True:
        try:
            taken = await relay_once(outbox, sink, counters, size)
        except PostponedError as error:
            postponed, taken = error, error.taken
        if not taken:
            break
        total += taken
    if postponed is not None:
        raise postponed
    return total


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
            _logger, "outbox", "%d entries of the outbox are not audit records; quarantined",
            len(refused),
        )  # fmt: skip
    return records, refused


class Relay(OwnsWriter):
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
        """Remember the outbox and the sink; neither is connected yet.

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
        renew_in_child(self, Relay._reset)

    def _reset(self) -> None:
        self._lock = own_lock()
        self._emptied = threading.Condition(self._lock)
        backoff = Backoff(self._options.first_pause, self._options.longest_pause)
        self._writer = Writer("otel-audit-relay", self._work, self._counters, backoff, _MESSAGES)
        self._seen = OutboxState(0, 0.0)
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
        return self._writer.failing_for

    def start(self) -> None:
        """Start now: what others have left need not wait for this process's first record."""
        with self._lock:
            self._writer.start()

    def nudge(self) -> None:
        """Say that something waits. Costs next to nothing; never raises."""
        if not self._writer.alive:
            self.start()
        self._writer.rouse()

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
        if not self._writer.started:
            return
        if not self.flush(timeout) and self.depth:
            _logger.warning(
                "About %d audit records wait in the outbox; another process, or "
                "`otel-audit relay`, delivers them", self.depth,
            )  # fmt: skip
        with self._lock:
            self._writer.end()
        self._writer.join(LAST_GRACE)

    async def _work(self) -> None:
        outbox, sink = self._make_outbox(), self._make_sink()
        try:
            while await self._writer.persist(lambda: self._pass(outbox, sink)):
                if self._wanted <= self._through:
                    await self._writer.wait(self._options.interval)
                    self._writer.forget_rousing()
                else:
                    # others have locked what is waited for
                    await asyncio.sleep(0.02)
        finally:
            await outbox.close()
            await sink.close()

    async def _pass(self, outbox: Outbox, sink: Sink) -> bool:
        """Bring over all that can be; always True: the writer takes None for its end."""
        wanted = self._wanted
        postponed = None
        try:
            while not self._writer.ending:
                try:
                    if await relay_once(outbox, sink, self._counters, self._size) == 0:
                        break
                except PostponedError as error:
                    postponed = error
        except Exception:
            # how much waits shows also while the store is away, if the outbox can be seen
            with contextlib.suppress(StoreError):
                self._seen = await outbox.state()
            raise
        self._seen = await outbox.state()
        is_through = wanted > self._through and not await outbox.holds_earlier(wanted)
        if postponed is None:
            # before anybody is told that nothing waits: they may ask next whether relaying fails
            self._writer.note_success()
        if is_through:
            with self._lock:
                self._through = wanted
                self._emptied.notify_all()
        if postponed is not None:
            raise postponed
        return True


def publish_outbox(meter: Meter, relay: Relay) -> None:
    """Offer the outbox's depth and oldest age as OpenTelemetry metrics."""

    def depth(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(relay.depth)]

    def age(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(relay.oldest_age)]

    meter.create_observable_gauge("audit.outbox.depth", callbacks=[depth], unit="{record}")
    meter.create_observable_gauge("audit.outbox.oldest_age", callbacks=[age], unit="s")
