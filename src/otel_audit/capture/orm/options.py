"""What of the database's changes is captured, and how much of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OrmOptions:
    """Settings of ORM capture.

    Names of tables are taken with and without their schema; models are mapped classes or their
    names; columns are ``column`` or ``table.column``. An empty ``include_…`` includes everything,
    ``exclude_…`` wins over it.

    Attributes:
        engines: Only connections of these engines (``Engine`` or ``AsyncEngine``).
        sessionmakers: Only sessions made by these (``sessionmaker``, ``async_sessionmaker``, or
            ``scoped_session`` and ``async_scoped_session`` over one). An ``async_sessionmaker``
            is told by its class and its engine: two that share both are one.
        bases: Only classes that derive from these, and tables in their metadata.
        include_tables: Only these tables.
        exclude_tables: Not these tables.
        include_models: Only these models.
        exclude_models: Not these models.
        include_columns: Only these columns' values.
        exclude_columns: Not these columns' values; a change of nothing else is no change.
        keep_rolled_back: Keep what was rolled back, marked so, rather than only count it.
        max_entries: Changes of one action that are kept in full; the rest is counted by entity
            and operation.
        max_parameter_sets: Parameter sets of one bulk statement that are kept.
        max_value: Characters of one value's JSON text; a longer one is cut, with size and hash.
        max_statement: Characters of a statement's text.
        fetch_unknown: Read earlier values that are not loaded from the database, with one
            SELECT per row, before a flush overwrites them.
    """

    engines: tuple[Any, ...] = ()
    sessionmakers: tuple[Any, ...] = ()
    bases: tuple[type, ...] = ()
    include_tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    include_models: tuple[type | str, ...] = ()
    exclude_models: tuple[type | str, ...] = ()
    include_columns: tuple[str, ...] = ()
    exclude_columns: tuple[str, ...] = ()
    keep_rolled_back: bool = False
    max_entries: int = 1_000
    max_parameter_sets: int = 20
    max_value: int = 4_096
    max_statement: int = 2_000
    fetch_unknown: bool = False
