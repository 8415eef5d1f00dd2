"""Reports on the trail itself: whether it holds, and what is kept, archived and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.leaves import TAG, Block, grown
from otel_audit_postgres.ledger.merkle import HASH_SIZE, Frontier
from otel_audit_postgres.reports import controls
from otel_audit_postgres.reports.model import Definition, Row
from otel_audit_postgres.reports.payload_parts import part
from otel_audit_postgres.reports.policy import month_end, policy_in_force
from otel_audit_postgres.reports.snapshot import OF_THE_STORE, Snapshot, moment, selected

_US: Final = "(extract(epoch FROM recorded_at) * 1000000)::bigint"
_TAG: Final = (b"\x00" + TAG).hex()
_CHECKED: Final = f"""
WITH sealed AS MATERIALIZED (
    SELECT encode(substr(b.ids, (n * 16 + 1)::int, 16), 'hex')::uuid AS id,
           substr(b.hashes, (n * {HASH_SIZE} + 1)::int, {HASH_SIZE}) AS hash
    FROM audit.ledger_blocks b CROSS JOIN generate_series(0, octet_length(b.ids) / 16 - 1) AS n
    WHERE b.first + n < {{size}}
      AND b.highest >= audit.uuid_at({{low}}) AND b.lowest < audit.uuid_at({{high}})
), found AS (
    SELECT l.id, l.tenant_id, l.outcome, l.event_name, l.content_hash,
           sha256(convert_to(l.payload::text, 'UTF8')) <> l.content_hash AS is_altered,
           sha256('\\x{_TAG}'::bytea || uuid_send(l.id) || l.content_hash
                  || int8send({_US})) AS hash
    FROM ({{rows}}) AS l
)
SELECT count(*) AS rows, count(*) FILTER (WHERE f.is_altered) AS altered,
       count(*) FILTER (WHERE NOT EXISTS (
           SELECT FROM sealed s WHERE s.id = f.id AND s.hash = f.hash)) AS without_leaf,
       count(*) FILTER (WHERE f.outcome = 'unknown') AS unknown
FROM found f
"""  # noqa: S608 - constants, and values by number
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

_NOT_TOLD: Final = "not told: of the whole store only"


async def _integrity(snapshot: Snapshot) -> AsyncIterator[Row]:
    whole = snapshot.options
    tree = await _tree(snapshot)
    quarantined = await _quarantined(snapshot)
    losses = await _counted(snapshot, _LOSSES)
    guards = await _counted(snapshot, "event_name ~ '^audit[.](guard|partition|schema)[._]'")
    for begin, end in _months(whole.begin, whole.end):
        checked = await _checked_rows(snapshot, begin, end)
        gaps = await _gaps(snapshot, begin, end)
        lag = await snapshot.connection.fetchval(_LAG, snapshot.size, begin, end)
        key = f"{begin:%Y-%m}"
        yield (
            f"{moment(begin)} to {moment(end)}", checked["rows"],
            checked["rows"] - checked["without_leaf"],
            f"{snapshot.leaves}, root {snapshot.root}", _key(snapshot.note),
            "none: `otel-audit verify --anchor` asks them", _verdict(tree, checked), gaps,
            _of_all(snapshot, losses[key]), _of_all(snapshot, quarantined[key]), checked["unknown"],
            None if lag is None else f"{float(lag):.1f} s", _of_all(snapshot, guards[key]),
        )  # fmt: skip


def _of_all(snapshot: Snapshot, count: int) -> int | str:
    """A number that records of no tenant tell; what cannot be seen is not nothing."""
    return _NOT_TOLD if snapshot.is_part else count


def _verdict(tree: str, checked: Any) -> str:
    if checked["altered"] or checked["without_leaf"]:
        return (
            f"TAMPERED: {checked['altered']} rows have another text than their hash says, "
            f"{checked['without_leaf']} are not as they were sealed"
        )
    return tree


def _key(note: str) -> str:
    """Who signed the checkpoint, by the names on its lines."""
    names = [line.split(" ")[1] for line in note.splitlines() if line.startswith("— ")]
    return ", ".join(names) or "not signed"


async def _tree(snapshot: Snapshot) -> str:
    """Build the tree again from its leaves, and compare its root with the checkpoint's."""
    tree = Frontier()
    async for piece in store.pieces(snapshot.connection, 0, snapshot.size):
        if isinstance(piece, Block):
            if not piece.is_whole() or piece.first != tree.size:
                return "TAMPERED: the leaves have a hole"
            left = snapshot.size - piece.first
            tree = tree.extended(piece.leaf_hashes()[:left])
        else:
            tree = grown(tree, piece)
    if tree.size != snapshot.size or tree.root().hex() != snapshot.root:
        return "TAMPERED: the leaves do not make up the checkpoint's root"
    return "holds: every row is as it was sealed, and the leaves make up the checkpoint's root"


async def _checked_rows(snapshot: Snapshot, begin: datetime, end: datetime) -> Any:
    asked = snapshot.asked()
    low, high = asked.bind(begin), asked.bind(end)
    rows = selected(
        "*", asked, (f"occurred_at >= {low}::timestamptz", f"occurred_at < {high}::timestamptz")
    )
    # an id may tell another time than its record's: leaves from a day before to a day after
    sql = _CHECKED.format(
        size=int(snapshot.size), rows=rows,
        low=f"{asked.bind(begin - timedelta(days=1))}::timestamptz",
        high=f"{asked.bind(end + timedelta(days=1))}::timestamptz",
    )  # fmt: skip
    return await snapshot.connection.fetchrow(sql, *asked.values)


async def _gaps(snapshot: Snapshot, begin: datetime, end: datetime) -> str:
    if snapshot.is_part:
        return _NOT_TOLD
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
    named = ", ".join(f"{row['producer_id']}: {row['missing']}" for row in found[:5])
    more = f", and {len(found) - 5} more" if len(found) > 5 else ""  # noqa: PLR2004 - as above
    return f"{named}{more}"


async def _quarantined(snapshot: Snapshot) -> Counter[str]:
    found: Counter[str] = Counter()
    async for row, told in snapshot.records("event_name = 'audit.records.quarantined'"):
        hashes = part(told, "metadata", "content_hashes")
        count = len(hashes) if isinstance(hashes, list) else 1
        found[f"{row['occurred_at'].astimezone(UTC):%Y-%m}"] += count
    return found


async def _counted(snapshot: Snapshot, condition: str) -> Counter[str]:
    rows = snapshot.rows(
        "to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month, count(*) AS found",
        condition, tail="GROUP BY 1",
    )  # fmt: skip
    return Counter({row["month"]: row["found"] async for row in rows})


def _months(begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The parts of a period, cut where a month ends."""
    begin, end = begin.astimezone(UTC), end.astimezone(UTC)
    while begin < end:
        following = datetime(begin.year + begin.month // 12, begin.month % 12 + 1, 1, tzinfo=UTC)
        yield begin, min(following, end)
        begin = following


async def _disposal(snapshot: Snapshot) -> AsyncIterator[Row]:
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
    months = {
        f"{begin:%Y-%m}" for begin, _ in _months(snapshot.options.begin, snapshot.options.end)
    }
    for month in sorted(months & (set(hot) | set(archived) | set(dropped))):
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
                _NOT_TOLD if snapshot.is_part
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
    """What was archived and dropped, by month, as the trail tells."""
    archived: dict[str, int] = {}
    dropped: dict[str, int] = {}
    condition = "event_name IN ('audit.month.archived', 'audit.partition.retired')"
    async for row, told in snapshot.records(condition, OF_THE_STORE, in_period=False):
        rows = part(told, "metadata", "rows")
        count = rows if isinstance(rows, int) else 0
        if row["event_name"] == "audit.month.archived":
            archived[str(row["target_id"])] = count
        else:
            name = str(part(told, "metadata", "partition")).removeprefix("audit_logs_")
            dropped[name.replace("_", "-")] = count
    return archived, dropped


async def _holds(snapshot: Snapshot) -> int:
    """Holds that were placed and not released, as the trail tells."""
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
        "month. Every row is hashed again, and the tree is built again from its leaves.",
        columns=("period", "rows", "leaves", "checkpoint", "key", "anchors asked",
                 "verdict", "gaps by producer", "losses", "quarantined", "unknown outcomes",
                 "longest seal lag", "guards changed"),
        rows=_integrity, controls=controls.INTEGRITY,
        nothing="the period is empty",
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
