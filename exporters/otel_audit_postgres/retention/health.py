"""Checks of retention's prerequisites: policy, archive and keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from otel_audit._util.check_result import CheckResult
from otel_audit.config import AuditConfig
from otel_audit.errors import OtelAuditError
from otel_audit_postgres.archive.objects import open_archive
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.personal.key_store import SERVER
from otel_audit_postgres.personal.protect import key_store_from
from otel_audit_postgres.retention.metrics import retention_state
from otel_audit_postgres.retention.plan import RetentionPlan, plan
from otel_audit_postgres.retention.policy import read_policy_file
from otel_audit_postgres.retention.subject import plan_replay

VERIFIED_WITHIN: Final = timedelta(days=45)
"""How old the last verification of archives may be: once a month, with some days to spare."""
LATE: Final = timedelta(days=3)
"""Days that a month may be due before the health check reports it."""
_LISTED: Final = 5
"""Events that the finding names; the others are counted."""
_MEND: Final = "fix it, and check again"


async def inspect_retention(config: AuditConfig, dsn: str) -> list[CheckResult]:
    """Check the retention settings; no checks if none is set.

    Args:
        config: The settings.
        dsn: The audit store.
    """
    found: list[CheckResult] = []
    if config.retention_file is not None:
        found += await _policy(config, dsn)
    if config.archive is not None:
        found += [_archive(config.archive), *await _verified(dsn)]
    if config.keys_dsn is not None:
        found.append(await _keys(config, dsn))
    return found


async def _policy(config: AuditConfig, dsn: str) -> list[CheckResult]:
    assert config.retention_file is not None  # noqa: S101 - asked before
    try:
        found = await plan(dsn, read_policy_file(config.retention_file))
    except OtelAuditError as error:
        return [CheckResult("retention policy", ok=False, detail=str(error), remedy=_MEND)]
    return [_covered(found), _on_time(found)]


def _covered(found: RetentionPlan) -> CheckResult:
    uncovered = sorted(
        {event for month in found.months for one in month.classes if one.says.hot is None
         for event in one.events}
    )  # fmt: skip
    if not uncovered:
        return CheckResult("retention policy", ok=True, detail="says how long every record stays")
    return CheckResult(
        "retention policy", ok=None, remedy="add a rule, or [default] with hot",
        detail=f"records of {', '.join(uncovered[:_LISTED])} stay in the database for ever: no hot"
        + (f", and of {len(uncovered) - _LISTED} more events" if len(uncovered) > _LISTED else ""),
    )  # fmt: skip


def _on_time(found: RetentionPlan) -> CheckResult:
    late = [
        month
        for month in found.months
        if month.first_day is not None and month.first_day + LATE < found.today
    ]
    if not late:
        return CheckResult("retention", ok=True, detail="no month is overdue")
    first = late[0]
    why = "; ".join(first.blocked_by) or "`otel-audit retention run` did not run"
    return CheckResult(
        "retention", ok=None, remedy="run it daily; see otel-audit retention plan",
        detail=f"{len(late)} months are overdue, {first.month:%Y-%m} first: {why}",
    )  # fmt: skip


def _archive(url: str) -> CheckResult:
    try:
        archive = open_archive(url)
        weakness = archive.weakness()
        objects = len(archive.list_keys())
    except OtelAuditError as error:
        return CheckResult("archive", ok=False, detail=str(error), remedy=_MEND)
    if weakness is not None:
        return CheckResult(
            "archive", ok=None, detail=f"{archive.name}: {weakness}",
            remedy="make a bucket with object lock",
        )  # fmt: skip
    return CheckResult("archive", ok=True, detail=f"{archive.name}: {objects} objects, under lock")


async def _verified(dsn: str) -> list[CheckResult]:
    name, remedy = "archive verification", "run `otel-audit archive verify --deep`, monthly"
    try:
        state = await retention_state(dsn)
    except OtelAuditError as error:
        return [CheckResult(name, ok=None, detail=str(error))]
    if not state.archived_rows:
        return []
    if state.last_verification is None:
        return [CheckResult(name, ok=None, detail="archives were never verified", remedy=remedy)]
    detail = f"{state.last_verification:%Y-%m-%d}: {state.problems} problems"
    if state.problems:
        return [
            CheckResult(name, ok=False, detail=detail, remedy="run it again, and see what it names")
        ]
    is_old = datetime.now(UTC) - state.last_verification > VERIFIED_WITHIN
    return [CheckResult(name, ok=None if is_old else True, detail=detail, remedy=remedy)]


async def _keys(config: AuditConfig, dsn: str) -> CheckResult:
    try:
        keys = key_store_from(config)
        assert keys is not None  # noqa: S101 - asked before
        try:
            await keys.check()
            is_same_server = await keys.server() == await _server(dsn)
            _, back = await plan_replay(dsn, keys)
        finally:
            await keys.close()
    except OtelAuditError as error:
        return CheckResult("keys", ok=False, detail=str(error), remedy=_MEND)
    if back:
        return CheckResult(
            "keys", ok=False,
            detail=f"{back} keys are there that were destroyed: an older copy of the database of "
            "keys was restored, and erased values can be read again",
            remedy="otel-audit subject replay",
        )  # fmt: skip
    if is_same_server:
        return CheckResult(
            "keys", ok=None,
            detail="the database of keys is on the same server as the trail: a copy of the server, "
            "or its administrator, has both",
            remedy="put it on another server; keep the key-encryption key elsewhere in any case",
        )  # fmt: skip
    return CheckResult("keys", ok=True, detail="personal values are encrypted, keys are elsewhere")


async def _server(dsn: str) -> str:
    async with ledger_queries.opened(dsn, "inspect the keys", asks=True) as connection:
        found: str = await connection.fetchval(SERVER)
    return found
