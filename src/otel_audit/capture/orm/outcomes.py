"""What a failure means for a transaction, as far as that is certain."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

CommitFailure = Literal["rolled_back", "unknown"]

ABORTING_DIALECTS = frozenset({"postgresql", "cockroachdb", "redshift"})
"""Databases in which a failed statement dooms the transaction, though COMMIT raises nothing."""

_UNCERTAIN_CLASSES = ("08", "57", "58", "F0", "XX")
_UNCERTAIN_STATES = frozenset({"40003"})
"""SQLSTATEs that leave a commit's fate open: connection, shutdown, system, internal errors, and
"statement completion unknown" (PostgreSQL documentation, appendix A)."""


def commit_failure(context: ExceptionContext) -> CommitFailure:
    """Tell what became of a transaction whose COMMIT raised.

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
    """Tell whether a failed statement has doomed its transaction.

    Returns:
        True where a COMMIT can now only roll back, False where the transaction goes on, None
        where it cannot be told.
    """
    if context.dialect is None or context.dialect.name not in ABORTING_DIALECTS:
        return False
    if not isinstance(context.original_exception, Exception):
        return None
    error = context.original_exception
    return came_from_server(error) if sqlstate(error) is not None else _unsent(context)


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that an error carries, whatever the driver calls it."""
    for name in ("sqlstate", "pgcode"):
        state = getattr(error, name, None)
        if isinstance(state, str):
            return state
    return None


def came_from_server(error: BaseException) -> bool | None:
    """Tell an error of the server from one that the driver raised on its own.

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
