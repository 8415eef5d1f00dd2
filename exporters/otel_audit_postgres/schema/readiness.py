"""Whether the store is fit to take records, before the first one is written."""

from __future__ import annotations

from typing import Any, Final

from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.errors import INIT, MIGRATE
from otel_audit_postgres.schema import pg_catalog
from otel_audit_postgres.schema.migrations import latest_version

_CONDITION: Final = """
SELECT current_user AS role,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS read_only,
       has_schema_privilege('audit', 'USAGE') AS may_use,
       has_schema_privilege('audit', 'USAGE')
           AND has_column_privilege('audit.audit_logs', 'payload', 'SELECT')
           AND NOT has_any_column_privilege('audit.audit_logs', 'INSERT') AS reads,
       has_table_privilege(
           (SELECT c.oid FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'audit' AND c.relname = 'schema_version'), 'SELECT') AS may_ask
"""


async def refuse_unready(connection: Connection[Any]) -> None:
    """Raise what stands in the way of records, if anything does.

    Args:
        connection: To the store.

    Raises:
        StoreUnavailableError: The server takes no writes now.
        StoreError: Schema or rights are not what they must be; the message says the remedy.
    """
    await refuse_encoding(connection)
    missing = await pg_catalog.missing_tables(connection)
    if missing:
        raise StoreError(
            "the audit store is not set up in the database of OTEL_AUDIT_DSN, there is no table "
            f"audit.{missing[0]}: {INIT}"
        )
    condition = await connection.fetchrow(_CONDITION)
    assert condition is not None  # noqa: S101 - a SELECT without FROM has a row
    if condition["read_only"]:
        raise StoreUnavailableError(
            "the server that OTEL_AUDIT_DSN names is read-only: a standby, or failing over"
        )
    if not condition["may_use"]:
        raise StoreError(no_right(condition["role"], "USAGE on schema audit"))
    if not condition["may_ask"]:
        raise StoreError(no_right(condition["role"], "SELECT on audit.schema_version"))
    refuse_version(await pg_catalog.schema_version(connection))
    lacking = await pg_catalog.lacking_rights(connection)
    if lacking:
        role = condition["role"]
        # to make the auditor a writer as well is what nobody should do
        raise StoreError(
            f"{only_reads(role)}: {WRITER_NEEDED}"
            if condition["reads"]
            else no_right(role, lacking[0])
        )


async def refuse_encoding(connection: Connection[Any]) -> None:
    """Raise if not every record can be written in the database's encoding.

    Before anything else: no table can be missing where none can be made.

    Raises:
        StoreError: It is not UTF-8.
    """
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise StoreError(
            f"the database of OTEL_AUDIT_DSN has encoding {encoding}, in which not every record "
            "can be written: set the audit store up in one with ENCODING 'UTF8'"
        )


def refuse_version(version: int) -> None:
    """Raise if the schema is not of the version that this package writes.

    Args:
        version: The version found, 0 where no migration is recorded.

    Raises:
        StoreError: It is another; the message says which side to bring up to date.
    """
    known = latest_version()
    if version < known:
        raise StoreError(
            f"schema audit is at version {version}, this otel-audit needs {known}: "
            f"{MIGRATE if version else INIT}"
        )
    if version > known:
        raise StoreError(
            f"schema audit is at version {version}, this otel-audit knows {known}: "
            "upgrade otel-audit"
        )


WRITER_NEEDED: Final = (
    "let OTEL_AUDIT_DSN log in as the role that `otel-audit init --roles --writer ROLE` names"
)


def only_reads(role: str) -> str:
    """Say that a role is an auditor's, and no application's."""
    return f"role {role} (OTEL_AUDIT_DSN) reads the trail and may not append to it"


def no_right(role: str, right: str) -> str:
    """Say which right a role lacks, and how it gets it."""
    return (
        f"role {role} (OTEL_AUDIT_DSN) lacks {right}: run `otel-audit init --roles --writer {role}`"
    )
