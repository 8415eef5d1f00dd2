"""Creates the audit schema, and brings it up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import (
    ConfigurationError,
    OtelAuditError,
    StoreError,
)
from otel_audit_postgres.connection import Connection, connect, disconnect
from otel_audit_postgres.errors import INIT, as_store_error
from otel_audit_postgres.schema.lock import SchemaLock, alone
from otel_audit_postgres.schema.migration_state import installed_version
from otel_audit_postgres.schema.migrations import (
    Migration,
    event_trigger_sql,
    grants_sql,
    latest_version,
    ownership_sql,
    pending,
    roles_sql,
)
from otel_audit_postgres.schema.partitions import DEFAULT_DETACHED, ENSURE_PARTITIONS, has_default
from otel_audit_postgres.schema.roles import OWNER, Members, borrow, hand_over, quoted

OLDEST_SERVER: Final = 15
"""The oldest version of PostgreSQL that is tested."""

LOCK: Final = SchemaLock(7301962839480013, "audit.schema_version")  # arbitrary, our own
PERMIT: Final = "SET LOCAL otel_audit.permit_ddl = 'on'"
"""Says to the event trigger that a superuser means to change the schema."""

_STATE: Final = """
SELECT current_user AS me, pg_get_userbyid(n.nspowner) AS owner,
       current_setting('server_encoding') AS encoding,
       current_setting('server_version_num')::int / 10000 AS server,
       EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = 'schema_version')
           AS installed,
       EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'otel_audit_refuse_ddl')
           AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS barred
FROM (SELECT 1) AS one LEFT JOIN pg_namespace n ON n.nspname = 'audit'
"""
_MAY_SEE: Final = """
SELECT c.oid IS NOT NULL AS installed,
       coalesce(has_schema_privilege(n.oid, 'USAGE')
                AND has_table_privilege(c.oid, 'SELECT'), false) AS may_see
FROM (SELECT 1) AS one
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'audit'
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'schema_version'
"""
_NOTE: Final = "INSERT INTO audit.schema_version (version, name) VALUES ({version}, '{name}')"
_NOTHING: Final = Members()


@dataclass(frozen=True, slots=True)
class InitReport:
    """The result of `init` or `migrate`.

    Attributes:
        version: The schema's version now.
        applied: Names of the migrations that were applied, none if it was up to date.
        partitions: Names of the partitions that were made.
        lines: What was done, for a person, one line each.

    Example::

        report = await init(dsn)
        for line in report.lines:
            print(line)
    """

    version: int
    applied: tuple[str, ...]
    partitions: tuple[str, ...]
    lines: tuple[str, ...]


async def init(  # noqa: PLR0913 - one for each role
    dsn_or_engine: Any,
    *,
    roles: bool = False,
    writer: str | None = None,
    reader: str | None = None,
    sealer: str | None = None,
    retention: str | None = None,
    streamer: str | None = None,
    tenants: Sequence[str] = (),
    viewer: str | None = None,
) -> InitReport:
    """Create the audit schema, or migrate it to the latest version. Idempotent.

    All of it happens in one transaction, and only one at a time does it.

    Args:
        dsn_or_engine: ``postgresql://…``, ``postgresql+asyncpg://…``, or an `AsyncEngine` of
            SQLAlchemy over asyncpg.
        roles: Create the group roles (otel_audit_owner, _writer, _reader, _sealer, _retention,
            _streamer),
            give everything to the owner and to the others what they need. This needs CREATEROLE
            and CREATE on the database; a superuser also installs the event trigger against DDL.
        writer: An existing login role that is to write; with ``roles``.
        reader: An existing login role that is to read; with ``roles``.
        sealer: An existing login role that is to seal; with ``roles``.
        retention: An existing login role that is to drop sealed months; with ``roles``.
        streamer: An existing login role that is to read everything and send it on; with ``roles``.
        tenants: The only tenants that ``reader`` is to see. None: what it was entered for before,
            or all if it was not.
        viewer: An existing login role of the viewer, which reads on behalf of others: it sees
            nothing before it has said for whom; with ``roles``.

    Returns:
        What was found and done.

    Raises:
        ConfigurationError: A login role is named without ``roles``, or an unfit engine.
        StoreUnavailableError: The database cannot be reached now.
        StoreError: The schema is newer than this package or half migrated, a right is missing, or
            the database is not in UTF-8; nothing was changed.

    Example::

        report = await init(dsn)  # with roles=True, writer="my_app_audit" also the rights
        print(report.version)
    """
    members = Members(writer, reader, sealer, retention, tenants, viewer, streamer)
    if not roles:
        members.refuse_without_roles("init")
    if tenants and not reader:
        raise ConfigurationError("init: tenants= needs reader= (--tenant, --reader)")
    async with _begun(dsn_or_engine) as connection:
        return await _bring_up(connection, await _state(connection), members, roles=roles)


async def migrate(dsn_or_engine: Any) -> InitReport:
    """Bring an existing audit schema up to date, roles and guards with it; never makes a new one.

    All of it happens in one transaction, and only one at a time does it. There is no way back:
    a schema never goes to an earlier version.

    Args:
        dsn_or_engine: As for `init`.

    Returns:
        What was found and done.

    Raises:
        ConfigurationError: An unfit engine.
        StoreUnavailableError: The database cannot be reached now.
        StoreError: There is no audit schema, it is newer than this package or half migrated, or a
            right is missing; nothing was changed.

    Example::

        report = await migrate(dsn)
        print(report.version, report.applied)
    """
    async with _begun(dsn_or_engine) as connection:
        state = await _state(connection)
        if not state["installed"]:
            raise StoreError(f"there is no audit store to migrate in this database: {INIT}")
        version = await installed_version(connection)
        if state["barred"] and not pending(version):
            note = f"schema audit: up to date at version {version}; only a superuser renews guards"
            return InitReport(version, (), (), (note,))
        return await _bring_up(connection, state, _NOTHING, roles=state["owner"] == OWNER)


async def missing_migrations(dsn_or_engine: Any) -> tuple[int, bool]:
    """Look at a store without changing it.

    Args:
        dsn_or_engine: As for `init`.

    Returns:
        The version that is installed, and whether it has the group roles.

    Raises:
        StoreError: As for `migrate`.
    """
    async with _begun(dsn_or_engine) as connection:
        state = await _state(connection)
        if not state["installed"]:
            raise StoreError(f"there is no audit store to migrate in this database: {INIT}")
        return await installed_version(connection), state["owner"] == OWNER


@dataclass(frozen=True, slots=True)
class PendingMigrations:
    """The migrations that a store lacks.

    Attributes:
        version: Its version.
        latest: The version that this package knows.
        waiting: Titles of the migrations in between.
    """

    version: int
    latest: int
    waiting: tuple[str, ...]


async def waiting_migrations(dsn: str) -> PendingMigrations:
    """Look which migrations a store lacks, as any role that may read its version.

    Args:
        dsn: The audit store.

    Raises:
        StoreUnavailableError: The database cannot be reached now.
        StoreError: There is no audit store, it is newer than this package or half migrated, or
            this role may not see its version.
    """
    with suppress_instrumentation(), _explained():
        connection = await connect(dsn)
        try:
            may = await connection.fetchrow(_MAY_SEE)
            assert may is not None  # noqa: S101 - a SELECT without FROM has a row
            if not may["installed"]:
                raise StoreError(f"there is no audit store to migrate in this database: {INIT}")
            if not may["may_see"]:
                raise StoreError(
                    "this role may not see the store's version: ask as a reader, a writer or the "
                    "owner of schema audit, with --dsn"
                )
            version = await installed_version(connection)
        finally:
            await disconnect(connection)
    return PendingMigrations(
        version, latest_version(), tuple(step.title for step in pending(version))
    )


def schema_sql(  # noqa: PLR0913 - one for each role
    *,
    roles: bool = False,
    writer: str | None = None,
    reader: str | None = None,
    sealer: str | None = None,
    retention: str | None = None,
    streamer: str | None = None,
    viewer: str | None = None,
    since: int = 0,
) -> str:
    """Return the SQL that `init` runs, to be applied by hand.

    Args:
        roles: As for `init`; the script then has to be run by a superuser.
        writer: As for `init`.
        reader: As for `init`.
        sealer: As for `init`.
        retention: As for `init`.
        streamer: As for `init`.
        viewer: As for `init`.
        since: The version that is installed already; 0 for none.

    Returns:
        A script for ``psql``, in one transaction.

    Raises:
        ConfigurationError: A login role is named without ``roles``.

    Example::

        Path("audit.sql").write_text(schema_sql(roles=True, writer="my_app_audit"))
    """
    members = Members(writer, reader, sealer, retention, viewer=viewer, streamer=streamer)
    if not roles:
        members.refuse_without_roles("schema_sql")
    parts = ["BEGIN;", f"{lock_sql(since)};", f"{PERMIT};"]
    if roles:
        parts.append(roles_sql())
    parts.append("CREATE SCHEMA IF NOT EXISTS audit;")
    for step in pending(since):
        parts += [step.sql, f"{noted(step)};"]
    parts.append(f"{ENSURE_PARTITIONS};")
    if roles:
        parts += [ownership_sql(), grants_sql(), *members.statements(), event_trigger_sql()]
    return "\n".join([*parts, "COMMIT;", ""])


def lock_sql(since: int) -> str:
    """The statement that keeps others from changing the schema of a store of this version."""
    return LOCK.of_table if since else LOCK.of_key


def noted(step: Migration) -> str:
    """The statement that notes a migration as applied."""
    return _NOTE.format(version=step.version, name=step.name)


async def _bring_up(
    connection: Connection[Any], state: Any, members: Members, *, roles: bool
) -> InitReport:
    lines: list[str] = []
    version = await installed_version(connection) if state["installed"] else 0
    steps = pending(version)
    if state["barred"] and (roles or steps):
        raise StoreError(
            "an event trigger guards schema audit against DDL, and only a superuser may change "
            "it: run this as one, or print what to run with --sql"
        )
    if roles:
        await connection.execute(roles_sql())
    me, owner = state["me"], state["owner"]
    others = owner not in (None, me) and (roles or bool(steps))
    needed = {owner} if others else set()
    needed |= {OWNER} if roles else set()
    borrowed = [role for role in sorted(needed) if await borrow(connection, me, role)]
    if owner is None:
        await connection.execute("CREATE SCHEMA audit")
        lines.append("schema audit: created")
    if others:
        await connection.execute(f"SET LOCAL ROLE {quoted(owner)}")
    for step in steps:
        await connection.execute(step.sql)
        await connection.execute(noted(step))
        lines.append(f"migration {step.title}: applied")
    if not steps:
        lines.append(f"schema audit: up to date at version {version}")
    made = await _make_partitions(connection, lines)
    if others:
        await connection.execute(f"SET LOCAL ROLE {quoted(me)}")
    if roles:
        lines += await hand_over(connection, members)
    for role in borrowed:
        await connection.execute(f"REVOKE {quoted(role)} FROM {quoted(me)}")
    return InitReport(latest_version(), tuple(step.name for step in steps), made, tuple(lines))


async def _state(connection: Connection[Any]) -> Any:
    state = await connection.fetchrow(_STATE)
    assert state is not None  # noqa: S101 - the query has one row
    if state["encoding"] != "UTF8":
        raise StoreError(
            f"the audit store's database has encoding {state['encoding']}; "
            "create it with ENCODING 'UTF8'"
        )
    if state["server"] < OLDEST_SERVER:
        raise StoreError(
            f"PostgreSQL {state['server']} is too old: {OLDEST_SERVER} or newer is needed"
        )
    return state


async def _make_partitions(connection: Connection[Any], lines: list[str]) -> tuple[str, ...]:
    if not await connection.fetchval(
        "SELECT has_function_privilege('audit.ensure_partitions(integer)', 'EXECUTE')"
    ):
        return ()
    found = await connection.fetch(ENSURE_PARTITIONS)
    for partition, state, detail in found:
        if state != "exists":
            lines.append(f"partition {partition}: {state}" + (f", {detail}" if detail else ""))
    if not await has_default(connection):
        lines.append(DEFAULT_DETACHED)
    return tuple(row["partition"] for row in found if row["state"] == "made")


@asynccontextmanager
async def _begun(dsn_or_engine: Any) -> AsyncIterator[Connection[Any]]:
    """A transaction in which no other changes the schema."""
    with suppress_instrumentation(), _explained():
        async with _connection(dsn_or_engine) as connection, connection.transaction():
            await alone(connection, LOCK, "set up the audit store")
            await connection.execute(PERMIT)
            yield connection


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what PostgreSQL reports into what to do about it; nothing here shows values."""
    try:
        yield
    except OtelAuditError:
        raise
    except Exception as error:
        original = getattr(error, "orig", None)  # SQLAlchemy wraps what the driver raised
        cause = error if original is None else original.__cause__ or original
        raise as_store_error(cause, "set up the audit store", sets_up=True) from error


@asynccontextmanager
async def _connection(dsn_or_engine: Any) -> AsyncIterator[Connection[Any]]:
    if isinstance(dsn_or_engine, str):
        connection = await connect(dsn_or_engine)
        try:
            yield connection
        finally:
            await disconnect(connection)
        return
    if not hasattr(dsn_or_engine, "connect") or not hasattr(dsn_or_engine, "dialect"):
        raise ConfigurationError("init: a DSN (postgresql://…) or an AsyncEngine is needed")
    async with dsn_or_engine.connect() as pooled:
        raw = await pooled.get_raw_connection()
        if not isinstance(raw.driver_connection, Connection):
            raise ConfigurationError("init: the AsyncEngine must use asyncpg; or give a DSN")
        yield raw.driver_connection
