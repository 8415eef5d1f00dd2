"""What an auditor asks the store, and what somebody with something to hide tries on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from demo import postgres
from demo.commands import output_of
from demo.postgres import AUDIT, Postgres

_COLUMNS = """
    id::text, phase, occurred_at, duration_ms, event_name, action, outcome, actor_id,
    tenant_id, target_type, target_id, status_code, request_id, trace_id, span_id,
    transaction_outcome, producer_id, sequence_number, payload::text, content_hash
"""
_TAMPERING = (
    ("UPDATE", "UPDATE audit.audit_logs SET actor_id = 'somebody else' WHERE id = $1"),
    ("DELETE", "DELETE FROM audit.audit_logs WHERE id = $1"),
    ("TRUNCATE", "TRUNCATE audit.audit_logs"),
)


@dataclass(frozen=True)
class Row:
    """A stored row; ``payload`` is the whole record."""

    id: str
    phase: str
    occurred_at: datetime
    duration_ms: float
    event_name: str
    action: str
    outcome: str
    actor_id: str
    tenant_id: str
    target_type: str | None
    target_id: str | None
    status_code: int | None
    request_id: str | None
    trace_id: str | None
    span_id: str | None
    transaction_outcome: str
    producer_id: str | None
    sequence_number: int | None
    payload: dict[str, Any]
    content_hash: bytes

    @property
    def actor(self) -> str:
        return str(self.payload["actor"].get("email") or self.actor_id)

    @property
    def tenant(self) -> str:
        return str(self.payload.get("tenant", {}).get("slug") or self.tenant_id)

    @property
    def target(self) -> str:
        return ":".join(filter(None, (self.target_type, self.target_id)))

    @property
    def trace_sampled(self) -> bool:
        return bool(self.payload.get("trace_sampled"))

    @property
    def changes(self) -> list[dict[str, Any]]:
        return list(self.payload.get("changes", ()))


@dataclass(frozen=True)
class Attempt:
    """An attempt to change history; ``refusal`` is None where it succeeded."""

    who: str
    what: str
    refusal: str | None


async def fetch_rows(server: Postgres, role: str = postgres.READER_ROLE) -> list[Row]:
    """Read everything, in the order of time."""
    return await _query(server, f"SELECT {_COLUMNS} FROM audit.audit_logs ORDER BY id", role=role)


async def history(server: Postgres, entity: str, role: str = postgres.READER_ROLE) -> list[Row]:
    """Everything that happened to one thing, such as ``order:7``: one look-up in an index."""
    return await _query(
        server,
        f"SELECT {_COLUMNS} FROM audit.audit_logs WHERE entities @> ARRAY[$1] ORDER BY id",
        entity,
        role=role,
    )


async def dump(server: Postgres) -> bytes:
    """The whole audit database as ``pg_dump`` writes it: every table, every column."""
    return await output_of(str(server.binaries / "pg_dump"), server.dsn(AUDIT))


async def tamper(server: Postgres, row_id: str) -> list[Attempt]:
    """Try to change and to remove a row, as everybody who might."""
    attempts = await _tamper_as(server, row_id, "superuser", postgres.SUPERUSER)
    owner = await _owner(server)
    attempts += await _tamper_as(server, row_id, "owner of the table", postgres.SUPERUSER, owner)
    attempts += await _tamper_as(server, row_id, "writer of the trail", postgres.WRITER_ROLE)
    return [*attempts, await _connect_as_the_app(server)]


async def _query(server: Postgres, query: str, *arguments: Any, role: str) -> list[Row]:
    connection = await asyncpg.connect(server.dsn(AUDIT, role))
    try:
        found: Sequence[asyncpg.Record] = await connection.fetch(query, *arguments)
    finally:
        await connection.close()
    return [Row(**{**record, "payload": json.loads(record["payload"])}) for record in found]


async def _owner(server: Postgres) -> str:
    connection = await asyncpg.connect(server.dsn(AUDIT))
    try:
        return str(
            await connection.fetchval(
                "SELECT relowner::regrole::text FROM pg_class"
                " WHERE oid = 'audit.audit_logs'::regclass"
            )
        )
    finally:
        await connection.close()


async def _tamper_as(
    server: Postgres, row_id: str, who: str, login: str, role: str | None = None
) -> list[Attempt]:
    connection = await asyncpg.connect(server.dsn(AUDIT, login))
    try:
        if role:
            await connection.execute(f"SET ROLE {role}")
        return [
            Attempt(who, verb, await _refusal(connection, statement, row_id))
            for verb, statement in _TAMPERING
        ]
    finally:
        await connection.close()


async def _refusal(connection: asyncpg.Connection, statement: str, row_id: str) -> str | None:
    arguments = (row_id,) if "$1" in statement else ()
    try:
        await connection.execute(statement, *arguments)
    except asyncpg.PostgresError as error:
        return str(error).partition("\n")[0]
    return None


async def _connect_as_the_app(server: Postgres) -> Attempt:
    try:
        connection = await asyncpg.connect(server.dsn(AUDIT, postgres.APP_ROLE))
    except asyncpg.PostgresError as error:
        return Attempt("the shop's own role", "CONNECT", str(error).partition("\n")[0])
    await connection.close()
    return Attempt("the shop's own role", "CONNECT", None)
