"""Whoever is cancelled at BEGIN leaves no connection behind in which a later COMMIT is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from otel_audit_postgres.connection import connect, disconnect
from otel_audit_postgres.query.pool import TrailPool

TURNS = range(7)
"""Turns of the loop after which it is cancelled: BEGIN takes about four."""


@pytest.fixture
async def dsn(database, request) -> str:
    connection = await asyncpg.connect(database)
    await connection.execute("CREATE TABLE looks (turn integer)")
    await connection.close()
    return f"{database}&pgbouncer=true" if request.param == "pooled" else database


async def cancelled(work: Callable[[], Awaitable[None]], begun: asyncio.Event, turns: int) -> None:
    async def run() -> None:
        await work()

    task = asyncio.create_task(run())
    await begun.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def committed(dsn: str) -> list[int]:
    connection = await asyncpg.connect(dsn.replace("&pgbouncer=true", ""))
    try:
        return [row["turn"] for row in await connection.fetch("SELECT turn FROM looks ORDER BY 1")]
    finally:
        await connection.close()


KINDS = pytest.mark.parametrize("dsn", ["direct", "pooled"], indirect=True)


@KINDS
async def test_closes_the_connection(dsn):
    """So it is either as good as new, or gone: no statement of a later user joins what it began."""
    kept = 0
    for turn in TURNS:
        connection, begun = await connect(dsn), asyncio.Event()

        async def work(connection=connection, begun=begun) -> None:
            begun.set()
            async with connection.transaction():
                pass
            await asyncio.sleep(60)

        await cancelled(work, begun, turn)
        if not connection.is_closed() and not connection.is_in_transaction():
            kept += 1
            async with connection.transaction():
                await connection.execute("INSERT INTO looks VALUES (1)")
            assert await committed(dsn) == [1] * kept
        await disconnect(connection)


@KINDS
async def test_of_a_pools_user_costs_the_next_one_nothing(dsn):
    """What the next one writes is committed, and is there for others at once."""
    done = []
    for turn in TURNS:
        pool, begun = TrailPool(dsn, size=1), asyncio.Event()
        try:
            async with pool.connection() as connection:
                await connection.execute("SELECT")

            async def work(pool=pool, begun=begun) -> None:
                async with pool.connection() as connection:
                    begun.set()
                    async with connection.transaction():
                        await asyncio.sleep(60)

            await cancelled(work, begun, turn)
            async with pool.connection() as connection, connection.transaction():
                await connection.execute("INSERT INTO looks VALUES ($1)", turn)
            done.append(turn)
            assert await committed(dsn) == done
        finally:
            await pool.close()
