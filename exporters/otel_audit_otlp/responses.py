"""Meaning of a receiver's answer for the sent records (OTLP specification, OTLP/HTTP response)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from otel_audit._util.http_response import HttpResponse, retry_after
from otel_audit._util.printable import visible
from otel_audit.errors import MissingExtraError, StoreError, StoreUnavailableError

try:
    from google.protobuf.json_format import ParseDict, ParseError
    from google.protobuf.message import DecodeError, Message
    from google.rpc.status_pb2 import Status
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
except ImportError as missing:
    raise MissingExtraError("OTEL_AUDIT_EXPORTER=otlp", "otlp") from missing

_WHO: Final = "the receiver that OTEL_AUDIT_OTLP_ENDPOINT names"
_OK: Final = 200
_QUOTED: Final = 500
"""Characters of a receiver's message that an error quotes."""
_PASSING: Final = frozenset({408, 425, 429, 502, 503, 504})
"""Answers after which OTLP has senders try again, with Request Timeout and Too Early."""
_REMEDIES: Final = {
    401: "correct the token in OTEL_AUDIT_OTLP_HEADERS, or OTEL_AUDIT_OTLP_CLIENT_CERTIFICATE",
    403: "it knows us and does not let us in: see which token or certificate it expects",
    404: "there is nothing at this path: correct the URL; records go to …/v1/traces",
    405: "this path takes no POST: is it an OTLP/HTTP receiver?",
    407: "there is a proxy in between: name the receiver itself",
    410: "it is gone for good: correct the URL",
    411: "it asks for a Content-Length, which is sent: is it an OTLP/HTTP receiver?",
    415: "it takes no protobuf, or no gzip: set OTEL_AUDIT_OTLP_COMPRESSION=none, or look whether "
    "it is an OTLP/HTTP receiver",
    421: "it is not responsible for this host: correct the URL",
    426: "it wants another protocol: correct the URL",
}
_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"


def rejection_reason(answer: HttpResponse) -> str | None:
    """Return what an answer says about the sent records.

    Args:
        answer: The receiver's answer.

    Returns:
        None if the receiver has accepted all of them; otherwise why it refuses at least one.

    Raises:
        StoreUnavailableError: It cannot take records now; this says nothing about them.
        StoreError: It will take none before somebody has acted; the message says the remedy.
    """
    status = answer.status
    if status == _OK:
        return _objection_in_success(answer)
    if status in _PASSING or status >= 500:  # noqa: PLR2004 - RFC 9110, 15.6
        raise StoreUnavailableError(
            f"{_WHO} takes nothing now (status {status})", retry_after=retry_after(answer.headers)
        )
    remedy = _REMEDIES.get(status)
    if remedy is None and not 400 <= status < 500:  # noqa: PLR2004 - RFC 9110, 15.5
        remedy = "records go to no other address and need no other method: correct the URL"
    if remedy is not None:
        raise StoreError(f"{_WHO} answers with status {status}; {remedy}")
    return f"the receiver answered with status {status}{_in_its_words(answer)}"


def _objection_in_success(answer: HttpResponse) -> str | None:
    response = ExportTraceServiceResponse()
    if not _read_into(response, answer):
        raise StoreError(
            f"{_WHO} answers with status 200, but not as OTLP does; is it an OTLP/HTTP receiver?"
        )
    partial = response.partial_success
    if not partial.rejected_spans:
        return None
    return f"the receiver rejected it in a partial success{_quoted(partial.error_message)}"


def _in_its_words(answer: HttpResponse) -> str:
    """The message of the ``google.rpc.Status`` in the body, if there is one."""
    if _is_packed(answer):
        return ""
    if _media_type(answer) == _JSON:
        try:
            message = msgspec.json.decode(answer.body, type=dict[str, Any]).get("message")
        except (msgspec.MsgspecError, RecursionError):
            return ""
        return _quoted(message) if isinstance(message, str) else ""
    status = Status()
    is_status = _media_type(answer) == _PROTOBUF and _read_into(status, answer)
    return _quoted(status.message) if is_status else ""


def _read_into(message: Message, answer: HttpResponse) -> bool:
    """Read the body, in the encoding that the answer names; False if it is not such a message."""
    if _is_packed(answer):
        return False
    kind = _media_type(answer)
    try:
        if kind == _JSON:
            decoded = msgspec.json.decode(answer.body, type=dict[str, Any])
            ParseDict(decoded, message, ignore_unknown_fields=True)
        elif kind == _PROTOBUF:
            message.ParseFromString(answer.body)
        else:
            return not (kind or answer.body)
    except (DecodeError, ParseError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def _is_packed(answer: HttpResponse) -> bool:
    """Whether the body has a content coding that was not asked for, and cannot be read."""
    return answer.headers.get("content-encoding", "").strip().lower() not in ("", "identity")


def _quoted(message: str) -> str:
    quoted = visible(message[:_QUOTED].strip())[:_QUOTED]
    return f": {quoted}" if quoted else ""


def _media_type(answer: HttpResponse) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()
