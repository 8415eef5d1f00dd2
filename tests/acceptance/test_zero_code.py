"""An application that knows nothing of us, run by opentelemetry-instrument."""

from __future__ import annotations

import signal
from pathlib import Path

import asyncpg
import httpx
import pytest
from servers import uvicorn

APP = """
from fastapi import FastAPI

app = FastAPI()

@app.get("/up")
def up():
    return "up"

@app.post("/orders", status_code=201)
def create(order: dict):
    return {"id": 1, **order}
"""

UNREACHABLE = "postgresql://nobody:hunter2@127.0.0.1:1/audit"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


async def rows_of(store: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(store)
    try:
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")
    finally:
        await connection.close()


def place_orders(url: str, count: int) -> None:
    with httpx.Client(base_url=url) as client:
        for _ in range(count):
            assert client.post("/orders", json={"item": "tea"}).status_code == 201


class TestZeroCode:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    async def test_every_action_is_a_row_after_an_orderly_stop(self, directory, audit_store, how):
        """Requests are rows; what still waits when the server is told to stop is delivered."""
        settings = {"OTEL_AUDIT_DSN": audit_store, "OTEL_AUDIT_BATCH_INTERVAL": "60"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 20)
            assert await rows_of(audit_store) == []
            server.stop(how)
        rows = await rows_of(audit_store)
        assert [row["event_name"] for row in rows] == ["order.created"] * 20
        assert sorted(row["sequence_number"] for row in rows) == list(range(1, 21))

    async def test_every_worker_process_delivers(self, directory, audit_store):
        """Under --workers each process is a producer of its own, and none loses a record."""
        with uvicorn(directory, {"OTEL_AUDIT_DSN": audit_store}, "--workers", "2") as server:
            server.wait_until_up()
            place_orders(server.url, 40)
            server.stop()
        assert len(await rows_of(audit_store)) == 40

    async def test_contribs_instrumentors_may_be_disabled(self, directory, audit_store):
        """Disabling contrib's FastAPI instrumentation leaves auditing on."""
        settings = {
            "OTEL_AUDIT_DSN": audit_store,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi,sqlalchemy",
        }
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 1)
            server.stop()
        assert len(await rows_of(audit_store)) == 1

    async def test_without_settings_nothing_is_audited_and_it_says_so(self, directory):
        """Installed but not configured: the application runs as ever, and a line says so."""
        with uvicorn(directory, {}) as server:
            server.wait_until_up()
            assert "x-request-id" not in httpx.get(f"{server.url}/up").headers
            server.stop()
            assert "NOT AUDITED: OTEL_AUDIT_DSN: missing" in server.output

    async def test_auditing_may_be_switched_off(self, directory, audit_store):
        """OTEL_AUDIT_ENABLED=false leaves no trace of us."""
        settings = {"OTEL_AUDIT_DSN": audit_store, "OTEL_AUDIT_ENABLED": "false"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            assert "x-request-id" not in httpx.get(f"{server.url}/up").headers
            server.stop()
            assert "AUDITED" not in server.output
        assert await rows_of(audit_store) == []

    async def test_the_exporter_may_be_named_beside_others(self, directory, audit_store):
        """OTEL_TRACES_EXPORTER=…,audit_postgres works, and is told to be best effort only."""
        settings = {
            "OTEL_AUDIT_DSN": audit_store,
            "OTEL_TRACES_EXPORTER": "console,audit_postgres",
        }
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 1)
            server.stop()
            assert "best effort" in server.output
            assert '"name": "POST /orders"' in server.output
        assert len(await rows_of(audit_store)) == 1


WRONG = [
    ({"OTEL_AUDIT_DSN": "mysql://db/audit"}, "OTEL_AUDIT_DSN"),
    ({"OTEL_AUDIT_DNS": "postgresql://db/audit"}, "OTEL_AUDIT_DNS"),
    ({"OTEL_AUDIT_DSN": UNREACHABLE, "OTEL_AUDIT_BODY_LIMIT": "lots"}, "OTEL_AUDIT_BODY_LIMIT"),
    ({"OTEL_AUDIT_DSN": UNREACHABLE, "OTEL_AUDIT_CONFIG_FILE": "no.toml"}, "CONFIG_FILE"),
]


class TestFaults:
    @pytest.mark.parametrize(("settings", "named"), WRONG)
    async def test_a_wrong_setting_leaves_the_application_running_and_is_named(
        self, directory, settings, named
    ):
        """Not required: the application starts, unaudited, and says loudly why."""
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            server.stop()
            assert "THIS APPLICATION IS NOT AUDITED" in server.output
            assert named in server.output

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            *WRONG,
            ({}, "OTEL_AUDIT_DSN"),
            ({"OTEL_AUDIT_DSN": UNREACHABLE}, "OTEL_AUDIT_DSN"),
            (
                {
                    "OTEL_AUDIT_DSN": UNREACHABLE,
                    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_audit",
                },
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
            ),
        ],
    )
    async def test_required_refuses_to_start(self, directory, settings, named):
        """Required: the process ends at once, says why, and shows no password."""
        with uvicorn(directory, {**settings, "OTEL_AUDIT_REQUIRED": "true"}) as server:
            assert server.process.wait(30) == 78
            assert named in server.output
            assert "Refusing to start" in server.output
            assert "hunter2" not in server.output
            assert "Traceback" not in server.output

    @pytest.mark.parametrize("required", ["true", "false"])
    async def test_a_missing_schema_names_the_remedy(self, directory, database, required):
        """A database without the schema: refuse if required, else start and say what to run."""
        settings = {"OTEL_AUDIT_DSN": database, "OTEL_AUDIT_REQUIRED": required}
        with uvicorn(directory, settings) as server:
            if required == "true":
                assert server.process.wait(30) == 78
            else:
                server.wait_until_up()
                place_orders(server.url, 1)
                server.stop(timeout=40)
            assert "otel-audit init" in server.output

    async def test_an_unreachable_store_is_told_and_losses_are_counted(self, directory):
        """Unreachable: the application answers; what could not be delivered is told at the end."""
        settings = {"OTEL_AUDIT_DSN": UNREACHABLE, "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "0.5"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 3)
            server.stop()
            assert "hunter2" not in server.output
            assert "Audit records wait" in server.output
            assert "3 audit records are lost" in server.output
