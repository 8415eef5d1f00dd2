"""`otel-audit search --follow`: records as they come."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.listing import Line, OutputFormat, printing
from otel_audit.cli.query_commands import lines_of
from otel_audit.cli.terminal import echo
from otel_audit.config import AuditConfig
from otel_audit.errors import StoreUnavailableError

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection
    from otel_audit_postgres.query.grammar import Query

T = TypeVar("T")

_EVERY: Final = 1.0
_AGAIN: Final = 5.0
"""Seconds until a store that cannot be reached is asked again."""
_RECORDED_EVERY: Final = 60.0
"""Seconds between two records of the same look."""
_MOST: Final = 1_000
"""Records of one question."""
_BEHIND: Final = 1_000
"""Places in the queue that are looked at again: a place may be filled after the next one."""
_MOST_REMEMBERED: Final = 50_000
"""Ids of shown records, so that none is shown twice."""


def follow(dsn: str, query: Query, form: OutputFormat, *, shows_past: bool, is_local: bool) -> None:
    """Print matching records as they are stored, until Ctrl-C.

    Args:
        dsn: The audit store.
        query: What is looked for.
        form: As for a search.
        shows_past: Begin with what is stored already.
        is_local: As for a search.
    """
    with printing(form, is_local=is_local) as show:
        try:
            run_coroutine(_follow(dsn, Tail(query), show, shows_past=shows_past))
        except KeyboardInterrupt:
            # whoever follows ends so; it is no failure
            return


async def _follow(
    dsn: str, tail: Tail, show: Callable[[Sequence[Line]], None], *, shows_past: bool
) -> None:
    from otel_audit_postgres.query.queries import opened

    is_begun = False
    while True:
        try:
            async with opened(dsn) as connection:
                if not is_begun:
                    await tail.begin(connection)
                    if shows_past:
                        async for lines in tail.past(connection):
                            show(lines)
                    is_begun = True
                while True:
                    lines = await tail.read(connection)
                    show(lines)
                    await asyncio.sleep(0 if tail.is_behind else _EVERY)
        except StoreUnavailableError as error:
            if not is_begun:
                raise
            echo(f"{error}; trying again", err=True)
            await asyncio.sleep(_AGAIN)


@dataclass
class Tail:
    """A position in the queue of unsealed records, and in the log.

    What is stored comes into the queue at once, and from there into the log. A record that was
    sealed between two looks at the queue is found in the log.
    """

    query: Query
    is_behind: bool = False
    _place: int = 0
    _size: int = 0
    _recorded: float | None = None
    _seen: dict[uuid.UUID, None] = field(default_factory=dict)

    async def begin(self, connection: Connection[Any]) -> None:
        """Note the end of the log and of the queue: what is there already is not shown."""
        from otel_audit_postgres.ledger import ledger_queries
        from otel_audit_postgres.ledger.latest_records import end_of_queue, waiting_ids

        self._size = await ledger_queries.size(connection)
        self._place = await end_of_queue(connection)
        known = await waiting_ids(connection, self._place - _BEHIND, _BEHIND)
        self._remember([record_id for _, record_id in known])

    async def past(self, connection: Connection[Any]) -> AsyncIterator[Sequence[Line]]:
        """All matching records that are stored, the oldest first; after `begin`.

        Yields:
            Some of them at a time, as many as one question may have; each is a look of its own.
        """
        from otel_audit_postgres.query import queries
        from otel_audit_postgres.query.queries import Page

        after: str | None = None

        async def answer(connection: Connection[Any]) -> tuple[Page, Sequence[Line]]:
            page = await queries.search(
                connection, self.query, limit=_MOST, after=after, oldest_first=True
            )
            return page, await lines_of(connection, page)

        while True:
            self._recorded = None
            page, lines = await self._ask(connection, answer, lambda answered: len(answered[1]))
            # the newest come last, and may come again: from the queue, or sealed meanwhile
            self._remember([one.id for one in page.records])
            yield lines
            after = page.next
            if after is None:
                return

    async def read(self, connection: Connection[Any]) -> Sequence[Line]:
        """The next matching records."""
        from otel_audit_postgres.ledger.latest_records import read_sealed, waiting_ids
        from otel_audit_postgres.query import queries
        from otel_audit_postgres.query.queries import Page

        async def answer(connection: Connection[Any]) -> Sequence[Line]:
            waiting = await waiting_ids(connection, self._place - _BEHIND, 2 * _MOST)
            sealed = await read_sealed(connection, self._size, _MOST)
            ids = [one for one in dict.fromkeys([*sealed.ids, *(one for _, one in waiting)])
                   if one not in self._seen]  # fmt: skip
            found = await queries.among(connection, self.query, ids, datetime.now(UTC))
            lines = await lines_of(connection, Page(tuple(found), None))
            self.is_behind = not sealed.is_last or len(waiting) >= 2 * _MOST
            self._size = sealed.end
            self._place = max([self._place, *(place for place, _ in waiting)])
            self._remember(ids)
            return lines

        return await self._ask(connection, answer, len)

    async def _ask(
        self,
        connection: Connection[Any],
        answer: Callable[[Connection[Any]], Awaitable[T]],
        count: Callable[[T], int],
    ) -> T:
        """Query; the view is recorded at first, and then once a minute."""
        from otel_audit_postgres.query.trail import Trail

        is_due = self._recorded is None or time.monotonic() - self._recorded > _RECORDED_EVERY
        trail = Trail(connection, views=AuditConfig().record_views if is_due else "off")
        answered = await trail.ask("tail", {"query": str(self.query)}, answer, count)
        if is_due:
            self._recorded = time.monotonic()
        return answered

    def _remember(self, ids: Sequence[uuid.UUID]) -> None:
        self._seen.update(dict.fromkeys(ids))
        while len(self._seen) > _MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]
