"""What single steps of the hot path cost. Figures, not assertions: machines are shared."""

from __future__ import annotations

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from otel_audit_postgres.rows import to_row
from strategies import a_record

from otel_audit.attributes import record_from_attributes, to_attributes
from otel_audit.config import AuditConfig
from otel_audit.ids import uuid7
from otel_audit.pipeline.provider import make_audit_tracer, trace_record
from otel_audit.record import AuditRecord, Body, Change, Request, Response, Source, Target, Tenant
from otel_audit.redaction import Redactor

BODY = msgspec.json.encode(
    {
        "customer_id": 17,
        "note": "please ring twice",
        "lines": [
            {"product": f"tea {number}", "quantity": number, "price": "12.50"}
            for number in range(14)
        ],
    }
)


@pytest.fixture(scope="module")
def record() -> AuditRecord:
    body = Body(content=msgspec.Raw(BODY), size=len(BODY), content_type="application/json")
    return a_record(
        tenant=Tenant(id="t1", slug="acme"),
        target=Target(type="order", id="123"),
        source=Source(address="10.0.0.1", user_agent="curl/8"),
        request=Request(id="r1", method="POST", route="/orders", path="/orders", body=body),
        response=Response(status_code=201, body=body),
        changes=(
            Change(
                operation="insert", entity="Order", table="orders", key={"id": 123},
                values={name: [None, name] for name in ("item", "note", "status")},
            ),
        ),
    )  # fmt: skip


def bench_uuid7(benchmark):
    benchmark(uuid7)


def bench_record_to_json(benchmark, record):
    benchmark(msgspec.json.encode, record)


def bench_record_to_row(benchmark, record):
    benchmark(to_row, record)


def bench_record_to_attributes(benchmark, record):
    benchmark(to_attributes, record)


def bench_attributes_to_record(benchmark, record):
    attributes = to_attributes(record)
    benchmark(
        lambda: record_from_attributes(
            attributes, name="order.created", start_time=1, end_time=2, trace=None,
            own_ids=("", ""), resource={},
        )
    )  # fmt: skip


def bench_audit_span(benchmark, record):
    """Only for whoever asked for audit spans."""
    benchmark(trace_record, make_audit_tracer(Resource.create()), record, None)


def bench_redact_a_clean_kilobyte(benchmark):
    redactor = Redactor.from_config(AuditConfig())
    benchmark(redactor.json_bytes, BODY)


def bench_redact_a_kilobyte_with_secrets(benchmark):
    redactor = Redactor.from_config(AuditConfig())
    body = BODY.replace(b'"note":"please', b'"password":"please', 1)
    assert b"[REDACTED]" in benchmark(redactor.json_bytes, body)
