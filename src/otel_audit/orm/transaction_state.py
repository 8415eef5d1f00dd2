"""The state of one open database transaction: its writes by savepoint and action.

Knows nothing of SQLAlchemy. A `TransactionState` follows one transaction on one connection; each
savepoint is a frame of it. Changes are kept by the scope that was current when they were seen,
because one transaction may serve several actions.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from otel_audit._util.spill import SpilledChanges, SpillOptions
from otel_audit.record import Change
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Owner: TypeAlias = AuditScope | None
"""The action a change belongs to, None outside any."""


_MOST_REFUSED = 50


class WrittenByAction(msgspec.Struct, eq=False):
    """An action's changes that are recorded in the transaction itself.

    Attributes:
        changes: The changes.
        records: Ids of the records that hold them.
    """

    changes: SpilledChanges
    records: list[str] = msgspec.field(default_factory=list)


class TransactionFrame(msgspec.Struct, eq=False):
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

    def absorb(self, other: TransactionFrame) -> None:
        """Take over what a released savepoint has written."""
        for owner, batch in other.batches.items():
            self.batch(owner).absorb(batch)


class TransactionState(msgspec.Struct, eq=False):
    """One transaction on one connection.

    Attributes:
        room: How many changes are kept in memory, and where the rest goes.
        keep_rolled_back: Whether undone changes are kept too.
        frames: The transaction and its open savepoints, outermost first.
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
        obscure: Whether a text of the application's may have undone it, or kept it for later.
        engine: The connection's engine.
    """

    room: SpillOptions = msgspec.field(default_factory=SpillOptions)
    keep_rolled_back: bool = False
    frames: list[TransactionFrame] = msgspec.field(default_factory=list)
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
    obscure: bool = False
    engine: Any = None

    def __post_init__(self) -> None:
        self.frames = [TransactionFrame(self.room)]

    @property
    def top(self) -> TransactionFrame:
        """The innermost frame, where what is written now belongs."""
        return self.frames[-1]

    @property
    def has_changes(self) -> bool:
        """Whether anything was written that is not undone."""
        return any(batch for frame in self.frames for batch in frame.batches.values())

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
        if any(over in frame.batches for frame in self.frames) or over in self.recorded:
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
        for frame in self.frames:
            batch = frame.batches.get(owner)
            if batch is not None:
                yield from batch.recent

    def open_savepoint(self, name: str) -> None:
        """A savepoint was set."""
        self.is_released = False
        self.frames.append(TransactionFrame(self.room, name))

    def release_savepoint(self, name: str) -> None:
        """A savepoint was released: what it holds belongs to the frame around it."""
        for frame in self._leave(name):
            self.top.absorb(frame)

    def undo_savepoint(self, name: str, *, reopen: bool = False) -> dict[Owner, int]:
        """A savepoint was rolled back: what it holds was undone.

        Args:
            name: The savepoint.
            reopen: Whether the savepoint itself lives on, as after a bare ROLLBACK TO.

        Returns:
            How many changes were undone, by action.
        """
        undone: dict[Owner, int] = {}
        for frame in self._leave(name):
            for owner, batch in frame.batches.items():
                undone[owner] = undone.get(owner, 0) + batch.count
                if self.keep_rolled_back:
                    self.undone.setdefault(owner, SpilledChanges(self.room)).absorb(batch)
        if reopen:
            self.open_savepoint(name)
        return undone

    def gather(self) -> dict[Owner, SpilledChanges]:
        """Bring together what the transaction and its open savepoints hold, as COMMIT does."""
        root = self.frames[0]
        for frame in self.frames[1:]:
            root.absorb(frame)
            frame.batches = {}
        return root.batches

    def note_recorded(self, owner: Owner, records: list[str]) -> None:
        """Mark an action's changes as recorded in the transaction itself.

        Args:
            owner: The action.
            records: Ids of the records that hold it.
        """
        batch = self.frames[0].batches.pop(owner)
        self.frames[0].batch(owner)
        known = self.recorded.setdefault(owner, WrittenByAction(SpilledChanges(self.room)))
        known.changes.absorb(batch)
        known.records += records

    def finish(self) -> Iterable[tuple[Owner, SpilledChanges]]:
        """The transaction has ended, and open savepoints with it.

        Returns:
            Actions and what they have written; one that did not even try is left out.
        """
        batches = self.gather()
        self.frames = [TransactionFrame(self.room)]
        return batches.items()

    @property
    def aborted(self) -> bool | None:
        """Whether the database will turn a COMMIT into a ROLLBACK; None if that may be."""
        found: bool | None = False
        for frame in self.frames:
            if frame.aborted:
                return True
            if frame.aborted is None:
                found = None
        return found

    def _leave(self, name: str) -> list[TransactionFrame]:
        for position in range(len(self.frames) - 1, 0, -1):
            if self.frames[position].name == name:
                left = self.frames[position:]
                del self.frames[position:]
                return left
        return []
