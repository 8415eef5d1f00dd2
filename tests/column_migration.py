"""Write the migration that adds a column: python tests/column_migration.py region text."""

from __future__ import annotations

import re
import sys
from pathlib import Path

SQL = Path(__file__).parents[1] / "exporters" / "otel_audit_postgres" / "sql"

_TABLES = """\
ALTER TABLE audit.audit_logs ADD COLUMN {name} {kind};
ALTER TABLE audit.restored_logs ADD COLUMN {name} {kind};

-- Both list the columns. A row without the new one keeps its hash; the name is in it, so that no value
-- can move to another column.
"""
_LAST_TEXT = "+ coalesce(octet_length(i.received_by), 0)"


def column_migration(name: str, kind: str) -> str:
    """The statements: the column of both tables, and both functions that list the columns."""
    return _TABLES.format(name=name, kind=kind) + "\n".join((
        _hashing("columns_hash", "stored", name),
        _hashing("queue_for_sealing", "i", name).replace(
            _LAST_TEXT,
            f"+ coalesce(octet_length(i.{name}), 0) {_LAST_TEXT}" if kind == "text" else _LAST_TEXT,
        ),
    ))  # fmt: skip


def next_number() -> int:
    """The next free number of a migration."""
    return max(int(file.name[:4]) for file in SQL.glob("[0-9]*.sql")) + 1


def _hashing(function: str, row: str, name: str) -> str:
    """A function as the last migration left it, with one more column in its hash."""
    before = f"{row}.received_hash))"
    part = (
        f"\n        || CASE WHEN {row}.{name} IS NULL THEN ''\n"
        f"           ELSE record_send(ROW('{name}'::text, {row}.{name})) END"
    )
    text = _last_text_of(function)
    assert text.count(before) == 1, function
    return text.replace(before, before + part)


def _last_text_of(function: str) -> str:
    made = re.compile(
        rf"^CREATE (?:OR REPLACE )?FUNCTION (audit\.{function}\(.*?^\$\$;\n)",
        re.DOTALL | re.MULTILINE,
    )
    found = [
        one[1] for file in sorted(SQL.glob("[0-9]*.sql")) for one in made.finditer(file.read_text())
    ]
    return f"CREATE OR REPLACE FUNCTION {found[-1]}"


if __name__ == "__main__":
    target = SQL / f"{next_number():04}_{sys.argv[1]}.sql"
    target.write_text(column_migration(sys.argv[1], sys.argv[2]))
    print(target)
