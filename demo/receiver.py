"""An ordinary trace backend, as small as it gets: takes OTLP over HTTP and remembers the spans."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Answer:
    """What a request is answered with; no Content-Type where that is empty."""

    status: int = 200
    body: bytes = b""
    content_type: str = PROTOBUF
    headers: dict[str, str] = field(default_factory=dict)


Respond = Callable[[str, Mapping[str, str], bytes], Answer]
"""Takes a path, headers by lower-case names, and what the body was before it was compressed."""


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

    def respond(path: str, _: Mapping[str, str], body: bytes) -> Answer:
        if path != "/v1/traces":
            return Answer(404)
        try:
            receiver.take(body)
        except DecodeError:
            return Answer(400)
        return Answer(body=ExportTraceServiceResponse().SerializeToString())

    with listening(respond) as receiver.endpoint:
        yield receiver


@contextmanager
def listening(
    respond: Respond, *, tls: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[str]:
    """Serve HTTP on the loopback address, a thread a connection; the address."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler_for(respond))
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(
        target=server.serve_forever, args=(0.05,), name="otlp-receiver", daemon=True
    )
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
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


def _handler_for(respond: Respond) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                if headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
            except (OSError, EOFError):
                self._send(Answer(400))
                return
            self._send(respond(self.path, headers, body))

        def _send(self, answer: Answer) -> None:
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
