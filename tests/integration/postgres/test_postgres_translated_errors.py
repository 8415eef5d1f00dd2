"""Which errors are the store's, and so are told in its words; all others are left as they are."""

from __future__ import annotations

import contextlib
import errno
import functools
import os

import asyncpg
import pytest
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.query import queries

from otel_audit import ConfigurationError, StoreError
from otel_audit.errors import StoreUnavailableError

EACH = pytest.mark.parametrize(
    "opened",
    [queries.opened, functools.partial(ledger_queries.opened, doing="read the audit store")],
    ids=["query", "ledger"],
)


@EACH
async def test_an_error_of_the_server_is_the_stores(audit_store, opened):
    """The message names the remedy, and never quotes the server."""
    with pytest.raises(StoreError, match="could not read the audit store: .*42P01") as told:
        async with opened(audit_store) as connection:
            await connection.fetch("SELECT secret FROM nowhere")
    assert "secret" not in str(told.value)


@EACH
async def test_a_connection_that_ends_is_the_stores(audit_store, opened):
    """Trying again may help: the kind of the error says so."""
    with pytest.raises(StoreUnavailableError):
        async with opened(audit_store) as connection:
            await connection.fetch("SELECT pg_terminate_backend(pg_backend_pid())")


@EACH
async def test_a_defect_is_no_error_of_the_store(audit_store, opened):
    """The command reports its place; as an error of the store it had none."""
    with pytest.raises(ZeroDivisionError):
        async with opened(audit_store):
            _ = 1 // 0


@EACH
@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EROFS])
async def test_an_error_of_a_file_is_not_the_connections(audit_store, opened, number):
    """A full disk is not told as a server that cannot be reached."""
    with pytest.raises(OSError, match=os.strerror(number)):
        async with opened(audit_store):
            raise OSError(number, os.strerror(number))


@EACH
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENAMETOOLONG])
async def test_an_error_that_names_a_file_is_not_the_connections(audit_store, opened, number):
    """Nor is a file that may not be read, whatever the number."""
    with pytest.raises(OSError, match="/nowhere"):
        async with opened(audit_store):
            raise OSError(number, os.strerror(number), "/nowhere")


@EACH
async def test_what_went_wrong_first_is_told(audit_store, opened):
    """Not that a transaction could not be undone after it, as its connection is gone."""
    with pytest.raises(ConfigurationError, match="first"):
        async with opened(audit_store) as connection, connection.transaction():
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
            raise ConfigurationError("first")
