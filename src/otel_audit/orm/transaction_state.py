"""The state of one database transaction: its writes by savepoint and action, and its outcome.

A `TransactionState` follows one transaction on one connection; each savepoint is a level of it.
Changes are kept by the scope that was current when they were seen,
because one transaction may serve several actions.

The functions below read a transaction's outcome off what raised, off the driver's connection and
off the pool, as far as it is certain.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from otel_audit._util.spill import SpilledChanges, SpillOptions
from otel_audit.record import Change, TransactionOutcome
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

Owner: TypeAlias = AuditScope | None
"""The action a change belongs to, None outside any."""

_MOST_REFUSED = 50
"""Names of refused changes that a transaction keeps for an action; further ones are left out."""

CommitFailure = Literal["rolled_back", "unknown"]

ABORTING_DIALECTS = frozenset({"postgresql", "cockroachdb", "redshift"})
"""Databases in which a failed statement dooms the transaction, though COMMIT raises nothing."""

_UNCERTAIN_CLASSES = ("08", "57", "58", "F0", "XX")
_UNCERTAIN_STATES = frozenset({"40003"})
"""SQLSTATEs that leave a commit's fate open: connection, shutdown, system, internal errors, and
"statement completion unknown" (PostgreSQL documentation, appendix A)."""

_IDLE, _ACTIVE, _UNKNOWN = 0, 1, 4
"""libpq's states of a connection without a transaction, of one that waits for an answer, and of a
closed one (PQtransactionStatus)."""

_WRAPPERS: set[type] = set()
"""SQLAlchemy's adapters around asyncpg's connections, which are asked without looking first."""

_RESETS: dict[str, TransactionOutcome] = {
    "reset_rollback": "rolled_back",
    "reset_commit": "committed",
}
"""Outcome of a transaction by SQLAlchemy's `reset_on_return`; without a reset it continues."""


class WrittenByAction(msgspec.Struct, eq=False):
    """An action's changes that are recorded in the transaction itself.

    Attributes:
        changes: The changes.
        records: Ids of the records that hold them.
    """

    changes: SpilledChanges
    records: list[str] = msgspec.field(default_factory=list)


class TransactionLevel(msgspec.Struct, eq=False):
    """A transaction, or a savepoint in it.

    Attributes:
        room: How many changes are kept in memory, and where the rest goes.
        name: The savepoint's name, None for the transaction itself.
        batches: What was written, by action; an action that only tried to write has an empty one.
        aborted: Whether the database has refused to go on; None if that is not certain.
    """

    room: SpillOptions
    name: str | None = None
    batches: dict[Owner, SpilledChanges] = msgspec.field(default_factory=dict)
    aborted: bool | None = False

    def batch(self, owner: Owner) -> SpilledChanges:
        """The batch of an action; an empty one says that it tried to write."""
        found = self.batches.get(owner)
        if found is None:
            found = self.batches[owner] = SpilledChanges(self.room)
        return found

    def absorb(self, other: TransactionLevel) -> None:
        """Add what a released savepoint has written."""
        for owner, batch in other.batches.items():
            self.batch(owner).absorb(batch)


class TransactionState(msgspec.Struct, eq=False):
    """One transaction on one connection.

    Attributes:
        room: How many changes are kept in memory, and where the rest goes.
        keep_rolled_back: Whether undone changes are kept too.
        levels: The transaction and its open savepoints, outermost first.
        undone: What savepoints have rolled back, if it is kept.
        recorded: What stands in the transaction itself already, to be reported by nobody else.
        refused: What the database has refused, such as ``insert seat``, by action.
        after: Who owns what tasks write whose action is over, by that action.
        can_enlist: Whether more stands in it than that: events that the application has recorded.
        committing: Whether a COMMIT was announced whose answer is not known yet.
        unsent: Whether that COMMIT was not sent, as far as the driver shows.
        driver_connection: The driver's connection, once a COMMIT was announced.
        prepared: Whether the first phase of a two-phase commit was sent.
        autocommitted: Whether all of it is committed already, though more batches of the last
            statement may follow.
        is_released: Whether a savepoint was released last, and none is open.
        is_outcome_uncertain: Whether a text of the application's may have undone it, or kept it
            for later.
        engine: The connection's engine.
        connection: Refers to the connection; None in no tracker's hands.
    """

    room: SpillOptions = msgspec.field(default_factory=SpillOptions)
    keep_rolled_back: bool = False
    levels: list[TransactionLevel] = msgspec.field(default_factory=list)
    undone: dict[Owner, SpilledChanges] = msgspec.field(default_factory=dict)
    recorded: dict[Owner, WrittenByAction] = msgspec.field(default_factory=dict)
    refused: dict[Owner, list[str]] = msgspec.field(default_factory=dict)
    after: dict[AuditScope, AuditScope] = msgspec.field(default_factory=dict)
    can_enlist: bool = False
    committing: bool = False
    unsent: bool = False
    driver_connection: Any = None
    prepared: bool = False
    autocommitted: bool = False
    is_released: bool = False
    is_outcome_uncertain: bool = False
    engine: Any = None
    connection: Any = None

    def __post_init__(self) -> None:
        self.levels = [TransactionLevel(self.room)]

    @property
    def top(self) -> TransactionLevel:
        """The innermost level, where what is written now belongs."""
        return self.levels[-1]

    @property
    def has_changes(self) -> bool:
        """Whether anything was written that is not undone."""
        return any(batch for level in self.levels for batch in level.batches.values())

    def touch(self, owner: Owner, refused: Iterable[str] = ()) -> None:
        """An action has tried to write.

        Args:
            owner: The action.
            refused: What the database has not taken, such as ``insert seat``.
        """
        self.top.batch(owner)
        names = self.refused.setdefault(owner, [])
        names.extend(islice(refused, _MOST_REFUSED - len(names)))

    def owner_after(self, over: AuditScope) -> AuditScope:
        """Say who owns what is written by a task whose action is over.

        Args:
            over: The action.

        Returns:
            The action, if it has written in this transaction before; otherwise only the process.
        """
        if any(over in level.batches for level in self.levels) or over in self.recorded:
            return over
        found = self.after.get(over)
        if found is None:
            found = self.after[over] = AuditScope(begun_in=over.action_id, closed=True)
        return found

    def add(self, owner: Owner, change: Change) -> None:
        """Keep a change."""
        self.top.batch(owner).add(change)

    def replace_last(self, owner: Owner, old: Change, new: Change) -> bool:
        """Amend the change that was kept last, if it still is the last one."""
        recent = self.top.batch(owner).recent
        if not recent or recent[-1] is not old:
            return False
        recent[-1] = new
        return True

    def pending(self, owner: Owner) -> Iterator[Change]:
        """An action's changes so far, as far as they are in memory."""
        for level in self.levels:
            batch = level.batches.get(owner)
            if batch is not None:
                yield from batch.recent

    def open_savepoint(self, name: str) -> None:
        """A savepoint was set."""
        self.is_released = False
        self.levels.append(TransactionLevel(self.room, name))

    def release_savepoint(self, name: str) -> None:
        """A savepoint was released: what it holds belongs to the level around it."""
        for level in self._leave(name):
            self.top.absorb(level)

    def undo_savepoint(self, name: str, *, reopen: bool = False) -> dict[Owner, int]:
        """A savepoint was rolled back: what it holds was undone.

        Args:
            name: The savepoint.
            reopen: Whether the savepoint itself lives on, as after a bare ROLLBACK TO.

        Returns:
            How many changes were undone, by action.
        """
        undone: dict[Owner, int] = {}
        for level in self._leave(name):
            for owner, batch in level.batches.items():
                undone[owner] = undone.get(owner, 0) + batch.count
                if self.keep_rolled_back:
                    self.undone.setdefault(owner, SpilledChanges(self.room)).absorb(batch)
        if reopen:
            self.open_savepoint(name)
        return undone

    def gather(self) -> dict[Owner, SpilledChanges]:
        """Bring together what the transaction and its open savepoints hold, as COMMIT does."""
        root = self.levels[0]
        for level in self.levels[1:]:
            root.absorb(level)
            level.batches = {}
        return root.batches

    def note_recorded(self, owner: Owner, records: list[str]) -> None:
        """Mark an action's changes as recorded in the transaction itself.

        Args:
            owner: The action.
            records: Ids of the records that hold it.
        """
        batch = self.levels[0].batches.pop(owner)
        self.levels[0].batch(owner)
        known = self.recorded.setdefault(owner, WrittenByAction(SpilledChanges(self.room)))
        known.changes.absorb(batch)
        known.records += records

    def finish(self) -> Iterable[tuple[Owner, SpilledChanges]]:
        """The transaction has ended, and open savepoints with it.

        Returns:
            Actions and what they have written; one that did not even try is left out.
        """
        batches = self.gather() if len(self.levels) > 1 else self.levels[0].batches
        self.levels = [TransactionLevel(self.room)]
        return batches.items()

    @property
    def aborted(self) -> bool | None:
        """Whether the database will turn a COMMIT into a ROLLBACK; None if that may be."""
        found: bool | None = False
        for level in self.levels:
            aborted = level.aborted
            if aborted is not False:
                if aborted:
                    return True
                found = None
        return found

    def _leave(self, name: str) -> list[TransactionLevel]:
        for position in range(len(self.levels) - 1, 0, -1):
            if self.levels[position].name == name:
                left = self.levels[position:]
                del self.levels[position:]
                return left
        return []


def commit_failure(context: ExceptionContext) -> CommitFailure:
    """Return the outcome of a transaction whose COMMIT raised.

    Args:
        context: SQLAlchemy's account of the error.

    Returns:
        ``rolled_back`` only where the database itself has refused, else ``unknown``. SQLite keeps
        a refused transaction open, but SQLAlchemy lets nothing follow on it but a rollback.
    """
    if context.is_disconnect:
        return "unknown"
    error = context.original_exception
    if _is_of_sqlite(error):
        return "rolled_back"
    state = sqlstate(error)
    if state is not None:
        refused = not state.startswith(_UNCERTAIN_CLASSES) and state not in _UNCERTAIN_STATES
        return "rolled_back" if refused and came_from_server(error) is not False else "unknown"
    module = context.dialect.loaded_dbapi if context.dialect is not None else None
    integrity = getattr(module, "IntegrityError", None)
    if isinstance(integrity, type) and isinstance(error, integrity):
        return "rolled_back"
    return "unknown"


def dooms_transaction(context: ExceptionContext) -> bool | None:
    """Return whether a failed statement has doomed its transaction.

    Returns:
        True if a COMMIT can now only roll back, False if the transaction continues, None
        if it is not known.
    """
    if context.dialect is None or context.dialect.name not in ABORTING_DIALECTS:
        return False
    if not isinstance(context.original_exception, Exception):
        return None
    error = context.original_exception
    return came_from_server(error) if sqlstate(error) is not None else _unsent(context)


def is_autocommit(connection: Connection) -> bool:
    """Whether a connection commits each statement by itself.

    The driver's own connection knows: an option of SQLAlchemy's is one of several ways to that
    state, and says nothing of a BEGIN that the application sends itself.
    """
    driver_connection = connection.connection.dbapi_connection
    if transaction_state(driver_connection):
        return False
    setting = _autocommit_setting(driver_connection)
    return _is_autocommit_chosen(connection) if setting is None else setting


def is_committed(connection: Connection) -> bool:
    """Whether a write that has just succeeded is committed already.

    It is if the driver shows no transaction around it: in autocommit mode, however that was
    chosen, or where the statement's own text has ended the transaction.
    """
    state = transaction_state(connection.connection.dbapi_connection)
    return is_autocommit(connection) if state is None else not state


def is_pipelined_autocommit(connection: Connection) -> bool:
    """Whether a connection commits each statement, but has not been answered what it has sent.

    So it is in psycopg's pipeline mode, where the statements up to its next synchronization are
    one transaction that no ROLLBACK undoes.
    """
    try:
        driver_connection = connection.connection.dbapi_connection
        if getattr(driver_connection, "autocommit", None) is not True:
            return False
        status = getattr(getattr(driver_connection, "info", None), "transaction_status", None)
        return status is not None and int(status) == _ACTIVE
    except Exception:  # noqa: BLE001 - a closed connection, for which drivers raise
        return False


def in_transaction(driver_connection: Any) -> bool:
    """Whether a driver's connection has a transaction open; False where the driver does not say.

    Args:
        driver_connection: The driver's, or SQLAlchemy's adapter of an asynchronous one.
    """
    return bool(transaction_state(driver_connection))


def transaction_state(driver_connection: Any) -> bool | None:
    """Whether a driver's connection has a transaction open; None if the driver does not say.

    Args:
        driver_connection: The driver's, or SQLAlchemy's adapter of an asynchronous one.
    """
    kind = type(driver_connection)
    try:
        if kind in _WRAPPERS:
            return bool(driver_connection.driver_connection.is_in_transaction())
        found = _transaction_state(driver_connection)
        if found is None:
            wrapped = getattr(driver_connection, "driver_connection", None)
            found = _transaction_state(wrapped)
            if found is not None and type(wrapped).__module__.startswith("asyncpg."):
                _WRAPPERS.add(kind)
    except Exception:  # noqa: BLE001 - a closed connection, for which drivers raise
        return None
    return found


def reset_outcome(engine: Engine) -> TransactionOutcome:
    """The outcome that an engine's pool gives to a transaction when its connection is thrown away.

    An asynchronous connection cannot be talked to at that moment: it is cut off.
    """
    if engine.dialect.is_async:
        return "rolled_back"
    style = getattr(getattr(engine.pool, "_reset_on_return", None), "name", "")
    return _RESETS.get(style, "unknown")


def _is_of_sqlite(error: object) -> bool:
    # where it is not loaded, no error is of it: imported here it would only take memory
    sqlite3 = sys.modules.get("sqlite3")
    return sqlite3 is not None and isinstance(error, sqlite3.DatabaseError)


def _autocommit_setting(driver_connection: Any) -> bool | None:
    found = getattr(driver_connection, "autocommit", None)
    if isinstance(found, bool):  # psycopg, psycopg2, asyncpg's adapter, sqlite3 from 3.12 on
        return found
    if hasattr(driver_connection, "isolation_level"):  # sqlite3: None means that it sends no BEGIN
        return driver_connection.isolation_level is None
    return None


def _is_autocommit_chosen(connection: Connection) -> bool:
    chosen = connection.get_execution_options().get("isolation_level")
    if chosen is not None:
        return bool(chosen == "AUTOCOMMIT")
    if getattr(connection.dialect, "_on_connect_isolation_level", None) == "AUTOCOMMIT":
        return True
    ask = getattr(connection.dialect, "detect_autocommit_setting", None)  # SQLAlchemy 2.0.43
    try:
        return ask is not None and bool(ask(connection.connection.dbapi_connection))
    except Exception:  # noqa: BLE001 - NotImplementedError, or a driver without it
        return False


def _transaction_state(connection: Any) -> bool | None:
    found = getattr(connection, "in_transaction", None)  # sqlite3, aiosqlite
    if isinstance(found, bool):
        # with autocommit=False (Python 3.12) sqlite3 opens the next one at once
        inner = getattr(connection, "_conn", connection)
        return None if getattr(inner, "autocommit", None) is False else found
    ask = getattr(connection, "is_in_transaction", None)  # asyncpg
    if callable(ask):
        return bool(ask())
    status = getattr(getattr(connection, "info", None), "transaction_status", None)  # psycopg
    return None if status is None or status == _UNKNOWN else int(status) != _IDLE


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that an error carries, whatever the driver calls it."""
    for name in ("sqlstate", "pgcode"):
        state = getattr(error, name, None)
        if isinstance(state, str):
            return state
    return None


def came_from_server(error: BaseException) -> bool | None:
    """Distinguish an error of the server from one that the driver raised itself.

    Drivers use the same classes for both; only the server's has a severity.
    """
    for one in (error, error.__cause__):
        if one is None:
            continue
        if hasattr(one, "severity"):
            return one.severity is not None
        diagnostics = getattr(one, "diag", None)
        if diagnostics is not None:
            return getattr(diagnostics, "severity", None) is not None
    return None


def _unsent(context: ExceptionContext) -> bool | None:
    # an error that is not the driver's was raised before anything was sent
    return None if context.sqlalchemy_exception is not None else False
