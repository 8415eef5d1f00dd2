"""One HTTP exchange under observation: from the first look at the request to the record."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextvars import Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from opentelemetry import trace

from otel_audit import scope as scopes
from otel_audit.capture.bodies import make_body
from otel_audit.capture.copying import BodyCopy
from otel_audit.capture.enrichment import enrich
from otel_audit.capture.failures import describe_error
from otel_audit.capture.outcome import outcome_of
from otel_audit.capture.route import route_template
from otel_audit.capture.strays import record_afterwards
from otel_audit.complaints import complain
from otel_audit.record import (
    ANONYMOUS,
    SCHEMA_VERSION,
    Actor,
    AuditRecord,
    Body,
    Change,
    Outcome,
    Phase,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    TransactionOutcome,
)
from otel_audit.redaction import REDACTED, Redactor
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from otel_audit.policy import Decision, Policy

_logger = logging.getLogger("otel_audit.capture")

Headers = Iterable[tuple[bytes, bytes]]


class Recorder(Protocol):
    """Takes what is known of an action; keeps it in microseconds and never raises."""

    def opened(self, record: AuditRecord, server_span: trace.Span | None, /) -> bool:
        """An action has begun; False where it must be refused, as it could not be recorded."""

    def answered(self, record: AuditRecord, server_span: trace.Span | None, /) -> None:
        """The client is about to see the end of its answer."""

    def discarded(self, record_id: str, /) -> None:
        """What was opened is not recorded after all."""

    def closed(self, record: AuditRecord, server_span: trace.Span | None, /) -> None:
        """The action is over and its record is true."""


@dataclass(frozen=True, slots=True)
class Observer:
    """How exchanges are observed: everything that is settled when the configuration is read.

    Attributes:
        recorder: Takes the records.
        policy: Says what is recorded, and at which level.
        redactor: Takes secrets out.
        actor, tenant, source, request_id: Read who, for whom, from where, and the request's id
            out of an ASGI scope.
        kept_headers: Names of the headers that are kept, in lower case.
        request_id_header: The name of the response header, as bytes in lower case; empty: none.
        body_limit: Bytes of a body that are copied.
        request_bodies, response_bodies: Whether they are copied at all.
        full_payload: Whether the server span gets bodies and changes too.
        on_error: Told of each failure of ours.
    """

    recorder: Recorder
    policy: Policy
    redactor: Redactor
    actor: Callable[[Mapping[str, Any], AuditScope], Actor]
    tenant: Callable[[Mapping[str, Any], AuditScope], Tenant | None]
    source: Callable[[Mapping[str, Any]], Source]
    request_id: Callable[[Mapping[str, Any]], str]
    kept_headers: frozenset[str]
    request_id_header: bytes
    body_limit: int
    request_bodies: bool
    response_bodies: bool
    full_payload: bool
    on_error: Callable[[], None]


class Exchange:
    """One HTTP request and its response, as far as they have come.

    None of the public methods raises: a failure of ours is counted and logged, and the application
    goes on.
    """

    def __init__(self, observer: Observer, scope: MutableMapping[str, Any]) -> None:
        """Begin to observe a request.

        Args:
            observer: How.
            scope: The ASGI scope; gets the request id under ``state``.
        """
        self._observer = observer
        self._scope = scope
        self.inner_scope: MutableMapping[str, Any] | None = None
        self.inner_response_headers: Headers | None = None
        self._path: str = scope["path"]
        self._request_headers: Headers = scope["headers"]
        self._response_headers: Headers = ()
        self._status: int | None = None
        self._error: BaseException | None = None
        self._decision: Decision | None = None
        self._resolved = False
        self._judged: tuple[object, ...] | None = None
        self._token: Token[AuditScope | None] | None = None
        span = trace.get_current_span()
        self.audit = AuditScope(
            server_span=span if span.get_span_context().is_valid else None,
        )
        self._request_id = observer.request_id(scope)
        scope.setdefault("state", {})["request_id"] = self._request_id
        self._spooled = False
        self.refused = not self._open(observer)
        start = observer.policy.at_start(scope["method"], self._path)
        self._body_limit = limit = (
            observer.body_limit if start.body_limit is None else start.body_limit
        )
        self.request_copy = BodyCopy(limit) if start.request and observer.request_bodies else None
        self.response_copy = (
            BodyCopy(limit) if start.response and observer.response_bodies else None
        )

    def _open(self, observer: Observer) -> bool:
        """Write down that the action has begun, if it is one that is recorded when it succeeds."""
        try:
            decision = observer.policy.decide(
                method=self._scope["method"],
                path=self._path,
                route=None,
                status=None,
                actor=ANONYMOUS,
                tenant=None,
                wrote=False,
                key=self.audit.record_id,
            )
            if decision.level == "none":
                return True
            self._spooled = True
            self.audit.source = observer.source(self._scope)
            request = self._request(None)
            record = self._record(decision, phase="started", outcome="unknown", request=request)
            return observer.recorder.opened(record, self.audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._failed_ourselves(error)
            return True

    def enter(self) -> None:
        """Make the action the current one."""
        self._token = scopes.enter(self.audit)

    def response_started(self, message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """See the response's head; return it with the request id's header."""
        self._status = message["status"]
        headers = message.get("headers", ())
        self._response_headers = headers
        name = self._observer.request_id_header
        if not name or any(key.lower() == name for key, _ in headers):
            return message
        return {**message, "headers": [*headers, (name, self._request_id.encode("latin-1"))]}

    def answered(self) -> None:
        """The last chunk is about to be sent: tell the server span, which ends with it."""
        try:
            self._decide(wrote=bool(self.audit.changes_pending or self.audit.transactions))
            decision, span = self._decision, self.audit.server_span
            if decision is None:
                return
            self._collect(decision)
            if span is not None and span.is_recording():
                enrich(span, self.audit, decision, full=self._observer.full_payload)
            self._spooled = True
            known = self._record(decision, phase="completed", outcome="unknown")
            self._observer.recorder.answered(known, span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._failed_ourselves(error)

    def failed(self, error: BaseException) -> None:
        """The application raised; whoever stands outside of it makes the answer."""
        self._error = error
        if self._status is None and isinstance(error, Exception):
            self._status = 500

    def close(self) -> None:
        """The application has returned: what its transactions came to is known. Hand it over."""
        if self._token is not None:
            scopes.leave(self._token)
        self.audit.late = self._told_later
        self.audit.closed = True
        try:
            self._decide(wrote=bool(self.audit.transactions))
            decision, recorder = self._decision, self._observer.recorder
            if decision is not None:
                self._collect(decision)
                outcome = outcome_of(
                    status=self._status, error=self._error, transaction=self.audit.transaction
                )
                record = self._record(decision, phase="completed", outcome=outcome)
                recorder.closed(record, self.audit.server_span)
            elif self._spooled:
                recorder.discarded(self.audit.record_id)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._failed_ourselves(error)

    def _told_later(
        self,
        audit: AuditScope,
        outcome: TransactionOutcome,
        changes: list[Change],
        _count: int,
    ) -> None:
        """A transaction of this action ends after its record: it gets a record of its own."""
        try:
            if self._decision is None:
                self._decide(wrote=True)
            assert self._decision is not None  # noqa: S101 - what wrote is recorded
            told = self._record(self._decision, phase="changes", outcome="unknown")
            record = record_afterwards(told, audit, outcome, changes)
            self._observer.recorder.closed(record, audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._failed_ourselves(error)

    def _decide(self, *, wrote: bool) -> None:
        scope = self._asgi
        if not self._resolved:
            self._resolved = True
            self.audit.actor = self._observer.actor(scope, self.audit)
            self.audit.tenant = self._observer.tenant(scope, self.audit)
        judged = (self._status, wrote, self.audit.actor, self.audit.tenant)
        if judged == self._judged:
            return
        self._judged = judged
        decision = self._observer.policy.decide(
            method=self._scope["method"],
            path=self._path,
            route=route_template(scope),
            status=self._status,
            actor=self.audit.actor or ANONYMOUS,
            tenant=self.audit.tenant,
            wrote=wrote,
            scope=scope,
            key=self.audit.record_id,
        )
        self._decision = decision if decision.level != "none" else None

    def _collect(self, decision: Decision) -> None:
        audit, redactor = self.audit, self._observer.redactor
        if audit.response is not None:
            return
        level = decision.level
        audit.source = self._observer.source(self._asgi)
        audit.request = self._request(
            self._body(self.request_copy, self._request_headers)
            if level in ("request", "request_response")
            else None
        )
        headers = self.inner_response_headers or self._response_headers
        audit.response = Response(
            status_code=self._status,
            headers=redactor.headers(headers, self._observer.kept_headers),
            body=self._body(self.response_copy, headers) if level == "request_response" else None,
        )

    @property
    def _asgi(self) -> MutableMapping[str, Any]:
        """The scope as the router left it: middleware may have passed on a copy."""
        return self._scope if self.inner_scope is None else self.inner_scope

    def _request(self, body: Body | None) -> Request:
        redactor = self._observer.redactor
        query = self._scope.get("query_string", b"").decode("latin-1")
        return Request(
            id=self._request_id,
            method=self._scope["method"],
            route=route_template(self._asgi),
            path=self._shown_path(),
            query=redactor.query(query) if query else None,
            headers=redactor.headers(self._request_headers, self._observer.kept_headers),
            http_version=self._scope.get("http_version"),
            host=_text_header(self._request_headers, b"host"),
            body=body,
        )

    def _shown_path(self) -> str:
        redactor, scope = self._observer.redactor, self._asgi
        parameters = scope.get("path_params")
        segments = self._path.split("/")
        if parameters is None:
            # not routed yet, so nobody knows which segment is a secret: fail towards redaction
            return redactor.path("/".join(map(_unless_token, segments)))
        secret = {str(value) for name, value in parameters.items() if redactor.is_sensitive(name)}
        if secret:
            segments = [REDACTED if segment in secret else segment for segment in segments]
        return redactor.path("/".join(segments))

    def _body(self, copy: BodyCopy | None, headers: Headers) -> Body | None:
        if copy is None or (copy.size == 0 and copy.complete):
            return None
        if copy.size == 0:
            return Body(absent="not_read")
        return make_body(
            copy.head,
            size=copy.size,
            content_type=_text_header(headers, b"content-type"),
            content_encoding=_text_header(headers, b"content-encoding"),
            complete=copy.whole,
            redactor=self._observer.redactor,
            limit=self._body_limit,
        )

    def _record(
        self,
        decision: Decision,
        *,
        phase: Phase,
        outcome: Outcome,
        request: Request | None = None,
    ) -> AuditRecord:
        audit, redactor = self.audit, self._observer.redactor
        changes = () if decision.level == "metadata" else tuple(audit.changes)
        total = audit.changes_total
        return AuditRecord(
            record_id=audit.record_id,
            action_id=audit.action_id,
            parent_action_id=audit.parent_action_id,
            phase=phase,
            schema_version=SCHEMA_VERSION,
            event_name=audit.event_name or decision.event_name,
            action=audit.action or decision.action,
            outcome=outcome,
            occurred_at=audit.occurred_at,
            duration=time.perf_counter_ns() - audit.started,
            actor=audit.actor or ANONYMOUS,
            tenant=audit.tenant,
            target=_with_new_id(audit.target or decision.target, audit),
            source=audit.source,
            request=audit.request or request,
            response=audit.response,
            changes=changes,
            changes_total=total if total != len(changes) else None,
            changes_rolled_back=audit.changes_rolled_back,
            transaction=audit.transaction,
            error=None if self._error is None else describe_error(self._error, redactor),
            level=decision.level,
            metadata=self._metadata(decision),
        )

    def _metadata(self, decision: Decision) -> dict[str, Any]:
        found = self._observer.redactor.document(self.audit.metadata) if self.audit.metadata else {}
        if decision.sample is not None:
            found["audit.sample.one_of"] = decision.sample
        return cast("dict[str, Any]", found)

    def _failed_ourselves(self, error: Exception) -> None:
        self._observer.on_error()
        complain(_logger, "exchange", "An action was not observed in full", error=error)


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SHORTEST_TOKEN = 16


def _unless_token(segment: str) -> str:
    """Withhold a path segment that might let in whoever knows it: long, of letters and digits."""
    if len(segment) < _SHORTEST_TOKEN or _UUID.fullmatch(segment):
        return segment
    mixed = any(map(str.isdigit, segment)) and any(map(str.isalpha, segment))
    return REDACTED if mixed else segment


def _with_new_id(target: Target | None, audit: AuditScope) -> Target | None:
    """Name the one entity that was created, where the path could not name it yet."""
    if target is None or target.id is not None:
        return target
    created = [
        change.reference.partition(":")[2]
        for change in audit.changes
        if change.operation == "insert"
        and change.key
        and change.reference.startswith(f"{target.type}:")
    ]  # fmt: skip
    return Target(type=target.type, id=created[0]) if len(created) == 1 else target


def _text_header(headers: Headers, name: bytes) -> str | None:
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None
