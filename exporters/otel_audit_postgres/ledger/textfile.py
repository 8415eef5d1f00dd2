"""Figures of the store, as a file for Prometheus' node exporter."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from otel_audit._util.durable_file import replace_durably
from otel_audit._util.months import next_month
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.query.gaps import find_gaps

_QUARANTINED: Final = "SELECT in_quarantine FROM audit.exceptional_rows()"
_PARTITIONS: Final = """
SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit.audit_logs'::regclass
"""
_READABLE: Final = 0o644
_MOST_MONTHS: Final = 24
"""Months that are looked for ahead: partitions are made for twelve at most."""


async def store_metrics(dsn: str, *, verified: bool) -> str:
    """Ask the store, and write what it says in the text format of Prometheus.

    Args:
        dsn: The audit store, as a role that may verify.
        verified: Whether the verification has just found nothing.

    Raises:
        StoreError: It cannot be asked.
    """
    async with ledger_queries.opened(dsn, "ask the audit store", asks=True) as connection:
        quarantined = await connection.fetchval(_QUARANTINED)
        partitions = {row["relname"] for row in await connection.fetch(_PARTITIONS)}
    streams = await find_gaps(dsn)
    missing = sum(one.missing_count for one in streams if one.is_first)
    values = (
        ("audit_verify_ok", "Whether the last verification found nothing.", int(verified)),
        ("audit_verify_timestamp_seconds", "When the last verification ended.", int(time.time())),
        ("audit_store_missing_numbers", "Numbers of producers that are not in the trail.", missing),
        ("audit_store_quarantined_records", "Records in quarantine.", quarantined),
        (
            "audit_store_partitions_ahead_seconds",
            "Time until a month begins that has no partition.",
            int(_ahead(partitions, datetime.now(UTC))),
        ),
    )
    return "".join(
        f"# HELP {name} {about}\n# TYPE {name} gauge\n{name} {value}\n"
        for name, about, value in values
    )


def write_textfile(path: Path, text: str) -> None:
    """Put the file in place at once: node exporter reads it at any moment.

    Raises:
        OSError: It cannot be written.
    """
    replace_durably(path, text.encode(), _READABLE)


def _ahead(partitions: set[str], now: datetime) -> float:
    """Seconds until the first month begins that has no partition; 0 where this one has none."""
    begin = datetime(now.year, now.month, 1, tzinfo=UTC)
    for _ in range(_MOST_MONTHS):
        if f"audit_logs_{begin:%Y_%m}" not in partitions:
            break
        begin = next_month(begin)
    return max((begin - now).total_seconds(), 0)
