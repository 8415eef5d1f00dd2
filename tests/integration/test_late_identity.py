"""Who is named when the answer is out is described as any other: without a secret in the id."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI

import otel_audit
from otel_audit import AuditConfig

TOKEN = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"


async def rows_of(app: FastAPI, store: str, **settings: Any) -> list[dict[str, Any]]:
    otel_audit.instrument(app, config=AuditConfig(dsn=store, **settings))
    try:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.post("/orders")).status_code == 200
        assert await asyncio.to_thread(otel_audit.flush, 60)
    finally:
        await asyncio.to_thread(otel_audit.uninstrument)
    connection = await asyncpg.connect(store)
    try:
        return [dict(row) for row in await connection.fetch("SELECT * FROM audit.audit_logs")]
    finally:
        await connection.close()


def an_app(work: Any, *, late: bool) -> FastAPI:
    app = FastAPI()

    @app.post("/orders")
    async def create(tasks: BackgroundTasks) -> None:
        if late:
            tasks.add_task(work)
        else:
            work()

    return app


@pytest.mark.parametrize("late", [False, True], ids=["in the handler", "after the answer"])
async def test_no_secret_is_in_it(audit_store: str, *, late: bool) -> None:
    """An application may take a token for an id, at whatever time."""

    def work() -> None:
        otel_audit.set_actor(TOKEN, email=f"{TOKEN}@shop.example")
        otel_audit.set_tenant(TOKEN)
        with otel_audit.audit("order.packed"):
            pass

    rows = await rows_of(an_app(work, late=late), audit_store)
    assert {"order.created", "order.packed"} <= {row["event_name"] for row in rows}
    assert TOKEN not in str(rows)


async def test_it_is_named_as_in_the_handler(audit_store: str) -> None:
    """The role is the canonical one, and the last word is the application's."""

    def work() -> None:
        otel_audit.set_actor("clerk-1", role="Clerk")
        otel_audit.set_tenant("acme")

    rows = await rows_of(
        an_app(work, late=True), audit_store, actor_type_aliases={"Clerk": "tenant_user"}
    )
    (row,) = [row for row in rows if row["http_method"] == "POST"]
    assert (row["actor_id"], row["actor_role"]) == ("clerk-1", "tenant_user")
    assert row["tenant_id"] == "acme"
