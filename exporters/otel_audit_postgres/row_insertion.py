"""Rows of one part of a batch on their way into the table: refused ones are found by halving."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from otel_audit.delivery.halving import write_by_halves
from otel_audit.delivery.sink import Conflict
from otel_audit_postgres.batch_result import BatchResult, came_as
from otel_audit_postgres.errors import is_refusal
from otel_audit_postgres.future_ids import at_present, is_of_future, split_future
from otel_audit_postgres.rows import Row


class RowInsertion:
    """Inserts rows of one part of a batch, as many at once as the store takes.

    Attributes:
        sound: The rows that it takes.
        new: How many of them are new.
    """

    def __init__(
        self,
        became: BatchResult,
        insert: Callable[[Sequence[Row]], Awaitable[int]],
        judge: Callable[[Row, Exception], Awaitable[None]],
        now: Callable[[], Awaitable[int]],
    ) -> None:
        self._became, self._insert_all, self._judge, self._now = became, insert, judge, now
        self.sound: list[Row] = []
        self.new = 0

    async def insert_or_move(self, rows: Sequence[Row]) -> Exception | None:
        """Insert rows, those of the future under ids of today; return why all are refused."""
        error = await self._insert(rows)
        if not is_of_future(error):
            return error
        # many of them cost as much as one: a host whose clock is wrong sends no others
        at = await self._now()
        ahead, others = split_future(rows, at)
        if not ahead:
            return error
        await self._move(ahead, at)
        if others:
            await write_by_halves(others, self.insert_or_move, self.refuse)
        return None

    async def refuse(self, row: Row, error: Exception) -> None:
        """Decide what becomes of a row that is refused alone."""
        if is_of_future(error):
            await self._move([row], await self._now())
        else:
            await self._judge(row, error)

    async def _insert(self, rows: Sequence[Row]) -> Exception | None:
        became = self._became
        if became.is_hopeless:
            became.postponed.update(dict.fromkeys(map(came_as, rows), became.last_reason))
            return None
        try:
            self.new += await self._insert_all(rows)
        except Exception as error:
            if not is_refusal(error):
                raise
            return error
        became.has_taken_any = True
        self.sound.extend(rows)
        return None

    async def _move(self, rows: Sequence[Row], at: int) -> None:
        """Insert rows under ids of today; the time is the database's."""
        moved: dict[bytes, Row] = {}
        came: dict[bytes, list[Row]] = {}
        for row, new in zip(rows, await at_present(rows, at), strict=True):
            # a record that came twice is one
            moved.setdefault(new.row_id, new)
            came.setdefault(new.row_id, []).append(row)

        async def judge(row: Row, error: Exception) -> None:
            for one in came.pop(row.row_id):
                await self._judge(one, error)

        await write_by_halves(list(moved.values()), self._insert, judge)
        self._became.conflicts.extend(
            Conflict(came[row_id][0].record_id, row.record_id)
            for row_id, row in moved.items()
            if row_id in came and came_as(row) not in self._became.postponed
        )
