"""SQLAlchemy's listeners: each public method has the name and signature of its event."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec

from otel_audit.identity.mapped_objects import remember_loaded, remember_stored
from otel_audit.scope import identities_at_hand

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction, UOWTransaction

    from otel_audit.orm.executions import Executions
    from otel_audit.orm.flush import Fetching, OpenFlushes
    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.mapper_info import MapperInfoCache
    from otel_audit.orm.transactions import TransactionTracker

_P = ParamSpec("_P")


class MapperListeners:
    """Listens to the rows that a flush writes."""

    def __init__(self, flushes: OpenFlushes, plans: MapperInfoCache, *, fetch: Fetching) -> None:
        """Take what listening needs.

        Args:
            flushes: The flushes under way.
            plans: What is known of mappers.
            fetch: Whose values that are not loaded may be read from the database.
        """
        self._flushes = flushes
        self._plans = plans
        self._fetch = fetch

    def before_update(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """See what is about to be overwritten."""
        self._flushes.will_write(mapper, connection, state, "update", fetch=self._fetch)

    def before_delete(
        self, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Read what is about to be deleted, where that may take a query."""
        if self._fetch.any:
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
        """Learn that there are mappers which were not there before."""
        self._plans.forget_tables()


class SessionListeners:
    """Listens to the flushes of sessions, and the connections they use."""

    def __init__(
        self, flushes: OpenFlushes, executions: Executions, tracker: TransactionTracker
    ) -> None:
        """Take what listening needs."""
        self._flushes = flushes
        self._executions = executions
        self._tracker = tracker

    def after_begin(
        self, session: Session, _transaction: SessionTransaction, connection: Connection
    ) -> None:
        """Learn whose statements a connection runs."""
        self._executions.joined(session, connection)

    def before_flush(self, session: Session, context: UOWTransaction, _objects: Any) -> None:
        """Begin to gather."""
        self._flushes.begin(session, context)
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
        """Learn that the commits sent before have worked."""
        self._tracker.settle()


class EngineListeners:
    """Listens to statements and transactions of every connection."""

    def __init__(self, executions: Executions, tracker: TransactionTracker) -> None:
        """Take what listening needs."""
        self._executions = executions
        self._tracker = tracker

    def begin(self, connection: Connection) -> None:
        """Learn that the transaction before has ended."""
        self._tracker.begins(connection)

    def begin_twophase(self, connection: Connection, _xid: Any) -> None:
        """Learn that the transaction before has ended."""
        self._tracker.begins(connection)

    def rollback_savepoint(self, connection: Connection, name: str, _context: Any) -> None:
        """Drop what the savepoint holds."""
        self._executions.gives_up(connection)
        self._tracker.undo_savepoint(connection, name)

    def release_savepoint(self, connection: Connection, name: str, _context: Any) -> None:
        """Keep what the savepoint holds."""
        self._tracker.release_savepoint(connection, name)

    def commit(self, connection: Connection) -> None:
        """Expect an answer to a COMMIT."""
        self._tracker.commit_begins(connection)
        identities = identities_at_hand()
        if identities:
            remember_loaded(identities)

    def rollback(self, connection: Connection) -> None:
        """Report what was written as rolled back."""
        identities = identities_at_hand()
        if identities:
            remember_stored(identities)
        self._executions.gives_up(connection)
        self._tracker.rolled_back(connection)

    def prepare_twophase(self, connection: Connection, _xid: Any) -> None:
        """Learn that the transaction survives the connection."""
        state = self._tracker.find(connection)
        if state is not None:
            state.prepared = True

    def commit_twophase(self, connection: Connection, _xid: Any, _is_prepared: object) -> None:
        """Expect an answer to a COMMIT PREPARED."""
        self._tracker.commit_begins(connection)

    def rollback_twophase(self, connection: Connection, _xid: Any, _is_prepared: object) -> None:
        """Report what was written as rolled back."""
        self._executions.gives_up(connection)
        self._tracker.rolled_back(connection)

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
        self._executions.executed(connection, cursor, statement, parameters, context)

    def handle_error(self, context: ExceptionContext) -> None:
        """Learn that a statement or a COMMIT has failed."""
        self._executions.failed(context)


class PoolListeners:
    """Listens to connections that return to the pool."""

    def __init__(self, tracker: TransactionTracker) -> None:
        """Take what listening needs."""
        self._tracker = tracker

    def reset(self, dbapi_connection: Any, _record: Any, state: Any) -> None:
        """Learn that a transaction was closed whose COMMIT was not answered, or not even sent."""
        self._tracker.given_back(dbapi_connection, unfinished=state.transaction_was_reset)

    def checkin(self, dbapi_connection: Any, _record: Any) -> None:
        """Learn that the commit sent before has worked."""
        self._tracker.returned(dbapi_connection)


def guarded(listener: Callable[_P, None], faults: ErrorGuard) -> Callable[_P, None]:
    """Wrap a listener so that the application never sees its errors.

    Args:
        listener: A method of the classes above.
        faults: Counts and logs them.
    """
    name = listener.__name__.strip("_")

    @functools.wraps(listener)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            listener(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            faults.note(name, error)

    return called
