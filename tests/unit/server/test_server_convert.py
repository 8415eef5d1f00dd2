"""What is made of a span: redacted wherever a sender may have put a secret."""

from __future__ import annotations

import pytest
from sinks import request, span

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


def resources_of(reader: Converter, *resources: str) -> list[str]:
    """The names of services that are kept of a request with a group for each."""
    message = b"".join(request(span(n), service=name) for n, name in enumerate(resources, 1))
    allowance = RequestBudget(len(message), len(message))
    items = [item for batch in spans(message) for item in batch.items]
    records = [reader.read(item, NOBODY, allowance) for item in items]
    assert allowance.work.left == RequestBudget(len(message), len(message)).work.left
    return [str(record.resource.get("service.name")) for record in records]


def test_a_thousand_different_resources_are_kept(reader):
    names = [f"orders-{number}" for number in range(1_000)]
    assert resources_of(reader, *names) == names


def test_the_resources_of_a_request_share_a_budget(reader):
    """Nine thousand hostile ones do not cost seconds; the first ones have units of their own."""
    hostile = [f"token: %41%42= password=hunter2 {number}" for number in range(4_000)]
    found = resources_of(reader, *hostile)

    assert not any("hunter2" in name for name in found)
    assert found[0].startswith("token: [REDACTED]")
    assert sum(name.startswith("token:") for name in found) < 3_000
