"""How each variant is attached to the shop, and how to know that it has nothing left to write.

Everything is imported where it is used: each variant runs in an environment that has only its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

KEY = "a key of forty characters for the bench."
ACTOR = {"sub": "user-1", "actor_type": "tenant_user", "email": "u@shop.example"}
METER = "/meter"
LEVELS = ("none", "metadata", "changes", "request", "request_response")


def _provider() -> Any:
    """Spans are made and batched as usual, then thrown away: encoding them is not measured."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def contrib(app: Any, engine: Any) -> None:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

    provider = _provider()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    SQLAlchemyInstrumentor().instrument(engine=engine.sync_engine, tracer_provider=provider)


def native(app: Any, engine: Any) -> None:
    from opentelemetry import trace
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

    trace.set_tracer_provider(_provider())
    SQLAlchemyInstrumentor().instrument(engine=engine.sync_engine)


def ours(app: Any, engine: Any, store: str, level: str) -> None:
    import otel_audit

    rules = (
        otel_audit.Rule("none", paths=(METER,)),
        otel_audit.Rule(level, paths=("/**",)),  # type: ignore[arg-type]
    )
    otel_audit.instrument(
        app,
        app_engine=engine,
        config=otel_audit.AuditConfig(
            dsn=store, jwt_key=KEY, jwt_algorithms=("HS256",), policy_rules=rules
        ),
    )


def fastapi_audit(app: Any, store: str) -> None:
    from fastapi_audit import AuditConfig, AuditMiddleware

    config = AuditConfig(
        control_db_url=as_sqlalchemy(store, "asyncpg"),
        jwt_secret=KEY,
        jwt_verify_signature=True,
        exclude_paths={METER},
    )
    app.add_middleware(AuditMiddleware, config=config)


def fastapi_audit_log(app: Any, store: str) -> None:
    from fastapi_audit_log import AuditLogger

    AuditLogger(
        app,
        db_url=as_sqlalchemy(store, "psycopg2"),
        log_request_body=True,
        log_response_body=True,
        exclude_paths=[METER],
    )


def audit_trail(app: Any, engine: Any, sessions: Any) -> None:
    from audit_trail import Actor, AuditTrail
    from audit_trail.integrations.fastapi import AuditMiddleware, set_actor
    from fastapi import Depends

    AuditTrail(engine, events=[]).install(sessions)

    async def whoever() -> None:
        set_actor(Actor("user", ACTOR["sub"], ACTOR["email"]))

    app.router.dependencies.append(Depends(whoever))
    app.add_middleware(AuditMiddleware)


def attach(variant: str, app: Any, engine: Any, sessions: Any, store: str) -> None:
    """Attach a variant to the application: ``plain``, ``otel``, ``audit:LEVEL``, ``peer:NAME``."""
    name, _, detail = variant.partition(":")
    if name == "contrib":
        contrib(app, engine)
    elif name == "native":
        native(app, engine)
    elif name == "alone":
        ours(app, engine, store, detail)
    elif name == "audit":
        contrib(app, engine)
        ours(app, engine, store, detail)
    elif variant == "peer:fastapi-audit":
        fastapi_audit(app, store)
    elif variant == "peer:fastapi-audit-log":
        fastapi_audit_log(app, store)
    elif variant == "peer:sqlalchemy-audit-trail":
        audit_trail(app, engine, sessions)
    elif variant != "plain":
        raise SystemExit(f"no such variant: {variant}")


async def settle(variant: str) -> None:
    """Wait until what was asked so far is written, as far as the variant lets one know."""
    name, _, peer = variant.partition(":")
    if name in ("audit", "alone"):
        import otel_audit

        if not await asyncio.to_thread(otel_audit.flush, 60):
            raise RuntimeError("not delivered in 60 s")
    elif peer == "fastapi-audit":
        for _ in range(6000):
            if not any("_write_async" in repr(task.get_coro()) for task in asyncio.all_tasks()):
                return
            await asyncio.sleep(0.01)
        raise RuntimeError("not written in 60 s")


async def prepare(variant: str, store: str) -> None:
    """Make the tables in which a variant keeps its trail."""
    name, _, peer = variant.partition(":")
    if name in ("audit", "alone"):
        import otel_audit_postgres

        await otel_audit_postgres.init(store)
    elif peer == "fastapi-audit":
        from fastapi_audit import create_tables
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(as_sqlalchemy(store, "asyncpg"))
        await create_tables(engine)
        await engine.dispose()
    elif peer == "sqlalchemy-audit-trail":
        await audit_trail_tables(store)


async def audit_trail_tables(dsn: str) -> None:
    from audit_trail import AuditTrail
    from audit_trail.migrations import create_audit_tables
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(as_sqlalchemy(dsn, "asyncpg"))
    trail = AuditTrail(engine, events=[])
    async with engine.begin() as connection:
        await connection.run_sync(
            lambda sync: create_audit_tables(sync, trail.tables, trail.severities)
        )
    await trail.maintenance.aensure_partitions()
    await engine.dispose()


def as_sqlalchemy(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://", 1)


def read_settings() -> dict[str, Any]:
    """The settings that the parent process put into the environment."""
    settings: dict[str, Any] = json.loads(os.environ["BENCH"])
    return settings
