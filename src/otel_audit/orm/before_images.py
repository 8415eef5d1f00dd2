"""Before-images: what one UPDATE or DELETE over many rows does to each of them.

For chosen tables the rows that a statement is going to affect are read first, in its transaction
and locked where the database can, and after an UPDATE once more.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from sqlalchemy import Column, Delete, Table, Update, and_, or_, select, type_coerce

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.orm.bulk import writes
from otel_audit.orm.executed import (
    bare,
    embedded_elements,
    mapper_of_flush,
    sent_statement,
    table_of,
)
from otel_audit.orm.mapper_info import MapperInfoCache
from otel_audit.orm.reference_names import RowNaming
from otel_audit.orm.schema_qualifier import SchemaQualifiers
from otel_audit.orm.stored_values import MISSING
from otel_audit.orm.transaction_state import ABORTING_DIALECTS, is_autocommit
from otel_audit.record import Change

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Dialect

    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.listeners import Executions
    from otel_audit.orm.options import OrmOptions
    from otel_audit.orm.selection import Selection
    from otel_audit.orm.transactions import TransactionTracker

_logger = logging.getLogger("otel_audit.orm")

_Row: TypeAlias = dict[str, Any]

_PASSED_ON = ("schema_translate_map",)
"""Options of a statement that say where its rows are."""

_AT_ONCE = 200
"""Keys in one SELECT of rows that were updated."""


@dataclass(frozen=True, slots=True)
class _Before:
    """The rows that a statement is about to affect.

    Attributes:
        statement: The statement.
        table: What it writes.
        columns: The recorded columns.
        read: What is read of a row, by key: the columns, and what they store, where that is
            another value.
        rows: The rows.
        options: With which further ones are to be read.
    """

    statement: Update | Delete
    table: Table
    columns: tuple[Column[Any], ...]
    read: dict[str, ColumnElement[Any]]
    rows: list[_Row]
    options: dict[str, Any]


class BeforeImageListeners:
    """Listens to statements before and after their execution."""

    def __init__(  # noqa: PLR0913, PLR0917 - one for each part that it uses
        self,
        mapper_infos: MapperInfoCache,
        selection: Selection,
        column_redaction: ColumnRedaction,
        executions: Executions,
        tracker: TransactionTracker,
        options: OrmOptions,
        qualifiers: SchemaQualifiers,
    ) -> None:
        """Hook into the review of executed statements.

        Args:
            mapper_infos: What is known of the mapped classes.
            selection: What is recorded of which tables and columns.
            column_redaction: Redacts the values of columns.
            executions: Follows the statements of each connection.
            tracker: Follows the transactions of each connection.
            options: The options of ORM capture.
            qualifiers: Name the tables as the trail calls them.
        """
        self._mapper_infos = mapper_infos
        self._selection = selection
        self._column_redaction = column_redaction
        self._executions = executions
        executions.review = self._review
        executions.review_text = self._review_text
        self._qualifiers = qualifiers
        self._tracker = tracker
        self._tables = frozenset(options.before_images)
        self._most = options.max_before_images
        self._before: weakref.WeakKeyDictionary[Connection, _Before] = weakref.WeakKeyDictionary()

    def before_execute(
        self,
        connection: Connection,
        statement: Any,
        multiparams: Sequence[Any],
        params: Any,
        execution_options: Any,
    ) -> None:
        """Read the rows that a statement is about to affect."""
        statement = bare(statement)
        if not isinstance(statement, Update | Delete):
            return
        table = table_of(statement)
        mapper = self._mapper_infos.mapper_of(table) if isinstance(table, Table) else None
        if mapper is not None and mapper_of_flush(statement, execution_options, (mapper,)):
            return
        self._before.pop(connection, None)
        if not isinstance(table, Table) or not self._takes(connection, table):
            return
        if len(multiparams) > 1:
            _say_unread(table.fullname, "it was given many sets of parameters")
            return
        columns = tuple(
            one for one in table.columns if one.primary_key or self._selection.takes_column(one)
        )
        given = params or (multiparams[0] if multiparams else None) or {}
        # as it will be sent: with the criteria that the ORM adds to it
        sent = sent_statement(statement.compile(dialect=connection.dialect))
        read = self._read_of(columns, connection.dialect)
        query = _rows_of(sent, read, table).limit(self._most + 1)
        compiled = query.compile(dialect=connection.dialect)
        options = {key: execution_options[key] for key in _PASSED_ON if key in execution_options}
        if any(map(writes, embedded_elements(compiled))):
            _say_unread(table.fullname, "its criteria write, too")
            return
        names = set(compiled.params)
        parameters = {name: given[name] for name in names.intersection(given)}
        found = _read_safely(connection, query, parameters, options)
        rows = _distinct(found, read, table)
        if len(rows) > self._most:
            _say_unread(table.fullname, f"it affects more than {self._most} rows")
            return
        self._before[connection] = _Before(statement, table, columns, read, rows, options)

    def _review(self, connection: Connection, context: Any, entries: list[Change]) -> list[Change]:
        """Compare what was read with what was written, before the statement's entry is noted.

        Args:
            connection: Where the statement was executed.
            context: Its execution context.
            entries: Its changes.

        Returns:
            The same. A trigger, a policy or another transaction may have let the statement affect
            more or fewer rows than were read. Then the affected rows are not known: no row is
            recorded, and the note of the statement's entry says so.
        """
        before = self._before.get(connection)
        if before is None:
            return entries
        described = [one for one in entries if one.table == before.table.fullname]
        statement = bare(getattr(context, "invoked_statement", None))
        if before.statement is not statement:
            if not described:
                return entries
            del self._before[connection]
            note = "not recorded row by row: a listener changed the statement"
            return [_noted(one, note) if one is described[0] else one for one in entries]
        written, read = (described[0].rows if described else 0), len(before.rows)
        if written is None or written == read:
            return entries
        del self._before[connection]
        if not described:
            return entries
        note = f"not recorded row by row: {read} rows were read before it, {written} were affected"
        return [_noted(one, note) if one is described[0] else one for one in entries]

    def _review_text(self, entries: list[Change]) -> None:
        """Say that the rows of a text were not read: its criteria are not known here.

        Args:
            entries: Its writes.
        """
        for entry in entries:
            names = {entry.table, entry.table.rpartition(".")[2]}
            if entry.operation != "insert" and not self._tables.isdisjoint(names):
                _say_unread(entry.table, "it is a plain text")

    def after_execute(
        self,
        connection: Connection,
        statement: Any,
        _multiparams: object,
        _params: object,
        _execution_options: object,
        _result: object,
    ) -> None:
        """Describe what the statement did to the rows that were read."""
        before = self._before.get(connection)
        if before is None or before.statement is not bare(statement):
            return
        del self._before[connection]
        after = _after(connection, before)
        self._tracker.write(connection, list(self._describe(connection, before, after)))
        self._executions.end_if_autocommit(connection)

    def _read_of(
        self, columns: Sequence[Column[Any]], dialect: Dialect
    ) -> dict[str, ColumnElement[Any]]:
        found: dict[str, ColumnElement[Any]] = {str(one.key): one for one in columns}
        for column in columns:
            stored = self._mapper_infos.of_column(column).stored
            below = None if stored is None else stored.below(dialect)
            if below is not None:
                key = _stored_key(column)
                found[key] = type_coerce(column, below).label(f"stored_{len(found)}")
        return found

    def _takes(self, connection: Connection, table: Table) -> bool:
        wanted = not self._tables.isdisjoint({table.name, table.fullname})
        return (
            wanted
            and bool(table.primary_key.columns)
            and self._selection.takes_table(table)
            and self._selection.takes_connection(connection)
            and not self._executions.writes_relation(connection, table)
        )

    def _describe(
        self, connection: Connection, before: _Before, after: dict[tuple[Any, ...], _Row]
    ) -> Iterator[Change]:
        is_update = isinstance(before.statement, Update)
        plan = self._mapper_infos.of_table(before.table)
        declared = RowNaming.of_table(before.table) if plan is None else plan.naming
        place = self._qualifiers.of_statement(connection, before.options)
        naming = self._qualifiers.naming(place, declared)
        read = functools.partial(self._read, dialect=connection.dialect)
        for row in before.rows:
            now = after.get(_key(row, before.table))
            key = {
                one.name: read(one, row, is_key=True) for one in before.table.primary_key.columns
            }
            if now is not None and not is_update:
                yield _kept(naming, before.table.name if plan is None else plan.entity, key)
                continue
            values = {
                column.name: [read(column, row), read(column, now)]
                for column in before.columns
                if _differs(column, row, now)
            }
            if is_update and now is not None and not values:
                continue
            lost = is_update and now is None
            yield Change(
                operation="update" if is_update else "delete",
                entity=before.table.name if plan is None else plan.entity,
                name=naming.name_for(key),
                table=naming.table,
                key=key,
                values=values,
                unknown_after=tuple(values) if lost else (),
                related=naming.references(key),
                note="not found again by its key: the statement may have changed that"
                if lost
                else None,
            )

    def _read(
        self, column: Column[Any], row: _Row | None, *, dialect: Dialect, is_key: bool = False
    ) -> Any:
        if row is None:
            return None
        info = self._mapper_infos.of_column(column)
        value = row[column.key]
        if info.stored is not None:
            stored = row.get(_stored_key(column), MISSING)
            if stored is MISSING:
                stored = info.stored.of(value, dialect)
            if is_key and info.spelling is not None:
                stored = info.spelling(stored)
            return self._column_redaction.stored(info.name, value, stored, info.alias)
        if info.members is not None:
            value = info.members.of(value, dialect)
        if is_key and info.spelling is not None:
            value = info.spelling(value)
        return self._column_redaction.value(info.name, value, mark=info.mark, alias=info.alias)


def _noted(change: Change, note: str) -> Change:
    return msgspec.structs.replace(
        change, note=note if change.note is None else f"{change.note}; {note}"
    )


def _kept(naming: RowNaming, entity: str, key: dict[str, Any]) -> Change:
    return Change(
        operation="delete",
        kind="untracked",
        entity=entity,
        name=naming.name_for(key),
        table=naming.table,
        key=key,
        related=naming.references(key),
        note="it is there still: a trigger or a rule may have kept it",
    )


def _stored_key(column: Column[Any]) -> str:
    return f"{column.key} as stored"


def _rows_of(statement: Any, read: Mapping[str, ColumnElement[Any]], table: Table) -> Any:
    query = select(*read.values()).where(
        *statement._where_criteria  # noqa: SLF001 - no public way
    )
    # as the statement itself will lock them
    return query.with_for_update(key_share=isinstance(statement, Update), of=table)


def _read_safely(
    connection: Connection, query: Any, parameters: _Row, options: dict[str, Any]
) -> Sequence[Any]:
    """Read behind a savepoint, where a failed SELECT would abort the transaction."""
    if connection.dialect.name not in ABORTING_DIALECTS or is_autocommit(connection):
        return connection.execute(query, parameters, execution_options=options).all()
    with connection.begin_nested():
        return connection.execute(query, parameters, execution_options=options).all()


def _distinct(found: Sequence[Any], read: Iterable[str], table: Table) -> list[_Row]:
    """The rows, each once: a statement over several tables may find one more than once."""
    rows: dict[tuple[Any, ...], _Row] = {}
    for one in found:
        row = dict(zip(read, one, strict=True))
        rows.setdefault(_key(row, table), row)
    return list(rows.values())


def _after(connection: Connection, before: _Before) -> dict[tuple[Any, ...], _Row]:
    keys = [_key(row, before.table) for row in before.rows]
    found: dict[tuple[Any, ...], _Row] = {}
    primary = list(before.table.primary_key.columns)
    for first in range(0, len(keys), _AT_ONCE):
        some = keys[first : first + _AT_ONCE]
        wanted = (
            primary[0].in_([key[0] for key in some])
            if len(primary) == 1
            else or_(
                *(
                    and_(*(one == part for one, part in zip(primary, key, strict=True)))
                    for key in some
                )
            )
        )
        for row in _distinct(
            _read_safely(
                connection, select(*before.read.values()).where(wanted), {}, before.options
            ),
            before.read,
            before.table,
        ):
            found[_key(row, before.table)] = row
    return found


def _key(row: _Row, table: Table) -> tuple[Any, ...]:
    return tuple(row[column.key] for column in table.primary_key.columns)


def _differs(column: Column[Any], before: _Row, after: _Row | None) -> bool:
    old = before[column.key]
    if after is None:
        return old is not None
    return column.type.compare_values(old, after[column.key]) is not True


def _say_unread(table: str, reason: str) -> None:
    # the reason is in the key, so that a frequent one does not hold back another
    log_limited(
        _logger, f"before-images {table} {reason}",
        "A statement on %s is recorded as one change, not row by row: %s", table, reason,
        level=logging.WARNING,
    )  # fmt: skip
