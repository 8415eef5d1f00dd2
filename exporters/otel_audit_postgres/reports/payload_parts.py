"""Access to parts of a payload; missing or malformed parts are None."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from otel_audit.record import snake_case


def part(record: Any, *names: str) -> Any:
    """A part of a payload; None where it is not there."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def text(value: Any, most: int = 500) -> str | None:
    """A value of a payload as a cell."""
    if value is None:
        return None
    found = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return found if len(found) <= most else f"{found[: most - 1]}…"


def changes_of(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The changes of a record."""
    found = record.get("changes")
    if isinstance(found, list):
        yield from (one for one in found if isinstance(one, dict))


def values_of(change: dict[str, Any]) -> list[tuple[str, Any]]:
    """Each column of a change, with a list of its value before and after."""
    values = change.get("values")
    if not isinstance(values, dict):
        return []
    return [
        (column, pair)
        for column, pair in values.items()
        if isinstance(pair, list) and len(pair) == 2  # noqa: PLR2004 - before, after
    ]


def noun_of(change: dict[str, Any]) -> str:
    """The noun of a change, as references have it."""
    if name := change.get("name"):
        return str(name)
    return snake_case(str(change.get("entity") or change.get("table") or ""))


def bare_noun(name: str) -> str:
    """The noun of a name, in lower case and without the schema or database before it."""
    return name.rpartition(".")[2].lower()


def reference_of(change: dict[str, Any]) -> str:
    """The entity of a change: ``order:7``."""
    key = change.get("key")
    values = key.values() if isinstance(key, dict) else ()
    # 100 characters of a key: more does not fit into a column of a table
    return f"{noun_of(change)}:{','.join([str(text(value, 100)) for value in values])}"
