"""A program whose OpenTelemetry SDK speaks gRPC to the agent writes rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import asyncpg
import grpc
import pytest
from collector.senders import MANDATORY, all_stored_once
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

pytestmark = [pytest.mark.collector, pytest.mark.slow, pytest.mark.timeout(300)]

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class GrpcExporter(SpanExporter):
    """OTLP over gRPC, with the SDK's own encoding."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.call = self.channel.unary_unary(EXPORT)
        self.refused = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        request = encode_spans(spans).SerializeToString()
        answer = ExportTraceServiceResponse.FromString(
            self.call(request, timeout=20, wait_for_ready=True)
        )
        self.refused += answer.partial_success.rejected_spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.channel.close()


async def test_flagged_spans_of_an_sdk_are_rows(pipeline):
    """All of the flagged ones, as they were said, and none of the others."""
    # no hex digits: sixteen of them may be a valid card number
    ids = [f"by-grpc-{number}" for number in range(50)]
    with pipeline() as it:
        exporter = GrpcExporter(f"127.0.0.1:{it.agent.ports['AGENT_GRPC']}")
        provider = TracerProvider(resource=Resource.create({"service.name": "billing-grpc"}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("billing")
        for request_id in ids:
            with tracer.start_as_current_span("GET /invoices"):
                carried = {
                    **MANDATORY, "audit.request.id": request_id, "audit.tenant.id": "acme",
                    "user.roles": ["clerk", "approver"], "http.response.status_code": 200,
                }  # fmt: skip
                tracer.start_span("invoice.paid", attributes=carried).end()
        provider.shutdown()

        assert exporter.refused == 0
        await all_stored_once(it.store, ids)
        connection = await asyncpg.connect(it.store)
        try:
            rows = await connection.fetch("SELECT * FROM audit.audit_logs")
        finally:
            await connection.close()
    for row in rows:
        payload = json.loads(row["payload"])
        assert (row["event_name"], row["action"]) == ("invoice.paid", "UPDATE")
        assert (row["tenant_id"], row["service_name"]) == ("acme", "billing-grpc")
        assert payload["actor"]["roles"] == ["clerk", "approver"]
        assert payload["response"]["status_code"] == 200
