"""The numbered migrations and the other SQL that comes with this package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from otel_audit_postgres.rows import COLUMNS

_MADE: Final = re.compile(r"^CREATE (TABLE|SEQUENCE|FUNCTION) audit\.(\w+)", re.MULTILINE)


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

    @property
    def title(self) -> str:
        """Its name in messages: ``0002 ledger``."""
        return f"{self.version:04} {self.name}"

    def makes(self) -> dict[str, str]:
        """The added objects of schema audit: names to ``table``, ``sequence`` or ``function``."""
        return {found[2]: found[1].lower() for found in _MADE.finditer(self.sql)}


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


def pending(version: int) -> tuple[Migration, ...]:
    """The migrations that a store of this version lacks; 0 for none at all."""
    return tuple(step for step in migrations() if step.version > version)


def roles_sql() -> str:
    """Statements that create the group roles where they are missing."""
    return _text("roles.sql")


def ownership_sql() -> str:
    """Statements that give everything in the schema to the owner role."""
    return _text("ownership.sql")


def grants_sql() -> str:
    """Statements that grant to the group roles what each may do."""
    columns = ", ".join(name for name, _ in COLUMNS)
    return _text("grants.sql").replace("{columns}", columns)


def event_trigger_sql() -> str:
    """Statements that install the guard against DDL; for a superuser, after roles and grants."""
    return _text("event_trigger.sql")


def _text(name: str) -> str:
    return (_folder() / name).read_text("utf-8")


def _folder() -> resources.abc.Traversable:
    return resources.files("otel_audit_postgres") / "sql"
