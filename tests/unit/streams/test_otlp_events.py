"""Events as OTLP log records, read back with the public classes."""

from __future__ import annotations

import uuid

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from otlp_receiver import plain

from otel_audit.streams.destination import Outgoing
from otel_audit.streams.otlp import _log_record

EVENT = Outgoing(
    leaf=7, id=uuid.UUID(int=1), document={}, tenant_id="acme", content_hash="ab" * 32,
    event_name="order.created", time_ns=1_790_000_000_123_456_789, is_failure=False,
)  # fmt: skip


def read(event):
    return LogRecord.FromString(_log_record(event, "example.com/log"))


def test_an_event_is_the_body_and_its_place_the_attributes():
    """What an exporter of a Collector finds there."""
    document = {"a": [1, 2.5, True, None, "\u00e9"], "b": {"c": "d"}}
    found = read(EVENT._replace(document=document))
    assert plain(found.body) == document
    assert {pair.key: plain(pair.value) for pair in found.attributes} == {
        "audit.record.id": str(EVENT.id), "audit.event.name": "order.created",
        "audit.tenant.id": "acme", "audit.ledger.leaf": 7,
        "audit.ledger.log": "example.com/log", "audit.content.hash": "ab" * 32,
    }  # fmt: skip
    assert found.time_unix_nano == EVENT.time_ns
    assert found.observed_time_unix_nano > EVENT.time_ns
    assert (found.event_name, found.severity_number) == ("order.created", 9)


def test_a_failure_is_a_warning():
    """An alert may go by it."""
    assert read(EVENT._replace(is_failure=True)).severity_number == 13


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 10**400])
def test_an_integer_that_otlp_does_not_know_is_text(number):
    """It is not refused for that."""
    found = read(EVENT._replace(document={"a": {"b": [number, 5]}}))
    assert plain(found.body) == {"a": {"b": [str(number), 5]}}
