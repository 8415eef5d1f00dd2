"""The record as one row, and back.

``payload`` is the whole record as the exact JSON text that ``content_hash`` covers. The other
columns are projections of it: recomputed from the payload they must come out the same, which is
why they are made from the payload's record, never from anything else. One function
says what each column's value is; a `_Form` says how it is put down, as an object or for COPY.
"""

from __future__ import annotations

import hashlib
import math
import operator
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit._util.cache import Memo
from otel_audit._util.ids import is_uuid
from otel_audit.delivery.sanitize import mend_record, needs_mending
from otel_audit.record import READABLE_VERSIONS, AuditRecord, Received
from otel_audit_postgres import copy_format
from otel_audit_postgres.pseudonyms import searchable

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
    ("content_hash", "bytea"),
    ("received_by", "text"),
    ("received_hash", "bytea"),
    ("payload", "json"),
)
"""Columns that a writer fills, each with its type; ``recorded_at`` is the database's own."""

ADDED_IN: Final[Mapping[str, str]] = {}
"""Later columns: the first version of the payload's schema (`SCHEMA_VERSION`) with each of them.

Rows cannot be updated. So a row of an earlier version has NULL there, even if its payload holds the
value, and an archived file of that time does not have the column.
"""

_NAMES: Final = tuple(name for name, _ in COLUMNS)
_COUNT: Final = copy_format.count(len(COLUMNS))

LONGEST_KEY: Final = 255
"""Characters that an indexed text keeps; PostgreSQL's B-tree refuses entries beyond 2,704 bytes."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# asyncpg takes the very first and the very last for the infinities, which no one can reckon with
_EARLIEST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND + 1
_LATEST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND - 1
_SIGNS: Final = (0, -1)
"""What is left of a number that fits, once all bits but the sign are cut off."""
_DIGEST_DIGITS: Final = 32
_UUID_BYTES: Final = 16
_HASH_BYTES: Final = 32
_UUID_LETTERS: Final = 32
_ALIKE: Final = frozenset({str, int, bool, type(None)})
"""Types whose values read alike before they were written down as JSON and after."""
_REMEMBERED: Final = 2048
"""Short texts of a kind that are kept in binary: names, types, and ids of users and tenants."""
_SHORT: Final = 255
"""Characters of a text that comes again and again, such as a name; ids and messages do not."""


def _is_short(text: str | None) -> bool:
    # a kind of text may hold on to anything of the application
    return text is None or (type(text) is str and len(text) <= _SHORT)


def _exact_text(value: object) -> str:
    """Take a kind of text, such as SQLAlchemy's names, as the text that it is."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError


encode_exact = msgspec.json.Encoder(enc_hook=_exact_text).encode
"""Writes JSON, of texts and of kinds of texts; `TypeError` where a type has no JSON."""
_decode = msgspec.json.Decoder(AuditRecord).decode


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of ``audit.audit_logs``.

    Attributes:
        record: The payload's record.
        row_id: The record's id, 16 bytes.
        payload: The record's JSON text, UTF-8.
        content_hash: SHA-256 of ``payload``, 32 bytes.
        copied: All of the row as COPY takes it, in the order of `COLUMNS`, but for the last
            bytes, which are the payload's; empty where it is not to be copied.
    """

    record: AuditRecord
    row_id: bytes
    payload: bytes
    content_hash: bytes
    copied: bytes

    @property
    def record_id(self) -> str:
        """The record's id."""
        return self.record.record_id

    @property
    def id(self) -> uuid.UUID:
        """The record's id as the database gives it."""
        return uuid.UUID(bytes=self.row_id)

    @property
    def canonical_id(self) -> str:
        """The id as text, however the record's sender spelled it."""
        record_id = self.record.record_id
        if type(record_id) is str and record_id.islower() and is_uuid(record_id):  # as ours are
            return record_id
        digits = self.row_id.hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    @property
    def values(self) -> tuple[Any, ...]:
        """One value for each of `COLUMNS`, in this order, as a statement's parameters."""
        return _project(self.record, self.row_id, self.payload, self.content_hash, _OBJECTS)

    @property
    def json_values(self) -> tuple[Any, ...]:
        """As `values`, spelled as the server reads them from JSON; the payload as text."""
        return _project(self.record, self.row_id, self.payload, self.content_hash, _JSON)

    @property
    def received_hash(self) -> bytes | None:
        """The keyed hash of the record as received, None if it came directly."""
        return None if self.record.received is None else _digest(self.record.received)


class UnstorableRecordError(ValueError):
    """A record that no row can hold.

    Attributes:
        reason: Why, without showing values.
        record_id: The record's id as it came.
        received: The record as text, as far as it could be written down.
    """

    def __init__(self, reason: str, record_id: str, received: bytes) -> None:
        """Keep what the quarantine stores.

        Args:
            reason: Why no row can hold the record.
            record_id: Its id.
            received: The record as it came.
        """
        super().__init__(reason)
        self.reason = reason
        self.record_id = record_id
        self.received = received


def to_row(record: AuditRecord, *, to_copy: bool = True) -> Row:
    """Turn a record into the row that holds it.

    NUL characters and lone surrogates, which PostgreSQL refuses, become U+FFFD; values of unknown
    types become their type's name; indexed texts that are too long are cut by `bounded_key`.

    Args:
        record: The record.
        to_copy: Whether it may be copied, and is not only to be a statement's parameters.

    Returns:
        Its row.

    Raises:
        UnstorableRecordError: The record's id is not a UUID, or its text is not JSON; or it is to
            be copied, and a field has a type that its class does not allow.
    """
    record, payload = _written_down(record)
    try:
        row_id = uuid_bytes(record.record_id)
    except ValueError:
        raise UnstorableRecordError(
            "the record's id is not a UUID", record.record_id, payload
        ) from None
    content_hash = hashlib.sha256(payload).digest()
    if not to_copy:
        return Row(record, row_id, payload, content_hash, b"")
    try:
        copied = _COUNT + b"".join(_project(record, row_id, payload, content_hash, _COPIED))
    except (TypeError, AttributeError) as error:  # a field of a type that its class does not allow
        raise UnstorableRecordError(
            f"a field has the wrong type ({type(error).__name__})", record.record_id, payload
        ) from None
    return Row(record, row_id, payload, content_hash, copied)


def record_from_payload(text: str | bytes) -> AuditRecord:
    """Read the record from a row's payload.

    Args:
        text: The payload, as stored.

    Returns:
        The record.

    Raises:
        msgspec.DecodeError: The text is not JSON, or no record (`msgspec.ValidationError`).

    Example::

        async with open_trail(dsn) as trail:
            for one in (await trail.search(parse("actor:ada"))).records:
                for shown in await trail.show(str(one.id)):
                    print(record_from_payload(shown.payload).changes)
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
    values = _project(record, uuid_bytes(record.record_id), payload, digest, _OBJECTS)
    return dict(zip(_NAMES, values, strict=True))


def versions_with(column: str) -> tuple[str, ...]:
    """The versions of the payload's schema whose rows have a column; only others may have NULL."""
    first = ADDED_IN.get(column)
    return (
        READABLE_VERSIONS if first is None else READABLE_VERSIONS[READABLE_VERSIONS.index(first) :]
    )


def bounded_key(text: str) -> str:
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


def _copied_key(text: Any) -> bytes:
    # as `copy_format.text`, without its call: it is short
    encoded = str.encode(text if len(text) <= LONGEST_KEY else bounded_key(text))
    return copy_format.LENGTHS[len(encoded)] + encoded


def _copied_searchable(text: str | None) -> bytes:
    return copy_format.text(searchable(text))


class _Form(NamedTuple):
    """The encodings of a value, by its column's type.

    Attributes:
        null: What is unknown.
        uuid: From 16 bytes.
        digest: 32 bytes.
        text: One that many records have, or None.
        searched: The same, of an encrypted one what finds it.
        key: The same, bounded by `bounded_key`; not None.
        own_text: One that few records have, or None.
        own_key: The same, bounded by `bounded_key`; not None.
        timestamptz: From microseconds since 1970.
        float8: A float.
        int4: An integer that fits, or None.
        int8: An integer that fits, or None.
        text_array: Several texts.
        bytea: Bytes, or None.
        json: From UTF-8.
    """

    null: Any
    uuid: Callable[[bytes], Any]
    digest: Callable[[bytes], Any]
    text: Callable[[str | None], Any]
    searched: Callable[[str | None], Any]
    key: Callable[[str], Any]
    own_text: Callable[[str | None], Any]
    own_key: Callable[[str], Any]
    timestamptz: Callable[[int], Any]
    float8: Callable[[float], Any]
    int4: Callable[[int | None], Any]
    int8: Callable[[int | None], Any]
    text_array: Callable[[list[str]], Any]
    bytea: Callable[[bytes | None], Any]
    json: Callable[[bytes], Any]


def _same(value: Any) -> Any:
    return value


_OBJECTS: Final = _Form(
    null=None,
    uuid=lambda value: uuid.UUID(bytes=value),
    digest=_same,
    text=_same,
    searched=searchable,
    key=bounded_key,
    own_text=_same,
    own_key=bounded_key,
    timestamptz=lambda microseconds: _EPOCH + timedelta(microseconds=microseconds),
    float8=_same,
    int4=_same,
    int8=_same,
    text_array=_same,
    bytea=_same,
    json=_same,
)
_JSON: Final = _OBJECTS._replace(
    uuid=bytes.hex,
    digest=lambda value: f"\\x{value.hex()}",
    # JSON has no infinity
    float8=lambda value: value if math.isfinite(value) else str(value),
    bytea=lambda value: None if value is None else f"\\x{value.hex()}",
    json=bytes.decode,
)
_COPIED: Final = _Form(
    null=copy_format.NULL,
    # these have one length each, so that a field is a sum: no function of Python's is called
    uuid=copy_format.length(_UUID_BYTES).__add__,
    digest=copy_format.length(_HASH_BYTES).__add__,
    text=Memo(copy_format.text, _REMEMBERED, _is_short).__getitem__,
    searched=Memo(_copied_searchable, _REMEMBERED, _is_short).__getitem__,
    key=Memo(_copied_key, _REMEMBERED, _is_short).__getitem__,
    own_text=copy_format.text,
    own_key=_copied_key,
    timestamptz=copy_format.timestamptz,
    float8=copy_format.float8,
    int4=copy_format.int4,
    int8=copy_format.int8,
    text_array=copy_format.text_array,
    bytea=copy_format.raw,
    json=lambda payload: copy_format.length(len(payload)),  # itself it is sent as it lies
)


def _written_down(record: AuditRecord) -> tuple[AuditRecord, bytes]:
    """Encode a record; sanitize it first if its text could not be stored and searched."""
    try:
        payload = encode_exact(record)
        if not needs_mending(payload) and type(record.record_id) is str and _names_alike(record):
            return record, payload
    except (UnicodeEncodeError, TypeError, AttributeError, RecursionError):
        pass
    mended = mend_record(record)
    payload = encode_exact(mended)
    try:
        return _decode(payload), payload
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnstorableRecordError(
            f"the record's text cannot be read back ({type(error).__name__})",
            str(mended.record_id),
            payload,
        ) from None


def _names_alike(record: AuditRecord) -> bool:
    """Return whether a record has the same entities before and after encoding."""
    if record.target is not None and type(record.target.id) not in _ALIKE:
        return False
    for change in record.changes:
        for value in change.key.values():
            if type(value) not in _ALIKE:
                return False
    return True


def _project(
    record: AuditRecord, row_id: bytes, payload: bytes, content_hash: bytes, form: _Form
) -> tuple[Any, ...]:
    """Make the values in the order of `COLUMNS`, put down in that form."""
    (
        null, uuid_, digest, text, searched, key, own_text, own_key,
        timestamptz, float8, int4, int8, text_array, bytea, json,
    ) = form  # fmt: skip
    actor, tenant, target, source = record.actor, record.tenant, record.target, record.source
    request, response, received = record.request, record.response, record.received
    service = record.resource.get("service.name")
    return (
        uuid_(row_id),
        own_text(record.action_id),
        text(record.phase),
        text("") if tenant is None else key(tenant.id),
        timestamptz(_moment(record.occurred_at)),
        float8(_milliseconds(record.duration)),
        key(record.event_name),
        text(record.action),
        text(record.outcome),
        key(actor.id),
        text(actor.type),
        text(actor.role),
        null if target is None else key(target.type),
        null if target is None or target.id is None else own_key(target.id),
        null if source is None else searched(source.address),
        null if source is None else searched(source.user_agent),
        null if source is None else searched(source.session_id),
        null if record.error is None else text(record.error.type),
        text(service) if isinstance(service, str) else null,
        null if request is None else text(request.method),
        null if request is None else text(request.route),
        null if request is None else searched(request.path),
        null if response is None else int4(_fitting(response.status_code, 31)),
        null if request is None or request.id is None else own_key(request.id),
        null if record.trace_id is None else own_key(record.trace_id),
        own_text(record.span_id),
        text(record.transaction),
        text_array([*map(bounded_key, record.entities)]),
        text(record.producer_id),
        int8(_fitting(record.sequence_number, 63)),
        text(record.schema_version),
        digest(content_hash),
        null if received is None else key(received.by),
        null if received is None else bytea(_digest(received)),
        json(payload),
    )


def uuid_bytes(text: str) -> bytes:
    """Read a UUID in any spelling that `uuid.UUID` takes; the usual one is quick.

    Raises:
        ValueError: It is none.
    """
    digits = text.replace("-", "")
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        found = b""
    # white space is nothing to fromhex, and too much for a UUID
    if len(found) == _UUID_BYTES and len(digits) == _UUID_LETTERS:
        return found
    return uuid.UUID(text).bytes


def _moment(unix_ns: int) -> int:
    """The time in microseconds, clamped to the years 1 to 9999."""
    microseconds = (unix_ns if type(unix_ns) is int else _whole(unix_ns)) // 1000
    if _EARLIEST <= microseconds <= _LATEST:
        return microseconds
    return _EARLIEST if microseconds < 0 else _LATEST


def _milliseconds(ns: int) -> float:
    try:
        return (ns if type(ns) is int else _whole(ns)) / 1e6
    except OverflowError:
        return float("-inf") if ns < 0 else float("inf")


def _digest(received: Received) -> bytes | None:
    return None if received.hash is None else bytes.fromhex(received.hash)


def _fitting(number: int | None, bits: int) -> int | None:
    """The number, None if the column's signed type of so many bits cannot hold it."""
    if number is None:
        return None
    whole = number if type(number) is int else _whole(number)
    return number if whole >> bits in _SIGNS else None


def _whole(number: int) -> int:
    """Refuse what is not a whole number, such as 1.5 and True, before a column makes one of it."""
    if isinstance(number, bool):
        raise TypeError
    return operator.index(number)
