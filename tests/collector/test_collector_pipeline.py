"""Application, agent, gateway, sink, Postgres: every record, and only the sampled traces."""

from __future__ import annotations

import json
import secrets
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from collector.collectors import BIN, Collector, Process, running
from collector.senders import (
    MANDATORY,
    Sender,
    audit_span,
    eventually,
    quarantined,
    request_of,
    span,
    stored_ids,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from ports import free_port

pytestmark = pytest.mark.collector

TAIL_SAMPLING = {"TRACES_KEEP_PERCENT": "0", "TRACES_DECISION_WAIT": "1s"}
"""Of the traces that get as far as the gateway only those with an error are kept."""


def shop(url: str, directory: Path) -> Process:
    """The application, auto-instrumented; traces by its own exporter, audit by ours."""
    port = free_port()
    return Process(
        "shop",
        [
            *(str(BIN / "opentelemetry-instrument"), str(BIN / "uvicorn"), "shop:app"),
            *("--port", str(port), "--app-dir", str(Path(__file__).parent)),
        ],
        {
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_AUDIT_EXPORTER": "otlp",
            "OTEL_AUDIT_OTLP_ENDPOINT": url,
            "OTEL_AUDIT_SPAN_PAYLOAD": "full",
            "OTEL_AUDIT_SPOOL_DIR": str(directory / "spool"),
            "OTEL_AUDIT_STREAM_RECORDS": "false",
        },
        directory,
        f"http://127.0.0.1:{port}/up",
    )


def traceparent() -> dict[str, str]:
    """The header of a caller that has sampled its trace."""
    return {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}


async def rows_of(store: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(store)
    try:
        return list(await connection.fetch("SELECT * FROM audit.audit_logs"))
    finally:
        await connection.close()


def spans_in(received: list[bytes]) -> Iterator[dict[str, object]]:
    for body in received:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for found in scope.spans:
                    names = {one.key for one in found.attributes}
                    yield {"scope": scope.scope.name, "trace": found.trace_id.hex(), "names": names}


async def test_all_the_records_and_only_the_sampled_traces(pipeline, tmp_path):
    """1 % head sampling in the application, tail sampling in the gateway: audit feels neither."""
    with pipeline("tail-sampling.yaml", gateway=TAIL_SAMPLING) as it:
        app = shop(it.url, tmp_path)
        base = app.up_at.removesuffix("/up")
        with running(app), httpx.Client(base_url=base, timeout=60) as client:
            asked: Counter[str] = Counter()
            failed = set()
            for number in range(120):
                headers = traceparent() if number % 30 == 0 else {}
                answer = client.post("/orders", json={"item": "tea"}, headers=headers)
                assert answer.status_code == 201
                asked["/orders"] += 1
            for _ in range(3):
                headers = traceparent()
                failed.add(headers["traceparent"].split("-")[1])
                # on a connection of its own: the server closes it after an error
                answer = httpx.post(
                    f"{base}/refunds", json={"to": "me"}, headers=headers, timeout=60
                )
                assert answer.is_server_error
                asked["/refunds"] += 1

            def kept() -> set[str]:
                return {str(one["trace"]) for one in spans_in(it.backend.received)}

            async def look() -> tuple[int, set[str]]:
                return len(await rows_of(it.store)), kept()

            await eventually(look, lambda found: found[0] >= 123 and failed <= found[1])
            app.stop()
        rows = await rows_of(it.store)
        assert Counter(row["http_route"] for row in rows) == asked
        assert kept() == failed
        order = next(row for row in rows if row["http_route"] == "/orders")
        payload = json.loads(order["payload"])
        assert order["service_name"] == "shop"
        assert order["transaction_outcome"] == "committed"
        assert payload["request"]["body"]["content"] == {"item": "tea"}
        assert len(payload["changes"]) == 1
        sampled = [row for row in rows if json.loads(row["payload"]).get("trace_sampled")]
        assert 7 <= len(sampled) < 60


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_the_application_holds_what_the_agent_cannot_take(pipeline, tmp_path, how):
    """Agent away: records stay in the application's spool, over its own end too."""
    with pipeline() as it:
        app = shop(it.url, tmp_path)
        orders = f"{app.up_at.removesuffix('/up')}/orders"
        with running(app):

            def order(count: int) -> None:
                with httpx.Client(timeout=60) as client:
                    for _ in range(count):
                        assert client.post(orders, json={"item": "tea"}).status_code == 201

            order(5)
            it.agent.kill()
            order(20)
            app.restart(how)
            order(5)
            it.agent.start()

            async def stored() -> int:
                return len(await rows_of(it.store))

            await eventually(stored, lambda count: count >= 30, within=90)
            app.stop()
        rows = await rows_of(it.store)
        assert len(rows) == 30
        # killed after the answer, before the action's end: known, and not known how it ended
        unknown = [row for row in rows if row["outcome"] == "unknown"]
        assert len(unknown) <= (how == signal.SIGKILL)
        assert {row["outcome"] for row in rows} - {"unknown"} == {"success"}
        assert await quarantined(it.store) == []


async def test_the_traces_lose_what_is_heavy_or_personal(pipeline):
    """A flagged span of someone else: a whole row in the store, a lean span in the backend."""
    personal = {
        "audit.request.body": '{"item":"tea"}',
        "audit.request.body.content_type": "application/json",
        "audit.changes": '[{"operation":"insert","entity":"Invoice","table":"invoice"}]',
        "audit.metadata": '{"note":"x"}',
        "audit.error.message": "card declined",
        "error.type": "Declined",
        "audit.actor.role": "clerk",
        "user.email": "a@b.example",
        "audit.tenant.id": "acme",
    }
    with pipeline() as it:
        sender = Sender(it.url)
        trace = secrets.token_bytes(16)
        root = span(
            "POST /pay", {**MANDATORY, **personal, "audit.request.id": "r1"}, trace_id=trace
        )
        plain = span("SELECT", {"db.system.name": "postgresql"}, trace_id=trace)
        with sender.client() as client:
            assert sender.post(request_of([root, plain]), client)

        async def both() -> tuple[list[asyncpg.Record], list[dict[str, object]]]:
            return await rows_of(it.store), list(spans_in(it.backend.received))

        rows, spans = await eventually(both, lambda found: found[0] and len(found[1]) >= 2)
    (row,) = rows
    payload = json.loads(row["payload"])
    assert payload["actor"]["email"] == "a@b.example"
    assert payload["metadata"] == {"note": "x"}
    assert payload["request"]["body"]["content"] == {"item": "tea"}
    assert row["trace_id"] == trace.hex()
    assert sorted(len(one["names"]) for one in spans) == [1, 6]
    assert {one["trace"] for one in spans} == {trace.hex()}
    lean = max(spans, key=lambda one: len(one["names"]))["names"]
    assert lean == {
        "audit.actor.type",
        "audit.action",
        "audit.outcome",
        "audit.request.id",
        "audit.tenant.id",
        "error.type",
    }


async def test_spans_that_only_carry_a_record_do_not_reach_the_traces(pipeline):
    """Else the backend would show an unsampled span without its trace for each action."""
    with pipeline() as it:
        sender = Sender(it.url)
        with sender.client() as client:
            message = ExportTraceServiceRequest.FromString(request_of([audit_span("r1")]))
            message.resource_spans[0].scope_spans[0].scope.name = "otel_audit"
            assert sender.post(message.SerializeToString(), client)
            assert sender.post(request_of([span("GET /", {})]), client)

        async def both() -> tuple[list[str], int]:
            return await stored_ids(it.store), len(it.backend.received)

        await eventually(both, lambda found: found[0] == ["r1"] and found[1] >= 1)
        assert {one["scope"] for one in spans_in(it.backend.received)} == {"billing"}


async def test_only_known_certificates_may_send_to_the_gateway(pipeline):
    """Whoever reached the gateway could write into the trail under its name."""
    with pipeline() as it:
        for variable in ("GATEWAY_HTTP", "GATEWAY_AUDIT_HTTP"):
            with pytest.raises(httpx.TransportError):
                httpx.post(f"{it.gateway.url(variable, 'https')}/v1/traces", verify=False)


async def test_what_the_readme_says_to_watch_can_be_watched(pipeline):
    """Depth and bound of the queue, and what was given up."""
    with pipeline() as it:
        it.sink.kill()
        Sender(it.url).send(5)

        async def depth() -> float:
            return metric(it.gateway, "otelcol_exporter_queue_size")

        await eventually(depth, lambda found: found > 0)
        assert metric(it.gateway, "otelcol_exporter_queue_capacity") == 4 << 30


async def test_a_refusal_for_good_is_a_loss_and_is_counted(pipeline, backend):
    """What remains: a Collector drops what is answered 404, as by a wrong path or a proxy."""
    with pipeline(gateway={"AUDIT_SINK_ENDPOINT": f"{backend.endpoint}/elsewhere"}) as it:
        Sender(it.url).send(5)

        async def lost() -> float:
            return metric(it.gateway, "otelcol_exporter_send_failed_spans")

        assert await eventually(lost, bool) == 5


def metric(collector: Collector, name: str) -> float:
    """The value that a Collector's own metrics give for its audit exporter."""
    (variable,) = (one for one in collector.ports if one.endswith("METRICS_PORT"))
    text = httpx.get(f"{collector.url(variable)}/metrics", timeout=60).text
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and 'exporter="otlp_http/audit"' in line:
            return float(line.rpartition(" ")[2])
    return 0.0
