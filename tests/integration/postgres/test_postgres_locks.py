"""Whoever may connect can take any advisory lock, and stops nothing by it once there is a store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import otel_audit_postgres
import pytest
from otel_audit_postgres import migrate
from otel_audit_postgres.outbox import init_outbox
from otel_audit_postgres.schema.uninstall import uninstall

from otel_audit.errors import StoreUnavailableError

STORE_KEY, OUTBOX_KEY, LOOKING = 7301962839480013, 7301962839480014, 7368035


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "otel_audit_postgres.schema.lock.PATIENCE", "SET LOCAL lock_timeout = '200ms'"
    )


@pytest.fixture
async def stranger(audit_store: str) -> AsyncIterator[Any]:
    """A session that has no right but to connect."""
    connection = await asyncpg.connect(audit_store)
    await connection.execute(
        "DO $$ BEGIN CREATE ROLE passer_by; EXCEPTION WHEN duplicate_object THEN END $$"
    )
    await connection.execute("SET SESSION AUTHORIZATION passer_by")
    yield connection
    await connection.close()


async def test_the_stores_functions_take_none(audit_store):
    """A key is seen in pg_locks by everybody while it is held, so no key is a secret."""
    connection = await asyncpg.connect(audit_store)
    found = await connection.fetch(
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = 'audit' AND p.prosrc LIKE '%pg%advisory%lock(%'"
    )
    await connection.close()
    assert found == []


def test_the_package_takes_one_where_there_is_no_table_yet():
    """Nowhere else."""
    package = Path(otel_audit_postgres.__file__).parent
    found = [
        file.name for file in package.rglob("*.py") if "advisory_xact_lock(" in file.read_text()
    ]
    assert found == ["lock.py"]


async def test_a_look_on_somebodys_behalf_waits_for_nobody(audit_store, stranger):
    """Once in a transaction it is said for whom, whatever locks a stranger holds."""
    reader = await asyncpg.connect(audit_store)
    await stranger.execute("SELECT pg_advisory_lock($1, $2)", LOOKING, reader.get_server_pid())
    async with reader.transaction(readonly=True):
        await reader.execute("SET LOCAL lock_timeout = '200ms'")
        await reader.execute("SELECT audit.look_as(ARRAY['acme'])")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="said already"):
            async with reader.transaction():
                await reader.execute("SELECT audit.look_as(NULL)")
    async with reader.transaction(readonly=True):
        await reader.execute("SELECT * FROM audit.scope()")
        await reader.execute("SELECT audit.look_as(NULL)")
    await reader.close()


async def test_migrating_and_removing_wait_for_no_stranger(audit_store, stranger):
    """Nor does the outbox, once it is there."""
    await init_outbox(audit_store)
    await stranger.execute("SELECT pg_advisory_lock($1)", STORE_KEY)
    await stranger.execute("SELECT pg_advisory_lock($1)", OUTBOX_KEY)
    assert "up to date" in (await migrate(audit_store)).lines[0]
    assert "in place" in (await init_outbox(audit_store))[0]
    for attempt in (
        "LOCK TABLE audit.schema_version IN ACCESS SHARE MODE",
        "LOCK TABLE audit.scope_key IN ROW SHARE MODE",
        "LOCK TABLE audit.stream_locks IN ROW SHARE MODE",
        "SELECT FROM audit.stream_locks FOR UPDATE",
        "SELECT audit.hold_stream('siem')", "SELECT audit.lock_erasures()",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with stranger.transaction():
                await stranger.execute(attempt)
    assert "removed" in (await uninstall(audit_store))[0]


async def test_a_migration_waits_for_another_one_and_names_it(audit_store):
    """Two at once are one after the other; records are written meanwhile."""
    other = await asyncpg.connect(audit_store, server_settings={"application_name": "deploying"})
    async with other.transaction():
        await other.execute("LOCK TABLE audit.schema_version IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(
            StoreUnavailableError, match=r"application 'deploying'.*pg_terminate_backend\(\d+\)"
        ):
            await migrate(audit_store)
    await other.close()
    assert "up to date" in (await migrate(audit_store)).lines[0]
