"""Reports on rights, sign-ins, reads of data, and views of the trail."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import msgspec

from otel_audit_postgres.query.conditions import READABLE
from otel_audit_postgres.reports import controls
from otel_audit_postgres.reports.model import Definition, ReportRow, in_batches
from otel_audit_postgres.reports.payload_parts import (
    bare_noun,
    changes_of,
    noun_of,
    part,
    reference_of,
    text,
    values_of,
)
from otel_audit_postgres.reports.snapshot import BEHIND_CHANGES, Snapshot, selected, utc_text

_RIGHTS: Final = (
    "role", "roles", "permission", "permissions", "privilege", "privileges", "scope", "scopes",
    "group", "groups", "is_admin", "is_superuser", "is_staff", "access_level", "admin",
)  # fmt: skip
_RIGHTS_NOUNS: Final = re.compile(
    r"(?:^|_)(?:role|permission|privilege|grant|membership|group|scope|access)s?(?:_|$)"
)
_NOUNS: Final = (
    "role", "permission", "privilege", "grant", "member", "group", "scope", "access", "revok",
)  # fmt: skip
# the beginnings of `_RIGHTS`, as names in JSON
_BEGINNINGS: Final = (
    "role", "permission", "privilege", "scope", "group", "is_", "access_level", "admin",
)  # fmt: skip
# wide on purpose: what is none of these is sorted out when the payload is read. Of a payload the
# changes alone are looked at, and without a pattern, which takes longer than all these words
_LOOKED_AT: Final = {
    "named": "event_name || ' ' || array_to_string(entities, ' ')",
    "changed": BEHIND_CHANGES,
}
_MAY_BE_RIGHTS: Final = (
    "("
    + " OR ".join(f"strpos(named, '{noun}') > 0" for noun in _NOUNS)
    + " OR "
    + " OR ".join(f"strpos(changed, '\"{name}') > 0" for name in _BEGINNINGS)
    + ")"
)
_OWN_EVENTS: Final = "event_name NOT LIKE 'audit.%'"


@in_batches
async def _rights(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    async for row, record in snapshot.sieved(_LOOKED_AT, _MAY_BE_RIGHTS, _OWN_EVENTS):
        for subject, before, after in _rights_changed(row, record):
            yield (
                utc_text(row["occurred_at"]), row["actor_id"], row["actor_role"],
                text(part(record, "actor", "on_behalf_of")), subject, before, after, row["outcome"],
                row["source_address"], row["request_id"], str(row["id"]),
            )  # fmt: skip


def _rights_changed(
    row: Mapping[str, Any], record: dict[str, Any]
) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Each right that a record changes: whose, before, after."""
    found = False
    for change in changes_of(record):
        is_right = _RIGHTS_NOUNS.search(bare_noun(noun_of(change))) is not None
        for column, (before, after) in values_of(change):
            if is_right or column.lower() in _RIGHTS:
                found = True
                yield reference_of(change), _named(column, before), _named(column, after)
    if not found and _RIGHTS_NOUNS.search(row["event_name"].replace(".", "_")):
        target = ":".join(filter(None, (row["target_type"], row["target_id"]))) or None
        yield target, None, row["event_name"]


def _named(column: str, value: Any) -> str | None:
    return None if value is None else f"{column}: {text(value)}"


_SIGN_IN: Final = (
    "(action IN ('LOGIN', 'LOGOUT', 'AUTHENTICATE') OR status_code IN (401, 403) "
    "OR event_name ~* '(^|[._])(log_?in|logged_in|sign_?in|signed_in|authenticated)([._]|$)')"
)
_FIRST_FAILURE: Final = (
    "min(occurred_at) FILTER (WHERE outcome = 'failure') OVER (PARTITION BY actor_id, "
    "coalesce(source_address, ''))"
)
_BY_ACTOR: Final = """
SELECT actor_id, source, min(occurred_at) AS first, max(occurred_at) AS last,
       count(*) FILTER (WHERE outcome = 'failure') AS failures,
       count(*) FILTER (WHERE outcome = 'success' AND occurred_at > first_failure) AS after,
       count(*) FILTER (WHERE status_code = 401) AS unauthorized,
       count(*) FILTER (WHERE status_code = 403) AS forbidden,
       count(*) FILTER (WHERE verified) AS verified, count(*) AS found
FROM ({found}) AS found GROUP BY 1, 2 ORDER BY 5 DESC, 1, 2
"""


@in_batches
async def _sign_ins(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    asked = snapshot.asked()
    verified = (
        f"CASE WHEN {READABLE} THEN coalesce(payload -> 'actor' ->> 'verified' = 'true', false) "
        "ELSE false END AS verified"
    )
    found = selected(
        "actor_id, coalesce(source_address, '') AS source, occurred_at, outcome, status_code, "
        f"{_FIRST_FAILURE} AS first_failure, {verified}",
        asked, (_SIGN_IN, _OWN_EVENTS),
    )  # fmt: skip
    async for row in snapshot.run(_BY_ACTOR.format(found=found), asked.values):
        of_all = f"{row['verified']} of {row['found']}"
        yield (
            row["actor_id"], row["source"] or None, utc_text(row["first"]), utc_text(row["last"]),
            row["failures"], row["after"], row["unauthorized"], row["forbidden"], of_all,
        )  # fmt: skip


@in_batches
async def _sensitive(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    async for row, record in snapshot.records(
        "action IN ('READ', 'EXPORT', 'DOWNLOAD')", _OWN_EVENTS
    ):
        body = part(record, "response", "body")
        seen = part(record, "metadata", "seen") or _shown(part(body, "content"))
        volume = part(record, "metadata", "records")
        yield (
            utc_text(row["occurred_at"]), row["actor_id"], row["actor_role"],
            row["tenant_id"] or None, text(part(record, "metadata", "subject")),
            ":".join(filter(None, (row["target_type"], row["target_id"]))) or None,
            text(seen), text(volume if volume is not None else _bytes(part(body, "size"))),
            "yes" if row["action"] != "READ" or _is_export(row) else "no", str(row["id"]),
        )  # fmt: skip


def _bytes(size: Any) -> str | None:
    return f"{size} bytes" if isinstance(size, int) else None


def _is_export(row: Mapping[str, Any]) -> bool:
    return re.search(r"export|download", f"{row['event_name']} {row['http_route']}") is not None


def _shown(content: Any) -> str | None:
    """The names of a response's fields, without values."""
    if isinstance(content, str):
        try:
            content = msgspec.json.decode(content)
        except (msgspec.MsgspecError, RecursionError):
            return None
    if isinstance(content, list):
        content = next((one for one in content if isinstance(one, dict)), None)
    if not isinstance(content, dict) or not content:
        return None
    return ", ".join(list(content)[:20])


_WATCHING: Final = (
    "(event_name IN ('audit.viewed', 'audit.exported') OR event_name ~ "
    "'^audit[.](hold|retention|month|archive|partition|subject|key|record|role|stream_to|destination)[._]')"
)


@in_batches
async def _watchers(snapshot: Snapshot) -> AsyncIterator[ReportRow]:
    async for row, record in snapshot.records(_WATCHING):
        facts = record.get("metadata")
        facts = facts if isinstance(facts, dict) else {}
        asked = facts.get("asked")
        asked = asked if isinstance(asked, dict) else {}
        behalf = part(record, "actor", "on_behalf_of")
        sender = part(record, "received", "by")
        is_look = row["event_name"] in {"audit.viewed", "audit.exported"}
        yield (
            utc_text(row["occurred_at"]), text(behalf) or row["actor_id"],
            f"by the word of {text(sender)}, which sent this; not the store's own"
            if sender
            else f"database role {row['actor_id']}" + (", through a service" if behalf else ""),
            row["event_name"],
            text(facts.get("question")), text(asked.get("query", asked or None)),
            text(facts.get("records")), "yes" if row["event_name"] == "audit.exported" else "no",
            None if is_look else text(facts), str(row["id"]),
        )  # fmt: skip


ACCESS_REPORTS: Final = (
    Definition(
        name="rights", title="Changes of rights",
        about="Each change of a role, permission or membership that a record shows: whose, from "
        "what to what, by whom.",
        columns=("time", "actor", "role", "on behalf of", "subject", "right before", "right after",
                 "outcome", "source", "request", "record"),
        rows=_rights, controls=controls.RIGHTS,
        nothing="no record of this period changes a role, a permission or a membership",
    ),
    Definition(
        name="sign-ins", title="Sign-ins and refusals",
        about="Sign-ins, and requests that were answered 401 or 403, by actor and source. A "
        "success after failures may be a password that was guessed.",
        columns=("actor", "source", "first", "last", "failures", "successes after failures", "401",
                 "403", "verified"),
        rows=_sign_ins, controls=controls.SIGN_INS,
        nothing="no record of this period is a sign-in, or was answered 401 or 403",
    ),
    Definition(
        name="sensitive-access", title="Access to sensitive data",
        about="Reads that the policy has recorded, and exports: who saw which fields of what.",
        columns=("time", "actor", "role", "tenant", "subject", "entity", "what was seen", "volume",
                 "export", "record"),
        rows=_sensitive, controls=controls.SENSITIVE,
        nothing="no read of this period was recorded; reads are recorded where the policy names "
        "them (OTEL_AUDIT_SENSITIVE_PATHS)",
    ),
    Definition(
        name="watchers", title="Who looked at the trail",
        about="Looks, exports, and what was done to holds, retention, archives and keys.",
        columns=("time", "viewer", "how", "event", "question", "query", "records shown", "export",
                 "action on the store", "record"),
        rows=_watchers, controls=controls.WATCHERS,
        nothing="nobody looked at the trail through this software in this period, or looks are not "
        "recorded (OTEL_AUDIT_RECORD_VIEWS)",
        of_the_store=True,
    ),
)  # fmt: skip
