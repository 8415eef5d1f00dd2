"""Actor and tenant on child spans, and to and from other services by baggage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import otel_audit
from otel_audit import AuditConfig
from otel_audit.identity.child_spans import ChildSpans
from otel_audit.testing import recorded


def settings(**options: Any) -> AuditConfig:
    return AuditConfig(exporter="none", **options)


def make_app() -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        name = request.headers.get("x-user")
        if name:
            request.state.user = {"id": name, "role": "clerk"}
            request.state.tenant = "t-1"
        return await call_next(request)

    @app.post("/call")
    async def call() -> dict[str, str]:
        """Call another service, as an instrumented client would."""
        with trace.get_tracer("app").start_as_current_span("client"):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
        return carrier

    return app


async def call(app: FastAPI, **headers: str) -> dict[str, str]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        response = await client.post(
            "/call", headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
    found: dict[str, str] = response.json()
    return found


def entries(carrier: dict[str, str]) -> dict[str, object]:
    """What the called service reads."""
    return dict(baggage.get_all(W3CBaggagePropagator().extract(carrier, context.Context())))


@pytest.fixture
def propagator() -> Iterator[None]:
    kept = propagate.get_global_textmap()
    propagate.set_global_textmap(
        CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    )
    yield
    propagate.set_global_textmap(kept)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


class TestChildSpans:
    async def test_off_by_default(self, spans):
        """Nobody's spans get anything unless it is asked for."""
        app = make_app()
        with recorded(app, config=settings()):
            await call(app, x_user="u-1")
        assert _by_order(spans) == [{}]

    async def test_spans_inside_an_action_carry_who_and_for_whom(self, spans):
        """In a request and in a block; nothing on spans outside, nor after auditing has ended."""
        app, tracer = make_app(), trace.get_tracer("app")
        with recorded(app, config=settings(child_spans=True)):
            await call(app, x_user="u-1")
            with otel_audit.audit("job.run", actor="job-7"), tracer.start_as_current_span("step"):
                pass
            with tracer.start_as_current_span("outside"):
                pass
        with recorded(app, config=settings()):
            await call(app, x_user="u-1")
        client, step, outside, later = _by_order(spans)
        assert client == {
            "audit.actor.id": "u-1",
            "audit.actor.type": "user",
            "audit.actor.role": "clerk",
            "audit.tenant.id": "t-1",
        }
        assert step["audit.actor.id"] == "job-7"
        assert outside == {}
        assert "audit.actor.id" not in later

    async def test_nobody_in_particular_is_not_written(self, spans):
        """An anonymous request leaves its spans as they are."""
        app = make_app()
        with recorded(app, config=settings(child_spans=True)):
            await call(app)
        assert _by_order(spans)[0] == {}

    @pytest.mark.allow_errors
    def test_finding_out_who_it_is_may_make_spans_itself(self, spans):
        """A resolver that is traced does not call itself for ever; its failure breaks no span."""
        tracer = trace.get_tracer("app")
        calls = []

        def origin() -> Any:
            calls.append(1)
            with tracer.start_as_current_span("resolver"):
                raise RuntimeError

        from otel_audit import scope as scopes

        processor = ChildSpans()
        processor.attach()
        token = scopes.enter(scopes.AuditScope(origin=origin))
        try:
            with tracer.start_as_current_span("step"):
                pass
        finally:
            scopes.leave(token)
            processor.detach()
        assert calls == [1]
        assert [span.name for span in spans.get_finished_spans()] == ["resolver", "step"]


def _by_order(spans: InMemorySpanExporter) -> list[dict[str, Any]]:
    mine = ("client", "step", "outside")
    return [dict(span.attributes) for span in spans.get_finished_spans() if span.name in mine]


class TestSending:
    async def test_off_by_default(self, propagator):
        """A called service learns nothing of the actor unless it is asked for."""
        app = make_app()
        with recorded(app, config=settings()):
            assert "baggage" not in await call(app, x_user="u-1")

    async def test_the_ids_travel_with_a_call(self, propagator):
        """Actor and tenant by their ids, nothing else; from a block, too."""
        app = make_app()
        with recorded(app, config=settings(baggage_send=True)):
            assert entries(await call(app, x_user="u-1")) == {
                "audit.actor.id": "u-1",
                "audit.actor.type": "user",
                "audit.tenant.id": "t-1",
            }
            with otel_audit.audit("job.run", actor={"id": "job-7", "type": "service"}):
                carrier: dict[str, str] = {}
                propagate.inject(carrier)
            assert entries(carrier) == {"audit.actor.id": "job-7", "audit.actor.type": "service"}

    @pytest.mark.parametrize("name", ["alice@example.com", "a b", "x" * 200])
    async def test_what_is_not_opaque_stays_here(self, name, propagator):
        """An e-mail address, or whatever else is no plain id, is not sent in clear."""
        app = make_app()
        with recorded(app, config=settings(baggage_send=True)):
            assert entries(await call(app, x_user=name)) == {"audit.tenant.id": "t-1"}

    def test_what_a_client_sent_is_not_passed_on_as_ours(self, propagator):
        """Entries under our names that came from outside are taken out of outgoing calls."""
        with recorded(config=settings(baggage_send=True)):
            with otel_audit.audit("job.run"):
                pass
            forged = baggage.set_baggage("audit.actor.id", "admin")
            forged = baggage.set_baggage("kept", "yes", forged)
            carrier: dict[str, str] = {}
            propagate.inject(carrier, context=forged)
        assert entries(carrier) == {"kept": "yes"}

    @pytest.mark.allow_errors
    def test_a_broken_propagator_costs_no_record(self, propagator):
        """What fails while the ids are passed on is counted; the action is recorded."""

        class Broken(TraceContextTextMapPropagator):
            @property
            def fields(self) -> set[str]:
                raise RuntimeError

        propagate.set_global_textmap(Broken())
        with recorded(config=settings(baggage_send=True)) as records:
            otel_audit.emit("a.done", actor="x")
            assert otel_audit.health()["capture_errors"] == 1
        assert records.one("a.done").actor.id == "x"

    def test_the_propagator_is_given_back(self, propagator):
        """After the end everything is as it was."""
        before = propagate.get_global_textmap()
        with recorded(config=settings(baggage_send=True)):
            otel_audit.emit("a.done")
            assert propagate.get_global_textmap() is not before
        assert propagate.get_global_textmap() is before

    def test_without_the_baggage_propagator_it_says_so(self, propagator, caplog):
        """A setting without effect is a warning that names it and the remedy."""
        propagate.set_global_textmap(TraceContextTextMapPropagator())
        with recorded(config=settings(baggage_send=True)):
            otel_audit.emit("a.done")
        assert "OTEL_AUDIT_BAGGAGE_SEND has no effect" in caplog.text


FORGED = "audit.actor.id=svc-billing,audit.actor.type=service,audit.tenant.id=t-9"


class TestTrusting:
    async def test_never_by_default(self):
        """What a client writes into baggage names nobody."""
        app = make_app()
        with recorded(app, config=settings()) as records:
            await call(app, baggage=FORGED)
        record = records.one()
        assert (record.actor.id, record.tenant) == ("anonymous", None)

    async def test_only_where_a_setting_says_so(self):
        """Then the caller's word is taken, and the record says that it is only that."""
        app = make_app()
        with recorded(app, config=settings(baggage_trust=True)) as records:
            await call(app, baggage=FORGED)
        record = records.one()
        assert (record.actor.id, record.actor.type) == ("svc-billing", "service")
        assert (record.actor.verified, record.actor.source) == (False, "baggage")
        assert record.tenant.id == "t-9"

    async def test_what_the_application_knows_wins(self):
        """Baggage speaks only where nothing else does."""
        app = make_app()
        with recorded(app, config=settings(baggage_trust=True)) as records:
            await call(app, baggage=FORGED, x_user="u-1")
        record = records.one()
        assert (record.actor.id, record.tenant.id) == ("u-1", "t-1")

    async def test_a_token_that_fails_is_not_made_up_for(self):
        """Who shows a bad token is anonymous, whatever the baggage says."""
        app = make_app()
        config = settings(baggage_trust=True, jwt_key="k" * 40, jwt_algorithms=("HS256",))
        with recorded(app, config=config) as records:
            await call(app, baggage=FORGED, authorization="Bearer a.b.c")
        actor = records.one().actor
        assert actor.id == "anonymous"
        assert actor.reason is not None

    @pytest.mark.parametrize("value", ["", ",,,", "audit.actor.id=", "x" * 20_000, "a=%00%ff"])
    async def test_garbage_names_nobody(self, value):
        """Nothing that a client sends breaks the request or makes an actor up."""
        app = make_app()
        with recorded(app, config=settings(baggage_trust=True)) as records:
            await call(app, baggage=value)
        assert records.one().actor.id == "anonymous"

    def test_a_worker_is_told_by_its_context(self):
        """A job outside of any request takes what its instrumentation has put into the context."""
        filled = baggage.set_baggage("audit.actor.id", "u-1")
        token = context.attach(filled)
        try:
            with recorded(config=settings(baggage_trust=True)) as trusting:
                otel_audit.emit("mail.sent")
            with recorded(config=settings()) as not_trusting:
                otel_audit.emit("mail.sent")
        finally:
            context.detach(token)
        assert trusting.one().actor.id == "u-1"
        assert not_trusting.one().actor.type == "system"
