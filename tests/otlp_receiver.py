"""A small OTLP/HTTP receiver on the loopback interface, which can be told to misbehave."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from demo.receiver import Answer as PlainAnswer
from demo.receiver import listening
from otel_audit.attributes import SCOPE_NAME, record_from_attributes
from otel_audit.record import AuditRecord


@dataclass(frozen=True)
class Answer(PlainAnswer):
    """An answer that may come late, by seconds."""

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

    def wait_for(self, count: int, within: float = 60.0) -> None:
        until = time.monotonic() + within
        while len(self.stored) < count:
            assert time.monotonic() < until, f"{len(self.stored)} of {count} have arrived"
            time.sleep(0.01)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver()

    def respond(path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = receiver.take(Asked(time.monotonic(), path, dict(headers), read_request(body)))
        time.sleep(answer.after)
        return answer

    with listening(respond, tls=tls, port=port) as receiver.url:
        yield receiver


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
