"""Changes beside requests: when the client has its answer already, and where there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import otel_audit
from otel_audit import AuditConfig


class Base(DeclarativeBase):
    pass


class Mail(Base):
    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str]


DEAR = "".join(f'{{"key{n}_password": "value {n}", ' for n in range(60))
"""A text that costs much to redact."""


@pytest.fixture
async def shop(engine_with: Any, audit_store: str) -> AsyncIterator[FastAPI]:
    engine = await engine_with(Base.metadata)
    sessions = async_sessionmaker(engine)
    app = FastAPI()
    app.state.later = []

    async def write(subject: str) -> None:
        async with sessions() as opened:
            opened.add(Mail(subject=subject))
            await opened.commit()

    @app.post("/orders")
    async def create(tasks: BackgroundTasks) -> None:
        tasks.add_task(write, "thank you")

    @app.post("/newsletters")
    async def send(tasks: BackgroundTasks) -> None:
        async def write_all() -> None:
            async with sessions() as opened:
                opened.add_all(Mail(subject=f"{n} {DEAR}") for n in range(60))
                await opened.commit()

        await write("the first")
        tasks.add_task(write_all)

    @app.post("/exports")
    async def export() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for number in range(3):
                await write(f"line {number}")
                yield f"{number}\n"

        return StreamingResponse(lines())

    @app.post("/forgotten")
    async def forgotten() -> None:
        async def much_later() -> None:
            await asyncio.sleep(0.2)
            await write("much later")

        app.state.later.append(asyncio.create_task(much_later()))

    config = AuditConfig(dsn=audit_store, batch_interval=0.01)
    otel_audit.instrument(app, app_engine=engine, config=config)
    yield app
    await asyncio.to_thread(otel_audit.uninstrument)


async def rows_after(app: FastAPI, path: str, store: str) -> list[Any]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.post(path)
    await asyncio.gather(*app.state.later)
    return await rows_of(store)


async def rows_of(store: str) -> list[Any]:
    assert await asyncio.to_thread(otel_audit.flush, 60)
    connection = await asyncpg.connect(store)
    try:
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")
    finally:
        await connection.close()


class TestBackgroundWork:
    async def test_what_a_background_task_commits_is_in_the_requests_row(self, shop, audit_store):
        """It is the same action, though the client has long had its answer."""
        (row,) = await rows_after(shop, "/orders", audit_store)
        assert (row["entities"], row["transaction_outcome"]) == (["mail:1"], "committed")
        assert row["outcome"] == "success"

    async def test_what_is_cut_there_is_named_in_the_requests_row(self, shop, audit_store):
        """Also where the record at the answer had changes already, and none of them was cut."""
        (row,) = await rows_after(shop, "/newsletters", audit_store)
        payload = json.loads(row["payload"])
        assert len(payload["changes"]) == 61
        assert "WITHHELD" in payload["changes"][-1]["values"]["subject"][1]
        assert payload["metadata"]["audit.truncated"] == ["changes"]

    async def test_what_a_stream_commits_on_its_way_is_in_its_row(self, shop, audit_store):
        """Each transaction of the generator belongs to the one action."""
        (row,) = await rows_after(shop, "/exports", audit_store)
        assert sorted(row["entities"]) == ["mail:1", "mail:2", "mail:3"]

    async def test_what_outlives_the_action_gets_a_record_of_its_own(self, shop, audit_store):
        """A task that nobody awaits writes after the action: the process does, which names it."""
        completed, changes = await rows_after(shop, "/forgotten", audit_store)
        assert (completed["phase"], completed["entities"]) == ("completed", [])
        assert (changes["event_name"], changes["entities"]) == ("database.changed", ["mail:1"])
        assert (changes["outcome"], changes["actor_type"]) == ("success", "system")
        begun_in = json.loads(changes["payload"])["metadata"]["audit.begun_in"]
        assert begun_in == str(completed["action_id"])


class TestOutsideAnyAction:
    @pytest.fixture(autouse=True)
    async def _end(self) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(otel_audit.uninstrument)

    async def test_a_transaction_of_a_script_is_a_record_of_its_own(self, engine_with, audit_store):
        """A committed transaction outside any action is recorded, by the process itself."""
        engine = await engine_with(Base.metadata)
        otel_audit.instrument(app_engine=engine, config=AuditConfig(dsn=audit_store))
        async with AsyncSession(engine) as session, session.begin():
            session.add(Mail(subject="hello"))
        (row,) = await rows_of(audit_store)
        assert (row["event_name"], row["action"]) == ("database.changed", "CREATE")
        assert (row["actor_type"], row["transaction_outcome"]) == ("system", "committed")
        assert row["entities"] == ["mail:1"]

    async def test_it_may_be_switched_off(self, engine_with, audit_store):
        """orm_outside_actions=false leaves such transactions out."""
        engine = await engine_with(Base.metadata)
        config = AuditConfig(dsn=audit_store, orm_outside_actions=False)
        otel_audit.instrument(app_engine=engine, config=config)
        async with AsyncSession(engine) as session, session.begin():
            session.add(Mail(subject="hello"))
        assert await rows_of(audit_store) == []
