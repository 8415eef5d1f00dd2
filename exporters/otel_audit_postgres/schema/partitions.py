"""Regular maintenance of a store: future partitions, and a check of the default partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit_postgres.connection import Connection, connect, disconnect
from otel_audit_postgres.errors import as_store_error

MOST_AHEAD: Final = 12
"""Months that are made at once: each is a table with its indexes."""
_IN_ORDER: Final = ("exists", "made", "dropped", "empty")

ENSURE_PARTITIONS: Final = "SELECT partition, state, detail FROM audit.ensure_partitions()"
_ENSURE_AHEAD: Final = "SELECT partition, state, detail FROM audit.ensure_partitions($1::integer)"
_ENSURE_MONTH: Final = "SELECT partition, state, detail FROM audit.ensure_month($1::date)"
_HAS_DEFAULT: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits
               WHERE inhparent = 'audit.audit_logs'::pg_catalog.regclass
                 AND inhrelid = pg_catalog.to_regclass('audit.audit_logs_default'))
"""
ATTACH_DEFAULT: Final = (
    "ALTER TABLE audit.audit_logs ATTACH PARTITION audit.audit_logs_default DEFAULT"
)
DEFAULT_DETACHED: Final = (
    "default partition: audit.audit_logs_default is missing, or detached from audit.audit_logs. "
    "Records of a wrong clock, or of a month without a partition, are not taken without it, and "
    f"what is in it is not in the trail: as the owner of schema audit, run {ATTACH_DEFAULT}"
)
_MONTHS: Final = "SELECT month, rows FROM audit.default_partition_months()"


@dataclass(frozen=True, slots=True)
class Partition:
    """The result for one month's partition.

    Attributes:
        name: The partition's name.
        state: ``exists``, ``made``, ``dropped`` (the month was retired), ``empty`` (there are no
            rows of a requested month), ``blocked`` (many rows of it are in the default
            partition) or ``busy`` (a lock could not be had; try again).
        detail: Why, where it was not made; what was moved into it, where it was.
    """

    name: str
    state: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """The result of `maintain`.

    Attributes:
        partitions: From last month to the last one ahead.
        in_default: Months (``2026-11``) of which rows are in the default partition, and how many.
            They are sealed and verified there as elsewhere. But their month cannot be retired
            before it has a partition of its own, and searches by time are slower.
        has_default: Whether the default partition is there and attached.

    Example::

        report = await maintain(dsn, ahead=3)
        assert report.has_default and not report.in_default
    """

    partitions: tuple[Partition, ...]
    in_default: dict[str, int]
    has_default: bool = True

    @property
    def ok(self) -> bool:
        """Whether every month has its partition, and what has none the default one."""
        return self.has_default and all(one.state in _IN_ORDER for one in self.partitions)


async def maintain(dsn: str, *, ahead: int = 2, months: Sequence[date] = ()) -> MaintenanceReport:
    """Make the partitions of last month, this month and the months ahead.

    Args:
        dsn: The audit store, as its writer, its retention role, or its owner.
        ahead: Months ahead, up to `MOST_AHEAD`.
        months: Others whose rows in the default partition are moved into one of their own,
            however many they are; needs the retention role, or the owner.

    Returns:
        What was found and done.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The schema is missing or too old, or the role lacks a right.

    Example::

        report = await maintain(dsn, ahead=3)
        print([partition.name for partition in report.partitions])
    """
    connection = await connect(dsn)
    try:
        with suppress_instrumentation():
            made = await connection.fetch(_ENSURE_AHEAD, min(ahead, MOST_AHEAD))
            for month in months:
                made += await connection.fetch(_ENSURE_MONTH, month)
            found = await connection.fetch(_MONTHS)
            attached = await has_default(connection)
    except Exception as error:  # noqa: BLE001 - each becomes one of ours
        raise as_store_error(error, "maintain the audit store") from None
    finally:
        await disconnect(connection)
    return MaintenanceReport(
        tuple(Partition(*row.values()) for row in made),
        {row["month"]: row["rows"] for row in found},
        attached,
    )


async def has_default(connection: Connection[Any]) -> bool:
    """Return whether the default partition is one of the trail's."""
    found: bool = await connection.fetchval(_HAS_DEFAULT)
    return found
