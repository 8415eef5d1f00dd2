"""The OTLP destination: log records to a Collector, which forwards to Splunk, Kafka and others."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import httpx
from otel_audit_otlp import protobuf_wire as wire
from otel_audit_otlp.encoding import LARGEST_REQUEST

from otel_audit._util.http_response import HttpResponse
from otel_audit._util.loopback import is_loopback
from otel_audit._util.printable import visible
from otel_audit.delivery.halving import write_by_halves
from otel_audit.errors import MissingExtraError
from otel_audit.shapes import UnshapeableError
from otel_audit.streams.destination import TURN, Delivered, DestinationError, Encoded, Outgoing
from otel_audit.streams.http import Client, rejection_reason

try:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
except ImportError as missing:
    raise MissingExtraError("a stream over OTLP", "streams") from missing

LOGS_PATH: Final = "/v1/logs"
_SCOPE: Final = wire.part(wire.SCOPE_SPANS_SCOPE, wire.part(wire.SCOPE_NAME, b"otel_audit.streams"))
_RESOURCE: Final = wire.part(
    wire.RESOURCE_SPANS_RESOURCE,
    wire.pairs(wire.RESOURCE_ATTRIBUTE, {"service.name": "otel-audit-stream"}),
)
_COMPRESSION_LEVEL: Final = 1
"""The quickest level: each batch is compressed while the next one is made."""
_INT64: Final = range(-(1 << 63), 1 << 63)
"""What `int_value` holds; larger numbers go as text."""
_UNFIT: Final = (ValueError, TypeError, OverflowError, RecursionError)


class _TurnIsOver(Exception):  # noqa: N818 - nothing is wrong
    """The turn's time is over: acknowledge the settled events before more are sent."""


class OtlpDestination:
    """An OTLP/HTTP receiver that stores the events before it answers, as in a queue on disk.

    What it refuses is found by halving the batch, as one bad record holds up no other.
    """

    def __init__(self, endpoint: str, client: Client, headers: Mapping[str, str]) -> None:
        """Remember where.

        Args:
            endpoint: Its URL, with the signal's path or without.
            client: The connection.
            headers: Sent with each request.
        """
        path = endpoint.rstrip("/")
        self._url = httpx.URL(path if path.endswith(LOGS_PATH) else path + LOGS_PATH)
        self._client = client
        # beside us there is no network that is worth the work
        self._compresses = not is_loopback(self._url.host)
        self._headers = {
            "content-type": "application/x-protobuf",
            **({"content-encoding": "gzip"} if self._compresses else {}),
            "user-agent": "otel-audit",
            **headers,
        }

    def encode(self, event: Outgoing, log: str) -> bytes:
        """Encode an event as one field of a log request.

        Raises:
            UnshapeableError: OTLP cannot carry it.
        """
        try:
            return wire.part(wire.SCOPE_LOGS_RECORD, _log_record(event, log))
        except _UNFIT as error:
            raise UnshapeableError(f"OTLP cannot carry it ({type(error).__name__})") from None

    async def send(self, events: Sequence[Encoded]) -> Delivered:
        """Send log records. Returns when the receiver has accepted them."""
        delivered = Delivered()
        ends_at = time.monotonic() + TURN

        async def post(part: Sequence[Encoded]) -> str | None:
            if delivered.done and time.monotonic() > ends_at:
                raise _TurnIsOver
            why = await self._post(part)
            if why is None:
                delivered.done += len(part)
            return why

        async def refuse(event: Encoded, why: str) -> None:
            delivered.refused[event.leaf] = why
            delivered.done += 1

        for part in _parts(events):
            try:
                await write_by_halves(part, post, refuse)
            except DestinationError as error:
                delivered.stopped = error
                break
            except _TurnIsOver:
                break
        return delivered

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _post(self, part: Sequence[Encoded]) -> str | None:
        records = b"".join([event.content for event in part])
        scope = wire.part(wire.RESOURCE_LOGS_SCOPE_LOGS, _SCOPE + records)
        body = wire.part(wire.REQUEST_RESOURCE_LOGS, _RESOURCE + scope)
        if self._compresses:
            # on a thread: the next events are made ready meanwhile
            body = await asyncio.to_thread(gzip.compress, body, _COMPRESSION_LEVEL)
        answer = await self._client.post(self._url, self._headers, body)
        return rejection_reason(answer) or _objection_in_success(answer)


def to_log_record(event: Outgoing, log: str) -> bytes:
    """Make a ``LogRecord``; its body is the shaped event as a map.

    Raises:
        ValueError: OTLP cannot say it: an integer of more than 64 bits.
    """
    attributes = {
        "audit.record.id": str(event.id),
        "audit.event.name": event.event_name,
        "audit.tenant.id": event.tenant_id,
        "audit.ledger.leaf": event.leaf,
        "audit.ledger.log": log,
        "audit.content.hash": event.content_hash,
    }
    moment = b"" if event.time_ns is None else wire.time(wire.LOG_TIME, event.time_ns)
    return b"".join((
        moment,
        wire.LOG_SEVERITY_WARN if event.is_failure else wire.LOG_SEVERITY_INFO,
        wire.part(wire.LOG_BODY, wire.any_value(event.document)),
        wire.pairs(wire.LOG_ATTRIBUTE, attributes),
        wire.time(wire.LOG_OBSERVED, time.time_ns()),
        wire.part(wire.LOG_EVENT_NAME, event.event_name.encode()),
    ))  # fmt: skip


def _parts(events: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Split events into requests of a bounded size."""
    begin, held = 0, 0
    for place, event in enumerate(events):
        if place > begin and held + len(event.content) > LARGEST_REQUEST:
            yield events[begin:place]
            begin, held = place, 0
        held += len(event.content)
    if events:
        yield events[begin:]


def _log_record(event: Outgoing, log: str) -> bytes:
    try:
        return to_log_record(event, log)
    except ValueError:
        # JSON's integers have no bound, and OTLP's have 64 bits
        return to_log_record(event._replace(document=_fitting(event.document)), log)


def _fitting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fitting(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fitting(inner) for inner in value]
    is_large = isinstance(value, int) and value not in _INT64
    return str(value) if is_large else value


def _objection_in_success(answer: HttpResponse) -> str | None:
    """The reason in a partial success. The rejected record is then found by halving."""
    if not answer.headers.get("content-type", "").startswith("application/x-protobuf"):
        if answer.body:
            raise DestinationError("its answer is not OTLP/HTTP: is it a receiver of logs?")
        return None
    response = ExportLogsServiceResponse()
    try:
        response.ParseFromString(answer.body)
    except DecodeError:
        raise DestinationError("its answer is not OTLP: is it a receiver of logs?") from None
    partial = response.partial_success
    if not partial.rejected_log_records:
        return None
    return f"rejected in a partial success: {visible(partial.error_message[:300])}"
