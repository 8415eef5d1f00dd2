"""What the audit trail says of itself: the report, its endpoint, the metrics."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_audit_postgres import PostgresSink
from strategies import a_record

import otel_audit
from otel_audit import AuditConfig, ConfigurationError
from otel_audit._util.ids import uuid7


@pytest.fixture(autouse=True)
async def _leave_nothing() -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(otel_audit.uninstrument)


def make_app(config: AuditConfig) -> FastAPI:
    app = FastAPI()

    @app.post("/orders")
    async def create() -> None: ...

    otel_audit.instrument(app, config=config)
    return app


async def ask(app: FastAPI, method: str, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        return await client.request(method, path)


class TestEndpoint:
    async def test_a_healthy_trail_is_200(self, audit_store):
        """The report as JSON, which no cache may keep; the request itself is not recorded."""
        app = make_app(AuditConfig(dsn=audit_store, health_path="/healthz/audit"))
        await ask(app, "POST", "/orders")
        assert await asyncio.to_thread(otel_audit.flush, 60)
        answer = await ask(app, "GET", "/healthz/audit")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        report = answer.json()
        assert (report["healthy"], report["overdue"], report["queue_depth"]) == (True, False, 0)
        assert report["exported"] == report["emitted"] == 1

    async def test_what_waits_too_long_is_503(self, tmp_path):
        """A record that is older than the limit and not stored makes the process unhealthy."""
        config = AuditConfig(
            dsn=f"postgresql://nobody@/audit?host={tmp_path}",
            health_path="/healthz/audit",
            unhealthy_after=3,
            shutdown_timeout=0.1,
        )
        app = make_app(config)
        began = time.monotonic()
        await ask(app, "POST", "/orders")
        answer = await ask(app, "GET", "/healthz/audit")
        assert answer.status_code == 200 or time.monotonic() - began > 3
        while answer.status_code == 200:
            await asyncio.sleep(0.1)
            answer = await ask(app, "GET", "/healthz/audit")
        assert answer.status_code == 503
        assert answer.json()["overdue"] is True
        assert answer.json()["oldest_seconds"] > 3
        assert answer.json()["spool_bytes"] > 0

    @pytest.mark.allow_errors
    async def test_a_loss_is_not_forgotten(self, audit_store):
        """Once a record is lost the trail has a hole, however well later ones are stored."""
        app = make_app(AuditConfig(dsn=audit_store, health_path="/healthz/audit"))
        sys.modules["otel_audit._instrumentation"]._runtime._count_loss(RuntimeError("lost"))
        await ask(app, "POST", "/orders")
        assert await asyncio.to_thread(otel_audit.flush, 60)
        report = otel_audit.health()
        assert (report["healthy"], report["dropped"], report["exported"]) == (False, 1, 1)

    async def test_head_and_other_methods(self, audit_store):
        """HEAD has no body; what is no question is refused."""
        app = make_app(AuditConfig(dsn=audit_store, health_path="/healthz/audit"))
        head = await ask(app, "HEAD", "/healthz/audit")
        assert (head.status_code, head.content) == (200, b"")
        assert (await ask(app, "POST", "/healthz/audit")).status_code == 405

    async def test_by_default_there_is_none(self, audit_store):
        """Without the setting no path of the application is taken."""
        app = make_app(AuditConfig(dsn=audit_store))
        assert (await ask(app, "GET", "/healthz/audit")).status_code == 404

    def test_a_path_that_is_none_is_refused(self):
        """A setting that is no path is named at the start."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_HEALTH_PATH"):
            AuditConfig(health_path="healthz")


async def test_a_default_partition_that_fills_is_told(audit_store, caplog):
    """Rows of months without a partition are counted in the report, and a line says what to do."""
    sink = PostgresSink(audit_store)
    await sink.write([a_record(record_id=uuid7(946_684_800 * 10**9)) for _ in range(3)])
    await sink.close()
    app = make_app(AuditConfig(dsn=audit_store))
    await ask(app, "POST", "/orders")
    assert await asyncio.to_thread(otel_audit.flush, 60)
    assert otel_audit.health()["default_partition_rows"] == 3
    assert "Rows in audit.audit_logs_default: 3, because of" in caplog.text
    assert "otel-audit maintain" in caplog.text


class TestMetrics:
    async def test_every_count_and_gauge_is_offered(self, audit_store, monkeypatch):
        """The metrics of the application's own provider tell what happened to records."""
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
        app = make_app(AuditConfig(dsn=audit_store))
        await ask(app, "POST", "/orders")
        assert await asyncio.to_thread(otel_audit.flush, 60)
        (resource,) = reader.get_metrics_data().resource_metrics
        found = {
            metric.name: metric.data.data_points[0]
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        values = {name: getattr(point, "value", None) for name, point in found.items()}
        assert values["audit.records.emitted"] == values["audit.records.exported"] == 1
        assert values["audit.queue.depth"] == values["audit.records.dropped"] == 0
        assert values["audit.records.quarantined"] == values["audit.capture.errors"] == 0
        assert values["audit.spool.bytes"] > 0
        assert values["audit.spool.oldest_age"] == 0
        assert found["audit.export.duration"].count == 1
        provider.shutdown()
