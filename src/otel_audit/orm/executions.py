"""The effect of each executed statement on its transaction."""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import DDL, TextClause
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import SavepointClause

from otel_audit.orm.bulk import BulkReader, text_of
from otel_audit.orm.executed import compiled_element
from otel_audit.orm.flush import OpenFlushes, untracked
from otel_audit.orm.schema_qualifier import placed
from otel_audit.orm.sql_statements import Control, SqlText, Write
from otel_audit.orm.transaction_outcome import commit_failure, dooms_transaction, is_committed
from otel_audit.record import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection, Table
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.orm import Session

    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.selection import Selection
    from otel_audit.orm.transactions import TransactionTracker


Review: TypeAlias = "Callable[[Connection, Any, list[Change]], list[Change]]"

_PART_WAY = "a later batch of the statement has failed"
_OBSCURE = re.compile(r"\b(?:ROLLBACK|ABORT|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)
"""Statements that may end the transaction invisibly."""


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


_SESSIONS = "_otel_audit_sessions"
"""Key of the sessions that use a connection, in its `info`; they are not kept alive."""


def _sessions_of(connection: Connection) -> list[Session]:
    known: tuple[weakref.ref[Session], ...] = connection.__dict__.get(_SESSIONS, ())
    if len(known) == 1:  # as nearly always
        only = known[0]()
        return [] if only is None else [only]
    return [session for one in known if (session := one()) is not None]


class Executions:
    """Follows the statements of every connection."""

    def __init__(
        self,
        selection: Selection,
        tracker: TransactionTracker,
        flushes: OpenFlushes,
        bulk: BulkReader,
        faults: ErrorGuard,
    ) -> None:
        """Take what following needs."""
        self._selection = selection
        self._tracker = tracker
        self._flushes = flushes
        self._bulk = bulk
        self._faults = faults
        self.review: Review | None = None
        """Checks the description of a statement before it is noted."""
        # whether a statement was sent in batches that are committed one by one
        self._has_expected_more = False
        self._last: weakref.WeakKeyDictionary[Connection, _Last] = weakref.WeakKeyDictionary()

    def joined(self, session: Session, connection: Connection) -> None:
        """A session has begun to use a connection."""
        known = connection.__dict__.get(_SESSIONS, ())
        if not known or not any(one() is session for one in known):
            connection.__dict__[_SESSIONS] = (*known, weakref.ref(session))

    def executed(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any
    ) -> None:
        """A statement was executed without an error."""
        if context is None or not _may_write(context):
            return
        if not self._selection.takes_connection(connection):
            return
        try:
            if self._has_expected_more:
                self._end_statement_before(connection, context)
            flushing = self._follow(connection, cursor, statement, parameters, context)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._faults.note("statement", error)
            self._tracker.write(connection, [untracked("update", "?", "?", type(error).__name__)])
            flushing = False
        if flushing:
            return
        if getattr(context, "execute_style", None) is ExecuteStyle.INSERTMANYVALUES:
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
        element = compiled_element(context)
        if isinstance(element, SavepointClause):
            # the event that announces a savepoint does not have its name
            self._tracker.of(connection).open_savepoint(element.ident)
            return False
        sessions = _sessions_of(connection)
        flush = self._flushes.writing(sessions)
        if not self._takes_any(sessions):
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
                self._tracker.of(connection).obscure = True
            return flush is not None and not text.controls
        if not self._add_to_last(connection, cursor, context):
            entries = self._bulk.describe(context, statement, cursor)
            if self.review is not None:
                entries = self.review(connection, context, entries)
            if isinstance(element, UpdateBase):
                schemas = context.execution_options.get("schema_translate_map")
                entries = [placed(schemas, entry) for entry in entries]
            self._tracker.write(connection, entries)
            for entry in entries:
                self._last[connection] = _Last(weakref.ref(context), entry, _row_count(cursor))
        return flush is not None

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
        if execution is None or not _may_write(execution):
            return
        attempted = self._bulk.describe_attempt(execution, context.statement)
        if attempted and self._takes_any(_sessions_of(connection)):
            refused = [f"{one.operation} {one.table}" for one in attempted]
            self._tracker.of(connection).touch(self._tracker.owner(connection), refused)
            if dooms is False and execution.executemany:
                # the database keeps the rows before the one that it has refused
                self._failed_part_way(connection, execution, attempted)

    def _failed_part_way(
        self, connection: Connection, execution: Any, attempted: list[Change]
    ) -> None:
        flush = self._flushes.writing(_sessions_of(connection))
        if flush is not None:
            self._flushes.note_sent(flush, connection, execution)
            return
        reason = "it may have failed part-way"
        entries = [untracked(one.operation, one.entity, one.table, reason) for one in attempted]
        self._tracker.write(connection, entries)
        self.end_if_autocommit(connection)

    def writes_relation(self, connection: Connection, table: Table) -> bool:
        """Whether a flush records the rows written to a table one by one, as for an association."""
        flush = self._flushes.writing(_sessions_of(connection))
        return flush is not None and self._flushes.writes_relation(flush, table)

    def _takes_any(self, sessions: Iterable[Session]) -> bool:
        selection = self._selection
        return not selection.by_session or any(map(selection.takes_session, sessions))

    def gives_up(self, connection: Connection) -> None:
        """Something is rolled back: a flush that has failed half-way has tried to write."""
        for session in _sessions_of(connection):
            if self._flushes.has_tried(session, connection):
                self._tracker.of(connection).touch(self._tracker.owner(connection))

    def end_if_autocommit(self, connection: Connection) -> None:
        """Report at once what is committed already, as in autocommit mode."""
        state = self._tracker.find(connection)
        if state is not None and not state.prepared and is_committed(connection):
            self._tracker.end(connection, "unknown" if state.obscure else "committed")

    def _add_to_last(self, connection: Connection, cursor: Any, context: Any) -> bool:
        """One INSERT of many rows is sent in several batches: count them as one."""
        last = self._last.get(connection)
        if last is None or last.context() is not context:
            return False
        entry, rows = last.entry, _row_count(cursor)
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
            if isinstance(step, Control):
                self._control(connection, step)
            else:
                self._tracker.write(connection, describe(step))

    def _count_batches_sent(self, connection: Connection, context: Any) -> None:
        """A batch of a statement has failed: the rows of the ones before it were written."""
        last = self._last.get(connection)
        state = self._tracker.find(connection)
        if last is None or state is None or context is None or last.context() is not context:
            return
        amended = msgspec.structs.replace(last.entry, rows=last.sent, note=_PART_WAY)
        state.replace_last(self._tracker.owner(connection), last.entry, amended)

    def _control(self, connection: Connection, control: Control) -> None:
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


def _row_count(cursor: Any) -> int | None:
    rows = getattr(cursor, "rowcount", -1)
    return rows if isinstance(rows, int) and rows >= 0 else None


def _may_write(context: Any) -> bool:
    """Sort out, at little cost, the statements that only read."""
    if context.isinsert or context.isupdate or context.isdelete:
        return True
    compiled = context.compiled
    if compiled is None:
        return not context.isddl
    return bool(getattr(compiled, "ctes", None)) or isinstance(
        compiled_element(context), TextClause | DDL | SavepointClause | UpdateBase
    )
