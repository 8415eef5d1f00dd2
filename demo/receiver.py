"""An ordinary trace backend, as small as it gets: takes OTLP over HTTP and remembers the spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_CONTENT_TYPE = "application/x-protobuf"


@dataclass(frozen=True)
class ReceivedSpan:
    """What we keep of a span."""

    name: str
    trace_id: str
    span_id: str
    is_server: bool
    attributes: frozenset[str]


@dataclass
class Receiver:
    """The spans that arrived, and the bytes they arrived in."""

    endpoint: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    @property
    def server_spans(self) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.is_server]

    def take(self, body: bytes) -> None:
        """Decode one export request.

        Raises:
            DecodeError: It is none.
        """
        request = ExportTraceServiceRequest.FromString(body)
        self.received.append(body)
        self.spans += [
            _keep(span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Listen on a free port of the loopback address."""
    receiver = Receiver()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(receiver))
    receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="otlp-receiver", daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _keep(span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        is_server=span.kind == Span.SPAN_KIND_SERVER,
        attributes=frozenset(attribute.key for attribute in span.attributes),
    )


def _handler_for(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/v1/traces":
                self._answer(404)
                return
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(body)
            except (DecodeError, OSError, EOFError):
                self._answer(400)
                return
            self._answer(200, ExportTraceServiceResponse().SerializeToString())

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    return Handler
