"""Reports on the trail itself: integrity, and retention."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

from otel_audit_postgres.reports import controls
from otel_audit_postgres.reports.found_evidence import Evidence, PeriodEvidence
from otel_audit_postgres.reports.model import Definition, ReportRow, in_batches
from otel_audit_postgres.reports.payload_parts import part
from otel_audit_postgres.reports.retention_policy import month_end, months, policy_in_force
from otel_audit_postgres.reports.snapshot import OF_THE_STORE, Snapshot, selected, utc_text

_NAMED: Final = 5
"""Streams with missing numbers that are named; the others are counted."""
_LAG: Final = """
SELECT max(extract(epoch FROM b.recorded_at - l.recorded_at)) AS lag
FROM audit.ledger_blocks b
JOIN audit.audit_logs l ON l.id = encode(substr(b.ids, 1, 16), 'hex')::uuid
WHERE b.first < $1 AND l.occurred_at >= $2 AND l.occurred_at < $3
"""
_LOSSES: Final = (
    "event_name IN ('audit.records.lost', 'audit.records.dropped', 'audit.chain.broken', "
    "'audit.spool.lost')"
)

_WHOLE_STORE_ONLY: Final = "not shown: counts the whole store"


@in_batches
async def _integrity(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    evidence = snapshot.evidence
    if evidence is None:
        return
    quarantined = await _quarantined(snapshot)
    losses = await _counted(snapshot, _LOSSES)
    guards = await _counted(snapshot, "event_name ~ '^audit[.](guard|partition|schema)[._]'")
    for one in evidence.parts:
        begin, end = one.begin, one.end
        gaps = await _gaps(snapshot, begin, end)
        lag = await _lag(snapshot, begin, end)
        key = f"{begin:%Y-%m}"
        yield (
            f"{utc_text(begin)} to {utc_text(end)}", one.records, one.records - one.odd,
            f"{snapshot.leaves}, root {snapshot.root}", evidence.signed, evidence.anchors,
            _verdict(evidence, one), gaps, _of_all(snapshot, losses[key]),
            _of_all(snapshot, quarantined[key]), one.unknown,
            lag, _of_all(snapshot, guards[key]),
        )  # fmt: skip


def _verdict(evidence: Evidence, month: PeriodEvidence) -> str:
    against = [*evidence.against, *month.problems]
    if against:
        return f"TAMPERED: {'; '.join(against)}"
    if evidence.is_collapsed:
        return "not known: the checkpoint is within leaves whose records were dropped since"
    malformed = (
        f"; {month.malformed} were inserted with columns that do not follow from their text"
        if month.malformed
        else ""
    )
    return (
        "holds: every record is as it was sealed, and the leaves make up the checkpoint's root"
        f"{malformed}"
    )


async def _lag(snapshot: Snapshot, begin: datetime, end: datetime) -> str | None:
    """The longest wait of a block's first record. Blocks have records of all tenants."""
    if snapshot.is_part:
        return _WHOLE_STORE_ONLY
    lag = await snapshot.connection.fetchval(_LAG, snapshot.size, begin, end)
    return None if lag is None else f"{float(lag):.1f} s"


def _of_all(snapshot: Snapshot, count: int) -> int | str:
    """A number of the whole store; a part of the store has none, which is not 0."""
    return _WHOLE_STORE_ONLY if snapshot.is_part else count


async def _gaps(snapshot: Snapshot, begin: datetime, end: datetime) -> str:
    if snapshot.is_part:
        return _WHOLE_STORE_ONLY
    asked = snapshot.asked()
    low, high = asked.bind(begin), asked.bind(end)
    numbered = selected(
        "producer_id, max(sequence_number) - min(sequence_number) + 1 "
        "- count(DISTINCT sequence_number) AS missing",
        asked,
        ("producer_id IS NOT NULL", "sequence_number BETWEEN 1 AND 9007199254740992",
         f"occurred_at >= {low}::timestamptz", f"occurred_at < {high}::timestamptz"),
        "GROUP BY producer_id, received_by",
    )  # fmt: skip
    sql = f"SELECT * FROM ({numbered}) AS n WHERE missing > 0 ORDER BY missing DESC, producer_id"  # noqa: S608
    found = await snapshot.connection.fetch(sql, *asked.values)
    if not found:
        return "none"
    named = ", ".join(f"{row['producer_id']}: {row['missing']}" for row in found[:_NAMED])
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{named}{more}"


async def _quarantined(snapshot: Snapshot) -> Counter[str]:
    found: Counter[str] = Counter()
    async for row, record in snapshot.records("event_name = 'audit.records.quarantined'"):
        hashes = part(record, "metadata", "content_hashes")
        count = len(hashes) if isinstance(hashes, list) else 1
        found[f"{row['occurred_at'].astimezone(UTC):%Y-%m}"] += count
    return found


async def _counted(snapshot: Snapshot, condition: str) -> Counter[str]:
    rows = snapshot.rows(
        "to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month, count(*) AS found",
        condition, tail="GROUP BY 1",
    )  # fmt: skip
    return Counter({row["month"]: row["found"] async for row in rows})


@in_batches
async def _disposal(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    hot = await _hot(snapshot)
    archived, dropped = await _gone(snapshot)
    holds = await _holds(snapshot)
    counted = [
        row["found"]
        async for row in snapshot.rows(
            "count(*) AS found",
            "event_name = 'audit.subject.erased'",
            OF_THE_STORE,
            in_period=False,
        )
    ]
    erasures = int(counted[0])
    policy, keep = await policy_in_force(snapshot)
    named = {f"{begin:%Y-%m}" for begin, _ in months(snapshot.options.begin, snapshot.options.end)}
    for month in sorted(named & (set(hot) | set(archived) | set(dropped))):
        for kind in sorted(hot.get(month, {}) or {"(dropped)": 0}):
            until = None if keep is None else month_end(month) + timedelta(days=keep)
            late = until is not None and until < snapshot.sealed_at and month not in dropped
            yield (
                month, kind,
                hot.get(month, {}).get(kind, dropped.get(month, archived.get(month, 0))),
                hot.get(month, {}).get(kind, 0), _of_all(snapshot, archived.get(month, 0)),
                _of_all(snapshot, dropped.get(month, 0)),
                "no policy says" if until is None else f"{until:%Y-%m-%d}",
                _of_all(snapshot, holds), _of_all(snapshot, erasures), policy,
                # whether a hold keeps it cannot be seen from a part of the store
                _WHOLE_STORE_ONLY if snapshot.is_part
                else "YES" if late and not holds else ("held" if late else "no"),
            )  # fmt: skip


async def _hot(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """Records in the store by month and class: the first word of the event's name."""
    found: dict[str, dict[str, int]] = {}
    async for row in snapshot.rows(
        "to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month, "
        "split_part(event_name, '.', 1) AS kind, count(*) AS found",
        tail="GROUP BY 1, 2",
    ):
        found.setdefault(row["month"], {})[row["kind"]] = row["found"]
    return found


async def _gone(snapshot: Snapshot) -> tuple[dict[str, int], dict[str, int]]:
    """Archived and dropped rows by month, from the records of these events."""
    archived: dict[str, int] = {}
    dropped: dict[str, int] = {}
    condition = "event_name IN ('audit.month.archived', 'audit.partition.retired')"
    async for row, record in snapshot.records(condition, OF_THE_STORE, in_period=False):
        rows = part(record, "metadata", "rows")
        count = rows if isinstance(rows, int) else 0
        if row["event_name"] == "audit.month.archived":
            archived[str(row["target_id"])] = count
        else:
            name = str(part(record, "metadata", "partition")).removeprefix("audit_logs_")
            dropped[name.replace("_", "-")] = count
    return archived, dropped


async def _holds(snapshot: Snapshot) -> int:
    """Holds in force, from the records of these events."""
    active: set[str] = set()
    condition = "event_name IN ('audit.hold.placed', 'audit.hold.released')"
    async for row, _ in snapshot.records(condition, OF_THE_STORE, in_period=False):
        if row["event_name"] == "audit.hold.placed":
            active.add(str(row["target_id"]))
        else:
            active.discard(str(row["target_id"]))
    return len(active)


STORE_REPORTS: Final = (
    Definition(
        name="integrity", title="Integrity of the trail",
        about="Whether every record of the period is as it was sealed, and what is missing, by "
        "month. Every record is hashed again and its columns compared with its text, the tree is "
        "built again from its leaves, and the anchors are asked.",
        columns=("period", "rows", "leaves", "checkpoint", "key", "anchors asked",
                 "verdict", "gaps by producer", "losses", "quarantined", "unknown outcomes",
                 "longest seal lag", "guards changed"),
        rows=_integrity, controls=controls.INTEGRITY,
        nothing="the period is empty", is_deep=True,
    ),
    Definition(
        name="disposal", title="Retention and disposal",
        about="What is kept, archived and dropped, by month and class.",
        columns=("month", "class", "rows", "hot", "archived", "dropped", "retain until", "holds",
                 "erasures", "policy version", "overdue"),
        rows=_disposal, controls=controls.DISPOSAL,
        nothing="no record is of this period, and no month of it was archived or dropped",
    ),
)  # fmt: skip
