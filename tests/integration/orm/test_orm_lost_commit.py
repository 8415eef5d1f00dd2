"""Connections that break in the middle of COMMIT: what was told is never better than what is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest
from commit_proxy import CommitProxy, commit_proxy
from fastapi import FastAPI
from otel_audit_postgres.outbox import init_outbox
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

import otel_audit
from otel_audit import AuditConfig


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payment"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


@dataclass
class Shop:
    """An application that reaches its database through the proxy; the audit store is elsewhere."""

    engine: AsyncEngine
    proxy: CommitProxy
    direct: str
    store: str

    def session(self) -> AsyncSession:
        return AsyncSession(self.engine, expire_on_commit=False)

    async def pay(self, amount: int = 5) -> None:
        async with self.session() as session:
            session.add(Payment(amount=amount))
            await session.commit()

    async def amounts(self) -> list[int]:
        return [row["amount"] for row in await _fetch(self.direct, "SELECT amount FROM payment")]

    async def waiting(self) -> list[dict[str, Any]]:
        rows = await _fetch(self.direct, "SELECT record FROM audit.outbox ORDER BY record_id")
        return [json.loads(row["record"]) for row in rows]

    async def stored(self) -> dict[str, dict[str, Any]]:
        """What the store has, by phase; one of each at the most."""
        assert await asyncio.to_thread(otel_audit.flush, 60)
        rows = await _fetch(self.store, "SELECT payload::text AS text FROM audit.audit_logs")
        records = [json.loads(row["text"]) for row in rows]
        found = {record["phase"]: record for record in records}
        assert len(found) == len(records)
        return found


async def _fetch(dsn: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


@pytest.fixture
async def shop(database: str, audit_store: str) -> AsyncIterator[Shop]:
    async with commit_proxy(database) as proxy:
        engine = create_async_engine(proxy.url(), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        assert (proxy.commits, proxy.broken) == (1, 0)
        yield Shop(engine, proxy, database, audit_store)
        await engine.dispose()


@pytest.fixture
async def observed(shop: Shop) -> AsyncIterator[Shop]:
    config = AuditConfig(dsn=shop.store, orm="observed", batch_interval=0.01)
    otel_audit.instrument(app_engine=shop.engine, config=config)
    yield shop
    await asyncio.to_thread(otel_audit.uninstrument)


@pytest.fixture
async def transactional(shop: Shop, postgres) -> AsyncIterator[Shop]:
    """The outbox is set up; a test itself says when its relay begins."""
    await postgres.execute(
        "DO $$ BEGIN CREATE ROLE shop_relay LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"
    )
    await init_outbox(shop.direct, application="postgres", relay="shop_relay")
    _begin_transactional(shop, relay=False)
    yield shop
    await asyncio.to_thread(otel_audit.uninstrument)


def _begin_transactional(shop: Shop, *, relay: bool) -> None:
    config = AuditConfig(
        dsn=shop.store, orm="transactional", outbox_dsn=shop.direct, outbox_relay=relay,
        batch_interval=0.01, outbox_interval=0.2,
    )  # fmt: skip
    otel_audit.instrument(app_engine=shop.engine, config=config)


async def _relay(shop: Shop) -> None:
    await asyncio.to_thread(otel_audit.uninstrument)
    _begin_transactional(shop, relay=True)


class TestObserved:
    async def test_nothing_is_lost(self, observed):
        """The proxy alone changes nothing: a commit that is answered is a success."""
        with otel_audit.audit("payment.made"):
            await observed.pay()
        record = (await observed.stored())["completed"]
        assert (record["outcome"], record["transaction"]) == ("success", "committed")

    @pytest.mark.parametrize(("lost", "amounts"), [("answer", [5]), ("commit", [])])
    async def test_lost(self, observed, lost, amounts):
        """Whether the server has the COMMIT or not, its client cannot tell: `unknown`."""
        observed.proxy.lose = lost
        with pytest.raises(DBAPIError), otel_audit.audit("payment.made"):
            await observed.pay()
        assert observed.proxy.broken == 1
        assert await observed.amounts() == amounts
        record = (await observed.stored())["completed"]
        assert record["transaction"] == "unknown"
        assert record["outcome"] == "unknown"
        (change,) = record["changes"]
        assert change["transaction"] == "unknown"
        assert change["values"]["amount"] == [None, 5]
        assert otel_audit.health()["capture_errors"] == 0

    @pytest.mark.parametrize("lost", ["answer", "commit"])
    async def test_error_that_the_application_swallows(self, observed, lost):
        """A block that ends well all the same is no success."""
        observed.proxy.lose = lost
        with otel_audit.audit("payment.made"), pytest.raises(DBAPIError):
            await observed.pay()
        record = (await observed.stored())["completed"]
        assert (record["outcome"], record["transaction"]) == ("unknown", "unknown")

    @pytest.mark.parametrize("lost", ["answer", "commit"])
    async def test_request_that_is_answered_well(self, shop, lost):
        """Nor is a request whose client has seen 201."""
        app = FastAPI()

        @app.post("/payments", status_code=201)
        async def pay() -> str:
            with pytest.raises(DBAPIError):
                await shop.pay()
            return "will be seen to"

        config = AuditConfig(dsn=shop.store, orm="observed", batch_interval=0.01)
        otel_audit.instrument(app, app_engine=shop.engine, config=config)
        try:
            shop.proxy.lose = lost
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                assert (await client.post("/payments")).status_code == 201
            record = (await shop.stored())["completed"]
        finally:
            await asyncio.to_thread(otel_audit.uninstrument)
        assert record["response"]["status_code"] == 201
        assert (record["outcome"], record["transaction"]) == ("unknown", "unknown")
        assert [change["transaction"] for change in record["changes"]] == ["unknown"]

    async def test_next_attempt_that_works(self, observed):
        """An application that tries again has made one change twice, maybe; both are told apart."""
        observed.proxy.lose = "answer"
        with otel_audit.audit("payment.made"):
            with pytest.raises(DBAPIError):
                await observed.pay(5)
            observed.proxy.lose = None
            await observed.pay(6)
        assert await observed.amounts() == [5, 6]
        record = (await observed.stored())["completed"]
        assert record["outcome"] != "success"
        assert [change["transaction"] for change in record["changes"]] == ["unknown", "committed"]

    @pytest.mark.parametrize("lost", ["answer", "commit"])
    async def test_outside_any_action(self, observed, lost):
        """The transaction of a script has its record, and that says the same."""
        observed.proxy.lose = lost
        with pytest.raises(DBAPIError):
            await observed.pay()
        record = (await observed.stored())["completed"]
        assert (record["outcome"], record["transaction"]) == ("unknown", "unknown")


class TestTransactional:
    async def test_answer_lost(self, transactional):
        """It was committed, and so the outbox has the entry, which says so."""
        transactional.proxy.lose = "answer"
        with pytest.raises(DBAPIError), otel_audit.audit("payment.made") as action:
            await transactional.pay()
        assert transactional.proxy.broken == 1
        assert await transactional.amounts() == [5]
        (told,) = await transactional.waiting()
        assert (told["phase"], told["transaction"]) == ("changes", "committed")
        assert told["action_id"] == action.action_id
        completed = (await transactional.stored())["completed"]
        assert (completed["outcome"], completed["transaction"]) == ("unknown", "unknown")
        assert completed["changes_total"] == 1
        assert completed["metadata"]["audit.changes.records"] == [told["record_id"]]
        assert otel_audit.health()["outbox_errors"] == 0

    async def test_answer_lost_and_relayed(self, transactional):
        """In the store the entry stands beside the action, which does not know of it."""
        transactional.proxy.lose = "answer"
        with pytest.raises(DBAPIError), otel_audit.audit("payment.made") as action:
            await transactional.pay()
        transactional.proxy.lose = None
        await _relay(transactional)
        stored = await transactional.stored()
        assert {record["action_id"] for record in stored.values()} == {action.action_id}
        assert (stored["changes"]["transaction"], stored["completed"]["transaction"]) == (
            "committed",
            "unknown",
        )
        assert stored["changes"]["changes"][0]["values"]["amount"] == [None, 5]
        assert await transactional.waiting() == []

    async def test_commit_lost(self, transactional):
        """It was not committed: no entry, and an action that says it does not know."""
        transactional.proxy.lose = "commit"
        with pytest.raises(DBAPIError), otel_audit.audit("payment.made"):
            await transactional.pay()
        assert transactional.proxy.broken == 1
        assert await transactional.amounts() == []
        assert await transactional.waiting() == []
        await _relay(transactional)
        stored = await transactional.stored()
        assert list(stored) == ["completed"]
        completed = stored["completed"]
        assert (completed["outcome"], completed["transaction"]) == ("unknown", "unknown")
        # the record that would tell it is named, and is not there: that is how it can be found out
        assert len(completed["metadata"]["audit.changes.records"]) == 1

    @pytest.mark.parametrize("lost", ["answer", "commit"])
    async def test_error_that_the_application_swallows(self, transactional, lost):
        """A block that ends well all the same is no success."""
        transactional.proxy.lose = lost
        with otel_audit.audit("payment.made"), pytest.raises(DBAPIError):
            await transactional.pay()
        completed = (await transactional.stored())["completed"]
        assert (completed["outcome"], completed["transaction"]) == ("unknown", "unknown")
