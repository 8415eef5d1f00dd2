"""Rows of association tables: what a many-to-many relationship really wrote."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table

from otel_audit.orm.mapper_info import MapperInfoCache
from otel_audit.orm.reference_names import RowNaming
from otel_audit.record import Change, Operation, key_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Mapper, RelationshipProperty

    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.schema_qualifier import SchemaQualifiers, WriteLocation

_EARLIER = "old_"
"""Prefix of SQLAlchemy's criteria parameters when it moves an association's row to another key."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two entities that an association's row joins.

    Attributes:
        naming: What its rows are called.
        columns: The association's columns that hold its primary key, in the key's order.
    """

    naming: RowNaming
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelationInfo:
    """An association table.

    Attributes:
        name: Its name.
        naming: What its rows are called.
        key: The columns that identify its rows: those that refer to the joined tables.
        sides: What it joins, as far as it does so by primary keys.
    """

    name: str
    naming: RowNaming
    key: tuple[str, ...]
    sides: tuple[Side, ...]


class Relations:
    """The association tables met so far."""

    def __init__(
        self,
        mapper_infos: MapperInfoCache,
        column_redaction: ColumnRedaction,
        qualifiers: SchemaQualifiers,
    ) -> None:
        """Start with no association table known.

        Args:
            mapper_infos: What is known of the mapped classes.
            column_redaction: Redacts the values of columns.
            qualifiers: Name the tables as the trail calls them.
        """
        self._mapper_infos = mapper_infos
        self._qualifiers = qualifiers
        self._column_redaction = column_redaction
        self._known: weakref.WeakKeyDictionary[Table, RelationInfo] = weakref.WeakKeyDictionary()

    def of(self, table: Any, mappers: Iterable[Mapper[Any]]) -> RelationInfo | None:
        """The plan of an association table.

        Args:
            table: A table that a flush has written without a mapped object.
            mappers: Mappers that take part in the flush.

        Returns:
            None if none of them has a relationship over this table.
        """
        if not isinstance(table, Table):
            return None
        plan = self._known.get(table)
        if plan is None:
            relationship = _relationship_over(table, mappers)
            if relationship is None:
                return None
            plan = self._known[table] = self._plan(table, relationship)
        return plan

    def describe(  # noqa: PLR0913, PLR0917 - a row, and where it is
        self,
        plan: RelationInfo,
        operation: Operation,
        row: Mapping[str, Any],
        table: Table,
        place: WriteLocation,
        sent: Mapping[str, Any],
    ) -> Change:
        """Describe one row that was added, removed or moved.

        Args:
            plan: The association.
            operation: What was done.
            row: The statement's parameters.
            table: The association's table.
            place: Where it was written.
            sent: What the driver was given for the parameters.

        Returns:
            A change of kind ``relation`` that names both sides.
        """
        columns = {column.key: column for column in table.columns}
        now = self._row(row, sent, columns, "")
        earlier = self._row(row, sent, columns, _EARLIER)
        whole = now if operation != "update" else {**earlier, **now}
        key = {name: whole[name] for name in plan.key if name in whole}
        naming = self._qualifiers.naming(place, plan.naming)
        references = dict.fromkeys(
            one
            for row in (whole, earlier)
            for one in (*self._references(plan, row, place), *naming.references(key))
        )
        return Change(
            operation=operation,
            kind="relation",
            entity=plan.name,
            name=naming.name_for(key),
            table=naming.table,
            key=key,
            values=_values(operation, now, earlier),
            related=tuple(references),
        )

    def _row(
        self,
        row: Mapping[str, Any],
        sent: Mapping[str, Any],
        columns: Mapping[str, Column[Any]],
        prefix: str,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, column in columns.items():
            if prefix + key in row:
                plan, value = self._mapper_infos.of_column(column), row[prefix + key]
                spell = plan.spelling if column.foreign_keys else None
                if plan.stored is not None:
                    stored = sent.get(prefix + key, value)
                    stored = stored if spell is None else spell(stored)
                    found[column.name] = self._column_redaction.stored(
                        plan.name, value, stored, plan.alias
                    )
                    continue
                value = value if spell is None else spell(value)
                found[column.name] = self._column_redaction.value(
                    plan.name, value, mark=plan.mark, alias=plan.alias
                )
        return found

    def _plan(self, table: Table, relationship: RelationshipProperty[Any]) -> RelationInfo:
        pairs = (
            (relationship.parent, relationship.synchronize_pairs),
            (relationship.mapper, relationship.secondary_synchronize_pairs or ()),
        )
        sides = []
        for mapper, columns in pairs:
            side = self._side(mapper, dict(columns))
            if side is not None:
                sides.append(side)
        order = [str(column.name) for column in table.columns]
        sides.sort(key=lambda side: order.index(side.columns[0]))
        referring = {str(column.name) for _, columns in pairs for _, column in columns}
        return RelationInfo(
            str(table.name),
            RowNaming.of_table(table),
            tuple(name for name in order if name in referring),
            tuple(sides),
        )

    def _side(self, mapper: Mapper[Any], columns: Mapping[Any, Any]) -> Side | None:
        plan = self._mapper_infos.of(mapper)
        found = []
        for part in mapper.primary_key:
            name = next(
                (there.name for here, there in columns.items() if _is_same(mapper, here, part)),
                None,
            )
            if name is None:
                return None
            found.append(name)
        return Side(plan.naming, tuple(found))

    def _references(
        self, plan: RelationInfo, row: Mapping[str, Any], place: WriteLocation
    ) -> list[str]:
        found = []
        for side in plan.sides:
            if all(column in row for column in side.columns):
                naming = self._qualifiers.naming(place, side.naming)
                key = key_text(*(row[column] for column in side.columns))
                found += [f"{name}:{key}" for name in (naming.own, *naming.also)]
        return found


def _is_same(mapper: Mapper[Any], one: Any, other: Any) -> bool:
    """Whether two columns are one attribute, as the keys of joined tables are."""
    if one is other:
        return True
    found = mapper.get_property_by_column(one) if one in mapper.columns.values() else None
    return found is not None and found is mapper.get_property_by_column(other)


def _relationship_over(
    table: Table, mappers: Iterable[Mapper[Any]]
) -> RelationshipProperty[Any] | None:
    for mapper in list(mappers):
        for relationship in mapper.relationships:
            if relationship.secondary is table and not relationship.viewonly:
                return relationship
    return None


def _values(
    operation: Operation, now: dict[str, Any], earlier: dict[str, Any]
) -> dict[str, list[Any]]:
    if operation == "insert":
        return {name: [None, value] for name, value in now.items()}
    if operation == "delete":
        return {name: [value, None] for name, value in now.items()}
    return {
        name: [earlier.get(name), value]
        for name, value in now.items()
        if earlier.get(name) != value
    }
