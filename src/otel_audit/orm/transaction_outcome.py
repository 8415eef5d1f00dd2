"""The outcome of a transaction, as far as it is certain."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Literal

from otel_audit.record import TransactionOutcome

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

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
    if isinstance(error, sqlite3.DatabaseError):
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
