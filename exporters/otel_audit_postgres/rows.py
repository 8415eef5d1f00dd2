"""The record as one row, and back.

``payload`` is the whole record as the exact JSON text that ``content_hash`` covers. The other
columns are projections of it: recomputed from the payload they must come out the same, which is
why they are made from the record that the payload tells, never from anything else.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from otel_audit.pipeline.mending import mend_record, needs_mending
from otel_audit.record import AuditRecord, Received

COLUMNS: Final = (
    ("id", "uuid"),
    ("action_id", "text"),
    ("phase", "text"),
    ("tenant_id", "text"),
    ("occurred_at", "timestamptz"),
    ("duration_ms", "float8"),
    ("event_name", "text"),
    ("action", "text"),
    ("outcome", "text"),
    ("actor_id", "text"),
    ("actor_type", "text"),
    ("actor_role", "text"),
    ("target_type", "text"),
    ("target_id", "text"),
    ("source_address", "text"),
    ("user_agent", "text"),
    ("session_id", "text"),
    ("error_type", "text"),
    ("service_name", "text"),
    ("http_method", "text"),
    ("http_route", "text"),
    ("url_path", "text"),
    ("status_code", "int4"),
    ("request_id", "text"),
    ("trace_id", "text"),
    ("span_id", "text"),
    ("transaction_outcome", "text"),
    ("entities", "text[]"),
    ("producer_id", "text"),
    ("sequence_number", "int8"),
    ("schema_version", "text"),
    ("payload", "json"),
    ("content_hash", "bytea"),
    ("received_by", "text"),
    ("received_hash", "bytea"),
)
"""Columns that a writer fills, each with its type; ``recorded_at`` is the database's own."""

_RECEIVED_HASH: Final = [name for name, _ in COLUMNS].index("received_hash")

LONGEST_KEY: Final = 255
"""Characters that an indexed text keeps; PostgreSQL's B-tree refuses entries beyond 2,704 bytes."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_DIGEST_DIGITS: Final = 32


def _exact_text(value: object) -> str:
    """Take a kind of text, such as SQLAlchemy's names, as the text that it is."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError


_encode = msgspec.json.Encoder(enc_hook=_exact_text).encode
_decode = msgspec.json.Decoder(AuditRecord).decode


@dataclass(frozen=True, slots=True)
class Row:
    """One row of ``audit.audit_logs``.

    Attributes:
        values: One value for each of `COLUMNS`, in this order.
        record_id: The record's id.
        payload: The record's JSON text, UTF-8.
        content_hash: SHA-256 of ``payload``, 32 bytes.
    """

    values: tuple[Any, ...]
    record_id: str
    payload: bytes
    content_hash: bytes

    @property
    def received_hash(self) -> bytes | None:
        """The keyed hash of the record as received, None where it came directly."""
        found: bytes | None = self.values[_RECEIVED_HASH]
        return found


class UnstorableRecordError(ValueError):
    """A record that no row can hold.

    Attributes:
        reason: Why, without showing values.
        record_id: The record's id as it came.
        received: The record as text, as far as it could be written down.
    """

    def __init__(self, reason: str, record_id: str, received: bytes) -> None:
        """Keep what the quarantine needs."""
        super().__init__(reason)
        self.reason = reason
        self.record_id = record_id
        self.received = received


def to_row(record: AuditRecord) -> Row:
    """Turn a record into the row that holds it.

    NUL characters and lone surrogates, which PostgreSQL refuses, become U+FFFD; values of unknown
    types become their type's name; indexed texts that are too long are cut by `key_text`.

    Args:
        record: The record.

    Returns:
        Its row.

    Raises:
        UnstorableRecordError: The record's id is no UUID, or its text is no JSON.
    """
    record, payload = _written_down(record)
    try:
        row_id = uuid.UUID(record.record_id)
    except ValueError:
        raise UnstorableRecordError(
            "the record's id is not a UUID", record.record_id, payload
        ) from None
    content_hash = hashlib.sha256(payload).digest()
    try:
        values = _project(record, row_id, payload, content_hash)
    except (TypeError, AttributeError) as error:  # a field of a type that its class does not allow
        raise UnstorableRecordError(
            f"a field has the wrong type ({type(error).__name__})", record.record_id, payload
        ) from None
    return Row(values, record.record_id, payload, content_hash)


def record_from_payload(text: str | bytes) -> AuditRecord:
    """Read the record from a row's payload.

    Args:
        text: The payload, as stored.

    Returns:
        The record.

    Raises:
        msgspec.DecodeError: The text is no JSON, or no record (`msgspec.ValidationError`).
    """
    return _decode(text)


def projections(text: str | bytes) -> dict[str, Any]:
    """Recompute the columns from a row's payload, for comparing them with what is stored.

    Args:
        text: The payload, as stored.

    Returns:
        Column names to values, ``id`` as `uuid.UUID`, times as aware `datetime`.

    Raises:
        msgspec.DecodeError: As for `record_from_payload`.
        ValueError: The record's id is not a UUID.
    """
    payload = text.encode() if isinstance(text, str) else text
    record = _decode(payload)
    digest = hashlib.sha256(payload).digest()
    values = _project(record, uuid.UUID(record.record_id), payload, digest)
    return dict(zip((name for name, _ in COLUMNS), values, strict=True))


def key_text(text: str) -> str:
    """Bound a text for an index: cut one that is too long, and mark it with its own digest.

    Two different texts stay different. Who searches for a long value passes it through here too.

    Args:
        text: Any text.

    Returns:
        The text itself up to `LONGEST_KEY` characters, else its beginning, ``~``, and 32 hex digits
        of its SHA-256: `LONGEST_KEY` characters in all.
    """
    if len(text) <= LONGEST_KEY:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_DIGITS]
    return f"{text[: LONGEST_KEY - _DIGEST_DIGITS - 1]}~{digest}"


def _written_down(record: AuditRecord) -> tuple[AuditRecord, bytes]:
    """Encode a record; mend it first where its text could not be stored and searched."""
    try:
        payload = _encode(record)
    except (UnicodeEncodeError, TypeError, RecursionError):
        pass
    else:
        if not needs_mending(payload) and type(record.record_id) is str:
            return record, payload
    mended = mend_record(record)
    payload = _encode(mended)
    try:
        return _decode(payload), payload
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnstorableRecordError(
            f"the record's text cannot be read back ({type(error).__name__})",
            str(mended.record_id),
            payload,
        ) from None


def _project(
    record: AuditRecord, row_id: uuid.UUID, payload: bytes, content_hash: bytes
) -> tuple[Any, ...]:
    """Make the values in the order of `COLUMNS`."""
    actor, tenant, target, source = record.actor, record.tenant, record.target, record.source
    request, response = record.request, record.response
    service = record.resource.get("service.name")
    return (
        row_id,
        record.action_id,
        record.phase,
        "" if tenant is None else key_text(tenant.id),
        _moment(record.occurred_at),
        _milliseconds(record.duration),
        key_text(record.event_name),
        record.action,
        record.outcome,
        key_text(actor.id),
        actor.type,
        actor.role,
        None if target is None else key_text(target.type),
        None if target is None or target.id is None else key_text(target.id),
        None if source is None else source.address,
        None if source is None else source.user_agent,
        None if source is None else source.session_id,
        None if record.error is None else record.error.type,
        service if isinstance(service, str) else None,
        None if request is None else request.method,
        None if request is None else request.route,
        None if request is None else request.path,
        None if response is None else _fitting(response.status_code, 31),
        None if request is None or request.id is None else key_text(request.id),
        None if record.trace_id is None else key_text(record.trace_id),
        record.span_id,
        record.transaction,
        [key_text(entity) for entity in record.entities],
        record.producer_id,
        _fitting(record.sequence_number, 63),
        record.schema_version,
        payload,
        content_hash,
        None if record.received is None else key_text(record.received.by),
        _digest(record.received),
    )


def _moment(unix_ns: int) -> datetime:
    """The time in microseconds, clamped to the years 1 to 9999."""
    try:
        return _EPOCH + timedelta(microseconds=unix_ns // 1000)
    except OverflowError:
        return _EARLIEST if unix_ns < 0 else _LATEST


def _milliseconds(ns: int) -> float:
    try:
        return ns / 1e6
    except OverflowError:
        return float("-inf") if ns < 0 else float("inf")


def _digest(received: Received | None) -> bytes | None:
    return None if received is None or received.hash is None else bytes.fromhex(received.hash)


def _fitting(number: int | None, bits: int) -> int | None:
    """The number, None where the column's signed type of so many bits cannot hold it."""
    return number if number is not None and -(1 << bits) <= number < 1 << bits else None
