"""What someone else's exporter sends: flagged spans in plain OTLP, and what became of them."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
from collector.collectors import Process
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

MANDATORY = {
    "audit.flagged": True,
    "audit.actor.id": "u-1",
    "audit.actor.type": "user",
    "audit.action": "UPDATE",
    "audit.outcome": "success",
}


def attribute(name: str, value: Any) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=name, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=name, value=AnyValue(int_value=value))
    return KeyValue(key=name, value=AnyValue(string_value=value))


def span(name: str, attributes: dict[str, Any], *, trace_id: bytes | None = None) -> Span:
    now = time.time_ns()
    return Span(
        trace_id=trace_id or secrets.token_bytes(16),
        span_id=secrets.token_bytes(8),
        name=name,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=now,
        end_time_unix_nano=now + 1_000_000,
        attributes=[attribute(key, value) for key, value in attributes.items()],
    )


def request_of(spans: Iterable[Span]) -> bytes:
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(attributes=[attribute("service.name", "billing")]),
                scope_spans=[
                    ScopeSpans(scope=InstrumentationScope(name="billing"), spans=list(spans))
                ],
            )
        ]
    ).SerializeToString()


def audit_span(request_id: str, **more: Any) -> Span:
    """A flagged span that can be found again in the store by its request id."""
    attributes = {**MANDATORY, "audit.request.id": request_id}
    return span("invoice.paid", {**attributes, **more})


@dataclass
class Sender:
    """Sends audit spans in small batches; every refused one again, as an exporter would."""

    url: str
    verify: ssl.SSLContext | bool = True
    timeout: float = 10.0
    acknowledged: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def post(self, body: bytes, client: httpx.Client) -> bool:
        try:
            answer = client.post(
                f"{self.url}/v1/traces",
                content=body,
                headers={"Content-Type": "application/x-protobuf"},
            )
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return False
        self.answers[str(answer.status_code)] += 1
        return answer.status_code == 200

    def client(self) -> httpx.Client:
        return httpx.Client(verify=self.verify, timeout=self.timeout)

    def send(
        self, count: int, *, batch: int = 5, give_up_after: float = 60.0, note: str = ""
    ) -> list[str]:
        """Send so many audit spans, each batch until it is accepted; their request ids."""
        sent: list[str] = []
        deadline = time.monotonic() + give_up_after
        with self.client() as client:
            while len(sent) < count:
                ids = [str(uuid.uuid4()) for _ in range(min(batch, count - len(sent)))]
                body = request_of([audit_span(one, **{"audit.note": note}) for one in ids])
                while not self.post(body, client):
                    assert time.monotonic() < deadline, self.answers
                    time.sleep(0.1)
                sent += ids
                self.acknowledged += ids
        return sent


async def stored_ids(store: str) -> list[str]:
    """Request ids of all the rows, in no order; one that is stored twice stands there twice."""
    connection = await asyncpg.connect(store)
    try:
        rows = await connection.fetch("SELECT request_id FROM audit.audit_logs")
    finally:
        await connection.close()
    return [row["request_id"] for row in rows]


async def quarantined(store: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(store)
    try:
        return list(await connection.fetch("SELECT * FROM audit.quarantine"))
    finally:
        await connection.close()


async def eventually(
    look: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool], within: float = 40.0
) -> Any:
    deadline = asyncio.get_running_loop().time() + within
    while not wanted(found := await look()):
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.2)
    return found


def said(process: Process, words: str) -> Callable[[], Awaitable[bool]]:
    """Whether a process has printed something by now: it does so after what it tells of."""

    async def look() -> bool:
        return words in process.output

    return look


async def all_stored_once(store: str, sent: Iterable[str], within: float = 90.0) -> None:
    """Wait until everything acknowledged is stored; fail if anything is missing or doubled.

    A Collector pauses for up to 45 s before it tries again what it could not pass on.
    """
    wanted = sorted(sent)
    found = await eventually(
        lambda: stored_ids(store), lambda ids: set(wanted) <= set(ids), within=within
    )
    assert sorted(found) == wanted
