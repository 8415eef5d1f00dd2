"""The common service: the work for receipts, and chains over several requests."""

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
from otel_audit.errors import StoreUnavailableError
from otel_audit.server import decode_protobuf
from otel_audit.server import service as service_module
from otel_audit.server.authentication import Authentication
from otel_audit.server.credentials import NOBODY
from otel_audit.server.errors import RequestError
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


def chained(number: int, previous: str | None = None) -> LogRecord:
    more = {} if previous is None else {"audit__sequence__previous_hash": previous}
    record = log(number, audit__sequence__stream_id="s-1", **more)
    record.attributes.extend(pairs({"audit.sequence.number": number}))
    return record


def links(store: MemoryStore) -> list[tuple[str, str | None]]:
    return [
        (one.event_name, None if one.received is None else one.received.link)
        for one in store.records.values()
    ]


BROKEN = [
    ("invoice.approved", None), ("invoice.approved", "broken"), ("audit.chain.broken", None),
    ("invoice.approved", "broken"), ("audit.chain.broken", None),
]  # fmt: skip


async def send(service: Service, *records: LogRecord) -> None:
    await service.take(decode_protobuf.logs(logs(*records)), NOBODY)


@pytest.mark.allow_errors
async def test_a_broken_chain_is_found_again_in_what_is_sent_again(service, store):
    """503 tells the sender to send the same again: the break must not be lost with the first."""
    await send(service, chained(1))
    again = [chained(2, "0" * 64), chained(3, "1" * 64)]
    for _ in range(2):
        store.error = StoreUnavailableError("gone")
        with pytest.raises(RequestError):
            await send(service, *again)
        store.error = None
        service.intake._away_until = 0.0
    await send(service, *again)

    assert links(store) == BROKEN
    assert service.meters.counts["chains.broken"] == 2

    await send(service, *again)
    assert service.meters.counts["chains.broken"] == 2


async def test_a_chain_is_followed_into_a_request_that_comes_before_the_other_is_stored(
    service, store
):
    store.gate = asyncio.Event()
    parts = []
    for part in ([chained(1)], [chained(2, "0" * 64)], [chained(3, "1" * 64)]):
        parts.append(asyncio.create_task(send(service, *part)))
        await asyncio.sleep(0.1)
    store.gate.set()
    await asyncio.gather(*parts)

    assert sorted(links(store), key=str) == sorted(BROKEN, key=str)
