"""Changes that no request contains: they are recorded too, and belong where they belong."""

from __future__ import annotations

import asyncio

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import otel_audit
from otel_audit import AuditConfig


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


@pytest.fixture
async def engine(database):
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await asyncio.to_thread(otel_audit.uninstrument)
    await engine.dispose()


async def rows_of(store: str) -> list[asyncpg.Record]:
    assert await asyncio.to_thread(otel_audit.flush, 10)
    connection = await asyncpg.connect(store)
    try:
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")
    finally:
        await connection.close()


class TestOutsideAnyAction:
    async def test_a_transaction_of_a_script_is_a_record_of_its_own(self, engine, audit_store):
        """A committed transaction outside any action is recorded, by the process itself."""
        otel_audit.instrument(app_engine=engine, config=AuditConfig(dsn=audit_store))
        async with AsyncSession(engine) as session, session.begin():
            session.add(Invoice(amount=5))
        (row,) = await rows_of(audit_store)
        assert (row["event_name"], row["action"]) == ("database.changed", "CREATE")
        assert (row["actor_type"], row["transaction_outcome"]) == ("system", "committed")
        assert row["entities"] == ["invoice:1"]

    async def test_it_may_be_switched_off(self, engine, audit_store):
        """orm_outside_actions=false leaves such transactions out."""
        config = AuditConfig(dsn=audit_store, orm_outside_actions=False)
        otel_audit.instrument(app_engine=engine, config=config)
        async with AsyncSession(engine) as session, session.begin():
            session.add(Invoice(amount=5))
        assert await rows_of(audit_store) == []


class TestAfterTheAction:
    async def test_a_late_commit_is_told_under_the_same_action(self, engine, audit_store):
        """What commits after the action's record was made gets a record with the same action id."""
        app, background = FastAPI(), set()
        otel_audit.instrument(app, app_engine=engine, config=AuditConfig(dsn=audit_store))
        go_on = asyncio.Event()

        async def later() -> None:
            async with AsyncSession(engine) as session:
                session.add(Invoice(amount=7))
                await session.flush()
                await go_on.wait()
                await session.commit()

        @app.post("/invoices")
        async def create() -> None:
            task = asyncio.create_task(later())
            background.add(task)
            await asyncio.sleep(0.1)

        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            await client.post("/invoices")
        go_on.set()
        await asyncio.gather(*background)
        told, late = await rows_of(audit_store)
        assert told["action_id"] == late["action_id"]
        assert (told["phase"], late["phase"]) == ("completed", "changes")
        assert (late["outcome"], late["entities"]) == ("success", ["invoice:1"])
