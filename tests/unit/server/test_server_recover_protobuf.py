"""What is saved of a request that cannot be decoded as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sinks import request, span

from otel_audit.server import decode_json, decode_protobuf, decode_protobuf_lazily, recover_protobuf
from otel_audit.server.decode_protobuf import spans
from otel_audit.server.errors import RequestError
from otel_audit.server.items import Batch, Resource

BAD = b"\xff\xfe\x80"


def broken_request(*found, old: bytes = b"MMM") -> bytes:
    """A request in which a text of three letters is not UTF-8 any more."""
    return request(*found).replace(old, BAD)


def test_only_what_is_broken_is_put_aside():
    found = list(
        spans(broken_request(span(1), span(2, audit__session="MMM"), span(3, audit__flagged=None)))
    )

    assert [item.span_id for batch in found for item in batch.items] == ["0000000000000001"]
    ((item, why),) = [undecodable for batch in found for undecodable in batch.undecodable]
    assert (item.name, item.span_id) == ("order.created", "0000000000000002")
    assert item.attributes["audit.session"] == "���"
    assert item.attributes["audit.actor.id"] == "user-1"
    assert item.start_time == span(2).start_time_unix_nano
    assert "not UTF-8" in why
    assert sum(batch.ignored for batch in found) == 1


def test_a_broken_span_that_is_not_flagged_is_nobodys_business():
    (batch,) = spans(broken_request(span(1, "MMM", audit__flagged=None)))

    assert (batch.items, batch.undecodable, batch.ignored) == ([], [], 1)


def test_a_broken_resource_costs_only_the_broken_attribute():
    (batch,) = spans(request(span(1), service="ordMMM").replace(b"ordMMM", b"ord" + BAD))

    assert [item.origin.attributes for item in batch.items] == [{}]


@pytest.mark.parametrize("body", [b"\x0a\xff\xff\xff\xff\x7f", b"\x0b", b"\x80" * 11, b"\x0a\x05a"])
def test_where_the_framing_does_not_hold_nothing_is_read(body):
    with pytest.raises(RequestError) as refused:
        list(spans(body))
    assert refused.value.status == 400


def test_a_resource_is_read_once_for_all_that_came_from_it(monkeypatch):
    read = []
    decode = recover_protobuf.resource_of
    monkeypatch.setattr(
        recover_protobuf, "resource_of", lambda *found: read.append(found) or decode(*found)
    )

    found = list(spans(broken_request(span(1, "MMM"), *(span(number) for number in range(2, 300)))))

    items = [item for batch in found for item in batch.items]
    assert len(items) == 298
    assert len(read) == 1
    assert len({id(item.origin) for item in items}) == 1


def in_protobuf(*services: str) -> Iterator[Batch]:
    """Groups of one span each, joined as a Collector joins requests."""
    joined = b"".join(request(span(n), service=name) for n, name in enumerate(services, 1))
    return spans(joined)


def in_json(*services: str) -> Iterator[Batch]:
    groups = [
        MessageToDict(ExportTraceServiceRequest.FromString(request(span(n), service=name)))
        for n, name in enumerate(services, 1)
    ]
    joined = [group for found in groups for group in found["resourceSpans"]]
    return decode_json.spans(json.dumps({"resourceSpans": joined}).encode())


@pytest.mark.parametrize("read", [in_protobuf, in_json])
def test_groups_with_the_same_resource_share_it(read):
    """So it is redacted once."""
    found = read("orders", "billing", "orders", "orders")

    orders, billing, *others = [item.origin for batch in found for item in batch.items]
    assert orders.attributes["service.name"] == "orders"
    assert billing.attributes["service.name"] == "billing"
    assert [other is orders for other in others] == [True, True]


@pytest.mark.parametrize("read", [in_protobuf, in_json])
def test_some_hundreds_of_different_resources_are_remembered(read):
    names = [f"service {number}" for number in range(300)]
    found = read(*names, names[0], names[-1])

    origins = [item.origin for batch in found for item in batch.items]
    assert [origin.attributes["service.name"] for origin in origins] == [
        *names,
        names[0],
        names[-1],
    ]
    assert origins[300] is origins[0]
    assert origins[301] is not origins[299]


def test_what_is_not_flagged_is_not_decoded(monkeypatch):
    decoded = []
    decode = decode_protobuf_lazily.Span.FromString
    counting = SimpleNamespace(FromString=lambda raw: decoded.append(raw) or decode(raw))
    monkeypatch.setattr(decode_protobuf, "decode_protobuf_lazily", SimpleNamespace(Span=counting))
    others = [span(number, audit__flagged=None) for number in range(3, 200)]

    found = list(spans(broken_request(span(1, "MMM"), span(2), *others)))

    assert len(decoded) == 2
    assert sum(batch.ignored for batch in found) == 197


def test_it_is_read_bit_by_bit():
    """So that others have their turn before all of it is decoded."""
    parts = spans(broken_request(span(1, "MMM"), *(span(number) for number in range(2, 300))))

    assert len(next(parts).items) < 100
    assert len(next(parts).items) < 100


def test_no_more_fields_are_looked_at_than_a_span_can_have():
    raw = b"\x50\x00" * 20_000 + span(1).SerializeToString()

    found = recover_protobuf.recovered(raw, "", Resource({}), is_log=False)

    assert found.attributes.keys() == {"undecodable.bytes", "undecodable.sha256"}
    assert (
        recover_protobuf.recovered(raw[30_000:], "", Resource({}), is_log=False).name
        == "order.created"
    )


@given(raw=st.binary(max_size=200))
def test_anything_can_be_mended(raw):
    """What is left of it never raises, and is bounded by what came."""
    found = recover_protobuf.recovered(raw, "", Resource({}), is_log=False)

    assert found.attributes["undecodable.bytes"] == len(raw)
    assert sum(len(str(value)) for value in found.attributes.values()) < 4 * len(raw) + 200
