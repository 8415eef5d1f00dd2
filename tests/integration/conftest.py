"""Fixtures of the tests on a real database: a connection, and the application's own tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

EngineWith = Callable[[MetaData], Awaitable[AsyncEngine]]


@pytest.fixture(autouse=True)
def _counts_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of a page is given up after some milliseconds, which a busy machine may take."""
    monkeypatch.setattr("otel_audit_postgres.query.counts.LEAST_MS", 30_000)
    monkeypatch.setattr("otel_audit_postgres.query.payloads._TIMEOUT_MS", 30_000)


@pytest.fixture
async def connection(audit_store: str) -> AsyncIterator[Any]:
    """A connection of the store's owner."""
    connection = await asyncpg.connect(audit_store)
    yield connection
    await connection.close()


@pytest.fixture
async def engine_with(database: str) -> AsyncIterator[EngineWith]:
    """Makes the application's engine, on a database of its own in which the given tables are."""
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))

    async def create(tables: MetaData) -> AsyncEngine:
        async with engine.begin() as connection:
            await connection.run_sync(tables.create_all)
        return engine

    yield create
    await engine.dispose()
