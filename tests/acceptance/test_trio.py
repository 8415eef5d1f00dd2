"""A real server on Trio instead of asyncio: the same records, the same guarantees."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from servers import BIN, started

pytestmark = pytest.mark.slow

APP = """
import trio
from fastapi import FastAPI
import otel_audit

app = FastAPI()
seen = trio.Event()

@app.get("/up")
async def up() -> str:
    return "up"

@app.post("/enough")
async def enough() -> None:
    seen.set()

@app.post("/slow")
async def slow() -> None:
    await seen.wait()
    async with otel_audit.audit("report.written"):
        await trio.sleep(0)
"""


async def rows(store: str, *, until: int) -> list[Any]:
    """Read the store until it has so many rows."""
    connection = await asyncpg.connect(store)
    try:
        for _ in range(1_200):
            found = await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY recorded_at")
            if len(found) >= until:
                break
            await asyncio.sleep(0.05)
        return found
    finally:
        await connection.close()


async def test_a_server_on_trio_is_audited(tmp_path: Path, audit_store: str) -> None:
    """An intent before the handler, a record of what takes long, one of its end, one of ours."""
    (tmp_path / "app.py").write_text(APP)
    settings = {
        "OTEL_AUDIT_DSN": audit_store,
        "OTEL_AUDIT_DELIVERY": "strict",
        "OTEL_AUDIT_STRICT_TIMEOUT": "60",
        "OTEL_AUDIT_SPOOL_FSYNC": "always",
        "OTEL_AUDIT_LONG_ACTION_AFTER": "0.1",
    }

    def command(port: int) -> list[str]:
        bind = ["--bind", f"127.0.0.1:{port}"]
        return [str(BIN / "hypercorn"), "-k", "trio", "-w", "0", *bind, "app:app"]

    with started(tmp_path, settings, command) as server:
        server.wait_until_up()
        slowly = asyncio.to_thread(httpx.post, f"{server.url}/slow", timeout=60)
        answer = asyncio.create_task(slowly)
        # its intent, and that it takes long
        await rows(audit_store, until=2)
        assert httpx.post(f"{server.url}/enough", timeout=60).status_code == 200
        assert (await answer).status_code == 200
        found = await rows(audit_store, until=6)
        assert "otel_audit" not in server.output, server.output
    slow = [row for row in found if row["event_name"] == "slow.created"]
    assert {row["phase"] for row in slow} == {"intent", "started", "completed"}
    assert slow[0]["phase"] == "intent"
    assert len({row["action_id"] for row in slow}) == 1
    assert [row["outcome"] for row in slow if row["phase"] == "completed"] == ["success"]
    assert [row["phase"] for row in found if row["event_name"] == "report.written"] == ["completed"]
