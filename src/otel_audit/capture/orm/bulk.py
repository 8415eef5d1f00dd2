"""Changes that statements make: many rows at once, known by their table, criteria and row count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, TextClause, TextualSelect
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.dml import UpdateBase

from otel_audit.capture.orm.masking import Masking
from otel_audit.capture.orm.plans import MapperPlan, Plans, mark_of
from otel_audit.capture.orm.statements import Write, find_writes, mask_literals
from otel_audit.capture.orm.values import portable
from otel_audit.record import Change, Operation
from otel_audit.redaction import WITHHELD

if TYPE_CHECKING:
    from sqlalchemy.engine import ExecutionContext

    from otel_audit.capture.orm.options import OrmOptions
    from otel_audit.capture.orm.selection import Selection

_COUNTER = re.compile(r"(?:_m?\d+)+$")
_MOST_PARAMETERS = 200
_HARMLESS = (bool, int, float)
_EMBEDDED = "inside a WITH clause: the number of rows is not known"


class BulkReader:
    """Describes executed statements."""

    def __init__(
        self, plans: Plans, selection: Selection, masking: Masking, options: OrmOptions
    ) -> None:
        """Take what describing needs."""
        self._plans = plans
        self._selection = selection
        self._masking = masking
        self._options = options

    def describe(self, context: Any, statement: str, parameters: Any, cursor: Any) -> list[Change]:
        """Describe what a statement has written.

        Args:
            context: SQLAlchemy's execution context.
            statement: The text that was sent.
            parameters: What the driver was given, for a statement without a compiled form.
            cursor: The driver's cursor, for the row count.

        Returns:
            One entry for each table; none if it wrote nothing that is captured.
        """
        element = compiled_element(context)
        if isinstance(element, UpdateBase):
            return self._describe_dml(element, context, statement, cursor)
        if element is not None and not isinstance(element, TextClause):
            return self._describe_embedded(context, statement)
        return self._describe_text(context, statement, parameters, cursor)

    def describe_attempt(self, context: Any, statement: str) -> list[Change]:
        """Tell what a statement that has failed was to write: operation, class and table only."""
        element = compiled_element(context)
        if isinstance(element, UpdateBase):
            elements = (element, *embedded_elements(context.compiled))
            entries = (
                self._entry(_operation_of_element(one), table_of(one))
                for one in elements
                if isinstance(one, UpdateBase)
            )
            return [one for one in entries if one is not None]
        return [
            Change(operation=one.operation, kind=one.kind, entity=one.table, table=one.table)
            for one in find_writes(statement)
            if self._takes(one)
        ]

    def _describe_dml(
        self, element: UpdateBase, context: Any, statement: str, cursor: Any
    ) -> list[Change]:
        operation = _operation_of_element(element)
        entry = self._entry(
            operation,
            table_of(element),
            statement=self._masking.text(statement, self._options.max_statement),
            parameters=self._parameters(_sets(context), table_of(element)),
            rows=affected_rows(context, cursor, element),
            note="upsert: ON CONFLICT" if is_upsert(element) else None,
        )
        return [*(() if entry is None else (entry,)), *self._describe_embedded(context, statement)]

    def _describe_embedded(self, context: Any, statement: str) -> list[Change]:
        """Describe the writes inside a WITH clause; their row counts are not to be had."""
        found: list[Change] = []
        for element in embedded_elements(context.compiled):
            if isinstance(element, TextClause):
                found += self._describe_embedded_text(element, context, statement)
            elif isinstance(element, UpdateBase):
                entry = self._entry(
                    _operation_of_element(element),
                    table_of(element),
                    statement=self._masking.text(statement, self._options.max_statement),
                    parameters=self._parameters(_sets(context), table_of(element)),
                    rows=None,
                    note=_EMBEDDED,
                )
                found += () if entry is None else (entry,)
        return found

    def _describe_embedded_text(
        self, element: TextClause, context: Any, statement: str
    ) -> list[Change]:
        text = self._masking.text(mask_literals(statement), self._options.max_statement)
        return [
            Change(
                operation=one.operation,
                kind=one.kind,
                entity=one.table,
                table=one.table,
                statement=text,
                parameters=self._text_parameters(context, None),
                note=_EMBEDDED,
            )
            for one in find_writes(element.text)
            if self._takes(one)
        ]

    def _describe_text(
        self, context: Any, statement: str, parameters: Any, cursor: Any
    ) -> list[Change]:
        writes = [one for one in find_writes(statement) if self._takes(one)]
        if not writes:
            return []
        text = self._masking.text(mask_literals(statement), self._options.max_statement)
        shown = self._text_parameters(context, parameters)
        rows = _row_count(cursor) if len(writes) == 1 else None
        return [
            Change(
                operation=one.operation,
                kind=one.kind,
                entity=one.table,
                table=one.table,
                rows=rows,
                statement=text,
                parameters=shown,
                note="what it writes is not to be seen from here"
                if one.kind == "untracked"
                else None,
            )
            for one in writes
        ]

    def _takes(self, write: Write) -> bool:
        return write.kind == "untracked" or self._selection.takes_table_name(write.table)

    def _entry(self, operation: Operation, table: Any, **parts: Any) -> Change | None:
        if not isinstance(table, Table):
            name = str(getattr(table, "name", "?"))
            return Change(operation=operation, kind="bulk", entity=name, table=name, **parts)
        plan = self._plans.of_table(table)
        if not self._selection.takes_table(table) or (plan is not None and not plan.captured):
            return None
        entity = str(table.name) if plan is None else plan.entity
        return Change(
            operation=operation, kind="bulk", entity=entity, table=str(table.fullname), **parts
        )

    def _parameters(self, sets: Sequence[Mapping[str, Any]], table: Any) -> Any:
        columns = _columns(table)
        plan = self._plans.of_table(table) if isinstance(table, Table) else None
        shown = [
            self._parameter_set(one, columns, plan)
            for one in sets[: self._options.max_parameter_sets]
        ]
        if len(sets) == 1:
            return shown[0] or None
        return _with_rest(shown, len(sets))

    def _parameter_set(
        self,
        parameters: Mapping[str, Any],
        columns: Mapping[str, Column[Any]],
        plan: MapperPlan | None,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in parameters.items():
            if len(found) >= _MOST_PARAMETERS:
                found["further_parameters"] = len(parameters) - len(found)
                break
            column = columns.get(name, columns.get(_COUNTER.sub("", name)))
            if column is None:
                found[name] = self._withheld(value)
            elif self._selection.takes_column(column):
                alias = "" if plan is None else plan.attribute_of(column.name)
                mark = mark_of(column)
                found[name] = self._masking.value(column.name, value, mark=mark, alias=alias)
        return found

    def _text_parameters(self, context: Any, parameters: Any) -> Any:
        sets = _sets(context) or _driver_sets(parameters)
        shown = [self._text_set(one) for one in sets[: self._options.max_parameter_sets]]
        if len(sets) <= 1:
            return (shown[0] or None) if shown else None
        return _with_rest(shown, len(sets))

    def _text_set(self, parameters: Any) -> Any:
        if isinstance(parameters, Mapping):
            return {
                str(name): self._masking.value(str(name), value)
                for name, value in parameters.items()
            }
        return [self._withheld(value) for value in parameters]

    def _withheld(self, value: Any) -> Any:
        """Show a value without a column only where it cannot be a secret."""
        form = portable(value)
        if form is None or isinstance(form, _HARMLESS):
            return form
        return WITHHELD


def compiled_element(context: ExecutionContext | Any) -> Any:
    """The SQL element that was executed, None for a plain text given to the driver."""
    compiled = getattr(context, "compiled", None)
    return bare(None if compiled is None else compiled.statement)


def bare(element: Any) -> Any:
    """What is executed of a SQL element that only says how to read its rows."""
    while isinstance(element, FromStatement | TextualSelect):
        element = element.element
    return element


def embedded_elements(compiled: Any) -> list[Any]:
    """The SQL elements in the WITH clauses of a compiled statement."""
    ctes = getattr(compiled, "ctes", None) or ()
    return [bare(getattr(one, "element", None)) for one in ctes]


def writes(element: Any) -> bool:
    """Whether a SQL element writes, as far as it shows."""
    if isinstance(element, TextClause):
        return bool(find_writes(element.text))
    return isinstance(element, UpdateBase)


def table_of(element: Any) -> Any:
    """The table that an INSERT, UPDATE or DELETE writes.

    The ORM gives an annotated copy of it, which is another object.
    """
    table = getattr(element, "table", None)
    return table.metadata.tables.get(table.key, table) if isinstance(table, Table) else table


def operation_of(context: Any) -> Operation:
    """What a compiled INSERT, UPDATE or DELETE does."""
    return "insert" if context.isinsert else "update" if context.isupdate else "delete"


def _operation_of_element(element: UpdateBase) -> Operation:
    return "insert" if element.is_insert else "update" if element.is_update else "delete"


def is_upsert(element: UpdateBase) -> bool:
    """Whether an INSERT has a clause for conflicts, so that it may update or skip rows."""
    return getattr(element, "_post_values_clause", None) is not None


def affected_rows(context: Any, cursor: Any, element: UpdateBase) -> int | None:
    """How many rows a statement has written, None where the driver does not say."""
    sets = _sets(context)
    if element.is_insert and not is_upsert(element) and element_has_values(element):
        multiple = getattr(element, "_multi_values", ())
        return sum(len(rows) for rows in multiple) if multiple else len(sets)
    if context.dialect.name == "sqlite" and getattr(cursor, "description", None) is not None:
        return None  # counts only once all rows have been fetched
    return _row_count(cursor)


def element_has_values(element: UpdateBase) -> bool:
    """Whether an INSERT brings its rows along, rather than select them."""
    return getattr(element, "select", None) is None


def _row_count(cursor: Any) -> int | None:
    rows = getattr(cursor, "rowcount", -1)
    return rows if isinstance(rows, int) and rows >= 0 else None


def _sets(context: Any) -> Sequence[Mapping[str, Any]]:
    return getattr(context, "compiled_parameters", None) or ()


def _driver_sets(parameters: Any) -> list[Any]:
    if isinstance(parameters, Mapping):
        return [parameters]
    if not parameters:
        return []
    if isinstance(parameters[0], Mapping | list | tuple):
        return list(parameters)
    return [parameters]


def _with_rest(shown: list[Any], total: int) -> list[Any]:
    rest = total - len(shown)
    return [*shown, {"further_parameter_sets": rest}] if rest else shown


def _columns(table: Any) -> Mapping[str, Column[Any]]:
    found: dict[str, Column[Any]] = {}
    columns: Iterable[Any] = getattr(table, "columns", ())
    for column in columns:
        if isinstance(column, Column):
            found.setdefault(column.key, column)
            found.setdefault(column.name, column)
    return found
