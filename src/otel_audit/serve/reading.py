"""From what came in to a record that may be stored: redacted again, bounded, and marked."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from otel_audit import attributes as names
from otel_audit.complaints import complain
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.ids import derived_uuid7
from otel_audit.pipeline.mending import written_down
from otel_audit.pipeline.sink import Refused
from otel_audit.record import SCHEMA_VERSION, AuditRecord, Received, Tenant, to_json
from otel_audit.redaction import Redactor
from otel_audit.redaction.spans import Redacting
from otel_audit.serve.incoming import Incoming, Origin
from otel_audit.serve.senders import Sender

_logger = logging.getLogger(__name__)

_LATEST: Final = 1 << 63
_LONGEST_REFUSED: Final = 65_536
_SERVICE: Final = "service."
_SERVICE_NAME: Final = "service.name"
_is_uuid: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch

_decode_mapping = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Unfit(Refused):
    """What is refused here, with one word for the counter.

    Attributes:
        kind: ``invalid``, ``foreign_tenant``, ``foreign_service``, ``too_large``, ``conflict``.
    """

    kind: str = "invalid"


class Reader:
    """Makes records; what cannot become one is for the quarantine, with the reason."""

    def __init__(self, redactor: Redactor, key: bytes, largest: int) -> None:
        """Say by which rules.

        Args:
            redactor: Takes secrets out.
            key: Under which records are hashed as they came.
            largest: Bytes of a record's text, at the most.
        """
        self._redactor = redactor
        self._redacting = Redacting(redactor)
        self._key = key
        self._largest = largest
        self._resources: weakref.WeakKeyDictionary[Origin, dict[str, Any]] = (
            weakref.WeakKeyDictionary()
        )

    def read(self, item: Incoming, sender: Sender) -> AuditRecord | Unfit:
        """Make the record, or say why there is none. Never raises."""
        try:
            return self._read(item, sender)
        except InvalidAuditSpanError:
            return self._unfit(item, sender, "invalid", _what_is_wrong(item))
        except Exception as error:  # noqa: BLE001 - one item must not cost its whole batch
            complain(_logger, "reading", "A record goes to quarantine unread", error=error)
            return self._unfit(
                item, sender, "invalid", f"it could not be read: {type(error).__name__}"
            )

    def put_aside(self, item: Incoming, why: str, sender: Sender) -> Unfit:
        """Keep what is left of an item that cannot be decoded. Never raises."""
        return self._unfit(item, sender, "undecodable", why)

    def _read(self, item: Incoming, sender: Sender) -> AuditRecord | Unfit:
        if not 0 < item.start_time < _LATEST or item.end_time >= _LATEST:
            return self._unfit(
                item, sender, "invalid", "its time is missing, or beyond the year 2262"
            )
        version = item.attributes.get(names.SCHEMA_VERSION, SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            reason = f"its schema version is not {SCHEMA_VERSION}, the one that this server knows"
            return self._unfit(item, sender, "invalid", reason)
        came = self._as_it_came(item)
        text = _told(came)
        if len(text) > self._largest:
            reason = f"it is larger than {self._largest} bytes"
            return self._unfit(item, sender, "too_large", reason)
        service = item.origin.attributes.get(_SERVICE_NAME)
        if sender.service is not None and service != sender.service:
            reason = f"{sender.identity} may not send for another service than its own"
            return self._unfit(item, sender, "foreign_service", reason)
        if (
            sender.tenant is not None
            and came.tenant is not None
            and came.tenant.id != sender.tenant
        ):
            reason = f"{sender.identity} may not send for another tenant than its own"
            return self._unfit(item, sender, "foreign_tenant", reason)
        told = self._redacted(item, came)
        tenant = told.tenant
        if sender.tenant is not None and (tenant is None or tenant.id != sender.tenant):
            slug = None if tenant is None else tenant.slug
            tenant = Tenant(id=sender.tenant, slug=slug)
        return msgspec.structs.replace(
            told,
            resource=self._resource(item.origin),
            tenant=tenant,
            received=Received(
                by=sender.identity, hash=hmac.digest(self._key, text, "sha256").hex()
            ),
        )

    def _as_it_came(self, item: Incoming) -> AuditRecord:
        try:
            return _record(item, _with_details(item.attributes, item.body), item.name)
        except InvalidAuditSpanError:
            # JSON that only redaction can read: lone surrogates, NaN
            told = self._redacting.redact(item.attributes)
            if told is item.attributes:
                raise
            return _record(item, self._details(item, told), item.name)

    def _redacted(self, item: Incoming, came: AuditRecord) -> AuditRecord:
        told, name = self._redacting.redact(item.attributes), self._redacting.name(item.name)
        if told is item.attributes and name == item.name and not item.is_log:
            return came
        return _record(item, self._details(item, told), name)

    def _details(self, item: Incoming, told: Mapping[str, Any]) -> Mapping[str, Any]:
        return _with_details(told, self._redactor.document(item.body))

    def _resource(self, origin: Origin) -> dict[str, Any]:
        found = self._resources.get(origin)
        if found is None:
            found = self._redactor.document(origin.attributes)
            self._resources[origin] = found
        return found

    def _unfit(self, item: Incoming, sender: Sender, kind: str, reason: str) -> Unfit:
        record_id = item.attributes.get(names.RECORD_ID)
        if not isinstance(record_id, str) or _is_uuid(record_id) is None:
            record_id = derived_uuid7(item.start_time, *_own_ids(item))
        received = {
            "received_by": sender.identity,
            "name": self._redactor.text(item.name),
            "trace_id": item.trace_id,
            "span_id": item.span_id,
            "start_time": item.start_time,
            "end_time": item.end_time,
            "attributes": self._redactor.document(self._redacting.redact(item.attributes)),
            "resource": self._resource(item.origin),
        }
        if item.is_log:
            received["body"] = self._redactor.document(item.body)
        text = written_down(received)
        if len(text) > self._largest:
            text = text[:_LONGEST_REFUSED] + b" [cut]"
        return Unfit(record_id, text, reason, kind)


def _told(came: AuditRecord) -> bytes:
    """Write a record as it came, without what a Collector may add to it on the way."""
    service = {name: value for name, value in came.resource.items() if name.startswith(_SERVICE)}
    return to_json(msgspec.structs.replace(came, resource=service))


def _record(item: Incoming, told: Mapping[str, Any], name: str) -> AuditRecord:
    ours = item.scope == names.SCOPE_NAME and not item.is_log
    link = item.parent_span_id if ours else item.span_id
    if names.ERROR_MESSAGE in told:
        # the semantic conventions' word for a type that nobody has named
        told = {names.ERROR_TYPE: "_OTHER", **told}
    return names.record_from_attributes(
        told,
        name=name,
        start_time=item.start_time,
        end_time=item.end_time,
        trace=(item.trace_id, link) if item.trace_id and link else None,
        own_ids=_own_ids(item),
        resource=item.origin.attributes,
    )


def _with_details(told: Mapping[str, Any], body: Any) -> Mapping[str, Any]:
    """Put a log record's body, the event's details, where the application's own data is."""
    if body is None:
        return told
    metadata: dict[str, Any] = {"details": body}
    if isinstance(told.get(names.METADATA), str):
        try:
            metadata.update(_decode_mapping(told[names.METADATA]))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidAuditSpanError(f"{names.METADATA}: {error}") from error
    return {**told, names.METADATA: to_json(metadata).decode()}


def _own_ids(item: Incoming) -> tuple[str, str]:
    """What tells an item without an id from others of the same time."""
    if not item.is_log and item.span_id:
        return item.trace_id, item.span_id
    content = to_json([
        item.start_time, item.name, item.trace_id, item.span_id, item.attributes, item.body,
    ])  # fmt: skip
    return hashlib.sha256(content).hexdigest(), ""


def _what_is_wrong(item: Incoming) -> str:
    lacking = [name for name in names.MANDATORY if item.attributes.get(name) in (None, "")]
    what = "audit log record" if item.is_log else "audit span"
    if lacking:
        return f"the {what} lacks {', '.join(lacking)}"
    return f"an attribute of the {what} has a wrong type or value"
