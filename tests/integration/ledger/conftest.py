"""A store with rows, its sealer, its anchor, and an administrator who tampers with it."""

from __future__ import annotations

import asyncpg
import pytest
from ledger_store import Administrator, Log

from otel_audit._util import ratelimited_log


@pytest.fixture
def log(audit_store, tmp_path):
    ratelimited_log.forget()
    return Log(audit_store, tmp_path)


@pytest.fixture
async def connection(audit_store):
    connection = await asyncpg.connect(audit_store)
    yield connection
    await connection.close()


@pytest.fixture
def administrator(connection):
    return Administrator(connection)


@pytest.fixture
async def sealed(log):
    """Twenty-three rows, sealed in three blocks."""
    for count in (10, 1, 12):
        await log.write(count)
        await log.seal()
    return log
