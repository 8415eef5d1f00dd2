"""The ledger: the operator seals the trail, somebody who owns the database changes it, it shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from demo.commands import CommandError, our_program, output_of
from demo.postgres import AUDIT, Postgres

_COPY = "audit_tampered"
# what only a superuser can do: guards off, one value changed, guards on
_TAMPERING = (
    "SET otel_audit.permit_ddl = 'on'",
    "ALTER TABLE audit.audit_logs DISABLE TRIGGER USER",
    "UPDATE audit.audit_logs SET actor_id = 'somebody else' WHERE id = $1",
    "ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER refuse_change",
    "ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER refuse_row_change",
    "ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER queue_for_sealing",
)


@dataclass(frozen=True)
class Sealing:
    """What sealing and verifying have shown.

    Attributes:
        sealed: What `otel-audit seal` said.
        report: What `otel-audit verify` found in the trail.
        changed_row: The row that a superuser changed in a copy of it.
        tampered: What `otel-audit verify` found there.
    """

    sealed: str
    report: dict[str, Any]
    changed_row: str
    tampered: dict[str, Any]

    @property
    def first_bad(self) -> dict[str, Any]:
        return self.tampered.get("first_bad") or {}


async def seal_and_verify(server: Postgres, directory: Path, row_id: str) -> Sealing:
    """Seal everything, verify it, and verify a copy in which one row was changed."""
    program, key, anchor = our_program("otel-audit"), directory / "audit.key", directory / "anchor"
    await output_of(program, "keygen", str(key), "--name", "audit.example.com/shop")
    trust = ("--anchor", f"file:{anchor}")
    sealed = await output_of(
        program, "seal", "--once", "--key-file", str(key), *trust, "--dsn", server.dsn(AUDIT)
    )
    public = ("--key", f"{key}.pub", "--json")
    report = await _verify(program, *trust, *public, "--dsn", server.dsn(AUDIT))
    await _tamper_with_a_copy(server, row_id)
    tampered = await _verify(program, *trust, *public, "--dsn", server.dsn(_COPY))
    return Sealing(sealed.decode().strip(), report, row_id, tampered)


async def _verify(program: str, *arguments: str) -> dict[str, Any]:
    try:
        output = await output_of(program, "verify", *arguments, expected=(0, 1))
        report: dict[str, Any] = json.loads(output)
    except ValueError as error:
        raise CommandError(f"otel-audit verify wrote no report: {error}") from error
    return report


async def _tamper_with_a_copy(server: Postgres, row_id: str) -> None:
    connection = await asyncpg.connect(server.dsn("postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {_COPY} TEMPLATE {AUDIT}")
    finally:
        await connection.close()
    connection = await asyncpg.connect(server.dsn(_COPY))
    try:
        for statement in _TAMPERING:
            await connection.execute(statement, *((row_id,) if "$1" in statement else ()))
    finally:
        await connection.close()
