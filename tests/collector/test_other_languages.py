"""A program in Go with nothing but its stock OpenTelemetry SDK writes a row."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import asyncpg
import pytest
from collector.senders import all_stored_once

pytestmark = pytest.mark.collector


@pytest.fixture(scope="session")
def go_sender(tmp_path_factory) -> Path:
    """The program of go_sender/, built."""
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if go is None:
        if os.environ.get("TEST_COLLECTOR_REQUIRED"):
            pytest.fail("Go is needed")
        pytest.skip("Go is not installed; get it from https://go.dev/dl")
    target = tmp_path_factory.mktemp("go") / "sender"
    source = Path(__file__).parent / "go_sender"
    subprocess.run([go, "build", "-o", str(target), "."], cwd=source, check=True)
    return target


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first time Go fetches and builds all of the SDK
async def test_a_span_of_the_go_sdk_is_a_complete_row(pipeline, go_sender):
    """The mandatory attributes are enough; what else the program says is there too."""
    with pipeline() as it:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": it.url, "PATH": os.environ["PATH"]}
        subprocess.run([str(go_sender), "from-go"], check=True, env=environment, timeout=60)
        await all_stored_once(it.store, ["from-go"])
        connection = await asyncpg.connect(it.store)
        try:
            row = await connection.fetchrow("SELECT * FROM audit.audit_logs")
        finally:
            await connection.close()
    payload = json.loads(row["payload"])
    assert row["event_name"] == "invoice.approved"
    assert (row["actor_id"], row["actor_type"]) == ("u-42", "user")
    assert (row["action"], row["outcome"], row["phase"]) == ("UPDATE", "success", "completed")
    assert (row["tenant_id"], row["service_name"]) == ("acme", "billing-go")
    assert (row["target_type"], row["target_id"]) == ("invoice", "4711")
    assert row["entities"] == ["invoice:4711"]
    assert len(row["trace_id"]) == 32
    assert len(row["span_id"]) == 16
    assert payload["actor"]["roles"] == ["clerk", "approver"]
    assert payload["metadata"] == {"amount": "12.50", "currency": "EUR"}
    assert payload["resource"]["service.name"] == "billing-go"
    assert row["content_hash"]
