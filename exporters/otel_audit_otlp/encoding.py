"""Records as OTLP spans: the mapping of `otel_audit.attributes`, in protobuf.

A record's trace and span id are those of the application's own span, which becomes the parent, as
it is of an audit span in the process. The span's own id is derived from the record's, so that it is
the same on every delivery.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit._util.ids import derived_uuid7
from otel_audit.action.compose import unnumbered
from otel_audit.action.record_limit import fit
from otel_audit.attributes import SCOPE_NAME, to_attributes
from otel_audit.delivery.sanitize import mend_record, written_down
from otel_audit.delivery.sink import Refused
from otel_audit.record import AuditRecord, to_json
from otel_audit_otlp import protobuf_wire

LARGEST_REQUEST: Final = 3_500_000
"""Bytes of spans or log records in one request. Receivers take 4 MiB (gRPC's default) behind them,
or more."""

LARGEST_RECORD: Final = 1_040_000
"""Bytes of a record's JSON text: a little below what `otel-audit serve` takes by default."""

_UNFIT: Final = (
    TypeError, ValueError, OverflowError, RecursionError, AttributeError, msgspec.MsgspecError,
)  # fmt: skip


class Carried(NamedTuple):
    """A record, and the span that carries it, in protobuf."""

    record: AuditRecord
    span: bytes


def carry(records: Sequence[AuditRecord]) -> tuple[list[Carried], list[Refused]]:
    """Turn records into spans.

    Args:
        records: Any records.

    Returns:
        Those that a span can carry, in order; and those that none can, with the reason.
    """
    carried, refused = [], []
    checked: Mapping[str, Any] | None = None
    for record in records:
        try:
            if record.resource != checked:
                # one that cannot be written must show here, where it costs one record only
                protobuf_wire.pairs(protobuf_wire.RESOURCE_ATTRIBUTE, record.resource)
                checked = record.resource
            carried += _carried(record)
        except _UNFIT:
            kept = _mended(record)
            if isinstance(kept, Refused):
                refused.append(kept)
            else:
                carried += kept
    return carried, refused


def _carried(record: AuditRecord) -> list[Carried]:
    """Carry a record, in pieces where it is larger than the sink takes.

    Our own recorder splits records when it numbers them. What another program's span said, or a
    row of an outbox, comes here as it is; its pieces have the same ids on every delivery.
    """
    span = to_span(record)
    # as JSON, which is what the sink measures, a text may be six times as long
    if len(span) <= LARGEST_RECORD // 6 or len(to_json(record)) <= LARGEST_RECORD:
        return [Carried(record, span)]
    first, *others = fit(record, LARGEST_RECORD, functools.partial(_piece_id, record))
    pieces = [first, *map(unnumbered, others)]
    return [Carried(piece, to_span(piece)) for piece in pieces]


def _piece_id(record: AuditRecord, number: int) -> str:
    return derived_uuid7(record.occurred_at, record.record_id, f"piece {number}")


def to_span(record: AuditRecord) -> bytes:
    """Write a record as a ``Span``.

    Args:
        record: The record; its resource goes beside the span, see `to_request`.

    Raises:
        ValueError: No span can carry it: a text that is not Unicode, ids that are not hex, a time
            before 1970.
    """
    trace_id, parent = _place(record)
    span_id = hashlib.sha256(f"span {record.record_id}".encode()).digest()[:8]
    return b"".join((
        protobuf_wire.part(protobuf_wire.SPAN_TRACE_ID, trace_id),
        protobuf_wire.part(protobuf_wire.SPAN_ID, span_id),
        protobuf_wire.part(protobuf_wire.SPAN_PARENT_ID, parent) if parent else b"",
        protobuf_wire.part(protobuf_wire.SPAN_NAME, record.event_name.encode()),
        protobuf_wire.SPAN_KIND_INTERNAL,
        protobuf_wire.time(protobuf_wire.SPAN_START, record.occurred_at),
        protobuf_wire.time(protobuf_wire.SPAN_END, record.observed_at),
        protobuf_wire.pairs(protobuf_wire.SPAN_ATTRIBUTE, to_attributes(record)),
    ))  # fmt: skip


def to_request(carried: Sequence[Carried]) -> bytes:
    """Write spans as an ``ExportTraceServiceRequest``, neighbours of the same resource together."""
    groups = groupby(carried, key=lambda item: item.record.resource)
    return b"".join(
        protobuf_wire.part(protobuf_wire.REQUEST_RESOURCE_SPANS, _resource_spans(resource, group))
        for resource, group in groups
    )


def _resource_spans(resource: Mapping[str, Any], group: Iterable[Carried]) -> bytes:
    spans = b"".join(
        protobuf_wire.part(protobuf_wire.SCOPE_SPANS_SPAN, item.span) for item in group
    )
    scope = protobuf_wire.part(protobuf_wire.SCOPE_NAME, SCOPE_NAME.encode())
    encoded = protobuf_wire.pairs(protobuf_wire.RESOURCE_ATTRIBUTE, resource)
    return protobuf_wire.part(protobuf_wire.RESOURCE_SPANS_RESOURCE, encoded) + protobuf_wire.part(
        protobuf_wire.RESOURCE_SPANS_SCOPE_SPANS,
        protobuf_wire.part(protobuf_wire.SCOPE_SPANS_SCOPE, scope) + spans,
    )


def parts_of(carried: Sequence[Carried]) -> Iterator[Sequence[Carried]]:
    """Split spans into requests of at most `LARGEST_REQUEST` bytes, or one span."""
    first, size = 0, 0
    for number, item in enumerate(carried):
        own = len(item.span)
        size += own
        if size > LARGEST_REQUEST and number > first:
            yield carried[first:number]
            first, size = number, own
    if first < len(carried):
        yield carried[first:]


def _mended(record: AuditRecord) -> list[Carried] | Refused:
    try:
        mended = mend_record(record)
        protobuf_wire.pairs(protobuf_wire.RESOURCE_ATTRIBUTE, mended.resource)
        return _carried(mended)
    except _UNFIT as error:
        reason = f"no span can carry the record: {type(error).__name__}"
        return Refused(str(record.record_id), written_down(record), reason)


def _place(record: AuditRecord) -> tuple[bytes, bytes]:
    if record.trace_id is None or record.span_id is None:
        # a trace of its own, which no other record shares
        return hashlib.sha256(f"trace {record.record_id}".encode()).digest()[:16], b""
    trace_id, span_id = bytes.fromhex(record.trace_id), bytes.fromhex(record.span_id)
    if len(trace_id) != 16 or len(span_id) != 8:  # noqa: PLR2004 - W3C Trace Context
        raise ValueError("trace ids have 16 bytes, span ids 8")
    return trace_id, span_id
