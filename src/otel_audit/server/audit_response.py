"""The answer of ``/v1/audit``: receipts in addition to OTLP's fields.

The draft of the audit signal asks for a receipt of each record: its id, its hash, the sink's time.
The draft is not a standard and names no shape, so this one is ours. In JSON:

.. code-block:: json

    {"auditReceipts": [{"recordId": "…", "contentHash": "…", "integrityHash": "…",
                        "sinkTimeUnixNano": "…"}],
     "auditQuarantined": [{"recordId": "…", "reason": "…"}]}

If another record has the record's id, the receipt has the id under which it is stored, and as
``conflictOf`` the one under which it was sent.

In protobuf, fields of ``ExportLogsServiceResponse`` that others skip as unknown:

.. code-block:: protobuf

    message AuditReceipt {
      string record_id = 1;
      string content_hash = 2;
      fixed64 sink_time_unix_nano = 3;
      string conflict_of = 4;
      string integrity_hash = 5;
    }
    message AuditQuarantined {
      string record_id = 1;
      string reason = 2;
    }
    repeated AuditReceipt audit_receipts = 1000;
    repeated AuditQuarantined audit_quarantined = 1001;
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from otel_audit._util.varint import field, varint
from otel_audit.delivery.sink import Receipt, Refused
from otel_audit.server.errors import JSON
from otel_audit.server.partial_success import PartialSuccess

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RECEIPTS: Final = 1000
"""The field's number in the answer: OTLP itself uses the first ones only."""
_QUARANTINED: Final = 1001
"""The number of the field beside it."""
_FIXED64: Final = 1


def answer(
    receipts: Sequence[Receipt],
    quarantined: Sequence[Refused],
    content_type: str,
    partial: PartialSuccess | None = None,
) -> bytes:
    """Write the response.

    Args:
        receipts: Of the records that are stored.
        quarantined: The records that are in quarantine instead.
        content_type: JSON, or else protobuf is written.
        partial: OTLP's own account of what is not in the trail as it came.

    Returns:
        An ``ExportLogsServiceResponse`` with our additions.
    """
    if content_type == JSON:
        return _json(receipts, quarantined, partial)
    parts = [] if partial is None else [field(1, partial.as_protobuf())]
    parts += [field(_RECEIPTS, _receipt(one)) for one in receipts]
    parts += [
        field(_QUARANTINED, _text(1, one.record_id) + _text(2, one.reason)) for one in quarantined
    ]
    return b"".join(parts)


def _json(
    receipts: Sequence[Receipt], quarantined: Sequence[Refused], partial: PartialSuccess | None
) -> bytes:
    found: dict[str, object] = {}
    if partial is not None:
        found["partialSuccess"] = partial.as_json("rejectedLogRecords")
    if receipts:
        found["auditReceipts"] = [
            {
                "recordId": one.record_id,
                "contentHash": one.content_hash,
                "sinkTimeUnixNano": str(_nanoseconds(one.recorded_at)),
                **({} if one.conflict_of is None else {"conflictOf": one.conflict_of}),
                **({} if one.integrity_hash is None else {"integrityHash": one.integrity_hash}),
            }
            for one in receipts
        ]
    if quarantined:
        found["auditQuarantined"] = [
            {"recordId": one.record_id, "reason": one.reason} for one in quarantined
        ]
    return msgspec.json.encode(found)


def _receipt(one: Receipt) -> bytes:
    time = struct.pack("<Q", _nanoseconds(one.recorded_at))
    encoded = (
        _text(1, one.record_id) + _text(2, one.content_hash) + varint(3 << 3 | _FIXED64) + time
    )
    if one.conflict_of is not None:
        encoded += _text(4, one.conflict_of)
    return encoded if one.integrity_hash is None else encoded + _text(5, one.integrity_hash)


def _text(number: int, text: str) -> bytes:
    return field(number, text.encode("utf-8", "replace"))


def _nanoseconds(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
