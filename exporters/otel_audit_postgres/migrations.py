"""The numbered migrations and the other SQL that comes with this package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from otel_audit_postgres.rows import COLUMNS


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    Attributes:
        version: Its number, from 1, without gaps.
        name: Its file's name without number and suffix.
        sql: Statements, separated by semicolons; to be run in one transaction.
    """

    version: int
    name: str
    sql: str


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations that this version knows, in their order."""
    files = sorted(
        (file for file in _folder().iterdir() if file.name[:4].isdecimal()),
        key=lambda file: file.name,
    )
    return tuple(
        Migration(int(file.name[:4]), file.name[5:].removesuffix(".sql"), file.read_text("utf-8"))
        for file in files
    )


def latest_version() -> int:
    """The schema version that this package reads and writes."""
    return migrations()[-1].version


def roles_sql() -> str:
    """Statements that create the group roles where they are missing."""
    return (_folder() / "roles.sql").read_text("utf-8")


def ownership_sql() -> str:
    """Statements that give everything in the schema to the owner role."""
    return (_folder() / "ownership.sql").read_text("utf-8")


def grants_sql() -> str:
    """Statements that grant to the group roles what each may do."""
    columns = ", ".join(name for name, _ in COLUMNS)
    return (_folder() / "grants.sql").read_text("utf-8").replace("{columns}", columns)


def _folder() -> resources.abc.Traversable:
    return resources.files("otel_audit_postgres") / "sql"
