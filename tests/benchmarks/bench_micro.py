"""What single steps of the hot path cost. Figures, not assertions: machines are shared."""

from __future__ import annotations

import itertools
import time

import msgspec
import pytest
from jose import jwt
from opentelemetry.sdk.resources import Resource
from otel_audit_postgres.rows import to_row
from strategies import a_record

import otel_audit
from otel_audit._util.ids import uuid7
from otel_audit.attributes import record_from_attributes, to_attributes
from otel_audit.config import AuditConfig
from otel_audit.delivery.producer import make_audit_tracer, trace_record
from otel_audit.delivery.spool import FrameKind, open_spool
from otel_audit.identity.jwt.settings import verifier_from_config
from otel_audit.policy import Policy
from otel_audit.record import (
    Actor,
    AuditRecord,
    Body,
    Change,
    Request,
    Response,
    Source,
    Target,
    Tenant,
)
from otel_audit.redaction import Redactor
from otel_audit.testing import recorded

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
    benchmark(redactor.json_or_none, BODY)


def bench_redact_a_kilobyte_with_secrets(benchmark):
    redactor = Redactor.from_config(AuditConfig())
    body = BODY.replace(b'"note":"please', b'"password":"please', 1)
    assert b"[REDACTED]" in benchmark(redactor.json_or_none, body)


def bench_action_by_hand(benchmark):
    """A scope opened and closed, and its record made."""

    def act():
        with otel_audit.audit("report.built", actor="job-7"):
            pass

    with recorded():
        benchmark(act)


def bench_spool_append(benchmark, record, tmp_path):
    """The three frames of one action."""
    spool = open_spool(tmp_path, service="bench", fsync="never")
    payload = msgspec.json.encode(record)

    def append():
        record_id = uuid7()
        spool.append(FrameKind.OPENED, record_id, payload[:600])
        spool.append(FrameKind.ANSWERED, record_id, payload)
        position = spool.append(FrameKind.CLOSED, record_id, payload)
        spool.acknowledge([position])

    benchmark(append)
    spool.close()


def bench_policy(benchmark):
    """What a request's head may need, and what is decided at its end."""
    policy = Policy.from_config(AuditConfig())
    actor, numbers = Actor(id="user-1", type="user", verified=True), itertools.count()

    def ask():
        path = f"/api/v1/orders/{next(numbers)}/lines"
        policy.assess_head("POST", path)
        policy.decide(
            method="POST", path=path, route="/api/v1/orders/{order_id}/lines", status=201,
            actor=actor, tenant=None, wrote=True,
        )  # fmt: skip

    benchmark(ask)


KEY = "a shared key of forty characters, or so."


def a_token(number: int) -> str:
    claims = {"sub": f"user-{number}", "exp": int(time.time()) + 36_000, "email": "u@shop.example"}
    return jwt.encode(claims, KEY, algorithm="HS256")


def bench_token_seen_before(benchmark):
    verifier = verifier_from_config(AuditConfig(jwt_key=KEY, jwt_algorithms=("HS256",)))
    token = a_token(1)
    assert benchmark(verifier.verify, token).claims["sub"] == "user-1"


def bench_token_not_seen_before(benchmark):
    verifier = verifier_from_config(AuditConfig(jwt_key=KEY, jwt_algorithms=("HS256",)))
    tokens = itertools.cycle([a_token(number) for number in range(20_000)])
    benchmark(lambda: verifier.verify(next(tokens)))
