"""An application whose records leave over OTLP, and what its operator sees of it."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_audit_otlp import OtlpAuditExporter
from otlp_receiver import Answer, Receiver, receiving

import otel_audit
from otel_audit import AuditConfig, ConfigurationError
from otel_audit.delivery.factory import local_quarantine

FLAGGED = {
    "audit.flagged": True,
    "audit.actor.id": "u1",
    "audit.actor.type": "user",
    "audit.action": "CREATE",
    "audit.outcome": "success",
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def shop(receiver: Receiver) -> Iterator[Callable]:
    """Makes an audited application that answers in memory; gives what asks it."""

    def make(**settings: object) -> Callable:
        app = FastAPI()

        @app.post("/orders/{number}", status_code=201)
        async def create(number: str) -> str:
            return number

        config = AuditConfig(otlp_endpoint=receiver.url, batch_interval=0.01, **settings)
        otel_audit.instrument(app, config=config)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")
        return lambda number: client.post(f"/orders/{number}")

    yield make
    otel_audit.uninstrument()


async def flushed() -> bool:
    # seven failures one after another take up to 13 seconds of pauses
    return await asyncio.to_thread(otel_audit.flush, 40)


class TestDelivery:
    async def test_a_request_arrives_as_a_record(self, shop, receiver):
        """What an application does is sent, and the spool is empty then."""
        ask = shop()
        assert (await ask(7)).status_code == 201
        assert await flushed()
        (record,) = receiver.stored
        assert (record.request.path, record.response.status_code) == ("/orders/7", 201)
        assert record.target.id == "7"
        health = otel_audit.health()
        assert (health["exported"], health["queue_depth"], health["healthy"]) == (1, 0, True)

    async def test_retry_after_is_honoured(self, shop, receiver):
        """The receiver wants to be left alone for a second, and is, even when somebody hurries."""
        receiver.next = [Answer(503, headers={"Retry-After": "1"})]
        ask = shop()
        await ask(1)
        assert await flushed()
        first, second = receiver.asked
        assert second.at - first.at >= 1
        assert len(receiver.stored) == 1

    async def test_an_outage_ends(self, shop, receiver):
        """Failures of every kind, one after another: each record arrives, and none is given up."""
        receiver.next = [
            Answer(429), Answer(500), Answer(502), Answer(401), Answer(404), Answer(302),
            Answer(body=b"hello", content_type="text/plain"),
        ]  # fmt: skip
        ask = shop()
        for number in range(5):
            await ask(number)
        assert await flushed()
        assert sorted(record.target.id for record in receiver.stored) == list("01234")
        health = otel_audit.health()
        assert health["retries"] == 7
        assert (health["dropped"], health["quarantined"]) == (0, 0)

    async def test_what_is_refused_is_kept_here(self, shop, receiver, spool_directory, caplog):
        """A record that the receiver will not have: private, with its reason, counted, told."""
        receiver.decide = lambda asked: Answer(
            400 if any(record.target.id == "3" for record in asked.records) else 200
        )
        ask = shop()
        for number in range(5):
            await ask(number)
        assert await flushed()
        assert sorted(record.target.id for record in receiver.stored) == list("0124")
        health = otel_audit.health()
        assert (health["quarantined"], health["quarantine_files"]) == (1, 1)
        (file,) = local_quarantine(AuditConfig(exporter="none")).files()
        assert file.is_relative_to(spool_directory)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        said = json.loads(file.read_bytes())
        assert "status 400" in said["reason"]
        assert json.loads(said["received"])["target"]["id"] == "3"
        assert str(file.parent) in caplog.text

    async def test_its_own_requests_are_not_traced(self, shop, receiver, monkeypatch):
        """An instrumented HTTP client shows no span of ours."""
        seen: list[bool] = []
        real = httpx.AsyncHTTPTransport.handle_async_request

        async def watched(self: object, request: httpx.Request) -> httpx.Response:
            from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled

            seen.append(is_http_instrumentation_enabled())
            return await real(self, request)

        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", watched)
        await shop()(1)
        assert await flushed()
        assert seen
        assert not any(seen)

    async def test_a_proxy_of_the_environment_is_not_used(self, shop, receiver, monkeypatch):
        """Records go to the receiver that is named, and nowhere else."""
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        await shop()(1)
        assert await flushed()
        assert len(receiver.stored) == 1

    async def test_it_gives_no_receipts(self, shop, receiver):
        """A receiver does not say what it has stored; the error says what does."""
        shop()
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_EXPORTER=postgres"):
            await otel_audit.wait_for_receipt("0190a6b0-0000-7000-8000-000000000000")

    def test_a_wrong_setting_shows_at_the_start(self, monkeypatch):
        """Instrumenting fails, before any request."""
        config = AuditConfig(otlp_endpoint="http://127.0.0.1:4318/v1/logs")
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_OTLP_ENDPOINT"):
            otel_audit.instrument(FastAPI(), config=config)


class TestExporter:
    @pytest.fixture
    def exporter(self, receiver: Receiver) -> Iterator[OtlpAuditExporter]:
        config = AuditConfig(otlp_endpoint=receiver.url, batch_interval=0.01)
        exporter = OtlpAuditExporter(config)
        yield exporter
        exporter.shutdown(0)

    def spans(self, *attributes: dict) -> tuple:
        kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(kept))
        tracer = provider.get_tracer("theirs")
        for given in attributes:
            tracer.start_span("order.created", attributes=given).end()
        return kept.get_finished_spans()

    def test_flagged_spans_are_sent_as_records(self, exporter, receiver):
        """Others are ignored; secrets are taken out."""
        spans = self.spans({**FLAGGED, "audit.metadata": '{"password": "hunter2"}'}, {"a": 1})
        assert exporter.export(spans) is SpanExportResult.SUCCESS
        assert exporter.force_flush(60_000)
        (record,) = receiver.stored
        assert record.actor.id == "u1"
        assert record.span_id == trace.format_span_id(spans[0].context.span_id)
        assert record.metadata == {"password": "[REDACTED]"}

    def test_a_span_that_ends_in_the_middle_of_an_export_is_taken_too(
        self, exporter, receiver, monkeypatch
    ):
        """On the same thread: a signal handler ends it, or the garbage collector."""
        outer, inner = self.spans(FLAGGED), self.spans(FLAGGED)
        take = exporter._take

        def interrupted(span):
            monkeypatch.setattr(exporter, "_take", take)
            assert exporter.export(inner) is SpanExportResult.SUCCESS
            take(span)

        monkeypatch.setattr(exporter, "_take", interrupted)
        done = threading.Thread(target=exporter.export, args=(outer,), daemon=True)
        done.start()
        done.join(30)
        assert exporter.force_flush(60_000)
        assert len(receiver.stored) == 2

    def test_it_takes_over_while_the_receiver_is_away(self, exporter, receiver):
        """SUCCESS means kept, not yet sent; force_flush says what is true, within its time."""
        receiver.decide = lambda _: Answer(503)
        assert exporter.export(self.spans(FLAGGED)) is SpanExportResult.SUCCESS
        began = time.monotonic()
        assert not exporter.force_flush(300)
        assert 0.3 <= time.monotonic() - began < 30
        receiver.decide = lambda _: Answer()
        assert exporter.force_flush(60_000)
        assert len(receiver.stored) == 1

    def test_what_waits_at_the_shutdown_is_sent_by_the_next(self, receiver):
        """The spool outlives the exporter."""
        config = AuditConfig(otlp_endpoint=receiver.url, batch_interval=0.01)
        receiver.decide = lambda _: Answer(503)
        first = OtlpAuditExporter(config)
        first.export(self.spans(FLAGGED))
        first.shutdown(200)
        assert first.export(self.spans(FLAGGED)) is SpanExportResult.FAILURE
        assert receiver.stored == []
        receiver.decide = lambda _: Answer()
        second = OtlpAuditExporter(config)
        second.export(self.spans(FLAGGED))
        receiver.wait_for(2)
        second.shutdown()

    def test_a_span_that_lacks_something_is_kept_aside(self, exporter, receiver):
        """Without its mandatory attributes a span is no record; it is kept with the reason."""
        lacking = {name: value for name, value in FLAGGED.items() if name != "audit.actor.id"}
        assert exporter.export(self.spans(lacking)) is SpanExportResult.SUCCESS
        assert exporter.force_flush(60_000)
        (kept,) = local_quarantine(AuditConfig(exporter="none")).read()
        assert "audit.actor.id" in kept.refused.reason
        assert receiver.stored == []

    def test_under_a_batch_processor(self, exporter, receiver):
        """As the SDK uses it: in a thread of its own, flushed, shut down."""
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        for _ in range(100):
            provider.get_tracer("theirs").start_span("x", attributes=FLAGGED).end()
        assert provider.force_flush()
        assert exporter.force_flush(60_000)
        provider.shutdown()
        assert len({record.record_id for record in receiver.stored}) == 100

    def test_without_an_endpoint_it_does_not_begin(self):
        """It never sends where traces go."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_OTLP_ENDPOINT"):
            OtlpAuditExporter()
