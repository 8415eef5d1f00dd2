"""The evidence of a report: its period's records, compared with the ledger.

The leaves lead to the checkpoint's root, and the records to the leaves. Millions of both are
compared by sums: of each leaf a keyed hash, with a key that nobody has before the comparison, so
that no other records can be found that have the same sum. Only where the sums differ, each record
is looked up. Where the report asks for it, each text is hashed again, too, and compared with the
columns.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from otel_audit.config import AuditConfig
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.anchors import Anchor, anchors_from
from otel_audit_postgres.ledger.checkpoints import (
    Checkpoint,
    NoteError,
    read_checkpoint,
    read_note,
)
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import ID_SIZE, Block, grown
from otel_audit_postgres.ledger.settings import chosen_public_keys
from otel_audit_postgres.ledger.verify.anchored import AnchorReadings, read_anchors
from otel_audit_postgres.ledger.verify.findings import Findings
from otel_audit_postgres.ledger.verify.retired import recorded_prunings
from otel_audit_postgres.ledger.verify.row_pass import RowSelection, check_rows
from otel_audit_postgres.ledger.verify.tree_pass import BlockRange, TreePassState
from otel_audit_postgres.ledger.verify.verify import judge_readings
from otel_audit_postgres.pseudonyms import MARK, SEARCHABLE_LENGTH
from otel_audit_postgres.query.conditions import READABLE, Conditions
from otel_audit_postgres.query.pagination import ID_TIME_DIFFERS, lowest_id
from otel_audit_postgres.reports.found_evidence import NO_ANCHOR, Evidence, PeriodEvidence
from otel_audit_postgres.reports.snapshot import LEAF, LEAVES, Snapshot, selected
from otel_audit_postgres.rows import ADDED_IN, versions_with

_SLACK: Final = timedelta(seconds=2)
"""A record's id is that far from its time at most; those that are further have their own index."""
_NAMED: Final = 3
"""Ids that a problem lists."""
_MOST_SUSPECTS: Final = 10_000
"""Records that are judged one by one; beyond these the report says that there are more."""
_PAUSES_AFTER: Final = 500
"""Leaves after whose hashing the event loop has a turn."""
_SUM_DIGITS: Final = 15  # of hex: as many as a bigint holds
_KEY_SIZE: Final = 16  # bytes: with a leaf hash behind it, that is one block of SHA-256
_KINDS: Final = {
    "changed": "records are not as they were sealed",
    "inserted": "records were never sealed, and do not wait for it",
    "gone": "sealed records are gone",
}


def _searchable(value: str) -> str:
    """SQL for the searchable beginning of an encrypted value."""
    return (
        f"CASE WHEN starts_with({value}, '{MARK}') THEN left({value}, {SEARCHABLE_LENGTH}) "
        f"ELSE {value} END"
    )


NOT_COMPARED: Final = frozenset({
    "id", "duration_ms", "entities", "content_hash", "received_hash", "payload",
})  # fmt: skip
"""Columns that the verification alone derives from a payload, or that are compared otherwise."""
EXPECTED: Final = {
    "event_name": "p.event_name",
    "action": "p.action",
    "action_id": "p.action_id",
    "phase": "p.phase",
    "schema_version": "p.schema_version",
    "trace_id": "p.trace_id",
    "span_id": "p.span_id",
    "error_type": "p.error ->> 'type'",
    "service_name": "p.resource ->> 'service.name'",
    "outcome": "p.outcome",
    "transaction_outcome": "p.transaction",
    "tenant_id": "coalesce(p.tenant ->> 'id', '')",
    "actor_id": "a.id",
    "actor_type": "a.type",
    "actor_role": "a.role",
    "target_type": "p.target ->> 'type'",
    "target_id": "p.target ->> 'id'",
    "source_address": _searchable("p.source ->> 'address'"),
    "user_agent": _searchable("p.source ->> 'user_agent'"),
    "session_id": _searchable("p.source ->> 'session_id'"),
    "url_path": _searchable("q.path"),
    "http_method": "q.method",
    "http_route": "q.route",
    "request_id": "q.id",
    "producer_id": "p.producer_id",
    "received_by": "p.received ->> 'by'",
    "status_code": "p.response ->> 'status_code'",
    "sequence_number": "p.sequence_number",
    "occurred_at": "left(p.occurred_at, -3)",
}
"""Each other column by the payload, in SQL."""
_AS_TEXT: Final = {
    "status_code": "l.status_code::text",
    "sequence_number": "l.sequence_number::text",
    "occurred_at": (
        "CASE WHEN isfinite(l.occurred_at) THEN (extract(epoch FROM l.occurred_at) * 1000000)"
        "::bigint END::text"
    ),
}


def _differs(column: str, expected: str) -> str:
    differs = f"{_AS_TEXT.get(column, f'l.{column}')} IS DISTINCT FROM {expected}"
    if column not in ADDED_IN:
        return differs
    # a row of an earlier version has NULL there, whatever its payload holds
    versions = ", ".join(f"'{version}'" for version in versions_with(column))
    return f"({differs} AND (l.{column} IS NOT NULL OR p.schema_version IN ({versions})))"


# it reads what seems to differ; the verification judges
_OTHERWISE: Final = " OR ".join(_differs(name, expected) for name, expected in EXPECTED.items())
_HASHED_OTHERWISE: Final = "sha256(convert_to(l.payload::text, 'UTF8')) <> l.content_hash"
_LEGIBLE: Final = (
    f"({READABLE.replace('payload', 'l.payload')}) AND json_typeof(l.payload) = 'object'"
)
# of a text that cannot be read there is no event's name, which each row has
_ALTERED: Final = f"{_HASHED_OTHERWISE} OR {_OTHERWISE}"
# joined, as the server takes several processes to a join, and one to a subquery about each row
_PARTS: Final = f"""
LEFT JOIN LATERAL json_to_record(CASE WHEN {_LEGIBLE} THEN l.payload END) AS p(
    event_name text, action text, action_id text, phase text, schema_version text,
    trace_id text, span_id text, error json, resource json,
    outcome text, transaction text, occurred_at text,
    producer_id text, sequence_number text, tenant json, actor json, target json, source json,
    request json, response json, received json) ON true
LEFT JOIN LATERAL json_to_record(CASE WHEN json_typeof(p.actor) = 'object' THEN p.actor END)
    AS a(id text, type text, role text) ON true
LEFT JOIN LATERAL json_to_record(CASE WHEN json_typeof(p.request) = 'object' THEN p.request END)
    AS q(id text, method text, route text, path text) ON true
"""
# what is altered is asked once: each other mention would be worked out again for each row
_SUMS: Final = """
SELECT count(*) AS records, coalesce(sum(summand), 0) AS total,
       (array_agg(id) FILTER (WHERE is_altered))[1:{most}] AS altered
FROM (SELECT l.id, {altered} AS is_altered,
             ('x' || left(encode(sha256({key} || l.leaf), 'hex'), {digits}))::bit(60)::bigint
                 AS summand
      FROM (SELECT *, {leaf} AS leaf FROM audit.audit_logs WHERE {where}) AS l {parts}) AS each
"""
_RECORDS: Final = "count(*) AS records, count(*) FILTER (WHERE outcome = 'unknown') AS unknown"
# records by their leaves, one by one: those of the period, and leaves whose record is nowhere
_DIFFERENCE: Final = f"""
WITH sealed AS MATERIALIZED ({LEAVES}),
found AS MATERIALIZED (SELECT l.id, {LEAF} AS hash FROM audit.audit_logs l WHERE {{where}}),
odd AS MATERIALIZED (
    SELECT f.id FROM found f
    WHERE NOT EXISTS (SELECT FROM sealed s WHERE s.id = f.id AND s.hash = f.hash)
),
known AS MATERIALIZED (SELECT DISTINCT o.id FROM odd o JOIN sealed s ON s.id = o.id),
strange AS MATERIALIZED (
    SELECT o.id FROM odd o WHERE NOT EXISTS (SELECT FROM known k WHERE k.id = o.id)
),
gone AS MATERIALIZED (
    SELECT s.id FROM sealed s WHERE {{in_range}}
    AND NOT EXISTS (SELECT FROM audit.audit_logs l WHERE l.id = s.id)
    AND NOT EXISTS (
        SELECT FROM unnest({{dropped}}::uuid[], {{up_to}}::uuid[]) AS p(lowest, above)
        WHERE s.id >= p.lowest AND s.id < p.above)
)
SELECT 'changed' AS kind, count(*) AS records,
       (array_agg(id ORDER BY id))[1:{_MOST_SUSPECTS}] AS ids FROM known
UNION ALL
SELECT 'inserted', count(*), (array_agg(id ORDER BY id))[1:{_NAMED}] FROM strange
UNION ALL
SELECT 'gone', count(*), (array_agg(id ORDER BY id))[1:{_NAMED}] FROM gone
"""  # noqa: S608 - constants

_HAS_COLLAPSED: Final = "SELECT EXISTS (SELECT FROM audit.ledger_pruned)"
# leaves whose records were dropped, and that are not collapsed: only blocks at a month's ends
_MISSING: Final = f"""
SELECT count(*) FROM (
    SELECT encode(substr(b.ids, (n * {ID_SIZE} + 1)::int, {ID_SIZE}), 'hex')::uuid AS id
    FROM (SELECT ids || ''::bytea AS ids FROM audit.ledger_blocks WHERE EXISTS (
              SELECT FROM unnest($1::uuid[], $2::uuid[]) AS p(least, above)
              WHERE highest >= p.least AND lowest < p.above) OFFSET 0) AS b
    CROSS JOIN generate_series(0, octet_length(b.ids) / {ID_SIZE} - 1) AS n
) AS s
WHERE EXISTS (SELECT FROM unnest($1::uuid[], $2::uuid[]) AS p(least, above)
              WHERE s.id >= p.least AND s.id < p.above)
AND NOT EXISTS (SELECT FROM audit.audit_logs l WHERE l.id = s.id)
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Witnesses:
    """The keys and anchors outside the store.

    Attributes:
        keys: Public keys of the ledger; without any, no signature is checked.
        anchors: Where checkpoints were published.
    """

    keys: tuple[PublicKey, ...] = ()
    anchors: tuple[Anchor, ...] = ()


def witnesses_of(config: AuditConfig) -> Witnesses:
    """The keys and anchors that the settings name.

    Raises:
        ConfigurationError: One is unfit.
    """
    return Witnesses(tuple(chosen_public_keys(config)), tuple(anchors_from(config.anchor)))


async def gather(
    snapshot: Snapshot,
    periods: Iterable[tuple[datetime, datetime]],
    witnesses: Witnesses,
    *,
    is_deep: bool,
) -> Evidence:
    """Compare the records of a period with their leaves, and these with the root.

    Args:
        snapshot: The state.
        periods: The period, cut or not.
        witnesses: Keys and anchors.
        is_deep: Whether each record's text is hashed again, and its columns are compared with it.
    """
    found = Evidence([PeriodEvidence(begin, end) for begin, end in periods])
    dropped = [] if snapshot.is_part else await _dropped_in_order(snapshot, found)
    comparisons = [_comparison(part, dropped) for part in found.parts]
    collapsed = await _rebuild_tree(snapshot, found, comparisons, witnesses)
    if not snapshot.is_part:
        await _account(snapshot, found, dropped, collapsed)
    for one in comparisons:
        await _compare(snapshot, one, is_deep=is_deep)
        await _judge_suspects(snapshot, one, witnesses)
    return found


@dataclass(slots=True)
class _Comparison:
    """The leaves of a part, added up.

    Attributes:
        part: Which.
        low, high: Bounds of its ids.
        dropped: Bounds of ids within whose records were dropped in order.
        key: Of the keyed hashes that are added up.
        leaves: How many.
        total: The sum.
        suspects: Records whose hash, or columns, seem not to follow from their text.
    """

    part: PeriodEvidence
    low: uuid.UUID
    high: uuid.UUID
    dropped: Sequence[ledger_queries.Pruning]
    key: bytes
    leaves: int = 0
    total: int = 0
    suspects: list[uuid.UUID] = field(default_factory=list)

    def add(self, ids: Sequence[bytes], leaves: Sequence[bytes]) -> None:
        """Add leaves of this period that have a record."""
        low, high, keyed, total, count = self.low.bytes, self.high.bytes, self.key, 0, 0
        sha256 = hashlib.sha256
        dropped = [(one.lowest.bytes, one.above.bytes) for one in self.dropped]
        for record_id, leaf in zip(ids, leaves, strict=False):
            if low <= record_id < high and not (
                dropped and any(lowest <= record_id < above for lowest, above in dropped)
            ):
                # the first digits, as in SQL
                total += int.from_bytes(sha256(keyed + leaf).digest()[:8], "big") >> 4
                count += 1
        self.total += total
        self.leaves += count


async def _dropped_in_order(snapshot: Snapshot, found: Evidence) -> list[ledger_queries.Pruning]:
    """Months that were dropped with a sealed record of it; without one, that is tampering."""
    findings = Findings()
    sound = await recorded_prunings(snapshot.connection, findings)
    found.against += [problem.detail for problem in findings.problems]
    return sound


async def _account(
    snapshot: Snapshot, found: Evidence, dropped: Sequence[ledger_queries.Pruning], collapsed: int
) -> None:
    """See that no more is gone than was dropped in order: a collapsed leaf names no record."""
    recorded, gone = sum(one.rows for one in dropped), collapsed
    if dropped:
        lowest, above = [one.lowest for one in dropped], [one.above for one in dropped]
        gone += await snapshot.connection.fetchval(_MISSING, lowest, above)
    if gone > recorded:
        found.against.append(
            f"{recorded} records were dropped with their months, as sealed; {gone} are gone"
        )


def _comparison(part: PeriodEvidence, dropped: Sequence[ledger_queries.Pruning]) -> _Comparison:
    low, high = lowest_id(part.begin - _SLACK), lowest_id(part.end + _SLACK)
    within = [one for one in dropped if one.lowest < high and one.above > low]
    return _Comparison(part, low, high, within, secrets.token_bytes(_KEY_SIZE))


async def _rebuild_tree(
    snapshot: Snapshot,
    found: Evidence,
    comparisons: Sequence[_Comparison],
    witnesses: Witnesses,
) -> int:
    """Build the tree again, and add up the leaves on the way; then compare roots.

    Returns:
        How many leaves are collapsed.
    """
    findings, collapsed = Findings(), 0
    anchored = await read_anchors(witnesses.anchors, witnesses.keys, findings)
    sizes = sorted({snapshot.size, *(one.checkpoint.size for one in anchored.readings)})
    # a root that was signed later tells collapsed leaves from invented ones
    latest = await _latest(snapshot, found, witnesses)
    sizes = sizes if latest is None else sorted({*sizes, latest.size})
    walk = TreePassState()
    sums = [] if snapshot.is_part else comparisons
    async for piece in ledger_queries.pieces(snapshot.connection, 0, sizes[-1]):
        if piece.first != walk.tree.size or not piece.is_whole():
            found.against.append("the leaves have a hole")
            return collapsed
        if isinstance(piece, Block):
            leaves = piece.leaf_hashes()
            sealed = leaves[: max(snapshot.size - piece.first, 0)]
            for one in sums:
                one.add(piece.id_bytes(), sealed)
            _append(walk, piece.first, leaves, sizes)
            if piece.count >= _PAUSES_AFTER:
                # several milliseconds of hashing: whoever shares this loop has a turn
                await asyncio.sleep(0)
        else:
            found.is_collapsed |= piece.first < snapshot.size < piece.first + piece.count
            walk.tree = grown(walk.tree, piece)
            collapsed += piece.count
        walk.roots[walk.tree.size] = walk.tree.root()
    if not found.is_collapsed and walk.roots.get(snapshot.size, b"").hex() != snapshot.root:
        found.against.append("the leaves do not make up the checkpoint's root")
    elif latest is not None and walk.roots.get(latest.size) != latest.root:
        found.against.append(
            "the leaves, some collapsed, do not make up the last checkpoint's root"
        )
    found.signed = _signed(snapshot, witnesses, found)
    anchored.judge_silence(walk.tree.size, findings)
    judge_readings(walk, snapshot.origin, anchored.readings, findings)
    _add_anchors(snapshot, found, witnesses, anchored, findings)
    return collapsed


async def _latest(snapshot: Snapshot, found: Evidence, witnesses: Witnesses) -> Checkpoint | None:
    """The last checkpoint of a log that has collapsed leaves."""
    if not await snapshot.connection.fetchval(_HAS_COLLAPSED):
        return None
    note = await ledger_queries.last_note(snapshot.connection) or ""
    try:
        checkpoint = read_checkpoint(note)
        is_signed = not witnesses.keys or bool(read_note(note).signed_by(witnesses.keys))
    except NoteError as error:
        found.against.append(f"the last checkpoint: {error}")
        return None
    if not is_signed:
        found.against.append("none of the given keys has signed the last checkpoint")
    return checkpoint


def _append(walk: TreePassState, first: int, leaves: Sequence[bytes], sizes: Iterable[int]) -> None:
    """Append leaves to the tree, and remember its roots at some sizes."""
    end = first + len(leaves)
    for size in [*(one for one in sizes if first < one < end), end]:
        walk.tree = walk.tree.extended(leaves[walk.tree.size - first : size - first])
        walk.roots[size] = walk.tree.root()


def _signed(snapshot: Snapshot, witnesses: Witnesses, found: Evidence) -> str:
    """The checkpoint's signers: verified by keys, or only the names on its lines."""
    if not witnesses.keys:
        names = [line.split(" ")[1] for line in snapshot.note.splitlines() if line.startswith("— ")]
        return (
            f"{', '.join(names)}, not checked: no public key was given" if names else "not signed"
        )
    keys = read_note(snapshot.note).signed_by(witnesses.keys)
    if not keys:
        found.against.append("none of the given keys has signed the checkpoint")
        return "none of the given keys"
    return ", ".join(f"{key.name}, checked" for key in keys)


def _add_anchors(
    snapshot: Snapshot,
    found: Evidence,
    witnesses: Witnesses,
    anchored: AnchorReadings,
    findings: Findings,
) -> None:
    if not witnesses.anchors:
        return
    # one tenant must not learn how much all of them record, nor where it is anchored
    hides = snapshot.is_narrow
    lines = [f"{'the anchor' if hides else one.anchor}: agrees" for one in anchored.readings]
    if findings.problems:
        first = findings.problems[0].detail
        against = "an anchor contradicts the store" + ("" if hides else f": {first}")
        found.against.append(against)
        lines = [f"TAMPERED: {against}"]
    elif hides:
        lines += ["an anchor knows nothing, or could not be asked"] if findings.warnings else []
    else:
        lines += findings.warnings
    found.anchors = "; ".join(dict.fromkeys(lines)) or NO_ANCHOR


async def _compare(snapshot: Snapshot, one: _Comparison, *, is_deep: bool) -> None:
    """Compare the records of a part with its leaves."""
    part = one.part
    if is_deep:
        asked = _of_part(snapshot, part)
        (row,) = await snapshot.connection.fetch(selected(_RECORDS, asked), *asked.values)
        part.records, part.unknown = row["records"], row["unknown"]
    if snapshot.is_part:
        asked = _of_part(snapshot, part)
        await _differ(snapshot, one, asked, "false")
        (row,) = await _summed(snapshot, one, _of_part(snapshot, part), is_deep=is_deep)
        one.suspects = row["altered"] or []
        return
    asked = _of_months(snapshot, one)
    (row,) = await _summed(snapshot, one, asked, is_deep=is_deep)
    one.suspects = row["altered"] or []
    if (row["records"], int(row["total"])) != (one.leaves, one.total):
        asked = _of_months(snapshot, one)
        before = part.odd
        await _differ(snapshot, one, asked, _within(one, asked))
        if part.odd == before and not part.problems:
            part.problems.append(
                f"{row['records']} records and {one.leaves} leaves do not belong together"
            )
    await _compare_singly(snapshot, one, _with_other_ids, is_deep=is_deep)
    if one.dropped:
        await _compare_singly(snapshot, one, _after_dropping, is_deep=is_deep)


async def _compare_singly(
    snapshot: Snapshot,
    one: _Comparison,
    choose: Callable[[Snapshot, _Comparison], Conditions],
    *,
    is_deep: bool,
) -> None:
    """Compare records whose leaves are not added up: they are few."""
    (row,) = await _summed(snapshot, one, choose(snapshot, one), is_deep=is_deep)
    if row["records"]:
        one.suspects += row["altered"] or []
        await _differ(snapshot, one, choose(snapshot, one), "false")


def _of_months(snapshot: Snapshot, one: _Comparison) -> Conditions:
    """Records by their ids, but for those of months that were dropped."""
    asked = snapshot.asked(in_period=False)
    asked.columns.append(_within(one, asked))
    if one.dropped:
        asked.columns.append(f"NOT ({_in_dropped(one, asked)})")
    return asked


def _after_dropping(snapshot: Snapshot, one: _Comparison) -> Conditions:
    """Records that came when their month had been dropped."""
    asked = snapshot.asked(in_period=False)
    asked.columns += [_within(one, asked), _in_dropped(one, asked)]
    return asked


def _with_other_ids(snapshot: Snapshot, one: _Comparison) -> Conditions:
    """Records of that time whose ids are of another one."""
    asked = _of_part(snapshot, one.part)
    asked.columns += [ID_TIME_DIFFERS, f"NOT ({_within(one, asked)})"]
    return asked


def _of_part(snapshot: Snapshot, part: PeriodEvidence) -> Conditions:
    asked = snapshot.asked()
    asked.columns.append(f"occurred_at >= {asked.bind(part.begin)}::timestamptz")
    asked.columns.append(f"occurred_at < {asked.bind(part.end)}::timestamptz")
    return asked


def _within(one: _Comparison, asked: Conditions) -> str:
    return f"(id >= {asked.bind(one.low)}::uuid AND id < {asked.bind(one.high)}::uuid)"


def _in_dropped(one: _Comparison, asked: Conditions) -> str:
    bounds = (
        f"(id >= {asked.bind(month.lowest)}::uuid AND id < {asked.bind(month.above)}::uuid)"
        for month in one.dropped
    )
    return f"({' OR '.join(bounds)})"


def _where(asked: Conditions) -> str:
    return " AND ".join([*asked.columns, *asked.payload]) or "true"


async def _summed(
    snapshot: Snapshot, one: _Comparison, asked: Conditions, *, is_deep: bool
) -> list[Any]:
    """Add up records; all in one answer, so that the server may have several processes at it."""
    sql = _SUMS.format(
        most=_MOST_SUSPECTS, altered=_ALTERED if is_deep else _HASHED_OTHERWISE,
        parts=_PARTS if is_deep else "",
        key=f"{asked.bind(one.key)}::bytea", leaf=LEAF, digits=_SUM_DIGITS, where=_where(asked),
    )  # fmt: skip
    found: list[Any] = await snapshot.connection.fetch(sql, *asked.values)
    return found


async def _differ(snapshot: Snapshot, one: _Comparison, asked: Conditions, in_range: str) -> None:
    """Compare record by record, and say what differs."""
    part = one.part
    sql = _DIFFERENCE.format(
        size=int(snapshot.size), where=_where(asked), in_range=in_range,
        dropped=asked.bind([month.lowest for month in one.dropped]),
        up_to=asked.bind([month.above for month in one.dropped]),
    )  # fmt: skip
    for row in await snapshot.connection.fetch(sql, *asked.values):
        if row["records"]:
            ids = ", ".join(map(str, row["ids"][:_NAMED]))
            part.problems.append(f"{row['records']} {_KINDS[row['kind']]}, the first: {ids}")
            part.odd += 0 if row["kind"] == "gone" else row["records"]


async def _judge_suspects(snapshot: Snapshot, one: _Comparison, witnesses: Witnesses) -> None:
    """Let the verification judge records that seem to be changed: some only were inserted so."""
    if not one.suspects:
        return
    wanted, leaves, blocks = {found.bytes for found in one.suspects}, [], []
    async for block in ledger_queries.blocks(snapshot.connection, 0, snapshot.size):
        places = [place for place, found in enumerate(block.id_bytes()) if found in wanted]
        if places:
            leaves += [block.first + place for place in places]
            blocks.append(BlockRange(block.first, block.count, block.recorded_at))
    choice = RowSelection(
        leaves=frozenset(leaves), origin=snapshot.origin, keys=tuple(witnesses.keys)
    )
    rows = await check_rows(snapshot.connection, blocks, choice)
    problems = [found for found in rows.findings.problems if found.record_id is not None]
    one.part.malformed = rows.findings.malformed_by.total()
    if len(one.suspects) >= _MOST_SUSPECTS:
        one.part.odd = max(one.part.odd, len(one.suspects))
        one.part.problems.append(
            f"{_MOST_SUSPECTS} records or more have another text or other columns than they were "
            "inserted with, or were inserted malformed: `otel-audit verify` names them"
        )
    elif problems:
        one.part.odd = max(one.part.odd, len(problems))
        one.part.problems.append(
            f"{len(problems)} records were changed, the first: {problems[0].record_id}: "
            f"{problems[0].detail}"
        )
