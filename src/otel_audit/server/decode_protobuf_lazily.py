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

# numbers as in OTLP
_MESSAGES: Final[dict[str, dict[str, tuple[int, int]]]] = {
    "Span": {
        "trace_id": (1, _BYTES), "span_id": (2, _BYTES), "parent_span_id": (4, _BYTES),
        "name": (5, _TEXT), "start_time_unix_nano": (7, _TIME), "end_time_unix_nano": (8, _TIME),
        "attributes": (9, _BYTES),
    },
    "Log": {
        "time_unix_nano": (1, _TIME), "observed_time_unix_nano": (11, _TIME),
        "event_name": (12, _TEXT), "trace_id": (9, _BYTES), "span_id": (10, _BYTES),
        "attributes": (6, _BYTES), "body": (5, _BYTES),
    },
    "Pair": {"key": (1, _TEXT), "value": (2, _BYTES)},
    "Value": {"string_value": (1, _TEXT), "array_value": (5, _BYTES)},
}  # fmt: skip
# a body is one: all that came under its number, one after another, are the same message
_SEVERAL: Final = frozenset({"attributes", "body"})


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
            field.type = kind
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _class(pool: DescriptorPool, name: str) -> Any:
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_POOL: Final = _pool()

Span: Final = _class(_POOL, "Span")
Log: Final = _class(_POOL, "Log")
Pair: Final = _class(_POOL, "Pair")
Value: Final = _class(_POOL, "Value")
