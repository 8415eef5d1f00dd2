"""The facts of an exchange: who does what, from where, for whom; and at which level it is recorded.

The operation in a body may name it, too: GraphQL and JSON-RPC have one path for everything, and
answer errors with status 200.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
from opentelemetry import trace

from otel_audit._util.ids import public_id
from otel_audit.action.arguments import parse_event, parse_name
from otel_audit.action.failed_parts import FailedParts
from otel_audit.http.exchange_capture import HttpExchangeCapture
from otel_audit.http.options import CaptureOptions
from otel_audit.http.request_metadata import (
    RequestHead,
    method_of,
    path_below_root,
    secret_parameters,
)
from otel_audit.http.routes import foresee, route_template
from otel_audit.http.websocket import SocketTally
from otel_audit.identity.actor import Bearer
from otel_audit.identity.safe_access import headers_by_name, identities_in
from otel_audit.policy import UNDECIDED, has_own_level
from otel_audit.policy.body_operations import (
    OPERATION_TAIL,
    Failure,
    Operations,
    carries_operations,
    name_operations,
    read_failure,
    read_operations,
)
from otel_audit.record import (
    ACTOR_FAILED,
    ANONYMOUS,
    Actor,
    ErrorInfo,
    Source,
    Target,
    Tenant,
)
from otel_audit.redaction.budget import Budget
from otel_audit.scope import AuditScope, Origin

if TYPE_CHECKING:
    import asyncio

    from otel_audit.identity.tenant import Claims
    from otel_audit.policy import PolicyDecision
    from otel_audit.redaction import Redactor

_Resolution: TypeAlias = (
    "tuple[Actor | None, Tenant | None, bool, tuple[object, ...] | None, "
    "tuple[Actor | None, Tenant | None]]"
)

_Served: TypeAlias = "tuple[Mapping[str, Any], object, object, str | None] | None"
"""A scope, its route and endpoint, and the template that was found for them."""

UNREADABLE_BEARER = Bearer(problem="bearer_failed")


class RequestUnderWay(Protocol):
    """A request that was seen before it became an exchange: a deferred one.

    Attributes:
        id: The request's public id.
        inner_scope: The ASGI scope as the router has it; None before the request gets there.
        loop: The event loop that serves it.
        occurred_at, started: When it began, as in `AuditScope`.
        start: The response's head as it was sent.
        ended: Whether the response's last chunk was sent.
    """

    id: str
    inner_scope: MutableMapping[str, Any] | None
    loop: asyncio.AbstractEventLoop
    occurred_at: int
    started: int
    start: MutableMapping[str, Any] | None
    ended: bool

    @property
    def span(self) -> trace.Span:
        """The application's span of the request."""


class ExchangeFacts:
    """The facts known so far about one exchange, and what they decide.

    Each has a guard of its own: one that cannot be found is left out, named in the record, and
    counted.

    Attributes:
        parts: Those that could not be described.
        audit: The action.
        head: The request's head.
        bodies: What has passed of bodies and response.
        socket: What has passed over a WebSocket; None for a request.
        inner_scope: The ASGI scope as the router has it; None before the request gets there.
        routed: The scope to read facts from: the server's, then the router's. If middleware has
            answered instead, a copy with the route that the router would have matched.
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
        begun: RequestUnderWay | None = None,
        path: str | None = None,
    ) -> None:
        """Start with what the server says.

        Args:
            options: The options of capture.
            scope: The ASGI scope.
            begun: What has seen the request until now, if it is under way.
            path: Its path, as the application's own router reads it; None: to be read.
        """
        self._options = options
        self._scope = scope
        self.socket = SocketTally() if scope["type"] == "websocket" else None
        self.inner_scope: MutableMapping[str, Any] | None = None
        self.routed = scope
        self.bodies = HttpExchangeCapture()
        self.error: BaseException | None = None
        self.judgement: PolicyDecision | None = None
        self.judged: tuple[object, ...] | None = None
        self.resolved = self.is_quiet = False
        self.parts = FailedParts(options.on_error)
        self._named: tuple[Actor | None, Tenant | None] = (None, None)
        self._bearer: tuple[object, Bearer] | None = None
        self._secrets: frozenset[str] | None = frozenset()
        self._served: _Served = None
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
            name = options.request_id_header
            if request_id is None and name and name in headers_by_name(scope.get("headers") or ()):
                request_id = options.request_id(scope)
        except Exception as error:  # noqa: BLE001 - it costs the client's own id
            self.parts.fail("request_id", error)
        self.head = RequestHead(
            scope,
            method="WEBSOCKET" if self.socket is not None else method_of(scope),
            path=path_below_root(scope) if path is None else path,
            # the client reads it before the record is stored: so it is not the record's own
            id=request_id or public_id(self.audit.occurred_at),
            redactor=options.redactor,
            keep=options.kept_headers,
            budget=self.audit.budget,
            parts=self.parts,
        )

    @property
    def resolution(self) -> _Resolution:
        """Actor, tenant, and the facts they depend on: to undo a decision that came too early."""
        return self.audit.actor, self.audit.tenant, self.resolved, self.judged, self._named

    @resolution.setter
    def resolution(self, earlier: _Resolution) -> None:
        audit = self.audit
        # with what was resolved then: an actor that was named since is not among it, as it must be
        # redacted first
        audit.actor, audit.tenant, self.resolved, self.judged, self._named = earlier

    def origin(self) -> Origin:
        """Return actor, tenant and source for an action inside of this one, as known so far."""
        scope, audit = self.routed, self.audit
        bearer = self.read_bearer(scope)
        if self.resolved:
            self._resolve_late_identity(scope)
        return Origin(
            actor=audit.actor if self.resolved else self.actor(scope, bearer),
            tenant=audit.tenant if self.resolved else self._tenant(scope, bearer),
            source=self._source(scope, bearer.claims),
            request_id=self.head.id,
        )

    def decide(self, *, wrote: bool) -> PolicyDecision | None:
        """Decide by what is known now; None if the action is not recorded."""
        scope, audit = self.routed, self.audit
        # a record of audit() inside this request names it as its parent: so record it, too
        wrote = wrote or audit.nested > 0
        if self.is_quiet and not wrote and not self._asks_for_more(scope):
            return None
        if not self.resolved:
            self.resolved = True
            if self.inner_scope is None:
                scope = self._foresee()
            self._resolve(scope)
        else:
            self._resolve_late_identity(scope)
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
        audit = self.audit
        known = None if self.parts.failed else self._options.token_identity(scope, audit, bearer)
        if known is None:
            actor = self.actor(scope, bearer)
            audit.tenant = self._tenant(scope, bearer)
            audit.actor = actor
            known = actor, audit.tenant
        else:
            audit.actor, audit.tenant = known
        self._named = known
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

    def _resolve_late_identity(self, scope: Mapping[str, Any]) -> None:
        """Resolve the actor or tenant that the application has named after the answer.

        It is the application's own text: what looks like a secret in it is redacted as before.
        """
        audit = self.audit
        actor, tenant = self._named
        if audit.actor is actor and audit.tenant is tenant:
            return
        bearer = self.read_bearer(scope)
        if audit.actor is not actor:
            audit.actor = self.actor(scope, bearer)
        if audit.tenant is not tenant:
            audit.tenant = self._tenant(scope, bearer)
        self._named = audit.actor, audit.tenant

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

    def _source(self, scope: Mapping[str, Any], claims: Claims | None) -> Source | None:
        first = self._scope
        try:
            # known from before, unless a middleware knows it better
            is_same = scope is first or (
                scope.get("client") == first.get("client")
                and scope.get("headers") is first.get("headers")
            )
            known = self.audit.source if is_same else None
            found = self._options.source(scope, claims, known)
        except Exception as error:  # noqa: BLE001 - it costs the source alone
            self.parts.fail("source", error)
            return None
        if self.parts.failed:
            self.parts.succeed("source")
        return found

    def _route(self, scope: Mapping[str, Any]) -> str | None:
        route, endpoint, served = scope.get("route"), scope.get("endpoint"), self._served
        if (
            served is not None
            and served[0] is scope
            and served[1] is route
            and served[2] is endpoint
        ):
            return served[3]
        try:
            found = route_template(scope, self.head.app)
        except Exception as error:  # noqa: BLE001 - it costs the route alone
            self.parts.fail("route", error)
            return None
        if self.parts.failed:
            self.parts.succeed("route")
        self._served = scope, route, endpoint, found
        return found

    def see_source(self) -> None:
        """Determine the source, as far as the connection shows. Never raises."""
        self.audit.source = None
        try:
            self.audit.source = self._options.source(self._scope, None, None)
        except Exception as error:  # noqa: BLE001 - it costs the source alone
            self.parts.fail("source", error)

    def _asks_for_more(self, scope: Mapping[str, Any]) -> bool:
        """Return whether a route that nobody knew when the request began has a level of its own."""
        endpoint, route, known = scope.get("endpoint"), scope.get("route"), self._asking
        if known is None or known[0] is not endpoint or known[1] is not route:
            try:
                asks = has_own_level(endpoint, route)
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

    def judge(
        self, *, route: str | None, wrote: bool, scope: Mapping[str, Any] | None
    ) -> PolicyDecision:
        """Decide by the given facts, and keep the decision. Never raises."""
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

    def judge_head(self) -> PolicyDecision:
        """Decide by what the request's head says, which is the same for all alike. Never raises."""
        audit = self.audit
        if audit.actor is not None or audit.tenant is not None:
            return self.judge(route=None, wrote=False, scope=None)
        try:
            decision = self._options.policy.decide_by_head(self.head.method, self.head.path)
        except Exception as error:  # noqa: BLE001 - what cannot be decided is recorded
            self.parts.fail("policy", error)
            decision = UNDECIDED
        self.judgement = decision
        return decision


_SIGN_OF_RPC = b'"jsonrpc"'


class RequestedOperation(msgspec.Struct, frozen=True):
    """The operation of a request, and the result in its answer.

    Attributes:
        operations: The requested operations.
        failure: What has gone wrong; None if the answer does not say so.
    """

    operations: Operations
    failure: Failure | None = None

    @classmethod
    def read(cls, bodies: HttpExchangeCapture, path: str) -> RequestedOperation | None:
        """Read both bodies, once the answer has passed. Never raises.

        Args:
            bodies: The copies of the bodies.
            path: As requested.

        Returns:
            None if the operation is not known.
        """
        body = bodies.request_bytes
        if body is None or not (_SIGN_OF_RPC in body or carries_operations(path[-OPERATION_TAIL:])):
            return None
        operations = read_operations(body)
        if operations is None:
            return None
        answer, whole = bodies.response_head
        return cls(operations, read_failure(answer, operations.system, whole=whole))

    def renamed(self, decision: PolicyDecision, redactor: Redactor) -> PolicyDecision:
        """Name an action by its operation, unless a rule or the route has named it."""
        if not decision.is_derived:
            return decision
        naming = name_operations(self.operations)
        if naming is None:
            return msgspec.structs.replace(
                decision, event_name=f"{self.operations.system}.executed", action="EXECUTE"
            )
        kind = naming.target_type
        return msgspec.structs.replace(
            decision,
            event_name=parse_event(naming.event_name, redactor),
            action=naming.action,
            target=decision.target if kind is None else Target(type=kind),
            whom=None,
        )

    def error(self) -> ErrorInfo | None:
        """Say what has gone wrong, by its type; the message is in the body, redacted."""
        failure = self.failure
        if failure is None:
            return None
        message = None if failure.code is None else f"code {failure.code}"
        return ErrorInfo(type=failure.error_type, message=message)

    def facts(self, redactor: Redactor) -> dict[str, Any]:
        """Return the operation, under the names of OpenTelemetry's semantic conventions."""
        asked = self.operations
        names = [parse_name(name, redactor) for name in asked.names]
        if asked.system == "jsonrpc":
            found: dict[str, Any] = {"rpc.system": "jsonrpc"}
            found["rpc.method"] = names[0] if len(names) == 1 else names
            if self.failure is not None and self.failure.code is not None:
                found["rpc.jsonrpc.error_code"] = self.failure.code
            return found
        found = {"graphql.operation.type": asked.kind, "graphql.fields": names}
        if asked.label:
            found["graphql.operation.name"] = parse_name(asked.label, redactor)
        return found
