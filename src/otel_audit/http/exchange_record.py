"""The record of an exchange: what is described of it, once its facts are known."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from operator import is_
from typing import TYPE_CHECKING, Any

import msgspec

from otel_audit._util.aio import is_cancellation
from otel_audit.action.arguments import parse_action, parse_event, parse_name, target_of
from otel_audit.action.compose import (
    Ending,
    Opening,
    action_record,
    application_metadata,
    ending_of,
    with_scope_facts,
)
from otel_audit.action.error_info import describe_error
from otel_audit.http.exchange_facts import ExchangeFacts, RequestUnderWay
from otel_audit.http.options import CaptureOptions
from otel_audit.http.request_metadata import (
    bare_path,
    describe_headers,
    header_of,
    unless_token,
)
from otel_audit.http.server_span import enrich, redact_span_urls
from otel_audit.http.websocket import SocketTally
from otel_audit.identity.account_holder import (
    named_in_answer,
    named_in_request,
    names_a_client,
)
from otel_audit.identity.safe_access import identifier, state_of
from otel_audit.policy import is_unidentified
from otel_audit.record import (
    ACTOR_FAILED,
    ANONYMOUS,
    AuditRecord,
    Body,
    ErrorInfo,
    Operation,
    Outcome,
    Phase,
    Request,
    Response,
    Target,
    TransactionOutcome,
)
from otel_audit.scope import AuditScope, outcome_of_transactions

if TYPE_CHECKING:
    from otel_audit.policy import PolicyDecision
    from otel_audit.policy.naming import Whom
    from otel_audit.redaction import Redactor


_METHOD_ON_THE_WIRE = "http.request.method_original"  # OpenTelemetry's name of it


_WITH_REQUEST = frozenset({"request", "request_response"})

# nobody is known before a login; the target says whom it is about
_LOGS_IN = msgspec.structs.replace(ANONYMOUS, reason="login")


class ExchangeRecordBuilder(ExchangeFacts):
    """The record of an exchange.

    It is made of a bare core, which cannot fail, and of parts that describe it. Each part has a
    guard of its own: one that fails is left out, named in the record, and counted.
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
        super().__init__(options, scope, begun, path)
        self._described: ErrorInfo | None = None
        self._shown_target: tuple[tuple[object, ...], Target | None] | None = None
        self._holder: str | None = None
        self._login_name: str | None = None

    def collect(self, decision: PolicyDecision) -> None:
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
            if decision.level in _WITH_REQUEST:
                request_body = self._request_body(decision, scope)
        except Exception as error:  # noqa: BLE001 - it costs the body alone
            self.parts.fail("request.body", error)
        try:
            if decision.level == "request_response":
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
        """Find the account that an action is about while nobody is authenticated."""
        try:
            bodies = self.bodies
            account = self._redacted_name(
                named_in_answer(bodies.response_bytes, bodies.headers, self._options.subject_of)
            )
            named = self._redacted_name(
                named_in_request(
                    request_body, header_of(self._scope.get("headers") or (), b"authorization")
                )
            )
            # what a verified token says, before what a client has typed
            self._holder = account or named
            if account is not None and not names_a_client(request_body):
                self._login_name = named
        except Exception as error:  # noqa: BLE001 - it costs the target's id
            self.parts.fail("target", error)

    def _redacted_name(self, found: str | None) -> str | None:
        return None if found is None else identifier(self._options.redactor.text(found))

    def _body_limit(self, decision: PolicyDecision) -> int:
        own = decision.body_limit
        return self._options.body_limit if own is None else own

    def _messages(
        self, socket: SocketTally, decision: PolicyDecision, limit: int, *, received: bool
    ) -> Body | None:
        """Turn a WebSocket's messages of one direction into what is stored, where they are kept."""
        own, options = decision.messages, self._options
        if not (options.socket_messages if own is None else own):
            return None
        into, out = socket.bodies(
            options.redactor, limit, self.audit.budget, received=received, sent=not received
        )
        return into if received else out

    def _request_body(self, decision: PolicyDecision, scope: Mapping[str, Any]) -> Body | None:
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

    def _response_body(self, decision: PolicyDecision) -> Body | None:
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

    def enrich(self, record: AuditRecord) -> bool:
        """Enrich the application's own span, if it is still recording. Never raises.

        Args:
            record: What is known of the action.

        Returns:
            Whether that has not failed.
        """
        span = self.audit.server_span
        try:
            if span is not None and span.is_recording():
                enrich(span, self.audit, record, full=self._options.full_payload)
        except Exception as error:  # noqa: BLE001 - it costs the span's attributes alone
            self.parts.fail("span", error)
            return False
        return True

    def redact_span(self) -> None:
        """Take out of the URLs on the application's own span what the record would not show.

        For where `CaptureOptions.span_urls` asks for it. Never raises.
        """
        span = self.audit.server_span
        if span is None:
            return
        try:
            if span.is_recording():
                redact_span_urls(
                    span,
                    lambda path: self.head.spell_path(path, self.routed, self._route(self.routed)),
                    self._options.redactor,
                    self.audit.budget,
                )
        except Exception as error:  # noqa: BLE001 - it costs the span's attributes alone
            self.parts.fail("span", error)

    def record(
        self,
        decision: PolicyDecision,
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

    def opened(self, decision: PolicyDecision) -> Opening:
        """Say what is written down when the action begins: no more than a crash should leave."""
        audit, head = self.audit, self.head
        return Opening(
            audit.record_id, audit.action_id, audit.occurred_at,
            decision.event_name, decision.action, decision.level,
            head.id, head.method, head.path_at_start(self.routed),
            audit.provenance, audit.source, audit.actor,
        )  # fmt: skip

    def rests_on(self, decision: PolicyDecision | None, *, wrote: bool) -> tuple[object, ...]:
        """List the parts of the record that could change later.

        Args:
            decision: What was decided last.
            wrote: As for `decide`.
        """
        audit = self.audit
        return (
            decision, wrote or audit.nested > 0, self.error, self.routed, self._asked,
            audit.event_name, audit.action, audit.actor, audit.tenant, audit.target,
            audit.aimed_at, audit.source, audit.request, audit.response,
        )  # fmt: skip

    def still_rests_on(self, before: tuple[object, ...]) -> bool:
        """Return whether what was written down with the answer still holds at the end.

        It does not hold if anything that `rests_on` lists has been replaced. Nor does it in these
        cases, whatever that lists: the application gave metadata, which it may change in place; a
        transaction that wrote was rolled back; changes have records of their own; changes were cut;
        a part could not be described. Then the record is described again, in a whole last frame.

        Args:
            before: What `rests_on` listed at the answer.
        """
        audit = self.audit
        return (
            not (audit.metadata or audit.change_records or audit.rolled_back_transactions)
            and not audit.budget.has_cut_changes
            and not self.parts.failed
            and all(map(is_, before, self.rests_on(self.judgement, wrote=bool(audit.transactions))))
        )

    def ending(self, answered: AuditRecord, decision: PolicyDecision) -> Ending:
        """Say what has changed since the answer was written down."""
        audit, known = self.audit, self._shown_target
        if known is not None and known[0][1] == len(audit.changes):
            target = known[1]
        else:
            target = self._target(decision)
        return ending_of(answered, audit, outcome=self.outcome(), target=target)

    def _bare_record(self, decision: PolicyDecision, phase: Phase, outcome: Outcome) -> AuditRecord:
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
        self, decision: PolicyDecision, phase: Phase, outcome: Outcome, request: Request | None
    ) -> AuditRecord:
        audit = self.audit
        action = parse_action(audit.action) or decision.action
        actor = audit.actor or ANONYMOUS
        if action == "LOGIN" and actor.reason is None and actor.id == ANONYMOUS.id:
            actor = _LOGS_IN
        return action_record(
            audit,
            phase=phase,
            outcome=outcome,
            event_name=self._event_name(decision),
            action=action,
            level=decision.level,
            actor=actor,
            tenant=audit.tenant,
            target=self._target(decision),
            source=audit.source,
            request=audit.request or request,
            response=audit.response,
            transaction=audit.transaction,
            error=self._error_info(),
            metadata=self._metadata(decision),
        )

    def _event_name(self, decision: PolicyDecision) -> str:
        name = self.audit.event_name
        if not name:
            return decision.event_name
        try:
            return parse_event(name, self._options.redactor)
        except Exception as error:  # noqa: BLE001 - the name from the route remains
            self.parts.fail("name", error)
            return decision.event_name

    def _target(self, decision: PolicyDecision) -> Target | None:
        audit = self.audit
        aimed = audit.target is not None or audit.aimed_at is not None
        named = (self._aimed() if aimed else None) or decision.target
        if named is None:
            return None
        routed = self.routed.get("route") is not None
        seen = named, len(audit.changes), self._holder, self._secrets, audit.actor, routed
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
        acting = None if actor is None or is_unidentified(actor) else actor.id
        if whom == "actor":
            return acting or self._holder
        named = self._holder or changed_id(kind, self.audit)
        return named or (acting if whom == "either" else None)

    def release(self, audit: AuditScope) -> None:
        """Drop the scope, which refers to this, and the error's frames, once the action is over.

        Args:
            audit: A weak proxy of the scope.
        """
        if self.error is not None:
            self._error_info()
            self.error = None
        self.audit = audit

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

    def _metadata(self, decision: PolicyDecision) -> dict[str, Any]:
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
        self._add_own_facts(found, decision)
        if self.socket is not None:
            try:
                found["websocket"] = self.socket.facts()
                if self.parts.failed:
                    self.parts.succeed("websocket")
            except Exception as error:  # noqa: BLE001 - it costs the counts alone
                self.parts.fail("websocket", error)
        return self.parts.named(with_scope_facts(found, self.audit))

    def _add_own_facts(self, found: dict[str, Any], decision: PolicyDecision) -> None:
        if decision.sample is not None:
            found["audit.sample.one_of"] = decision.sample
        if self._login_name is not None and self._login_name != self._holder:
            found["audit.login_name"] = self._login_name
        if self.head.method != self.head.wire_method:
            found[_METHOD_ON_THE_WIRE] = self.head.wire_method


def outcome_of(
    *,
    status: int | None,
    error: BaseException | None,
    transaction: TransactionOutcome,
    cut_off: bool = False,
    turned_away: bool = False,
) -> Outcome:
    """Judge an HTTP action.

    Args:
        status: The status the client was sent; None if none was.
        error: The exception that left the application, if any.
        transaction: How the last transaction that wrote ended; unknown if any is.
        cut_off: Whether the answer ended before its last chunk. So it does if the client
            disconnects in the middle of a stream and the framework then returns. If it raises
            instead (Starlette's ``ClientDisconnect``), that is the ``error``.
        turned_away: Whether the answer only redirects the request elsewhere.

    Returns:
        ``success`` only if the answer says so, nothing was raised, and what was written last is
        committed: a retry makes up for what was rolled back before. ``unknown`` where a commit's
        fate is unknown, the action was cut off, or the client was sent elsewhere with it and
        nothing was committed.
    """
    written = outcome_of_transactions(transaction)
    if written == "unknown" or (error is not None and is_cancellation(error)):
        return "unknown"
    if error is not None or written == "failure":
        return "failure"
    if status is not None and status >= 400:  # noqa: PLR2004 - RFC 9110, section 15
        return "failure"
    if status is None or cut_off or (turned_away and transaction != "committed"):
        return "unknown"
    return "success"


def shown_target(
    target: Target | None, secrets: frozenset[str], redactor: Redactor, *, routed: bool
) -> Target | None:
    """Leave out the id of a target where it is, or holds, a secret.

    Args:
        target: As the application, the route or the path name it.
        secrets: Values of the path parameters whose names say that they are secrets.
        redactor: Knows secrets by their shape.
        routed: Whether a route was found; where none was, an id that looks like a token is none.
    """
    if target is None:
        return None
    kind = parse_name(target.type, redactor)
    if target.id is None:
        return target if kind == target.type else Target(type=kind)
    known = any(map(target.id.__contains__, secrets))
    is_token = not routed and unless_token(target.id) != target.id
    if known or is_token or _shows_secret(target.id, redactor):
        return Target(type=kind)
    return target if kind == target.type else Target(type=kind, id=target.id)


def _shows_secret(found: str, redactor: Redactor) -> bool:
    if redactor.identifier(found) != found:
        return True
    if "@" not in found:
        return False
    # a route may have cut a URL's scheme off, which distinguishes a password from a name
    url = f"https://{found.lstrip('/')}"
    return redactor.identifier(url) != url


def with_new_id(target: Target | None, audit: AuditScope) -> Target | None:
    """Name the one entity that was created, where the path could not name it yet."""
    if target is None or target.id is not None or not audit.changes:
        return target
    found = _one_of(target.type, audit, "insert")
    return target if found is None else Target(type=target.type, id=found)


def changed_id(kind: str, audit: AuditScope) -> str | None:
    """Return the id of the one entity of a kind that was updated; None if there is not one."""
    return _one_of(kind, audit, "update")


def _one_of(kind: str, audit: AuditScope, operation: Operation) -> str | None:
    """Find the one row whose name is most alike to a kind of thing."""
    best, keys = 0, set[str]()
    for change in audit.changes:
        if change.operation != operation or change.kind != "entity" or not change.key:
            continue
        reference = change.reference
        rank = alike(_noun_of(reference), kind)
        if change.related:
            rank = max(rank, *(alike(_noun_of(one), kind) for one in change.related))
        if rank > best:
            best, keys = rank, set()
        if rank and rank == best:
            keys.add(reference.partition(":")[2])
    return keys.pop() if len(keys) == 1 else None


def _noun_of(reference: str) -> str:
    # what stands before the noun is where it is
    return reference.partition(":")[0].rpartition(".")[2]


def alike(one: str, other: str) -> int:
    """Return how alike two nouns are: 2 if equal, 1 if one is the other's last words, else 0.

    Underscores do not count: ``mealplan`` is ``meal_plan``.
    """
    if one == other or one.replace("_", "") == other.replace("_", ""):
        return 2
    return 1 if one.endswith(f"_{other}") or other.endswith(f"_{one}") else 0
