"""Whether a store is at one version, whole: neither newer, nor between two."""

from __future__ import annotations

from typing import Any, Final

from otel_audit.errors import StoreError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.schema.migrations import Migration, latest_version, migrations, pending

_APPLIED: Final = "SELECT version, name FROM audit.schema_version ORDER BY version"
_PRESENT: Final = """
SELECT relname AS name FROM pg_catalog.pg_class
WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'audit')
UNION
SELECT proname FROM pg_catalog.pg_proc
WHERE pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'audit')
"""
_RESTORE: Final = (
    "nothing was changed; migrations run whole or not at all, so this was done by hand: "
    "undo it, or restore a backup"
)


async def installed_version(connection: Connection[Any]) -> int:
    """Say at which version a store is, and refuse one that is at none.

    Args:
        connection: As a role that may read ``audit.schema_version``, which is there.

    Returns:
        The number of its last migration.

    Raises:
        StoreError: It is newer than this package, its migrations are not those that this package
            knows, or one of them is only half applied. The message names which.
    """
    applied = {row["version"]: row["name"] for row in await connection.fetch(_APPLIED)}
    version = max(applied, default=0)
    if version > latest_version():
        raise StoreError(
            f"schema audit is at version {version}, this otel-audit knows {latest_version()}, and "
            "a schema never goes backwards: upgrade otel-audit; nothing was changed"
        )
    for step in migrations()[:version]:
        _refuse_other(step, applied.get(step.version))
    present = {row["name"] for row in await connection.fetch(_PRESENT)}
    for step in migrations()[:version]:
        made = step.makes().items()
        missing = [f"{kind} audit.{name}" for name, kind in made if name not in present]
        if missing:
            raise StoreError(
                f"migration {step.title} is recorded as applied, but {missing[0]} is missing: "
                f"{_RESTORE}"
            )
    for step in pending(version):
        found = [f"{kind} audit.{name}" for name, kind in step.makes().items() if name in present]
        if found:
            raise StoreError(
                f"migration {step.title} is half applied: {found[0]} is there, but the migration "
                f"is not in audit.schema_version: {_RESTORE}"
            )
    return version


def _refuse_other(step: Migration, name: str | None) -> None:
    if name is None:
        raise StoreError(
            f"migration {step.title} is missing in audit.schema_version, where a later one is: "
            f"{_RESTORE}"
        )
    if name != step.name:
        raise StoreError(
            f"migration {step.version:04} of this store is {name!r}, otel-audit knows it as "
            f"{step.name!r}: it was made by something else; {_RESTORE}"
        )
