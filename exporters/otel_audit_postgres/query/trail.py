"""Queries of the audit trail: typed, asynchronous, a page at a time; each look is recorded.

Example::

    async with open_trail(dsn) as trail:
        page = await trail.search(parse("actor:user-1 status:5xx time:7d"))
        async for record in trail.pages(Criteria(entity="order:123")):
            ...
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

import msgspec

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.errors import sqlstate
from otel_audit_postgres.query import counts, queries
from otel_audit_postgres.query.counts import Facet, Histogram
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.queries import PAGE, Criteria, Found, Page, Shown, Size, Volume

_logger = logging.getLogger(__name__)

T = TypeVar("T")

Views = Literal["required", "tried", "off"]
"""Whether looks are recorded: before anything is shown, if that can be done, or not at all."""

_NO_READER: Final = "run `otel-audit migrate` and let this role be a reader"
_READ_ONLY: Final = "the server is read-only, as a standby is: name the primary in --dsn"
_LOOK_AS: Final = "SELECT row_security_active('audit.audit_logs') FROM audit.look_as($1::text[])"
_NO_ROW_SECURITY: Final = (
    "nothing is shown: this connection sees every tenant's records, whatever was asked for. Let "
    "the viewer log in as a role of its own: otel-audit init --roles --viewer ROLE"
)
_RECORD: Final = "SELECT audit.record_view($1, $2::jsonb, $3, $4, $5, $6)"


@dataclass(frozen=True, slots=True)
class ReaderScope:
    """On whose behalf a service looks: the database shows no more than this.

    Attributes:
        tenants: Only records of these; None: of all, and those without a tenant.
    """

    tenants: tuple[str, ...] | None


class Trail:
    """An open connection to the trail; made by `open_trail`.

    Every question is one transaction. It reads the answer, and records the look as
    ``audit.viewed``: the database role that logged in, the query, the number of records. The answer
    is returned after COMMIT. A look at looks is recorded, too.

    Example::

        async with open_trail(dsn) as trail:
            page = await trail.history("order:7")
            print([(one.event_name, one.actor_id) for one in page.records])
    """

    def __init__(  # noqa: PLR0913 - each a choice of its own
        self,
        connection: Connection[Any],
        *,
        views: Views = "required",
        viewer: str | None = None,
        scope: ReaderScope | None = None,
        is_repeated: Callable[[tuple[object, ...]], bool] = lambda _: False,
        on_recorded: Callable[[tuple[object, ...]], None] = lambda _: None,
    ) -> None:
        """Remember the connection; see `open_trail`.

        Args:
            connection: To the store.
            views: See `open_trail`.
            viewer: See `open_trail`.
            scope: What the database shows at most.
            is_repeated: Returns whether a look only repeats the last one, and is recorded already.
            on_recorded: Called with each look that is recorded, before its transaction ends.
        """
        self._connection = connection
        self._views: Views = views
        self._viewer = viewer
        self._scope = scope
        self._is_repeated = is_repeated
        self._on_recorded = on_recorded

    async def search(
        self,
        wanted: Criteria | Query,
        *,
        limit: int = PAGE,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> Page:
        """Look for records; see `otel_audit_postgres.query.queries.search`."""
        return await self.ask(
            "search",
            {**_given(wanted), "limit": limit, "after": after, "oldest_first": oldest_first},
            lambda connection: queries.search(
                connection, wanted, limit=limit, after=after, oldest_first=oldest_first
            ),
            _records,
            looked_at(wanted),
        )

    async def pages(
        self, wanted: Criteria | Query, *, page_size: int = 500, oldest_first: bool = False
    ) -> AsyncIterator[Found]:
        """All that is found, read a page at a time; each page is a look of its own."""
        after: str | None = None
        while True:
            page = await self.search(
                wanted, limit=page_size, after=after, oldest_first=oldest_first
            )
            for record in page.records:
                yield record
            if page.next is None:
                return
            after = page.next

    async def history(self, entity: str, *, limit: int = PAGE, after: str | None = None) -> Page:
        """Everything that happened to an entity, such as ``order:123``, the oldest first."""
        return await self.ask(
            "history",
            {"entity": entity, "limit": limit, "after": after},
            lambda connection: queries.history(connection, entity, limit=limit, after=after),
            _records,
            ("audit_history", entity),
        )

    async def show(self, record_id: str) -> tuple[Shown, ...]:
        """One record in full; see `otel_audit_postgres.query.queries.show`."""
        return await self.ask(
            "show",
            {"id": record_id},
            lambda connection: queries.show(connection, record_id),
            len,
            ("audit_record", record_id.lower()),
        )

    async def volume(self, since: datetime) -> tuple[Volume, ...]:
        """Count records by day and event, from a time on."""
        return await self.ask(
            "stats",
            {"since": since.isoformat()},
            lambda connection: queries.volume(connection, since),
            lambda _: 0,
        )

    async def count(self, wanted: Query) -> int:
        """Count what fits; see `otel_audit_postgres.query.counts.count`."""
        return await self._counted("count", wanted, counts.count)

    async def histogram(self, wanted: Query) -> Histogram:
        """Count what fits over time; see `otel_audit_postgres.query.counts.histogram`."""
        return await self._counted("histogram", wanted, counts.histogram)

    async def facets(self, wanted: Query, fields: Sequence[str]) -> tuple[Facet, ...]:
        """Count the most frequent values of fields; see `otel_audit_postgres.query.counts.facet`.

        Raises:
            ConfigurationError: A field has no such counts.
        """
        for name in fields:
            if name not in counts.FACETS:
                raise ConfigurationError(f"{name}: is not one of {', '.join(counts.FACETS)}")

        async def answer(connection: Connection[Any], query: Query) -> tuple[Facet, ...]:
            # each has a time limit of its own, which needs a transaction
            async with connection.transaction():
                return await counts.facets(connection, query, fields)

        return await self._counted("facets", wanted, answer)

    async def _counted(
        self, question: str, wanted: Query, answer: Callable[[Connection[Any], Query], Awaitable[T]]
    ) -> T:
        asked = {"query": str(wanted)}
        return await self.ask(
            question, asked, lambda connection: answer(connection, wanted), lambda _: 0
        )

    async def sizes(self) -> tuple[Size, ...]:
        """The sizes of the tables; this shows no record, and is not recorded."""
        return await queries.sizes(self._connection)

    async def proved(self, what: str, records: int) -> None:
        """Record an export of evidence: ``what`` is an id, an entity, or a checkpoint."""
        await self.looked("prove", {"what": what}, records, _named(what))

    async def looked(
        self,
        question: str,
        asked: dict[str, Any],
        records: int,
        target: tuple[str, str] | None = None,
    ) -> None:
        """Record a look at what is not in the store any more, or was read another way."""
        await self.ask(question, asked, _nothing, lambda _: records, target)

    async def full_id(self, beginning: str) -> str:
        """Find the record's id that begins so; it shows no record, and is not recorded."""
        return str(await queries.full_id(self._connection, beginning))

    async def ask_unrecorded(self, answer: Callable[[Connection[Any]], Awaitable[T]]) -> T:
        """Read what shows no record, in a transaction that is narrowed as any other.

        Such as what there is to be asked at all: whoever shows a record then says `looked`.

        Raises:
            StoreError: The scope does not hold here.
        """
        async with self._connection.transaction():
            await look_as(self._connection, self._scope)
            return await answer(self._connection)

    async def ask(
        self,
        question: str,
        asked: dict[str, Any],
        answer: Callable[[Connection[Any]], Awaitable[T]],
        count: Callable[[T], int],
        target: tuple[str, str] | None = None,
    ) -> T:
        """Put a question of any kind: one transaction, and one look.

        Args:
            question: Its name in the record of the look, such as ``search``.
            asked: The query, for that record; None values are left out.
            answer: Reads the answer.
            count: How many records an answer has.
            target: What was looked at, as type and id; the type begins with ``audit_``.

        Raises:
            StoreError: The look cannot be recorded, or the scope does not hold here.
        """
        if self._views == "off" and self._scope is None:
            return await answer(self._connection)
        given = {key: value for key, value in asked.items() if value is not None}
        async with self._connection.transaction():
            await look_as(self._connection, self._scope)
            found = await answer(self._connection)
            look = (self._viewer, self._scope, question, str(given), count(found))
            is_new = self._views != "off" and not self._is_repeated(look)
            if is_new and await self._record(question, given, count(found), target):
                self._on_recorded(look)
        return found

    async def _record(
        self, question: str, asked: dict[str, Any], records: int, target: tuple[str, str] | None
    ) -> bool:
        """Record a look; False: it could not be done, and need not be."""
        kind, thing = target or (None, None)
        text = msgspec.json.encode(asked, enc_hook=str).decode()
        try:
            async with self._connection.transaction():
                await self._connection.fetchval(
                    _RECORD, question, text, records, kind, thing, self._viewer
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, the look is not recorded
            if self._views == "required":
                remedy = _READ_ONLY if sqlstate(error) == "25006" else _NO_READER
                raise StoreError(
                    "nothing is shown, because the view could not be recorded "
                    f"[{type(error).__name__} {sqlstate(error)}]: {remedy}; or set "
                    "OTEL_AUDIT_RECORD_VIEWS to tried or off"
                ) from None
            log_limited(
                _logger, "viewed", "A look into the trail is not recorded", error=error,
                level=logging.WARNING,
            )  # fmt: skip
            return False
        return True


async def look_as(connection: Connection[Any], scope: ReaderScope | None) -> None:
    """Narrow a transaction, as its first statement.

    Args:
        connection: Within a transaction.
        scope: To what; None: the role's own rights are all that counts.

    Raises:
        StoreError: The query is limited to tenants, but row-level security is not active here.
    """
    if scope is None:
        return
    tenants = None if scope.tenants is None else list(scope.tenants)
    if not await connection.fetchval(_LOOK_AS, tenants) and tenants is not None:
        raise StoreError(_NO_ROW_SECURITY)


async def is_bound(connection: Connection[Any]) -> bool:
    """Whether row-level security binds this role."""
    bound: bool = await connection.fetchval("SELECT row_security_active('audit.audit_logs')")
    return bound


@asynccontextmanager
async def open_trail(
    dsn: str, *, views: Views = "required", viewer: str | None = None
) -> AsyncIterator[Trail]:
    """Open the trail for questions.

    Args:
        dsn: The audit store, as a role that may read it; it needs no right to write: the looks are
            recorded by a function of the store, under the name of the role that logged in.
        views: ``required``: what cannot be recorded is not shown. ``tried``: it is shown, and the
            log says so. ``off``: nothing is recorded.
        viewer: The person behind a service's query, if people do not log in to the database.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The schema is missing, the role lacks a right, or a look cannot be recorded.

    Example::

        async with open_trail(dsn, viewer="ada@acme.example") as trail:
            page = await trail.search(parse("event:order.* time:7d"))
    """
    async with queries.opened(dsn) as connection:
        yield Trail(connection, views=views, viewer=viewer)


def looked_at(wanted: Criteria | Query) -> tuple[str, str] | None:
    """The target of a search, for the record of the look: one entity, as for its history."""
    query = wanted.as_query() if isinstance(wanted, Criteria) else wanted
    for one in query.terms:
        if one.field in {"entity", "target"} and not one.negated and len(one.values) == 1:
            name = one.values[0]
            if name.operator == "=" and ":" in name.text:
                return "audit_history", name.text
    return None


def _named(what: str) -> tuple[str, str] | None:
    """The target of evidence: a record, an entity, or None."""
    try:
        return "audit_record", str(uuid.UUID(what))
    except ValueError:
        return ("audit_history", what) if ":" in what else None


def _given(wanted: Criteria | Query) -> dict[str, Any]:
    if isinstance(wanted, Query):
        return {"query": str(wanted)}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(wanted).items()
    }


def _records(page: Page) -> int:
    return len(page.records)


async def _nothing(_: Connection[Any]) -> None:
    """There is no answer to read."""
