"""The entries of the queue: a record, or bytes that could not become one; also from the spool."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from otel_audit.delivery.sink import Refused
from otel_audit.record import AuditRecord

Entry: TypeAlias = AuditRecord | Refused

_decode_record = msgspec.json.Decoder(AuditRecord).decode
_decode_refused = msgspec.json.Decoder(Refused).decode


def read_back(record_id: str, payload: bytes) -> Entry:
    """Read what was spooled.

    Args:
        record_id: As the spool knows it.
        payload: What was appended: the JSON text of an entry.

    Returns:
        The entry; where it cannot be read, a `Refused` with the text as it is, so that it is kept
        aside instead of being lost, or of holding up what waits behind it.
    """
    try:
        return _decode_record(payload)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:
        return _decode_refused(payload)
    except (msgspec.MsgspecError, RecursionError):
        reason = "a field of the spooled record has a wrong type or value"
        return Refused(record_id, payload, reason)
