"""The OTLP sink as a real process on the loopback interface, and what is sent to it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from ports import free_port
from preloaded import Process

from otel_audit.server.credentials import new_token

START = 1_790_000_000_123_456_789


class Sink:
    """A running sink: its address, its process, what it has printed, a client with its token."""

    def __init__(self, process: Process, url: str, log: Path, token: str) -> None:
        self.process = process
        self.url = url
        self.token = token
        self._log = log
        self.client = httpx.Client(base_url=url, timeout=30)
        if token:
            self.client.headers["Authorization"] = f"Bearer {token}"

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until_up(self, timeout: float = 60.0) -> None:
        host, _, port = self.url.partition("://")[2].rpartition(":")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            time.sleep(0.01)
        raise AssertionError(f"not up in {timeout} s:\n{self.output}")

    def traces(self, content: bytes, **headers: str) -> httpx.Response:
        sent = {"Content-Type": "application/x-protobuf", **_spelled(headers)}
        return self.client.post("/v1/traces", content=content, headers=sent)

    def json(self, path: str, message: Any, **headers: str) -> httpx.Response:
        return self.client.post(path, json=message, headers=_spelled(headers))


def _spelled(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextlib.contextmanager
def serving(
    directory: Path,
    dsn: str,
    *options: str,
    environment: Mapping[str, str] | None = None,
    token: Mapping[str, Any] | None = None,
    no_token: bool = False,
    scheme: str = "http",
) -> Iterator[Sink]:
    """Start `otel-audit serve`, with one token unless told otherwise."""
    secret = ""
    if not no_token:
        secret, lines = new_token(**{"name": "test", **(token or {})})
        (directory / "tokens.toml").write_text(lines)
        options = ("--tokens", str(directory / "tokens.toml"), *options)
    port = free_port()
    log = directory / f"sink-{port}.log"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    process = Process(
        ["serve", "--port", str(port), *options],
        cwd=directory,
        env={**clean, "OTEL_AUDIT_DSN": dsn, **(environment or {})},
        stdout=log,
    )
    sink = Sink(process, f"{scheme}://127.0.0.1:{port}", log, secret)
    try:
        sink.wait_until_up()
        yield sink
    finally:
        sink.client.close()
        _end(process)


def _end(process: Process) -> None:
    """Ask it to end, so that its workers end, too; and see that it does."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise


def attributes(**told: Any) -> dict[str, Any]:
    """The attributes of a flagged span that says what it must; dots are written as two lines."""
    plain = {
        "audit.flagged": True,
        "audit.actor.id": "user-1",
        "audit.actor.type": "user",
        "audit.action": "CREATE",
        "audit.outcome": "success",
    }
    plain.update({name.replace("__", "."): value for name, value in told.items()})
    return {name: value for name, value in plain.items() if value is not None}


def span(number: int = 1, name: str = "order.created", **told: Any) -> Span:
    """A flagged span of somebody else's tracing."""
    found = attributes(**told)
    return Span(
        trace_id=bytes.fromhex(trace_of(str(found.get("audit.actor.id")))),
        span_id=number.to_bytes(8, "big"),
        name=name,
        start_time_unix_nano=START + 1000 * number,
        end_time_unix_nano=START + 1000 * number + 5_000_000,
        attributes=pairs(found),
    )


def trace_of(actor: str) -> str:
    """Each actor has a trace of its own, so that equal spans of two have not the same id."""
    return hashlib.sha256(actor.encode()).hexdigest()[:32]


def pairs(found: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any(value)) for key, value in found.items()]


def _any(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_any(one) for one in value]))
    return AnyValue(string_value=value)


def request(*spans: Span, service: str = "orders", scope: str = "app") -> bytes:
    """An ``ExportTraceServiceRequest`` with these spans."""
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(attributes=pairs({"service.name": service})),
                scope_spans=[ScopeSpans(scope=InstrumentationScope(name=scope), spans=list(spans))],
            )
        ]
    ).SerializeToString()


def trusting(authority: Path, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    """A client's side of TLS."""
    context = ssl.create_default_context(cafile=str(authority))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context
