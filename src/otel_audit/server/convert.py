"""From what came in to a record that may be stored: redacted again, bounded, and marked."""

from __future__ import annotations

import hashlib
import hmac
import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from otel_audit import attributes as names
from otel_audit._util.ids import derived_uuid7, is_uuid
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.action.compose import as_received, with_resource
from otel_audit.action.record_limit import clipped
from otel_audit.delivery.sanitize import written_down
from otel_audit.delivery.sink import Refused
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.record import (
    INCOMPLETE,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    AuditRecord,
    Received,
    Tenant,
    to_json,
)
from otel_audit.redaction import Redactor
from otel_audit.redaction.budget import SpanBudget
from otel_audit.redaction.spans import SpanRedactor
from otel_audit.server.credentials import Sender
from otel_audit.server.items import TOO_LARGE, ReceivedItem, Resource
from otel_audit.server.received_signal import (
    Chains,
    Link,
    Positions,
    exact_values,
    with_stream_id,
)
from otel_audit.server.request_budget import RequestBudget
from otel_audit.server.signatures import Checked, TrustedSigners

_logger = logging.getLogger(__name__)

_LATEST: Final = 1 << 63
"""Nanoseconds that fit in 64 bits with a sign, as a row's do."""
_LONGEST_QUARANTINED: Final = 65_536
"""Bytes that are kept of an item that is too large."""
_SERVICE: Final = "service."
_SERVICE_NAME: Final = "service.name"
_LARGEST_NUMBER: Final = 1 << 53
"""Above it JSON's readers, which use floats, take two numbers for one."""
_LONGEST_PRODUCER: Final = 256
"""Characters of a producer's id; a longer one is left out, and the row says so."""
_FEW: Final = 16
"""Attributes of a lean resource, those of ``service.*``."""
_QUARANTINE_WORK: Final = 500
"""Units that redacting one item for the quarantine may take."""
_LARGEST_RESOURCE: Final = 8_192
"""Bytes of a resource that each record of it repeats."""

LEFT_OUT: Final = "audit.truncated"
"""In a resource: how many attributes it had beyond those that are stored."""

_decode_mapping = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class NotConvertible(Refused):
    """An item that is not convertible, or undecodable, with one word for the counter.

    Attributes:
        kind: ``invalid``, ``undecodable``, ``foreign_tenant``, ``foreign_service``, ``too_large``,
            ``unverified``.
        place: Where it was in its request.
    """

    kind: str = "invalid"
    place: str = ""


@dataclass(frozen=True, slots=True)
class _Resource:
    """A resource in its stored form: bounded, but always with the identifying attributes."""

    full: dict[str, Any]
    size: int
    lean: dict[str, Any]


class Converter:
    """Makes records; what is not convertible is for the quarantine, with the reason."""

    def __init__(
        self,
        redactor: Redactor,
        key: bytes,
        largest: int,
        signers: TrustedSigners | None = None,
        *,
        requires_signature: bool = False,
    ) -> None:
        """Remember the rules.

        Args:
            redactor: Takes secrets out.
            key: Under which records are hashed as they came.
            largest: Bytes of a record's text, at most.
            signers: Trusted signers; None: signatures are not verified.
            requires_signature: Whether what has no valid signature is refused: spans, too.
        """
        self._redactor = redactor
        self._redacting = SpanRedactor(redactor)
        self._key = key
        self._largest = largest
        self._signers = signers
        self._requires_signature = requires_signature
        self.chains = Chains()
        self._resources: weakref.WeakKeyDictionary[Resource, _Resource] = (
            weakref.WeakKeyDictionary()
        )

    def read(
        self,
        item: ReceivedItem,
        sender: Sender,
        allowance: RequestBudget | None = None,
        unstored: Positions | None = None,
    ) -> AuditRecord | NotConvertible:
        """Make the record, or say why there is none. Never raises.

        Args:
            item: What came.
            sender: Who sent it.
            allowance: What its request may still cost; by default as much as any.
            unstored: How far chained streams have come in its request; see `Chains.follow`.
        """
        allowance = _ample() if allowance is None else allowance
        unstored = {} if unstored is None else unstored
        try:
            checked = self._checked(item)
            if self._requires_signature and (checked is None or checked.verdict != "valid"):
                # else whoever cannot sign would send a span instead
                why = "a span has none" if checked is None else f"it is not: {checked.verdict}"
                reason = f"a valid signature is required, and {why}"
                return self._not_convertible(item, sender, "unverified", reason, allowance)
            return self._read(item, sender, allowance, checked, unstored)
        except InvalidAuditSpanError:
            what = "audit log record" if item.is_log else "audit span"
            reason = names.what_is_wrong(item.attributes, what)
            return self._not_convertible(item, sender, "invalid", reason, allowance)
        except Exception as error:  # noqa: BLE001 - one item must not cost its whole batch
            log_limited(
                _logger,
                "reading",
                "A record that is not convertible goes to quarantine",
                error=error,
            )
            reason = f"it could not be read: {type(error).__name__}"
            return self._not_convertible(item, sender, "invalid", reason, allowance)

    def quarantine_undecodable(
        self, item: ReceivedItem, why: str, sender: Sender, allowance: RequestBudget | None = None
    ) -> NotConvertible:
        """Keep what is left of an undecodable item. Never raises."""
        allowance = _ample() if allowance is None else allowance
        kind = "too_large" if why == TOO_LARGE else "undecodable"
        return self._not_convertible(item, sender, kind, why, allowance)

    def _read(
        self,
        item: ReceivedItem,
        sender: Sender,
        allowance: RequestBudget,
        checked: Checked | None,
        unstored: Positions,
    ) -> AuditRecord | NotConvertible:
        if not 0 < item.start_time < _LATEST or item.end_time >= _LATEST:
            reason = "its time is missing, or beyond the year 2262"
            return self._not_convertible(item, sender, "invalid", reason, allowance)
        version = item.attributes.get(names.SCHEMA_VERSION_ATTRIBUTE, SCHEMA_VERSION)
        if version not in READABLE_VERSIONS:
            known = " or ".join(READABLE_VERSIONS)
            reason = f"its schema version is not {known}: this server knows no other"
            return self._not_convertible(item, sender, "invalid", reason, allowance)
        came = self._as_it_came(item)
        text = _received_json(came)
        allowance.came += len(text)
        if len(text) > self._largest:
            reason = f"it is larger than {self._largest} bytes"
            return self._not_convertible(item, sender, "too_large", reason, allowance)
        service = item.origin.attributes.get(_SERVICE_NAME)
        if sender.service is not None and service != sender.service:
            reason = f"{sender.identity} may not send for another service than its own"
            return self._not_convertible(item, sender, "foreign_service", reason, allowance)
        if (
            sender.tenant is not None
            and came.tenant is not None
            and came.tenant.id != sender.tenant
        ):
            reason = f"{sender.identity} may not send for another tenant than its own"
            return self._not_convertible(item, sender, "foreign_tenant", reason, allowance)
        redacted = self._redacted(
            item, came, SpanBudget(allowance.work, allowance.own_work(len(text)))
        )
        tenant = redacted.tenant
        if sender.tenant is not None and (tenant is None or tenant.id != sender.tenant):
            slug = None if tenant is None else tenant.slug
            tenant = Tenant(id=sender.tenant, slug=slug)
        digest = hmac.digest(self._key, text, "sha256").hex()
        link = self.chains.follow(item, sender.identity, came.record_id, unstored)
        return as_received(
            redacted,
            self._received(item, sender, digest, checked, link),
            tenant,
            self._resource(item.origin, allowance),
        )

    def _checked(self, item: ReceivedItem) -> Checked | None:
        if self._signers is None or not item.is_log:
            return None
        return self._signers.check(item.raw, item.attributes, item.origin.attributes, item.body)

    def _received(
        self,
        item: ReceivedItem,
        sender: Sender,
        digest: str,
        checked: Checked | None,
        link: Link | None,
    ) -> Received:
        return Received(
            by=sender.identity,
            hash=digest,
            signal=dict(item.signal),
            signature=None if checked is None else checked.verdict,
            signed_by=None if checked is None else checked.signer,
            link=link,
        )

    def _as_it_came(self, item: ReceivedItem) -> AuditRecord:
        try:
            return _record(item, _with_details(item.attributes, item.body), item.name)
        except InvalidAuditSpanError:
            # JSON that only redaction can read: lone surrogates, NaN; what others of the request
            # have cost must not decide what is hashed, so this has a budget of its own
            attributes = self._redacting.redact(item.attributes)
            if attributes is item.attributes:
                raise
            return _record(item, self._details(item, attributes), item.name)

    def _redacted(self, item: ReceivedItem, came: AuditRecord, budget: SpanBudget) -> AuditRecord:
        name = self._redacting.name(item.name, budget)
        attributes = self._redacting.redact(item.attributes, budget)
        if item.notes:
            attributes = _with_notes(attributes, item.notes)
        if attributes is item.attributes and name == item.name and not item.is_log:
            return came
        return _record(item, self._details(item, attributes, budget), name)

    def _details(
        self, item: ReceivedItem, attributes: Mapping[str, Any], budget: SpanBudget | None = None
    ) -> Mapping[str, Any]:
        if item.body is None:
            return attributes
        return _with_details(attributes, self._document(item.body, budget or SpanBudget()))

    def _document(self, value: Any, budget: SpanBudget) -> Any:
        share = budget.of("metadata")
        kept = budget.limit(share)
        before = share.left
        found = self._redactor.document(value, share)
        budget.charge(share, before, kept)
        return found

    def _resource(self, origin: Resource, allowance: RequestBudget) -> dict[str, Any]:
        found = self._resources.get(origin)
        if found is None:
            found = self._read_resource(origin, allowance)
            self._resources[origin] = found
        return found.full if allowance.spend_copy(found.size) else found.lean

    def _read_resource(self, origin: Resource, allowance: RequestBudget) -> _Resource:
        services, others = _by_service(origin.attributes)
        of_services, of_others = allowance.resource_work()
        pool, left_out = allowance.resources, origin.left_out
        ours = self._document(services, SpanBudget(pool, of_services))
        if not isinstance(ours, dict):
            ours, left_out = {}, left_out + len(services)
        redacted = self._document(others, SpanBudget(pool, of_others)) if others else {}
        if not isinstance(redacted, dict):
            redacted, left_out = {}, left_out + len(others)
        lean = {name: clipped(value) for name, value in list(ours.items())[:_FEW]}
        full: dict[str, Any] = {}
        size = 0
        for name, value in {**ours, **redacted}.items():
            length = len(to_json([name, value]))
            if size + length > _LARGEST_RESOURCE:
                left_out += 1
                continue
            size += length
            full[name] = value
        if left_out:
            full[LEFT_OUT] = left_out
        if len(lean) < len(full):
            lean[LEFT_OUT] = left_out + len(full) - len(lean)
        return _Resource(full, size, lean)

    def _not_convertible(
        self, item: ReceivedItem, sender: Sender, kind: str, reason: str, allowance: RequestBudget
    ) -> NotConvertible:
        budget = SpanBudget(allowance.work, _QUARANTINE_WORK)
        record_id = item.attributes.get(names.RECORD_ID)
        if not isinstance(record_id, str) or is_uuid(record_id) is None:
            record_id = derived_uuid7(item.start_time, *_own_ids(item))
        received = {
            "received_by": sender.identity,
            "name": self._redacting.name(item.name, budget),
            "trace_id": item.trace_id,
            "span_id": item.span_id,
            "start_time": item.start_time,
            "end_time": item.end_time,
            "attributes": self._document(self._redacting.redact(item.attributes, budget), budget),
            "resource": self._resource(item.origin, allowance),
        }
        if item.is_log:
            received["body"] = self._document(item.body, budget)
        text = written_down(received)
        if len(text) > self._largest:
            text = text[:_LONGEST_QUARANTINED] + b" [cut]"
        return NotConvertible(record_id, text, reason, kind, item.spelled_place())


def _by_service(attributes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a resource's attributes into those of ``service.*``, the name first, and the others."""
    services: dict[str, Any] = {}
    if _SERVICE_NAME in attributes:
        services[_SERVICE_NAME] = attributes[_SERVICE_NAME]
    others: dict[str, Any] = {}
    for name, value in attributes.items():
        (services if name.startswith(_SERVICE) else others)[name] = value
    return services, others


def with_own_place(item: ReceivedItem) -> ReceivedItem:
    """Read what an item says of its stream, and keep it exactly.

    A place in a stream that no stream can have is left out; the record is true without it.

    Args:
        item: What came.

    Returns:
        The same item, or one whose `notes` lists what was left out.
    """
    signal = exact_values(item.attributes, item.origin.attributes)
    renamed = with_stream_id(item.attributes, names.PRODUCER_ID)
    if signal or renamed is not None:
        item = replace(item, signal=signal, attributes=renamed or item.attributes)
    attributes, notes = item.attributes, []
    number, producer = attributes.get(names.SEQUENCE_NUMBER), attributes.get(names.PRODUCER_ID)
    if type(number) is int and not 1 <= number <= _LARGEST_NUMBER:
        attributes = {
            name: value for name, value in attributes.items() if name != names.SEQUENCE_NUMBER
        }
        notes.append(f"{names.SEQUENCE_NUMBER} is not from 1 to 2^53; left out")
    if isinstance(producer, str) and len(producer) > _LONGEST_PRODUCER:
        attributes = {
            name: value for name, value in attributes.items() if name != names.PRODUCER_ID
        }
        notes.append(f"{names.PRODUCER_ID} is longer than {_LONGEST_PRODUCER} characters; left out")
    return replace(item, attributes=attributes, notes=(*item.notes, *notes)) if notes else item


def _ample() -> RequestBudget:
    # what is not a request of a client has no bound but those of `RequestBudget` itself
    return RequestBudget(1 << 30, 1 << 30)


def _with_notes(attributes: Mapping[str, Any], notes: Sequence[str]) -> Mapping[str, Any]:
    """Name in the metadata what of an item was left out or changed."""
    metadata: dict[str, Any] = {}
    if isinstance(attributes.get(names.METADATA), str):
        try:
            metadata = _decode_mapping(attributes[names.METADATA])
        except (msgspec.MsgspecError, RecursionError):
            return attributes  # it becomes no record
    earlier = metadata.get(INCOMPLETE)
    named = [*(earlier if isinstance(earlier, list) else ()), *notes]
    return {**attributes, names.METADATA: to_json({**metadata, INCOMPLETE: named}).decode()}


def _received_json(came: AuditRecord) -> bytes:
    """Write a record as it came, without what a Collector may add to it on the way."""
    service = {name: value for name, value in came.resource.items() if name.startswith(_SERVICE)}
    return to_json(with_resource(came, service))


def _record(item: ReceivedItem, attributes: Mapping[str, Any], name: str) -> AuditRecord:
    ours = item.scope == names.SCOPE_NAME and not item.is_log
    link = item.parent_span_id if ours else item.span_id
    return names.record_from_attributes(
        attributes,
        name=name,
        start_time=item.start_time,
        end_time=item.end_time,
        trace=(item.trace_id, link) if item.trace_id and link else None,
        own_ids=_own_ids(item),
        resource=item.origin.attributes,
    )


def _with_details(attributes: Mapping[str, Any], body: Any) -> Mapping[str, Any]:
    """Put a log record's body, the event's details, where the application's own data is."""
    if body is None:
        return attributes
    metadata: dict[str, Any] = {"details": body}
    if isinstance(attributes.get(names.METADATA), str):
        try:
            metadata.update(_decode_mapping(attributes[names.METADATA]))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidAuditSpanError(f"{names.METADATA}: {error}") from error
    return {**attributes, names.METADATA: to_json(metadata).decode()}


def _own_ids(item: ReceivedItem) -> tuple[str, str]:
    """Distinguishes an item without an id from others of the same time."""
    if not item.is_log and item.span_id:
        return item.trace_id, item.span_id
    content = to_json([
        item.start_time, item.name, item.trace_id, item.span_id, item.attributes, item.body,
    ])  # fmt: skip
    return hashlib.sha256(content).hexdigest(), ""
