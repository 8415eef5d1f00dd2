"""What an executed statement tells: its element, its table, its operation, the rows it wrote.

And whose it is: the unit of work's, or the application's during a flush.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import DDL, Table, TextClause
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import SavepointClause
from sqlalchemy.sql.selectable import (
    TextualSelect,
)

from otel_audit.record import Operation

if TYPE_CHECKING:
    from sqlalchemy.engine import ExecutionContext
    from sqlalchemy.orm import Mapper


_ELEMENT: Final = "_otel_audit_element"
"""Key of the element that was sent, in the dictionary of what it was compiled to."""

_WRITES: Final = "_otel_audit_writes"
"""Key, there too, of whether a statement that is not a plain INSERT, UPDATE or DELETE may write."""

_UNREAD: Final = object()

INSERT_MANY_VALUES: Final = ExecuteStyle.INSERTMANYVALUES
"""Asked for with each statement: to look up a member of an enumeration takes a call."""


def sent_statement(compiled: Any) -> Any:
    """The sent statement: the ORM rewrites the application's.

    A subclass is written table by table, and criteria are added.
    """
    found = getattr(getattr(compiled, "compile_state", None), "statement", None)
    statement = compiled.statement
    while isinstance(statement, FromStatement | TextualSelect):
        statement = statement.element
    if isinstance(statement, UpdateBase) and isinstance(found, UpdateBase):
        return found
    return statement


def compiled_element(context: ExecutionContext | Any) -> Any:
    """The SQL element that was sent, None for a plain text given to the driver."""
    compiled = getattr(context, "compiled", None)
    if compiled is None:
        return None
    # SQLAlchemy compiles a statement once, and executes it often
    found = compiled.__dict__.get(_ELEMENT, _UNREAD)
    if found is _UNREAD:
        found = compiled.__dict__[_ELEMENT] = bare(sent_statement(compiled))
    return found


def bare(element: Any) -> Any:
    """The executed part of a SQL element that only says how to read its rows."""
    while isinstance(element, FromStatement | TextualSelect):
        element = element.element
    return element


def embedded_elements(compiled: Any) -> list[Any]:
    """The SQL elements in the WITH clauses of a compiled statement."""
    ctes = getattr(compiled, "ctes", None) or ()
    return [bare(getattr(one, "element", None)) for one in ctes]


def table_of(element: Any) -> Any:
    """The table that an INSERT, UPDATE or DELETE writes.

    The ORM gives an annotated copy of it, which is another object.
    """
    table = getattr(element, "table", None)
    return table.metadata.tables.get(table.key, table) if isinstance(table, Table) else table


def operation_of(context: Any) -> Operation:
    """The operation of a compiled INSERT, UPDATE or DELETE."""
    return "insert" if context.isinsert else "update" if context.isupdate else "delete"


def is_upsert(element: UpdateBase) -> bool:
    """Whether an INSERT has a clause for conflicts, so that it may update or skip rows."""
    return getattr(element, "_post_values_clause", None) is not None


def affected_rows(context: Any, cursor: Any, element: UpdateBase) -> int | None:
    """The number of rows that a statement has written, None if the driver does not say."""
    counted = row_count_of(context, cursor)
    if counted is not None or not element.is_insert or is_upsert(element):
        return counted
    if not element_has_values(element):
        return None
    multiple = getattr(element, "_multi_values", ())
    return sum(len(rows) for rows in multiple) if multiple else len(parameter_sets(context))


def element_has_values(element: UpdateBase) -> bool:
    """Whether an INSERT brings its rows along, rather than select them."""
    return getattr(element, "select", None) is None


def is_short(context: Any, cursor: Any) -> bool:
    """Whether fewer rows were inserted or deleted than there are sets of parameters."""
    if context.isupdate or context.execute_style is INSERT_MANY_VALUES:
        return False
    rows = getattr(cursor, "rowcount", -1)
    if rows == len(context.compiled_parameters):  # as nearly always
        return False
    counted = row_count_of(context, cursor)
    return counted is not None and counted < len(context.compiled_parameters)


def row_count_of(context: Any, cursor: Any) -> int | None:
    """The number of rows that the driver has counted; None if it does not say, or not yet."""
    if context.dialect.name == "sqlite" and getattr(cursor, "description", None) is not None:
        return None  # counts only once all rows have been fetched
    return driver_row_count(cursor)


def driver_row_count(cursor: Any) -> int | None:
    """The number of rows as the driver has it; None if it does not say."""
    rows = getattr(cursor, "rowcount", -1)
    return rows if isinstance(rows, int) and rows >= 0 else None


def parameter_sets(context: Any) -> Sequence[Mapping[str, Any]]:
    """The sets of parameters of a statement, as it was compiled."""
    return getattr(context, "compiled_parameters", None) or ()


def mapper_of_flush(
    statement: Any, options: Mapping[str, Any], mappers: Iterable[Mapper[Any]]
) -> Mapper[Any] | None:
    """Return the one of some mapped classes whose rows a flush has made a statement to write.

    A flush compiles into the cache of the mapper itself. An application may set a cache too, and
    the bulk UPDATE of the ORM uses the mapper's, but for a statement that names a class.

    Args:
        statement: The statement, uncompiled.
        options: What it is executed with.
        mappers: Of the classes.
    """
    cache = options.get("compiled_cache")
    if cache is None or getattr(statement, "_propagate_attrs", None):
        return None
    for mapper in mappers:
        # in the mapper's own dictionary: asking for the attribute would make a cache
        if mapper.base_mapper.__dict__.get("_compiled_cache") is cache:
            return mapper
    return None


def may_write(context: Any) -> bool:
    """Sort out, at little cost, the statements that only read."""
    if context.isinsert or context.isupdate or context.isdelete:
        return True
    compiled = context.compiled
    if compiled is None:
        return not context.isddl
    known: bool | None = compiled.__dict__.get(_WRITES)
    if known is None:
        known = compiled.__dict__[_WRITES] = bool(getattr(compiled, "ctes", None)) or isinstance(
            compiled_element(context), TextClause | DDL | SavepointClause | UpdateBase
        )
    return known
