"""One call and the application is audited, whatever else looks at it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import fastapi
import httpx
import pytest
import sqlalchemy
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import otel_audit
from otel_audit import AuditConfig, AuditInstrumentor
from otel_audit.attributes import record_from_span
from otel_audit.policy.rules import Rule


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    price: Mapped[int] = mapped_column(default=1)


class Tracing:
    """An application's own tracing, seen by its own exporter."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def server_spans(self) -> list[Any]:
        spans = self.exporter.get_finished_spans()
        return [span for span in spans if span.kind is trace.SpanKind.SERVER]


@pytest.fixture
def tracing() -> Tracing:
    return Tracing()


@pytest.fixture
async def stored_rows(audit_store: str) -> AsyncIterator[Callable[[], Any]]:
    """Read the audit rows, after everything was delivered; audits nothing any more at the end."""
    connection = await asyncpg.connect(audit_store)

    async def rows() -> list[asyncpg.Record]:
        assert await asyncio.to_thread(otel_audit.flush, 60)
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")

    yield rows
    AuditInstrumentor()._is_instrumented_by_opentelemetry = False
    await asyncio.to_thread(otel_audit.uninstrument)
    await connection.close()


@pytest.fixture
def config(audit_store: str) -> AuditConfig:
    return AuditConfig(dsn=audit_store, batch_interval=0.01)


def make_app(**options: Any) -> FastAPI:
    app = fastapi.FastAPI(**options)

    @app.post("/orders", status_code=201)
    async def create(order: dict[str, Any]) -> dict[str, Any]:
        otel_audit.set_actor("clerk-1", role="clerk")
        return {"id": 1, **order}

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("it broke")

    return app


def make_starlette() -> Starlette:
    async def create(request: Any) -> JSONResponse:
        return JSONResponse({"id": 1, **(await request.json())}, status_code=201)

    return Starlette(routes=[Route("/orders", create, methods=["POST"])])


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        yield client


async def place_order(app: Any) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post("/orders", json={"item": "tea", "password": "hunter2"})


def contrib_first(config: AuditConfig, tracing: Tracing) -> Any:
    app = make_app()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)
    otel_audit.instrument(app, config=config)
    return app


def contrib_second(config: AuditConfig, tracing: Tracing) -> Any:
    app = make_app()
    otel_audit.instrument(app, config=config)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)
    return app


def contrib_for_all(config: AuditConfig, tracing: Tracing) -> Any:
    otel_audit.instrument(config=config)
    instrumentor = FastAPIInstrumentor()
    instrumentor.instrument(tracer_provider=tracing.provider)
    try:
        return make_app()
    finally:
        fastapi.FastAPI = instrumentor._original_fastapi
        instrumentor._is_instrumented_by_opentelemetry = False


def native(config: AuditConfig, tracing: Tracing) -> Any:
    app = make_app(telemetry={"tracer_provider": tracing.provider})
    otel_audit.instrument(app, config=config)
    return app


def native_for_all(config: AuditConfig, tracing: Tracing) -> Any:
    otel_audit.instrument(config=config)
    return make_app(telemetry={"tracer_provider": tracing.provider})


TRACED = [contrib_first, contrib_second, contrib_for_all, native, native_for_all]


class TestBesideTracing:
    @pytest.mark.parametrize("instrumented", TRACED)
    async def test_a_request_is_a_row_that_points_to_its_span(
        self, instrumented, config, tracing, stored_rows
    ):
        """Contrib's tracing or FastAPI's own, first or second: one row, one click from its span."""
        response = await place_order(instrumented(config, tracing))
        assert response.status_code == 201
        (row,) = await stored_rows()
        (span,) = tracing.server_spans
        assert row["trace_id"] == trace.format_trace_id(span.context.trace_id)
        assert row["span_id"] == trace.format_span_id(span.context.span_id)
        assert row["event_name"] == "order.created"
        assert row["outcome"] == "success"
        assert row["actor_id"] == "clerk-1"
        assert "hunter2" not in row["payload"]

    @pytest.mark.parametrize("instrumented", TRACED)
    async def test_the_server_span_is_enriched_but_never_flagged(
        self, instrumented, config, tracing, stored_rows
    ):
        """The application's span gets who and what, and not the mark of an audit span."""
        await place_order(instrumented(config, tracing))
        (row,) = await stored_rows()
        (span,) = tracing.server_spans
        assert span.attributes["audit.actor.id"] == "clerk-1"
        assert span.attributes["audit.event.name"] == "order.created"
        assert span.attributes["audit.record.id"] == str(row["id"])
        assert "audit.flagged" not in span.attributes
        assert "audit.request.body" not in span.attributes

    @pytest.mark.parametrize("instrumented", TRACED)
    async def test_the_span_of_a_handler_that_raised_is_enriched_too(
        self, instrumented, config, tracing, stored_rows
    ):
        """The 500 is made outside of our taps; the span says all the same what was recorded."""
        async with client_of(instrumented(config, tracing)) as client:
            assert (await client.get("/boom")).status_code == 500
        (row,) = await stored_rows()
        (span,) = tracing.server_spans
        assert span.attributes["audit.record.id"] == str(row["id"])
        assert span.attributes["audit.actor.id"] == row["actor_id"]

    async def test_the_full_payload_is_put_on_the_span_if_asked(
        self, audit_store, tracing, stored_rows
    ):
        """With span_payload=full the span carries the redacted bodies."""
        config = AuditConfig(dsn=audit_store, batch_interval=0.01, span_payload="full")
        await place_order(native(config, tracing))
        (span,) = tracing.server_spans
        assert '"tea"' in span.attributes["audit.request.body"]
        assert "hunter2" not in span.attributes["audit.request.body"]

    @pytest.mark.parametrize("instrumented", TRACED)
    @pytest.mark.parametrize("redact", [True, False])
    async def test_urls_on_the_span_are_redacted_if_asked(
        self, instrumented, redact, audit_store, tracing, stored_rows
    ):
        """What tracing says of the URL is spelled as the record spells it, also of no recorded one."""
        config = AuditConfig(dsn=audit_store, batch_interval=0.01, redact_spans=redact)
        link = "/reset/Tm9uZS1zby1zZWNyZXQ4ODE3"
        async with client_of(instrumented(config, tracing)) as client:
            await client.get(f"{link}?code=SplxlOBeZQQYbYS6WxSbIA&state=x&page=2")
        await stored_rows()
        (span,) = tracing.server_spans
        told = str({name: value for name, value in span.attributes.items() if "audit" not in name})
        assert ("Tm9uZS1zby1zZWNyZXQ4ODE3" in told) is not redact
        assert ("SplxlOBeZQQYbYS6WxSbIA" in told) is not redact
        assert "page=2" in told

    @pytest.mark.parametrize("instrumented", [contrib_first, native])
    async def test_what_is_not_sampled_is_audited(self, instrumented, config, stored_rows):
        """With a sampler that drops everything, the application exports nothing; the row is whole."""
        tracing = Tracing(sampler=ALWAYS_OFF)
        await place_order(instrumented(config, tracing))
        (row,) = await stored_rows()
        assert tracing.exporter.get_finished_spans() == ()
        assert '"tea"' in row["payload"]
        assert len(row["trace_id"]) == 32

    async def test_the_applications_exporter_gets_no_audit_span(self, config, tracing, stored_rows):
        """Audit spans are ours: the application's exporter receives what it always did."""
        await place_order(native(config, tracing))
        await stored_rows()
        assert not [
            span
            for span in tracing.exporter.get_finished_spans()
            if span.instrumentation_scope.name == "otel_audit"
        ]


class TestAuditSpans:
    async def test_whoever_asks_sees_each_record_as_a_span(self, config, tracing, stored_rows):
        """A processor of the caller's gets an audit span beside the row: flagged, a child."""
        seen = InMemorySpanExporter()
        app = make_app()
        FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)
        otel_audit.instrument(app, config=config, audit_span_processors=[SimpleSpanProcessor(seen)])
        await place_order(app)
        (row,) = await stored_rows()
        (span,) = seen.get_finished_spans()
        assert record_from_span(span).record_id == str(row["id"])
        assert span.attributes["audit.flagged"] is True
        assert trace.format_span_id(span.parent.span_id) == row["span_id"]

    @pytest.mark.allow_errors
    async def test_a_processor_that_raises_costs_its_span_alone(self, config, stored_rows):
        """The record is on its way before anybody looks at the span."""

        class Broken(SpanProcessor):
            def on_end(self, span):
                raise RuntimeError("no")

        app = make_app()
        otel_audit.instrument(app, config=config, audit_span_processors=[Broken()])
        assert (await place_order(app)).status_code == 201
        assert len(await stored_rows()) == 1
        assert otel_audit.health()["capture_errors"] == 1


class TestWithoutTracing:
    async def test_a_request_is_a_row_without_trace_ids(self, config, stored_rows):
        """Auditing needs no tracing: the row then points to no span."""
        app = make_app()
        otel_audit.instrument(app, config=config)
        await place_order(app)
        (row,) = await stored_rows()
        assert (row["trace_id"], row["span_id"]) == (None, None)

    async def test_a_disabled_sdk_still_audits(self, config, stored_rows, monkeypatch):
        """OTEL_SDK_DISABLED switches tracing off, not auditing."""
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        app = make_app()
        otel_audit.instrument(app, config=config)
        await place_order(app)
        (row,) = await stored_rows()
        assert row["event_name"] == "order.created"

    async def test_a_plain_starlette_application_is_audited(self, config, stored_rows):
        """FastAPI is not needed."""
        app = make_starlette()
        otel_audit.instrument(app, config=config)
        response = await place_order(app)
        assert response.json() == {"id": 1, "item": "tea", "password": "hunter2"}
        (row,) = await stored_rows()
        assert (row["event_name"], row["http_route"]) == ("order.created", "/orders")

    async def test_routes_may_be_added_afterwards(self, config, stored_rows):
        """Instrumenting comes before or after the routes, as one likes."""
        app = FastAPI()
        otel_audit.instrument(app, config=config)
        router = APIRouter(prefix="/api/v1/customers")

        @router.delete("/{customer_id}")
        async def delete(customer_id: int) -> None: ...

        app.include_router(router)
        async with client_of(app) as client:
            await client.delete("/api/v1/customers/7")
        (row,) = await stored_rows()
        assert row["http_route"] == "/api/v1/customers/{customer_id}"
        assert (row["event_name"], row["target_id"]) == ("customer.deleted", "7")


class TestTheRow:
    async def test_a_raised_exception_is_a_failure(self, config, stored_rows):
        """A handler that raises leaves a row that says so."""
        app = make_app()
        otel_audit.instrument(app, config=config)
        async with client_of(app) as client:
            assert (await client.get("/boom")).status_code == 500
        (row,) = await stored_rows()
        assert (row["outcome"], row["status_code"], row["error_type"]) == (
            "failure",
            500,
            "RuntimeError",
        )

    async def test_the_request_id_is_in_row_and_response(self, config, stored_rows):
        """The client can name the row it caused."""
        app = make_app()
        otel_audit.instrument(app, config=config)
        response = await place_order(app)
        (row,) = await stored_rows()
        assert response.headers["x-request-id"] == row["request_id"]

    async def test_the_bytes_of_a_response_are_the_applications(self, config, stored_rows):
        """With auditing the client reads what it reads without, but for the request id's header."""

        async def chunks() -> AsyncIterator[bytes]:
            for number in range(50):
                yield b"line %d\n" % number

        def build() -> FastAPI:
            app = FastAPI()

            @app.post("/export")
            async def export() -> StreamingResponse:
                return StreamingResponse(chunks(), media_type="text/csv")

            return app

        plain, audited = build(), build()
        otel_audit.instrument(audited, config=config)
        async with client_of(plain) as one, client_of(audited) as other:
            expected, got = await one.post("/export"), await other.post("/export")
        assert got.content == expected.content
        del got.headers["x-request-id"]
        assert got.headers == expected.headers


class TestCommits:
    @pytest.fixture
    async def shop(self, engine_with: Any, config: AuditConfig, stored_rows: Any) -> FastAPI:
        """An application whose session commits when its dependency is torn down."""
        engine = await engine_with(Base.metadata)
        sessions = async_sessionmaker(engine)

        async def session() -> AsyncIterator[AsyncSession]:
            async with sessions() as opened:
                yield opened
                await opened.commit()

        app = FastAPI()

        @app.post("/orders")
        async def create(db: AsyncSession = Depends(session)) -> dict[str, int]:  # noqa: B008
            order = Order(item="tea")
            db.add(order)
            await db.flush()
            return {"id": order.id}

        @app.put("/orders/{order_id}")
        async def change(order_id: int, db: AsyncSession = Depends(session)) -> dict[str, int]:  # noqa: B008
            order = await db.get_one(Order, order_id)
            order.price = 5
            return {"price": order.price}

        @app.post("/orders/{order_id}/undo")
        async def undo(order_id: int, db: AsyncSession = Depends(session)) -> dict[str, int]:  # noqa: B008
            order = await db.get_one(Order, order_id)
            order.price = 9
            await db.flush()
            await db.rollback()
            return {"price": 9}

        otel_audit.instrument(app, app_engine=engine, config=config)
        return app

    async def test_the_row_tells_what_was_committed_after_the_answer(self, shop, stored_rows):
        """A commit in the teardown of a dependency is in the row, with before and after."""
        async with client_of(shop) as client:
            await client.post("/orders")
            await client.put("/orders/1")
        created, changed = await stored_rows()
        assert created["transaction_outcome"] == "committed"
        assert created["entities"] == ["order:1"]
        assert created["target_id"] == "1"
        assert changed["entities"] == ["order:1"]
        assert '"price":[1,5]' in changed["payload"]

    async def test_a_rollback_is_no_success_whatever_the_client_saw(self, shop, stored_rows):
        """A 200 whose transaction was rolled back is a failure, without changes."""
        async with client_of(shop) as client:
            await client.post("/orders")
            assert (await client.post("/orders/1/undo")).status_code == 200
        _, undone = await stored_rows()
        assert undone["outcome"] == "failure"
        assert undone["transaction_outcome"] == "rolled_back"
        assert '"changes":' not in undone["payload"]


class TestBesideSqlSpans:
    @pytest.mark.skipif(
        not sqlalchemy.__version__.startswith("2.0."),
        reason="contrib's SQLAlchemy instrumentation declines 2.1",
    )
    async def test_contribs_statement_spans_go_on(self, engine_with, config, tracing, stored_rows):
        """contrib's SQLAlchemy spans are there as ever, and the change is in the row."""
        engine = await engine_with(Base.metadata)
        instrumentor = SQLAlchemyInstrumentor()
        instrumentor.instrument(engine=engine.sync_engine, tracer_provider=tracing.provider)
        app = FastAPI(telemetry={"tracer_provider": tracing.provider})

        @app.post("/orders")
        async def create() -> None:
            async with AsyncSession(engine) as session, session.begin():
                session.add(Order(item="tea"))

        otel_audit.instrument(app, config=config)
        try:
            async with client_of(app) as client:
                await client.post("/orders")
            (row,) = await stored_rows()
        finally:
            instrumentor.uninstrument()
        names = [span.name.split()[0] for span in tracing.exporter.get_finished_spans()]
        assert "INSERT" in names
        assert row["entities"] == ["order:1"]


class TestUninstrument:
    @pytest.mark.parametrize("build", [make_app, make_starlette])
    async def test_one_application_is_left_as_it_was(self, build, config, stored_rows):
        """After uninstrument(app) nothing of ours is on the application or in its stack."""
        app = build()
        before = {key: value for key, value in vars(app).items() if key != "middleware_stack"}
        otel_audit.instrument(app, config=config)
        await place_order(app)
        otel_audit.uninstrument(app)
        response = await place_order(app)
        after = {key: value for key, value in vars(app).items() if key != "middleware_stack"}
        assert after == before
        assert "x-request-id" not in response.headers
        assert len(await stored_rows()) == 1

    async def test_the_classes_are_left_as_they_were(self, config):
        """After uninstrument() the patched methods are the original ones."""
        before = (FastAPI.build_middleware_stack, Starlette.build_middleware_stack)
        otel_audit.instrument(config=config)
        assert FastAPI.build_middleware_stack is not before[0]
        app = make_app()
        await place_order(app)
        await asyncio.to_thread(otel_audit.uninstrument)
        assert (FastAPI.build_middleware_stack, Starlette.build_middleware_stack) == before
        assert "x-request-id" not in (await place_order(app)).headers
        assert otel_audit.health() == {"auditing": False}

    @pytest.mark.parametrize("ours_first", [True, False])
    async def test_contrib_stays(self, ours_first, config, tracing, stored_rows):
        """Leaving does not take contrib's instrumentation along."""
        app = (contrib_second if ours_first else contrib_first)(config, tracing)
        otel_audit.uninstrument(app)
        response = await place_order(app)
        assert "x-request-id" not in response.headers
        assert len(tracing.server_spans) == 1

    async def test_the_instrumentor_does_the_same(self, config, stored_rows):
        """AuditInstrumentor is the same in OpenTelemetry's own form."""
        instrumentor = AuditInstrumentor()
        instrumentor.instrument(config=config)
        app = make_app()
        await place_order(app)
        assert len(await stored_rows()) == 1
        await asyncio.to_thread(instrumentor.uninstrument)
        assert "x-request-id" not in (await place_order(app)).headers

    async def test_one_application_through_the_instrumentor(self, config, stored_rows):
        """instrument_app and uninstrument_app work for one application."""
        app, other = make_app(), make_app()
        AuditInstrumentor().instrument_app(app, config=config)
        await place_order(app)
        await place_order(other)
        assert len(await stored_rows()) == 1
        AuditInstrumentor().uninstrument_app(app)
        assert "x-request-id" not in (await place_order(app)).headers


class TestFaults:
    async def test_twice_is_once(self, config, stored_rows):
        """Instrumenting again, with the same settings or none, changes nothing."""
        app = make_app()
        otel_audit.instrument(app, config=config)
        otel_audit.instrument(app, config=config)
        otel_audit.instrument(app)
        otel_audit.instrument()
        await place_order(app)
        assert len(await stored_rows()) == 1

    async def test_another_configuration_is_refused(self, config, audit_store, stored_rows):
        """Two configurations in one process cannot both be meant."""
        otel_audit.instrument(make_app(), config=config)
        with pytest.raises(otel_audit.InstrumentationError, match="another configuration"):
            otel_audit.instrument(make_app(), config=AuditConfig(dsn=audit_store, body_limit=1))

    async def test_a_started_application_is_refused(self, config, stored_rows):
        """An application whose stack stands cannot be given taps any more, and is told so."""
        app = make_app()
        await place_order(app)
        with pytest.raises(otel_audit.InstrumentationError, match="already started"):
            otel_audit.instrument(app, config=config)

    async def test_something_else_is_refused(self, config, stored_rows):
        """What is no application is named as such."""
        with pytest.raises(otel_audit.InstrumentationError, match="got dict"):
            otel_audit.instrument({}, config=config)

    async def test_the_instrumentor_refuses_where_it_would_do_nothing(
        self, config, stored_rows, monkeypatch, caplog
    ):
        """Required, and no Starlette that fits: an error that says so, and not a line in a log."""
        instrumentor = AuditInstrumentor()
        monkeypatch.setattr(
            type(instrumentor), "instrumentation_dependencies", lambda _: ("starlette >= 99",)
        )
        with pytest.raises(otel_audit.InstrumentationError, match=r"starlette >= 99.*install"):
            instrumentor.instrument(required=True, config=config)
        monkeypatch.setenv("OTEL_AUDIT_REQUIRED", "true")
        with pytest.raises(otel_audit.InstrumentationError, match="no HTTP request can be audited"):
            instrumentor.instrument()
        monkeypatch.delenv("OTEL_AUDIT_REQUIRED")
        instrumentor.instrument(config=config)
        assert "AuditInstrumentor only instruments" in caplog.text
        assert otel_audit.health() == {"auditing": False}

    async def test_required_may_be_given_to_the_instrumentor(self, config, stored_rows):
        """As an argument it stands for the setting."""
        AuditInstrumentor().instrument(required=True, config=config)
        with pytest.raises(otel_audit.InstrumentationError, match="another configuration"):
            otel_audit.instrument(config=config)
        otel_audit.instrument(config=config.model_copy(update={"required": True}))

    async def test_required_may_be_given_beside_settings_of_every_form(self, config, stored_rows):
        """Those that are lists of objects, too."""
        rules = (Rule("none", paths=("/health",)),)
        config = config.model_copy(update={"policy_rules": rules})
        AuditInstrumentor().instrument(required=True, config=config)
        otel_audit.instrument(config=config.model_copy(update={"required": True}))

    async def test_no_destination_is_an_error(self):
        """One call without anywhere to keep records says which setting is missing."""
        with pytest.raises(otel_audit.ConfigurationError, match="OTEL_AUDIT_DSN"):
            otel_audit.instrument(make_app())

    async def test_required_without_schema_refuses(self, database, stored_rows):
        """With required, a store that cannot take records is an error at once."""
        with pytest.raises(otel_audit.StoreError, match="otel-audit init"):
            otel_audit.instrument(make_app(), config=AuditConfig(dsn=database, required=True))
        assert otel_audit.health() == {"auditing": False}

    async def test_an_unreachable_store_does_not_stop_the_application(
        self, tmp_path, caplog, stored_rows
    ):
        """Without required the application starts, answers, and says that records wait."""
        config = AuditConfig(
            dsn=f"postgresql://nobody@/audit?host={tmp_path}",
            batch_interval=0.01,
            shutdown_timeout=0.1,
        )
        app = make_app()
        with caplog.at_level(logging.WARNING):
            otel_audit.instrument(app, config=config)
            assert (await place_order(app)).status_code == 201
            async with asyncio.timeout(60):
                while "Audit records wait" not in caplog.text:  # noqa: ASYNC110 - a thread says it
                    await asyncio.sleep(0.01)
            assert not await asyncio.to_thread(otel_audit.flush, 0.3)
        assert otel_audit.health()["healthy"] is False
        assert "Audit records wait" in caplog.text
