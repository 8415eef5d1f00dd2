"""From records to rows: at once, by turns of an event loop, or while the server reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final

from otel_audit.delivery.sanitize import written_down
from otel_audit.delivery.sink import Refused
from otel_audit.record import AuditRecord
from otel_audit_postgres.rows import Row, UnstorableRecordError, to_row, uuid_bytes

_TURN: Final = 0.005
"""Seconds of making rows after which the event loop runs others."""

_record_id: Final = attrgetter("record_id")
_changes: Final = attrgetter("changes")

_MANY_CHANGES: Final = 500
"""Changes of a record from which on its row is made in a thread, or before the server waits for it:
their entities are to be named."""


def to_rows(records: Iterable[AuditRecord], *, to_copy: bool) -> tuple[list[Row], list[Refused]]:
    """Make rows; a record that no row can hold is refused, and holds up no other. Never raises."""
    refused: list[Refused] = []
    return list(_made(records, refused, to_copy=to_copy)), refused


async def to_rows_by_turns(
    records: Sequence[AuditRecord], *, to_copy: bool
) -> tuple[list[Row], list[Refused]]:
    """As `to_rows`, but yields to the event loop, which the senders share."""
    rows: list[Row] = []
    refused: list[Refused] = []
    began = time.perf_counter()
    for record in records:
        if len(record.changes) > _MANY_CHANGES:
            made, unfit = await asyncio.to_thread(to_rows, [record], to_copy=to_copy)
        else:
            made, unfit = to_rows([record], to_copy=to_copy)
        rows += made
        refused += unfit
        if time.perf_counter() - began > _TURN:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return rows, refused


class RowParts:
    """Rows, split into parts that fit into one statement each."""

    def __init__(self, rows: Iterator[Row], most_bytes: int) -> None:
        """Start at the first row.

        Args:
            rows: All of them.
            most_bytes: Bytes of payload in one part. A larger row is a part of its own.
        """
        self._rows = rows
        self._most_bytes = most_bytes
        self._next = next(rows, None)

    def __bool__(self) -> bool:
        """Whether any row is left."""
        return self._next is not None

    def part(self) -> RowPart:
        """Begin the next part; the one before it must be finished."""
        return RowPart(self)

    def take(self, rows: list[Row]) -> Iterator[Row]:
        """Add to the rows of a part, and yield each, until the part is full."""
        size, most, rest, add = 0, self._most_bytes, self._rows, rows.append
        while (row := self._next) is not None:
            size += len(row.payload)
            if size > most and rows:
                return
            add(row)
            self._next = next(rest, None)
            yield row


class RowFeed(RowParts):
    """The rows of a batch in parts; each row is made when it is taken.

    Whoever takes a row sends it on, so the server reads while the next rows are made.

    Attributes:
        refused: Records that no row can hold, among those whose rows were made so far.
    """

    def __init__(self, records: Iterable[AuditRecord], most_bytes: int) -> None:
        """Make the first row.

        Args:
            records: The batch.
            most_bytes: As for `RowParts`.
        """
        self.refused: list[Refused] = []
        super().__init__(_made(records, self.refused, to_copy=True), most_bytes)


def split(rows: Iterable[Row], most_bytes: int) -> Iterator[list[Row]]:
    """Split rows that are made already; see `RowParts`."""
    parts = RowParts(iter(rows), most_bytes)
    while parts:
        yield parts.part().finish()


class RowPart:
    """As many rows as go into one statement; taken once."""

    def __init__(self, feed: RowParts) -> None:
        """Start a part; no row is taken yet.

        Args:
            feed: The rows that are left.
        """
        self._rows: list[Row] = []
        self._rest = feed.take(self._rows)

    def __iter__(self) -> Iterator[Row]:
        """The rows that were not taken before."""
        return self._rest

    def finish(self) -> list[Row]:
        """Take what is left, and return all of them."""
        for _ in self._rest:
            pass
        return self._rows


def can_be_fed(records: Sequence[AuditRecord]) -> bool:
    """Return whether a batch may be sent while its rows are made.

    Each record needs an id of its own, as one statement does not see what it inserts itself; and
    none may take long, as the server waits for it within a transaction.
    """
    try:
        ids = set(map(uuid_bytes, map(_record_id, records)))
        if len(ids) != len(records):
            return False
        return max(map(len, map(_changes, records)), default=0) <= _MANY_CHANGES
    except (ValueError, TypeError, AttributeError):
        return False  # a field of a type that its class does not allow, or an id that is none


def _made(
    records: Iterable[AuditRecord], refused: list[Refused], *, to_copy: bool
) -> Iterator[Row]:
    for record in records:
        try:
            yield to_row(record, to_copy=to_copy)
        except UnstorableRecordError as error:
            refused.append(Refused(error.record_id, error.received, error.reason))
        except Exception as error:  # noqa: BLE001 - one record must not hold up the others
            reason = f"an unexpected {type(error).__name__}"
            refused.append(Refused(str(record.record_id), written_down(record), reason))
