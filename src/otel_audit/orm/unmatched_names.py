"""Names of models, tables and columns in the settings that match nothing that is mapped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sqlalchemy import Table
from sqlalchemy.orm import Mapper, mapperlib

if TYPE_CHECKING:
    from otel_audit.config import AuditConfig

_MODELS = ("orm_include_models", "orm_exclude_models")
_TABLES = ("orm_include_tables", "orm_exclude_tables", "orm_before_images")
_COLUMNS = ("orm_include_columns", "orm_exclude_columns")
_KINDS = {
    **dict.fromkeys(_MODELS, "mapped class"),
    **dict.fromkeys(_TABLES, "table of a mapped class"),
    **dict.fromkeys(_COLUMNS, "column of a mapped class"),
    "entity_names": "mapped class",
}


def names_nothing(config: AuditConfig) -> Iterator[tuple[str, str, str]]:
    """Look for names that fit no mapped class.

    Call it when the application's models have been imported. A table that only SQL texts name is
    not known here: so what is found is worth a warning, and is not an error.

    Args:
        config: The settings.

    Yields:
        The setting, the name, and what is wrong: with what it may be meant for.
    """
    named = {setting: tuple(getattr(config, setting)) for setting in _KINDS}
    # the keys may be nouns that routes say, too; only a class is written so
    named["entity_names"] = tuple(one for one in config.entity_names if one != one.lower())
    if not any(named.values()):
        return
    mappers = [
        mapper
        for registry in list(mapperlib._all_registries())  # noqa: SLF001 - no public way to all mappers
        for mapper in list(registry.mappers)
    ]
    if not mappers:
        return
    models = {mapper.class_.__name__ for mapper in mappers}
    tables, columns = _tables(mappers)
    for setting, names in named.items():
        known = tables if setting in _TABLES else columns if setting in _COLUMNS else models
        for name in names:
            if name not in known and not (setting == "entity_names" and name in tables):
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                yield setting, name, f"no {_KINDS[setting]} is called so{hint}"


def _tables(mappers: Iterable[Mapper[object]]) -> tuple[set[str], set[str]]:
    """All names of tables and of columns, in each of their spellings."""
    found = {table for mapper in mappers for table in _all_of(mapper)}
    tables = {name for table in found for name in (table.name, table.fullname)}
    columns = {
        name
        for table in found
        for column in table.columns
        for name in (column.name, f"{table.name}.{column.name}", f"{table.fullname}.{column.name}")
    }
    return tables, columns


def _all_of(mapper: Mapper[object]) -> Iterator[Table]:
    for one in mapper.tables:
        if isinstance(one, Table):
            # tables of many-to-many relationships stand there without a class
            yield from one.metadata.tables.values()
