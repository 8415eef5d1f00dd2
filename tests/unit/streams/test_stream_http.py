"""Meaning of a destination's answer for an event."""

from __future__ import annotations

import pytest
from otel_audit_otlp import responses

from otel_audit._util.http_response import HttpResponse
from otel_audit.errors import StoreError
from otel_audit.streams.destination import DestinationError
from otel_audit.streams.http import rejection_reason


def is_about_the_event(status: int) -> bool:
    try:
        return rejection_reason(HttpResponse(status, {}, b"")) is not None
    except DestinationError:
        return False


def is_about_the_record(status: int) -> bool:
    try:
        return responses.rejection_reason(HttpResponse(status, {}, b"")) is not None
    except StoreError:
        return False


@pytest.mark.parametrize(
    "status", [401, 403, 404, 405, 407, 408, 410, 411, 415, 421, 425, 426, 429]
)
def test_what_is_about_the_destination_parks_no_event(status):
    """Each event would meet it, and the whole trail would be parked."""
    assert not is_about_the_event(status)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_what_is_about_the_event_holds_up_no_other(status):
    assert is_about_the_event(status)


@pytest.mark.parametrize("status", range(300, 600))
def test_a_stream_and_the_otlp_exporter_take_a_status_for_the_same(status):
    assert is_about_the_event(status) == is_about_the_record(status)
