"""One stream: reads sealed records, sends them, and moves its position once acknowledged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from opentelemetry.instrumentation.utils import suppress_instrumentation
from otel_audit_postgres import stream_positions
from otel_audit_postgres.connection import ANSWER, Connection
from otel_audit_postgres.ledger.sealed_rows import (
    SealedPage,
    SealedRow,
    leaf_hash_at,
    read_page,
)
from otel_audit_postgres.pseudonyms import MARK, without_ciphertexts
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.queries import opened

from otel_audit._util.aio import unless_stopped, wait_at_most
from otel_audit._util.backoff import Backoff
from otel_audit._util.printable import visible
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.shapes import Shape, UnshapeableError, read_event
from otel_audit.streams.destination import (
    Delivered,
    Destination,
    DestinationError,
    Encoded,
    Outgoing,
)
from otel_audit.streams.local_position import LocalPosition, SentPosition

_logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.2, longest=30.0)
"""Seconds between two tries; the longest is short, because a receiver that is back shall be used
soon."""
_RECORD_EVERY: Final = 60.0
"""Seconds between two records by one process that it sends with settings of its own."""

_TIME_TO_STOP: Final = 5.0
"""Seconds to finish a page after it was stopped; what is cut off then is sent again. A service
manager kills after 10 s or more."""

_AT_A_TIME: Final = 32
"""Events that are made ready before the event loop has a turn."""


class Revealer(Protocol):
    """Decrypts personal values."""

    async def reveal(self, payload: str) -> str:
        """Return a payload with its personal values decrypted."""

    async def close(self) -> None:
        """Close connections. Never raises."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The configuration of a stream.

    Attributes:
        name: Its name.
        settings: What the store remembers of its settings.
        destination: Where it goes.
        shape: What an event looks like there.
        query: Which records go there.
        batch: Leaves that are read at a time.
        start: The first leaf of a new stream; None: what is sealed from now on.
        revealer: Decrypts personal values; None: they go as pseudonyms.
    """

    name: str
    settings: Mapping[str, Any]
    destination: Destination
    shape: Shape
    query: Query
    batch: int
    start: int | None = None
    revealer: Revealer | None = None


@dataclass(slots=True)
class _Batch:
    """A page of events, encoded for the destination."""

    page: SealedPage
    turn: int
    outgoing: list[Encoded] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class StreamProgress:
    """A stream's figures for metrics. Counters start with the process.

    Attributes:
        sent: Events that were acknowledged.
        parked: Events that were refused.
        failures: Times that the destination or the store did not take or give anything.
        next_leaf: The position.
        size: Leaves in the log.
        lag: Seconds since the oldest leaf that is not sent was sealed; while it fails, at least
            those since it last did not.
        altered: Rows that were not what was sealed.
        state: ``starting``, ``sending``, ``waiting``, ``standby``, ``paused``, ``failing``,
            ``refused``.
        failure: Why, where it fails.
    """

    sent: int = 0
    parked: int = 0
    failures: int = 0
    next_leaf: int = 0
    size: int = 0
    lag: float = 0.0
    altered: int = 0
    state: str = "starting"
    failure: str | None = None


class HeldElsewhereError(StoreError):
    """Another process holds this stream's lock."""


class Stream:
    """Sends one stream until `run` is stopped.

    While events are on their way, one transaction has a row of ``audit.stream_locks`` locked, so
    that one of several processes sends. If a process is killed, its lock ends. A process that finds
    nothing to send locks nothing. The position moves only after the destination has acknowledged:
    what is cut off in between is sent again.
    """

    def __init__(
        self, dsn: str, plan: StreamPlan, local_position: LocalPosition, *, interval: float = 1.0
    ) -> None:
        """Open nothing yet.

        Args:
            dsn: The store, as a role of otel_audit_streamer that reads.
            plan: What is to be done.
            local_position: What was sent, outside the store.
            interval: Seconds between looks for what is new.
        """
        self._dsn = dsn
        self._plan = plan
        self._local_position = local_position
        self._interval = interval
        self._ahead: _Batch | None = None
        self._next_record = 0.0
        self._pauses = _BACKOFF.pauses()
        self._answered = time.monotonic()
        self.progress = StreamProgress()

    @property
    def name(self) -> str:
        """Its name."""
        return self._plan.name

    async def run(self, stop: asyncio.Event) -> None:
        """Send until stopped; retry temporary errors.

        Raises:
            StoreError: The position does not fit the log, or the role lacks a right.
        """
        self._pauses = _BACKOFF.pauses()
        while not stop.is_set():
            try:
                with suppress_instrumentation():
                    await unless_stopped(self._steps(stop), stop, _TIME_TO_STOP)
            except (StoreUnavailableError, DestinationError) as error:
                self._note_failure(error)
                await wait_at_most(stop, max(next(self._pauses), error.retry_after or 0.0))
            except StoreError as error:
                self._is("refused", str(error))
                raise
            except Exception as error:  # noqa: BLE001 - it holds up no other stream; nothing moved
                self._note_failure(error, is_ours=True)
                await wait_at_most(stop, next(self._pauses))

    async def _steps(self, stop: asyncio.Event) -> None:
        """Send over one connection until stopped."""
        async with opened(self._dsn, ANSWER) as connection:
            await stream_positions.refuse_others(connection)
            await stream_positions.open_stream(
                connection, self.name, self._plan.settings, self._plan.start
            )
            while not stop.is_set():
                is_more = await self._step_or_stand_by(connection)
                self._pauses = _BACKOFF.pauses()
                self._answered = time.monotonic()
                if not is_more:
                    await wait_at_most(stop, self._interval)

    async def run_once(self) -> None:
        """Send the records that are sealed now, and return.

        Raises:
            HeldElsewhereError: Another process sends it.
            DestinationError: The destination takes nothing.
            StoreError: As for `run`.
        """
        with suppress_instrumentation():
            async with opened(self._dsn, ANSWER) as connection:
                await stream_positions.refuse_others(connection)
                await stream_positions.open_stream(
                    connection, self.name, self._plan.settings, self._plan.start
                )
                while await self._step(connection):
                    pass

    async def close(self) -> None:
        """Close the destination and the revealer."""
        await self._plan.destination.close()
        if self._plan.revealer is not None:
            await self._plan.revealer.close()

    async def _step_or_stand_by(self, connection: Connection[Any]) -> bool:
        # on the same connection: to open the stream again would record each standby's settings
        try:
            return await self._step(connection)
        except HeldElsewhereError:
            self._is("standby")
            return False

    async def _step(self, connection: Connection[Any]) -> bool:
        """Send one page, if there is one. Returns whether more may follow."""
        async with connection.transaction():
            at = await stream_positions.position(connection, self.name)
            sealed = await stream_positions.check_position(connection, at)
            await self._compare_local_position(connection, at, sealed.size)
            self.progress.next_leaf, self.progress.size = at.next_leaf, sealed.size
            if at.is_paused:
                self._is("paused")
                return False
            if at.next_leaf >= sealed.size:
                # the lock is a write: a look that finds nothing makes none
                self._is("waiting")
                return False
            held = await stream_positions.hold(connection, self.name)
            if held is None:
                raise HeldElsewhereError(f"stream {self.name}: another process sends it")
            if held != at:
                # another process moved it, or it was paused, since it was looked at
                return True
            if held.settings != self._plan.settings:
                await self._record_settings()
            self.progress.lag = await stream_positions.waiting_for(connection, at.next_leaf, sealed)
            batch, self._ahead = self._ahead, None
            if batch is None or (batch.page.first, batch.turn) != (at.next_leaf, at.turn):
                batch = await self._prepare(connection, at.next_leaf, at.turn)
            if batch.page.next == at.next_leaf:
                self._is("waiting")
                return False
            stopped = await self._send(connection, at, batch)
        if stopped is not None:
            raise stopped
        return True

    async def _record_settings(self) -> None:
        """Say under which settings it goes on from here: others were recorded since it was opened.

        Two processes with different settings send in turn. Each says so now and then, not with each
        batch: what is recorded is sealed, and is a batch itself.
        """
        now = time.monotonic()
        if now < self._next_record:
            return
        # on a connection of its own: the record stands before the first event goes out, and the
        # stream's row is not locked for as long as the destination takes
        async with opened(self._dsn, ANSWER) as connection:
            await stream_positions.open_stream(
                connection, self.name, self._plan.settings, self._plan.start
            )
        self._next_record = now + _RECORD_EVERY
        log_limited(
            _logger, f"settings {self.name}", "Stream %s: another process has opened it with other "
            "settings; this one sends with its own, which is recorded", self.name,
            level=logging.WARNING,
        )  # fmt: skip

    async def _prepare(self, connection: Connection[Any], start: int, turn: int) -> _Batch:
        page = await read_page(connection, start, limit=self._plan.batch, query=self._plan.query)
        batch = _Batch(page, turn)
        for place, row in enumerate(page.rows):
            if place % _AT_A_TIME == 0:
                # what is on its way, and other streams, have a turn
                await asyncio.sleep(0)
            try:
                batch.outgoing.append(await self._encoded(row, page.horizon.origin))
            except UnshapeableError as error:
                batch.refused[row.leaf] = str(error)
        return batch

    async def _deliver(
        self, connection: Connection[Any], at: stream_positions.StreamPosition, batch: _Batch
    ) -> Delivered:
        """Send a batch, and read the next one meanwhile."""
        sending = asyncio.ensure_future(self._plan.destination.send(batch.outgoing))
        try:
            if not batch.page.is_last:
                # the request goes out first
                await asyncio.sleep(0)
                self._ahead = await self._prepare(connection, batch.page.next, at.turn)
            return await sending
        finally:
            # where reading fails: what is on its way is neither given up nor left behind
            if not sending.done():
                await asyncio.wait([sending])

    async def _send(
        self, connection: Connection[Any], at: stream_positions.StreamPosition, batch: _Batch
    ) -> DestinationError | None:
        page, outgoing, refused = batch.page, batch.outgoing, batch.refused
        done, stopped = len(outgoing), None
        if outgoing:
            delivered = await self._deliver(connection, at, batch)
            done, stopped = delivered.done, delivered.stopped
            refused |= self._stored_reasons(delivered.refused)
        # what is settled is acknowledged, also where the rest of the page is not
        next_leaf = page.next if done == len(outgoing) else outgoing[done].leaf
        refused = {leaf: why for leaf, why in refused.items() if leaf < next_leaf}
        if next_leaf > at.next_leaf:
            await self._advance(connection, at, page, next_leaf, refused)
        return stopped

    def _stored_reasons(self, refused: Mapping[int, str]) -> Mapping[int, str]:
        """The reasons to store, without the destination's words if these can repeat a value.

        A reason stays for ever, and no key is destroyed for what stands in it.
        """
        if self._plan.revealer is None:
            return refused
        return {leaf: why.partition(":")[0] for leaf, why in refused.items()}

    async def _advance(
        self,
        connection: Connection[Any],
        at: stream_positions.StreamPosition,
        page: SealedPage,
        next_leaf: int,
        refused: Mapping[int, str],
    ) -> None:
        by_leaf = {row.leaf: row for row in page.rows}
        leaf_hash = (
            by_leaf[next_leaf - 1].leaf_hash
            if next_leaf - 1 in by_leaf
            else await leaf_hash_at(connection, next_leaf - 1)
        )
        parked = [
            stream_positions.Refusal(leaf, by_leaf[leaf].id, why) for leaf, why in refused.items()
        ]
        sent = sum(leaf < next_leaf for leaf in by_leaf) - len(parked)
        await stream_positions.advance(
            connection, at, next_leaf, leaf_hash, page.horizon.origin, sent, parked
        )
        self.progress.sent += sent
        self.progress.parked += len(parked)
        self.progress.next_leaf = next_leaf
        if next_leaf >= page.horizon.size:
            self.progress.lag = 0.0
        self._is("sending")
        for one in parked:
            log_limited(
                _logger, f"parked {self.name}", "Stream %s: leaf %d, record %s is parked, as it is "
                "refused: %s; `otel-audit stream parked %s` lists what is", self.name, one.leaf,
                one.id, visible(one.reason), self.name,
            )  # fmt: skip
        self._local_position.write(
            SentPosition(at.turn, next_leaf, leaf_hash.hex() if leaf_hash else "")
        )

    async def _encoded(self, row: SealedRow, log: str) -> Encoded:
        if not row.is_as_sealed:
            self.progress.altered += 1
            log_limited(
                _logger, f"altered {self.name}", "Stream %s: leaf %d, record %s is not what was "
                "sealed: it is sent as it is now; run `otel-audit verify`", self.name, row.leaf,
                row.id, level=logging.CRITICAL,
            )  # fmt: skip
        if self._plan.revealer is None:
            payload = without_ciphertexts(row.payload)
        elif MARK in row.payload:
            payload = await self._plan.revealer.reveal(row.payload)
        else:
            payload = row.payload
        event = read_event(
            payload, leaf=row.leaf, log=log, content_hash=row.content_hash,
            is_as_sealed=row.is_as_sealed,
            recorded_ns=row.recorded_us * 1000 if row.recorded_us >= 0 else None,
        )  # fmt: skip
        try:
            outgoing = Outgoing(
                row.leaf, row.id, self._plan.shape(event), row.tenant_id, row.content_hash.hex(),
                event.name, event.time_ns, event.is_failure,
            )  # fmt: skip
            return Encoded(row.leaf, row.id, self._plan.destination.encode(outgoing, log))
        except UnshapeableError:
            raise
        except Exception as error:
            # one record that a shape did not foresee holds up no other: it is parked, and counted
            raise UnshapeableError(f"it has no such shape ({type(error).__name__})") from error

    async def _compare_local_position(
        self, connection: Connection[Any], at: stream_positions.StreamPosition, size: int
    ) -> None:
        """Compare with the local file. If it is ahead, the store was restored from a backup."""
        sent = self._local_position.read()
        if sent is None or sent.turn != at.turn or sent.next_leaf <= at.next_leaf:
            return
        if sent.next_leaf > size:
            raise stream_positions.PositionError(
                stream_positions.ahead(self.name, sent.next_leaf, size)
            )
        if sent.leaf_hash:
            await stream_positions.check_leaf(
                connection, self.name, sent.next_leaf, bytes.fromhex(sent.leaf_hash)
            )

    def _is(self, state: str, failure: str | None = None) -> None:
        if state != self.progress.state and state in {"standby", "paused", "sending"}:
            _logger.info("Stream %s: %s, at leaf %d", self.name, state, self.progress.next_leaf)
        self.progress.state, self.progress.failure = state, failure
        if state == "waiting":
            self.progress.lag = 0.0

    def _note_failure(self, error: Exception, *, is_ours: bool = False) -> None:
        reason = f"a fault of otel-audit ({type(error).__name__})" if is_ours else str(error)
        self.progress.failures += 1
        # the store may not say how long its leaves wait: then it is as long as nothing is sent
        self.progress.lag = max(self.progress.lag, time.monotonic() - self._answered)
        self._is("failing", reason)
        log_limited(
            _logger, f"failing {self.name}", "Stream %s: %s; nothing is lost, it is tried again "
            "from leaf %d on", self.name, visible(reason), self.progress.next_leaf,
            error=error if is_ours else None,
        )  # fmt: skip
