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


async def rows(store: str, *, until: set[tuple[str, str]]) -> list[Any]:
    """Read the store until it has records of these events and phases."""
    connection = await asyncpg.connect(store)
    try:
        async with asyncio.timeout(60):
            while True:
                found = await connection.fetch(
                    "SELECT * FROM audit.audit_logs ORDER BY recorded_at"
                )
                if until <= {(row["event_name"], row["phase"]) for row in found}:
                    return found
                await asyncio.sleep(0.05)
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
        takes_long = {("slow.created", "intent"), ("slow.created", "started")}
        await rows(audit_store, until=takes_long)
        assert httpx.post(f"{server.url}/enough", timeout=60).status_code == 200
        assert (await answer).status_code == 200
        ended = {(f"{name}.created", "completed") for name in ("slow", "enough")}
        found = await rows(audit_store, until=ended | {("report.written", "completed")})
        assert "otel_audit" not in server.output, server.output
    slow = [row for row in found if row["event_name"] == "slow.created"]
    assert {row["phase"] for row in slow} == {"intent", "started", "completed"}
    assert slow[0]["phase"] == "intent"
    assert len({row["action_id"] for row in slow}) == 1
    assert [row["outcome"] for row in slow if row["phase"] == "completed"] == ["success"]
    report = [row["phase"] for row in found if row["event_name"] == "report.written"]
    assert report.count("completed") == 1
    # on a busy machine it takes long, too
    assert set(report) <= {"started", "completed"}
