"""Spans that somebody else has flagged become records, sampled or not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, set_span_in_context

from otel_audit import AuditConfig
from otel_audit._util import ratelimited_log
from otel_audit.delivery.flagged_spans import FlaggedSpans
from otel_audit.delivery.sampler import AuditSampler
from otel_audit.delivery.sink import Refused
from otel_audit.redaction import Redactor

FLAGGED = {
    "audit.flagged": True,
    "audit.actor.id": "job-7",
    "audit.actor.type": "service",
    "audit.action": "EXECUTE",
    "audit.outcome": "success",
}
UNSAMPLED_PARENT = set_span_in_context(
    NonRecordingSpan(SpanContext(trace_id=1, span_id=2, is_remote=True))
)


class App:
    """An application's own tracing, watched for flagged spans."""

    def __init__(self, sampler: Sampler, *, early: bool = False) -> None:
        ratelimited_log.forget()
        self.got: list[Any] = []
        self.errors = 0
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        early_tracer = self.provider.get_tracer("app")
        redactor = Redactor.from_config(AuditConfig())
        self.watcher = FlaggedSpans(self, redactor, self.count_error)
        assert self.watcher.attach(self.provider)
        self.tracer = early_tracer if early else self.provider.get_tracer("app.late")

    def deliver_span(self, entry: Any) -> None:
        self.got.append(entry)

    def count_error(self) -> None:
        self.errors += 1


SAMPLERS = [
    ALWAYS_ON,
    ALWAYS_OFF,
    TraceIdRatioBased(0.01),
    ParentBased(ALWAYS_ON),
    ParentBased(ALWAYS_OFF),
]


class TestFlaggedSpans:
    @pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.get_description()[:24])
    @pytest.mark.parametrize("early", [True, False])
    @pytest.mark.parametrize("context", [None, UNSAMPLED_PARENT], ids=["root", "unsampled parent"])
    def test_each_is_a_record_whatever_is_sampled(self, sampler, early, context):
        """Under every sampler, with any parent, from tracers made before or after: one record."""
        app = App(sampler, early=early)
        for number in range(20):
            with app.tracer.start_as_current_span(
                f"report.made.{number}", context=context, attributes=FLAGGED
            ):
                pass
        assert [record.event_name for record in app.got] == [
            f"report.made.{number}" for number in range(20)
        ]
        assert {record.actor.id for record in app.got} == {"job-7"}

    @pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.get_description()[:24])
    def test_the_applications_exporter_gets_what_its_sampler_decides(self, sampler):
        """With us and without us the application exports the same spans."""
        app = App(sampler)
        alone = TracerProvider(sampler=sampler)
        exporter = InMemorySpanExporter()
        alone.add_span_processor(SimpleSpanProcessor(exporter))
        app.provider.id_generator = alone.id_generator = _Counting()
        for provider in (app.provider, alone):
            provider.id_generator.next = 0
            tracer = provider.get_tracer("same")
            for kind in (SpanKind.SERVER, SpanKind.INTERNAL):
                for attributes in (FLAGGED, {}):
                    for _ in range(25):
                        with (
                            tracer.start_as_current_span("a", kind=kind, attributes=attributes),
                            tracer.start_as_current_span("child"),
                        ):
                            pass
        assert [span.context.span_id for span in app.exporter.get_finished_spans()] == [
            span.context.span_id for span in exporter.get_finished_spans()
        ]

    def test_the_record_points_to_its_span(self):
        """Trace id, span id and whether it was sampled are the span's own."""
        app = App(ALWAYS_OFF)
        with app.tracer.start_as_current_span("report.made", attributes=FLAGGED) as span:
            pass
        (record,) = app.got
        assert int(record.trace_id, 16) == span.get_span_context().trace_id
        assert int(record.span_id, 16) == span.get_span_context().span_id
        assert record.trace_sampled is False

    def test_secrets_are_taken_out(self):
        """Bodies, metadata, queries, headers and messages are redacted before anything is kept."""
        app = App(ALWAYS_ON)
        body = json.dumps({"item": "tea", "password": "hunter2"})
        with app.tracer.start_as_current_span("order.made", attributes=FLAGGED) as span:
            span.set_attribute("audit.request.body", body)
            span.set_attribute(
                "audit.request.body.sha256", hashlib.sha256(body.encode()).hexdigest()
            )
            span.set_attribute("audit.metadata", json.dumps({"api_key": "hunter2", "n": 1}))
            span.set_attribute("url.query", "token=hunter2&page=2")
            span.set_attribute("http.request.header.authorization", ["Bearer hunter2"])
            span.set_attribute("audit.error.message", "login failed: password=hunter2")
            span.set_attribute("db.password", "hunter2")
        (record,) = app.got
        assert "hunter2" not in repr(record)
        assert '"tea"' in record.request.body.text
        digest = hashlib.sha256(record.request.body.text.encode()).hexdigest()
        assert record.request.body.sha256 == digest
        assert record.metadata["n"] == 1

    def test_what_is_lacking_is_said_in_quarantine(self, caplog):
        """Without a mandatory attribute: kept aside with the reason, redacted, and warned of."""
        app = App(ALWAYS_OFF)
        told = {"audit.flagged": True, "audit.actor.id": "job-7", "user.password": "hunter2"}
        with app.tracer.start_as_current_span("report.made", attributes=told):
            pass
        (refused,) = app.got
        assert isinstance(refused, Refused)
        assert (
            refused.reason == "the audit span lacks audit.actor.type, audit.action, audit.outcome"
        )
        assert b"job-7" in refused.received
        assert b"hunter2" not in refused.received
        assert "goes to quarantine" in caplog.text

    def test_a_wrong_value_is_quarantined(self):
        """An attribute of a wrong value is a reason, too."""
        app = App(ALWAYS_ON)
        told = FLAGGED | {"audit.outcome": "perhaps"}
        with app.tracer.start_as_current_span("report.made", attributes=told):
            pass
        assert "wrong type or value" in app.got[0].reason

    def test_what_is_not_flagged_is_none_of_our_business(self):
        """Other spans give nothing, also where the mark is not the boolean True."""
        app = App(ALWAYS_ON)
        for told in ({}, FLAGGED | {"audit.flagged": "true"}, FLAGGED | {"audit.flagged": 1}):
            with app.tracer.start_as_current_span("report.made", attributes=told):
                pass
        assert app.got == []

    @pytest.mark.allow_errors
    def test_an_exception_of_ours_does_not_reach_the_application(self, monkeypatch):
        """Whatever goes wrong here, the application's span ends as ever; it is counted."""
        app = App(ALWAYS_ON)
        monkeypatch.setattr(app, "deliver_span", lambda entry: 1 / 0)
        with app.tracer.start_as_current_span("report.made", attributes=FLAGGED):
            pass
        assert app.errors == 1
        assert len(app.exporter.get_finished_spans()) == 1

    def test_after_leaving_everything_is_as_it_was(self):
        """Detached: the provider and its tracers have their own sampler, and nothing is read."""
        app = App(ALWAYS_OFF)
        app.watcher.detach()
        assert app.provider.sampler is ALWAYS_OFF
        assert app.tracer.sampler is ALWAYS_OFF
        with app.tracer.start_as_current_span("report.made", attributes=FLAGGED):
            pass
        assert app.got == []

    def test_another_kind_of_provider_is_left_alone(self):
        """What is not the SDK's own provider cannot be watched, and that is said."""
        redactor = Redactor.from_config(AuditConfig())
        assert not FlaggedSpans(App(ALWAYS_ON), redactor, lambda: None).attach(object())


class TestAuditSampler:
    def test_attributes_given_at_the_start_are_kept(self):
        """What the inner sampler drops is recorded with the attributes of the start."""
        result = AuditSampler(ALWAYS_OFF).should_sample(None, 1, "a", attributes=FLAGGED)
        assert dict(result.attributes) == FLAGGED
        assert result.decision.is_recording()
        assert not result.decision.is_sampled()

    def test_it_names_the_one_it_asks(self):
        """Its description contains that of the inner sampler."""
        assert AuditSampler(ALWAYS_OFF).get_description() == "AuditSampler{AlwaysOffSampler}"


class _Counting:
    """Ids that are the same on each run, spread over the range that a ratio looks at."""

    next = 0

    def generate_trace_id(self) -> int:
        self.next += 1
        return (self.next * 0x9E3779B97F4A7C15) % 2**64 + 2**64

    def generate_span_id(self) -> int:
        self.next += 1
        return self.next

    def is_trace_id_random(self) -> bool:
        return True
