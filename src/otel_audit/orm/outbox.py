"""Transactional mode: what a transaction has changed is written in the transaction itself.

The entries go to ``audit.outbox`` on the application's own connection, after its last flush and
before COMMIT. So they exist if and only if the change does, whatever happens to the process.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import StoreError
from otel_audit.orm.transaction_state import is_autocommit, sqlstate

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from otel_audit._util.spill import SpilledChanges
    from otel_audit.orm.transaction_state import Owner, TransactionState
    from otel_audit.orm.transactions import TransactionTracker
    from otel_audit.record import AuditRecord

_logger = logging.getLogger("otel_audit.orm")

DIALECT: Final = "postgresql"
"""The only database whose transactions this works in."""

_INSERT: Final = text(
    "INSERT INTO audit.outbox (record_id, record) VALUES (CAST(:id AS uuid), CAST(:record AS text))"
)
_AT_ONCE: Final = 1_000_000
"""Characters of records that are sent in one statement."""

_ENDING: Final = re.compile(
    r"\s*(?:COMMIT|END|PREPARE\s+TRANSACTION)\b(?!\s+PREPARED)", re.IGNORECASE
)
_PASSING: Final = ("08", "40", "53", "55", "57")
"""Classes of errors that have nothing to do with the outbox: an application that tries again after
such an error on COMMIT does so here too."""
_ABORTED: Final = "25P02"
_FORBIDDEN: Final = "42501"
_TAKEN_ON: Final = re.compile(
    r"""\s*(?:SET\s+(?:SESSION\s+|LOCAL\s+)?ROLE\s+|SELECT\s+set_config\(\s*'role'\s*,\s*)"""
    r"""(?P<role>"[^"]{1,63}"|'[^']{1,63}'|\w{1,63})""",
    re.IGNORECASE,
)
"""A text by which a connection takes on a role other than that of its login."""
_NO_ROLE: Final = frozenset({"none", "default"})


@dataclass(frozen=True, slots=True)
class Transactional:
    """The functions that the transactional mode needs.

    Attributes:
        compose: Makes the records of what an action (None: no action) has written; none if it
            is not recorded.
        encode: Writes a record down: its id, and its JSON text.
        committed: Called when records are committed in the outbox.
        failed: Called when a transaction could not be committed because of the outbox.
    """

    compose: Callable[[Owner, SpilledChanges], Iterable[AuditRecord]]
    encode: Callable[[AuditRecord], tuple[str, str]]
    committed: Callable[[], None]
    failed: Callable[[], None]


class OutboxListeners:
    """Listens for transactions about to be committed. Its errors do reach the application.

    Listens before all others of ours, so that a failed write is not a failed COMMIT yet.
    """

    def __init__(self, transactional: Transactional, tracker: TransactionTracker) -> None:
        """Start with no connection's role known.

        Args:
            transactional: Writes records in the application's own transaction.
            tracker: Follows the transactions of each connection.
        """
        self._transactional = transactional
        self._tracker = tracker
        self._roles: weakref.WeakKeyDictionary[Connection, str] = weakref.WeakKeyDictionary()

    def commit(self, connection: Connection) -> None:
        """Write before COMMIT."""
        self._write_or_undo(connection)

    def prepare_twophase(self, connection: Connection, _xid: Any) -> None:
        """Write before PREPARE TRANSACTION."""
        self._write(connection)

    def commit_twophase(self, connection: Connection, _xid: Any, is_prepared: object) -> None:
        """Write before a COMMIT that has skipped its first phase."""
        if not is_prepared:
            self._write_or_undo(connection)

    def before_cursor_execute(
        self,
        connection: Connection,
        _cursor: Any,
        statement: str,
        _parameters: Any,
        context: Any,
        _executemany: object,
    ) -> None:
        """Write before a COMMIT that the application sends as a statement of its own."""
        compiled = None if context is None else context.compiled
        if compiled is not None and not isinstance(compiled.statement, TextClause):
            return
        if _ENDING.match(statement):
            self._write(connection)
            return
        role = _TAKEN_ON.match(statement)
        if role is not None:
            self._roles[connection] = role["role"].strip("\"'")

    def _write_or_undo(self, connection: Connection) -> None:
        """Write; if that raises, send the ROLLBACK that SQLAlchemy will not.

        To SQLAlchemy a COMMIT whose listener raises is over: it sends no ROLLBACK, and gives the
        connection back to its pool as it is.
        """
        try:
            self._write(connection)
        except BaseException:
            self._tracker.rolled_back(connection)
            try:
                connection.connection.rollback()
            except Exception:  # noqa: BLE001 - the first error is the one to report
                connection.invalidate()
            except BaseException:
                connection.invalidate()
                raise
            raise

    def _write(self, connection: Connection) -> None:
        state = self._tracker.find(connection)
        if state is None or state.aborted or state.prepared or not state.has_changes:
            return
        if connection.dialect.name != DIALECT:
            _warn_unsupported(f"a database of type {connection.dialect.name}")
            return
        if is_autocommit(connection):
            _warn_unsupported("a connection in autocommit mode")
            return
        for owner, batch in list(state.gather().items()):
            if batch:
                self._write_batch(connection, state, owner, batch)

    def _write_batch(
        self, connection: Connection, state: TransactionState, owner: Owner, batch: SpilledChanges
    ) -> None:
        batch.set_outcome("committed")
        encoded = (self._transactional.encode(one) for one in self._composed(owner, batch))
        ids: list[str] = []
        for rows in _in_parts(encoded):
            try:
                connection.execute(_INSERT, rows)
            except DBAPIError as error:
                if sqlstate(error.orig or error) == _ABORTED:
                    # the application went on after an error: COMMIT will roll back
                    state.top.aborted = True
                    return
                raise self._refusal(error, self._roles.get(connection)) from error
            ids.extend(row["id"] for row in rows)
        if ids:
            state.note_recorded(owner, ids)

    def _composed(self, owner: Owner, batch: SpilledChanges) -> Iterator[AuditRecord]:
        try:
            yield from self._transactional.compose(owner, batch)
        except Exception as error:
            self._transactional.failed()
            log_limited(
                _logger, "compose", "The entries of a transaction were not made", error=error
            )
            raise StoreError(
                "the transaction was not committed: its audit entries could not be made "
                f"(OTEL_AUDIT_ORM=transactional) [{type(error).__name__}]"
            ) from error

    def _refusal(self, error: DBAPIError, role: str | None) -> Exception:
        if _is_passing(error):
            return error
        self._transactional.failed()
        refusal = refused("the transaction was not committed: its audit entries", error, role)
        log_limited(_logger, "outbox", "%s", refusal)
        return refusal


def write_records(connection: Connection, rows: Sequence[tuple[str, str]]) -> None:
    """Write records in the transaction of a connection.

    Args:
        connection: The application's, to PostgreSQL.
        rows: Ids and JSON texts.

    Raises:
        StoreError: There is no outbox, or the role may not write to it.
        DBAPIError: The statement failed for a reason of the application's or the server's.
    """
    if connection.dialect.name != DIALECT:
        raise StoreError(
            "an event can only ride in a transaction of PostgreSQL, "
            f"and this is one of {connection.dialect.name}"
        )
    try:
        connection.execute(_INSERT, [{"id": one, "record": record} for one, record in rows])
    except DBAPIError as error:
        if _is_passing(error) or sqlstate(error.orig or error) == _ABORTED:
            raise
        raise refused("the event was not recorded: it", error) from error


def refused(what: str, error: DBAPIError, role: str | None = None) -> StoreError:
    """Say what an application's role, or its database, lacks.

    Args:
        what: What could not be written.
        error: Why.
        role: The role that the connection has taken on by a text, as far as one was seen.
    """
    original = error.orig or error
    state = sqlstate(original)
    seen = f"{type(original).__name__} {state or ''}".strip()
    known = role is not None and role.lower() not in _NO_ROLE
    if state == _FORBIDDEN and known:
        remedy = (
            f"the role {role}, which the connection has taken on (SET ROLE), may not: run "
            f"`otel-audit init --outbox --application {role}` there; each role that transactions "
            "are committed as needs it, beside the one that the application logs in as"
        )
    elif state == _FORBIDDEN:
        remedy = (
            "the role in effect may not: run `otel-audit init --outbox --application ROLE` there, "
            "with the role that the application logs in as, and once more with each that it takes "
            "on (SET ROLE, SET LOCAL ROLE)"
        )
    else:
        remedy = (
            "run `otel-audit init --outbox --application ROLE` there, with the role that the "
            "application logs in as"
        )
    return StoreError(
        f"{what} could not be written to audit.outbox in the application's own database "
        f"(OTEL_AUDIT_ORM=transactional): {remedy} [{seen}]"
    )


def _is_passing(error: DBAPIError) -> bool:
    state = sqlstate(error.orig or error)
    return error.connection_invalidated or (state is not None and state.startswith(_PASSING))


def _in_parts(encoded: Iterable[tuple[str, str]]) -> Iterator[list[dict[str, str]]]:
    rows: list[dict[str, str]] = []
    size = 0
    for one, record in encoded:
        rows.append({"id": one, "record": record})
        size += len(record)
        if size >= _AT_ONCE:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def warn_unrecorded(state: TransactionState) -> None:
    """Say that a transaction was committed without entries of what it has changed.

    Args:
        state: What it has written.
    """
    if state.engine is not None and state.engine.dialect.name != DIALECT:
        _warn_unsupported(f"a database of type {state.engine.dialect.name}")
    elif state.committing:
        _warn_unsupported("a connection whose `commit` listener writes after ours")
    else:
        _warn_unsupported("a connection in autocommit mode, or behind a COMMIT within a text,")


def _warn_unsupported(where: str) -> None:
    log_limited(
        _logger, f"outbox {where}",
        "What changes on %s is recorded beside its transactions, not in them: "
        "OTEL_AUDIT_ORM=transactional works in transactions of PostgreSQL", where,
        level=logging.WARNING,
    )  # fmt: skip
