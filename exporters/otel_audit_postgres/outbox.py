"""The outbox in the application's own database: its table, its grants, and taking out of it.

A record stands in it if and only if the transaction that wrote it was committed. Several relays on
several hosts may take out of it at the same time: each claims what it takes, and skips what others
have claimed. No transaction stays open while the store is written: a row is deleted after the store
has acknowledged the record. The claim of a relay that dies ends with its connection, or with time.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from typing import Any, Final

import msgspec
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.check_result import CheckResult
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.outbox_relay import OutboxState, Waiting
from otel_audit.errors import ConfigurationError, OtelAuditError, StoreError, StoreUnavailableError
from otel_audit.record import AuditRecord
from otel_audit_postgres.connection import (
    Connection,
    TimeLimits,
    connect,
    disconnect,
    disconnect_later,
    disconnected,
    is_pooled,
)
from otel_audit_postgres.errors import sqlstate
from otel_audit_postgres.schema.lock import SchemaLock, alone
from otel_audit_postgres.schema.roles import quoted

_logger = logging.getLogger(__name__)

_LEASE: Final = 60.0
"""Seconds for which what a relay has claimed is left to it, whatever became of it."""

_REMEDY: Final = "run `otel-audit init --outbox --application ROLE --relay ROLE` on that database"
_GRANTS: Final = (
    ("application", "GRANT USAGE ON SCHEMA audit TO {role}"),
    ("application", "GRANT INSERT (record_id, record) ON audit.outbox TO {role}"),
    ("relay", "GRANT USAGE ON SCHEMA audit TO {role}"),
    ("relay", "GRANT SELECT, DELETE ON audit.outbox TO {role}"),
    ("relay", "GRANT UPDATE (written_at, claimed_by, claimed_until) ON audit.outbox TO {role}"),
)
_ANY_ENCODING: Final = "entries are written in ASCII, and lose no character"
_LOCK: Final = SchemaLock(7301962839480014, "audit.outbox")  # arbitrary, our own
_PERMIT: Final = "SET LOCAL otel_audit.permit_ddl = 'on'"
_ROLE: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)"
_THERE: Final = "SELECT to_regclass('audit.outbox') IS NOT NULL"

# a claim is void when its backend is gone; behind a pooler that is not known, so it must expire
_TAKE: Final = """
WITH free AS (
    SELECT record_id, octet_length(record) AS size FROM audit.outbox
    WHERE claimed_until IS NULL OR claimed_until < clock_timestamp()
       OR claimed_by NOT IN (SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid IS NOT NULL)
    ORDER BY record_id LIMIT $1 FOR UPDATE SKIP LOCKED
), summed AS (
    SELECT record_id, sum(size) OVER (ORDER BY record_id) AS bytes,
           row_number() OVER (ORDER BY record_id) AS place
    FROM free
)
UPDATE audit.outbox AS o
SET claimed_by = CASE WHEN $3 THEN NULL ELSE pg_backend_pid() END,
    claimed_until = clock_timestamp() + make_interval(secs => $4)
FROM summed WHERE o.record_id = summed.record_id AND (bytes <= $2 OR place = 1)
RETURNING o.record_id, o.record
"""
# where init has not run since claims came: relays may do the same work twice, and store it once
_PEEK: Final = """
WITH first AS (
    SELECT record_id, record, row_number() OVER (ORDER BY record_id) AS place,
           sum(octet_length(record)) OVER (ORDER BY record_id) AS bytes
    FROM (SELECT record_id, record FROM audit.outbox ORDER BY record_id LIMIT $1) AS waiting
)
SELECT record_id, record FROM first WHERE bytes <= $2 OR place = 1
"""
_RELEASE: Final = "UPDATE audit.outbox SET claimed_until = NULL WHERE record_id = ANY($1::uuid[])"
_HAS_CLAIMS: Final = """
SELECT count(*) = 2 FROM pg_catalog.pg_attribute
WHERE attrelid = to_regclass('audit.outbox') AND attname IN ('claimed_by', 'claimed_until')
"""
_MAY_CLAIM: Final = """
SELECT count(*) = 2 AND bool_and(has_column_privilege(attrelid, attnum, 'UPDATE'))
FROM pg_catalog.pg_attribute
WHERE attrelid = to_regclass('audit.outbox') AND attname IN ('claimed_by', 'claimed_until')
"""
_DELETE: Final = "DELETE FROM audit.outbox WHERE record_id = ANY($1::uuid[])"
_STATE: Final = """
SELECT (SELECT count(*) FROM (SELECT FROM audit.outbox LIMIT $1) AS counted) AS depth,
       coalesce((SELECT extract(epoch FROM clock_timestamp() - written_at)
                 FROM audit.outbox ORDER BY record_id LIMIT 1), 0)::float8 AS age
"""
_NEXT: Final = (
    "SELECT record_id, record FROM audit.outbox WHERE record_id > $1 ORDER BY record_id LIMIT 500"
)
_decode: Final = msgspec.json.Decoder(AuditRecord).decode
_EARLIER: Final = "SELECT EXISTS (SELECT FROM audit.outbox WHERE record_id <= $1)"
_MOST_COUNTED: Final = 100_000
"""Entries that the metric counts: counting more would cost more than it says."""
_RIGHTS: Final = f"""
SELECT r.rolname, current_setting('server_encoding') AS encoding,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS read_only,
       has_table_privilege(r.oid, t.oid, 'SELECT') AS may_read,
       has_table_privilege(r.oid, t.oid, 'DELETE') AS may_delete,
       has_any_column_privilege(r.oid, t.oid, 'INSERT') AS may_insert,
       has_any_column_privilege(r.oid, t.oid, 'UPDATE') AS may_update,
       ({_MAY_CLAIM}) AS may_claim,
       has_schema_privilege(r.oid, t.relnamespace, 'USAGE') AS may_use
FROM pg_catalog.pg_class t, pg_catalog.pg_roles r
WHERE t.oid = to_regclass('audit.outbox') AND r.rolname = current_user
"""  # noqa: S608 - a constant


def outbox_sql(*, application: str | None = None, relay: str | None = None) -> str:
    """Return the SQL that `init_outbox` runs, to be applied by hand.

    Args:
        application: The application's login role, or one that it takes on; gets INSERT and nothing
            else.
        relay: The relay's login role, which may take records out.

    Returns:
        A script for ``psql``, in one transaction.
    """
    statements = [f"{one};" for one in _grants(application, relay)]
    parts = ["BEGIN;", f"{_LOCK.of_key};", f"{_PERMIT};", _table(), *statements, "COMMIT;", ""]
    return "\n".join(parts)


async def init_outbox(
    dsn: str, *, application: str | None = None, relay: str | None = None
) -> tuple[str, ...]:
    """Create the outbox in an application's database, with its grants. Idempotent.

    Args:
        dsn: The application's database, as a role that may create a schema in it.
        application: The application's login role, which gets INSERT and nothing else.
        relay: The relay's login role, which may take records out.

    Returns:
        What was done, a line each.

    Raises:
        ConfigurationError: A role that is named does not exist.
        StoreUnavailableError: The database cannot be reached now.
        StoreError: A right is missing; nothing was changed.
    """
    with suppress_instrumentation(), _explained("make the outbox"):
        connection = await connect(dsn)
        try:
            async with connection.transaction():
                return await _make(connection, application, relay)
        finally:
            await disconnect(connection)


async def _make(
    connection: Connection[Any], application: str | None, relay: str | None
) -> tuple[str, ...]:
    await alone(connection, _LOCK, "make the outbox")
    await connection.execute(_PERMIT)
    for role in filter(None, (application, relay)):
        if not await connection.fetchval(_ROLE, role):
            raise ConfigurationError(
                f"init: there is no role {role}; create it first: "
                f"CREATE ROLE {quoted(role)} LOGIN PASSWORD …"
            )
    existed = await connection.fetchval(_THERE)
    if not existed or not await connection.fetchval(_HAS_CLAIMS):
        await connection.execute(_table())
    for statement in _grants(application, relay):
        await connection.execute(statement)
    lines = [f"table audit.outbox: {'in place' if existed else 'created'}"]
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        lines.append(f"encoding of the database: {encoding}; {_ANY_ENCODING}")
    if application:
        lines.append(f"role {application}: may write to it, and nothing else")
    if relay:
        lines.append(f"role {relay}: may read and delete in it")
    return tuple(lines)


def _grants(application: str | None, relay: str | None) -> list[str]:
    roles = {"application": application, "relay": relay}
    return [
        statement.format(role=quoted(role))
        for who, statement in _GRANTS
        if (role := roles[who]) is not None
    ]


def _table() -> str:
    return (resources.files("otel_audit_postgres") / "sql" / "outbox.sql").read_text("utf-8")


class PostgresOutbox:
    """An `otel_audit.delivery.outbox_relay.Outbox` over one connection, opened at its first use.

    After any error the connection is dropped, and the next call opens a new one.
    """

    def __init__(
        self, dsn: str, *, connect_timeout: float = 5.0, statement_timeout: float = 30.0
    ) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            dsn: The application's database, as the relay's role.
            connect_timeout: Seconds that connecting may take.
            statement_timeout: Seconds that one statement may take.
        """
        self._dsn = dsn
        self._connect_timeout = connect_timeout
        self._timeout = statement_timeout
        self._connection: Connection[Any] | None = None
        self._may_claim: bool | None = None

    async def take(self, most: int, most_bytes: int) -> list[Waiting]:
        """Claim the earliest records that are not claimed yet.

        Args:
            most: Records at once.
            most_bytes: Bytes of records at once; of a larger record only that one.

        Returns:
            The records; none if nothing waits. They stay until they are removed; where that is
            not to be, `release` them.

        Raises:
            StoreUnavailableError: The database cannot be reached now.
            StoreError: There is no outbox, or a right is missing; the message says the remedy.
        """
        async with self._session() as connection:
            with _explained("read the outbox"):
                if self._may_claim is None:
                    self._may_claim = bool(
                        await connection.fetchval(_MAY_CLAIM, timeout=self._timeout)
                    )
                if self._may_claim:
                    rows = await connection.fetch(
                        _TAKE,
                        most,
                        most_bytes,
                        is_pooled(connection),
                        _LEASE,
                        timeout=self._timeout,
                    )
                else:
                    log_limited(_logger, "claims", "Relays cannot claim records: %s", _REMEDY)
                    rows = await connection.fetch(_PEEK, most, most_bytes, timeout=self._timeout)
        return sorted(Waiting(str(row["record_id"]), row["record"]) for row in rows)

    async def remove(self, record_ids: Collection[str]) -> None:
        """Delete records that the store has.

        Raises:
            StoreError: As for `take`.
        """
        async with self._session() as connection:
            with _explained("delete from the outbox"):
                await connection.execute(_DELETE, list(record_ids), timeout=self._timeout)

    async def release(self, record_ids: Collection[str]) -> None:
        """Let other relays have what was claimed.

        Raises:
            StoreError: As for `take`; then the claims end with the connection, or with time.
        """
        if self._may_claim:
            async with self._session() as connection:
                with _explained("release records of the outbox"):
                    await connection.execute(_RELEASE, list(record_ids), timeout=self._timeout)

    async def state(self) -> OutboxState:
        """Say how much waits, and how long."""
        async with self._session() as connection:
            with _explained("read the outbox"):
                row = await connection.fetchrow(_STATE, _MOST_COUNTED, timeout=self._timeout)
        assert row is not None  # noqa: S101 - the query has one row
        return OutboxState(depth=row["depth"], oldest_age=max(row["age"], 0.0))

    async def holds_earlier(self, record_id: str) -> bool:
        """Return whether a record waits whose id is not greater, that is, which is not younger."""
        async with self._session() as connection:
            with _explained("read the outbox"):
                return bool(
                    await connection.fetchval(_EARLIER, uuid.UUID(record_id), timeout=self._timeout)
                )

    async def check(self) -> None:
        """See whether there is an outbox that this role may take from.

        Raises:
            StoreUnavailableError: The database cannot be reached now.
            StoreError: There is none, or a right is missing; the message says the remedy.
        """
        for finding in await self._findings():
            if finding.ok is False:
                raise StoreError(f"{finding.detail}: {finding.remedy}")

    async def close(self) -> None:
        """Give back the connection. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)
        await disconnected()

    async def _findings(self) -> list[CheckResult]:
        async with self._session() as connection:
            with _explained("look at the outbox"):
                found = await connection.fetchrow(_RIGHTS, timeout=self._timeout)
        return [_judge_relay(found)]

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection[Any]]:
        with suppress_instrumentation():
            try:
                if self._connection is None or self._connection.is_closed():
                    with _explained("connect to the outbox"):
                        limits = TimeLimits.of_statements(self._timeout)
                        self._connection = await connect(self._dsn, self._connect_timeout, limits)
                yield self._connection
            except BaseException:
                connection, self._connection = self._connection, None
                self._may_claim = None
                if connection is not None:
                    disconnect_later(connection)
                raise


async def inspect_outbox(dsn: str, *, app_dsn: str | None = None) -> list[CheckResult]:
    """Look at an outbox; for ``otel-audit doctor``.

    Args:
        dsn: The application's database, as the relay's role.
        app_dsn: The same, as the application's own role, where that is to be checked too.

    Returns:
        What was found; nothing is raised.
    """
    findings = []
    for name, address in (("outbox", dsn), ("outbox, as the application", app_dsn)):
        if address is None:
            continue
        outbox = PostgresOutbox(address)
        try:
            if address is dsn:
                findings += await outbox._findings()  # noqa: SLF001 - its own module
                state = await outbox.state()
                findings.append(_judge_state(state))
            else:
                async with outbox._session() as connection:  # noqa: SLF001 - its own module
                    findings.append(_judge_application(await connection.fetchrow(_RIGHTS)))
        except OtelAuditError as error:
            findings.append(CheckResult(name, ok=False, detail=str(error), remedy=_REMEDY))
        finally:
            await outbox.close()
    return findings


async def count_about(dsn: str, tenant: str, names: Collection[str]) -> int | None:
    """Count the records in an outbox that are by a person or about this person.

    Args:
        dsn: The application's database, as the relay's role.
        tenant: The person's tenant; empty for none.
        names: The person's names: actors' ids, and entities such as ``customer:17``.

    Returns:
        How many wait there; None where there is no outbox.

    Raises:
        StoreError: It cannot be looked at; the message says why.
    """
    found, last = 0, uuid.UUID(int=0)
    with suppress_instrumentation(), _explained("look into the outbox"):
        connection = await connect(dsn)
        try:
            if not await connection.fetchval(_THERE):
                return None
            while rows := await connection.fetch(_NEXT, last):
                found += sum(_is_about(row["record"], tenant, names) for row in rows)
                last = rows[-1]["record_id"]
        finally:
            await disconnect(connection)
    return found


def _is_about(text: str, tenant: str, names: Collection[str]) -> bool:
    try:
        record = _decode(text)
    except (msgspec.MsgspecError, RecursionError):
        # the relay puts it into quarantine, where `erase` looks for the names in the text
        return any(name in text for name in names)
    owner = "" if record.tenant is None else record.tenant.id
    about = {record.actor.id, *record.entities}
    return owner == tenant and not about.isdisjoint(names)


def _judge_relay(found: Any) -> CheckResult:
    if found is None:
        return CheckResult(
            "outbox", ok=False, detail="there is no table audit.outbox", remedy=_REMEDY
        )
    missing = [
        right
        for right, has in (
            ("USAGE on schema audit", found["may_use"]),
            ("SELECT", found["may_read"]),
            ("DELETE", found["may_delete"]),
        )
        if not has
    ]
    if missing:
        detail = f"role {found['rolname']} lacks {', '.join(missing)} on audit.outbox"
        return CheckResult("outbox", ok=False, detail=detail, remedy=_REMEDY)
    if found["read_only"]:
        return CheckResult(
            "outbox", ok=False, detail="the application's database is read-only: a standby?",
            remedy="let OTEL_AUDIT_OUTBOX_DSN name the primary",
        )  # fmt: skip
    if not found["may_claim"]:
        detail = (
            f"role {found['rolname']} cannot claim records, so two relays do the same work: it "
            "lacks UPDATE (claimed_by, claimed_until) on audit.outbox"
        )
        return CheckResult("outbox", ok=None, detail=detail, remedy=_REMEDY)
    detail = f"role {found['rolname']} may take records out"
    if found["encoding"] != "UTF8":
        detail += f"; the database has encoding {found['encoding']}: {_ANY_ENCODING}"
    return CheckResult("outbox", ok=True, detail=detail)


def _judge_application(found: Any) -> CheckResult:
    name = "outbox, as the application"
    if found is None:
        return CheckResult(name, ok=False, detail="there is no table audit.outbox", remedy=_REMEDY)
    role = found["rolname"]
    if not (found["may_insert"] and found["may_use"]):
        return CheckResult(
            name, ok=False, detail=f"role {role} may not write to audit.outbox", remedy=_REMEDY
        )
    if found["may_delete"] or found["may_update"]:
        return CheckResult(
            name,
            ok=None,
            detail=f"role {role} may also change or delete what waits there",
            remedy="let the application log in as a role that may only INSERT into it",
        )
    return CheckResult(name, ok=True, detail=f"role {role} may write to it, and nothing else")


def _judge_state(state: OutboxState) -> CheckResult:
    detail = f"{state.depth} records wait, the oldest for {state.oldest_age:.0f} s"
    late = state.oldest_age > 300  # noqa: PLR2004 - as the health report's default
    return CheckResult(
        "outbox backlog",
        ok=None if late else True,
        detail=detail,
        remedy="is a relay running? `otel-audit relay` delivers them now" if late else "",
    )


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what PostgreSQL and the network report into what to do about it."""
    try:
        yield
    except OtelAuditError as error:
        text = str(error).replace("OTEL_AUDIT_DSN", "OTEL_AUDIT_OUTBOX_DSN")
        text = text.replace("the audit store", "the application's database")
        raise type(error)(text) from error
    except Exception as error:
        state, seen = sqlstate(error), type(error).__name__
        if state.startswith("42") or state == "3F000":
            raise StoreError(f"could not {doing}: {_REMEDY} [{seen} {state}]") from None
        module = type(error).__module__
        if isinstance(error, OSError | TimeoutError) or module.startswith("asyncpg"):
            raise StoreUnavailableError(
                f"could not {doing} where OTEL_AUDIT_OUTBOX_DSN points [{seen} {state}]"
            ) from None
        raise
