"""The known facts of an exchange, and its record."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from operator import is_
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from otel_audit._util.ids import public_id
from otel_audit.action.arguments import parse_action, parse_event, target_of
from otel_audit.action.compose import (
    action_record,
    application_metadata,
    as_closed,
    opened_record,
    with_scope_facts,
)
from otel_audit.action.error_info import describe_error
from otel_audit.action.outcome import outcome_of
from otel_audit.action.parts import ACTOR_FAILED, Parts
from otel_audit.http.body_capture import BodyCapture
from otel_audit.http.operation import RequestedOperation
from otel_audit.http.options import CaptureOptions
from otel_audit.http.request_metadata import (
    RequestHead,
    bare_path,
    describe_headers,
    header_of,
    method_of,
    secret_parameters,
)
from otel_audit.http.routes import foresee, route_template
from otel_audit.http.server_span import enrich
from otel_audit.http.span_urls import redact_span_urls
from otel_audit.http.target import changed_id, shown_target, with_new_id
from otel_audit.http.unrecorded import UnrecordedRequest, identities_in
from otel_audit.http.websocket import SocketTally
from otel_audit.identity.account_holder import named_in_answer, named_in_request
from otel_audit.identity.actor import Bearer
from otel_audit.identity.safe_access import identifier, state_of
from otel_audit.policy import UNDECIDED, is_unknown, override_of
from otel_audit.record import (
    ANONYMOUS,
    Actor,
    AuditRecord,
    Body,
    ErrorInfo,
    Outcome,
    Phase,
    Request,
    Response,
    Source,
    Target,
    Tenant,
)
from otel_audit.redaction.budget import Budget
from otel_audit.scope import AuditScope, Origin

if TYPE_CHECKING:
    from otel_audit.http.options import Claims
    from otel_audit.policy import Decision
    from otel_audit.policy.naming import Whom

_METHOD_ON_THE_WIRE = "http.request.method_original"  # OpenTelemetry's name of it

UNREADABLE_BEARER = Bearer(problem="bearer_failed")

_WITH_REQUEST = frozenset({"request", "request_response"})


class ExchangeRecord:
    """The facts known so far about one exchange.

    Its record is made of a bare core, which cannot fail, and of parts that describe it. Each part
    has a guard of its own: one that fails is left out, named in the record, and counted.

    Attributes:
        parts: Those that could not be described.
        audit: The action.
        head: The request's head.
        bodies: What has passed of bodies and response.
        socket: What has passed over a WebSocket; None for a request.
        inner_scope: The ASGI scope as the router has it; None before the request gets there.
        routed: The same; until then the server's, and in the end, where middleware has answered in
            the router's place, as the router would have left it.
        error: What the application raised.
        judgement: What was decided last, also where nothing is to be recorded.
        judged: The facts that this rests on.
        resolved: Whether it is settled who does it, and for whom.
        is_quiet: Whether no answer could lead to a record: only what is written could.
    """

    def __init__(
        self,
        options: CaptureOptions,
        scope: MutableMapping[str, Any],
        begun: UnrecordedRequest | None = None,
    ) -> None:
        """Begin with what the server says.

        Args:
            options: The options of capture.
            scope: The ASGI scope.
            begun: What has seen the request until now, if it is under way.
        """
        self._options = options
        self._scope = scope
        self.socket = SocketTally() if scope["type"] == "websocket" else None
        self.inner_scope: MutableMapping[str, Any] | None = None
        self.routed = scope
        self.bodies = BodyCapture()
        self.error: BaseException | None = None
        self._described: ErrorInfo | None = None
        self.judgement: Decision | None = None
        self.judged: tuple[object, ...] | None = None
        self.resolved = self.is_quiet = False
        self.parts = Parts(options.on_error)
        self._bearer: tuple[object, Bearer] | None = None
        self._secrets: frozenset[str] | None = frozenset()
        self._shown_target: tuple[tuple[Target, int, str | None], Target | None] | None = None
        self._holder: str | None = None
        self._served: tuple[tuple[object, ...], str | None] | None = None
        self._asking: tuple[object, object, bool] | None = None
        self._asked: RequestedOperation | None = None
        self._has_read = self._is_renamed = False
        span = trace.get_current_span() if begun is None else begun.span
        self.audit = AuditScope(
            occurred_at=0 if begun is None else begun.occurred_at,
            started=0 if begun is None else begun.started,
            server_span=span if span.get_span_context().is_valid else None,
            budget=Budget(options.body_limit),
            of_request=True,
        )
        self.audit.identities = self._identities
        self.audit.origin = self.origin
        request_id = None if begun is None else begun.id
        try:
            request_id = request_id or options.request_id(scope)
        except Exception as error:  # noqa: BLE001 - it costs the client's own id
            self.parts.fail("request_id", error)
        self.head = RequestHead(
            scope,
            method="WEBSOCKET" if self.socket is not None else method_of(scope),
            # the client reads it before the record is stored: the record's own id stays untold
            request_id=request_id or public_id(),
            redactor=options.redactor,
            keep=options.kept_headers,
            budget=self.audit.budget,
            parts=self.parts,
        )

    def enter_router(self, scope: MutableMapping[str, Any]) -> None:
        """Learn the scope as the router has it: middleware may have passed on a copy."""
        self.inner_scope = self.routed = scope

    @property
    def settled(self) -> tuple[Actor | None, Tenant | None, bool, tuple[object, ...] | None]:
        """Actor, tenant, and the facts they depend on: to undo a decision that came too early."""
        return self.audit.actor, self.audit.tenant, self.resolved, self.judged

    @settled.setter
    def settled(
        self, earlier: tuple[Actor | None, Tenant | None, bool, tuple[object, ...] | None]
    ) -> None:
        self.audit.actor, self.audit.tenant, self.resolved, self.judged = earlier

    def origin(self) -> Origin:
        """Say what an action inside of this one takes over; more may be known later."""
        scope, audit = self.routed, self.audit
        bearer = self.read_bearer(scope)
        return Origin(
            actor=audit.actor if self.resolved else self.actor(scope, bearer),
            tenant=audit.tenant if self.resolved else self._tenant(scope, bearer),
            source=self._source(scope, bearer.claims),
            request_id=self.head.id,
        )

    def decide(self, *, wrote: bool) -> Decision | None:
        """Decide by what is known now; None if the action is not recorded."""
        scope, audit = self.routed, self.audit
        # what was recorded by hand inside of this action must not lead back to nothing
        wrote = wrote or audit.nested > 0
        if self.is_quiet and not wrote and not self._asks_for_more(scope):
            return None
        if not self.resolved:
            self.resolved = True
            if self.inner_scope is None:
                scope = self._foresee()
            self._resolve(scope)
        judged = (self.bodies.status, wrote, audit.actor, audit.tenant, self.head.method)
        if judged != self.judged:
            self.judge(route=self._route(scope), wrote=wrote, scope=scope)
            self.judged = judged
            self._is_renamed = False
        if self.bodies.ended and not self._is_renamed:
            self._rename()
        decision = self.judgement
        return decision if decision is not None and decision.level != "none" else None

    def _rename(self) -> None:
        """Name the action by the operation in its body, if the path is the same for all."""
        self._is_renamed = True
        try:
            if not self._has_read:
                self._has_read = True
                if self.head.method == "POST":
                    self._asked = RequestedOperation.read(self.bodies, self.head.path)
            if self._asked is not None and self.judgement is not None:
                self.judgement = self._asked.renamed(self.judgement, self._options.redactor)
        except Exception as error:  # noqa: BLE001 - the name from the path remains
            self.parts.fail("name", error)

    def _foresee(self) -> MutableMapping[str, Any]:
        """Find the route of a request that middleware has answered: a denial has a target, too."""
        try:
            if self._scope.get("route") is None:
                self.routed = foresee(self._scope, self.head.app) or self._scope
        except Exception as error:  # noqa: BLE001 - it costs the route alone
            self.parts.fail("route", error)
        return self.routed

    def _resolve(self, scope: Mapping[str, Any]) -> None:
        """Settle who does it, for whom, and which of the path's parameters are secrets."""
        # again: facts that were not known when a long action was recorded may be known now
        bearer = self.read_bearer(scope)
        self._bearer = scope.get("headers"), bearer
        actor = self.actor(scope, bearer)
        self.audit.tenant = self._tenant(scope, bearer)
        self.audit.actor = actor
        self._shown_target = None
        parameters = scope.get("path_params")
        if parameters:
            try:
                self._secrets = secret_parameters(
                    parameters, self._options.redactor, self.head.path
                )
                if self.parts.failed:
                    self.parts.succeed("target")
            except Exception as error:  # noqa: BLE001 - it costs the target's id
                self.parts.fail("target", error)
                self._secrets = None

    def read_bearer(self, scope: Mapping[str, Any]) -> Bearer:
        """Read the bearer token of a request. Never raises."""
        try:
            return self._options.bearer(scope)
        except Exception as error:  # noqa: BLE001 - whose token it is, is not known
            self.parts.fail("actor", error)
            return UNREADABLE_BEARER

    def actor(self, scope: Mapping[str, Any], bearer: Bearer | None = None) -> Actor:
        """Determine the actor; if that fails, it is unknown, not nobody. Never raises."""
        if bearer is None:
            bearer = self.read_bearer(scope)
        try:
            found = self._options.actor(scope, self.audit, bearer)
        except Exception as error:  # noqa: BLE001 - it costs the actor alone
            self.parts.fail("actor", error)
            return ACTOR_FAILED
        if bearer is not UNREADABLE_BEARER and self.parts.failed:
            self.parts.succeed("actor")
        return found

    def _identities(self) -> list[object]:
        return identities_in(self.routed)

    def _tenant(self, scope: Mapping[str, Any], bearer: Bearer) -> Tenant | None:
        try:
            found = self._options.tenant(scope, self.audit, bearer.claims)
        except Exception as error:  # noqa: BLE001 - it costs the tenant alone
            self.parts.fail("tenant", error)
            return None
        if self.parts.failed:
            self.parts.succeed("tenant")
        return found

    def _source(self, scope: Mapping[str, Any], claims: Claims) -> Source | None:
        try:
            found = self._options.source(scope, claims, self._known_source(scope))
        except Exception as error:  # noqa: BLE001 - it costs the source alone
            self.parts.fail("source", error)
            return None
        if self.parts.failed:
            self.parts.succeed("source")
        return found

    def _route(self, scope: Mapping[str, Any]) -> str | None:
        served = scope, scope.get("route"), scope.get("endpoint")
        if self._served is not None and all(map(is_, served, self._served[0])):
            return self._served[1]
        try:
            found = route_template(scope, self.head.app)
        except Exception as error:  # noqa: BLE001 - it costs the route alone
            self.parts.fail("route", error)
            return None
        if self.parts.failed:
            self.parts.succeed("route")
        self._served = served, found
        return found

    def see_source(self) -> None:
        """Determine the source, as far as the connection shows. Never raises."""
        self.audit.source = self._source(self._scope, None)

    def _asks_for_more(self, scope: Mapping[str, Any]) -> bool:
        """Return whether a route that nobody knew when the request began has a level of its own."""
        endpoint, route, known = scope.get("endpoint"), scope.get("route"), self._asking
        if known is None or known[0] is not endpoint or known[1] is not route:
            try:
                override = override_of(endpoint, route)
                asks = override is not None and override.level not in (None, "none")
            except Exception as error:  # noqa: BLE001 - what cannot be decided is recorded
                self.parts.fail("policy", error)
                asks = True
            self._asking = known = endpoint, route, asks
        return known[2]

    def _bearer_of(self, scope: Mapping[str, Any]) -> Bearer:
        """The request's bearer token, read once from the same headers."""
        headers = scope.get("headers")
        if self._bearer is None or self._bearer[0] is not headers:
            self._bearer = headers, self.read_bearer(scope)
        return self._bearer[1]

    def _known_source(self, scope: Mapping[str, Any]) -> Source | None:
        """The known source, unless a middleware knows it better."""
        first = self._scope
        same = scope is first or (
            scope.get("client") == first.get("client")
            and scope.get("headers") is first.get("headers")
        )
        return self.audit.source if same else None

    def judge(self, *, route: str | None, wrote: bool, scope: Mapping[str, Any] | None) -> Decision:
        """Decide by the given facts, and remember what was decided. Never raises."""
        # determined again, whatever the result before
        if self.parts.failed:
            self.parts.succeed("policy")
            self.parts.succeed("name")
            if self._secrets is not None:
                self.parts.succeed("target")
        try:
            decision = self._options.policy.decide(
                method=self.head.method,
                path=self.head.path,
                route=route,
                status=self.bodies.status,
                actor=self.audit.actor or ANONYMOUS,
                tenant=self.audit.tenant,
                wrote=wrote,
                scope=scope,
                key=self.audit.record_id,
                name_all=self._options.log is not None,
                reached=self.inner_scope is not None,
                on_failure=self.parts.fail,
            )
        except Exception as error:  # noqa: BLE001 - what cannot be decided is recorded
            self.parts.fail("policy", error)
            decision = UNDECIDED
        self.judgement = decision
        return decision

    def judge_head(self) -> Decision:
        """Decide by what the request's head says, which is the same for all alike. Never raises."""
        audit = self.audit
        if audit.actor is not None or audit.tenant is not None:
            return self.judge(route=None, wrote=False, scope=None)
        try:
            decision = self._options.policy.at_opening(self.head.method, self.head.path)
        except Exception as error:  # noqa: BLE001 - what cannot be decided is recorded
            self.parts.fail("policy", error)
            decision = UNDECIDED
        self.judgement = decision
        return decision

    def collect(self, decision: Decision) -> None:
        """Describe request and response, once: redacted, with bodies as far as wanted."""
        audit, options = self.audit, self._options
        if audit.response is not None:
            return
        scope = self.routed
        claims = self._bearer_of(scope).claims
        if audit.source is None or claims is not None or "session_id" in state_of(scope):
            audit.source = self._source(scope, claims)
        request_body = response_body = None
        try:
            request_body = self._request_body(decision, scope)
        except Exception as error:  # noqa: BLE001 - it costs the body alone
            self.parts.fail("request.body", error)
        try:
            response_body = self._response_body(decision)
        except Exception as error:  # noqa: BLE001 - it costs the body alone
            self.parts.fail("response.body", error)
        audit.request = self.head.describe(scope, self._route(scope), request_body)
        headers: dict[str, str] = {}
        try:
            headers = describe_headers(
                self.bodies.headers,
                options.kept_headers,
                options.redactor,
                audit.budget,
                "response.headers",
            )
            if self.parts.failed:
                self.parts.succeed("response.headers")
        except Exception as error:  # noqa: BLE001 - it costs the headers alone
            self.parts.fail("response.headers", error)
        audit.response = Response(
            status_code=self.bodies.status, headers=headers, body=response_body
        )
        if decision.whom is not None:
            self._find_holder(request_body)

    def _find_holder(self, request_body: Body | None) -> None:
        """Find whose account an action is about that is done before anybody is known."""
        try:
            bodies = self.bodies
            found = named_in_answer(
                bodies.answer, bodies.headers, self._options.subject_of
            ) or named_in_request(
                request_body, header_of(self._scope.get("headers") or (), b"authorization")
            )
            self._holder = None if found is None else identifier(self._options.redactor.text(found))
        except Exception as error:  # noqa: BLE001 - it costs the target's id
            self.parts.fail("target", error)

    def _body_limit(self, decision: Decision) -> int:
        own = decision.body_limit
        return self._options.body_limit if own is None else own

    def _messages(
        self, socket: SocketTally, decision: Decision, limit: int, *, received: bool
    ) -> Body | None:
        """Turn a WebSocket's messages of one direction into what is stored, where they are kept."""
        own, options = decision.messages, self._options
        if not (options.socket_messages if own is None else own):
            return None
        into, out = socket.bodies(
            options.redactor, limit, self.audit.budget, received=received, sent=not received
        )
        return into if received else out

    def _request_body(self, decision: Decision, scope: Mapping[str, Any]) -> Body | None:
        if decision.level not in _WITH_REQUEST:
            return None
        options, limit = self._options, self._body_limit(decision)
        if self.socket is not None:
            return self._messages(self.socket, decision, limit, received=True)
        if not options.request_bodies:
            return None
        return self.bodies.request_body(
            self._scope.get("headers") or (),
            scope.get("headers") or (),
            options.redactor,
            limit,
            lambda: self.audit.budget.request_body,
        )

    def _response_body(self, decision: Decision) -> Body | None:
        if decision.level != "request_response":
            return None
        options, limit = self._options, self._body_limit(decision)
        if self.socket is not None:
            return self._messages(self.socket, decision, limit, received=False)
        if not options.response_bodies:
            return None
        may_exist = self.head.method != "HEAD" and self.error is None
        return self.bodies.response_body(
            options.redactor,
            limit,
            may_exist=may_exist,
            work=lambda: self.audit.budget.response_body,
        )

    def describe_request(self) -> Request:
        """Say what is known of the request now, without its body."""
        scope = self.routed
        return self.audit.request or self.head.describe(scope, self._route(scope), None)

    def outcome(self) -> Outcome:
        """Judge how it ended."""
        socket = self.socket
        try:
            if socket is not None and socket.ended_badly and self.audit.transaction != "unknown":
                return "failure"
            found = outcome_of(
                status=self.bodies.status,
                error=self.error,
                transaction=self.audit.final_transaction,
                cut_off=socket is None and not self.bodies.ended,
                turned_away=self.judgement is not None and self.judgement.turned_away,
            )
        except Exception as error:  # noqa: BLE001 - that it happened is known all the same
            self.parts.fail("outcome", error)
            return "unknown"
        if self.parts.failed:
            self.parts.succeed("outcome")
        failed = self._asked is not None and self._asked.failure is not None
        return "failure" if failed and found == "success" else found

    def enrich(self, decision: Decision) -> None:
        """Enrich the application's own span, if it is still recording. Never raises."""
        span = self.audit.server_span
        try:
            if span is not None and span.is_recording():
                enrich(
                    span,
                    self.audit,
                    decision,
                    event_name=self._event_name(decision),
                    target=self._target(decision),
                    full=self._options.full_payload,
                )
        except Exception as error:  # noqa: BLE001 - it costs the span's attributes alone
            self.parts.fail("span", error)

    def redact_span(self) -> None:
        """Take out of the URLs on the application's own span what the record would not show.

        Never raises.
        """
        span = self.audit.server_span
        if not self._options.span_urls or span is None:
            return
        try:
            if span.is_recording():
                redact_span_urls(
                    span,
                    lambda path: self.head.spell_path(path, self.routed),
                    self._options.redactor,
                    self.audit.budget,
                )
        except Exception as error:  # noqa: BLE001 - it costs the span's attributes alone
            self.parts.fail("span", error)

    def record(
        self,
        decision: Decision,
        *,
        phase: Phase,
        outcome: Outcome | None = None,
        request: Request | None = None,
    ) -> AuditRecord:
        """Make the record of what is known now. Never raises.

        Args:
            decision: At which level, under which name.
            phase: The part of the action that it describes.
            outcome: How it ended; None: as it is to be judged now.
            request: The request, where it has not been collected yet.
        """
        try:
            ended = self.outcome() if outcome is None else outcome
            return self._described_record(decision, phase, ended, request)
        except Exception as error:  # noqa: BLE001 - the fact is recorded, without its description
            self.parts.fail("record", error)
            return self._bare_record(decision, phase, outcome or "unknown")

    def opened(self, decision: Decision) -> AuditRecord:
        """Make what is written down when the action begins: no more than a crash should leave."""
        head = self.head
        return opened_record(
            self.audit,
            event_name=decision.event_name,
            action=decision.action,
            level=decision.level,
            request=Request(id=head.id, method=head.method, path=head.path_at_start(self.routed)),
        )

    def rests_on(self, decision: Decision) -> tuple[object, ...]:
        """List the parts of the record that could change later."""
        audit = self.audit
        return (
            decision, self.error, self.routed, self._asked, audit.event_name, audit.action,
            audit.actor, audit.tenant, audit.target, audit.aimed_at, audit.source, audit.request,
            audit.response,
        )  # fmt: skip

    def still_rests_on(self, before: tuple[object, ...], decision: Decision) -> bool:
        """Return whether nothing of what `rests_on` lists is another thing now.

        What the application may change in place, and what failed before, is described again.
        """
        audit = self.audit
        return (
            not (audit.metadata or audit.change_records or audit.rolled_back_transactions)
            and not self.parts.failed
            and all(map(is_, before, self.rests_on(decision)))
        )

    def closed(self, answered: AuditRecord, decision: Decision) -> AuditRecord:
        """Make the record of the end out of what was written down with the answer."""
        return as_closed(
            answered, self.audit, outcome=self.outcome(), target=self._target(decision)
        )

    def _bare_record(self, decision: Decision, phase: Phase, outcome: Outcome) -> AuditRecord:
        """Make a record of nothing but what cannot fail."""
        audit = self.audit
        return action_record(
            audit,
            phase=phase,
            outcome=outcome,
            event_name=decision.event_name,
            action=decision.action,
            level=decision.level,
            actor=(audit.actor if self.resolved else None) or ACTOR_FAILED,
            tenant=audit.tenant if self.resolved else None,
            request=Request(
                id=self.head.id, method=self.head.method, path=bare_path(self.head.path)
            ),
            response=Response(status_code=self.bodies.status),
            transaction=audit.transaction,
            metadata=self.parts.named({}),
        )

    def _described_record(
        self, decision: Decision, phase: Phase, outcome: Outcome, request: Request | None
    ) -> AuditRecord:
        audit = self.audit
        return action_record(
            audit,
            phase=phase,
            outcome=outcome,
            event_name=self._event_name(decision),
            action=parse_action(audit.action) or decision.action,
            level=decision.level,
            actor=audit.actor or ANONYMOUS,
            tenant=audit.tenant,
            target=self._target(decision),
            source=audit.source,
            request=audit.request or request,
            response=audit.response,
            transaction=audit.transaction,
            error=self._error_info(),
            metadata=self._metadata(decision),
        )

    def _event_name(self, decision: Decision) -> str:
        name = self.audit.event_name
        if not name:
            return decision.event_name
        try:
            return parse_event(name, self._options.redactor)
        except Exception as error:  # noqa: BLE001 - the name from the route remains
            self.parts.fail("name", error)
            return decision.event_name

    def _target(self, decision: Decision) -> Target | None:
        audit = self.audit
        aimed = audit.target is not None or audit.aimed_at is not None
        named = (self._aimed() if aimed else None) or decision.target
        if named is None:
            return None
        seen = named, len(audit.changes), self._holder
        known = self._shown_target
        if known is None or known[0] != seen:
            try:
                shown = self._shown(named, decision.whom)
            except Exception as error:  # noqa: BLE001 - it costs the target alone
                self.parts.fail("target", error)
                return None
            self._shown_target = known = seen, shown
        return known[1]

    def _aimed(self) -> Target | None:
        try:
            return target_of(self.audit, self._options.redactor)
        except Exception as error:  # noqa: BLE001 - the target from the route remains
            self.parts.fail("target", error)
            return None

    def _shown(self, named: Target, whom: Whom | None) -> Target | None:
        found = with_new_id(named, self.audit)
        if whom is not None and found is not None and found.id is None:
            found = Target(type=found.type, id=self._whom(whom, found.type))
        if found is not None and self._secrets is None:
            # which parameters are secrets is not known, so no id is shown
            found = Target(type=found.type)
        routed = self.routed.get("route") is not None
        secrets = self._secrets or frozenset()
        return shown_target(found, secrets, self._options.redactor, routed=routed)

    def _whom(self, whom: Whom, kind: str) -> str | None:
        """The owner of the account: the actor, or the person named in the request or its answer."""
        actor = self.audit.actor
        acting = None if actor is None or is_unknown(actor) else actor.id
        if whom == "actor":
            return acting or self._holder
        named = self._holder or changed_id(kind, self.audit)
        return named or (acting if whom == "either" else None)

    def _error_info(self) -> ErrorInfo | None:
        if self.error is not None and self._described is None:
            try:
                self._described = describe_error(
                    self.error, self._options.redactor, self.audit.budget
                )
            except Exception as error:  # noqa: BLE001 - its type is known all the same
                self.parts.fail("error", error)
                self._described = ErrorInfo(type=type(self.error).__name__)
        if self._described is None and self._asked is not None:
            return self._asked.error()
        return self._described

    def _metadata(self, decision: Decision) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            found = application_metadata(self.audit, self._options.redactor)
            if self.parts.failed:
                self.parts.succeed("metadata")
        except Exception as error:  # noqa: BLE001 - it costs the application's own facts alone
            self.parts.fail("metadata", error)
        if self._asked is not None:
            try:
                found |= self._asked.facts(self._options.redactor)
            except Exception as error:  # noqa: BLE001 - it costs the operation's name alone
                self.parts.fail("operation", error)
        if decision.sample is not None:
            found["audit.sample.one_of"] = decision.sample
        if self.head.method != self.head.wire_method:
            found[_METHOD_ON_THE_WIRE] = self.head.wire_method
        if self.socket is not None:
            try:
                found["websocket"] = self.socket.facts()
                if self.parts.failed:
                    self.parts.succeed("websocket")
            except Exception as error:  # noqa: BLE001 - it costs the counts alone
                self.parts.fail("websocket", error)
        return self.parts.named(with_scope_facts(found, self.audit))
