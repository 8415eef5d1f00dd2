"""Writes batches of records to PostgreSQL, and returns only after they are committed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain, repeat
from operator import attrgetter, is_not
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.utils import (
    is_instrumentation_enabled,
    suppress_instrumentation,
)

from otel_audit._util.gil_pauses import with_pauses
from otel_audit._util.ratelimited_log import log_limited
from otel_audit._util.text import storable
from otel_audit.action.compose import process_record, stored_as, without_conflict
from otel_audit.delivery.halving import write_by_halves
from otel_audit.delivery.receipts import WRITTEN_HERE, WrittenAs
from otel_audit.delivery.sink import Accepted, Conflict, Receipt, Refused, Written
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit.record import ANONYMOUS, AuditRecord
from otel_audit_postgres.batch_insert import INSERT, parameters
from otel_audit_postgres.batch_result import BatchResult, came_as, refusal_of
from otel_audit_postgres.conflicting_rows import came_directly, moved_rows
from otel_audit_postgres.connection import (
    Connection,
    InsufficientPrivilegeError,
    OwnConnection,
    TimeLimits,
    UndefinedFunctionError,
    connect,
    disconnect,
    disconnect_later,
    disconnected,
    refuse_unreplicated,
    wait_until_durable,
)
from otel_audit_postgres.copy_load import SMALLEST_LOAD, Loader
from otel_audit_postgres.errors import (
    as_store_error,
    is_data_error,
    is_poison,
    is_refusal,
    refusal_reason,
)
from otel_audit_postgres.future_ids import now, split_future
from otel_audit_postgres.row_feed import RowFeed, can_be_fed, split, to_rows, to_rows_by_turns
from otel_audit_postgres.row_insertion import RowInsertion
from otel_audit_postgres.rows import Row, to_row
from otel_audit_postgres.schema import pg_catalog
from otel_audit_postgres.schema.partitions import ENSURE_PARTITIONS
from otel_audit_postgres.schema.readiness import refuse_encoding, refuse_unready

if TYPE_CHECKING:
    from otel_audit.config import AuditConfig
    from otel_audit_postgres.personal.protect import Protector

_logger = logging.getLogger(__name__)

LARGEST_STATEMENT: Final = 2_000_000
"""Bytes of payload that go into one statement; a larger batch is sent in several."""

_STORED: Final = (
    "SELECT id, content_hash, received_hash FROM audit.audit_logs WHERE id = ANY($1::uuid[])"
)
_changes: Final = attrgetter("changes")
_personal: Final = attrgetter("personal")
_conflict_of: Final = attrgetter("conflict_of")

_KNOWN: Final = "SELECT DISTINCT id FROM audit.audit_logs WHERE id = ANY($1::uuid[])"
_RECEIPTS: Final = (
    "SELECT id, content_hash, recorded_at FROM audit.audit_logs WHERE id = ANY($1::uuid[])"
)
# what came over the network vouches for nothing that this process has written
_OWN_RECEIPTS: Final = f"{_RECEIPTS} AND received_hash IS NULL ORDER BY recorded_at"
_RECEIVING_KEY: Final = "SELECT key FROM audit.receiving_key"
_QUARANTINE: Final = (
    "INSERT INTO audit.quarantine (content_hash, record_id, received, reason) "
    "SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING"
)
_IN_DEFAULT: Final = "SELECT audit.rows_in_default($1)"
_MAY_INSERT: Final = "SELECT has_any_column_privilege('audit.audit_logs', 'INSERT')"
_MOST_COUNTED: Final = 100_000
"""Rows up to which they are counted in the default partition: it is asked again and again."""

CONFLICT: Final = "another record with this id is in the store"
"""Why a record is in quarantine whose id is taken, and every id that it could have instead."""

_MOST_CLAIMS: Final = 4
"""Ids that a record is tried under, its own included. Each follows from its content, so the next
one is needed only where somebody knew all of it beforehand."""


def sink_from(
    config: AuditConfig, dsn: str, on_default_rows: Callable[[int], None] | None = None
) -> PostgresSink:
    """Make the sink that the settings describe, as an application and the receiver use it.

    Args:
        config: The settings.
        dsn: The audit store; which of the settings names it, the caller has decided.
        on_default_rows: As for `PostgresSink`.

    Raises:
        ConfigurationError: A setting of encryption is missing or unfit.
    """
    protector = None
    if config.keys_dsn is not None:
        # needs cryptography, which most processes do not
        from otel_audit_postgres.personal.protect import protector_from

        protector = protector_from(config)
    return PostgresSink(
        dsn,
        connect_timeout=config.connect_timeout,
        on_default_rows=on_default_rows,
        protector=protector,
    )


class PostgresSink:
    """A `otel_audit.delivery.sink.Sink` over one connection, opened when it is first needed.

    Writing is idempotent by the record's id. If another record has its id, the record is stored
    beside it, under an id derived from both, with ``conflict_of``: so nobody can take an id away
    from its owner. A record that the table refuses goes to ``audit.quarantine`` with the
    reason, and delays no other. After any error the connection is dropped, and the next call opens
    a new one.

    Example::

        sink = PostgresSink(dsn)
        try:
            written = await sink.write([record])
            assert written.stored == 1
        finally:
            await sink.close()
    """

    def __init__(
        self,
        dsn: str,
        *,
        connect_timeout: float = 5.0,
        statement_timeout: float = 30.0,
        on_default_rows: Callable[[int], None] | None = None,
        protector: Protector | None = None,
    ) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            dsn: The audit store, ``postgresql://`` or ``postgresql+asyncpg://``.
            connect_timeout: Seconds that connecting may take.
            statement_timeout: Seconds that one statement may take.
            on_default_rows: Called daily with the number of rows in the default partition,
                counted to a bound.
            protector: Encrypts personal values before anything is stored; None: none are.
        """
        self._dsn = dsn
        self._protector = protector
        self._is_clear_known = False
        self._on_default_rows = on_default_rows
        self._connect_timeout = connect_timeout
        self._statement_timeout = statement_timeout
        self._connection: OwnConnection | None = None
        self._loader: Loader | None = None
        self._has_broken_loading = False
        self._upkept_on: date | None = None

    async def check(self) -> None:
        """See whether the store can take records.

        Raises:
            StoreUnavailableError: It cannot be reached now, or takes no writes now.
            StoreError: The schema is missing or of another version, or the role lacks a right;
                the message says the remedy.
        """
        async with self._session("check the audit store") as connection:
            await self._refuse_unready(connection)

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        """Store a batch; return only after it is durable. Writing twice stores once.

        Args:
            records: The batch, any size.

        Returns:
            How many are stored (also those that were before), and how many are in quarantine.

        Raises:
            StoreUnavailableError: Not all of the batch is known to be stored; try again later.
            StoreError: As for `check`; trying again helps only after somebody has acted.
        """
        if not records:
            return Written(stored=0)
        own = await self._protected(_without_conflict_marks(records))
        became = BatchResult([])
        async with self._session("write to the audit store", became) as connection:
            is_large = len(own) >= SMALLEST_LOAD
            if is_large and can_be_fed(own):
                rows = await self._store_fed(
                    connection, RowFeed(with_pauses(own), LARGEST_STATEMENT), became
                )
            else:
                rows, unfit = to_rows(with_pauses(own), to_copy=is_large)
                became.refused += unfit
                await self._store_all(connection, rows, became)
            await self._quarantine(connection, became.refused, became)
        _log_conflicts(became.conflicts)
        _remember(rows, became)
        refused, postponed = len(became.refused), tuple(became.postponed_as_sent(rows))
        return Written(
            len(records) - refused - len(postponed),
            refused,
            len(became.conflicts),
            postponed,
            _why_postponed(became.postponed) if postponed else "",
        )

    async def _protected(self, records: Sequence[AuditRecord]) -> Sequence[AuditRecord]:
        if self._protector is None:
            self._warn_of_clear(records)
            return records
        try:
            return await self._protector.protect(records)
        except ConfigurationError as error:
            # nothing is stored in clear, and nothing is lost: it waits until that is fixed
            raise StoreError(str(error)) from None

    def _warn_of_clear(self, records: Sequence[AuditRecord]) -> None:
        """Log once that marked columns are stored in clear; who sent them may have no keys."""
        if self._is_clear_known or not any(
            map(_personal, chain.from_iterable(map(_changes, records)))
        ):
            return
        self._is_clear_known = True
        log_limited(
            _logger, "marked in clear",
            "OTEL_AUDIT_KEYS_DSN: not set, so columns that a model marks as personal are stored in "
            "clear and cannot be erased; name a database of keys (otel-audit subject init)",
            level=logging.WARNING,
        )  # fmt: skip

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """Keep what never became a record, with the reason.

        Args:
            refused: What was received; nothing is done where it is empty.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
        if not refused:
            return
        became = BatchResult([])
        async with self._session("write to the audit store", became) as connection:
            await self._quarantine(connection, refused, became)

    async def accept(
        self, records: Sequence[AuditRecord], refused: Sequence[Refused] = ()
    ) -> Accepted:
        """Store what others sent; return only after it is durable. Twice stores once.

        A second record under an id that another one has is a conflict, also where the other one is
        another tenant's: who sends may not be who made the first.

        Args:
            records: The batch, each with its `received` mark.
            refused: What never became a record, for the quarantine.

        Returns:
            Those of the records that are in quarantine, or stored under another id.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
        rows, unfit = await to_rows_by_turns(
            await self._protected(_without_conflict_marks(records)),
            to_copy=len(records) >= SMALLEST_LOAD,
        )
        became = BatchResult(unfit)
        async with self._session("write to the audit store", became) as connection:
            await self._store_all(connection, rows, became)
            await self._quarantine(connection, [*became.refused, *refused], became)
        _log_conflicts(became.conflicts)
        return Accepted(
            became.refused,
            became.conflicts,
            frozenset(became.postponed_as_sent(rows)),
            _why_postponed(became.postponed) if became.postponed else "",
        )

    async def receipts(self, record_ids: Sequence[str]) -> dict[str, Receipt]:
        """Say what is stored under several records' ids.

        Args:
            record_ids: UUIDs as text.

        Returns:
            Ids to receipts, without those that are not stored.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
        rows = await self._look_up(_RECEIPTS, record_ids, "read receipts from the audit store")
        return {one.record_id: one for one in map(_receipt, rows)}

    async def receiving_key(self) -> bytes:
        """Read the key under which received records are hashed; 32 bytes, one for the store.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
        async with self._session("read the receiving key of the audit store") as connection:
            key = await connection.fetchval(_RECEIVING_KEY, timeout=self._statement_timeout)
        if key is None:
            raise StoreError("audit.receiving_key is empty: it must hold one row, made by init")
        return bytes(key)

    async def known(self, record_ids: Sequence[str]) -> set[str]:
        """Return which records are stored already, of any tenant.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
        found = await self._look_up(_KNOWN, record_ids, "look into the audit store")
        return {str(row["id"]) for row in found}

    async def receipt(self, record_id: str, content_hash: str | None = None) -> Receipt | None:
        """Say what is stored under the id of a record that an application has written itself.

        Args:
            record_id: A UUID as text.
            content_hash: The row's expected hash, if known: every writer can store
                another record under an id that he knows.

        Returns:
            The receipt; None if there is no such row.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
        rows = await self._look_up(_OWN_RECEIPTS, [record_id], "read receipts from the audit store")
        found = map(_receipt, rows)
        return next(
            (one for one in found if content_hash is None or one.content_hash == content_hash),
            None,
        )

    async def _look_up(self, query: str, record_ids: Sequence[str], doing: str) -> Sequence[Any]:
        """Ask for rows by their ids; what is found is durable when this returns."""
        became = BatchResult([])
        async with self._session(doing, became) as connection:
            found: Sequence[Any] = await connection.fetch(
                query, list(record_ids), timeout=self._statement_timeout
            )
            became.relies_on_what_is_seen = bool(found)
        return found

    async def close(self) -> None:
        """Give back the connection. Never raises."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                await disconnect(connection)
        finally:
            # whoever is cut off while the first one closes leaves no other one open
            if self._protector is not None:
                await self._protector.close()
            await disconnected()

    @asynccontextmanager
    async def _session(
        self, doing: str, became: BatchResult | None = None
    ) -> AsyncIterator[Connection[Any]]:
        """Lend the connection; after any error drop it, and raise what to do about the error.

        What the block says of records stands only when all that it relies on is durable.
        """
        # delivery's thread is not traced anyway
        with suppress_instrumentation() if is_instrumentation_enabled() else nullcontext():
            try:
                connection = await self._connected()
                yield connection
                if became is not None and became.relies_on_what_is_seen:
                    async with asyncio.timeout(self._statement_timeout):
                        await wait_until_durable(connection)
                refuse_unreplicated(connection)
                if became is not None and became.postponed:
                    # the next try in a new session: one keeps numbers of sequences, for example
                    self._drop()
            except BaseException as error:
                self._drop()
                if not isinstance(error, Exception):
                    raise
                raise as_store_error(error, doing) from None

    async def _connected(self) -> Connection[Any]:
        if self._connection is not None:
            await self._connection.process_incoming()
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._dsn, self._connect_timeout, TimeLimits.of_statements(self._statement_timeout)
            )
            self._loader = Loader(self._connection, self._statement_timeout)
            self._upkept_on = None
            async with asyncio.timeout(self._statement_timeout):
                await refuse_encoding(self._connection)
        today = datetime.now(UTC).date()
        if self._upkept_on != today:
            await self._make_partitions(self._connection)
            self._upkept_on = today
        return self._connection

    async def _refuse_unready(self, connection: Connection[Any]) -> None:
        # the server's own limits do not help where nothing arrives from it any more
        async with asyncio.timeout(self._statement_timeout):
            await refuse_unready(connection)

    async def _make_partitions(self, connection: Connection[Any]) -> None:
        try:
            partitions = await connection.fetch(ENSURE_PARTITIONS, timeout=self._statement_timeout)
        except InsufficientPrivilegeError:
            if not await connection.fetchval(_MAY_INSERT, timeout=self._statement_timeout):
                # an auditor's role is told what it is, once, and not which right it lacks
                await self._refuse_unready(connection)
            # without them records go to the default partition, which is better than nowhere
            log_limited(
                _logger,
                "partitions",
                "The role of OTEL_AUDIT_DSN may not make partitions: "
                "grant it EXECUTE on audit.ensure_partitions(integer)",
                level=logging.WARNING,
            )
            return
        except UndefinedFunctionError:
            if await pg_catalog.missing_tables(connection):
                raise
            log_limited(
                _logger,
                "partitions",
                "No partitions are made: audit.ensure_partitions(integer) is missing; run "
                "`otel-audit doctor`",
            )
            return
        for made in partitions:
            if made["state"] in ("blocked", "busy"):
                log_limited(
                    _logger,
                    made["partition"],
                    "Partition audit.%s was not made: %s; until then "
                    "its records go to the default partition",
                    made["partition"],
                    made["detail"],
                    level=logging.WARNING,
                )
        if self._on_default_rows is not None:
            await self._count_default(connection, self._on_default_rows)

    async def _count_default(
        self, connection: Connection[Any], report: Callable[[int], None]
    ) -> None:
        try:
            rows = await connection.fetchval(
                _IN_DEFAULT, _MOST_COUNTED, timeout=self._statement_timeout
            )
        except InsufficientPrivilegeError:
            return  # `otel-audit doctor` and `maintain` report it, with a role that may see it
        report(rows)
        if rows:
            log_limited(
                _logger,
                "default partition",
                "Rows in audit.audit_logs_default: %s, because of missing partitions or wrong "
                "clocks; their months cannot be retired before they have partitions of their own: "
                "see `otel-audit maintain`",
                rows if rows < _MOST_COUNTED else f"{rows} or more",
                level=logging.WARNING,
            )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            disconnect_later(connection)

    async def _store_all(
        self, connection: Connection[Any], rows: Sequence[Row], became: BatchResult
    ) -> None:
        # one statement does not see what it inserts itself
        have_own_ids = len({row.row_id for row in rows}) == len(rows)
        store = self._store if have_own_ids else self._store_new
        for part in split(rows, LARGEST_STATEMENT):
            await store(connection, part, became)

    async def _store_fed(
        self, connection: Connection[Any], feed: RowFeed, became: BatchResult
    ) -> list[Row]:
        """Store rows while they are made, each with an id of its own; return them."""
        rows: list[Row] = []
        while feed:
            part = feed.part()
            new = None if became.is_hopeless else await self._load_unless_refused(part)
            made = part.finish()
            rows += made
            if new is None:
                await self._store(connection, made, became)
                continue
            became.has_taken_any = True
            if new != len(made):
                await self._store_conflicts(connection, made, became)
        became.refused += feed.refused
        return rows

    async def _load_unless_refused(self, rows: Iterable[Row]) -> int | None:
        try:
            return await self._load(rows)
        except Exception as error:
            if not is_refusal(error):
                raise
            return None  # which of them is refused, halving finds

    async def _store(
        self, connection: Connection[Any], rows: Sequence[Row], became: BatchResult
    ) -> None:
        """Insert rows; if another record has a row's id, the row is stored beside it."""
        sound, new = await self._put(connection, rows, became)
        if new != len(sound):
            await self._store_conflicts(connection, sound, became)

    async def _put(
        self, connection: Connection[Any], rows: Sequence[Row], became: BatchResult
    ) -> tuple[Sequence[Row], int]:
        """Insert rows, and find refused ones by halving; those of the future are moved together.

        Returns:
            The rows that it takes, and how many of them are new.
        """
        insertion = RowInsertion(
            became,
            partial(self._insert, connection),
            lambda row, error: self._judge(connection, row, error, became),
            partial(now, connection, self._statement_timeout),
        )
        await write_by_halves(rows, insertion.insert_or_move, insertion.refuse)
        return insertion.sound, insertion.new

    async def _judge(
        self, connection: Connection[Any], row: Row, error: Exception, became: BatchResult
    ) -> None:
        """Put a record aside that is at fault itself; postpone it where the store is.

        A check of ours knows records. What somebody else has added to the tables (a trigger, a
        constraint, an index), what is missing there, or a sequence that is behind, refuses
        in any case: such records are sound, and are stored once the cause is fixed.
        """
        at_fault = is_poison(error) or (
            is_data_error(error) and not await pg_catalog.additions(connection)
        )
        if at_fault and await self._takes_sound_ones(connection, became):
            became.refused.append(refusal_of(row, refusal_reason(error)))
        else:
            became.postponed[came_as(row)] = refusal_reason(error)

    async def _takes_sound_ones(self, connection: Connection[Any], became: BatchResult) -> bool:
        """See that the store takes a record that is nothing but sound; it is not kept there.

        A check or function of ours that somebody has changed, or a setting that changes what it
        means, refuses every record in the words in which ours refuse a bad one.
        """
        if became.has_taken_any:
            return True
        sound = to_row(_sound_record())
        trial = connection.transaction()
        await trial.start()
        try:
            await connection.execute(INSERT, *parameters([sound]), timeout=self._statement_timeout)
        except Exception as error:
            if not is_refusal(error):
                raise
            return False
        finally:
            await trial.rollback()
        became.has_taken_any = True
        return True

    async def _insert(self, connection: Connection[Any], rows: Sequence[Row]) -> int:
        """Insert rows, all or none, the quicker way for so many; how many are new."""
        if len(rows) >= SMALLEST_LOAD:
            loaded = await self._load(rows)
            if loaded is not None:
                return loaded
        sent = parameters(with_pauses(rows))
        status = await connection.execute(INSERT, *sent, timeout=self._statement_timeout)
        self._has_broken_loading = False
        return int(status.rpartition(" ")[2])

    async def _load(self, rows: Iterable[Row]) -> int | None:
        """Load rows, all or none; how many are new, None where they must go the plain way."""
        # what broke a connection once may do so always: the next attempt goes the plain way
        if self._loader is None or self._has_broken_loading:
            return None
        try:
            return await self._loader.load(rows)
        except BaseException as error:
            self._has_broken_loading = not is_refusal(error)
            raise

    async def _store_new(
        self, connection: Connection[Any], rows: Sequence[Row], became: BatchResult
    ) -> None:
        """Insert rows with ids that no other row has, of any tenant."""
        # none of the future is in the store, so there they cannot be told apart; under ids of
        # today, which are made of what they say, they can
        at = await now(connection, self._statement_timeout)
        ahead, rows = split_future(rows, at)
        if ahead:
            await self._store(connection, ahead, became)
        while rows:
            ids = [row.id for row in rows]
            found = await connection.fetch(_KNOWN, ids, timeout=self._statement_timeout)
            taken = {row["id"] for row in found}
            fresh: list[Row] = []
            others: list[Row] = []
            for row in rows:
                (others if row.id in taken else fresh).append(row)
                taken.add(row.id)
            before = len(became.refused)
            if fresh:
                await self._store(connection, fresh, became)
            # the id of a record that is refused is free for the next one that came under it
            free = {item.record_id for item in became.refused[before:]}
            rows = [row for row in others if came_as(row) in free]
            others = [row for row in others if came_as(row) not in free]
            if others:
                await self._store_conflicts(connection, others, became)

    async def _store_conflicts(
        self, connection: Connection[Any], rows: Sequence[Row], became: BatchResult
    ) -> None:
        """Store records whose ids other records have, each under a new id."""
        waiting = await self._conflicting(connection, rows, became)
        for claim in range(1, _MOST_CLAIMS):
            if not waiting:
                return
            waiting, moved = moved_rows(waiting, claim, became.refused)
            sound, _ = await self._put(connection, moved, became)
            taken = {row.id for row in await self._conflicting(connection, sound, became)}
            stored = {row.id for row in sound if came_as(row) not in became.postponed} - taken
            became.conflicts.extend(
                Conflict(row.record_id, new.record_id)
                for row, new in zip(waiting, moved, strict=True)
                if new.id in stored
            )
            waiting = [row for row, new in zip(waiting, moved, strict=True) if new.id in taken]
        became.refused.extend(refusal_of(row, CONFLICT) for row in waiting)

    async def _conflicting(
        self, connection: Connection[Any], rows: Sequence[Row], became: BatchResult
    ) -> list[Row]:
        """Distinguish a record that comes a second time from another one under the same id."""
        found = await connection.fetch(
            _STORED, [row.id for row in rows], timeout=self._statement_timeout
        )
        became.relies_on_what_is_seen = True
        there = {row["id"] for row in found}
        for row in rows:
            # neither it nor another one under its id: something that is not ours keeps it out
            if row.id not in there:
                became.postponed[came_as(row)] = "a unique index that is not otel-audit's"
        stored = {(row["id"], row["content_hash"]) for row in found}
        received = {(row["id"], row["received_hash"]) for row in found}
        return [
            row
            for row in rows
            if row.id in there
            and (row.id, row.content_hash) not in stored
            and (row.received_hash is None or (row.id, row.received_hash) not in received)
            and not came_directly(row, stored)
        ]

    async def _quarantine(
        self, connection: Connection[Any], refused: Sequence[Refused], became: BatchResult
    ) -> None:
        if not refused:
            return
        texts = [storable(item.received.decode("utf-8", "replace")) for item in refused]
        status = await connection.execute(
            _QUARANTINE,
            [hashlib.sha256(text.encode()).digest() for text in texts],
            [_plain(item.record_id) for item in refused],
            texts,
            [item.reason for item in refused],
            timeout=self._statement_timeout,
        )
        if int(status.rpartition(" ")[2]) < len(refused):
            became.relies_on_what_is_seen = True
        log_limited(
            _logger,
            "quarantine",
            "%d audit records could not be stored and are in audit.quarantine; the first: %s",
            len(refused),
            refused[0].reason,
        )


def _sound_record() -> AuditRecord:
    return process_record("audit.store.tried", actor=ANONYMOUS)


def _without_conflict_marks(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Take off a mark that only this sink may set."""
    if not any(map(is_not, map(_conflict_of, records), repeat(None))):  # as nearly always
        return list(records)
    return list(map(without_conflict, records))


def _log_conflicts(conflicts: Sequence[Conflict]) -> None:
    if conflicts:
        log_limited(
            _logger,
            "conflict",
            "%d audit records came under ids that other records have, or that are of the future, "
            "and are stored under ids of their own: see who wrote both, and whose clock is wrong; "
            "the first: %s, stored as %s",
            len(conflicts),
            conflicts[0].record_id,
            conflicts[0].stored_as,
        )


def _receipt(row: Any) -> Receipt:
    return Receipt(str(row["id"]), row["content_hash"].hex(), row["recorded_at"])


def _remember(rows: Sequence[Row], became: BatchResult) -> None:
    """Remember as what records are stored, for their receipts."""
    put = WRITTEN_HERE.put
    if not (became.refused or became.postponed or became.conflicts):  # as nearly always
        for row in rows:
            put(row.canonical_id, WrittenAs(row.record.record_id, row.content_hash.hex()))
        return
    gone = {item.record_id for item in became.refused} | set(became.postponed)
    moved = {conflict.record_id: conflict.stored_as for conflict in became.conflicts}
    for row in rows:
        if row.record_id in gone:
            continue
        own_id = moved.get(row.record_id, row.record_id)
        digest = row.content_hash
        if own_id != row.record_id:
            digest = to_row(stored_as(row.record, own_id, row.canonical_id)).content_hash
        put(row.canonical_id, WrittenAs(own_id, digest.hex()))


def _why_postponed(postponed: Mapping[str, str]) -> str:
    """Say why sound records are not taken."""
    return (
        f"the audit store refuses {len(postponed)} sound records, by what otel-audit did not make "
        f"or what is missing there ({next(iter(postponed.values()))}): see `otel-audit doctor`, "
        "and fix it"
    )


def _plain(text: object) -> str:
    return storable(str(text))[:1000]
