"""What each executed statement means for the transaction it ran in."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import DDL, TextClause
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import SavepointClause

from otel_audit.capture.orm.bulk import BulkReader, compiled_element, text_of
from otel_audit.capture.orm.flushes import Flushes, untracked
from otel_audit.capture.orm.outcomes import (
    ABORTING_DIALECTS,
    commit_failure,
    dooms_transaction,
    in_transaction,
    is_autocommit,
)
from otel_audit.capture.orm.statements import Control
from otel_audit.scope import current_scope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.orm import Session

    from otel_audit.capture.orm.faults import Faults
    from otel_audit.capture.orm.journal import Journal
    from otel_audit.capture.orm.selection import Selection
    from otel_audit.record import Change


class Executions:
    """Follows the statements of every connection."""

    def __init__(
        self,
        selection: Selection,
        journal: Journal,
        flushes: Flushes,
        bulk: BulkReader,
        faults: Faults,
    ) -> None:
        """Take what following needs."""
        self._selection = selection
        self._journal = journal
        self._flushes = flushes
        self._bulk = bulk
        self._faults = faults
        self._sessions: weakref.WeakKeyDictionary[Connection, weakref.WeakSet[Session]] = (
            weakref.WeakKeyDictionary()
        )
        self._last: weakref.WeakKeyDictionary[Connection, tuple[Any, Change]] = (
            weakref.WeakKeyDictionary()
        )

    def joined(self, session: Session, connection: Connection) -> None:
        """A session has begun to use a connection."""
        self._sessions.setdefault(connection, weakref.WeakSet()).add(session)

    def executed(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any
    ) -> None:
        """A statement was executed without an error."""
        if context is None or not _may_write(context):
            return
        if not self._selection.takes_connection(connection):
            return
        try:
            flushing = self._follow(connection, cursor, statement, parameters, context)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._faults.note("statement", error)
            self._journal.write(connection, [untracked("update", "?", "?", type(error).__name__)])
            flushing = False
        if not flushing:
            self.end_if_autocommit(connection)

    def _follow(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any
    ) -> bool:
        """Note what a statement has done; tell whether a flush is under way."""
        element = compiled_element(context)
        if isinstance(element, SavepointClause):
            # the event that announces a savepoint does not tell its name
            self._journal.of(connection).open_savepoint(element.ident)
            return False
        sessions = self._sessions.get(connection, ())
        flush = self._flushes.writing(sessions)
        if not self._takes_any(sessions):
            return flush is not None
        if flush is not None and self._flushes.has_executed(flush, connection, context, cursor):
            return True
        text = text_of(context, statement)
        if text is not None:
            controls = False
            for step in text.steps:
                if isinstance(step, Control):
                    self._control(connection, step)
                    controls = True
                else:
                    self._journal.write(
                        connection,
                        self._bulk.describe_text(step, context, statement, parameters, cursor),
                    )
            if controls and len(text.steps) > 1:
                self._settle_text(connection)
            return flush is not None and not controls
        if not self._add_to_last(connection, cursor, context):
            entries = self._bulk.describe(context, statement, cursor)
            self._journal.write(connection, entries)
            for entry in entries:
                self._last[connection] = (weakref.ref(context), entry)
        return flush is not None

    def failed(self, context: ExceptionContext) -> None:
        """A statement, or a COMMIT, has raised."""
        connection = context.connection
        if connection is None:
            return
        ledger = self._journal.find(connection)
        if ledger is not None and ledger.committing:
            self._journal.end(connection, commit_failure(context))
            return
        if context.statement is None or not self._selection.takes_connection(connection):
            return
        dooms = dooms_transaction(context)
        if dooms is not False:
            self._journal.of(connection).top.aborted = dooms
        execution = context.execution_context
        if execution is None or not _may_write(execution):
            return
        attempted = self._bulk.describe_attempt(execution, context.statement)
        if attempted and self._takes_any(self._sessions.get(connection, ())):
            self._journal.of(connection).touch(current_scope())
            if dooms is False and execution.executemany:
                # the database keeps the rows before the one that it has refused
                self._failed_part_way(connection, execution, attempted)

    def _failed_part_way(
        self, connection: Connection, execution: Any, attempted: list[Change]
    ) -> None:
        flush = self._flushes.writing(self._sessions.get(connection, ()))
        if flush is not None:
            self._flushes.note_sent(flush, connection, execution)
            return
        reason = "it may have failed part-way"
        entries = [untracked(one.operation, one.entity, one.table, reason) for one in attempted]
        self._journal.write(connection, entries)
        self.end_if_autocommit(connection)

    def _takes_any(self, sessions: Iterable[Session]) -> bool:
        selection = self._selection
        return not selection.by_session or any(map(selection.takes_session, sessions))

    def gives_up(self, connection: Connection) -> None:
        """Something is rolled back: a flush that has failed half-way has tried to write."""
        for session in self._sessions.get(connection, ()):
            if self._flushes.has_tried(session, connection):
                self._journal.of(connection).touch(current_scope())

    def end_if_autocommit(self, connection: Connection) -> None:
        """Report at once what a connection in autocommit mode has written: it is committed."""
        if is_autocommit(connection) and self._journal.find(connection) is not None:
            self._journal.end(connection, "committed")

    def _add_to_last(self, connection: Connection, cursor: Any, context: Any) -> bool:
        """One INSERT of many rows is sent in several batches: count them as one."""
        last = self._last.get(connection)
        if last is None or last[0]() is not context:
            return False
        entry = last[1]
        rows = getattr(cursor, "rowcount", -1)
        counted = getattr(context, "compiled_parameters", None)
        if entry.rows is not None and rows >= 0 and entry.rows != len(counted or ()):
            amended = msgspec.structs.replace(entry, rows=entry.rows + rows)
            if self._journal.of(connection).replace_last(current_scope(), entry, amended):
                self._last[connection] = (last[0], amended)
        return True

    def _control(self, connection: Connection, control: Control) -> None:
        """Follow an application that controls its transaction by texts of its own."""
        if control.verb == "begin":
            self._journal.has_begun(connection)
        elif control.verb == "commit":
            self._journal.committed(connection)
        elif control.verb == "rollback":
            self._journal.rolled_back(connection)
        elif control.verb == "savepoint":
            self._journal.of(connection).open_savepoint(control.name)
        elif control.verb == "release":
            self._journal.of(connection).release_savepoint(control.name)
        else:
            self._journal.undo_savepoint(connection, control.name, reopen=True)

    def _settle_text(self, connection: Connection) -> None:
        """What follows a COMMIT in one text is committed with the text, if no BEGIN follows."""
        driver_connection = connection.connection.dbapi_connection
        tells = connection.dialect.name in ABORTING_DIALECTS
        if tells and not in_transaction(driver_connection):
            self._journal.committed(connection)


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
