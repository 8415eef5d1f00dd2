"""OpenTelemetry metrics of retention: overdue months, holds, and the last verification."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import StoreError
from otel_audit_postgres.ledger import ledger_queries

_logger = logging.getLogger(__name__)

ASKED_EVERY: Final = 60.0
"""Seconds between two questions: the answers change by the day."""

_STATE: Final = (
    "SELECT lag, blocked, waiting, last_run, holds, archived_rows, archived_until, "
    "last_verification, problems FROM audit.retention_state()"
)


@dataclass(frozen=True, slots=True)
class RetentionState:
    """The state of retention.

    Attributes:
        lag: Seconds that the month longest due is overdue, if no hold keeps it; 0 if none is.
        blocked: Months and objects that were due at the last run, and stayed.
        waiting: Months that the last run began with and left for the next one.
        last_run: When retention ran last; None: never.
        holds: Legal holds that are not released.
        archived_rows: Rows of archived months.
        archived_until: The last month that was archived; None: none was.
        last_verification: When archives were verified last; None: never.
        problems: What that found; None: it never was.
    """

    lag: float
    blocked: int
    waiting: int
    last_run: datetime | None
    holds: int
    archived_rows: int
    archived_until: date | None
    last_verification: datetime | None
    problems: int | None


async def retention_state(dsn: str) -> RetentionState:
    """Read the state of retention.

    Args:
        dsn: The audit store, as its retention role, its sealer or a reader.

    Raises:
        StoreError: The store cannot be asked.
    """
    async with ledger_queries.opened(dsn, "ask about retention", asks=True) as connection:
        row = await connection.fetchrow(_STATE)
    assert row is not None  # noqa: S101 - a function without SETOF has a row
    return RetentionState(*row.values())


class RetentionWatch:
    """Reads the state periodically, so that collecting metrics needs no query."""

    def __init__(self, dsn: str, every: float = ASKED_EVERY) -> None:
        """Remember the store; nothing is read yet.

        Args:
            dsn: The audit store.
            every: Seconds between two reads.
        """
        self._dsn, self._every = dsn, every
        self.state: RetentionState | None = None

    async def refresh(self) -> None:
        """Read once. On failure it logs, and keeps the last state."""
        try:
            self.state = await retention_state(self._dsn)
        except StoreError as error:
            log_limited(_logger, "retention state", "Retention cannot be asked about: %s", error)
        except Exception as error:  # noqa: BLE001 - a defect, which must not end the watch
            log_limited(
                _logger, "retention defect", "Retention cannot be asked about", error=error
            )  # fmt: skip

    async def run(self) -> None:
        """Read periodically until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._every)


_Read = Callable[[RetentionState], float | None]

_GAUGES: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("audit.retention.lag", "s", lambda state: state.lag),
    ("audit.retention.blocked", "{month}", lambda state: state.blocked),
    ("audit.retention.waiting", "{month}", lambda state: state.waiting),
    ("audit.retention.last_run.age", "s", lambda state: _age(state.last_run)),
    ("audit.hold.active", "{hold}", lambda state: state.holds),
    ("audit.archive.rows", "{row}", lambda state: state.archived_rows),
    ("audit.archive.verification.age", "s", lambda state: _age(state.last_verification)),
    ("audit.archive.verification.problems", "{problem}", lambda state: state.problems),
)


def publish(meter: Meter, watch: RetentionWatch) -> None:
    """Register the metrics. Unknown values are not reported.

    Args:
        meter: Where to; a no-op meter where the process has no metrics.
        watch: Who asks.
    """
    for name, unit, read in _GAUGES:
        meter.create_observable_gauge(name, [_reader(read, watch)], unit=unit)


def _reader(
    read: _Read, watch: RetentionWatch
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        value = None if watch.state is None else read(watch.state)
        if value is not None:
            yield Observation(value)

    return observe


def _age(moment: datetime | None) -> float | None:
    return None if moment is None else max((datetime.now(UTC) - moment).total_seconds(), 0.0)


def as_json(state: RetentionState) -> dict[str, Any]:
    """The values for JSON."""
    return {name: getattr(state, name) for name in RetentionState.__dataclass_fields__}
