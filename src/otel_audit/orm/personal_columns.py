"""Which columns the models mark as personal: ``info={"audit": "personal"}``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper, mapperlib

from otel_audit.record import Change

if TYPE_CHECKING:
    from otel_audit.config import AuditConfig

PERSONAL = "personal"
_LISTED = 5


def marked_in_clear(config: AuditConfig) -> str | None:
    """Say which marked columns this process would store in clear: it has no keys for them.

    Call it when the application's models have been imported.

    Args:
        config: The settings.

    Returns:
        What is wrong and which setting mends it; None if nothing is wrong, or if another process
        stores the records and encrypts.
    """
    if config.exporter != "postgres" or config.keys_dsn is not None:
        return None
    found = marked_columns()
    if not found:
        return None
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return (
        f"OTEL_AUDIT_KEYS_DSN: not set, so columns that are marked as personal are stored in clear "
        f"and cannot be erased: {', '.join(found[:_LISTED])}{more}; name a database of keys "
        "(otel-audit subject init), or take the marks away"
    )


def marked_columns() -> list[str]:
    """The marked columns of all mapped classes that are known now, with their tables."""
    tables = {
        table: None
        for registry in list(mapperlib._all_registries())  # noqa: SLF001 - no public way to all mappers
        for table in list(registry.metadata.tables.values())
    }
    return sorted(
        f"{table.name}.{column.name}"
        for table in tables
        for column in table.columns
        if column.info.get("audit") == PERSONAL
    )


class PersonalColumns:
    """The marked columns of the tables and classes met so far."""

    def __init__(self, referred: Callable[[Column[Any]], Iterable[Column[Any] | str]]) -> None:
        """Begin with none.

        Args:
            referred: Finds the columns that a foreign key refers to: it holds the same values.
        """
        self._referred = referred
        # by the table's own name: where a schema is translated, the one in a change is another
        self._by_table: dict[str, frozenset[str]] = {}
        self._by_class: dict[str, frozenset[str]] = {}

    def meet_table(self, table: Table) -> None:
        """Note the marks of a table."""
        self._add(self._by_table, str(table.name).lower(), self._marked([table]))

    def meet_mapper(self, mapper: Mapper[Any]) -> None:
        """Note the marks of a class: of all its tables, as an inheriting class has several."""
        tables = [table for table in mapper.tables if isinstance(table, Table)]
        self._add(self._by_class, mapper.class_.__name__, self._marked(tables))
        for table in tables:
            self.meet_table(table)

    def mark(self, change: Change) -> None:
        """Name the personal columns of a change, in place: who made it may look for it again."""
        if not self._by_table:
            return
        table = change.table.rpartition(".")[2].lower()
        names = self._by_table.get(table, _NONE) | self._by_class.get(change.entity, _NONE)
        if change.parameters is None:
            names = frozenset(
                name for name in change.values if name.rpartition(".")[2] in names
            )  # fmt: skip
        if names:
            msgspec.structs.force_setattr(change, "personal", tuple(sorted(names)))

    def _marked(self, tables: Iterable[Table]) -> frozenset[str]:
        return frozenset(
            str(column.name)
            for table in tables
            for column in table.columns
            if self._is_personal(column)
        )

    def _is_personal(self, column: Column[Any]) -> bool:
        if column.info.get("audit") is not None or not column.foreign_keys:
            return column.info.get("audit") == PERSONAL
        return any(
            isinstance(one, Column) and one.info.get("audit") == PERSONAL
            for one in self._referred(column)
        )

    @staticmethod
    def _add(place: dict[str, frozenset[str]], name: str, found: frozenset[str]) -> None:
        if found:
            place[name] = place.get(name, _NONE) | found


_NONE: frozenset[str] = frozenset()
