"""What is known of one connection, and of the flush that writes on it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import msgspec

from otel_audit.orm.transaction_state import is_committed

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction

    from otel_audit.orm.mapper_info import MapperInfo
    from otel_audit.orm.row_diff import WrittenRow
    from otel_audit.orm.stored_values import SentValues
    from otel_audit.orm.transaction_state import TransactionState
    from otel_audit.record import Change, Operation
    from otel_audit.scope import AuditScope, PendingScope


class ConnectionFacts:
    """What is known of one connection; found in its own dictionary, all of it with one look.

    Attributes:
        state: Its open transaction, if that has written.
        began_in: The action in which its transaction began.
        taken: Whether what happens there is captured; None: nobody has asked yet.
        sessions: The sessions that use it; they are not kept alive.
        flush: The flush that writes there, as far as its rows are captured.
        part: The part of that flush on this connection.
    """

    __slots__ = ("began_in", "flush", "part", "sessions", "state", "taken")

    def __init__(self) -> None:
        """Start with nothing known: the connection has only been made."""
        self.state: TransactionState | None = None
        self.began_in: AuditScope | PendingScope | None = None
        self.taken: bool | None = None
        self.sessions: tuple[weakref.ref[Session], ...] = ()
        self.flush: Flush | None = None
        self.part: FlushPart | None = None

    def used_by(self) -> list[Session]:
        """The sessions that use it, as far as they are still there."""
        return [session for one in self.sessions if (session := one()) is not None]


class Flush(msgspec.Struct, eq=False):
    """One flush of one session.

    Attributes:
        context: SQLAlchemy's unit of work.
        session_id: SQLAlchemy's number of the session, which the states of its objects bear.
        taken: Whether what the session does is captured.
        number: Counts the flushes of the process.
        parts: What was written, by connection.
        before: Values about to be overwritten, by state.
        mapper_infos: The plans of the mappers that have written.
        short: Operations and tables of which fewer rows were inserted or deleted than requested.
        last_context: The execution context of the statement whose values were noted last.
    """

    context: weakref.ref[UOWTransaction]
    session_id: int
    taken: bool
    number: int
    parts: list[FlushPart] = msgspec.field(default_factory=list)
    before: dict[InstanceState[Any], dict[str, Any]] = msgspec.field(default_factory=dict)
    mapper_infos: dict[Mapper[Any], MapperInfo] = msgspec.field(default_factory=dict)
    short: set[tuple[Operation, str]] = msgspec.field(default_factory=set)
    last_context: Any = None

    @property
    def writing(self) -> bool:
        """Whether it writes: a flush that finds nothing to do ends without an event."""
        return getattr(self.context(), "transaction", None) is not None


class FlushPart(msgspec.Struct, eq=False):
    """What a flush has written on one connection.

    Attributes:
        connection: The connection.
        facts: What is known of it.
        taken: Whether what happens there is captured, as far as the flush's session is.
        rows: The rows of mapped objects.
        others: Rows of association tables, and what could not be read.
        sent: What was written, or may have been, to tables of captured classes; with the number of
            `rows` before it.
        committed: Whether each statement is committed at once; None: nothing was sent yet.
        values: What was sent for values of the application's own types.
    """

    connection: Connection
    facts: ConnectionFacts
    taken: bool
    rows: list[WrittenRow] = msgspec.field(default_factory=list)
    others: list[Change] = msgspec.field(default_factory=list)
    sent: dict[tuple[Operation, Table], int] = msgspec.field(default_factory=dict)
    committed: bool | None = None
    values: SentValues | None = None

    def note_fate(self) -> None:
        """See, at the first statement, whether a transaction is around it.

        When the flush has failed it is too late: its rollback has ended what there was.
        """
        if self.committed is None:
            self.committed = is_committed(self.connection)
