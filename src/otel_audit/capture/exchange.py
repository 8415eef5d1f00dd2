"""One HTTP exchange under observation: from the first look at the request to the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, cast

import msgspec
from opentelemetry import trace

from otel_audit import scope as scopes
from otel_audit.capture.description import RequestHead, secret_parameters
from otel_audit.capture.enrichment import enrich
from otel_audit.capture.failures import describe_error
from otel_audit.capture.long import call_after, record_started
from otel_audit.capture.observer import Observer
from otel_audit.capture.outcome import outcome_of
from otel_audit.capture.passage import Passage, add
from otel_audit.capture.reading import state_of
from otel_audit.capture.route import route_template
from otel_audit.capture.strays import record_afterwards
from otel_audit.capture.targets import shown_target, with_new_id
from otel_audit.capture.websocket import SocketTally
from otel_audit.complaints import complain
from otel_audit.errors import StoreUnavailableError
from otel_audit.ids import uuid7
from otel_audit.policy import override_of
from otel_audit.record import (
    ANONYMOUS,
    SCHEMA_VERSION,
    AuditRecord,
    Change,
    ErrorInfo,
    Outcome,
    Phase,
    Request,
    Response,
    Target,
    TransactionOutcome,
)
from otel_audit.scope import AuditScope, Origin

if TYPE_CHECKING:
    import asyncio

    from otel_audit.capture.copying import BodyCopy
    from otel_audit.policy import Decision, Start

_logger = logging.getLogger("otel_audit.capture")

_FAILED_SOCKET = 1011  # RFC 6455, section 7.4.1
_WITH_REQUEST = frozenset({"request", "request_response"})
_WITH_HEADERS = frozenset({
    "http.response.start", "websocket.accept", "websocket.http.response.start",
})  # fmt: skip


class Exchange:
    """One HTTP request and its response, or one WebSocket, as far as they have come.

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
        self.socket = SocketTally() if scope["type"] == "websocket" else None
        self.inner_scope: MutableMapping[str, Any] | None = None
        self.passage = Passage()
        self._error: BaseException | None = None
        self._described_error: ErrorInfo | None = None
        self._judgement: Decision | None = None
        self._judged: tuple[object, ...] | None = None
        self._resolved = False
        self._secrets: frozenset[str] = frozenset()
        self._shown_target: tuple[Target, Target | None] | None = None
        self._token: Token[AuditScope | None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._told_of_start: Decision | None = None
        span = trace.get_current_span()
        self.audit = AuditScope(server_span=span if span.get_span_context().is_valid else None)
        self.audit.origin = self._origin
        self._head = RequestHead(
            scope,
            method="WEBSOCKET" if self.socket is not None else scope["method"],
            request_id=observer.request_id(scope),
            redactor=observer.redactor,
            keep=observer.kept_headers,
        )
        scope.setdefault("state", {})["request_id"] = self._head.id
        self._spooled = self._is_quiet = False
        self._intent: AuditRecord | None = None
        self.refused = not self._open()

    def _open(self) -> bool:
        """Write down that the action has begun, if it is one that is recorded when it succeeds."""
        try:
            if self._observe_bodies().level == "none":
                self._is_quiet = self._observer.log is None
                return True
            decision = self._judge(route=None, wrote=False, scope=None)
            if decision.level == "none":
                return True
            self._spooled = True
            source = self._observer.source(self._scope, None)
            self.audit.source = source
            request = self._head.describe(self._scope, None)
            record = self._record(decision, phase="started", outcome="unknown", request=request)
            strict = self._observer.strict if decision.strict is None else decision.strict
            if strict and self._observer.intended is not None:
                self._intent = record
            return self._observer.recorder.opened(record, self.audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)
            return True

    def _observe_bodies(self) -> Start:
        observer = self._observer
        start = observer.policy.at_start(self._head.method, self._head.path)
        if self.socket is None and start.request:
            self.passage.copy(
                max(observer.body_limit, start.body_limit or 0),
                request=observer.request_bodies,
                response=start.response and observer.response_bodies,
            )
        return start

    async def admitted(self) -> bool:
        """Wait until the intent is stored, where one is asked for; False: the action must not be.

        The refusal is then recorded, and this exchange is over.
        """
        intent, store = self._intent, self._observer.intended
        if intent is None or store is None:
            return True
        stored = False
        try:
            stored = await store(self._as_intent(intent), self.audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)
        finally:
            if not stored:
                self.passage.status = 503
                self.failed(StoreUnavailableError("its intent could not be stored in time"))
                self.close()
        return stored

    def _as_intent(self, record: AuditRecord) -> AuditRecord:
        scope, observer = self._scope, self._observer
        claims = observer.claims(scope)
        actor = observer.actor(scope, self.audit) if claims is not None else ANONYMOUS
        return msgspec.structs.replace(record, record_id=uuid7(), phase="intent", actor=actor)

    @property
    def waits_for_disk(self) -> bool:
        """Whether the client must not see the answer's end before the disk has the record."""
        return self._observer.durable is not None and (
            self.passage.ended or self._error is not None
        )

    async def durable(self) -> None:
        """Wait until what was recorded is on disk."""
        try:
            if self._observer.durable is not None:
                await self._observer.durable()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def enter(self) -> None:
        """Make the action the current one, and set the clock for a long one."""
        self._token = scopes.enter(self.audit)
        if self._observer.long_after is not None:
            self._clock = call_after(self._observer.long_after, self._takes_long)

    def routed(self, scope: MutableMapping[str, Any]) -> bool:
        """Learn which scope the router works on; tell whether it is the first to be met."""
        first = self.inner_scope is None
        # a mounted application's own middleware may have passed on a copy
        self.inner_scope = scope
        return first

    def sent_inside(self, message: Mapping[str, Any]) -> None:
        """See a message of the response before the application's middleware sees it."""
        try:
            self.passage.sent_inside(message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def received(self, copy: BodyCopy, message: Mapping[str, Any]) -> None:
        """See a message of the request that someone has asked for."""
        try:
            if message["type"] == "http.request":
                add(copy, message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def received_by_socket(self, message: Mapping[str, Any]) -> None:
        """See a message that a WebSocket receives."""
        try:
            if self.socket is not None:
                self.socket.received(message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def sent(self, message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """See a message that goes to the server; return what is sent in its place."""
        try:
            kind = message["type"]
            if self.socket is not None:
                self.socket.sent(message)
                self.passage.status = self.socket.status
            elif kind == "http.response.start":
                self.passage.started(message)
            elif self.passage.sent(kind, message):
                self._answered()
            if kind in _WITH_HEADERS:
                return self._with_request_id(message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)
        return message

    def _with_request_id(self, message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        headers = message.get("headers", ())
        name = self._observer.request_id_header
        if not name or any(key.lower() == name for key, _ in headers):
            return message
        return {**message, "headers": [*headers, (name, self._head.id.encode("latin-1"))]}

    def _answered(self) -> None:
        """The last chunk is about to be sent: tell the server span, which ends with it."""
        decision = self._decide(wrote=bool(self.audit.changes_pending or self.audit.transactions))
        if decision is None:
            return
        self._collect(decision)
        self._enrich(decision)
        self._spooled = True
        known = self._record(decision, phase="completed", outcome="unknown")
        self._observer.recorder.answered(known, self.audit.server_span)

    def _enrich(self, decision: Decision) -> None:
        span = self.audit.server_span
        if span is not None and span.is_recording():
            full = self._observer.full_payload
            enrich(span, self.audit, decision, target=self._target(decision), full=full)

    def failed(self, error: BaseException) -> None:
        """The application raised; whoever stands outside of it makes the answer."""
        self._error = error
        if not isinstance(error, Exception):
            return
        if self.passage.status is None:
            self.passage.status = 500
        if self.socket is not None and self.socket.code is None:
            self.socket.code = _FAILED_SOCKET

    def close(self) -> None:
        """The application has returned: what its transactions came to is known. Hand it over."""
        audit = self.audit
        try:
            if self._clock is not None:
                self._clock.cancel()
            if self._token is not None:
                scopes.leave(self._token)
            audit.late = self._told_later
            audit.closed = True
            decision = self._decide(wrote=bool(audit.transactions)) or self._told_of_start
            if decision is not None:
                self._finish(decision)
            else:
                if self._spooled:
                    self._observer.recorder.discarded(audit.record_id)
                self._log_unrecorded()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def _finish(self, decision: Decision) -> None:
        audit, observer = self.audit, self._observer
        self._collect(decision)
        if self.socket is not None:
            self._enrich(decision)
        record = self._record(decision, phase="completed", outcome=self._outcome())
        observer.recorder.closed(record, audit.server_span)
        if observer.log is not None:
            observer.log(record, audit.server_span)

    def _outcome(self) -> Outcome:
        socket = self.socket
        if socket is not None and socket.ended_badly and self.audit.transaction != "unknown":
            return "failure"
        return outcome_of(
            status=self.passage.status,
            error=self._error,
            transaction=self.audit.transaction,
            cut_off=socket is None and not self.passage.ended,
        )

    def _log_unrecorded(self) -> None:
        log, decision = self._observer.log, self._judgement
        if log is not None and decision is not None:
            self._collect(decision)
            log(
                self._record(decision, phase="completed", outcome=self._outcome()),
                self.audit.server_span,
            )

    def _takes_long(self) -> None:
        """The action still runs: a record says so. Who it is may not be settled yet."""
        audit = self.audit
        kept = audit.actor, audit.tenant, self._resolved, self._judged
        try:
            decision = self._decide(wrote=bool(audit.changes_pending or audit.transactions))
            found = audit.actor, audit.tenant
            if decision is not None:
                request = audit.request or self._head.describe(self._asgi, None)
                known = self._record(decision, phase="started", outcome="unknown", request=request)
                self._told_of_start = decision
                self._observer.recorder.closed(record_started(known), audit.server_span)
            if (audit.actor, audit.tenant) == found and not self.passage.ended:
                audit.actor, audit.tenant, self._resolved, self._judged = kept
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def _told_later(
        self,
        audit: AuditScope,
        outcome: TransactionOutcome,
        changes: list[Change],
        _count: int,
    ) -> None:
        """A transaction of this action ends after its record: it gets a record of its own."""
        try:
            # what wrote is recorded, whatever was decided before
            decision = self._decide(wrote=True) or self._judgement
            assert decision is not None  # noqa: S101 - made when the exchange began
            told = self._record(decision, phase="changes", outcome="unknown")
            record = record_afterwards(told, audit, outcome, changes)
            self._observer.recorder.closed(record, audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self.failed_ourselves(error)

    def _origin(self) -> Origin:
        """Say what an action inside of this one takes over; more may be known later."""
        scope, audit, observer = self._asgi, self.audit, self._observer
        claims = observer.claims(scope)
        return Origin(
            actor=audit.actor if self._resolved else observer.actor(scope, audit),
            tenant=audit.tenant if self._resolved else observer.tenant(scope, audit, claims),
            source=observer.source(scope, claims),
            request_id=self._head.id,
        )

    def _decide(self, *, wrote: bool) -> Decision | None:
        """Decide by what is known now; None where the action is not recorded."""
        scope, audit, observer = self._asgi, self.audit, self._observer
        # what was recorded by hand inside of this action must not lead back to nothing
        wrote = wrote or audit.nested > 0
        if self._is_quiet and not wrote and not _asks_for_more(scope):
            return None
        if not self._resolved:
            self._resolved = True
            claims = observer.claims(scope)
            audit.actor = observer.actor(scope, audit)
            audit.tenant = observer.tenant(scope, audit, claims)
            parameters = scope.get("path_params")
            self._shown_target = None
            if parameters:
                self._secrets = secret_parameters(parameters, observer.redactor)
        judged = (self.passage.status, wrote, audit.actor, audit.tenant)
        if judged != self._judged:
            self._judged = judged
            self._judge(route=route_template(scope), wrote=wrote, scope=scope)
        decision = self._judgement
        return decision if decision is not None and decision.level != "none" else None

    def _judge(
        self, *, route: str | None, wrote: bool, scope: Mapping[str, Any] | None
    ) -> Decision:
        self._judgement = decision = self._observer.policy.decide(
            method=self._head.method,
            path=self._head.path,
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

    def _collect(self, decision: Decision) -> None:
        audit, redactor, observer = self.audit, self._observer.redactor, self._observer
        if audit.response is not None:
            return
        level, scope = decision.level, self._asgi
        claims = observer.claims(scope)
        if audit.source is None or claims is not None or "session_id" in state_of(scope):
            audit.source = observer.source(scope, claims)
        own = decision.body_limit
        limit = observer.body_limit if own is None else own
        passage, is_socket = self.passage, self.socket is not None
        request_body = response_body = None
        if level in _WITH_REQUEST and observer.request_bodies and not is_socket:
            request_body = passage.request_body(self._scope["headers"], redactor, limit)
        if level == "request_response" and observer.response_bodies and not is_socket:
            response_body = passage.response_body(
                redactor, limit, may_exist=self._head.method != "HEAD" and self._error is None
            )
        audit.request = self._head.describe(scope, request_body)
        audit.response = Response(
            status_code=passage.status,
            headers=redactor.headers(passage.headers, observer.kept_headers),
            body=response_body,
        )

    @property
    def _asgi(self) -> MutableMapping[str, Any]:
        """The scope as the router left it: middleware may have passed on a copy."""
        return self._scope if self.inner_scope is None else self.inner_scope

    def _record(
        self,
        decision: Decision,
        *,
        phase: Phase,
        outcome: Outcome,
        request: Request | None = None,
    ) -> AuditRecord:
        audit = self.audit
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

    def _target(self, decision: Decision) -> Target | None:
        found = with_new_id(self.audit.target or decision.target, self.audit)
        if found is None or found.id is None:
            return found
        known = self._shown_target
        if known is None or known[0] != found:
            routed = self._asgi.get("route") is not None
            shown = shown_target(found, self._secrets, self._observer.redactor, routed=routed)
            self._shown_target = known = found, shown
        return known[1]

    def _error_info(self) -> ErrorInfo | None:
        if self._error is not None and self._described_error is None:
            self._described_error = describe_error(self._error, self._observer.redactor)
        return self._described_error

    def _metadata(self, decision: Decision) -> dict[str, Any]:
        found = self._observer.redactor.document(self.audit.metadata) if self.audit.metadata else {}
        if decision.sample is not None:
            found["audit.sample.one_of"] = decision.sample
        if self.socket is not None:
            found["websocket"] = self.socket.facts()
        return cast("dict[str, Any]", found)

    def failed_ourselves(self, error: Exception) -> None:
        """Count and log a failure of ours."""
        self._observer.on_error()
        complain(_logger, "exchange", "An action was not observed in full", error=error)


def _asks_for_more(scope: Mapping[str, Any]) -> bool:
    """Tell whether a route that nobody knew when the request began has a level of its own."""
    override = override_of(scope.get("endpoint"), scope.get("route"))
    return override is not None and override.level not in (None, "none")
