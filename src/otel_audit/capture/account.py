"""What is known of an exchange, and the record that this makes."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace

from otel_audit.capture.continued import with_told
from otel_audit.capture.description import RequestHead, secret_parameters
from otel_audit.capture.enrichment import enrich
from otel_audit.capture.failures import describe_error
from otel_audit.capture.observer import Observer
from otel_audit.capture.outcome import outcome_of
from otel_audit.capture.passage import Passage
from otel_audit.capture.reading import state_of
from otel_audit.capture.route import route_template
from otel_audit.capture.targets import shown_target, with_new_id
from otel_audit.capture.told import action_told, event_told
from otel_audit.capture.websocket import SocketTally
from otel_audit.ids import public_id
from otel_audit.policy import override_of
from otel_audit.record import (
    ANONYMOUS,
    SCHEMA_VERSION,
    AuditRecord,
    ErrorInfo,
    Outcome,
    Phase,
    Request,
    Response,
    Source,
    Target,
)
from otel_audit.scope import AuditScope, Origin

if TYPE_CHECKING:
    from otel_audit.capture.actor import Bearer
    from otel_audit.policy import Decision

_WITH_REQUEST = frozenset({"request", "request_response"})


class Account:
    """What is known of one exchange so far. Its methods may raise: `Exchange` sees to that.

    Attributes:
        audit: The action.
        head: The request's head.
        passage: What has passed of bodies and response.
        socket: What has passed over a WebSocket; None for a request.
        inner_scope: The ASGI scope as the router has it; None before the request gets there.
        error: What the application raised.
        judgement: What was decided last, also where nothing is to be recorded.
        judged: The facts that this rests on.
        resolved: Whether it is settled who does it, and for whom.
        is_quiet: Whether no answer could lead to a record: only what is written could.
    """

    def __init__(self, observer: Observer, scope: MutableMapping[str, Any]) -> None:
        """Begin with what the server says.

        Args:
            observer: How exchanges are observed.
            scope: The ASGI scope.
        """
        self._observer = observer
        self._scope = scope
        self.socket = SocketTally() if scope["type"] == "websocket" else None
        self.inner_scope: MutableMapping[str, Any] | None = None
        self.passage = Passage()
        self.error: BaseException | None = None
        self._described: ErrorInfo | None = None
        self.judgement: Decision | None = None
        self.judged: tuple[object, ...] | None = None
        self.resolved = self.is_quiet = False
        self._bearer: tuple[object, Bearer] | None = None
        self._secrets: frozenset[str] = frozenset()
        self._shown_target: tuple[tuple[Target, int], Target | None] | None = None
        self._asking: tuple[object, object, bool] | None = None
        span = trace.get_current_span()
        self.audit = AuditScope(server_span=span if span.get_span_context().is_valid else None)
        self.audit.origin = self.origin
        self.head = RequestHead(
            scope,
            method="WEBSOCKET" if self.socket is not None else scope["method"],
            # the client reads it before the record is stored: the record's own id stays untold
            request_id=observer.request_id(scope) or public_id(),
            redactor=observer.redactor,
            keep=observer.kept_headers,
        )

    @property
    def routed(self) -> MutableMapping[str, Any]:
        """The scope as the router left it: middleware may have passed on a copy."""
        return self._scope if self.inner_scope is None else self.inner_scope

    def origin(self) -> Origin:
        """Say what an action inside of this one takes over; more may be known later."""
        scope, audit, observer = self.routed, self.audit, self._observer
        bearer = observer.bearer(scope)
        claims = bearer.claims
        return Origin(
            actor=audit.actor if self.resolved else observer.actor(scope, audit, bearer),
            tenant=audit.tenant if self.resolved else observer.tenant(scope, audit, claims),
            source=observer.source(scope, claims, self._known_source(scope)),
            request_id=self.head.id,
        )

    def decide(self, *, wrote: bool) -> Decision | None:
        """Decide by what is known now; None where the action is not recorded."""
        scope, audit, observer = self.routed, self.audit, self._observer
        # what was recorded by hand inside of this action must not lead back to nothing
        wrote = wrote or audit.nested > 0
        if self.is_quiet and not wrote and not self._asks_for_more(scope):
            return None
        if not self.resolved:
            self.resolved = True
            # anew: what was not known when a long action was told of may be known now
            bearer = observer.bearer(scope)
            self._bearer = scope.get("headers"), bearer
            audit.actor = observer.actor(scope, audit, bearer)
            audit.tenant = observer.tenant(scope, audit, bearer.claims)
            parameters = scope.get("path_params")
            self._shown_target = None
            if parameters:
                self._secrets = secret_parameters(parameters, observer.redactor)
        judged = (self.passage.status, wrote, audit.actor, audit.tenant)
        if judged != self.judged:
            self.judged = judged
            self.judge(route=route_template(scope), wrote=wrote, scope=scope)
        decision = self.judgement
        return decision if decision is not None and decision.level != "none" else None

    def _asks_for_more(self, scope: Mapping[str, Any]) -> bool:
        """Tell whether a route that nobody knew when the request began has a level of its own."""
        endpoint, route, known = scope.get("endpoint"), scope.get("route"), self._asking
        if known is None or known[0] is not endpoint or known[1] is not route:
            override = override_of(endpoint, route)
            asks = override is not None and override.level not in (None, "none")
            self._asking = known = endpoint, route, asks
        return known[2]

    def _bearer_of(self, scope: Mapping[str, Any]) -> Bearer:
        """The request's bearer token, read once from the same headers."""
        headers = scope.get("headers")
        if self._bearer is None or self._bearer[0] is not headers:
            self._bearer = headers, self._observer.bearer(scope)
        return self._bearer[1]

    def _known_source(self, scope: Mapping[str, Any]) -> Source | None:
        """What is known of where it came from, unless a middleware knows it better."""
        first = self._scope
        same = scope is first or (
            scope.get("client") == first.get("client")
            and scope.get("headers") is first.get("headers")
        )
        return self.audit.source if same else None

    def judge(self, *, route: str | None, wrote: bool, scope: Mapping[str, Any] | None) -> Decision:
        """Decide by the given facts, and remember what was decided."""
        self.judgement = decision = self._observer.policy.decide(
            method=self.head.method,
            path=self.head.path,
            route=route,
            status=self.passage.status,
            actor=self.audit.actor or ANONYMOUS,
            tenant=self.audit.tenant,
            wrote=wrote,
            scope=scope,
            key=self.audit.record_id,
            name_all=self._observer.log is not None,
        )
        return decision

    def collect(self, decision: Decision) -> None:
        """Describe request and response, once: redacted, with bodies as far as wanted."""
        audit, redactor, observer = self.audit, self._observer.redactor, self._observer
        if audit.response is not None:
            return
        level, scope = decision.level, self.routed
        claims = self._bearer_of(scope).claims
        if audit.source is None or claims is not None or "session_id" in state_of(scope):
            audit.source = observer.source(scope, claims, self._known_source(scope))
        own = decision.body_limit
        limit = observer.body_limit if own is None else own
        passage, is_socket = self.passage, self.socket is not None
        messages = observer.socket_messages if decision.messages is None else decision.messages
        request_body = response_body = None
        if self.socket is not None and messages:
            request_body, response_body = self.socket.bodies(
                redactor, limit, received=level in _WITH_REQUEST, sent=level == "request_response"
            )
        if level in _WITH_REQUEST and observer.request_bodies and not is_socket:
            request_body = passage.request_body(self._scope["headers"], redactor, limit)
        if level == "request_response" and observer.response_bodies and not is_socket:
            response_body = passage.response_body(
                redactor, limit, may_exist=self.head.method != "HEAD" and self.error is None
            )
        audit.request = self.head.describe(scope, request_body)
        audit.response = Response(
            status_code=passage.status,
            headers=redactor.headers(passage.headers, observer.kept_headers),
            body=response_body,
        )

    def outcome(self) -> Outcome:
        """Judge how it ended."""
        socket = self.socket
        if socket is not None and socket.ended_badly and self.audit.transaction != "unknown":
            return "failure"
        return outcome_of(
            status=self.passage.status,
            error=self.error,
            transaction=self.audit.transaction,
            cut_off=socket is None and not self.passage.ended,
        )

    def enrich(self, decision: Decision) -> None:
        """Tell the application's own span, if it is still recording."""
        span = self.audit.server_span
        if span is not None and span.is_recording():
            full = self._observer.full_payload
            enrich(
                span,
                self.audit,
                decision,
                event_name=self._event_name(decision),
                target=self._target(decision),
                full=full,
            )

    def record(
        self,
        decision: Decision,
        *,
        phase: Phase,
        outcome: Outcome,
        request: Request | None = None,
    ) -> AuditRecord:
        """Make the record of what is known now."""
        audit = self.audit
        changes = () if decision.level == "metadata" else tuple(audit.changes)
        total = audit.changes_total
        return AuditRecord(
            record_id=audit.record_id,
            action_id=audit.action_id,
            parent_action_id=audit.parent_action_id,
            phase=phase,
            schema_version=SCHEMA_VERSION,
            event_name=self._event_name(decision),
            action=action_told(audit.action) or decision.action,
            outcome=outcome,
            occurred_at=audit.occurred_at,
            duration=time.perf_counter_ns() - audit.started,
            actor=audit.actor or ANONYMOUS,
            tenant=audit.tenant,
            target=self._target(decision),
            source=audit.source,
            request=audit.request or request,
            response=audit.response,
            changes=changes,
            changes_total=total if total != len(changes) else None,
            changes_rolled_back=audit.changes_rolled_back,
            transaction=audit.transaction,
            error=self._error_info(),
            level=decision.level,
            metadata=self._metadata(decision),
        )

    def _event_name(self, decision: Decision) -> str:
        told = self.audit.event_name
        return event_told(told, self._observer.redactor) if told else decision.event_name

    def _target(self, decision: Decision) -> Target | None:
        named = self.audit.target or decision.target
        if named is None:
            return None
        seen = named, len(self.audit.changes)
        known = self._shown_target
        if known is None or known[0] != seen:
            found = with_new_id(named, self.audit)
            routed = self.routed.get("route") is not None
            shown = shown_target(found, self._secrets, self._observer.redactor, routed=routed)
            self._shown_target = known = seen, shown
        return known[1]

    def _error_info(self) -> ErrorInfo | None:
        if self.error is not None and self._described is None:
            self._described = describe_error(self.error, self._observer.redactor)
        return self._described

    def _metadata(self, decision: Decision) -> dict[str, Any]:
        found = self._observer.redactor.document(self.audit.metadata) if self.audit.metadata else {}
        if decision.sample is not None:
            found["audit.sample.one_of"] = decision.sample
        if self.socket is not None:
            found["websocket"] = self.socket.facts()
        return with_told(cast("dict[str, Any]", found), self.audit)
