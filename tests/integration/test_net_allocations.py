"""What a request leaves in memory while its record waits: the collector runs as often as that says.

Every 700 objects that were made and not freed are a run of the garbage collector, and every 121
runs one that looks at all objects of the process, which takes longer than most requests.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import otel_audit
from otel_audit import AuditConfig, Rule

TIMES = 50

MOST_FOR_A_READ = 6
MOST_FOR_A_WRITE = 12
"""Objects of a record that waits, those of its change of two columns included."""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


@pytest.fixture
async def engine(engine_with: Any) -> Any:
    return await engine_with(Base.metadata)


def make_shop(engine: Any) -> FastAPI:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    app = FastAPI()

    @app.get("/orders/{number}")
    async def read(number: int) -> dict[str, int]:
        return {"id": number}

    @app.post("/orders")
    async def write(order: dict[str, str]) -> dict[str, str]:
        async with sessions() as session:
            session.add(Order(note=order["note"]))
            await session.commit()
        return order

    return app


async def net_objects(app: FastAPI, method: str, path: str, body: Any = None) -> float:
    """Objects that one request has made, and that are not freed when it is over."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:

        async def ask() -> None:
            response = await client.request(method, path, json=body)
            assert response.is_success

        for _ in range(10):
            await ask()
        await asyncio.to_thread(otel_audit.flush, 60)
        gc.collect()
        gc.disable()
        try:
            before = gc.get_count()[0]
            for _ in range(TIMES):
                await ask()
            return (gc.get_count()[0] - before) / TIMES
        finally:
            gc.enable()


async def test_what_waits_is_few_objects(engine, audit_store):
    """A record that waits for the store keeps few objects that the garbage collector counts."""
    asked = {"read": ("GET", "/orders/7"), "write": ("POST", "/orders", {"note": "one"})}
    plain = make_shop(engine)
    alone = {name: await net_objects(plain, *how) for name, how in asked.items()}
    app = make_shop(engine)
    rules = (Rule("request_response", paths=("/**",)),)
    # nothing is delivered meanwhile: each record waits
    config = AuditConfig(dsn=audit_store, batch_interval=60, policy_rules=rules)
    otel_audit.instrument(app, app_engine=engine, config=config)
    try:
        added = {name: await net_objects(app, *how) - alone[name] for name, how in asked.items()}
    finally:
        await asyncio.to_thread(otel_audit.uninstrument)
    assert added["read"] <= MOST_FOR_A_READ
    assert added["write"] <= MOST_FOR_A_WRITE
