"""What one database transaction has written so far: savepoint by savepoint, action by action.

Knows nothing of SQLAlchemy. A `Ledger` follows one transaction on one connection; each savepoint is
a frame of it. Changes are kept by the scope that was current when they were seen, because one
transaction may serve several actions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from otel_audit.record import Change, Operation, TransactionOutcome
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from collections.abc import Iterable

Owner: TypeAlias = AuditScope | None
"""The action a change belongs to, None outside any."""

_Sort: TypeAlias = tuple[Operation, str, str]


@dataclass(slots=True)
class Batch:
    """What one action has written in one frame.

    Attributes:
        kept: Changes in full.
        rest: How many more there are beyond the bound, by operation, entity and table.
        count: All of them.
    """

    kept: list[Change] = field(default_factory=list)
    rest: dict[_Sort, int] = field(default_factory=dict)
    count: int = 0

    def absorb(self, other: Batch) -> None:
        """Take over what a released savepoint has written."""
        self.kept.extend(other.kept)
        for sort, number in other.rest.items():
            self.rest[sort] = self.rest.get(sort, 0) + number
        self.count += other.count

    def entries(self, outcome: TransactionOutcome) -> list[Change]:
        """All changes, each with its outcome, and one summary for each sort beyond the bound."""
        for change in self.kept:
            # nobody else has seen it yet
            msgspec.structs.force_setattr(change, "transaction", outcome)
        rest = (_summary(sort, number, outcome) for sort, number in self.rest.items())
        return [*self.kept, *rest]


@dataclass(slots=True)
class Frame:
    """A transaction, or a savepoint in it.

    Attributes:
        name: The savepoint's name, None for the transaction itself.
        batches: What was written, by action; an action that only tried to write has an empty one.
        aborted: Whether the database has refused to go on; None where that is not certain.
    """

    name: str | None = None
    batches: dict[Owner, Batch] = field(default_factory=dict)
    aborted: bool | None = False

    def batch(self, owner: Owner) -> Batch:
        """The batch of an action; an empty one says that it tried to write."""
        found = self.batches.get(owner)
        if found is None:
            found = self.batches[owner] = Batch()
        return found


@dataclass(slots=True, eq=False)
class Ledger:
    """One transaction on one connection.

    Attributes:
        limit: Changes of one action that are kept in full.
        keep_rolled_back: Whether undone changes are kept too.
        frames: The transaction and its open savepoints, outermost first.
        undone: What savepoints have rolled back, if it is kept.
        committing: Whether a COMMIT was sent whose answer is not known yet.
        prepared: Whether the first phase of a two-phase commit was sent.
    """

    limit: int
    keep_rolled_back: bool = False
    frames: list[Frame] = field(default_factory=lambda: [Frame()])
    undone: dict[Owner, Batch] = field(default_factory=dict)
    committing: bool = False
    prepared: bool = False
    _kept: dict[Owner, int] = field(default_factory=dict)

    @property
    def top(self) -> Frame:
        """The innermost frame, where what is written now belongs."""
        return self.frames[-1]

    def has_room(self, owner: Owner) -> bool:
        """Whether one more change of this action is kept in full."""
        earlier = 0 if owner is None else len(owner.changes)
        return self._kept.get(owner, 0) + earlier < self.limit

    def written(self, owner: Owner) -> int:
        """How many changes of an action the innermost frame holds."""
        batch = self.top.batches.get(owner)
        return 0 if batch is None else batch.count

    def touch(self, owner: Owner) -> None:
        """An action has tried to write."""
        self.top.batch(owner)

    def add(self, owner: Owner, change: Change) -> None:
        """Keep a change in full, or count it where there is no room."""
        if not self.has_room(owner):
            self.count(owner, (change.operation, change.entity, change.table))
            return
        batch = self.top.batch(owner)
        batch.kept.append(change)
        batch.count += 1
        self._kept[owner] = self._kept.get(owner, 0) + 1

    def count(self, owner: Owner, sort: _Sort) -> None:
        """Count a change that is not kept in full."""
        batch = self.top.batch(owner)
        batch.rest[sort] = batch.rest.get(sort, 0) + 1
        batch.count += 1

    def replace_last(self, owner: Owner, old: Change, new: Change) -> bool:
        """Amend the change that was kept last, if it still is the last one."""
        batch = self.top.batch(owner)
        if not batch.kept or batch.kept[-1] is not old:
            return False
        batch.kept[-1] = new
        return True

    def open_savepoint(self, name: str) -> None:
        """A savepoint was set."""
        self.frames.append(Frame(name))

    def release_savepoint(self, name: str) -> None:
        """A savepoint was released: what it holds belongs to the frame around it."""
        for frame in self._leave(name):
            for owner, batch in frame.batches.items():
                self.top.batch(owner).absorb(batch)

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
                    self.undone.setdefault(owner, Batch()).absorb(batch)
                else:
                    self._kept[owner] = self._kept.get(owner, 0) - len(batch.kept)
        if reopen:
            self.open_savepoint(name)
        return undone

    def finish(self) -> Iterable[tuple[Owner, Batch]]:
        """The transaction has ended, and open savepoints with it.

        Returns:
            Actions and what they have written; one that did not even try is left out.
        """
        root = self.frames[0]
        for frame in self.frames[1:]:
            for owner, batch in frame.batches.items():
                root.batch(owner).absorb(batch)
        self.frames = [Frame()]
        return root.batches.items()

    @property
    def aborted(self) -> bool | None:
        """Whether the database will turn a COMMIT into a ROLLBACK; None where that may be."""
        if any(frame.aborted for frame in self.frames):
            return True
        return None if any(frame.aborted is None for frame in self.frames) else False

    def _leave(self, name: str) -> list[Frame]:
        for position in range(len(self.frames) - 1, 0, -1):
            if self.frames[position].name == name:
                left = self.frames[position:]
                del self.frames[position:]
                return left
        return []


def _summary(sort: _Sort, number: int, outcome: TransactionOutcome) -> Change:
    operation, entity, table = sort
    return Change(
        operation=operation,
        kind="untracked",
        entity=entity,
        table=table,
        rows=number,
        transaction=outcome,
        note=f"{number} further changes beyond the bound, not kept one by one",
    )
