"""The application on ASGI servers as they are, all settings from the environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from otel_audit_postgres import PostgresSink
from ports import free_port
from sinks import request, serving, span
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.server.credentials import new_token


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["hypercorn", "--bind", "{host}:{port}", "otel_audit.server:create_app()"],
        ["uvicorn", "--host", "{host}", "--port", "{port}", "otel_audit.server:app"],
    ],
)
async def test_it_serves(tmp_path, stored, actor, command):
    token, lines = new_token("test")
    (tmp_path / "tokens.toml").write_text(lines)
    port = free_port()
    address = f"127.0.0.1:{port}"
    name, *options = [part.format(host="127.0.0.1", port=port) for part in command]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    server = subprocess.Popen(
        [str(Path(sys.executable).parent / name), *options],
        env={**clean, "OTEL_AUDIT_DSN": stored.dsn,
             "OTEL_AUDIT_SERVE_TOKENS_FILE": str(tmp_path / "tokens.toml")},
        cwd=tmp_path,
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-protobuf"}
    body = request(span(1, audit__actor__id=actor))
    try:
        answer = await _answered(f"http://{address}/v1/traces", body, headers)
        assert answer.status_code == 200
        refused = httpx.post(f"http://{address}/v1/traces", content=body, timeout=30)
        assert refused.status_code == 401
    finally:
        server.terminate()
        assert server.wait(60) in (0, -signal.SIGTERM)

    (row,) = await stored.rows(actor)
    assert row["received_by"] == "token:test"


async def _answered(url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(url, content=body, headers=headers, timeout=30)
        time.sleep(0.1)
    raise AssertionError("not up")


async def test_a_default_partition_that_fills_is_told(tmp_path, audit_store):
    """The receiver reports rows of months without a partition, as an application does."""
    store = PostgresSink(audit_store)
    await store.write([a_record(record_id=uuid7(946_684_800 * 10**9)) for _ in range(3)])
    await store.close()

    with serving(tmp_path, audit_store) as receiver:
        assert receiver.traces(request(span(1))).status_code == 200
        assert receiver.client.get("/health").json()["default_partition_rows"] == 3
        assert "Rows in audit.audit_logs_default: 3, because of" in receiver.output
