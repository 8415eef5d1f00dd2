"""The application's server span: a summary of the action is set on it, never the audit mark.

Where it is wanted, the URLs that are on it are redacted, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from otel_audit import attributes as names
from otel_audit.http.request_metadata import LONGEST_QUERY
from otel_audit.record import ANONYMOUS, AuditRecord, Change, entities_of, to_json
from otel_audit.redaction.truncate import cut_query
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import Budget


_MOST_CHANGES = 200
_MOST_ENTITIES = 100
"""Most entities on a span; the record has all of them."""


def enrich(  # noqa: C901 - one fact after another
    span: Span, audit: AuditScope, record: AuditRecord, *, full: bool
) -> None:
    """Set what is known of the action on the server span.

    The span may end before the transaction does: its changes, entities and count are
    marked provisional while there are changes whose transaction is open.

    Args:
        span: The application's span of the request, recording.
        audit: The action; its actor, tenant, request and response are known.
        record: Its record so far.
        full: Whether bodies and changes are set too.
    """
    found: dict[str, AttributeValue] = {
        names.RECORD_ID: record.record_id,
        names.ACTION_ID: record.action_id,
        names.EVENT_NAME: record.event_name,
        names.ACTION: record.action,
        names.CHANGES_COUNT: audit.changes_total + audit.changes_pending,
    }
    changes: list[Change] = audit.changes[:_MOST_CHANGES]
    if audit.changes_pending:
        found[names.CHANGES_PROVISIONAL] = True
        changes = [*changes, *audit.pending(_MOST_CHANGES)][:_MOST_CHANGES]
    if changes or audit.changes_pending:
        found[names.ENTITIES] = tuple(islice(entities_of(changes), _MOST_ENTITIES))
    actor, tenant, target = audit.actor or ANONYMOUS, audit.tenant, record.target
    found[names.ACTOR_ID] = actor.id
    found[names.ACTOR_TYPE] = actor.type
    if actor.id != ANONYMOUS.id:
        found[names.USER_ID] = actor.id
    if actor.role is not None:
        found[names.ACTOR_ROLE] = actor.role
    if actor.email is not None:
        found[names.ACTOR_EMAIL] = actor.email
    if tenant is not None:
        found[names.TENANT_ID] = tenant.id
        if tenant.slug is not None:
            found[names.TENANT_SLUG] = tenant.slug
    if target is not None:
        found[names.TARGET_TYPE] = target.type
        if target.id is not None:
            found[names.TARGET_ID] = target.id
    if audit.request is not None and audit.request.id is not None:
        found[names.REQUEST_ID] = audit.request.id
    if full:
        _add_payload(found, audit, changes)
    span.set_attributes(found)


def _add_payload(
    found: dict[str, AttributeValue], audit: AuditScope, changes: list[Change]
) -> None:
    for name, part in (
        (names.REQUEST_BODY, audit.request),
        (names.RESPONSE_BODY, audit.response),
    ):
        text = part.body.text if part is not None and part.body is not None else None
        if text is not None:
            found[name] = text
    if changes:
        found[names.CHANGES] = to_json(changes).decode()


_WHOLE: Final = ("http.url", "url.full", "http.target")
_PATH: Final = "url.path"
_QUERY: Final = "url.query"
_HEADERS: Final = (
    "http.request.header.referer", "http.response.header.location",
    "http.response.header.content_location",
)  # fmt: skip


def redact_span_urls(
    span: Span, path: Callable[[str], str], redactor: Redactor, budget: Budget
) -> None:
    """Set the URL attributes of a span again if something in them must not be shown.

    Args:
        span: The application's span of the request, recording.
        path: Spells a path of this request without its secrets.
        redactor: Takes secrets out.
        budget: What describing the action may cost.
    """
    given: Mapping[str, Any] = getattr(span, "attributes", None) or {}
    found: dict[str, AttributeValue] = {}
    for name in (*_WHOLE, _PATH, _QUERY):
        value = given.get(name)
        if not isinstance(value, str) or not value:
            continue
        if name == _QUERY:
            shown = _shown_query(value, redactor, budget)
        elif name == _PATH:
            shown = path(value)
        else:
            shown = _shown_url(value, path, redactor, budget)
        if shown != value:
            found[name] = shown
    for name in _HEADERS:
        values = given.get(name)
        if isinstance(values, list | tuple):
            header = name.rpartition(".")[2].replace("_", "-")
            pairs = [(header.encode(), str(value).encode("latin-1", "replace")) for value in values]
            redacted = [
                redactor.headers([pair], [header], budget.head).get(header, "") for pair in pairs
            ]
            if redacted != list(values):
                found[name] = redacted
    if found:
        span.set_attributes(found)


def _shown_url(url: str, path: Callable[[str], str], redactor: Redactor, budget: Budget) -> str:
    before, sign, query = url.partition("?")
    scheme, colon, rest = before.partition("://")
    if not colon:
        scheme, rest = "", before
    authority, slash, below = rest.partition("/") if colon else ("", "/", rest.removeprefix("/"))
    host = redactor.text(f"{scheme}{colon}{authority}/", budget.head).removesuffix("/")
    shown = path(f"/{below}") if slash else ""
    return f"{host if colon else ''}{shown}{sign}{_shown_query(query, redactor, budget)}"


def _shown_query(query: str, redactor: Redactor, budget: Budget) -> str:
    return redactor.query(cut_query(query, LONGEST_QUERY), budget.head)
