"""The rows of a flush: collected one by one, described when it is done."""

from __future__ import annotations

import weakref
from itertools import count, zip_longest
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from sqlalchemy import Table, select

from otel_audit.orm.executed import compiled_element, is_of_flush, is_short, operation_of, table_of
from otel_audit.orm.row_diff import (
    ValueReader,
    WrittenObject,
    completed,
    describe_delete,
    describe_insert,
    describe_update,
    gather_texts,
    just_written,
    missing_before,
    overwritten,
    taken_over,
)
from otel_audit.orm.stored_values import SentValues, sent_parameters
from otel_audit.orm.transaction_state import is_autocommit, is_committed
from otel_audit.record import Change, Operation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction

    from otel_audit.orm.association_rows import Relations
    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.mapper_info import ColumnInfo, MapperInfo, MapperInfoCache
    from otel_audit.orm.options import OrmOptions
    from otel_audit.orm.schema_qualifier import SchemaQualifiers
    from otel_audit.orm.selection import Selection
    from otel_audit.orm.transaction_state import Owner, TransactionState
    from otel_audit.orm.transactions import TransactionTracker


_Short: TypeAlias = "set[tuple[Operation, str]]"

_NONE_SENT: Mapping[str, Any] = MappingProxyType({})

_UNDER_WAY = "_otel_audit_flush"
"""Key of a session's running flush in its `info`: found for each row, gone with the session."""

_LAST = "_otel_audit_unit_of_work"
"""Key of a session's last unit of work in its `info`, which lives as long as its flush."""

_LOOKED_AT = 2_000
"""Rows whose texts are gathered at once."""


class Row(msgspec.Struct, eq=False):
    """One row that a flush has written."""

    operation: Operation
    plan: MapperInfo
    state: InstanceState[Any]
    before: dict[str, Any]
    written: WrittenObject


class Flush(msgspec.Struct, eq=False):
    """One flush of one session.

    Attributes:
        context: SQLAlchemy's unit of work.
        number: Counts the flushes of the process.
        rows: What was written, by connection.
        before: Values about to be overwritten, by state.
        others: Rows of association tables, and what could not be read, with their connections.
        plans: The plans of the mappers that have written.
        taken: Whether what is written is captured, by connection.
        sent: What was written, or may have been, to tables of captured classes; with the number of
            its connection's `rows` before it.
        short: Operations and tables of which fewer rows were inserted or deleted than requested.
        committed: Whether each statement is committed at once, by connection.
        values: What was sent for values of the application's own types, by connection.
        last_context: The execution context of the statement whose values were noted last.
        own_compiled: The last compiled statement of the unit of work's own.
        own_table: The table that it writes.
    """

    context: weakref.ref[UOWTransaction]
    number: int = 0
    rows: dict[Connection, list[Row]] = msgspec.field(default_factory=dict)
    before: dict[InstanceState[Any], dict[str, Any]] = msgspec.field(default_factory=dict)
    others: list[tuple[Connection, Change]] = msgspec.field(default_factory=list)
    plans: dict[Mapper[Any], MapperInfo] = msgspec.field(default_factory=dict)
    taken: dict[Connection, bool] = msgspec.field(default_factory=dict)
    sent: dict[tuple[Connection, Operation, Table], int] = msgspec.field(default_factory=dict)
    short: _Short = msgspec.field(default_factory=set)
    committed: dict[Connection, bool] = msgspec.field(default_factory=dict)
    values: dict[Connection, SentValues] = msgspec.field(default_factory=dict)
    last_context: Any = None
    own_compiled: Any = None
    own_table: Any = None

    @property
    def writing(self) -> bool:
        """Whether it has come to write: a flush that finds nothing to do ends without a word."""
        context = self.context()
        return context is not None and getattr(context, "transaction", None) is not None

    def note_fate(self, connection: Connection) -> None:
        """See, at its first statement on a connection, whether a transaction is around it.

        When the flush has failed it is too late: its rollback has ended what there was.
        """
        if connection not in self.committed:
            self.committed[connection] = is_committed(connection)


class Fetching:
    """Of which tables earlier values that are not loaded are read, with a query for each row.

    One is not loaded where the object is expired, or where a value was changed in its place.
    """

    def __init__(self, options: OrmOptions) -> None:
        """Take all, or those with configured before-images."""
        self._all = options.fetch_unknown
        self._tables = frozenset(options.before_images)
        self._known: weakref.WeakKeyDictionary[Mapper[Any], bool] = weakref.WeakKeyDictionary()
        self.any = self._all or bool(self._tables)

    def takes(self, mapper: Mapper[Any]) -> bool:
        """Whether they are read of a mapped class."""
        found = self._known.get(mapper)
        if found is None:
            names = {name for one in mapper.tables for name in (one.name, one.fullname)}
            found = self._known[mapper] = self._all or not self._tables.isdisjoint(names)
        return found


class OpenFlushes:
    """The flushes under way."""

    def __init__(  # noqa: PLR0913, PLR0917 - one argument a part
        self,
        selection: Selection,
        plans: MapperInfoCache,
        masking: ColumnRedaction,
        relations: Relations,
        tracker: TransactionTracker,
        faults: ErrorGuard,
        places: SchemaQualifiers,
    ) -> None:
        """Begin with none."""
        self._selection = selection
        self._plans = plans
        self._masking = masking
        self._relations = relations
        self._tracker = tracker
        self._faults = faults
        self._places = places
        self._numbers = count()

    def begin(self, session: Session, context: UOWTransaction) -> None:
        """A session is about to flush."""
        reference = weakref.ref(context)
        session.__dict__[_LAST] = reference
        session.__dict__[_UNDER_WAY] = Flush(reference, next(self._numbers))

    def of(self, session: Session) -> Flush | None:
        """The flush of a session that is writing now."""
        flush: Flush | None = session.__dict__.get(_UNDER_WAY)
        return flush if flush is not None and flush.writing else None

    def writing(self, sessions: Iterable[Session]) -> Flush | None:
        """The flush that is writing now among some sessions.

        Of several the one that has begun last: a listener of the others' has begun it. None while
        such a listener writes with `bulk_insert_mappings` or one of its kind.
        """
        found: Flush | None = None
        for session in sessions:
            flush = self.of(session)
            if flush is None and _is_in_bulk(session):
                return None
            if flush is not None and (found is None or flush.number > found.number):
                found = flush
        return found

    def will_write(
        self,
        mapper: Mapper[Any],
        connection: Connection,
        state: InstanceState[Any],
        operation: Operation,
        *,
        fetch: Fetching,
    ) -> None:
        """A row is about to be updated or deleted.

        Args:
            mapper: The object's mapper.
            connection: Where the row is.
            state: The object's state.
            operation: ``update`` or ``delete``.
            fetch: Whose values that are not loaded may be read from the database.
        """
        flush = self._flush_of(connection, state)
        if flush is None:
            return
        plan = self._plan(flush, mapper)
        if not plan.captured:
            return
        fetches = fetch.any and fetch.takes(mapper)
        if operation == "delete" and not fetches:
            return
        before = overwritten(state, plan) if operation == "update" else {}
        flush.before[state] = before
        if fetches:
            before.update(_fetch(mapper, connection, state, plan, operation))

    def has_written(
        self,
        mapper: Mapper[Any],
        connection: Connection,
        state: InstanceState[Any],
        operation: Operation,
    ) -> None:
        """A row was written."""
        flush = self._flush_of(connection, state)
        if flush is None:
            return
        try:
            plan = self._plan(flush, mapper)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._faults.note("plan", error)
            table = str(mapper.local_table)
            entry = untracked(operation, mapper.class_.__name__, table, type(error).__name__)
            flush.others.append((connection, entry))
            return
        if plan.captured:
            rows = flush.rows.get(connection)
            if rows is None:
                rows = flush.rows[connection] = []
            before = flush.before.get(state)
            if before is None:
                before = taken_over(state) if operation == "update" else {}
            rows.append(Row(operation, plan, state, before, just_written(state, operation)))

    def has_executed(self, flush: Flush, connection: Connection, context: Any, cursor: Any) -> bool:
        """A flush has executed a statement.

        Returns:
            Whether it is the unit of work's own; one that a listener of the application has
            added is not.
        """
        compiled = context.compiled
        if compiled is not None and compiled is flush.own_compiled:
            # the next of many rows, each with a statement for it
            self._note_own(flush, connection, flush.own_table, context, cursor)
            return True
        element = None if compiled is None else compiled.statement
        table = table_of(element)
        unit = flush.context()
        mappers = () if unit is None else unit.mappers
        if is_of_flush(element, context.execution_options, mappers):
            flush.own_compiled, flush.own_table = compiled, table
            self._note_own(flush, connection, table, context, cursor)
            return True
        plan = None if unit is None else self._relations.of(table, unit.mappers)
        if plan is None or not isinstance(table, Table):
            return False
        flush.note_fate(connection)
        operation, place = operation_of(context), self._places.at(connection)
        rows = context.compiled_parameters
        sent = sent_parameters(context) if self._plans.stored_columns(table) else ()
        for row, values in zip_longest(rows, sent[: len(rows)], fillvalue=_NONE_SENT):
            try:
                change = self._relations.describe(plan, operation, row, table, place, values)
            except Exception as error:  # noqa: BLE001 - must not reach the application
                self._faults.note("relation", error)
                change = untracked(operation, plan.name, plan.naming.table, type(error).__name__)
            flush.others.append((connection, change))
        return True

    def _note_own(
        self, flush: Flush, connection: Connection, table: Any, context: Any, cursor: Any
    ) -> None:
        flush.note_fate(connection)
        operation = operation_of(context)
        if is_short(context, cursor) and isinstance(table, Table):
            flush.short.add((operation, str(table.fullname)))
        self._note_sent(flush, connection, operation, table)
        if operation != "delete" and isinstance(table, Table):
            self._note_values(flush, connection, table, context)

    def writes_relation(self, flush: Flush, table: Table) -> bool:
        """Whether a table holds the rows of an association between classes that a flush writes."""
        unit = flush.context()
        return unit is not None and self._relations.of(table, unit.mappers) is not None

    def note_sent(self, flush: Flush, connection: Connection, context: Any) -> None:
        """A statement of many rows has failed in a flush: some of them may be written."""
        if connection not in flush.committed:
            flush.committed[connection] = is_autocommit(connection)
        table = table_of(compiled_element(context))
        self._note_sent(flush, connection, operation_of(context), table)

    def end(self, session: Session) -> set[Connection]:
        """A flush has written all; describe it.

        Returns:
            The connections it has written to on which that is committed already.
        """
        flush: Flush | None = session.__dict__.pop(_UNDER_WAY, None)
        if flush is None:
            return set()
        for connection, rows in flush.rows.items():
            scope = self._tracker.owner(connection)
            reader = ValueReader(self._masking, connection.dialect, flush.values.get(connection))
            self._look_at(rows, reader)
            state = self._tracker.of(connection)
            self._placed(connection, rows)
            number = self._note_rows(state, scope, rows, reader, flush.short)
            if scope is not None and number:
                scope.note_flushed(number, state)
        for connection, change in flush.others:
            self._tracker.write(connection, [change])
        if not any(flush.committed.values()):
            return set()
        written = {*flush.rows, *(connection for connection, _ in flush.others)}
        return {one for one in written if flush.committed.get(one)}

    def _placed(self, connection: Connection, rows: list[Row]) -> None:
        """Name rows and tables as they are called where they are."""
        try:
            session = rows[0].state.session if rows else None
            if session is not None:
                self._places.learn_shards(session)
            place = self._places.at(connection)
            plans: dict[MapperInfo, MapperInfo] = {}
            for row in rows:
                plan = plans.get(row.plan)
                if plan is None:
                    plan = plans[row.plan] = self._places.plan(place, row.plan)
                row.plan = plan
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._faults.note("place", error)

    def has_tried(self, session: Session, connection: Connection) -> bool:
        """Whether a flush that has not come to its end has written what is captured."""
        flush: Flush | None = session.__dict__.get(_UNDER_WAY)
        return (
            flush is not None
            and any(one is connection for one, _, _ in flush.sent)
            and self._selection.takes_session(session)
        )

    def fail(self, session: Session) -> dict[Connection, list[Change]]:
        """A flush has failed: forget what it has gathered.

        Returns:
            What it has left behind on connections in autocommit mode.
        """
        flush = self.of(session)
        if flush is None:
            return {}
        del session.__dict__[_UNDER_WAY]
        found: dict[Connection, list[Change]] = {}
        if self._selection.takes_session(session):
            for connection, change in self._left_by(flush):
                found.setdefault(connection, []).append(change)
        return found

    def _left_by(self, flush: Flush) -> Iterator[tuple[Connection, Change]]:
        for connection, rows in flush.rows.items():
            if flush.committed.get(connection):
                self._placed(connection, rows)
                for row in rows:
                    yield connection, _untold(row.operation, row.plan)
        for (connection, operation, table), first in flush.sent.items():
            if not flush.committed.get(connection):
                continue
            rows = flush.rows.get(connection, [])
            plan = self._plans.of_table(table)
            # the mapper reports its rows when it has written all of them
            if plan is not None and not any(_is_of(row, operation, table) for row in rows[first:]):
                yield connection, _untold(operation, plan)
        yield from ((one, change) for one, change in flush.others if flush.committed.get(one))

    def _look_at(self, rows: list[Row], reader: ValueReader) -> None:
        try:
            for first in range(0, len(rows), _LOOKED_AT):
                texts: dict[ColumnInfo, set[str]] = {}
                for row in rows[first : first + _LOOKED_AT]:
                    before = row.before if row.operation == "update" else None
                    gather_texts(row.written.loaded, row.plan, before, texts)
                reader.look_at(texts)
        except Exception as error:  # noqa: BLE001 - then each value is looked at alone
            self._faults.note("look", error)

    def _flush_of(self, connection: Connection, state: InstanceState[Any]) -> Flush | None:
        """The flush that writes a row; None if it is not captured."""
        session = state.session
        flush: Flush | None = None if session is None else session.__dict__.get(_UNDER_WAY)
        if flush is None:
            return None
        taken = flush.taken.get(connection)
        if taken is None:
            selection = self._selection
            taken = selection.takes_connection(connection) and selection.takes_session(session)
            flush.taken[connection] = taken
        return flush if taken else None

    def _note_sent(
        self, flush: Flush, connection: Connection, operation: Operation, table: Any
    ) -> None:
        key = (connection, operation, table)
        if key in flush.sent or self._is_captured(table):
            flush.sent[key] = len(flush.rows.get(connection, ()))

    def _note_values(
        self, flush: Flush, connection: Connection, table: Table, context: Any
    ) -> None:
        columns = self._plans.stored_columns(table)
        if not columns or context is flush.last_context:
            return  # further batches of a statement have the same parameters
        flush.last_context = context
        values = flush.values.get(connection)
        if values is None:
            values = flush.values[connection] = SentValues()
        try:
            values.gather(table, columns, context)
        except Exception as error:  # noqa: BLE001 - then the types are used again
            self._faults.note("sent values", error)

    def _is_captured(self, table: Any) -> bool:
        plan = self._plans.of_table(table) if isinstance(table, Table) else None
        return plan is not None and plan.captured

    def _plan(self, flush: Flush, mapper: Mapper[Any]) -> MapperInfo:
        plan = flush.plans.get(mapper)
        if plan is None:
            plan = flush.plans[mapper] = self._plans.of(mapper)
        return plan

    def _note_rows(
        self,
        state: TransactionState,
        owner: Owner,
        rows: list[Row],
        reader: ValueReader,
        short: _Short,
    ) -> int:
        """Describe rows; return the number of changes."""
        batch = None
        number = 0
        for row in rows:
            try:
                change = _describe(row, reader)
                if change is None:
                    continue
                if short and _is_short(row, short):
                    change = _doubted(change)
            except Exception as error:  # noqa: BLE001 - must not reach the application
                self._faults.note("describe", error)
                plan = row.plan
                change = untracked(row.operation, plan.entity, plan.table, type(error).__name__)
            if batch is None:
                batch = state.top.batch(owner)
            self._plans.personal.mark(change)
            batch.add(change)
            number += 1
        return number


def _is_in_bulk(session: Session) -> bool:
    """Whether a session writes mappings, without a unit of work."""
    if not getattr(session, "_flushing", False):
        return False
    last = session.__dict__.get(_LAST)
    return last is None or last() is None


def untracked(operation: Operation, entity: str, table: str, reason: str) -> Change:
    """The entry of a write that could not be described."""
    return Change(
        operation=operation,
        kind="untracked",
        entity=entity,
        table=table,
        note=f"could not be described: {reason}",
    )


def _untold(operation: Operation, plan: MapperInfo) -> Change:
    return untracked(operation, plan.entity, plan.table, "the flush failed")


def _is_of(row: Row, operation: Operation, table: Table) -> bool:
    return row.operation == operation and table in row.state.mapper.tables


def _describe(row: Row, reader: ValueReader) -> Change | None:
    if row.operation != "delete":
        written = completed(row.written, row.state, row.plan)
        if row.operation == "insert":
            return describe_insert(written.loaded, row.plan, reader)
        return describe_update(written, row.plan, row.before, reader)
    return describe_delete(row.state, row.plan, row.before, reader)


def _is_short(row: Row, short: _Short) -> bool:
    tables = row.state.mapper.tables
    return any((row.operation, getattr(table, "fullname", "")) in short for table in tables)


def _doubted(change: Change) -> Change:
    """The entry of a row that a trigger or a policy may have kept, or kept out."""
    note = f"the database has told of fewer rows than it was asked to {change.operation}"
    return msgspec.structs.replace(
        change,
        kind="untracked",
        values={},
        unknown_before=(),
        note=note if change.note is None else f"{change.note}; {note}",
    )


def _fetch(
    mapper: Mapper[Any],
    connection: Connection,
    state: InstanceState[Any],
    plan: MapperInfo,
    operation: Operation,
) -> dict[str, Any]:
    wanted = missing_before(state, plan, operation)
    identity = state.identity
    if not wanted or identity is None:
        return {}
    columns = [mapper.column_attrs[one.key].columns[0] for one in wanted]
    criteria = [column == value for column, value in zip(mapper.primary_key, identity, strict=True)]
    statement = select(*columns).select_from(mapper.persist_selectable).where(*criteria)
    row = connection.execute(statement).first()
    if row is None:
        return {}
    return {one.key: value for one, value in zip(wanted, row, strict=True)}
