"""Units of work that are too large for one record, or for memory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import asyncpg
import pytest
from orm_items import Item
from sqlalchemy.orm import Session

import otel_audit
from otel_audit import AuditConfig


async def rows_of(store: str) -> list[asyncpg.Record]:
    assert await asyncio.to_thread(otel_audit.flush, 60)
    connection = await asyncpg.connect(store)
    try:
        return await connection.fetch("SELECT *, payload::text AS text FROM audit.audit_logs")
    finally:
        await connection.close()


class TestContinuation:
    async def test_further_records(self, items, audit_store):
        """Beyond the bound there are further records, with the same action id and the same total."""
        config = AuditConfig(dsn=audit_store, orm_max_entries=100, batch_interval=0.01)
        otel_audit.instrument(app_engine=items, config=config)
        try:
            with (
                otel_audit.audit("items.imported", tenant="t1") as action,
                Session(items) as session,
            ):
                session.add_all([Item(name=str(number)) for number in range(250)])
                session.commit()
            rows = await rows_of(audit_store)
        finally:
            await asyncio.to_thread(otel_audit.uninstrument)
        records = [json.loads(row["text"]) for row in rows]
        records.sort(key=lambda record: record.get("metadata", {}).get("audit.part", 1))
        assert [len(record["changes"]) for record in records] == [100, 100, 50]
        assert [record["phase"] for record in records] == ["completed", "continued", "continued"]
        assert records[0]["record_id"] == action.record_id
        assert {record["action_id"] for record in records} == {action.action_id}
        assert {record["changes_total"] for record in records} == {250}
        assert {record["tenant"]["id"] for record in records} == {"t1"}
        assert sorted(record["sequence_number"] for record in records) == [1, 2, 3]
        names = [name for row in rows for name in row["entities"]]
        assert len(names) == len(set(names)) == 250

    async def test_outside_any_action(self, items, audit_store):
        """So it is for the transactions of a script."""
        config = AuditConfig(dsn=audit_store, orm_max_entries=100, batch_interval=0.01)
        otel_audit.instrument(app_engine=items, config=config)
        try:
            with Session(items) as session:
                session.add_all([Item(name=str(number)) for number in range(150)])
                session.commit()
            rows = await rows_of(audit_store)
        finally:
            await asyncio.to_thread(otel_audit.uninstrument)
        assert sorted(row["phase"] for row in rows) == ["completed", "continued"]
        assert len({row["action_id"] for row in rows}) == 1
        assert len({name for row in rows for name in row["entities"]}) == 150


LARGE = """
import json, resource, sys
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
import otel_audit
from otel_audit import AuditConfig

class Base(DeclarativeBase):
    pass

class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

store, rows = sys.argv[1], int(sys.argv[2])
engine = create_engine("sqlite://")
Base.metadata.create_all(engine)
config = AuditConfig(dsn=store, orm="observed", batch_interval=0.01, spool_max_bytes=2**30)
otel_audit.instrument(app_engine=engine, config=config)
with otel_audit.audit("items.warmed"), Session(engine) as session, session.begin():
    session.add_all([Item(name="warm") for _ in range(1500)])
assert otel_audit.flush(60)
before = peak()
with otel_audit.audit("items.imported"), Session(engine) as session, session.begin():
    # a flush at a time, as an import does, so that the objects themselves do not fill the memory
    for first in range(0, rows, 1000):
        session.add_all([Item(name=f"item {n}") for n in range(first, first + 1000)])
        session.flush()
        session.expunge_all()
written = peak()
assert otel_audit.flush(300)
print(json.dumps({"before": before, "written": written, "delivered": peak(),
                  "health": otel_audit.health()}))
otel_audit.uninstrument()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_hundred_thousand_rows(audit_store, tmp_path):
    """They are all there, and the process has not grown with their number."""
    rows = 100_000
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LARGE, audit_store, str(rows)],
        capture_output=True, text=True, check=False, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    connection = await asyncpg.connect(audit_store)
    stored = await connection.fetchrow(
        "SELECT count(*) AS records, sum(json_array_length(payload->'changes')) AS changes, "
        "count(DISTINCT action_id) AS actions FROM audit.audit_logs WHERE event_name = $1",
        "items.imported",
    )
    entities = await connection.fetchval(
        "SELECT count(DISTINCT name) FROM audit.audit_logs, unnest(entities) AS name "
        "WHERE event_name = 'items.imported'"
    )
    await connection.close()
    assert dict(stored) == {"records": 100, "changes": rows, "actions": 1}
    assert entities == rows
    assert told["health"]["dropped"] == 0
    # kilobytes; 100,000 changes as objects take more than 150 MB
    assert told["written"] - told["before"] < 40_000
    assert told["delivered"] - told["before"] < 80_000
