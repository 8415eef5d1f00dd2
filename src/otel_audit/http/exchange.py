"""One HTTP exchange under observation: from the first look at the request to the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from otel_audit.action.compose import as_intent, as_started, ended
from otel_audit.action.lifecycle import Lifecycle, WatchedAction
from otel_audit.errors import StoreUnavailableError
from otel_audit.http.exchange_record import ExchangeRecordBuilder
from otel_audit.http.options import CaptureOptions
from otel_audit.http.request_metadata import with_request_id
from otel_audit.policy import UNDECIDED
from otel_audit.record import ANONYMOUS
from otel_audit.scope import enter as enter_scope

if TYPE_CHECKING:
    from otel_audit._util.spill import SpilledChanges
    from otel_audit.action.ports import Close
    from otel_audit.http.exchange_capture import BodyCopy
    from otel_audit.http.exchange_facts import RequestUnderWay
    from otel_audit.policy import HeadAssessment, PolicyDecision
    from otel_audit.record import AuditRecord
    from otel_audit.scope import AuditScope

_NOT_STORED = "its intent could not be stored in time"
_FAILED_SOCKET = 1011  # RFC 6455, section 7.4.1
_WITH_HEADERS = frozenset({
    "http.response.start", "websocket.accept", "websocket.http.response.start",
})  # fmt: skip


class Exchange(Lifecycle):
    """One HTTP request and its response, or one WebSocket, as far as they have come.

    None of the public methods raises anything of ours: that is counted and logged, and the
    application continues.

    Attributes:
        refused: Whether the action must not run.
        intent: What must be stored before the action runs; None: nothing.
        may_wait: Whether a client may have to wait for the disk at all.
        is_moved: Whether middleware has put another method or path in.
    """

    def __init__(
        self,
        options: CaptureOptions,
        scope: MutableMapping[str, Any],
        begun: RequestUnderWay | None = None,
        path: str | None = None,
    ) -> None:
        """Start to observe a request.

        Args:
            options: How.
            scope: The ASGI scope; gets the request id under ``state``.
            begun: What has seen the request until now, if it is under way.
            path: Its path, as the application's own router reads it; None: to be read.
        """
        self._options = options
        self._builder = builder = ExchangeRecordBuilder(options, scope, begun, path)
        super().__init__(options, builder.audit, builder.parts)
        self.bodies = builder.bodies
        self.socket = builder.socket
        self._scope = scope
        self._watched: WatchedAction | None = None
        self._decided_at_start: PolicyDecision | None = None
        self._answer: tuple[AuditRecord, tuple[object, ...]] | None = None
        self._close_answered: Close | None = None
        self._spooled = False
        self.intent: AuditRecord | None = None
        self.may_wait = options.durable is not None
        self._has_intent = self.is_moved = self._has_raised = False
        try:
            scope.setdefault("state", {})["request_id"] = builder.head.id
        except Exception as error:  # noqa: BLE001 - a server may use the name for what it likes
            self._parts.fail("state", error)
        self.refused = not self._open()
        if begun is not None:
            self._take_over(begun)

    @property
    def audit(self) -> AuditScope:
        """The known facts of the action."""
        return self._audit

    def _take_over(self, begun: RequestUnderWay) -> None:
        """Continue a request that was deferred: it may be routed or answered already."""
        builder = self._builder
        if begun.inner_scope is not None:
            builder.inner_scope = builder.routed = begun.inner_scope
        if begun.start is not None:
            self.bodies.sent_inside(begun.start)
            self.bodies.started(begun.start)
        self.bodies.ended = begun.ended
        watch = self._options.watch
        if watch is not None:
            # a handler without `async` runs, and writes, on a thread that has no loop
            begun.loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        watch = self._options.watch
        if watch is not None and not self._is_released and not self._audit.closed:
            self._watched = watch.begin(self._takes_long)

    def _open(self) -> bool:
        """Write down that the action has begun, if it is one that is recorded when it succeeds.

        Returns:
            Whether it may go on; False where it could not be written down and so must not be.
        """
        builder, options = self._builder, self._options
        try:
            may_be_recorded = self._observe_bodies().level != "none"
        except Exception as error:  # noqa: BLE001 - what cannot be decided is recorded
            self._parts.fail("bodies", error)
            may_be_recorded = True
        if not may_be_recorded:
            builder.is_quiet = options.log is None
            return True
        builder.is_quiet = False
        decision = builder.judge_head()
        if decision.level == "none":
            return True
        builder.see_source()
        if options.intended is not None and self.intent is None:
            strict = options.strict if decision.strict is None else decision.strict
            if decision is UNDECIDED:
                strict = strict or options.policy.may_be_strict
            if strict:
                self.intent = builder.record(
                    decision,
                    phase="started",
                    outcome="unknown",
                    request=builder.describe_request(),
                )
        if self._spooled:
            return True
        self._spooled = True
        return self._write_opened(self._begin, decision, refuse=options.refuses_unrecorded)

    def _begin(self, decision: PolicyDecision) -> bool:
        audit, options = self._audit, self._options
        if options.provenance is not None:
            audit.provenance = options.provenance(audit.server_span)
        return options.recorder.opened(self._builder.opened(decision), audit.server_span)

    def _observe_bodies(self) -> HeadAssessment:
        """Decide by the head which bodies any answer could need, and begin to copy them."""
        options = self._options
        start = options.policy.assess_head(self._builder.head.method, self._builder.head.path)
        if not (start.request or start.operations) or self.bodies.copies:
            return start
        limit = max(options.body_limit, start.body_limit or 0)
        if start.operations:
            # the bodies say which operation it is and whether it succeeded, recorded or not
            self.bodies.copy(limit, request=True, response=True)
            return start
        response = start.response and options.response_bodies
        if self.socket is None:
            self.bodies.copy(limit, request=options.request_bodies, response=response)
        elif start.messages or options.socket_messages:
            self.socket.copy(limit, received=options.request_bodies, sent=response)
        return start

    async def admitted(self) -> bool:
        """Wait until the intent is stored, if one is required; False: the action must not run.

        The refusal is then recorded, and this exchange is over.
        """
        if self.intent is None:
            return True
        stored = False
        try:
            stored = await self._admit(self.intent)
        finally:
            if not stored:
                self.bodies.status = 503
                self.failed(StoreUnavailableError(_NOT_STORED))
                self.close()
        return stored

    async def admitted_inside(self) -> bool:
        """As `admitted`, if only the router's method or path require an intent.

        The refusal then passes through the application's middleware like any answer.
        """
        if self.refused:
            return False
        if self.intent is None or self._has_intent:
            return True
        stored = await self._admit(self.intent)
        if not stored:
            self.failed(StoreUnavailableError(_NOT_STORED))
        return stored

    async def _admit(self, started: AuditRecord) -> bool:
        self._has_intent = True
        builder = self._builder
        bearer = builder.read_bearer(self._scope)
        # before the application runs, a verified token is all that may say who it is
        known = bearer.claims is not None
        actor = builder.actor(self._scope, bearer) if known else ANONYMOUS
        return await self._store_intent(as_intent(started, actor))

    @property
    def waits_for_disk(self) -> bool:
        """Whether the client must not see the answer's end before the disk has the record."""
        return self.may_wait and (self.bodies.ended or self._has_raised)

    async def durable(self) -> None:
        """Wait until what was recorded is on disk."""
        try:
            if self._options.durable is not None:
                await self._options.durable()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    def enter(self) -> None:
        """Make the action the current one, and set the clock for a long one."""
        self._token = enter_scope(self._audit)
        watch = self._options.watch
        if watch is not None:
            self._watched = watch.begin(self._takes_long)

    def routed(self, scope: MutableMapping[str, Any]) -> bool:
        """Note which scope the router works on; return whether it is the first one."""
        builder = self._builder
        first = builder.inner_scope is None
        if first and self._options.entered is not None:
            self._options.entered(scope)
        # a mounted application's own middleware may have passed on a copy
        builder.inner_scope = builder.routed = scope
        if first and builder.head.moved(scope):
            # middleware has put another method or path in: what the router sees is what is done
            self.is_moved = True
            self.refused = not self._open()
        return first

    def sent_inside(self, message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """See a message before the application's middleware sees it; return what it sees."""
        if message.get("type") == "http.response.start":
            message = _readable_twice(message)
        try:
            self.bodies.sent_inside(message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)
        return message

    def received(self, copy: BodyCopy, message: Mapping[str, Any]) -> None:
        """See a message of the request that someone receives."""
        try:
            if message["type"] == "http.request":
                copy.add(message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    def received_by_socket(self, message: Mapping[str, Any]) -> None:
        """See a message that a WebSocket receives."""
        try:
            if self.socket is not None:
                self.socket.received(message)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    def sent(self, message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """See a message that goes to the server; return what is sent in its place."""
        kind = message.get("type")
        has_headers = kind in _WITH_HEADERS
        if has_headers:
            message = _readable_twice(message)
        try:
            if self.socket is not None:
                self.socket.sent(message)
                self.bodies.status = self.socket.status
            elif kind == "http.response.start":
                self.bodies.started(message)
            elif self.bodies.sent(message):
                self._answered()
            if has_headers:
                return with_request_id(
                    message, self._options.request_id_header, self._builder.head.id
                )
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)
        return message

    def _answered(self) -> None:
        """The last chunk is about to be sent: enrich the server span, which ends with it."""
        if self._is_released:
            return  # sent after the application has returned: no server takes that
        builder, options, audit = self._builder, self._options, self._audit
        if options.span_urls:
            builder.redact_span()
        wrote = bool(audit.changes_pending or audit.transactions)
        decision = self._decided(wrote=wrote)
        if decision is None:
            return
        self._collect(decision)
        self._spooled = True
        known = builder.record(decision, phase="completed", outcome="unknown")
        if not builder.enrich(known):
            known = builder.record(decision, phase="completed", outcome="unknown")
        self._answer = known, builder.rests_on(decision, wrote=wrote)
        # the way to close what was written down before holds for that alone
        self._close_answered = None
        self._close_answered = options.recorder.answered(known, audit.server_span)

    def failed(self, error: BaseException) -> None:
        """The application raised; an outer middleware makes the answer."""
        self._builder.error = error
        self._has_raised = True
        if not isinstance(error, Exception):
            return
        if self.bodies.status is None:
            self.bodies.status = 500
        if self.socket is not None and self.socket.code is None:
            self.socket.code = _FAILED_SOCKET

    def finish(self) -> Exchange:
        """The application has returned; give what has observed the request, to be closed."""
        return self

    def close(self) -> None:
        """Hand over the record: the application has returned, and its transactions are known."""
        try:
            self._close()
            self._hand_over_rest()
        finally:
            self._release()

    async def close_async(self) -> None:
        """As `close`, but yields to the event loop between two records."""
        try:
            self._close()
            if self._further is not None:
                await self._hand_over_rest_async()
        finally:
            self._release()

    def _release(self) -> None:
        if not self._is_released:
            super()._release()
            self._answer = self._close_answered = None
            self._builder.release(self._audit)

    def _close(self) -> None:
        audit, builder = self._audit, self._builder
        if self._is_released or audit.closed:
            return
        try:
            if self._watched is not None:
                self._watched.end(self._takes_long)
            self._leave()
            if self.socket is not None:
                self.socket.returned()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)
        self._end_scope()
        if self._options.span_urls:
            builder.redact_span()
        if self._answer is not None and self._ended_as_answered(*self._answer):
            return
        if self._parts.failed:
            builder.judged = None  # what failed once may be found now
        decision = self._decided(wrote=bool(audit.transactions)) or self._decided_at_start
        if decision is not None:
            self._finish(decision)
        else:
            self._discard()

    def _discard(self) -> None:
        """Discard what was written down of an action that is not recorded after all."""
        try:
            if self._spooled:
                self._options.recorder.discarded(self._audit.record_id)
            self._log_unrecorded()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    def _decided(self, *, wrote: bool) -> PolicyDecision | None:
        """Decide; what cannot be decided is recorded."""
        try:
            return self._builder.decide(wrote=wrote)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._parts.fail("policy", error)
            return UNDECIDED

    def _collect(self, decision: PolicyDecision) -> None:
        try:
            self._builder.collect(decision)
            if self._parts.failed:
                self._parts.succeed("record")
        except Exception as error:  # noqa: BLE001 - the fact is recorded, without its description
            self._parts.fail("record", error)

    def _finish(self, decision: PolicyDecision) -> None:
        self._collect(decision)
        self._log(self._hand_over(lambda: self._final_record(decision)))

    def _final_record(self, decision: PolicyDecision) -> AuditRecord:
        builder = self._builder
        record = builder.record(decision, phase="completed")
        # where no last chunk has passed here, the handler raised, and who stands outside answers
        is_shown = self.socket is None and self.bodies.ended
        if is_shown or builder.enrich(record):
            return record
        return builder.record(decision, phase="completed")

    def _ended_as_answered(self, known: AuditRecord, rested_on: tuple[object, ...]) -> bool:
        """Hand over the record of the end, if what was written down with the answer still holds.

        Then nothing is decided or described again.

        Args:
            known: The record of that moment.
            rested_on: What it rested on.
        """
        builder = self._builder
        try:
            decision = builder.judgement
            if decision is None or not builder.still_rests_on(rested_on):
                return False
            ending = builder.ending(known, decision)
        except Exception as error:  # noqa: BLE001 - it is described again, which cannot fail
            self._count_failure(error)
            return False
        close = self._close_answered
        if close is None:
            handed_over = self._hand_over(lambda: ended(known, ending))
        else:
            handed_over = self._hand_over_ending(close, ending)
        if self._options.log is not None:
            self._log(handed_over)
        return True

    def _log(self, record: AuditRecord | None) -> None:
        log = self._options.log
        if record is None or log is None:
            return
        try:
            log(record, self._audit.server_span)
        except Exception as error:  # noqa: BLE001 - the record is made all the same
            self._count_failure(error)

    def _log_unrecorded(self) -> None:
        log, decision = self._options.log, self._builder.judgement
        if log is not None and decision is not None:
            self._builder.collect(decision)
            log(
                self._builder.record(decision, phase="completed"),
                self._audit.server_span,
            )

    def _takes_long(self) -> None:
        """Record that the action still runs; the actor may not be final yet."""
        audit, builder = self._audit, self._builder
        resolution = builder.resolution
        try:
            decision = builder.decide(wrote=bool(audit.changes_pending or audit.transactions))
            found = audit.actor, audit.tenant
            if decision is not None:
                known = builder.record(
                    decision,
                    phase="started",
                    outcome="unknown",
                    request=builder.describe_request(),
                )
                self._decided_at_start = decision
                self._options.recorder.closed(as_started(known), audit.server_span)
            if (audit.actor, audit.tenant) == found and not self.bodies.ended:
                builder.resolution = resolution
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    def _records_at_commit(self, changes: SpilledChanges) -> Iterator[AuditRecord]:
        """As for any action; an actor that is not final yet is determined again later."""
        audit, builder = self._audit, self._builder
        resolution = builder.resolution
        if builder.decide(wrote=True) is not None:
            yield from super()._records_at_commit(changes)
        if not self.bodies.ended and not audit.closed:
            builder.resolution = resolution

    def _known(self, *, at_commit: bool) -> AuditRecord:
        """Make the record of what is known now."""
        # what wrote is recorded, whatever was decided before
        decision = self._builder.decide(wrote=True) or self._builder.judgement
        assert decision is not None  # noqa: S101 - made when the exchange began
        request = self._builder.describe_request() if at_commit else None
        return self._builder.record(decision, phase="changes", outcome="unknown", request=request)


def _readable_twice(message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Give headers that can be read once only, which ASGI allows, as a list.

    Raises:
        Exception: What the application's own iterator raises, as it would to the server.
    """
    headers = message.get("headers")
    if headers is None or isinstance(headers, list | tuple):
        return message
    return {**message, "headers": list(headers)}
