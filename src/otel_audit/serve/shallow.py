"""OTLP requests in protobuf, read no deeper than to the attributes, which stay the bytes they are.

The same messages as OTLP's own (https://github.com/open-telemetry/opentelemetry-proto) with fewer
fields: what is declared as bytes here is a message there. An object for each attribute and one for
each value would cost more than all else that is done to them.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE: Final = "otel_audit.shallow"
_TEXT: Final = FieldDescriptorProto.TYPE_STRING
_BYTES: Final = FieldDescriptorProto.TYPE_BYTES
_TIME: Final = FieldDescriptorProto.TYPE_FIXED64

# numbers as in OTLP; a message's name stands for its type
_MESSAGES: Final[dict[str, dict[str, tuple[int, int | str]]]] = {
    "Resource": {"attributes": (1, _BYTES)},
    "Scope": {"name": (1, _TEXT)},
    "Span": {
        "trace_id": (1, _BYTES), "span_id": (2, _BYTES), "parent_span_id": (4, _BYTES),
        "name": (5, _TEXT), "start_time_unix_nano": (7, _TIME), "end_time_unix_nano": (8, _TIME),
        "attributes": (9, _BYTES),
    },
    "ScopeSpans": {"scope": (1, "Scope"), "spans": (2, "Span")},
    "ResourceSpans": {"resource": (1, "Resource"), "scope_spans": (2, "ScopeSpans")},
    "TraceRequest": {"resource_spans": (1, "ResourceSpans")},
    "Log": {
        "time_unix_nano": (1, _TIME), "observed_time_unix_nano": (11, _TIME),
        "event_name": (12, _TEXT), "trace_id": (9, _BYTES), "span_id": (10, _BYTES),
        "attributes": (6, _BYTES), "body": (5, _BYTES),
    },
    "ScopeLogs": {"scope": (1, "Scope"), "log_records": (2, "Log")},
    "ResourceLogs": {"resource": (1, "Resource"), "scope_logs": (2, "ScopeLogs")},
    "LogsRequest": {"resource_logs": (1, "ResourceLogs")},
}  # fmt: skip
# a body is one: all that came under its number, one after another, are the same message
_SEVERAL: Final = frozenset({
    "attributes", "body", "spans", "scope_spans", "resource_spans", "log_records", "scope_logs",
    "resource_logs",
})  # fmt: skip


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="otel_audit/shallow.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = (
                FieldDescriptorProto.LABEL_REPEATED
                if name in _SEVERAL
                else FieldDescriptorProto.LABEL_OPTIONAL
            )
            if isinstance(kind, str):
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = kind
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _class(pool: DescriptorPool, name: str) -> Any:
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_POOL: Final = _pool()

Resource: Final = _class(_POOL, "Resource")
Span: Final = _class(_POOL, "Span")
Log: Final = _class(_POOL, "Log")
TraceRequest: Final = _class(_POOL, "TraceRequest")
LogsRequest: Final = _class(_POOL, "LogsRequest")
