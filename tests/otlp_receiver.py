"""A small OTLP/HTTP receiver on the loopback interface, which can be told to misbehave."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel_audit.attributes import SCOPE_NAME, record_from_attributes
from otel_audit.record import AuditRecord

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    content_type: str = PROTOBUF
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    at: float
    path: str
    headers: dict[str, str]
    records: list[AuditRecord]


def partial_success(rejected: int, message: str = "") -> Answer:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return Answer(body=response.SerializeToString())


@dataclass
class Receiver:
    """What arrived; what was answered with success is stored."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    stored: list[AuditRecord] = field(default_factory=list)
    decide: Callable[[Asked], Answer] = lambda _asked: Answer()
    next: list[Answer] = field(default_factory=list)
    """Answers for the next requests, before `decide` is asked again."""

    def take(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        answer = self.next.pop(0) if self.next else self.decide(asked)
        if answer == Answer():
            self.stored += asked.records
        return answer

    def wait_for(self, count: int, within: float = 10.0) -> None:
        until = time.monotonic() + within
        while len(self.stored) < count:
            assert time.monotonic() < until, f"{len(self.stored)} of {count} have arrived"
            time.sleep(0.01)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver()
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(receiver))
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def read_request(body: bytes) -> list[AuditRecord]:
    """Read the records in a request, as any receiver could by the documented attributes."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        record_from_attributes(
            {pair.key: plain(pair.value) for pair in span.attributes},
            name=span.name,
            start_time=span.start_time_unix_nano,
            end_time=span.end_time_unix_nano,
            trace=(span.trace_id.hex(), span.parent_span_id.hex()) if span.parent_span_id else None,
            own_ids=(span.trace_id.hex(), span.span_id.hex()),
            resource={pair.key: plain(pair.value) for pair in group.resource.attributes},
        )
        for group in request.resource_spans
        for scoped in group.scope_spans
        for span in scoped.spans
        if scoped.scope.name == SCOPE_NAME
    ]


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(time.monotonic(), self.path, headers, read_request(body))
            answer = receiver.take(asked)
            time.sleep(answer.after)
            self.send_response(answer.status)
            if answer.content_type:
                self.send_header("Content-Type", answer.content_type)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                return  # the client has gone

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    return Handler
