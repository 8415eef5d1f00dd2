"""Creates the audit schema, and brings it up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import ConfigurationError, OtelAuditError, StoreError
from otel_audit_postgres.connecting import Connection, connect
from otel_audit_postgres.failures import as_store_error
from otel_audit_postgres.migrations import (
    Migration,
    grants_sql,
    latest_version,
    migrations,
    ownership_sql,
    roles_sql,
)

OWNER: Final = "otel_audit_owner"
WRITER: Final = "otel_audit_writer"
READER: Final = "otel_audit_reader"
SEALER: Final = "otel_audit_sealer"

_CONNECT_TIMEOUT: Final = 10.0
_LOCK: Final = "SELECT pg_advisory_xact_lock(7301962839480013)"  # an arbitrary key of our own
_PATIENCE: Final = "SET LOCAL lock_timeout = '30s'"
_STATE: Final = """
SELECT current_user AS me, pg_get_userbyid(n.nspowner) AS owner,
       current_setting('server_encoding') AS encoding,
       current_setting('server_version_num')::int / 10000 AS server,
       EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = 'schema_version')
           AS installed
FROM (SELECT 1) AS one LEFT JOIN pg_namespace n ON n.nspname = 'audit'
"""
# before PostgreSQL 16 a role is a member once; since then once for each who granted it
_IS_MEMBER: Final = """
SELECT EXISTS (
    SELECT FROM pg_auth_members
    WHERE member = $1::text::regrole AND roleid = $2::text::regrole
      AND (grantor = member OR current_setting('server_version_num')::int < 160000))
"""
_MAY_READ: Final = (
    "INSERT INTO audit.reader_tenants (role_name, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"
)
_ENTERED: Final = (
    "INSERT INTO audit.reader_tenants (role_name) SELECT {role} "
    "WHERE NOT EXISTS (SELECT FROM audit.reader_tenants WHERE role_name = {role});"
)
_IS_ENTERED: Final = "SELECT EXISTS (SELECT FROM audit.reader_tenants WHERE role_name = $1)"
_NOTE: Final = "INSERT INTO audit.schema_version (version, name) VALUES ({version}, '{name}')"


@dataclass(frozen=True, slots=True)
class InitReport:
    """What `init` found and did.

    Attributes:
        version: The schema's version now.
        applied: Names of the migrations that were applied, none where it was up to date.
        partitions: Names of the partitions that were made.
        lines: What was done, for a person, one line each.
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
    tenants: Sequence[str] = (),
) -> InitReport:
    """Create the audit schema, or bring it up to date; nothing is done twice.

    All of it happens in one transaction, and only one at a time does it.

    Args:
        dsn_or_engine: ``postgresql://…``, ``postgresql+asyncpg://…``, or an `AsyncEngine` of
            SQLAlchemy over asyncpg.
        roles: Create the group roles otel_audit_owner, otel_audit_writer, otel_audit_reader and
            otel_audit_sealer, give everything to the owner and to the others what they need. This
            needs a superuser, or CREATEROLE and CREATE on the database.
        writer: An existing login role that is to write; with ``roles``.
        reader: An existing login role that is to read; with ``roles``.
        sealer: An existing login role that is to seal; with ``roles``.
        tenants: The only tenants that ``reader`` is to see. None: what it was entered for before,
            or all if it was not.

    Returns:
        What was found and done.

    Raises:
        ConfigurationError: ``writer``, ``reader`` or ``sealer`` without ``roles``, or an unfit
            engine.
        StoreUnavailableError: The database cannot be reached now.
        StoreError: The schema is newer than this package, a right is missing, or the database is
            not in UTF-8; nothing was changed.
    """
    members = _members(writer, reader, sealer)
    if members and not roles:
        raise ConfigurationError("init: writer=, reader= and sealer= need roles=True (--roles)")
    if tenants and not reader:
        raise ConfigurationError("init: tenants= needs reader= (--tenant, --reader)")
    with suppress_instrumentation(), _explained():
        async with _connection(dsn_or_engine) as connection, connection.transaction():
            return await _init(connection, roles=roles, members=members, tenants=tenants)


def schema_sql(
    *,
    roles: bool = False,
    writer: str | None = None,
    reader: str | None = None,
    sealer: str | None = None,
    since: int = 0,
) -> str:
    """Write down what `init` would run, for those who apply SQL themselves.

    Args:
        roles: As for `init`; the script then has to be run by a superuser.
        writer: As for `init`.
        reader: As for `init`.
        sealer: As for `init`.
        since: The version that is installed already; 0 for none.

    Returns:
        A script for ``psql``, in one transaction.

    Raises:
        ConfigurationError: ``writer``, ``reader`` or ``sealer`` without ``roles``.
    """
    members = _members(writer, reader, sealer)
    if members and not roles:
        raise ConfigurationError(
            "schema_sql: writer=, reader= and sealer= need roles=True (--roles)"
        )
    parts = ["BEGIN;", f"{_LOCK};"]
    if roles:
        parts.append(roles_sql())
    parts.append("CREATE SCHEMA IF NOT EXISTS audit;")
    for step in _pending(since):
        parts += [step.sql, f"{_noted(step)};"]
    parts.append("SELECT * FROM audit.ensure_partitions();")
    if roles:
        parts += [ownership_sql(), grants_sql()]
        parts += [f"GRANT {group} TO {_quoted(login)};" for group, login in members]
    if reader:
        parts.append(_ENTERED.format(role="'" + reader.replace("'", "''") + "'"))
    return "\n".join([*parts, "COMMIT;", ""])


async def _init(
    connection: Connection[Any],
    *,
    roles: bool,
    members: list[tuple[str, str]],
    tenants: Sequence[str],
) -> InitReport:
    lines: list[str] = []
    await connection.execute(_PATIENCE)
    await connection.execute(_LOCK)
    state = await connection.fetchrow(_STATE)
    assert state is not None  # noqa: S101 - the query has one row
    _refuse_unfit(state)
    version = await _version(connection) if state["installed"] else 0
    pending = _pending(version)
    if roles:
        await connection.execute(roles_sql())
    others = state["owner"] not in (None, state["me"]) and (roles or bool(pending))
    needed = {state["owner"]} if others else set()
    needed |= {OWNER} if roles else set()
    borrowed = [role for role in sorted(needed) if await _borrow(connection, state, role)]
    if state["owner"] is None:
        await connection.execute("CREATE SCHEMA audit")
        lines.append("schema audit: created")
    if others:
        await connection.execute(f"SET LOCAL ROLE {_quoted(state['owner'])}")
    await _apply(connection, pending)
    lines += [f"migration {step.version:04} {step.name}: applied" for step in pending]
    if not pending:
        lines.append(f"schema audit: up to date at version {version}")
    made = await _make_partitions(connection, lines)
    if others:
        await connection.execute(f"SET LOCAL ROLE {_quoted(state['me'])}")
    if roles:
        await _hand_over(connection, members, tenants, lines)
    for role in borrowed:
        await connection.execute(f"REVOKE {_quoted(role)} FROM {_quoted(state['me'])}")
    return InitReport(latest_version(), tuple(step.name for step in pending), made, tuple(lines))


def _refuse_unfit(state: Any) -> None:
    if state["encoding"] != "UTF8":
        raise StoreError(
            f"the audit store's database has encoding {state['encoding']}; "
            "create it with ENCODING 'UTF8'"
        )
    if state["server"] < 15:  # noqa: PLR2004 - the oldest that is tested
        raise StoreError(f"PostgreSQL {state['server']} is too old: 15 or newer is needed")


async def _version(connection: Connection[Any]) -> int:
    version: int = await connection.fetchval(
        "SELECT coalesce(max(version), 0) FROM audit.schema_version"
    )
    if version > latest_version():
        raise StoreError(
            f"schema audit is at version {version}, this otel-audit knows {latest_version()}: "
            "upgrade otel-audit; nothing was changed"
        )
    return version


async def _apply(connection: Connection[Any], pending: tuple[Migration, ...]) -> None:
    for step in pending:
        await connection.execute(step.sql)
        await connection.execute(_noted(step))


async def _borrow(connection: Connection[Any], state: Any, role: str) -> bool:
    """Become a member of a role for as long as this takes; tell whether a grant was needed."""
    me = state["me"]
    if await connection.fetchval("SELECT pg_has_role($1::name, $2::name, 'USAGE')", me, role):
        return False
    is_member = await connection.fetchval(_IS_MEMBER, _quoted(me), _quoted(role))
    await connection.execute(f"GRANT {_quoted(role)} TO {_quoted(me)}")
    return not is_member


async def _make_partitions(connection: Connection[Any], lines: list[str]) -> tuple[str, ...]:
    if not await connection.fetchval(
        "SELECT has_function_privilege('audit.ensure_partitions(integer)', 'EXECUTE')"
    ):
        return ()
    found = await connection.fetch("SELECT * FROM audit.ensure_partitions()")
    for partition, state, detail in found:
        if state != "exists":
            lines.append(f"partition {partition}: {state}" + (f", {detail}" if detail else ""))
    return tuple(row["partition"] for row in found if row["state"] == "made")


async def _hand_over(
    connection: Connection[Any],
    members: list[tuple[str, str]],
    tenants: Sequence[str],
    lines: list[str],
) -> None:
    await connection.execute(ownership_sql())
    await connection.execute(grants_sql())
    lines.append(
        f"roles {OWNER} (owns), {WRITER} (appends), {READER} (reads), {SEALER} (seals): in place"
    )
    for group, login in members:
        if not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", login
        ):
            raise ConfigurationError(
                f"init: there is no role {login}; create it first: "
                f"CREATE ROLE {_quoted(login)} LOGIN PASSWORD …"
            )
        await connection.execute(f"GRANT {group} TO {_quoted(login)}")
        if group == READER:
            await _enter(connection, login, tenants)
        lines.append(f"role {login}: member of {group}")


async def _enter(connection: Connection[Any], reader: str, tenants: Sequence[str]) -> None:
    """Say whose records a reader sees; what was said before is not widened in passing."""
    if tenants:
        await connection.execute("DELETE FROM audit.reader_tenants WHERE role_name = $1", reader)
        await connection.executemany(_MAY_READ, [(reader, tenant) for tenant in tenants])
    elif not await connection.fetchval(_IS_ENTERED, reader):
        await connection.execute(_MAY_READ, reader, None)


def _pending(version: int) -> tuple[Migration, ...]:
    return tuple(step for step in migrations() if step.version > version)


def _noted(step: Migration) -> str:
    return _NOTE.format(version=step.version, name=step.name)


def _members(writer: str | None, reader: str | None, sealer: str | None) -> list[tuple[str, str]]:
    wanted = ((WRITER, writer), (READER, reader), (SEALER, sealer))
    return [(group, login) for group, login in wanted if login]


def _quoted(name: str) -> str:
    """Quote an identifier (PostgreSQL documentation, 4.1.1)."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


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
        raise as_store_error(cause, "set up the audit store") from error


@asynccontextmanager
async def _connection(dsn_or_engine: Any) -> AsyncIterator[Connection[Any]]:
    if isinstance(dsn_or_engine, str):
        connection = await connect(dsn_or_engine, _CONNECT_TIMEOUT)
        try:
            yield connection
        finally:
            await connection.close()
        return
    if not hasattr(dsn_or_engine, "connect") or not hasattr(dsn_or_engine, "dialect"):
        raise ConfigurationError("init: a DSN (postgresql://…) or an AsyncEngine is needed")
    async with dsn_or_engine.connect() as pooled:
        raw = await pooled.get_raw_connection()
        if not isinstance(raw.driver_connection, Connection):
            raise ConfigurationError("init: the AsyncEngine must use asyncpg; or give a DSN")
        yield raw.driver_connection
