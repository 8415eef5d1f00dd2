"""Tables whose rows the database itself deletes or changes, by the foreign keys of the metadata."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Table

if TYPE_CHECKING:
    from sqlalchemy import MetaData

_ACTIONS = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})


class _Reference(NamedTuple):
    """A foreign key by which the database acts on its own.

    Attributes:
        table: The table whose rows it acts on.
        column: The column that is referred to.
        on_delete: What is done when that row is deleted: ``CASCADE``, ...; empty: nothing.
        on_update: What is done when that column changes.
    """

    table: Table
    column: str
    on_delete: str
    on_update: str


class Cascades:
    """The foreign keys of all tables met so far."""

    def __init__(self) -> None:
        """Start with no foreign key known."""
        self._known: weakref.WeakKeyDictionary[
            MetaData, tuple[int, dict[str, list[_Reference]]]
        ] = weakref.WeakKeyDictionary()

    def of_delete(self, tables: Iterable[Table], handled: Collection[Table] = ()) -> list[str]:
        """Tables of which rows may be deleted or changed with rows of some tables.

        Args:
            tables: Whose rows are deleted.
            handled: Tables that are looked after otherwise.
        """
        found: dict[Table, None] = {}
        waiting = list(tables)
        seen = {*waiting, *handled}
        while waiting:
            for one in self._to(waiting.pop()):
                if one.on_delete and one.table not in seen:
                    seen.add(one.table)
                    found[one.table] = None
                    # SET NULL and SET DEFAULT do not cascade further
                    waiting += [one.table] if one.on_delete == "CASCADE" else []
        return [str(one.fullname) for one in found]

    def of_update(self, table: Table, columns: Collection[str]) -> list[str]:
        """Tables of which rows may be changed with some columns of a table."""
        found = {
            str(one.table.fullname): None
            for one in self._to(table)
            if one.on_update and one.column in columns
        }
        return list(found)

    def watched(self, table: Table) -> frozenset[str]:
        """The columns of a table that take others along when they change."""
        return frozenset(one.column for one in self._to(table) if one.on_update)

    def _to(self, table: Table) -> list[_Reference]:
        metadata = table.metadata
        number = len(metadata.tables)
        known = self._known.get(metadata)
        if known is None or known[0] != number:
            index: dict[str, list[_Reference]] = {}
            for name, reference in _references(metadata):
                index.setdefault(name, []).append(reference)
            known = self._known[metadata] = number, index
        return known[1].get(str(table.key), [])


def noted(tables: Collection[str]) -> str | None:
    """The note about the tables in an entry; None if there are none."""
    if not tables:
        return None
    return f"the database may have changed or deleted rows of: {', '.join(tables)}"


def _references(metadata: MetaData) -> Iterator[tuple[str, _Reference]]:
    for table in list(metadata.tables.values()):
        for key in table.foreign_keys:
            on_delete, on_update = _action(key.ondelete), _action(key.onupdate)
            if on_delete or on_update:
                # by name: the table that is meant need not be known
                name, _, column = key.target_fullname.rpartition(".")
                yield name, _Reference(table, column, on_delete, on_update)


def _action(given: str | None) -> str:
    action = " ".join((given or "").upper().split())
    return next((one for one in _ACTIONS if action.startswith(one)), "")
