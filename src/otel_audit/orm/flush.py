"""The rows of a flush: collected one by one, described when it is done."""

from __future__ import annotations

import weakref
from itertools import count, zip_longest
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from sqlalchemy import Table, select

from otel_audit.orm.connection_facts import Flush, FlushPart
from otel_audit.orm.executed import (
    compiled_element,
    is_short,
    mapper_of_flush,
    operation_of,
    table_of,
)
from otel_audit.orm.row_diff import (
    ValueReader,
    WrittenRow,
    describe_delete,
    describe_insert,
    describe_update,
    gather_texts,
    just_written,
    missing_before,
    overwritten,
)
from otel_audit.orm.stored_values import SentValues, sent_parameters
from otel_audit.orm.transaction_state import is_autocommit, is_committed
from otel_audit.record import Change, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Column, Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction

    from otel_audit.orm.association_rows import Relations
    from otel_audit.orm.column_redaction import ColumnRedaction
    from otel_audit.orm.connection_facts import ConnectionFacts
    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.mapper_info import ColumnInfo, MapperInfo, MapperInfoCache
    from otel_audit.orm.options import OrmOptions
    from otel_audit.orm.schema_qualifier import SchemaQualifiers
    from otel_audit.orm.selection import Selection
    from otel_audit.orm.transactions import TransactionTracker


_Short: TypeAlias = "set[tuple[Operation, str]]"

_NONE_SENT: Mapping[str, Any] = MappingProxyType({})

_UNDER_WAY = "_otel_audit_flush"
"""Key of a session's running flush in its `info`: found for each row, gone with the session."""

_LAST = "_otel_audit_unit_of_work"
"""Key of a session's last unit of work in its `info`, which lives as long as its flush."""

_OWN = "_otel_audit_own"
"""Key of what is known of a statement of a flush, in the dictionary of what it was compiled to."""

_LOOKED_AT = 2_000
"""Rows whose texts are gathered at once."""

_FEW_ROWS = 4
"""Rows whose texts and documents are looked at in one go: their JSON text must stay short."""


class _OwnStatement(msgspec.Struct, frozen=True, eq=False):
    """What is known of a statement that a flush has made, as long as nothing else is mapped.

    Attributes:
        version: Of the plans that this follows from.
        cache: Where SQLAlchemy keeps what it was compiled to.
        mapper: Whose cache that is.
        operation: What it does.
        table: The table that it writes.
        is_table: Whether that is a table, and not a selection or a join.
        captured: Whether a class of that table is captured.
        stored: The columns of the table whose types are the application's; none of a DELETE.
    """

    version: int
    cache: Any
    mapper: Mapper[Any]
    operation: Operation
    table: Any
    is_table: bool
    captured: bool
    stored: tuple[Column[Any], ...]


class Fetching:
    """Of which tables earlier values that are not loaded are read, with a query for each row.

    One is not loaded where the object is expired, or where a value was changed in its place.
    """

    def __init__(self, options: OrmOptions) -> None:
        """Choose the tables: all, or those with before-images.

        Args:
            options: The options of ORM capture.
        """
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
        mapper_infos: MapperInfoCache,
        column_redaction: ColumnRedaction,
        relations: Relations,
        tracker: TransactionTracker,
        guard: ErrorGuard,
        qualifiers: SchemaQualifiers,
    ) -> None:
        """Start with no flush under way.

        Args:
            selection: What is recorded of which tables and columns.
            mapper_infos: What is known of the mapped classes.
            column_redaction: Redacts the values of columns.
            relations: The association tables met so far.
            tracker: Follows the transactions of each connection.
            guard: Keeps errors of capture away from the application.
            qualifiers: Name the tables as the trail calls them.
        """
        self._selection = selection
        self._mapper_infos = mapper_infos
        self._column_redaction = column_redaction
        self._relations = relations
        self._tracker = tracker
        self._guard = guard
        self._qualifiers = qualifiers
        self._numbers = count()

    def begin(self, session: Session, context: UOWTransaction) -> None:
        """A session is about to flush."""
        reference = weakref.ref(context)
        known = session.__dict__
        left: Flush | None = known.get(_UNDER_WAY)
        if left is not None:
            _detach(left)
        known[_LAST] = reference
        known[_UNDER_WAY] = Flush(
            reference,
            session.hash_key,
            self._selection.takes_session(session),
            next(self._numbers),
        )

    def of(self, session: Session) -> Flush | None:
        """The flush of a session that is writing now."""
        flush: Flush | None = session.__dict__.get(_UNDER_WAY)
        return flush if flush is not None and flush.writing else None

    def writing_on(self, facts: ConnectionFacts) -> Flush | None:
        """The flush that is writing now among the sessions of a connection.

        Of several the one that has begun last: a listener of the others' has begun it. None while
        such a listener writes with `bulk_insert_mappings` or one of its kind.
        """
        found: Flush | None = None
        for one in facts.sessions:
            session = one()
            if session is None:
                continue
            flush: Flush | None = session.__dict__.get(_UNDER_WAY)
            # as `Flush.writing`, without the call
            if flush is not None and getattr(flush.context(), "transaction", None) is not None:
                if found is None or flush.number > found.number:
                    found = flush
            elif _is_in_bulk(session):
                return None
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
        part = self._part_with(connection, state)
        if part is None:
            return
        flush = part.facts.flush
        if flush is None:
            return
        plan = flush.mapper_infos.get(mapper)
        if plan is None:
            plan = flush.mapper_infos[mapper] = self._mapper_infos.of(mapper)
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
        part = self._part_with(connection, state)
        if part is None:
            return
        flush = part.facts.flush
        if flush is None:
            return
        plan = flush.mapper_infos.get(mapper)
        if plan is None:
            try:
                plan = flush.mapper_infos[mapper] = self._mapper_infos.of(mapper)
            except Exception as error:  # noqa: BLE001 - must not reach the application
                self._guard.note("plan", error)
                table = str(mapper.local_table)
                entry = untracked(operation, mapper.class_.__name__, table, type(error).__name__)
                part.others.append(entry)
                return
        if plan.captured:
            part.rows.append(just_written(operation, plan, state, flush.before))

    def _part_with(self, connection: Connection, state: InstanceState[Any]) -> FlushPart | None:
        """The part of the running flush that a row belongs to; None if it is not captured."""
        facts = self._tracker.facts(connection)
        flush = facts.flush
        if flush is None or flush.session_id != state.session_id:
            session = state.session
            flush = None if session is None else session.__dict__.get(_UNDER_WAY)
            if flush is None:
                return None
            self.part_of(flush, connection)
        part = facts.part
        return part if part is not None and part.taken else None

    def part_of(self, flush: Flush, connection: Connection) -> FlushPart:
        """What a flush has written on a connection; it is the one that writes there now."""
        facts = self._tracker.facts(connection)
        part = facts.part
        if facts.flush is flush and part is not None:
            return part
        for one in flush.parts:
            if one.connection is connection:
                part = one
                break
        else:
            taken = flush.taken and (
                self._selection.takes_connection(connection) if facts.taken is None else facts.taken
            )
            part = FlushPart(connection, facts, taken)
            flush.parts.append(part)
        facts.flush, facts.part = flush, part
        return part

    def has_executed(self, flush: Flush, connection: Connection, context: Any, cursor: Any) -> bool:
        """A flush has executed a statement.

        Returns:
            Whether it is the unit of work's own; one that a listener of the application has
            added is not.
        """
        unit = flush.context()
        compiled = context.compiled
        own = None if unit is None else self._own(compiled, context.execution_options, unit.mappers)
        if own is not None:
            part = self.part_of(flush, connection)
            if part.committed is None:
                part.committed = is_committed(connection)
            if own.operation != "update" and own.is_table and is_short(context, cursor):
                flush.short.add((own.operation, str(own.table.fullname)))
            if own.captured:
                part.sent[own.operation, own.table] = len(part.rows)
            # further batches of a statement have the same parameters
            if own.stored and context is not flush.last_context:
                flush.last_context = context
                self._note_values(part, own, context)
            return True
        table = None if compiled is None else table_of(compiled.statement)
        plan = None if unit is None else self._relations.of(table, unit.mappers)
        if plan is None or not isinstance(table, Table):
            return False
        part = self.part_of(flush, connection)
        part.note_fate()
        operation, place = operation_of(context), self._qualifiers.at(connection)
        rows = context.compiled_parameters
        sent = sent_parameters(context) if self._mapper_infos.stored_columns(table) else ()
        for row, values in zip_longest(rows, sent[: len(rows)], fillvalue=_NONE_SENT):
            try:
                change = self._relations.describe(plan, operation, row, table, place, values)
            except Exception as error:  # noqa: BLE001 - must not reach the application
                self._guard.note("relation", error)
                change = untracked(operation, plan.name, plan.naming.table, type(error).__name__)
            part.others.append(change)
        return True

    def _own(
        self, compiled: Any, options: Mapping[str, Any], mappers: Mapping[Mapper[Any], Any]
    ) -> _OwnStatement | None:
        """The facts of a statement, if it is the unit of work's own."""
        if compiled is None:
            return None
        # SQLAlchemy compiles a statement once, and executes it often
        known: _OwnStatement | None = compiled.__dict__.get(_OWN)
        if (
            known is not None
            and known.version == self._mapper_infos.version
            and known.cache is options.get("compiled_cache")
            and known.mapper in mappers
        ):
            return known
        mapper = mapper_of_flush(compiled.statement, options, mappers)
        if mapper is None:
            return None
        table = table_of(compiled.statement)
        operation = operation_of(compiled)
        is_table = isinstance(table, Table)
        plan = self._mapper_infos.of_table(table) if is_table else None
        stores = is_table and operation != "delete"
        known = compiled.__dict__[_OWN] = _OwnStatement(
            version=self._mapper_infos.version,
            cache=options.get("compiled_cache"),
            mapper=mapper,
            operation=operation,
            table=table,
            is_table=is_table,
            captured=plan is not None and plan.captured,
            stored=self._mapper_infos.stored_columns(table) if stores else (),
        )
        return known

    def writes_relation(self, flush: Flush, table: Table) -> bool:
        """Whether a table holds the rows of an association between classes that a flush writes."""
        unit = flush.context()
        return unit is not None and self._relations.of(table, unit.mappers) is not None

    def note_sent(self, flush: Flush, connection: Connection, context: Any) -> None:
        """A statement of many rows has failed in a flush: some of them may be written."""
        part = self.part_of(flush, connection)
        if part.committed is None:
            part.committed = is_autocommit(connection)
        table = table_of(compiled_element(context))
        plan = self._mapper_infos.of_table(table) if isinstance(table, Table) else None
        if plan is not None and plan.captured:
            part.sent[operation_of(context), table] = len(part.rows)

    def end(self, session: Session) -> list[Connection]:
        """A flush has written all; describe it.

        Returns:
            The connections it has written to on which that is committed already.
        """
        flush: Flush | None = session.__dict__.pop(_UNDER_WAY, None)
        found: list[Connection] = []
        if flush is None:
            return found
        for part in _detach(flush):
            if part.rows:
                self._describe(part, session, flush.short)
            if part.others:
                self._tracker.write(part.connection, part.others)
            if part.committed and (part.rows or part.others):
                found.append(part.connection)
        return found

    def _describe(self, part: FlushPart, session: Session, short: _Short) -> None:
        """Describe the rows of mapped objects that were written on a connection."""
        connection = part.connection
        scope = self._tracker.owner(connection)
        reader = ValueReader(self._column_redaction, connection.dialect, part.values)
        self._look_at(part.rows, reader)
        state = self._tracker.of(connection)
        placed = self._placed(part, session)
        batch = None
        number = 0
        mark = self._mapper_infos.personal.mark
        for row in part.rows:
            plan = row.plan
            plan = placed.get(plan, plan)
            try:
                change = _change(row, plan, reader)
                if change is None:
                    continue
                if short and _is_short(row, short):
                    change = _unconfirmed(change)
            except Exception as error:  # noqa: BLE001 - must not reach the application
                self._guard.note("describe", error)
                change = untracked(row.operation, plan.entity, plan.table, type(error).__name__)
            if batch is None:
                batch = state.top.batch(scope)
            mark(change)
            batch.add(change)
            number += 1
        if scope is not None and number:
            scope.note_flushed(number, state)

    def _placed(self, part: FlushPart, session: Session) -> dict[MapperInfo, MapperInfo]:
        """Plans by which rows and tables are called as they are where they were written."""
        placed: dict[MapperInfo, MapperInfo] = {}
        try:
            place = self._qualifiers.at(part.connection, session)
            known = place.mapper_infos
            for row in part.rows:
                plan = row.plan
                if plan not in placed:
                    found = known.get(plan)
                    placed[plan] = self._qualifiers.plan(place, plan) if found is None else found
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._guard.note("place", error)
        return placed

    def has_tried(self, session: Session, connection: Connection) -> bool:
        """Whether a flush that has not ended has written captured rows."""
        flush: Flush | None = session.__dict__.get(_UNDER_WAY)
        return (
            flush is not None
            and flush.taken
            and any(one.connection is connection and one.sent for one in flush.parts)
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
        for part in _detach(flush):
            if flush.taken and part.committed:
                left = list(self._left_by(part, session))
                if left:
                    found[part.connection] = left
        return found

    def _left_by(self, part: FlushPart, session: Session) -> Iterator[Change]:
        placed = self._placed(part, session)
        for row in part.rows:
            yield _undescribed(row.operation, placed.get(row.plan, row.plan))
        for (operation, table), first in part.sent.items():
            plan = self._mapper_infos.of_table(table)
            # the mapper reports its rows when it has written all of them
            if plan is not None and not any(
                _is_of(row, operation, table) for row in part.rows[first:]
            ):
                yield _undescribed(operation, plan)
        yield from part.others

    def _look_at(self, rows: list[WrittenRow], reader: ValueReader) -> None:
        try:
            if len(rows) <= _FEW_ROWS:
                reader.look_at_all(rows)
                return
            for first in range(0, len(rows), _LOOKED_AT):
                texts: dict[ColumnInfo, set[str]] = {}
                for row in rows[first : first + _LOOKED_AT]:
                    gather_texts(row, texts)
                reader.look_at(texts)
        except Exception as error:  # noqa: BLE001 - then each value is looked at alone
            self._guard.note("look", error)

    def _note_values(self, part: FlushPart, own: _OwnStatement, context: Any) -> None:
        if part.values is None:
            part.values = SentValues()
        try:
            part.values.gather(own.table, own.stored, context)
        except Exception as error:  # noqa: BLE001 - then the types are used again
            self._guard.note("sent values", error)


def _detach(flush: Flush) -> list[FlushPart]:
    """Take what a flush has written; its connections know it no more."""
    for part in flush.parts:
        facts = part.facts
        if facts.flush is flush:
            facts.flush = facts.part = None
    return flush.parts


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


def _undescribed(operation: Operation, plan: MapperInfo) -> Change:
    return untracked(operation, plan.entity, plan.table, "the flush failed")


def _change(row: WrittenRow, plan: MapperInfo, reader: ValueReader) -> Change | None:
    if row.operation == "insert":
        return describe_insert(row, plan, reader)
    if row.operation == "update":
        return describe_update(row, plan, reader)
    return describe_delete(row, plan, reader)


def _is_of(row: WrittenRow, operation: Operation, table: Table) -> bool:
    return row.operation == operation and table in row.state.mapper.tables


def _is_short(row: WrittenRow, short: _Short) -> bool:
    tables = row.state.mapper.tables
    return any((row.operation, getattr(table, "fullname", "")) in short for table in tables)


def _unconfirmed(change: Change) -> Change:
    """The entry of a row that a trigger or a policy may have kept, or kept out."""
    note = f"the database reported fewer rows than it was asked to {change.operation}"
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
