"""Records' texts, and the records that belong to the same action."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otel_audit._util.ids import lowest_id, milliseconds_of
from otel_audit_postgres.connection import Connection, QueryCanceledError
from otel_audit_postgres.query.conditions import READABLE
from otel_audit_postgres.query.pagination import selected
from otel_audit_postgres.query.queries import FOUND_COLUMNS, Found

_TEXTS: Final = (
    "SELECT id, tenant_id, payload::text AS payload FROM audit.audit_logs "
    "WHERE id = ANY($1::uuid[])"
)
_NAMES: Final = f"""
SELECT id, tenant_id, payload -> 'actor' ->> 'email' AS email,
       payload -> 'tenant' ->> 'slug' AS slug
FROM audit.audit_logs WHERE id = ANY($1::uuid[]) AND {READABLE}
"""  # noqa: S608 - constants
_BEFORE_MS: Final = 60_000
"""How much earlier than a record another one of its action is looked for: a minute."""
_AFTER_MS: Final = 600_000
"""How much later: ten minutes."""
_TIMEOUT_MS: Final = 200
"""The page of a record is shown without its neighbours rather than late."""
MOST: Final = 20
"""Neighbours that are shown."""
# encrypted, redacted, hashed, erased: then the id says more
_HIDDEN: Final = ("~", "[", "hmac:")

RecordKey = tuple[uuid.UUID, str]


@dataclass(frozen=True, slots=True)
class DisplayNames:
    """Display names of a record's actor and tenant.

    Attributes:
        actor: The actor's e-mail address.
        tenant: The tenant's slug.
    """

    actor: str | None
    tenant: str | None


async def names(
    connection: Connection[Any], records: Sequence[Found]
) -> dict[RecordKey, DisplayNames]:
    """Display names by the id and tenant of a record."""
    rows = await connection.fetch(_NAMES, [record.id for record in records])
    return {
        (row["id"], row["tenant_id"]): DisplayNames(row["email"] or None, row["slug"] or None)
        for row in rows
        if row["email"] or row["slug"]
    }


async def payload_texts(
    connection: Connection[Any], records: Sequence[Found]
) -> Mapping[RecordKey, str]:
    """The exact texts of records that were found, by id and tenant."""
    rows = await connection.fetch(_TEXTS, [record.id for record in records])
    return {(row["id"], row["tenant_id"]): row["payload"] for row in rows}


def says_who(name: str) -> bool:
    """Whether a name is readable: neither encrypted, redacted, hashed nor erased."""
    return not name.startswith(_HIDDEN)


async def same_action(
    connection: Connection[Any], record: Found, action_id: str
) -> tuple[Found, ...]:
    """Further records of an action, the oldest first: its intent, what came after it.

    Args:
        connection: To the store, within a transaction.
        record: One record of the action; the others' ids are of about its time.
        action_id: The action's id.

    Returns:
        At most `MOST`; none if it takes too long to look.
    """
    sql = (
        f"SELECT {selected(FOUND_COLUMNS)} FROM audit.audit_logs "  # noqa: S608 - constants
        "WHERE action_id = $1 AND id <> $2 "
        "AND id BETWEEN $3 AND $4 "
        f"ORDER BY id LIMIT {MOST}"
    )
    made = milliseconds_of(record.id)
    begin, end = lowest_id(made - _BEFORE_MS), lowest_id(made + _AFTER_MS)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {_TIMEOUT_MS}")
            rows = await connection.fetch(sql, action_id, record.id, begin, end)
    except QueryCanceledError:
        return ()
    return tuple(Found(*row.values()) for row in rows)
