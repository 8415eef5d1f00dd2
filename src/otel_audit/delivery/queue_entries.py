"""The entries of the queue: a record, or bytes that could not become one; also from the spool."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from otel_audit.action.compose import Ending, Opening, ended, ended_unseen
from otel_audit.delivery.sink import Refused
from otel_audit.record import AuditRecord

Entry: TypeAlias = AuditRecord | Refused

_decode_record = msgspec.json.Decoder(AuditRecord).decode
_decode_refused = msgspec.json.Decoder(Refused).decode
_decode_opening = msgspec.json.Decoder(Opening).decode
_decode_ending = msgspec.json.Decoder(Ending).decode
_UNDECODABLE = (msgspec.MsgspecError, RecursionError)


def read_back(record_id: str, payload: bytes, changed: bytes | None = None) -> Entry:
    """Read what was spooled.

    Args:
        record_id: As the spool knows it.
        payload: What was appended: the JSON text of an entry.
        changed: What has changed of it since, as the JSON text of an `Ending`.

    Returns:
        The entry; where it cannot be read, a `Refused` with the text as it is, so that it is kept
        aside instead of being lost, or of holding up what waits behind it.
    """
    if changed is not None:
        return _read_ended(record_id, payload, changed)
    known = _read_known(payload)
    if known is not None:
        return known
    try:
        return _decode_refused(payload)
    except _UNDECODABLE:
        return Refused(record_id, payload, _UNREADABLE)


def _read_known(payload: bytes) -> AuditRecord | None:
    """Read a record, or what was written down when its action began; None if it is neither."""
    try:
        return _decode_record(payload)
    except _UNDECODABLE:
        pass
    try:
        return _decode_opening(payload).record()
    except _UNDECODABLE:
        return None


def _read_ended(record_id: str, payload: bytes, changed: bytes) -> Entry:
    known = _read_known(payload)
    try:
        ending = _decode_ending(changed)
    except _UNDECODABLE:
        known = None
    if known is None:
        reason = _UNREADABLE if payload else "the spooled record is damaged, but for how it ended"
        left = b'{"answered":%b,"ended":%b}' % (payload or b"null", changed)
        return Refused(record_id, left, reason)
    if known.phase == "started":
        return ended_unseen(known, ending)
    return ended(known, ending, ending.sequence_number)


_UNREADABLE = "a field of the spooled record has a wrong type or value"
