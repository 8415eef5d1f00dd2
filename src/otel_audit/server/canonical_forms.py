"""The canonical forms of a log record: what the draft audit signal hashes and signs.

A Collector's ``signingprocessor`` signs the RFC 8785 form of a JSON object of the record without
its ``audit.integrity.*`` attributes. That object has changed: values came as they are, times as
numbers, severity with them; since its pull request 50892 each value has its type beside it, and
times are texts. The draft names the canonicalization, but not which of these: all are tried.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import rfc8785
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit.audit_signal import INTEGRITY

Form = Literal["jcs", "jcs-typed"]

_DEEPEST: Final = 128
"""Levels of a value, far below Python's own bound; what is deeper has no canonical form."""
_EXACT: Final = (1 << 53) - 1
"""The largest integer that RFC 8785, which knows doubles only, writes exactly."""


class UndecodableRecordError(ValueError):
    """A log record that has no canonical form."""


def parse_log(raw: bytes) -> LogRecord:
    """Read one log record as it came, in protobuf or in OTLP's JSON.

    Raises:
        UndecodableRecordError: It is neither.
    """
    try:
        # no field of a LogRecord has a tag that is the byte of "{"
        return _from_json(json.loads(raw)) if raw[:1] == b"{" else LogRecord.FromString(raw)
    except (DecodeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UndecodableRecordError(f"no log record: {type(error).__name__}") from None


def canonical_forms(record: LogRecord) -> Iterator[tuple[Form, bytes]]:
    """Write a record in each form in which it may have been signed, the newest first.

    Raises:
        UndecodableRecordError: It is too deep, or its text is none.
    """
    try:
        yield "jcs-typed", rfc8785.dumps(_document(record, is_typed=True, with_typed_body=False))
        if record.HasField("body"):
            yield "jcs-typed", rfc8785.dumps(_document(record, is_typed=True, with_typed_body=True))
        for times_are_texts in (True, False):
            for with_severity in (False, True):
                found = _document(record, is_typed=False, with_typed_body=False)
                if not times_are_texts:
                    found |= {
                        name: float(found[name])
                        for name in ("timestamp", "observed_timestamp")
                        if name in found
                    }
                if with_severity:
                    found |= _severity(record)
                yield "jcs", rfc8785.dumps(found)
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise UndecodableRecordError(f"no canonical form: {type(error).__name__}") from None


def integrity_hash(payload: bytes) -> str:
    """SHA-256, in hex, over the RFC 8785 form of a stored record.

    Integers that a double cannot hold, as times in nanoseconds, are written as texts: so OTLP's
    JSON has them, and RFC 8785 has no others.

    Args:
        payload: The stored text.
    """
    return hashlib.sha256(rfc8785.dumps(_with_exact_numbers(json.loads(payload)))).hexdigest()


def _with_exact_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_exact_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_exact_numbers(one) for one in value]
    if type(value) is int and not -_EXACT <= value <= _EXACT:
        return str(value)
    return value


def _document(record: LogRecord, *, is_typed: bool, with_typed_body: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if record.event_name:
        found["event_name"] = record.event_name
    if record.HasField("body") and record.body.WhichOneof("value") is not None:
        found["body"] = _value(record.body, is_typed=with_typed_body)
    if record.time_unix_nano:
        found["timestamp"] = str(record.time_unix_nano)
    if record.observed_time_unix_nano:
        found["observed_timestamp"] = str(record.observed_time_unix_nano)
    if any(record.trace_id):
        found["trace_id"] = record.trace_id.hex()
    if any(record.span_id):
        found["span_id"] = record.span_id.hex()
    attributes = {
        pair.key: _value(pair.value, is_typed=is_typed)
        for pair in record.attributes
        if not pair.key.startswith(INTEGRITY)
    }
    if attributes:
        found["attributes"] = attributes
    return found


def _severity(record: LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if record.severity_number:
        found["severity_number"] = int(record.severity_number)
    if record.severity_text:
        found["severity_text"] = record.severity_text
    return found


def _value(value: AnyValue, *, is_typed: bool, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise UndecodableRecordError("a value is too deep")
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one, is_typed=is_typed, depth=depth + 1) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {
            pair.key: _value(pair.value, is_typed=is_typed, depth=depth + 1)
            for pair in value.kvlist_value.values
        }
    if kind is None:
        return None
    if kind == "int_value":
        # untyped integers became doubles on the way to RFC 8785
        return {"intValue": str(value.int_value)} if is_typed else float(value.int_value)
    found: Any = getattr(value, kind)
    if kind == "bytes_value":
        found = base64.b64encode(found).decode()
    return {_TYPES[kind]: found} if is_typed else found


_TYPES: Final = {
    "string_value": "stringValue", "double_value": "doubleValue", "bool_value": "boolValue",
    "bytes_value": "bytesValue",
}  # fmt: skip


def _from_json(document: dict[str, Any]) -> LogRecord:
    """Read OTLP's JSON, where ids are in hex, which protobuf's own JSON does not know."""
    record = LogRecord(
        time_unix_nano=int(document.get("timeUnixNano", 0)),
        observed_time_unix_nano=int(document.get("observedTimeUnixNano", 0)),
        event_name=document.get("eventName", ""),
        trace_id=bytes.fromhex(document.get("traceId", "")),
        span_id=bytes.fromhex(document.get("spanId", "")),
        severity_number=int(document.get("severityNumber", 0)),  # type: ignore[arg-type]
        severity_text=document.get("severityText", ""),
    )
    for pair in document.get("attributes", ()):
        _fill(record.attributes.add(key=pair["key"]).value, pair.get("value", {}), 0)
    if document.get("body"):
        _fill(record.body, document["body"], 0)
    return record


def _fill(value: AnyValue, document: dict[str, Any], depth: int) -> None:
    if depth > _DEEPEST:
        raise UndecodableRecordError("a value is too deep")
    kind = next((one for one in _READERS if one in document), None)
    if kind is not None:
        name, read = _READERS[kind]
        setattr(value, name, read(document[kind]))
    elif "arrayValue" in document:
        value.array_value.SetInParent()
        for one in document["arrayValue"].get("values", ()):
            _fill(value.array_value.values.add(), one, depth + 1)
    elif "kvlistValue" in document:
        value.kvlist_value.SetInParent()
        for pair in document["kvlistValue"].get("values", ()):
            inner = value.kvlist_value.values.add(key=pair["key"]).value
            _fill(inner, pair.get("value", {}), depth + 1)


_READERS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "stringValue": ("string_value", lambda text: text),
    "boolValue": ("bool_value", lambda flag: flag),
    "intValue": ("int_value", int),
    "doubleValue": ("double_value", float),
    "bytesValue": ("bytes_value", base64.b64decode),
}
