"""What is made of a span: redacted wherever a sender may have put a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hostile.bombs import export_request
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from sinks import pairs, request, span

from otel_audit.record import to_json
from otel_audit.redaction import Redactor
from otel_audit.server.convert import Converter, NotConvertible
from otel_audit.server.credentials import NOBODY, Sender
from otel_audit.server.decode_protobuf import spans
from otel_audit.server.request_budget import RequestBudget

SECRET = "sk_live_51H8abcdefghijklmnop"


@pytest.fixture
def reader() -> Converter:
    return Converter(Redactor(), b"k" * 32, 1 << 20)


def read(reader, sender=NOBODY, **told):
    (batch,) = spans(request(span(1, **told)))
    return reader.read(batch.items[0], sender)


@pytest.mark.parametrize("name", ["audit__tenant__id", "audit__tenant__slug"])
@pytest.mark.parametrize("bound_to", [None, SECRET])
def test_a_tenant_that_looks_like_a_secret(reader, name, bound_to):
    told = {"audit__tenant__id": bound_to or "acme", name: SECRET}
    record = read(reader, Sender("token:t", bound_to, None), **told)

    assert not isinstance(record, NotConvertible)
    if bound_to is None:
        assert SECRET not in to_json(record).decode()
    else:
        assert (record.tenant.id, record.tenant.slug) in {(SECRET, None), (SECRET, "[REDACTED]")}


@pytest.mark.parametrize("told", [SECRET, "a\0b", "1", "0198-not-a-uuid-at-all-but-of-36-chars"])
def test_an_id_that_is_no_uuid_is_no_id_in_the_quarantine(reader, told):
    mine = {"audit__record__id": told, "audit__actor__id": ""}
    found = read(reader, **mine)

    assert isinstance(found, NotConvertible)
    assert found.record_id == read(reader, audit__actor__id="").record_id
    assert SECRET not in str(found)


def test_an_id_that_is_one_is_found_by_it(reader):
    told = "0198c0de-0000-7000-8000-00000000abcd"

    assert read(reader, audit__record__id=told, audit__actor__id="").record_id == told


def resources_of(
    reader: Converter, *resources: Mapping[str, Any], ratio: int = 1
) -> list[dict[str, Any]]:
    """What is kept of the resources of a request with a group for each."""
    message = b"".join(
        export_request(ResourceSpans(
            resource=Resource(attributes=pairs(found)), scope_spans=[ScopeSpans(spans=[span(n)])]
        ))
        for n, found in enumerate(resources, 1)
    )  # fmt: skip
    allowance = RequestBudget(len(message) // ratio, len(message))
    items = [item for batch in spans(message, allowance) for item in batch.items]
    return [reader.read(item, NOBODY, allowance).resource for item in items]


def test_a_thousand_different_resources_are_kept(reader):
    sent = [
        {"service.name": "orders", "host.name": f"host-{number}", "os.type": "linux"}
        for number in range(1_000)
    ]
    assert resources_of(reader, *sent) == sent


def test_the_resources_of_a_request_share_a_budget(reader):
    """Nine thousand hostile ones do not cost seconds. What is left out of one is counted in it."""
    hostile = [{"host.name": f"token: %41%42= password=hunter2 {n}"} for n in range(4_000)]
    found = resources_of(reader, *hostile)

    kept = sum("host.name" in resource for resource in found)
    assert 256 < kept < 3_000
    assert found[0] == {"host.name": "token: [REDACTED] password=[REDACTED] 0"}
    assert [resource for resource in found if "host.name" not in resource] == (
        [{"audit.truncated": 1}] * (4_000 - kept)
    )


def test_no_resource_can_have_another_ones_service_withheld(reader):
    """It says whose record it is."""
    hostile = [
        {f"password_{number}_{n}": "x" for n in range(90)} | {"service.name": f"{number}"}
        for number in range(400)
    ]
    billing = {
        "service.name": "billing", "service.namespace": "prod", "service.version": "1.2.3",
        "host.name": "a",
    }  # fmt: skip
    kept = resources_of(reader, *hostile, billing)[-1]
    assert kept == {
        "service.name": "billing", "service.namespace": "prod", "service.version": "1.2.3",
        "audit.truncated": 1,
    }  # fmt: skip


def test_lists_in_resources_count_as_those_of_spans(reader):
    """Two bytes of a list can be an object in memory, and a request's resources are remembered."""
    sent = [{"host.ip": [str(n), *[""] * 900]} for n in range(200)]
    found = resources_of(reader, *sent, ratio=100)
    assert found[0]["host.ip"][:2] == ["0", ""]
    assert found[-1] == {"host.ip": ["[WITHHELD: size]"]}
