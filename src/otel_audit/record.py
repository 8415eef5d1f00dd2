"""The audit record: the one data model in which capture, delivery and every store meet.

Field names follow the draft OpenTelemetry audit data model (``audit.*``) and the stable semantic
conventions. Times are integers in nanoseconds since the Unix epoch, UTC, as in OTLP.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

SCHEMA_VERSION = "2"
"""Version of the payload's schema, stored with every record; see ``payload.schema.json``."""

READABLE_VERSIONS = ("1", "2")
"""Versions that are read. Both have the same fields; values in changes have other forms in 1."""

INCOMPLETE = "audit.incomplete"
"""Metadata key with the names of the parts that could not be described."""

TRUNCATED = "audit.truncated"
"""The metadata's list of what is not in a record in full: `request.path`, `changes`, …"""

Outcome = Literal["success", "failure", "unknown"]
AccessDecision = Literal["allowed", "denied"]
Phase = Literal["intent", "started", "completed", "continued", "changes"]
ActorType = Literal["user", "service", "system"]
TransactionOutcome = Literal["committed", "rolled_back", "mixed", "unknown", "none"]
Operation = Literal["insert", "update", "delete"]
ChangeKind = Literal["entity", "relation", "bulk", "untracked"]


class _Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the record and its parts: immutable, and silent about what is not known.

    Those that hold only what redaction has made, JSON that refers to nothing else, are hidden from
    the garbage collector (``gc=False``): none can be part of a cycle, and there are many. What an
    application fills itself is not, as it may put anything there.
    """


class Actor(_Part, frozen=True, kw_only=True):
    """The actor: who did it.

    Attributes:
        id: Stable identifier, ``anonymous`` if no actor was identified.
        type: ``user``, ``service`` or ``system``.
        role: The application's own class of actor, for example ``platform_admin``.
        email: E-mail address, where the application's token or code gave one.
        verified: Whether the identity was proved (a verified token, or the app's own code).
        on_behalf_of: The actor really behind this one under impersonation (RFC 8693 ``act``).
        reason: Why no actor was identified or verified, for example ``token_expired``.
        roles: Further roles or scopes, as the token or the app gave them.
        source: Which resolver named the actor: ``app``, ``jwt``, …

    Example::

        actor = otel_audit.Actor(id="clerk-1", type="user", role="clerk")
        otel_audit.emit("order.paid", actor=actor)
    """

    id: str
    type: ActorType
    role: str | None = None
    email: str | None = None
    verified: bool = False
    on_behalf_of: str | None = None
    reason: str | None = None
    roles: tuple[str, ...] = ()
    source: str | None = None


ANONYMOUS = Actor(id="anonymous", type="user")
"""The actor if none was identified."""

ACTOR_FAILED = Actor(id="anonymous", type="user", reason="actor_failed")
"""The actor could not be determined: "not known" is never "nobody"."""


class Tenant(_Part, frozen=True, kw_only=True):
    """For which tenant. ``id`` is stable, ``slug`` is the readable name.

    Example::

        otel_audit.emit("order.paid", tenant=otel_audit.Tenant(id="42", slug="acme"))
    """

    id: str
    slug: str | None = None


class Target(_Part, frozen=True, kw_only=True):
    """The thing acted upon, for example ``order`` and ``123``.

    Example::

        otel_audit.emit("order.paid", target=otel_audit.Target(type="order", id="7"))
    """

    type: str
    id: str | None = None


class Source(_Part, frozen=True, kw_only=True, gc=False):
    """The source: where the action came from.

    Attributes:
        address: The client's network address.
        type: What ``address`` is, ``ip`` by default.
        user_agent: As the client sent it, bounded.
        session_id: The session the token or the application named.

    Example::

        source = otel_audit.Source(address="192.0.2.7", user_agent="curl/8")
        assert source.type == "ip"
    """

    address: str | None = None
    type: str = "ip"
    user_agent: str | None = None
    session_id: str | None = None


NO_CONTENT = msgspec.Raw(b"")
"""Stands for the body that is not there; always this one object."""


class Body(_Part, frozen=True, kw_only=True, gc=False):
    """A request or response body, redacted.

    Attributes:
        content: The redacted body as JSON text, kept as the text it is; of a binary or cut body
            a description; ``NO_CONTENT`` where it is absent.
        size: Bytes that passed on the wire between client and application.
        content_type: Media type as declared.
        sha256: Hex digest of the redacted text (never of what was removed).
        absent: Why there is no content, or why it is cut: ``truncated``, ``binary``,
            ``encoded`` (an unknown content coding), ``not_read``, ``not_copied`` (the level was not
            known yet when the request began), ``file`` (the server sent a file by itself),
            ``unparsable``.
    """

    content: msgspec.Raw = NO_CONTENT
    size: int | None = None
    content_type: str | None = None
    sha256: str | None = None
    absent: str | None = None

    @property
    def text(self) -> str | None:
        """The content as text, None if it is absent."""
        return None if self.content is NO_CONTENT else bytes(self.content).decode()


class Request(_Part, frozen=True, kw_only=True, gc=False):
    """The HTTP request, redacted.

    Attributes:
        id: The request id, as also returned to the client.
        method: HTTP method.
        route: Route template, for example ``/orders/{order_id}``.
        path: Path as requested.
        query: Query string, redacted.
        headers: Chosen headers, names in lower case, redacted.
        http_version: ``1.1``, ``2``, …
        host: The authority in the client's request.
        body: The body, if the level includes it.
    """

    id: str | None = None
    method: str | None = None
    route: str | None = None
    path: str | None = None
    query: str | None = None
    headers: dict[str, str] = {}
    http_version: str | None = None
    host: str | None = None
    body: Body | None = None


class Response(_Part, frozen=True, kw_only=True, gc=False):
    """The HTTP response, redacted. ``status_code`` is None if none was sent."""

    status_code: int | None = None
    headers: dict[str, str] = {}
    body: Body | None = None


class Change(_Part, frozen=True, kw_only=True, gc=False):
    """One change in the application's database.

    Attributes:
        operation: ``insert``, ``update`` or ``delete``.
        kind: ``entity`` (a mapped object), ``relation`` (rows of an association table),
            ``bulk`` (one statement over many rows), ``untracked`` (a write that could not be
            attributed).
        entity: Name of the mapped class, or of the table.
        name: What references call it, where that is not ``entity`` in snake case: ``user`` for a
            ``UserModel``, ``tenant_a.order`` where it is not in its default place.
        table: Name of the table, with its schema where it has one.
        key: Primary key, column by column.
        values: ``{column: [before, after]}``, redacted; for an insert ``before`` is None, for a
            delete ``after`` is None.
        unknown_before: Columns whose earlier value could not be had without a hidden query.
        unknown_after: Columns whose new value only the database knows (server defaults and the
            like that the flush did not return).
        patches: ``{column: RFC 6902 patch}`` from the one redacted value to the other, for JSON.
        related: References of further entities it is about: both sides of an association, the
            bases of an inherited class, the key before it was changed; and its own by shorter or
            other names.
        rows: Rows affected, for ``bulk``.
        statement: The statement with placeholders, for ``bulk``.
        parameters: Its parameters, redacted, for ``bulk``.
        personal: Columns that the model marks as personal; the store encrypts their values.
        transaction: Outcome of the change's transaction; None if it is that of the action.
        note: What could not be read, if anything.

    Example::

        change = otel_audit.Change(
            operation="update", entity="Order", table="orders", key={"id": 7},
            values={"state": ["open", "paid"]},
        )
        assert change.reference == "order:7"
    """

    operation: Operation
    kind: ChangeKind = "entity"
    entity: str
    name: str | None = None
    table: str
    key: dict[str, Any] = {}
    values: dict[str, list[Any]] = {}
    unknown_before: tuple[str, ...] = ()
    unknown_after: tuple[str, ...] = ()
    patches: dict[str, list[dict[str, Any]]] = {}
    related: tuple[str, ...] = ()
    rows: int | None = None
    statement: str | None = None
    parameters: Any = None
    personal: tuple[str, ...] = ()
    transaction: TransactionOutcome | None = None
    note: str | None = None

    @property
    def reference(self) -> str:
        """The entity as the store's index knows it: ``order:123``, ``order_line:1,2``."""
        if self.name is None:
            # as records have always had it: what is stored must be found again
            return entity_reference(self.entity, *self.key.values())
        return named_reference(self.name, *self.key.values())


class ErrorInfo(_Part, frozen=True, kw_only=True, gc=False):
    """An error: its type and its redacted message."""

    type: str
    message: str | None = None


CONFLICTING = "audit.conflict:*"
"""Entity of every record that is stored under another id than its own, which is taken."""


class Received(_Part, frozen=True, kw_only=True):
    """How a record was received over the network; only the receiver writes this.

    Attributes:
        by: Who sent it, by the credential it came with: ``token:gateway-eu``,
            ``certificate:CN=gateway-eu``; ``nobody`` if the receiver requires none.
        hash: HMAC-SHA-256, in hex, of the record as it was received, before the receiver redacted
            it; under a key that only receivers can read, as short secrets can be guessed.
        signal: What came of the draft audit signal (``audit.integrity.*``, ``audit.sequence.*``),
            exactly: of the ``record``, of its ``resource``; ``unfit`` names what was left out.
        signature: What the receiver found of its signature: ``valid``, ``invalid``, ``unsigned``,
            ``unknown_signer``, ``unsupported``; None where it was not asked to look.
        signed_by: Whose the signature is, by the receiver's trust file.
        link: Whether it follows the record before it in its stream: ``linked``, ``broken``; None
            where the receiver cannot tell.
    """

    by: str
    hash: str | None = None
    signal: dict[str, Any] = {}
    signature: str | None = None
    signed_by: str | None = None
    link: str | None = None


class AuditRecord(_Part, frozen=True, kw_only=True, gc=False):
    """The finished, immutable fact.

    Attributes:
        record_id: UUIDv7, made when the action began; the same on every delivery.
        action_id: Shared by all records of one action.
        parent_action_id: The action this one was nested in.
        phase: The part of the action that this record describes.
        schema_version: Version of the payload's schema.
        event_name: ``order.created``: resource, past participle.
        action: ``CREATE READ UPDATE DELETE EXECUTE LOGIN`` ….
        outcome: ``success``, ``failure`` or ``unknown``; from status and transactions.
        decision: Whether it was ``allowed`` or ``denied``, apart from what failed; None: nobody
            said.
        occurred_at: When the action began, Unix nanoseconds.
        duration: How long it took, nanoseconds.
        actor, tenant, target, source: Who, for whom, on what, from where.
        request, response: The HTTP exchange, where there was one.
        changes: What changed in the database.
        changes_total: How many changes there were, where ``changes`` does not hold them all.
        changes_rolled_back: How many flushed changes were rolled back and so are left out.
        transaction: What became of the transactions that wrote.
        error: What went wrong.
        trace_id, span_id: The server span's ids in hex, so that a click lands on it.
        trace_sampled: Whether that span was sampled.
        producer_id, sequence_number: The process's numbered stream of records, from 1.
        level: The policy level it was recorded at.
        metadata: The application's own, redacted.
        resource: The producing service, as OpenTelemetry resource attributes.
        received: How it came in, where it came over the network.
        conflict_of: The id under which the record arrived, if another record has that id or its
            time is in the future. Only the store's sink sets it.

    Example::

        from otel_audit.testing import make_record

        record = make_record("order.paid", actor="clerk-1")
        assert (record.event_name, record.actor.id) == ("order.paid", "clerk-1")
    """

    record_id: str
    action_id: str
    parent_action_id: str | None = None
    phase: Phase
    schema_version: str
    event_name: str
    action: str
    outcome: Outcome
    decision: AccessDecision | None = None
    occurred_at: int
    duration: int = 0
    actor: Actor
    tenant: Tenant | None = None
    target: Target | None = None
    source: Source | None = None
    request: Request | None = None
    response: Response | None = None
    changes: tuple[Change, ...] = ()
    changes_total: int | None = None
    changes_rolled_back: int = 0
    transaction: TransactionOutcome
    error: ErrorInfo | None = None
    trace_id: str | None = None
    span_id: str | None = None
    trace_sampled: bool | None = None
    producer_id: str | None = None
    sequence_number: int | None = None
    level: str | None = None
    metadata: dict[str, Any] = {}
    resource: dict[str, Any] = {}
    received: Received | None = None
    conflict_of: str | None = None

    @property
    def observed_at(self) -> int:
        """When the action was over and the record made, Unix nanoseconds."""
        return self.occurred_at + self.duration

    @property
    def entities(self) -> tuple[str, ...]:
        """Every entity this record is about, each once: the target, then what changed."""
        target = self.target
        found = []
        if target is not None and target.id is not None:
            found.append(entity_reference(target.type, target.id))
        for change in self.changes:
            if change.key:
                found.append(change.reference)
            found += change.related
        if self.conflict_of is not None:
            # both can be found by the index: this one by the other's id, and all of its kind
            found += [f"audit.record:{self.conflict_of}", CONFLICTING]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Receipt:
    """The store's confirmation of a stored record.

    Attributes:
        record_id: The record's id, a UUID as text.
        content_hash: SHA-256 of the record's text as it is stored, in hex.
        recorded_at: When the store took it, by the store's own clock; UTC.
        conflict_of: The id under which it was sent, where that could not be its own.
        integrity_hash: SHA-256, in hex, over the RFC 8785 form of that text, as the draft audit
            signal asks for; None where the receiver did not make it.

    Example::

        async def stored(record_id: str) -> str:
            receipt = await otel_audit.wait_for_receipt(record_id)
            return receipt.content_hash
    """

    record_id: str
    content_hash: str
    recorded_at: datetime
    conflict_of: str | None = None
    integrity_hash: str | None = None


WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
"""Splits a name into words. Stored references depend on it: it never changes.

Redaction splits names by another rule (`otel_audit.redaction.names.name_words`), which reads every
script and looks through what is written to hide a name.
"""


def entities_of(changes: Iterable[Change]) -> Iterator[str]:
    """Name every entity that changes are about, each once."""
    found: dict[str, None] = {}
    for change in changes:
        for name in _named(change):
            if name not in found:
                found[name] = None
                yield name


def _named(change: Change) -> tuple[str, ...]:
    return (change.reference, *change.related) if change.key else change.related


def entity_reference(entity: str, *key: object) -> str:
    """Name an entity as the store's index knows it.

    Args:
        entity: Class, table or resource name in any style.
        key: Its primary key, one value a column.

    Returns:
        ``order_line:1,2``: the name in snake case, a colon, the key's values.
    """
    text = str(key[0]) if len(key) == 1 else ",".join([str(part) for part in key])
    return f"{snake_case(entity)}:{text}"


def named_reference(name: str, *key: object) -> str:
    """Name an entity by the noun for it, so that no two keys have one reference.

    Args:
        name: The noun, with the place that it is in if that is not the default.
        key: Its primary key, one value a column.
    """
    return f"{name}:{key_text(*key)}"


def key_text(*key: object) -> str:
    r"""Spell a key: of several values a comma stands between, and ``\`` before one within."""
    if len(key) == 1:
        return str(key[0])
    return ",".join([str(part).replace("\\", "\\\\").replace(",", "\\,") for part in key])


def is_plain_key(key: Iterable[object]) -> bool:
    """Whether no value of a key of several has what separates them."""
    return not any(type(part) is str and ("," in part or "\\" in part) for part in key)


# names of classes, tables and routes; more than an application uses in its requests
@functools.lru_cache(maxsize=1024)
def snake_case(name: str) -> str:
    """Spell a name in snake case."""
    return WORD_BREAK.sub("_", name).strip("_").lower()


def _plain(value: object) -> str:
    return str.__str__(value) if isinstance(value, str) else f"<{type(value).__name__}>"


to_json: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=_plain).encode
"""Write a record, a part of one, or plain values as JSON text in UTF-8.

What JSON does not know is written as its type's name, never as its value; a kind of text is written
as text.
"""
