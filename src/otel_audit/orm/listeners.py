"""SQLAlchemy's listeners, and the effect of each executed statement on its transaction.

Each public method of a class of listeners has the name and signature of its event.
"""

from __future__ import annotations

import inspect
import re
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import SavepointClause

from otel_audit.identity.mapped_objects import (
    has_remembered,
    remember_loaded,
    remember_stored,
)
from otel_audit.orm.bulk import BulkReader, text_of
from otel_audit.orm.executed import (
    INSERT_MANY_VALUES,
    compiled_element,
    driver_row_count,
    may_write,
)
from otel_audit.orm.flush import OpenFlushes, untracked
from otel_audit.orm.schema_qualifier import qualified
from otel_audit.orm.sql_statements import SqlText, TransactionControl, Write
from otel_audit.orm.transaction_state import commit_failure, dooms_transaction, is_committed
from otel_audit.record import Change
from otel_audit.scope import identities_at_hand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection, Table
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction, UOWTransaction

    from otel_audit.orm.flush import Fetching
    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.mapper_info import MapperInfoCache
    from otel_audit.orm.selection import Selection
    from otel_audit.orm.transactions import TransactionTracker

Review: TypeAlias = "Callable[[Connection, Any, list[Change]], list[Change]]"

_PART_WAY = "a later batch of the statement has failed"
_OBSCURE = re.compile(r"\b(?:ROLLBACK|ABORT|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)
"""Statements that may end the transaction invisibly."""


class MapperListeners:
    """Listens to the rows that a flush writes."""

    def __init__(
        self, flushes: OpenFlushes, mapper_infos: MapperInfoCache, *, fetch: Fetching
    ) -> None:
        """Remember what the events are passed on to.

        Args:
            flushes: The flushes under way.
            mapper_infos: What is known of mappers.
            fetch: Whose values that are not loaded may be read from the database.
        """
        self._flushes = flushes
        self._mapper_infos = mapper_infos
        self._fetch = fetch

    def before_update(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Copy the values that are about to be overwritten."""
        self._flushes.will_write(mapper, connection, state, "update", fetch=self._fetch)

    def before_delete(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Read a row that is about to be deleted; called only where that may take a query."""
        self._flushes.will_write(mapper, connection, state, "delete", fetch=self._fetch)

    def after_insert(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Remember an inserted row."""
        self._flushes.has_written(mapper, connection, state, "insert")

    def after_update(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Remember a row that may have been updated."""
        self._flushes.has_written(mapper, connection, state, "update")

    def after_delete(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Remember a deleted row."""
        self._flushes.has_written(mapper, connection, state, "delete")

    def mapper_configured(self, _mapper: Mapper[Any], _class: type) -> None:
        """Forget what is known of tables: one may have a mapped class now."""
        self._mapper_infos.forget_tables()


class SessionListeners:
    """Listens to the flushes of sessions, and the connections they use."""

    def __init__(
        self, flushes: OpenFlushes, executions: Executions, tracker: TransactionTracker
    ) -> None:
        """Remember what the events are passed on to.

        Args:
            flushes: The flushes under way.
            executions: Follows the statements of each connection.
            tracker: Follows the transactions of each connection.
        """
        self._flushes = flushes
        self._executions = executions
        self._tracker = tracker

    def after_begin(
        self, session: Session, _transaction: SessionTransaction, connection: Connection
    ) -> None:
        """Note which session uses a connection."""
        facts = self._tracker.facts(connection)
        if not facts.sessions:
            facts.sessions = (weakref.ref(session),)
        elif not any(one() is session for one in facts.sessions):
            # an application may keep one connection, and make a session on it for each request
            still_used = (one for one in facts.sessions if one() is not None)
            facts.sessions = (*still_used, weakref.ref(session))

    def before_flush(self, session: Session, context: UOWTransaction, _objects: Any) -> None:
        """Begin to collect the rows of the flush."""
        self._flushes.begin(session, context)
        # what was never loaded here is not undone here
        if len(session.identity_map):
            identities = identities_at_hand()
            if identities:
                remember_stored(identities)

    def after_flush(self, session: Session, _context: UOWTransaction) -> None:
        """Describe what was written while the old and the new values are both there."""
        for connection in self._flushes.end(session):
            self._executions.end_if_autocommit(connection)

    def after_soft_rollback(self, session: Session, _transaction: SessionTransaction) -> None:
        """Forget what a failed flush has gathered, unless it is committed all the same."""
        for connection, changes in self._flushes.fail(session).items():
            self._tracker.write(connection, changes)
            self._executions.end_if_autocommit(connection)

    def after_commit(self, _session: Session) -> None:
        """Note that commits sent before were successful."""
        self._tracker.report_commits()


class PoolListeners:
    """Listens to connections that return to the pool."""

    def __init__(self, tracker: TransactionTracker) -> None:
        """Remember what the events are passed on to.

        Args:
            tracker: Follows the transactions of each connection.
        """
        self._tracker = tracker

    def reset(self, dbapi_connection: Any, _record: Any, state: Any) -> None:
        """Note that a transaction was closed whose COMMIT was not answered, or not sent."""
        if self._tracker.awaited:
            self._tracker.connection_reset(dbapi_connection, unfinished=state.transaction_was_reset)

    def checkin(self, dbapi_connection: Any, _record: Any) -> None:
        """Note that the commit sent before was successful."""
        if self._tracker.awaited:
            self._tracker.connection_checked_in(dbapi_connection)


class _Last(NamedTuple):
    """The statement that a connection has described last.

    Attributes:
        context: Its execution context.
        entry: Its entry.
        sent: Rows that its batches have written so far; None if the driver does not say.
    """

    context: weakref.ref[Any]
    entry: Change
    sent: int | None


class Executions:
    """Follows the statements of every connection."""

    def __init__(
        self,
        selection: Selection,
        tracker: TransactionTracker,
        flushes: OpenFlushes,
        bulk: BulkReader,
        guard: ErrorGuard,
    ) -> None:
        """Start with no statement followed.

        Args:
            selection: What is recorded of which tables and columns.
            tracker: Follows the transactions of each connection.
            flushes: The flushes under way.
            bulk: Describes executed statements.
            guard: Keeps errors of capture away from the application.
        """
        self._selection = selection
        self._tracker = tracker
        self._flushes = flushes
        self._bulk = bulk
        self._guard = guard
        self.review: Review | None = None
        """Checks the description of a statement before it is noted."""
        self.review_text: Callable[[list[Change]], None] | None = None
        """Is given the writes of each executed text."""
        # whether a statement was sent in batches that are committed one by one
        self._has_expected_more = False
        self._last: weakref.WeakKeyDictionary[Connection, _Last] = weakref.WeakKeyDictionary()

    def executed(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any
    ) -> None:
        """A statement that may write was executed without an error."""
        facts = self._tracker.facts(connection)
        if facts.taken is None:
            facts.taken = self._selection.takes_connection(connection)
        if not facts.taken:
            return
        try:
            if self._has_expected_more:
                self._end_statement_before(connection, context)
            flushing = self._follow(connection, cursor, statement, parameters, context)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._guard.note("statement", error)
            self._tracker.write(connection, [untracked("update", "?", "?", type(error).__name__)])
            flushing = False
        if flushing:
            return
        if getattr(context, "execute_style", None) is INSERT_MANY_VALUES:
            # more batches of the same statement may follow, which are counted with this one
            self._has_expected_more = True
            self._tracker.expect_more(connection)
        else:
            self.end_if_autocommit(connection)

    def _end_statement_before(self, connection: Connection, context: Any) -> None:
        state = self._tracker.find(connection)
        if state is not None and state.autocommitted:
            last = self._last.get(connection)
            if last is None or last.context() is not context:
                self._tracker.end(connection, "committed")

    def _follow(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any
    ) -> bool:
        """Note what a statement has done; return whether a flush is under way."""
        if not (context.isinsert or context.isupdate or context.isdelete) and self._open_savepoint(
            connection, context
        ):
            return False
        facts = self._tracker.facts(connection)
        flush = self._flushes.writing_on(facts)
        if self._selection.by_session and not self._takes_any(facts.used_by()):
            return flush is not None
        if flush is not None and self._flushes.has_executed(flush, connection, context, cursor):
            return True
        text = text_of(context, statement)
        if text is not None:
            self._follow_text(
                connection,
                text,
                lambda step: self._bulk.describe_text(step, context, statement, parameters, cursor),
            )
            if not text.controls and _OBSCURE.search(statement):
                self._tracker.of(connection).is_outcome_uncertain = True
            return flush is not None and not text.controls
        if not self._add_to_last(connection, cursor, context):
            entries = self._bulk.describe(context, statement, cursor)
            if self.review is not None:
                entries = self.review(connection, context, entries)
            if isinstance(compiled_element(context), UpdateBase):
                schemas = context.execution_options.get("schema_translate_map")
                entries = [qualified(schemas, entry) for entry in entries]
            self._tracker.write(connection, entries)
            for entry in entries:
                self._last[connection] = _Last(
                    weakref.ref(context), entry, driver_row_count(cursor)
                )
        return flush is not None

    def _open_savepoint(self, connection: Connection, context: Any) -> bool:
        """Note a savepoint: the event that announces it does not have its name."""
        element = compiled_element(context)
        if not isinstance(element, SavepointClause):
            return False
        self._tracker.of(connection).open_savepoint(element.ident)
        return True

    def failed(self, context: ExceptionContext) -> None:
        """A statement, or a COMMIT, has raised."""
        connection = context.connection
        if connection is None:
            return
        self._count_batches_sent(connection, context.execution_context)
        state = self._tracker.find(connection)
        if state is not None and state.autocommitted:
            # the batches before the one that has failed
            self._tracker.end(connection, "committed")
            state = None
        if state is not None and state.committing:
            self._tracker.end(connection, commit_failure(context))
            return
        if context.statement is None or not self._selection.takes_connection(connection):
            return
        dooms = dooms_transaction(context)
        if dooms is not False:
            self._tracker.of(connection).top.aborted = dooms
        execution = context.execution_context
        if execution is None or not may_write(execution):
            return
        attempted = self._bulk.describe_attempt(execution, context.statement)
        if attempted and self._takes_any(self._tracker.facts(connection).used_by()):
            refused = [f"{one.operation} {one.table}" for one in attempted]
            self._tracker.of(connection).touch(self._tracker.owner(connection), refused)
            if dooms is False and execution.executemany:
                # the database keeps the rows before the one that it has refused
                self._failed_part_way(connection, execution, attempted)

    def _failed_part_way(
        self, connection: Connection, execution: Any, attempted: list[Change]
    ) -> None:
        flush = self._flushes.writing_on(self._tracker.facts(connection))
        if flush is not None:
            self._flushes.note_sent(flush, connection, execution)
            return
        reason = "it may have failed part-way"
        entries = [untracked(one.operation, one.entity, one.table, reason) for one in attempted]
        self._tracker.write(connection, entries)
        self.end_if_autocommit(connection)

    def writes_relation(self, connection: Connection, table: Table) -> bool:
        """Whether a flush records the rows written to a table one by one, as for an association."""
        flush = self._flushes.writing_on(self._tracker.facts(connection))
        return flush is not None and self._flushes.writes_relation(flush, table)

    def _takes_any(self, sessions: Iterable[Session]) -> bool:
        selection = self._selection
        return not selection.by_session or any(map(selection.takes_session, sessions))

    def note_failed_flush(self, connection: Connection) -> None:
        """Something is rolled back: a flush that has failed half-way has tried to write."""
        for session in self._tracker.facts(connection).used_by():
            if self._flushes.has_tried(session, connection):
                self._tracker.of(connection).touch(self._tracker.owner(connection))

    def end_if_autocommit(self, connection: Connection) -> None:
        """Report at once what is committed already, as in autocommit mode."""
        state = self._tracker.find(connection)
        if state is not None and not state.prepared and is_committed(connection):
            self._tracker.end(connection, "unknown" if state.is_outcome_uncertain else "committed")

    def _add_to_last(self, connection: Connection, cursor: Any, context: Any) -> bool:
        """One INSERT of many rows is sent in several batches: count them as one."""
        last = self._last.get(connection)
        if last is None or last.context() is not context:
            return False
        entry, rows = last.entry, driver_row_count(cursor)
        sent = None if rows is None or last.sent is None else last.sent + rows
        counted = getattr(context, "compiled_parameters", None)
        if entry.rows is not None and rows is not None and entry.rows != len(counted or ()):
            amended = msgspec.structs.replace(entry, rows=entry.rows + rows)
            if not self._tracker.of(connection).replace_last(
                self._tracker.owner(connection), entry, amended
            ):
                # reported in the meantime: what follows is an entry of its own
                amended = msgspec.structs.replace(entry, rows=rows, parameters=None)
                self._tracker.write(connection, [amended])
            entry = amended
        self._last[connection] = _Last(last.context, entry, sent)
        return True

    def _follow_text(
        self, connection: Connection, text: SqlText, describe: Callable[[Write], list[Change]]
    ) -> None:
        """Note what a text writes, and what it does to the transaction, in its order."""
        for step in text.steps:
            if isinstance(step, TransactionControl):
                self._control(connection, step)
            else:
                entries = describe(step)
                if self.review_text is not None:
                    self.review_text(entries)
                self._tracker.write(connection, entries)

    def _count_batches_sent(self, connection: Connection, context: Any) -> None:
        """A batch of a statement has failed: the rows of the ones before it were written."""
        last = self._last.get(connection)
        state = self._tracker.find(connection)
        if last is None or state is None or context is None or last.context() is not context:
            return
        amended = msgspec.structs.replace(last.entry, rows=last.sent, note=_PART_WAY)
        state.replace_last(self._tracker.owner(connection), last.entry, amended)

    def _control(self, connection: Connection, control: TransactionControl) -> None:
        """Follow an application that controls its transaction by texts of its own."""
        if control.verb == "begin":
            self._tracker.has_begun(connection)
        elif control.verb == "commit":
            self._tracker.committed(connection)
        elif control.verb == "rollback":
            self._tracker.rolled_back(connection)
        elif control.verb == "savepoint":
            self._tracker.of(connection).open_savepoint(control.name)
        elif control.verb == "release":
            self._tracker.release_savepoint(connection, control.name)
        else:
            self._tracker.undo_savepoint(connection, control.name, reopen=True)


class EngineListeners(Executions):
    """Listens to statements and transactions of every connection."""

    def after_cursor_execute(
        self,
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        _executemany: object,
    ) -> None:
        """Describe a statement that writes outside the unit of work."""
        if context is not None and may_write(context):
            self.executed(connection, cursor, statement, parameters, context)

    def handle_error(self, context: ExceptionContext) -> None:
        """Note that a statement or a COMMIT has failed."""
        self.failed(context)

    def begin(self, connection: Connection) -> None:
        """Note that the transaction before has ended."""
        self._tracker.begins(connection)

    def begin_twophase(self, connection: Connection, _xid: Any) -> None:
        """Note that the transaction before has ended."""
        self._tracker.begins(connection)

    def rollback_savepoint(self, connection: Connection, name: str, _context: Any) -> None:
        """Drop what the savepoint holds."""
        self.note_failed_flush(connection)
        self._tracker.undo_savepoint(connection, name)

    def release_savepoint(self, connection: Connection, name: str, _context: Any) -> None:
        """Keep what the savepoint holds."""
        self._tracker.release_savepoint(connection, name)

    def commit(self, connection: Connection) -> None:
        """Expect an answer to a COMMIT."""
        self._tracker.commit_begins(connection)
        if has_remembered() or self._expires(connection):
            identities = identities_at_hand()
            if identities:
                remember_loaded(identities)

    def _expires(self, connection: Connection) -> bool:
        """Whether a commit makes objects forget their values."""
        for one in self._tracker.facts(connection).sessions:
            session = one()
            if session is not None and session.expire_on_commit:
                return True
        return False

    def rollback(self, connection: Connection) -> None:
        """Report what was written as rolled back."""
        identities = identities_at_hand()
        if identities:
            remember_stored(identities)
        self.note_failed_flush(connection)
        self._tracker.rolled_back(connection)

    def prepare_twophase(self, connection: Connection, _xid: Any) -> None:
        """Note that the transaction survives the connection."""
        state = self._tracker.find(connection)
        if state is not None:
            state.prepared = True

    def commit_twophase(self, connection: Connection, _xid: Any, _is_prepared: object) -> None:
        """Expect an answer to a COMMIT PREPARED."""
        self._tracker.commit_begins(connection)

    def rollback_twophase(self, connection: Connection, _xid: Any, _is_prepared: object) -> None:
        """Report what was written as rolled back."""
        self.note_failed_flush(connection)
        self._tracker.rolled_back(connection)


def guarded(  # noqa: C901 - the same for each number of arguments
    listener: Callable[..., None], guard: ErrorGuard
) -> Callable[..., None]:
    """Wrap a listener so that the application never sees its errors.

    Args:
        listener: A method of the classes above.
        guard: Counts and logs them.
    """
    name = listener.__name__.strip("_")

    # one for each number of arguments: a call with any number takes several times as long
    def one(first: Any) -> None:
        try:
            listener(first)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            guard.note(name, error)

    def two(first: Any, second: Any) -> None:
        try:
            listener(first, second)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            guard.note(name, error)

    def three(first: Any, second: Any, third: Any) -> None:
        try:
            listener(first, second, third)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            guard.note(name, error)

    def six(  # noqa: PLR0913, PLR0917 - as many as SQLAlchemy gives
        first: Any, second: Any, third: Any, fourth: Any, fifth: Any, sixth: Any
    ) -> None:
        try:
            listener(first, second, third, fourth, fifth, sixth)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            guard.note(name, error)

    def any_number(*args: Any) -> None:
        try:
            listener(*args)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            guard.note(name, error)

    number = len(inspect.signature(listener).parameters)
    fitting: dict[int, Callable[..., None]] = {1: one, 2: two, 3: three, 6: six}
    return fitting.get(number, any_number)
