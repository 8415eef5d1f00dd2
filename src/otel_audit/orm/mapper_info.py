"""Cached facts about a mapper: computed once, kept as long as the mapper lives."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Column, ColumnElement, Join, String, Table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper, RelationshipDirection, mapperlib
from sqlalchemy.types import TypeDecorator, TypeEngine

from otel_audit.orm.cascades import Cascades, noted
from otel_audit.orm.column_redaction import PersonalColumns
from otel_audit.orm.key_spelling import Spelling, key_spelling
from otel_audit.orm.marked_columns import PERSONAL
from otel_audit.orm.reference_names import ReferenceNames, RowNaming, bases_of, mappers_of
from otel_audit.orm.stored_values import (
    StoredMembers,
    StoredValues,
    members_of,
    stored_values,
    wrapping_functions,
)
from otel_audit.redaction.names import is_secret_function, is_secret_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from otel_audit.orm.selection import Selection


_versions = count()


@dataclass(frozen=True, slots=True, eq=False)
class ColumnInfo:
    """One column of a mapped class, or a column of a table without one.

    Attributes:
        key: The attribute's name.
        name: The column's name; with its table in front where another has the same.
        alias: What else its values are called: sensitive in either is sensitive.
        mark: ``redact`` or ``hash``.
        same: Whether two values are equal, as the column's type compares them.
        filled: Whether the database may fill it on INSERT.
        auto_updated: Whether a flush may change it unasked (``onupdate``, a version counter).
        is_text: Whether its values are texts, mostly.
        is_json: Whether a patch makes sense.
        not_sensitive: Whether nothing is redacted for its name or mark alone, and what is stored
            is the value, so that a number or a time in it need not be looked at.
        type: The column's type.
        members: Finds what the type stores of members of enumerations; None: what they are.
        stored: Finds what an application's own type stores; None if that is the value.
        place: The table's and the column's key.
        spelling: How its values are spelled in keys; None if they have one spelling.
        plainly_named: Whether nothing is redacted for its name or mark alone.
        wrapped: Whether its type puts a SQL expression around a value, which stores another.
    """

    key: str
    name: str
    alias: str
    mark: str | None
    same: Callable[[Any, Any], Any]
    filled: bool
    auto_updated: bool
    is_text: bool
    is_json: bool
    not_sensitive: bool
    type: TypeEngine[Any]
    members: StoredMembers | None
    stored: StoredValues | None
    place: tuple[str, str]
    spelling: Spelling | None
    wrapped: bool
    plainly_named: bool


@dataclass(frozen=True, slots=True, eq=False)
class MapperInfo:
    """One mapped class.

    Attributes:
        entity: Its name.
        naming: What references call its rows.
        table: Its table, with its schema; of an inheriting class its own table.
        columns: What is captured of it.
        readings: The same, each with what is asked of it for each row: the attribute's name, the
            column's, whether it is not sensitive.
        documents: Those that hold JSON, and are not sensitive.
        texts: Those that hold texts, which need a look only for what they say, not for their
            name.
        by_key: The same, by attribute name.
        key: The columns of the primary key.
        auto_updated: Attribute names whose value a flush may change unasked.
        post_updated: Attribute names that a flush sets by a statement of their own, after the row.
        wrapped: Columns whose values a SQL expression makes others of.
        deleting: What is to be said when a row is deleted: of which tables the database may have
            deleted or changed rows on its own.
        update_cascades: The same for a change of the columns that others refer to; by the
            attribute's name.
        captured: Whether it is captured at all.
    """

    entity: str
    naming: RowNaming
    table: str
    columns: tuple[ColumnInfo, ...]
    readings: tuple[tuple[str, str, bool, ColumnInfo], ...]
    documents: tuple[ColumnInfo, ...]
    texts: tuple[ColumnInfo, ...]
    by_key: dict[str, ColumnInfo]
    key: tuple[ColumnInfo, ...]
    auto_updated: tuple[str, ...]
    post_updated: tuple[str, ...]
    wrapped: tuple[str, ...]
    deleting: str | None
    update_cascades: dict[str, str]
    captured: bool

    def attribute_of(self, column: str) -> str:
        """The attribute that a column is mapped to; empty where there is none."""
        return next((one.key for one in self.columns if one.name == column), "")


class MapperInfoCache:
    """The plans of all mappers and tables met so far."""

    def __init__(
        self,
        selection: Selection,
        is_not_sensitive: Callable[[str], bool],
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start with no class known.

        Args:
            selection: What is captured.
            is_not_sensitive: Whether nothing is redacted for a name alone.
            names: Classes, tables or derived nouns to the nouns that are to be used.
        """
        self._nouns = ReferenceNames(names)
        self._selection = selection
        self._is_not_sensitive = is_not_sensitive
        self._mappers: weakref.WeakKeyDictionary[Mapper[Any], MapperInfo] = (
            weakref.WeakKeyDictionary()
        )
        self._tables: weakref.WeakKeyDictionary[Table, weakref.ref[Mapper[Any]] | None] = (
            weakref.WeakKeyDictionary()
        )
        self._columns: weakref.WeakKeyDictionary[Column[Any], ColumnInfo] = (
            weakref.WeakKeyDictionary()
        )
        self._stored: weakref.WeakKeyDictionary[Table, tuple[Column[Any], ...]] = (
            weakref.WeakKeyDictionary()
        )
        self._named: dict[str, list[Table]] = {}
        self.cascades = Cascades()
        self.personal = PersonalColumns(_referred)
        self.version = next(_versions)
        """Another one after each time that something was forgotten: what follows from the plans of
        tables holds as long, and for this cache alone."""

    def of(self, mapper: Mapper[Any]) -> MapperInfo:
        """The plan of a mapper."""
        plan = self._mappers.get(mapper)
        if plan is None:
            if self._nouns.meets(mapper):
                # classes of another declarative base may be called alike
                self._mappers.clear()
            plan = self._mappers[mapper] = _plan_mapper(
                mapper, self._selection, self._is_not_sensitive, self._nouns, self.cascades
            )
            self.personal.meet_mapper(mapper)
        return plan

    def of_table(self, table: Table) -> MapperInfo | None:
        """The plan of the class that is mapped to a table; of several the base of all."""
        mapper = self.mapper_of(table)
        return None if mapper is None else self.of(mapper)

    def mapper_of(self, table: Table) -> Mapper[Any] | None:
        """The mapper of a table; of several the base of all."""
        known = self._tables.get(table, _never_met)
        if known is None:
            return None
        found = known()
        if found is not None:
            return found
        mapper = _find_mapper(table)
        named = self._named
        if (
            named
            and table.metadata.tables.get(table.key) is table
            and table not in named.get(str(table.name).lower(), ())
        ):
            # a name in a text may mean it from now on
            self._named = {}
            self.version = next(_versions)
        self._tables[table] = None if mapper is None else weakref.ref(mapper)
        self.personal.meet_table(table)
        return mapper

    def of_column(self, column: Column[Any]) -> ColumnInfo:
        """The plan of a column of a table."""
        plan = self._columns.get(column)
        if plan is None:
            mapped = self.of_table(column.table) if isinstance(column.table, Table) else None
            name = str(column.name)
            attribute = name if mapped is None else mapped.attribute_of(name) or name
            plan = plan_column(column, attribute, name, self._is_not_sensitive)
            self._columns[column] = plan
        return plan

    def stored_columns(self, table: Table) -> tuple[Column[Any], ...]:
        """The columns of a table whose types are the application's, and store others."""
        found = self._stored.get(table)
        if found is None:
            found = tuple(one for one in table.columns if self.of_column(one).stored is not None)
            self._stored[table] = found
        return found

    def tables_named(self, name: str) -> list[Table]:
        """The tables that a name in a SQL text may mean, in any case.

        One with its schema means that table; where there is none of that name, any without a
        schema of its own, as that may be given on the way.
        """
        known = self._named
        if not known:
            known = self._index_tables()
        schema, _, bare = name.lower().rpartition(".")
        found = known.get(bare, [])
        if not schema:
            return list(found)
        exact = [one for one in found if one.schema is not None and one.schema.lower() == schema]
        return exact or [one for one in found if one.schema is None]

    def _index_tables(self) -> dict[str, list[Table]]:
        found: dict[str, list[Table]] = {}
        metadata = dict.fromkeys(one.metadata for one in list(self._tables))
        for registry in list(mapperlib._all_registries()):  # noqa: SLF001 - no public way to all mappers
            metadata[registry.metadata] = None
            for mapper in mappers_of(registry):
                metadata.update({t.metadata: None for t in mapper.tables if isinstance(t, Table)})
        for table in (one for some in metadata for one in list(some.tables.values())):
            found.setdefault(str(table.name).lower(), []).append(table)
        self._named = found
        return found

    def forget_tables(self) -> None:
        """A class was mapped: a table that had none may have one now, and a noun two classes."""
        self._tables.clear()
        self._columns.clear()
        self._stored.clear()
        self._mappers.clear()
        self._named = {}
        self.version = next(_versions)


def mark_of(column: Column[Any]) -> str | None:
    """The mark of a column: ``redact``, ``hash`` or None.

    A type that encrypts is taken at its word: what is a secret in the table is one here. A foreign
    key holds the very values of the column it refers to, and is hidden as that one is.
    """
    mark = _own_mark(column)
    if mark is not None or column.info.get("audit") not in (None, PERSONAL):
        return mark
    for one in _referred(column):
        if isinstance(one, Column):
            mark = "redact" if one.info.get("audit") in ("omit", False) else _own_mark(one)
            if mark is not None:
                return mark
    return None


def referred_names(column: Column[Any]) -> tuple[str, ...]:
    """The names of the columns and attributes that a foreign key refers to.

    One that is marked with ``True`` is shown whatever that is.
    """
    if not column.foreign_keys or column.info.get("audit") is True:
        return ()
    found: dict[str, None] = {}
    for one in _referred(column):
        if isinstance(one, str):
            found[one] = None
            continue
        found[str(one.name)] = None
        mapper = _find_mapper(one.table) if isinstance(one.table, Table) else None
        if mapper is not None and one in mapper.columns.values():
            found[mapper.get_property_by_column(one).key] = None
    return tuple(found)


def _own_mark(column: Column[Any]) -> str | None:
    mark = column.info.get("audit")
    if mark in ("redact", "hash"):
        return str(mark)
    if mark is not None and mark not in ("omit", PERSONAL, True, False):
        return "redact"
    return "redact" if _is_secret(column.type) else None


def _is_secret(kind: TypeEngine[Any]) -> bool:
    """Whether a type says that its values are secrets: by its name, or as it encrypts or hashes."""
    if is_secret_type(type(kind).__name__):
        return True
    return any(map(is_secret_function, wrapping_functions(kind) or ()))


def _referred(column: Column[Any]) -> Iterator[Column[Any] | str]:
    """The columns that a foreign key refers to, at last; by name where the table is not known."""
    seen = {column}
    waiting = list(column.foreign_keys)
    while waiting:
        one = waiting.pop()
        try:
            there = one.column
        except SQLAlchemyError:
            yield one.target_fullname.rpartition(".")[2]
            continue
        if there not in seen:
            seen.add(there)
            yield there
            waiting += there.foreign_keys


def plan_column(
    column: Column[Any], key: str, name: str, is_not_sensitive: Callable[[str], bool]
) -> ColumnInfo:
    """The plan of one column.

    Args:
        column: The column.
        key: The attribute it is mapped to.
        name: What it is called in a record.
        is_not_sensitive: Whether nothing is redacted for a name alone.
    """
    mark = mark_of(column)
    further = [one for one in (key, *referred_names(column)) if not is_not_sensitive(one)]
    stored = stored_values(column.type) if mark is None else None
    plainly_named = mark is None and not further and is_not_sensitive(name)
    wrapped = mark is None and wrapping_functions(column.type) is not None
    database_value = column.computed is not None or column.identity is not None
    return ColumnInfo(
        key=key,
        name=name,
        mark=mark,
        same=column.type.compare_values,
        filled=column.server_default is not None or database_value or column.default is not None,
        auto_updated=column.onupdate is not None
        or column.server_onupdate is not None
        or column.computed is not None,
        is_text=isinstance(column.type, String),
        is_json=_is_json(column.type),
        alias=further[0] if further else key,
        not_sensitive=plainly_named and stored is None and not wrapped,
        plainly_named=plainly_named,
        type=column.type,
        members=members_of(column.type) if stored is None else None,
        stored=stored,
        place=(str(getattr(column.table, "key", "")), str(column.key)),
        spelling=key_spelling(column.type),
        wrapped=wrapped,
    )


def _is_json(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind.impl if isinstance(kind, TypeDecorator) else kind, JSON)


def _plan_mapper(
    mapper: Mapper[Any],
    selection: Selection,
    is_not_sensitive: Callable[[str], bool],
    nouns: ReferenceNames,
    cascades: Cascades,
) -> MapperInfo:
    columns: dict[str, ColumnInfo] = {}
    key: dict[ColumnElement[Any], ColumnInfo] = {}
    names: set[str] = set()
    for attribute in mapper.column_attrs:
        # a column_property over an expression is nothing that is written
        mapped = [column for column in attribute.columns if isinstance(column, Column)]
        if not mapped or not isinstance(mapped[0].table, Table):
            continue
        column = mapped[0]
        name = (
            str(column.name) if column.name not in names else f"{column.table.name}.{column.name}"
        )
        names.add(name)
        plan = plan_column(column, attribute.key, name, is_not_sensitive)
        hidden = column.info.get("audit") in ("omit", False)
        for one in mapped:
            if one in mapper.primary_key:
                key[one] = replace(plan, mark="redact", not_sensitive=False) if hidden else plan
        if all(selection.takes_column(one) for one in mapped):
            columns[attribute.key] = plan
    version = mapper.version_id_col
    version_key = None if version is None else mapper.get_property_by_column(version).key
    return MapperInfo(
        entity=mapper.class_.__name__,
        naming=nouns.naming(mapper, _table_name(mapper)),
        table=_table_name(mapper),
        columns=tuple(columns.values()),
        readings=tuple((one.key, one.name, one.not_sensitive, one) for one in columns.values()),
        documents=tuple(one for one in columns.values() if one.not_sensitive and one.is_json),
        texts=tuple(one for one in columns.values() if one.not_sensitive and one.is_text),
        by_key=columns,
        key=tuple(key[column] for column in mapper.primary_key if column in key),
        auto_updated=tuple(
            one.key for one in columns.values() if one.auto_updated or one.key == version_key
        ),
        post_updated=_post_updated(mapper),
        wrapped=tuple(one.name for one in columns.values() if one.wrapped),
        deleting=_deleting(mapper, cascades),
        update_cascades=_update_cascades(mapper, cascades),
        captured=_is_captured(mapper, selection),
    )


def _post_updated(mapper: Mapper[Any]) -> tuple[str, ...]:
    columns = {
        column
        for other in mapper.registry.mappers
        for one in other.relationships
        if one.post_update
        for _, column in one.synchronize_pairs
    }
    return tuple(one.key for one in mapper.column_attrs if not columns.isdisjoint(one.columns))


def _deleting(mapper: Mapper[Any], cascades: Cascades) -> str | None:
    """The tables in which the database may delete or change rows together with a row.

    The rows that the session looks after by a relationship are none of it.
    """
    family = [table for one in mapper.base_mapper.self_and_descendants for table in one.tables]
    handled = {table for table in family if isinstance(table, Table)}
    left: dict[str, None] = {}
    for one in mapper.relationships:
        if one.viewonly or one.direction is RelationshipDirection.MANYTOONE:
            continue
        tables = [one.secondary] if one.secondary is not None else one.mapper.tables
        if not one.passive_deletes:
            handled.update(table for table in tables if isinstance(table, Table))
        elif one.cascade.delete or one.passive_deletes == "all":
            left[getattr(tables[0], "fullname", one.key)] = None
    found = cascades.of_delete([one for one in mapper.tables if isinstance(one, Table)], handled)
    return noted(list(dict.fromkeys((*left, *found))))


def _update_cascades(mapper: Mapper[Any], cascades: Cascades) -> dict[str, str]:
    found: dict[str, str] = {}
    for attribute in mapper.column_attrs:
        tables: dict[str, None] = {}
        for column in attribute.columns:
            if isinstance(column, Column) and isinstance(column.table, Table):
                tables.update(dict.fromkeys(cascades.of_update(column.table, (str(column.name),))))
        note = noted(tables)
        if note is not None:
            found[attribute.key] = note
    return found


def _is_captured(mapper: Mapper[Any], selection: Selection) -> bool:
    tables = [table for table in mapper.tables if isinstance(table, Table)]
    if not selection.takes_model(mapper.class_):
        return False
    return not tables or any(selection.takes_table(table) for table in tables)


def _table_name(mapper: Mapper[Any]) -> str:
    table = mapper.local_table
    # SQLAlchemy's names are a kind of text of their own, which costs every encoder a detour
    if isinstance(table, Table):
        return str(table.fullname)
    if isinstance(table, Join):
        return ", ".join(str(getattr(one, "fullname", one)) for one in mapper.tables)
    return str(getattr(table, "name", table))


def _find_mapper(table: Table) -> Mapper[Any] | None:
    candidates: Iterable[Mapper[Any]] = (
        mapper
        for registry in list(mapperlib._all_registries())  # noqa: SLF001 - no public way to all mappers
        for mapper in mappers_of(registry)
        if mapper.local_table is table
    )
    return min(candidates, key=lambda mapper: len(bases_of(mapper)), default=None)


def _never_met() -> None:
    """Stands for the mapper of a table that is met for the first time."""
