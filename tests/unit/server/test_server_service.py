"""The common service: the work for receipts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from memory_store import MemoryStore
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from otel_audit_postgres.rows import to_row
from sinks import START, attributes, pairs

from otel_audit.config import AuditConfig
from otel_audit.delivery.sink import Receipt
from otel_audit.server import decode_protobuf
from otel_audit.server import service as service_module
from otel_audit.server.authentication import Authentication
from otel_audit.server.credentials import NOBODY
from otel_audit.server.metrics import ServerMetrics
from otel_audit.server.service import Service


class Store(MemoryStore):
    """Gives receipts as PostgreSQL does: of the text that a row holds."""

    async def receipts(self, record_ids: Sequence[str]) -> dict[str, Receipt]:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return {
            one: Receipt(one, to_row(self.records[one]).content_hash.hex(), now)
            for one in record_ids
            if one in self.records
        }


@pytest.fixture
def store():
    return Store()


@pytest.fixture
async def service(store):
    config = AuditConfig(serve_no_auth="anywhere")
    access = Authentication(None, False, "anywhere")
    made = Service(config, access, lambda: store, ServerMetrics())
    made.intake.start()
    yield made
    await made.intake.stop(1)


def log(number: int, **more: object) -> LogRecord:
    told = attributes(audit__actor__id="ada", audit__flagged=None, **more)
    return LogRecord(
        time_unix_nano=START + number,
        observed_time_unix_nano=START + number,
        event_name="invoice.approved",
        attributes=pairs(told),
        body=AnyValue(string_value="x"),
    )


def logs(*records: LogRecord) -> bytes:
    scopes = [ScopeLogs(log_records=list(records))]
    found = ExportLogsServiceRequest(resource_logs=[ResourceLogs(scope_logs=scopes)])
    return found.SerializeToString()


async def test_the_work_for_receipts_is_done_in_turns(service, monkeypatch):
    """A thousand receipts take a second: nobody else's request waits for all of them."""
    found: list[str] = []
    stored_hash = service_module.stored_hash

    def slow(payload: bytes) -> str | None:
        assert service.turns._is_busy, "outside any turn"
        found.append("receipt")
        time.sleep(0.003)
        return stored_hash(payload)

    async def other() -> None:
        while True:
            async with service.turns.of("other"):
                found.append("other")
            await asyncio.sleep(0)

    monkeypatch.setattr(service_module, "stored_hash", slow)
    asking = asyncio.create_task(other())
    body = logs(*(log(number) for number in range(1, 21)))
    outcome = await service.take(decode_protobuf.logs(body), NOBODY, receipts=True)
    asking.cancel()

    assert len(outcome.receipts) == 20
    assert all(one.integrity_hash for one in outcome.receipts.values())
    first, last = found.index("receipt"), len(found) - found[::-1].index("receipt")
    assert found[first:last].count("other") >= 5


async def test_a_large_records_receipt_is_made_beside_the_loop(service, monkeypatch):
    """One record alone may take longer than a turn."""
    ran_on = []
    stored_hash = service_module.stored_hash

    def noted(payload: bytes) -> str | None:
        try:
            asyncio.get_running_loop()
            ran_on.append("loop")
        except RuntimeError:
            ran_on.append("thread")
        return stored_hash(payload)

    monkeypatch.setattr(service_module, "stored_hash", noted)
    body = logs(log(1), log(2, audit__metadata=json.dumps({str(n): n for n in range(2_000)})))
    outcome = await service.take(decode_protobuf.logs(body), NOBODY, receipts=True)

    assert all(one.integrity_hash for one in outcome.receipts.values())
    assert sorted(ran_on) == ["loop", "thread"]
