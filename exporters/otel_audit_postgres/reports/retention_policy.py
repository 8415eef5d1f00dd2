"""The retention policy in force, from the records of its changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from otel_audit._util.months import next_month
from otel_audit_postgres.reports.payload_parts import part
from otel_audit_postgres.reports.snapshot import OF_THE_STORE, Snapshot


async def policy_in_force(snapshot: Snapshot) -> tuple[str, int | None]:
    """The policy in force: the record that set it, and the longest retention in days."""
    if snapshot.tenants is not None:
        return "not shown: counts the whole store", None
    found: tuple[str, int | None] = ("none was ever set", None)
    condition = f"event_name = 'audit.retention.changed' AND {OF_THE_STORE}"
    # a policy is not a tenant's, and no query asks for it
    async for row, record in snapshot.whole().records(condition, in_period=False):
        policy = part(record, "metadata", "policy")
        rules = part(policy, "rules")
        days = [part(policy, "floor"), *(_days(rule) for rule in rules if isinstance(rules, list))]
        longest = max((day for day in days if isinstance(day, int)), default=None)
        found = (f"record {row['id']}", longest)
    return found


def _days(rule: Any) -> int:
    return sum(day for day in (part(rule, "hot"), part(rule, "archive")) if isinstance(day, int))


def month_end(month: str) -> datetime:
    """The first moment after a month, such as ``2026-10``."""
    return next_month(datetime(int(month[:4]), int(month[5:]), 1, tzinfo=UTC))


def months(begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The parts of a period, cut where a month ends."""
    begin, end = begin.astimezone(UTC), end.astimezone(UTC)
    while begin < end:
        following = month_end(f"{begin:%Y-%m}")
        yield begin, min(following, end)
        begin = following
