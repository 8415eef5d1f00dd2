"""The open transactions of all connections, and what happens when one ends."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Protocol

from otel_audit._util.spill import SpilledChanges, SpillOptions
from otel_audit.orm.connection_facts import ConnectionFacts
from otel_audit.orm.transaction_state import (
    Owner,
    TransactionState,
    WrittenByAction,
    in_transaction,
    is_autocommit,
    is_committed,
    is_pipelined_autocommit,
    reset_outcome,
)
from otel_audit.record import Change, TransactionOutcome
from otel_audit.scope import PendingScope, action_under_way, current_scope

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from otel_audit.orm.guard import ErrorGuard
    from otel_audit.orm.options import OrmOptions


_numbers = count()


class OrphanRecorder(Protocol):
    """Takes what a transaction outside any action has left."""

    def __call__(
        self, outcome: TransactionOutcome, changes: SpilledChanges, /, *, begun_in: str = ...
    ) -> None:
        """Take it.

        Args:
            outcome: How the transaction ended.
            changes: What it changed.
            begun_in: Id of the action that began what has written; given only if there is one.
        """


class TransactionTracker:
    """The open transactions and their writes."""

    def __init__(
        self,
        options: OrmOptions,
        guard: ErrorGuard,
        on_orphan: OrphanRecorder | None,
        on_recorded: Callable[[], None] = lambda: None,
        on_unrecorded: Callable[[TransactionState], None] | None = None,
    ) -> None:
        """Start with no transaction.

        Args:
            options: Bounds, and whether undone changes are kept.
            guard: Where errors of our own are counted.
            on_orphan: Takes the changes of no action.
            on_recorded: Called when a transaction is over that holds records itself.
            on_unrecorded: Called when one was committed without records of all its changes.
        """
        self._options = options
        self._guard = guard
        self._room = SpillOptions(
            page=max(options.max_entries, 1),
            directory=options.spill_directory,
            cipher=options.spill_cipher,
            on_error=guard.tally,
        )
        self._on_orphan = on_orphan
        self._on_recorded = on_recorded
        self._on_unrecorded = on_unrecorded
        # of its own: another attachment's facts about a connection are not this one's
        self._key = f"_otel_audit_{next(_numbers)}"
        self._open: dict[int, TransactionState] = {}
        self.awaited: dict[int, TransactionState] = {}
        """Of the open ones those whose commit may have been answered: few, however many there are.
        """
        self._gone: deque[TransactionState] = deque()
        self.mark: Callable[[Change], None] = _unmarked
        """Names the personal columns of a change; set where the models are known."""

    def facts(self, connection: Connection) -> ConnectionFacts:
        """What is known of a connection."""
        found: ConnectionFacts | None = connection.__dict__.get(self._key)
        if found is None:
            found = connection.__dict__[self._key] = ConnectionFacts()
        return found

    def find(self, connection: Connection) -> TransactionState | None:
        """The state of a connection's transaction, None if nothing has happened in it."""
        found: ConnectionFacts | None = connection.__dict__.get(self._key)
        return None if found is None else found.state

    def of(self, connection: Connection) -> TransactionState:
        """The state of a connection's transaction."""
        facts: ConnectionFacts | None = connection.__dict__.get(self._key)
        if facts is None:
            facts = self.facts(connection)
        state = facts.state
        if state is None:
            if self._gone:
                self._report_gone()
            # one that is thrown away unclosed is rolled back by its pool
            reference = weakref.ref(connection, self._lost)
            state = TransactionState(
                self._room,
                self._options.keep_rolled_back,
                engine=connection.engine,
                connection=reference,
            )
            facts.state = self._open[id(reference)] = state
        return state

    def owner(self, connection: Connection) -> Owner:
        """Say to which action belongs what is written now.

        A task keeps the scope of the action that began it for as long as it lives. When that
        action is over, it owns only what is written in a transaction that began before; the rest
        belongs to the process, and names it.
        """
        scope = current_scope()
        if scope is None or not scope.closed:
            return scope
        began_in = self.facts(connection).began_in
        if scope is (began_in.made if isinstance(began_in, PendingScope) else began_in):
            return scope
        return self.of(connection).owner_after(scope)

    def write(self, connection: Connection, changes: Iterable[Change]) -> None:
        """Note changes in the connection's transaction, for the action under way."""
        scope = self.owner(connection)
        state = self.of(connection)
        number = 0
        for change in changes:
            self.mark(change)
            state.add(scope, change)
            number += 1
        if scope is not None and number:
            scope.note_flushed(number, state)

    def undo_savepoint(self, connection: Connection, name: str, *, reopen: bool = False) -> None:
        """A savepoint was rolled back."""
        state = self.find(connection)
        if state is None:
            return
        for owner, number in state.undo_savepoint(name, reopen=reopen).items():
            if owner is not None and number:
                owner.note_savepoint_rollback(number)

    def expect_more(self, connection: Connection) -> None:
        """A batch of a statement was executed, and further ones may follow."""
        state = self.find(connection)
        if state is not None:
            state.autocommitted = is_committed(connection)
            self._await(state)

    def release_savepoint(self, connection: Connection, name: str) -> None:
        """A savepoint is about to be released.

        In autocommit mode SQLite lets one begin a transaction, which this then commits.
        """
        state = self.of(connection)
        state.release_savepoint(name)
        state.is_released = len(state.levels) == 1
        self._await(state)

    def begins(self, connection: Connection) -> None:
        """A transaction begins, and the one before, if any, has ended.

        Unless a listener of the application's has kept its COMMIT from being sent, and SQLAlchemy
        its ROLLBACK: to the database it continues, and has the outcome of the next writes.
        """
        if self.awaited or self._gone:
            self.report_commits()
        facts = self.facts(connection)
        state = facts.state
        if state is not None:
            state.committing = False
        scope = action_under_way()
        if scope is not None or state is None:
            facts.began_in = scope

    def has_begun(self, connection: Connection) -> None:
        """A BEGIN of the application's own has worked.

        SQLite takes none within a transaction, so the COMMIT before was sent. The driver no longer
        shows that, if the listener that sends it was called before ours.
        """
        state = self.find(connection)
        if state is not None and state.committing and connection.dialect.name == "sqlite":
            self.committed(connection)

    def commit_begins(self, connection: Connection) -> None:
        """A COMMIT is about to be sent."""
        state = self.find(connection)
        if state is None:
            return
        if state.autocommitted:
            self.end(connection, "committed")
            return
        if connection.invalidated:  # SQLAlchemy will refuse: there is nothing left to commit
            self.end(connection, "unknown" if state.prepared else "rolled_back")
            return
        state.committing = True
        state.driver_connection = connection.connection.dbapi_connection
        self.awaited[id(state.connection)] = state

    def committed(self, connection: Connection) -> None:
        """A COMMIT has been answered without an error, which need not mean that it committed."""
        state = self.find(connection)
        if state is not None:
            self._committed(state)

    def _committed(self, state: TransactionState) -> None:
        aborted = state.aborted
        self._end(
            state, "committed" if aborted is False else "rolled_back" if aborted else "unknown"
        )

    def rolled_back(self, connection: Connection) -> None:
        """A ROLLBACK is about to be sent, or need not be."""
        state = self.find(connection)
        if state is not None:
            if _is_over(state, connection):
                self.end(connection, "committed")
            else:
                # in psycopg's pipelined autocommit a ROLLBACK undoes nothing: unknown
                undecided = is_pipelined_autocommit(connection)
                self.end(connection, "unknown" if undecided else "rolled_back")

    def report_commits(self) -> None:
        """Report every commit that has been answered.

        SQLAlchemy reports when a COMMIT is about to be sent and when it fails, not when it has
        worked; nor when a listener has prevented it, which the driver must show.
        """
        if self._gone:
            self._report_gone()
        if not self.awaited:
            return
        for state in list(self.awaited.values()):
            connection = state.connection()
            if (state.autocommitted or state.is_released) and _is_over(state, connection):
                self._end(state, "committed")
            elif state.committing:
                self._report_if_answered(state, connection)

    def connection_checked_in(self, driver_connection: object) -> None:
        """A connection came back to its pool, and so its COMMIT, if any, has been answered.

        It may come back from the garbage collector, which may run anywhere: then nothing can be
        reported, as that might wait for a lock that this very thread holds.
        """
        for state in list(self.awaited.values()):
            if state.committing and state.driver_connection is driver_connection:
                self._report_if_answered(state, state.connection())

    def connection_reset(self, driver_connection: object, *, unfinished: bool) -> None:
        """A connection is about to come back: see whether its COMMIT, if any, was sent.

        Args:
            driver_connection: The driver's connection.
            unfinished: Whether SQLAlchemy closes a transaction whose COMMIT it did not see through.
        """
        for state in list(self.awaited.values()):
            if state.committing and state.driver_connection is driver_connection:
                # a pool that commits sends the COMMIT that was kept from being sent
                state.unsent = reset_outcome(state.engine) != "committed" and (
                    unfinished or in_transaction(driver_connection)
                )

    def _report_if_answered(self, state: TransactionState, connection: Connection | None) -> None:
        """Report a commit that was sent, if it has been answered."""
        if connection is None:
            self._lost(state.connection)
        elif state.unsent:
            self._end(state, "unknown")
        elif connection.get_transaction() is None and not in_transaction(state.driver_connection):
            self._committed(state)

    def _await(self, state: TransactionState) -> None:
        self.awaited[id(state.connection)] = state

    def end(self, connection: Connection, outcome: TransactionOutcome) -> None:
        """Report the outcome of a transaction, and forget it."""
        state = self.find(connection)
        if state is not None:
            self._end(state, outcome)

    def close(self) -> None:
        """Report what can be known, and the rest as unknown; for detaching."""
        self.report_commits()
        for state in list(self._open.values()):
            self._end(state, "unknown")

    def _lost(self, reference: weakref.ref[Connection]) -> None:
        """Put aside what a collected connection has left; runs anywhere, so takes no lock."""
        self.awaited.pop(id(reference), None)
        state = self._open.pop(id(reference), None)
        if state is not None:
            if state.committing:
                if reset_outcome(state.engine) != "committed":
                    state.unsent = state.unsent or in_transaction(state.driver_connection)
                state.driver_connection = None
            self._gone.append(state)

    def _report_gone(self) -> None:
        while self._gone:
            try:
                state = self._gone.popleft()
            except IndexError:  # another thread was faster
                return
            if state.prepared or state.unsent:
                self._finish(state, "unknown")
            elif state.committing:
                self._finish(state, "committed" if state.aborted is False else "unknown")
            elif state.autocommitted:
                self._finish(state, "committed")
            else:
                self._finish(state, "rolled_back" if state.aborted else reset_outcome(state.engine))

    def _end(self, state: TransactionState, outcome: TransactionOutcome) -> None:
        reference = state.connection
        number = id(reference)
        self.awaited.pop(number, None)
        if self._open.pop(number, None) is None:  # another thread was faster
            return
        connection = reference()
        if connection is not None:
            facts = self.facts(connection)
            facts.state = None
            # in autocommit mode no other one is announced
            facts.began_in = None
        self._finish(state, outcome)

    def _finish(self, state: TransactionState, outcome: TransactionOutcome) -> None:
        if (state.recorded or state.can_enlist) and outcome != "rolled_back":
            self._on_recorded()
        if state.undone:
            for owner, batch in state.undone.items():
                batch.set_outcome("rolled_back")
                self._report_undone(owner, batch)
        if not state.recorded and self._on_unrecorded is None:  # as nearly always
            for owner, batch in state.finish():
                batch.set_outcome(outcome)
                self._report(owner, outcome, batch, state, None)
            return
        on_unrecorded = self._on_unrecorded if outcome == "committed" else None
        recorded, has_unrecorded = state.recorded.copy(), False
        for owner, batch in state.finish():
            has_unrecorded = has_unrecorded or bool(batch)
            if outcome == "rolled_back" and owner in recorded:
                # it was undone with the rest
                whole = recorded.pop(owner).changes
                whole.absorb(batch)
                batch = whole  # noqa: PLW2901 - the same batch, complete
            batch.set_outcome(outcome)
            self._report(owner, outcome, batch, state, recorded.pop(owner, None))
        if has_unrecorded and on_unrecorded is not None:
            on_unrecorded(state)

    def _report(
        self,
        owner: Owner,
        outcome: TransactionOutcome,
        batch: SpilledChanges,
        state: TransactionState,
        recorded: WrittenByAction | None,
    ) -> None:
        if owner is not None:
            if recorded is not None:
                owner.change_records += recorded.records
            owner.note_transaction_end(
                outcome,
                batch,
                recorded_in_transaction=0 if recorded is None else recorded.changes.count,
                keep_rolled_back=self._options.keep_rolled_back,
                transaction=state,
                refused=state.refused.get(owner, ()),
            )
            if not owner.closed or owner.on_late_changes is not None:
                return
        # nobody takes it
        if batch and (outcome != "rolled_back" or self._options.keep_rolled_back):
            self._orphaned(outcome, batch, owner)

    def _report_undone(self, owner: Owner, batch: SpilledChanges) -> None:
        if owner is not None and owner.begun_in is None:
            owner.keep(batch)
        elif batch:
            self._orphaned("rolled_back", batch, owner)

    def _orphaned(self, outcome: TransactionOutcome, changes: SpilledChanges, owner: Owner) -> None:
        if self._on_orphan is None:
            return
        begun_in = None if owner is None else owner.begun_in
        try:
            if begun_in is None:
                self._on_orphan(outcome, changes)
            else:
                self._on_orphan(outcome, changes, begun_in=begun_in)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._guard.note("on_orphan", error)


def _is_over(state: TransactionState, connection: Connection | None) -> bool:
    """Whether what was written is committed without a COMMIT, as in autocommit mode."""
    if state.autocommitted:
        return True
    return state.is_released and connection is not None and is_autocommit(connection)


def _unmarked(_: Change) -> None:
    """Leave a change as it is: no model is known."""
