"""The resource of records is that of the application's own tracing, whenever that is set up."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.delivery.producer import make_resource, resource_attributes


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The process as it is before the application sets up its tracing."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    make_resource()
    return monkeypatch


def test_a_provider_that_is_set_later_counts_from_then_on(no_provider: pytest.MonkeyPatch) -> None:
    """Records made before have the resource of the environment."""
    assert resource_attributes()["telemetry.sdk.name"] == "opentelemetry"
    provider = TracerProvider(resource=Resource({"service.name": "set later"}))
    no_provider.setattr(trace, "_TRACER_PROVIDER", provider)
    assert resource_attributes() == {"service.name": "set later"}
    make_resource()


def test_the_environment_is_not_read_for_each_action(no_provider: pytest.MonkeyPatch) -> None:
    """While no provider is set, OpenTelemetry would look for a variable each time."""
    asked: list[Any] = []
    ask = trace.get_tracer_provider
    no_provider.setattr(trace, "get_tracer_provider", lambda: asked.append(1) or ask())
    first = resource_attributes()
    asked.clear()
    assert resource_attributes() is first
    assert not asked
