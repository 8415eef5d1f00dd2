"""Makes the database and the login roles of an audit store, where the administrator asks for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.connection import Connection, PostgresError, connect, disconnect
from otel_audit_postgres.errors import as_store_error, sqlstate
from otel_audit_postgres.schema.roles import quoted

_NO_SUCH_DATABASE: Final = "3D000"
_ALWAYS_THERE: Final = "postgres"
_OF_LOGIN: Final = ("user", "password", "passfile")
_BYTES: Final = 24
"""Bytes of chance in a password: 192 bits."""


@dataclass(frozen=True, slots=True)
class Created:
    """The result: what was created.

    Attributes:
        database: The database's name; None if it was there.
        dsns: A DSN for each login role that was made; its password is nowhere else.
    """

    database: str | None
    dsns: Mapping[str, str]


async def create_missing(dsn: str, logins: Iterable[str]) -> Created:
    """Make the database and login roles that are missing.

    Args:
        dsn: The audit store, as a role that may make databases and roles.
        logins: Names of the login roles.

    Returns:
        The result: what was created.

    Raises:
        ConfigurationError: The DSN names no database.
        StoreUnavailableError: The server cannot be reached.
        StoreError: A right is missing.
    """
    database = unquote(urlsplit(dsn).path.removeprefix("/"))
    if not database:
        raise ConfigurationError("--create: the DSN names no database: …/NAME")
    with suppress_instrumentation():
        made = await _make_database(dsn, database)
        connection = await connect(dsn)
        try:
            return Created(
                database if made else None,
                dict([pair async for pair in _roles(connection, dsn, logins)]),
            )
        except PostgresError as error:
            raise as_store_error(error, "make the login roles", sets_up=True) from error
        finally:
            await disconnect(connection)


def dsn_for(dsn: str, role: str, password: str | None = None) -> str:
    """Write a DSN with another login."""
    parts = urlsplit(dsn)
    hosts = parts.netloc.rpartition("@")[2]
    login = quote(role, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in _OF_LOGIN]
    query = f"?{urlencode(kept, quote_via=quote, safe='/')}" if kept else ""
    return f"postgresql://{login}@{hosts}{parts.path}{query}"


async def _make_database(dsn: str, database: str) -> bool:
    try:
        await disconnect(await connect(dsn))
    except StoreError as error:
        if error.__context__ is None or sqlstate(error.__context__) != _NO_SUCH_DATABASE:
            raise
    else:
        return False
    beside = urlsplit(dsn)._replace(path=f"/{_ALWAYS_THERE}").geturl()
    connection = await connect(beside)
    try:
        await connection.execute(
            f"CREATE DATABASE {quoted(database)} ENCODING 'UTF8' TEMPLATE template0"
        )
        await connection.execute(f"REVOKE ALL ON DATABASE {quoted(database)} FROM PUBLIC")
    except PostgresError as error:
        raise as_store_error(error, f"make the database {database}", sets_up=True) from error
    finally:
        await disconnect(connection)
    return True


async def _roles(connection: Connection[Any], dsn: str, logins: Iterable[str]) -> Any:
    database = await connection.fetchval("SELECT current_database()")
    for role in dict.fromkeys(logins):
        known = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)"
        if not await connection.fetchval(known, role):
            password = secrets.token_urlsafe(_BYTES)
            # no parameter can stand here; the password has letters, digits, - and _ alone
            await connection.execute(f"CREATE ROLE {quoted(role)} LOGIN PASSWORD '{password}'")
            yield role, dsn_for(dsn, role, password)
        await connection.execute(f"GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(role)}")
