"""Changes that statements make: many rows at once, known by their table, criteria and row count."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import DDL, Table, TextClause
from sqlalchemy.sql.dml import UpdateBase

from otel_audit._util.cache import BoundedCache
from otel_audit.orm.cascades import noted
from otel_audit.orm.compiled_binds import set_columns
from otel_audit.orm.executed import (
    affected_rows,
    compiled_element,
    embedded_elements,
    is_upsert,
    parameter_sets,
    row_count_of,
    table_of,
)
from otel_audit.orm.parameters import LONGEST_PLACED, Parameters
from otel_audit.orm.sql_lexer import Style
from otel_audit.orm.sql_statements import EMBEDDED, UPSERT, SqlText, Write, read_sql
from otel_audit.record import Change, Operation

if TYPE_CHECKING:
    from otel_audit.orm.mapper_info import MapperInfo, MapperInfoCache
    from otel_audit.orm.selection import Selection


_REMEMBERED: Final = 256
"""Statements that are remembered as they were read, about."""


class BulkReader:
    """Describes executed statements."""

    def __init__(
        self, mapper_infos: MapperInfoCache, selection: Selection, parameters: Parameters
    ) -> None:
        """Start with no text of a statement remembered.

        Args:
            mapper_infos: What is known of the mapped classes.
            selection: What is recorded of which tables and columns.
            parameters: Shows the parameters and texts of statements.
        """
        self._mapper_infos = mapper_infos
        self._selection = selection
        self._parameters = parameters
        self._texts: BoundedCache[tuple[Write, str, Style], tuple[int, Change | None]] = (
            BoundedCache(_REMEMBERED)
        )

    def describe(self, context: Any, statement: str, cursor: Any) -> list[Change]:
        """Describe what a compiled INSERT, UPDATE or DELETE, or a query around one, has written.

        Args:
            context: SQLAlchemy's execution context.
            statement: The text that was sent.
            cursor: The driver's cursor, for the row count.

        Returns:
            One entry for each table; none if it wrote nothing that is captured.
        """
        element = compiled_element(context)
        embedded = self._describe_embedded(context, statement)
        if not isinstance(element, UpdateBase):
            return embedded
        entry = self._entry(
            element,
            statement=self._parameters.compiled_text(
                context.compiled, statement, style_of(context)
            ),
            parameters=self._parameters.of_compiled(context),
            rows=affected_rows(context, cursor, element),
            note=_notes(
                UPSERT if is_upsert(element) else None,
                self._cascading(element, parameter_sets(context)),
            ),
        )
        return [*(() if entry is None else (entry,)), *embedded]

    def describe_text(
        self, write: Write, context: Any, statement: str, parameters: Any, cursor: Any
    ) -> list[Change]:
        """Describe one write of a text.

        Args:
            write: What was read in the text.
            context: SQLAlchemy's execution context.
            statement: The text that was sent.
            parameters: What the driver was given, for a statement without a compiled form.
            cursor: The driver's cursor, for the row count.

        Returns:
            One entry; none if it is not captured.
        """
        style = style_of(context)
        same = self._same_of(write, statement, style)
        if same is None:
            return []
        return [
            msgspec.structs.replace(
                same,
                rows=row_count_of(context, cursor) if write.counted else None,
                parameters=self._parameters.of_compiled(context)
                if parameter_sets(context)
                else self._parameters.of_driver(statement, style, parameters),
            )
        ]

    def _same_of(self, write: Write, statement: str, style: Style) -> Change | None:
        """The constant facts of a text, the same for each execution; None if it is not captured."""
        key = write, statement, style
        found = self._texts.get(key)
        if found is None or found[0] != self._mapper_infos.version:
            # what was met on the way may have changed what a name means
            change = self._describe_same(write, statement, style)
            found = self._mapper_infos.version, change
            if len(statement) <= LONGEST_PLACED:
                self._texts.put(key, found)
        return found[1]

    def _describe_same(self, write: Write, statement: str, style: Style) -> Change | None:
        if not self._takes(write, style):
            return None
        table = self._shown_name(write)
        info = self._mapped_to(write.table)
        return Change(
            operation=write.operation,
            kind=write.kind,
            entity=table if info is None else info.entity,
            name=None if info is None else info.naming.noun,
            table=table,
            statement=self._parameters.text(statement, style),
            note=_notes(write.note, self._cascading_text(write, statement)),
        )

    def describe_attempt(self, context: Any, statement: str) -> list[Change]:
        """Describe what a failed statement was to write: operation, class and table only."""
        element = compiled_element(context)
        if isinstance(element, UpdateBase):
            elements = (element, *embedded_elements(context.compiled))
            entries = (self._entry(one) for one in elements if isinstance(one, UpdateBase))
            return [one for one in entries if one is not None]
        style = style_of(context)
        return [
            Change(operation=one.operation, kind=one.kind, entity=one.table, table=one.table)
            for one in read_sql(statement, style).writes
            if self._takes(one, style)
        ]

    def _describe_embedded(self, context: Any, statement: str) -> list[Change]:
        """Describe the writes inside a WITH clause; their row counts are not to be had."""
        found: list[Change] = []
        compiled = context.compiled
        for element in embedded_elements(compiled):
            if isinstance(element, TextClause):
                for one in read_sql(element.text, style_of(context, "named")).writes:
                    write = one._replace(counted=False, note=one.note or EMBEDDED)
                    found += self.describe_text(write, context, statement, None, None)
            elif isinstance(element, UpdateBase):
                entry = self._entry(
                    element,
                    statement=self._parameters.compiled_text(
                        compiled, statement, style_of(context)
                    ),
                    parameters=self._parameters.of_compiled(context),
                    rows=None,
                    note=EMBEDDED,
                )
                found += () if entry is None else (entry,)
        return found

    def _cascading(self, element: UpdateBase, sets: Sequence[Mapping[str, Any]]) -> str | None:
        """The note about rows that the database deletes or changes on its own."""
        table = table_of(element)
        if not isinstance(table, Table) or element.is_insert:
            return None
        cascades = self._mapper_infos.cascades
        if element.is_delete:
            return noted(cascades.of_delete([table]))
        watched = cascades.watched(table)
        if not watched:
            return None
        names = set(sets[0]) if sets else set()
        names.update(str(getattr(one, "name", one)) for one, _ in set_columns(element))
        return noted(cascades.of_update(table, watched & names))

    def _cascading_text(self, write: Write, statement: str) -> str | None:
        if write.operation == "insert" or write.kind == "untracked" or write.empties:
            return None
        cascades, found = self._mapper_infos.cascades, dict[str, None]()
        for table in self._mapper_infos.tables_named(write.table):
            if write.operation == "delete":
                found.update(dict.fromkeys(cascades.of_delete([table])))
            else:
                words = set(re.findall(r"\w+", statement))
                found.update(dict.fromkeys(cascades.of_update(table, words)))
        return noted(found)

    def _takes(self, write: Write, style: Style) -> bool:
        if write.kind == "untracked":
            return True
        known = self._mapper_infos.tables_named(write.table)
        if not known:
            return self._selection.takes_table_name(write.table, any_case=not style.folds)
        return any(self._takes_table(one) for one in known)

    def _takes_table(self, table: Table) -> bool:
        plan = self._mapper_infos.of_table(table)
        return self._selection.takes_table(table) and (plan is None or plan.captured)

    def _shown_name(self, write: Write) -> str:
        """The name of the table as its definition spells it, where that is known."""
        spelled = {str(one.fullname) for one in self._mapper_infos.tables_named(write.table)}
        same = [one for one in spelled if one.lower() == write.table.lower()]
        return same[0] if len(same) == 1 else write.table

    def _mapped_to(self, table: str) -> MapperInfo | None:
        """The one class that is mapped to the table of a name, if it is unique."""
        found = {self._mapper_infos.of_table(one) for one in self._mapper_infos.tables_named(table)}
        return found.pop() if len(found) == 1 else None

    def _entry(self, element: UpdateBase, **parts: Any) -> Change | None:
        operation, table = _operation_of_element(element), table_of(element)
        if not isinstance(table, Table):
            name = str(getattr(table, "name", "?"))
            return Change(operation=operation, kind="bulk", entity=name, table=name, **parts)
        if not self._takes_table(table) or not self._takes_subject(element):
            return None
        plan = self._mapper_infos.of_table(table)
        return Change(
            operation=operation,
            kind="bulk",
            entity=str(table.name) if plan is None else plan.entity,
            name=None if plan is None else plan.naming.noun,
            table=str(table.fullname),
            **parts,
        )

    def _takes_subject(self, element: UpdateBase) -> bool:
        """Whether the class is captured that a statement names: several may share a table."""
        subject = element._propagate_attrs.get("plugin_subject")  # noqa: SLF001 - no public way
        mapper = getattr(subject, "mapper", None)
        return mapper is None or self._mapper_infos.of(mapper).captured


def _notes(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def style_of(context: Any, paramstyle: str = "") -> Style:
    """The style in which the texts of a connection are read."""
    return Style(context.dialect.name, paramstyle or context.dialect.paramstyle)


def text_of(context: Any, statement: str) -> SqlText | None:
    """The executed text; None for a compiled statement."""
    element = compiled_element(context)
    if isinstance(element, TextClause | DDL | None):
        return read_sql(statement, style_of(context))
    return None


def writes(element: Any) -> bool:
    """Whether a SQL element writes, as far as it shows."""
    if isinstance(element, TextClause):
        return bool(read_sql(element.text).writes)
    return isinstance(element, UpdateBase)


def _operation_of_element(element: UpdateBase) -> Operation:
    return "insert" if element.is_insert else "update" if element.is_update else "delete"
