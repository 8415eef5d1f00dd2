"""Looks at an audit store and says what is not as it must be, each with its remedy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.check_result import CheckResult
from otel_audit.action.compose import process_record
from otel_audit.errors import StoreError
from otel_audit.record import Actor
from otel_audit_postgres.checks import security
from otel_audit_postgres.connection import (
    Connection,
    InsufficientPrivilegeError,
    connect,
    disconnect,
)
from otel_audit_postgres.errors import INIT, as_store_error, refusal_reason
from otel_audit_postgres.rows import COLUMNS, to_row
from otel_audit_postgres.schema import pg_catalog
from otel_audit_postgres.schema.install import OLDEST_SERVER
from otel_audit_postgres.schema.migrations import latest_version
from otel_audit_postgres.schema.readiness import WRITER_NEEDED, only_reads, refuse_version

NEWEST_SERVER: Final = 18
"""The newest server version that is tested."""

_CONNECT_TIMEOUT: Final = 5.0
"""Seconds: a person waits for the answer."""
_SERVER: Final = """
SELECT current_user AS role, current_setting('server_version') AS version,
       current_setting('server_version_num')::int / 10000 AS major,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
       current_setting('fsync') = 'on' AS fsync,
       pg_postmaster_start_time() AS started,
       EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'audit') AS installed,
       coalesce((SELECT has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace
                 WHERE nspname = 'audit'), false) AS may_use
"""
_ROLES: Final = (
    "run `otel-audit init --roles --writer ROLE` as an administrator, "
    "and let OTEL_AUDIT_DSN log in as ROLE"
)
_READER: Final = (
    f"{WRITER_NEEDED}, and give this DSN as --reader-dsn; what `otel-audit dev` prints is the "
    "reader's, and its application has the writer's already"
)
_READS: Final = (
    "SELECT has_column_privilege('audit.audit_logs', 'payload', 'SELECT') "
    "AND NOT has_any_column_privilege('audit.audit_logs', 'INSERT')"
)
_TRIAL: Final = (
    f"INSERT INTO audit.audit_logs ({', '.join(name for name, _ in COLUMNS)}) "  # noqa: S608 - constants
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(COLUMNS) + 1))})"
)
_LISTED: Final = 5
"""Problems of one kind that are written out."""


async def inspect(dsn: str, *, app_dsn: str | None = None) -> list[CheckResult]:
    """Look at the store through the eyes of the role that writes to it. Changes nothing.

    Args:
        dsn: The audit store, as the writer reaches it.
        app_dsn: The application's own database; its role is looked at too.

    Returns:
        The findings, in the order in which to fix them. Never raises because of the store's state:
        that it cannot be reached is a finding.
    """
    with suppress_instrumentation():
        try:
            async with _opened(dsn) as connection:
                found = await _look(connection)
                if app_dsn is not None:
                    found.append(await _look_at_app(connection, app_dsn))
                return found
        except StoreError as error:
            problem, _, remedy = str(error).partition(": ")
            return [CheckResult("reachable", ok=False, detail=problem, remedy=remedy)]


async def _look(connection: Connection[Any]) -> list[CheckResult]:
    try:
        return await _look_closely(connection)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        raise as_store_error(error, "inspect the audit store") from None


async def _look_closely(connection: Connection[Any]) -> list[CheckResult]:
    server = await connection.fetchrow(_SERVER)
    assert server is not None  # noqa: S101 - a SELECT without FROM has a row
    role = server["role"]
    found = [
        CheckResult("reachable", ok=True, detail=f"as role {role}"),
        _server_version(server),
        _durability(server),
        _encoding(server),
    ]
    missing = await pg_catalog.missing_tables(connection)
    found.append(
        _judged(
            "schema",
            server["installed"] and not missing,
            "schema audit and its tables are there",
            f"missing: {', '.join(f'audit.{name}' for name in missing)}",
            INIT,
        )
    )
    if missing:
        return found
    if await _is_current(connection):
        parts = await pg_catalog.missing_parts(connection, [name for name, _ in COLUMNS])
        if parts:
            found[-1] = _judged(
                "schema", False, "",  # noqa: FBT003 - as above
                f"missing: {', '.join(parts)}",
                "somebody renamed or dropped it: put it back as otel-audit made it "
                "(`otel-audit init --sql` prints that)",
            )  # fmt: skip
            return found
    found += [
        _none_of(
            "guards",
            await pg_catalog.unguarded(connection),
            "UPDATE, DELETE and TRUNCATE are refused on every table",
            f"{INIT}; if that does not help, somebody removed guards: find out who",
        ),
        _none_of(
            "foreign_triggers",
            await pg_catalog.foreign_triggers(connection),
            "no triggers or rules but our own",
            "drop them: they can make records vanish",
        ),
        await _additions(connection),
        _none_of(
            "may_not_change",
            await pg_catalog.changing_rights(connection, role),
            f"role {role} may not UPDATE, DELETE or TRUNCATE",
            _ROLES,
        ),
        _none_of(
            "not_owner",
            [f"role {role} {power}" for power in await pg_catalog.role_powers(connection, role)],
            f"role {role} is neither owner nor superuser",
            _ROLES,
        ),
        *await _weaknesses(connection),
        _partitions(await pg_catalog.partitions(connection)),
    ]
    if not server["may_use"]:
        return [
            *found,
            CheckResult(
                "may_insert",
                ok=False,
                remedy=_ROLES,
                detail=f"role {role} lacks USAGE on schema audit",
            ),
        ]
    return [*found, *await _look_inside(connection, role)]


async def _additions(connection: Connection[Any]) -> CheckResult:
    """Additions to the schema that could refuse sound records."""
    found = await pg_catalog.additions(connection)
    if not found:
        return CheckResult(
            "additions", ok=True, detail="nothing that was added looks at new records"
        )
    return CheckResult(
        "additions",
        None,
        "; ".join(found[:_LISTED]),
        "make sure that they refuse no record: refused records wait in the spools until then",
    )


async def _takes_records(connection: Connection[Any]) -> CheckResult:
    """Store a record as a writer does, and take it back before it is committed."""
    name, row = "takes_records", _trial_row()
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(_TRIAL, *row)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        why = refusal_reason(error)
        return CheckResult(
            name, ok=False, detail=f"a record that was tried is refused: {why}",
            remedy="fix what refuses it; until then records wait in the spools",
        )  # fmt: skip
    finally:
        await transaction.rollback()
    return CheckResult(name, ok=True, detail="a test record, rolled back again, is accepted")


def _trial_row() -> tuple[Any, ...]:
    actor = Actor(id="otel-audit", type="system")
    row = to_row(process_record("audit.trial", actor=actor, outcome="unknown"))
    return tuple(
        value.decode() if isinstance(value, bytes) and kind == "json" else value
        for value, (_, kind) in zip(row.values, COLUMNS, strict=True)
    )


async def _weaknesses(connection: Connection[Any]) -> list[CheckResult]:
    """Weaknesses of roles and rights, apart from those of the checking role."""
    found = [
        _none_of(
            "search_path",
            await security.search_path_tricks(connection),
            "no function of the store follows its caller's search_path",
            "find out who changed it; drop it, or revoke the right",
        )
    ]
    if not await security.has_roles(connection):
        return [
            *found,
            CheckResult(
                "roles",
                None,
                "there are no group roles: who owns the tables can switch the guards off",
                _ROLES,
            ),
        ]
    makers = await security.role_makers(connection)
    again = "run `otel-audit migrate` as an administrator; then find out who changed it"
    return [
        *found,
        _none_of(
            "owner_alone",
            await security.owners(connection),
            "only superusers can act as the owner",
            "REVOKE that membership or attribute",
        ),
        _none_of(
            "grants",
            await security.wrong_grants(connection),
            "each group has what it needs, and no more",
            again,
        ),
        _none_of(
            "tenant_isolation",
            await security.tenant_leaks(connection),
            "readers see their tenants' rows alone, in the partitions too",
            again,
        ),
        CheckResult("role_makers", ok=True, detail="no role but superusers can become the owner")
        if not makers
        else CheckResult(
            "role_makers",
            None,
            "; ".join(makers[:_LISTED]),
            "let no application log in as one of these; PostgreSQL 16 closes this",
        ),
        await _event_trigger(connection),
    ]


async def _event_trigger(connection: Connection[Any]) -> CheckResult:
    """Whether DDL in the schema is refused."""
    if not await security.has_event_triggers(connection):
        detail = (
            "DDL is not refused: a member of otel_audit_owner can switch the guards off, which "
            "verify shows only while they are off"
        )
    elif await pg_catalog.has_earlier_event_trigger(connection):
        detail = (
            "the event trigger is of an earlier otel-audit: a member of otel_audit_owner can move "
            "tables and functions out of schema audit"
        )
    else:
        return CheckResult("event_trigger", ok=True, detail="DDL in schema audit is refused")
    return CheckResult(
        "event_trigger",
        None,
        detail,
        "run `otel-audit migrate` as a superuser, where the service has one",
    )


async def _look_inside(connection: Connection[Any], role: str) -> list[CheckResult]:
    """The checks that need rights on the schema."""
    lacking = await pg_catalog.lacking_rights(connection)
    if lacking and await connection.fetchval(_READS):
        return [CheckResult("may_insert", ok=False, detail=only_reads(role), remedy=_READER)]
    found = [
        _none_of(
            "may_insert",
            [f"role {role} lacks {right}" for right in lacking],
            f"role {role} may append records",
            _ROLES,
        )
    ]
    if await connection.fetchval("SELECT has_table_privilege('audit.schema_version', 'SELECT')"):
        found.insert(0, _schema_version(await pg_catalog.schema_version(connection)))
    else:
        found.insert(0, CheckResult("schema_version", None, "this role may not see it", _ROLES))
    if not await connection.fetchval(
        "SELECT has_function_privilege('audit.exceptional_rows()', 'EXECUTE')"
    ):
        return [*found, CheckResult("exceptions", None, "this role may not see them", _ROLES)]
    if not lacking:
        found.append(await _takes_records(connection))
    rows = await connection.fetchrow("SELECT * FROM audit.exceptional_rows()")
    assert rows is not None  # noqa: S101 - a function without SETOF has a row
    in_default, in_quarantine = rows
    return [
        *found,
        CheckResult(
            "default_partition",
            True if not in_default else None,
            f"{in_default} rows in audit.audit_logs_default",
            "partitions were missing, or clocks wrong: `otel-audit maintain` names the months, "
            "which cannot be retired before `otel-audit maintain --month YYYY-MM` was run for each"
            if in_default
            else "",
        ),
        CheckResult(
            "quarantine",
            True if not in_quarantine else None,
            f"{in_quarantine} rows in audit.quarantine",
            "see their reason; the records are there in full" if in_quarantine else "",
        ),
    ]


async def _look_at_app(connection: Connection[Any], app_dsn: str) -> CheckResult:
    """Whether the application's own role stands above the guards of the store."""
    try:
        async with _opened(app_dsn) as app_connection:
            app = await app_connection.fetchrow(_SERVER)
    except StoreError:
        return CheckResult(
            "app_role",
            None,
            "the application's database cannot be reached",
            "correct the application's DSN that was given",
        )
    store = await connection.fetchrow(_SERVER)
    assert app is not None  # noqa: S101 - a SELECT without FROM has a row
    assert store is not None  # noqa: S101 - a SELECT without FROM has a row
    if app["started"] != store["started"]:
        return CheckResult("app_role", ok=True, detail="the application uses another server")
    role = app["role"]
    rights = [
        *await pg_catalog.role_powers(connection, role),
        *(f"may {right}" for right in await pg_catalog.changing_rights(connection, role)),
    ]
    return _none_of(
        "app_role",
        [f"role {role} {right}" for right in rights],
        f"the application's role {role} has no power over the store",
        "give the application a role of its own, and the store to otel_audit_owner: "
        "run `otel-audit init --roles`",
    )


@asynccontextmanager
async def _opened(dsn: str) -> AsyncIterator[Connection[Any]]:
    connection = await connect(dsn, _CONNECT_TIMEOUT)
    try:
        yield connection
    finally:
        await disconnect(connection)


def _server_version(server: Any) -> CheckResult:
    detail, major = f"PostgreSQL {server['version']}", server["major"]
    if major < OLDEST_SERVER:
        return CheckResult(
            "server_version",
            ok=False,
            detail=detail,
            remedy=f"upgrade to PostgreSQL {OLDEST_SERVER} or newer",
        )
    if major > NEWEST_SERVER:
        return CheckResult(
            "server_version",
            None,
            detail,
            f"tested up to {NEWEST_SERVER}: look for a newer otel-audit",
        )
    return CheckResult("server_version", ok=True, detail=detail)


def _durability(server: Any) -> CheckResult:
    if server["standby"]:
        return CheckResult(
            "durability",
            ok=False,
            detail="the server is a read-only standby",
            remedy="let OTEL_AUDIT_DSN name the primary",
        )
    return _judged(
        "durability",
        server["fsync"],
        "a commit is on disk",
        "fsync is off: a crash of the machine loses records",
        "set fsync = on in postgresql.conf",
    )


def _encoding(server: Any) -> CheckResult:
    return _judged(
        "encoding",
        server["encoding"] == "UTF8",
        "UTF8",
        server["encoding"],
        "create the database with ENCODING 'UTF8'",
    )


def _schema_version(version: int) -> CheckResult:
    try:
        refuse_version(version)
    except StoreError as error:
        problem, _, remedy = str(error).rpartition(": ")
        return CheckResult("schema_version", ok=False, detail=problem, remedy=remedy)
    return CheckResult("schema_version", ok=True, detail=f"version {version}")


def _partitions(present: set[str]) -> CheckResult:
    this_month = datetime.now(UTC).replace(day=1)
    next_month = this_month + timedelta(days=32)  # past the end of any month, not past two
    wanted = [f"audit_logs_{month:%Y_%m}" for month in (this_month, next_month)]
    # without it a record of another month is refused
    wanted.append("audit_logs_default")
    return _none_of(
        "partitions",
        [f"audit.{name} is missing" for name in wanted if name not in present],
        "this month's, the next one's and the default one are there",
        f"{INIT}, which makes them; a table of that name that was detached keeps it from that: "
        "ALTER TABLE audit.audit_logs ATTACH PARTITION",
    )


def _none_of(name: str, problems: list[str], fine: str, remedy: str) -> CheckResult:
    listed = problems[:_LISTED]
    if len(problems) > _LISTED:
        listed.append(f"and {len(problems) - _LISTED} more")
    return _judged(name, not problems, fine, "; ".join(listed), remedy)


def _judged(name: str, ok: bool, fine: str, wrong: str, remedy: str) -> CheckResult:  # noqa: FBT001
    if ok:
        return CheckResult(name, ok=True, detail=fine)
    return CheckResult(name, ok=False, detail=wrong, remedy=remedy)


async def _is_current(connection: Connection[Any]) -> bool:
    """Whether all migrations are applied; what is missing else comes with them."""
    try:
        return await pg_catalog.schema_version(connection) == latest_version()
    except InsufficientPrivilegeError:
        return False
