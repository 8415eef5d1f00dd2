"""Reports on what was done: changes, a person's file, an incident, coverage, a sample."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_audit._util.cache import BoundedCache, Memo
from otel_audit_postgres.query.conditions import READABLE
from otel_audit_postgres.reports import controls
from otel_audit_postgres.reports.model import AT_ONCE, Definition, ReportRow, in_batches
from otel_audit_postgres.reports.payload_parts import (
    bare_noun,
    changes_of,
    part,
    reference_of,
    text,
    values_of,
)
from otel_audit_postgres.reports.retention_policy import month_end, policy_in_force
from otel_audit_postgres.reports.snapshot import (
    HAS_CHANGES,
    OF_THE_STORE,
    Snapshot,
    selected,
    utc_text,
)

_APPROVAL: Final = re.compile(r"approv|accept|authori[sz]|releas|sign(?:ed)?_?off|confirm")
_PEOPLE: Final = frozenset({
    "user", "person", "customer", "patient", "account", "member", "employee",
})  # fmt: skip
# the key's id in an encrypted value, 8 bytes
_KEY: Final = re.compile(r"~p1\.[\w-]{16}\.([\w-]{11})\.", re.ASCII)
_MOST_CREATORS: Final = 200_000
"""Entities whose creators are remembered at least; of earlier ones the creator is not known."""
# the time as `utc_text` writes it: the server has time for that while rows are made of others
_OF_CHANGES: Final = (
    """to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at, id, """
    "actor_id, event_name, transaction_outcome, payload::text AS payload"
)


async def _changes_rows(snapshot: Snapshot) -> AsyncIterator[Sequence[ReportRow]]:
    creators: BoundedCache[str, str] = BoundedCache(_MOST_CREATORS)
    sql, values = snapshot.of_records(HAS_CHANGES, columns=_OF_CHANGES)
    rows: list[ReportRow] = []
    async for records in snapshot.fetched(sql, values, along_index=True):
        for record in records:
            # once for all columns of a record: there may be many
            at, found, actor, event, outcome, payload = record.values()
            record_id = str(found)
            for change in snapshot.changes_in(payload):
                about, operation = reference_of(change), change.get("operation")
                pairs = values_of(change) or [(str(operation), (None, None))]
                if operation == "insert":
                    creators.put(about, actor)
                same = None
                if operation == "update" and _is_approval(event, pairs):
                    same = _same_actor(actor, creators.get(about))
                for column, (before, after) in pairs:
                    rows.append((
                        at, about, column, text(before), text(after), actor, same, outcome,
                        record_id,
                    ))  # fmt: skip
                if len(rows) >= AT_ONCE:
                    yield rows
                    rows = []
    yield rows


def _approves(word: str) -> bool:
    return _APPROVAL.search(word.lower()) is not None


# names of events and columns, and words such as "approved", come again and again
_APPROVING: Final = Memo(_approves, 4_096, lambda word: len(word) <= 64)  # noqa: PLR2004 - a word


def _is_approval(event: str, pairs: Sequence[tuple[str, tuple[Any, Any]]]) -> bool:
    """Whether a change approves something, by the event, the columns, or their new values."""
    if _APPROVING[event]:
        return True
    for column, (_, after) in pairs:
        if _APPROVING[column] or (isinstance(after, str) and _APPROVING[after]):
            return True
    return False


def _same_actor(actor: str, creator: str | None) -> str:
    """Whether who approves a thing has made it."""
    if creator is None:
        return "not known: made outside this period"
    return "YES" if creator == actor else "no"


@in_batches
async def _subject(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    subject = snapshot.options.subject or ""
    asked = snapshot.asked(in_period=True)
    same = asked.bind(subject)
    asked.columns.append(
        f"(actor_id = {same}::text OR target_id = {same}::text "
        f"OR strpos(payload::text, {same}::text) > 0)"
    )
    columns = (
        "id, tenant_id, occurred_at, event_name, actor_id, target_type, target_id, action, "
        "payload::text AS payload"
    )
    erased = await _erased_keys(snapshot)
    _, keep = await policy_in_force(snapshot)
    sql = selected(columns, asked, tail="ORDER BY id, tenant_id")
    async for row, record in snapshot.decoded(sql, asked.values):
        is_actor = subject in {row["actor_id"], part(record, "actor", "on_behalf_of")}
        is_target = row["target_id"] == subject
        played = " and ".join(
            name for name, does in (("actor", is_actor), ("target", is_target)) if does
        )
        fields = sorted({column for one in changes_of(record) for column, _ in values_of(one)})
        yield (
            str(row["id"]), utc_text(row["occurred_at"]), played or "mentioned", row["event_name"],
            ", ".join(fields)[:500] or None,
            row["actor_id"] if row["action"] in {"READ", "EXPORT"} and not is_actor else None,
            _kept_until(row["occurred_at"], keep),
            _is_erased(row["payload"], erased),
        )  # fmt: skip


def _kept_until(at: datetime, days: int | None) -> str:
    """The day until which a record's month is kept at most."""
    if days is None:
        return "no policy says"
    return f"{month_end(f'{at.astimezone(UTC):%Y-%m}') + timedelta(days=days):%Y-%m-%d}"


async def _erased_keys(snapshot: Snapshot) -> frozenset[str] | None:
    """Ids of the keys that erasures destroyed, in hex; None: such records are hidden here."""
    if snapshot.tenants is not None:
        return None
    found: set[str] = set()
    condition = "event_name = 'audit.subject.erased'"
    # what was erased is not a query's, and no tenant's
    async for _, record in snapshot.whole().records(condition, OF_THE_STORE, in_period=False):
        keys = part(record, "metadata", "keys")
        found.update(map(str, keys if isinstance(keys, list) else ()))
    return frozenset(found)


def _is_erased(payload: str, erased: frozenset[str] | None) -> str:
    """Whether the personal values of a record can be read no more."""
    used = {base64.urlsafe_b64decode(f"{key}=").hex() for key in _KEY.findall(payload)}
    if not used:
        return "no"
    if erased is None:
        return "not shown: counts the whole store"
    gone = used & erased
    return "yes" if gone == used else ("in part" if gone else "no")


_SEEN: Final = "min(occurred_at) OVER who AS first_seen, max(occurred_at) OVER who AS last_seen"
_WHO: Final = "WINDOW who AS (PARTITION BY actor_id, coalesce(source_address, ''))"


@in_batches
async def _incident(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    asked = snapshot.asked()
    sql = selected(
        f"id, occurred_at, actor_id, source_address, event_name, entities, outcome, "
        f"encode(content_hash, 'hex') AS hash, {_SEEN}",
        asked, tail=f"{_WHO} ORDER BY id, tenant_id",
    )  # fmt: skip
    async for row in snapshot.run(sql, asked.values):
        entities = [one for one in row["entities"] if not one.startswith("audit.")]
        people = [one for one in entities if bare_noun(one.partition(":")[0]) in _PEOPLE]
        yield (
            utc_text(row["occurred_at"]), row["actor_id"], row["source_address"], row["event_name"],
            ", ".join(entities)[:500] or None, ", ".join(people)[:500] or None,
            utc_text(row["first_seen"]), utc_text(row["last_seen"]), row["outcome"],
            f"otel-audit prove {row['id']}; content hash {row['hash']}",
        )  # fmt: skip


@in_batches
async def _coverage(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    level = f"CASE WHEN {READABLE} THEN payload ->> 'level' END"
    async for row in snapshot.rows(
        f"http_route, http_method, {level} AS level, event_name, count(*) AS records, "
        "max(occurred_at) AS last",
        "event_name NOT LIKE 'audit.%'",
        tail="GROUP BY 1, 2, 3, 4 ORDER BY 1 NULLS LAST, 2 NULLS LAST, 4, 3 NULLS LAST",
    ):
        yield (
            row["http_route"] or "(no HTTP)", row["http_method"], row["level"], row["event_name"],
            row["records"], utc_text(row["last"]),
        )  # fmt: skip


@in_batches
async def _review(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    options = snapshot.options
    signed = await _sign_offs(snapshot)
    asked = snapshot.asked()
    # the seed alone decides which: the same for everybody who draws under this checkpoint
    order = f"sha256(convert_to({asked.bind(options.seed)}::text || id::text, 'UTF8'))"
    sql = selected(
        "id, occurred_at, actor_id, event_name, target_type, target_id, outcome", asked,
        ("event_name NOT LIKE 'audit.%'",),
        f"ORDER BY {order}, tenant_id LIMIT {int(options.sample)}",
    )  # fmt: skip
    period = f"{utc_text(options.begin)} to {utc_text(options.end)}"
    for place, row in enumerate([row async for row in snapshot.run(sql, asked.values)], 1):
        who, finding, when = signed.get(str(row["id"]), signed.get("", (None, None, None)))
        target = ":".join(filter(None, (row["target_type"], row["target_id"]))) or None
        yield (
            period, who, f"{place} of {options.sample}, seed {options.seed}", str(row["id"]),
            utc_text(row["occurred_at"]), row["actor_id"], row["event_name"], target,
            row["outcome"], finding, when,
        )  # fmt: skip


async def _sign_offs(snapshot: Snapshot) -> dict[str, tuple[str | None, str | None, str | None]]:
    """Sign-offs of this very sample: by the record that they are about, empty for all of it."""
    found: dict[str, tuple[str | None, str | None, str | None]] = {}
    condition = f"event_name = 'audit.viewed' AND target_type = 'audit_review' AND {OF_THE_STORE}"
    options = snapshot.options
    # of this period, seed, size, tenant and query: else another sample was looked at
    same = {
        "begin": utc_text(options.begin), "end": utc_text(options.end), "seed": options.seed,
        "sample": options.sample, "tenant": options.tenant, "query": options.query or None,
    }  # fmt: skip
    async for row, record in snapshot.whole().records(condition, in_period=False):
        asked = part(record, "metadata", "asked")
        if not isinstance(asked, dict) or any(
            asked.get(key) != value for key, value in same.items()
        ):
            continue
        who = text(part(record, "actor", "on_behalf_of")) or row["actor_id"]
        about = asked.get("record")
        found[about if isinstance(about, str) else ""] = (
            who, text(asked.get("finding")), f"{utc_text(row['occurred_at'])}, record {row['id']}",
        )  # fmt: skip
    return found


CONTENT_REPORTS: Final = (
    Definition(
        name="changes", title="Changes of data",
        about="Each column that a record shows as changed, with the value before and after.",
        columns=("time", "entity", "field", "before", "after", "actor",
                 "same actor created and approved", "transaction", "record"),
        rows=_changes_rows, controls=controls.CHANGES,
        nothing="no record of this period has changes",
    ),
    Definition(
        name="subject", title="One person's file",
        about="Every record in which this person acts, is acted upon, or is mentioned.",
        columns=("record", "time", "part played", "event", "fields", "recipients", "kept until",
                 "erased"),
        rows=_subject, controls=controls.SUBJECT, needs=("subject",),
        nothing="no record of this period names this person; under a pseudonym a person is found "
        "by that",
    ),
    Definition(
        name="incident", title="Incident",
        about="The records that a query finds, in their order, with what each touched.",
        columns=("time", "actor", "source", "event", "entities", "subjects touched", "first seen",
                 "last seen", "outcome", "proof"),
        rows=_incident, controls=controls.INCIDENT, needs=("query",),
        nothing="the query finds no record of this period",
    ),
    Definition(
        name="review", title="Review of a sample",
        about="Records drawn by a seed, to be looked at one by one. The sign-off is a record of "
        "its own.",
        columns=("period", "reviewer", "sample", "record", "time", "actor", "event", "target",
                 "outcome", "finding", "sign-off"),
        rows=_review, controls=controls.REVIEW,
        nothing="there is nothing to review: no record of this period",
    ),
    Definition(
        name="coverage", title="What is recorded",
        about="Routes and events that have records, with the level and the last time.",
        columns=("route", "method", "level", "event", "records", "last record"),
        rows=_coverage, controls=controls.COVERAGE,
        nothing="no action of the application was recorded in this period",
    ),
)  # fmt: skip
