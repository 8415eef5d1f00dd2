"""What auditing costs a request: CPU time of the whole process, the delivery to Postgres included.

The same application as it is, under OpenTelemetry, and under OpenTelemetry and otel-audit, in turn,
round after round, so that whatever else the machine does falls on all of them alike. No network
and no server: only what happens in the application's process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_audit
from otel_audit import AuditConfig

ROUNDS, REQUESTS = 15, 60
BODY = msgspec.json.encode(
    {"note": "ring twice", "lines": [{"product": f"tea {n}", "quantity": n} for n in range(30)]}
)
HEADERS = [(b"content-type", b"application/json"), (b"host", b"shop"), (b"user-agent", b"bench")]

Ask = Callable[[str, str], Awaitable[None]]


def an_app() -> FastAPI:
    app = FastAPI(telemetry={"tracing": False})

    @app.post("/orders", status_code=201)
    async def create(order: dict[str, Any]) -> dict[str, Any]:
        return {"id": 1, **order}

    @app.get("/orders/{order_id}")
    async def read(order_id: int) -> dict[str, Any]:
        return {"id": order_id, "note": "ring twice"}

    @app.get("/health")
    async def health() -> str:
        return "well"

    return app


def asker(app: FastAPI) -> Ask:
    async def ask(method: str, path: str) -> None:
        body = BODY if method == "POST" else b""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None: ...

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "headers": list(HEADERS), "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await app(scope, receive, send)

    return ask


def traced(app: FastAPI) -> FastAPI:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    return app


@pytest.fixture
async def variants(audit_store: str) -> Any:
    audited = traced(an_app())
    otel_audit.instrument(
        audited, config=AuditConfig(dsn=audit_store, sensitive_paths=("/orders",))
    )
    yield {"plain": asker(an_app()), "traced": asker(traced(an_app())), "audited": asker(audited)}
    await asyncio.to_thread(otel_audit.uninstrument)


async def measure(variants: dict[str, Ask], method: str, path: str) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(ROUNDS + 2):
        for name, ask in variants.items():
            began = time.process_time()
            for _ in range(REQUESTS):
                await ask(method, path)
            await asyncio.to_thread(otel_audit.flush, 30)
            if number >= 2:
                spent[name].append((time.process_time() - began) / REQUESTS * 1e6)
    return spent


async def bench_cost_of_a_request(variants, capsys):
    """CPU microseconds per request, median over the rounds, and as ratios."""
    lines = [f"{'':32}{'plain':>10}{'traced':>10}{'audited':>10}   audited/traced  /plain"]
    for title, method, path in (
        ("write, recorded in full", "POST", "/orders"),
        ("read, level metadata", "GET", "/orders/1"),
        ("not recorded", "GET", "/health"),
    ):
        spent = await measure(variants, method, path)
        middle = {name: statistics.median(values) for name, values in spent.items()}
        lines.append(
            f"{title:32}"
            + "".join(f"{middle[name]:>10.0f}" for name in ("plain", "traced", "audited"))
            + f"{middle['audited'] / middle['traced']:>17.2f}{middle['audited'] / middle['plain']:>8.2f}"
        )
    with capsys.disabled():
        print("\n\nCPU µs per request\n" + "\n".join(lines))
