"""Who inserts waits for a month that is dropped no longer than the lock's time."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest
from otel_audit_postgres.sink import PostgresSink
from strategies import a_record

from otel_audit._util.ids import uuid7

LONGEST = 2.5
TICK = 0.02


@pytest.mark.slow
async def test_inserts_wait_less_than_that(months):
    """While a reader keeps a transaction open, the run tries, gives way, and tries again."""
    ended = asyncio.Event()
    waits, gaps = [], []

    async def tick():
        """Note how long this process's own work, or the machine's, holds up whoever waits."""
        while not ended.is_set():
            begun = time.perf_counter()
            await asyncio.sleep(TICK)
            gaps.append(time.perf_counter() - begun - TICK)

    async def insert():
        sink = PostgresSink(months.dsn)
        while not ended.is_set():
            begun = time.perf_counter()
            await sink.write([a_record(record_id=uuid7())])
            waits.append(time.perf_counter() - begun)
        await sink.close()

    reader = await asyncpg.connect(months.dsn)
    transaction = reader.transaction()
    await transaction.start()
    await reader.fetchval("SELECT count(*) FROM audit.audit_logs")
    drops, third = [], asyncio.Event()

    def on_step(month, step):
        if step == "drop":
            drops.append(month)
            if len(drops) == 3:
                third.set()

    async def let_go():
        await third.wait()
        await transaction.rollback()

    writers = [asyncio.create_task(insert()) for _ in range(2)]
    ticking = asyncio.create_task(tick())
    freeing = asyncio.create_task(let_go())
    # one block at a time: who inserts without end is never sealed to the last row
    sealer = months.sealer()
    done = await months.retain(on_step=on_step, seal=sealer.seal)
    await sealer.close()
    ended.set()
    await asyncio.gather(*writers, freeing, ticking)
    await reader.close()
    assert len(done.dropped) == 3
    assert len(drops) >= 5
    assert max(waits) < LONGEST + max(gaps)
    await months.seal()
    assert (await months.check_all())[0].problems == ()
