"""One action that is recorded by hand, from its beginning to its record."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextvars import Token
from typing import Any

from opentelemetry import trace

from otel_audit import scope as scopes
from otel_audit._util.aio import in_slices, is_cancellation
from otel_audit._util.entity_reference import ActionReference
from otel_audit._util.ids import uuid7
from otel_audit._util.ratelimited_log import log_limited
from otel_audit._util.spill import SpilledChanges
from otel_audit.action.arguments import (
    RecordArguments,
    parse_action,
    parse_actor,
    parse_event,
    parse_metadata,
    parse_parent,
    parse_target,
    parse_tenant,
    target_of,
    with_canonical_role,
)
from otel_audit.action.blocking_intent import Intended, is_stored, is_stored_blocking
from otel_audit.action.compose import (
    action_record,
    application_metadata,
    as_intent,
    changes_of,
    process_actor,
    with_continuations,
    with_scope_facts,
)
from otel_audit.action.current_runtime import CurrentRuntime, made_last
from otel_audit.action.error_info import describe_error
from otel_audit.action.parts import ACTOR_FAILED, Parts
from otel_audit.errors import ConfigurationError, StoreUnavailableError
from otel_audit.identity.redact_identity import shown_actor, shown_tenant
from otel_audit.policy.events import action_of_event
from otel_audit.record import (
    AuditRecord,
    ErrorInfo,
    Outcome,
    Phase,
    Receipt,
    Request,
    Target,
    TransactionOutcome,
)
from otel_audit.scope import AuditScope, Origin

_logger = logging.getLogger("otel_audit.action")

_REFUSED = "The action cannot be recorded in the audit trail now, so it was not begun"

_CUT_OFF = (GeneratorExit, KeyboardInterrupt)
"""What ends a block from outside: how far it had come nobody knows."""


class Action:
    """An action under way. None of its methods raises for what the application gives."""

    def __init__(self, told: RecordArguments, recording: CurrentRuntime | None) -> None:
        """Take what the caller says; see `audit`.

        Args:
            told: What the caller says.
            recording: Where to; None: nowhere.
        """
        self._told = told
        self._recording = recording
        self._pid = os.getpid()
        self._phase: Phase = "completed"
        self._token: Token[AuditScope | None] | None = None
        self._failure: ErrorInfo | None = None
        self._unnumbered: tuple[Target | None, object] = (None, None)
        around = scopes.current_scope()
        # a task keeps the scope that it was begun in: whose action that was does nothing any more
        outer = scopes.open_scope() if told.parent is None else None
        span = trace.get_current_span()
        self._parent: ActionReference | None = None
        self._scope = AuditScope(
            parent_action_id=None if around is None else around.action_id,
            server_span=span if span.get_span_context().is_valid else None,
            origin=self._origin,
            outer=outer,
            teller=self._tell,
        )
        self._parts = Parts(_nothing if recording is None else recording.on_error)
        if recording is not None:
            self._guarded(lambda: self._read(recording))

    @property
    def action_id(self) -> str:
        """The action's id: what the records of nested actions name as their parent."""
        return self._scope.action_id

    @property
    def record_id(self) -> str:
        """The record's id: the row's primary key in the store."""
        return self._scope.record_id

    async def receipt(self, timeout: float = 10.0) -> Receipt:  # noqa: ASYNC109
        """Wait until the store has the record of this action, and get what it says of it.

        Args:
            timeout: Seconds to wait.

        Raises:
            ConfigurationError: The action is not over, so that its record is not made yet; or
                nothing is audited, or not to a store.
            StoreUnavailableError: The store does not have it in time; it is kept until it has.
        """
        if self._recording is None or self._recording.receipt is None:
            raise ConfigurationError("receipt(): nothing is audited in this process")
        if not self._scope.closed:
            raise ConfigurationError("receipt(): the action is not over; ask after its block")
        return await self._recording.receipt(self.record_id, timeout)

    def is_of(self, scope: AuditScope | None) -> bool:
        """Tell whether this is the action that a scope belongs to."""
        return self._scope is scope

    def add_metadata(self, **values: Any) -> None:
        """Add the application's own facts; they are redacted when recorded."""
        self._scope.metadata.update(values)

    def set_target(self, target: object) -> None:
        """Say what is acted upon; see `audit`."""
        recording = self._recording
        if recording is not None:
            self._guarded(lambda: self._aim(recording, target))

    def fail(self, reason: str) -> None:
        """Make the outcome ``failure``, without an exception.

        Args:
            reason: Recorded as the error's type; a word such as ``quota_exceeded``.
        """
        if self._recording is not None:
            self._failure = ErrorInfo(type=parse_event(reason, self._recording.redactor))

    def begin(self) -> None:
        """Make the action the current one, and write down that it has begun.

        Raises:
            StoreUnavailableError: It could not be recorded, and ``OTEL_AUDIT_REQUIRED`` is set;
                or delivery is strict, and the store does not take its intent.
        """
        if self._recording is None:
            return
        intended, intent = self._open_or_refuse(self._recording)
        if intended is not None and intent is not None:
            self._admit(stored=is_stored_blocking(intended, intent, self._scope.server_span))
        self._token = scopes.enter(self._scope)

    async def begin_async(self) -> None:
        """As `begin`, but it waits for an intent without holding up the event loop."""
        if self._recording is None:
            return
        intended, intent = self._open_or_refuse(self._recording)
        if intended is not None and intent is not None:
            self._admit(stored=await is_stored(intended, intent, self._scope.server_span))
        self._token = scopes.enter(self._scope)

    def end(self, error: BaseException | None) -> None:
        """Hand over the record. Ending twice does nothing.

        Args:
            error: What left the block, if anything.
        """
        outcome = self._over(error)
        if outcome is not None:
            self.tell(outcome)

    async def end_async(self, error: BaseException | None) -> None:
        """As `end`, but the event loop goes on between one record and the next.

        Args:
            error: What left the block, if anything.
        """
        outcome, recording = self._over(error), self._recording
        if outcome is None or recording is None:
            return
        if not self._scope.further:
            self.tell(outcome)
            return
        made_last.set(self.record_id)
        await in_slices(self._telling(recording, outcome))

    def _over(self, error: BaseException | None) -> Outcome | None:
        """Leave the action; None where it was left before, or nothing is audited."""
        self._leave()
        recording, scope = self._recording, self._scope
        if recording is None or scope.closed:
            return None
        if self._pid != os.getpid():
            # a fork in the middle: the parent tells the action, the child what it did of it
            scope.record_id, self._phase = uuid7(), "continued"
        self._guarded(recording.settle)
        scope.late = self._told_later
        scope.close()
        if self._failure is None and error is not None and not _is_orderly_exit(error):
            try:
                self._failure = describe_error(error, recording.redactor, scope.budget)
            except Exception as ours:  # noqa: BLE001 - its type is known all the same
                self._parts.fail("error", ours)
                self._failure = ErrorInfo(type=type(error).__name__)
        return self._outcome(error)

    def tell(self, outcome: Outcome) -> None:
        """Record the action as it is now. Never raises."""
        recording = self._recording
        if recording is not None:
            for _ in self._telling(recording, outcome):
                pass
            made_last.set(self.record_id)

    def finished(self, recording: CurrentRuntime, outcome: Outcome) -> AuditRecord:
        """Make the record of the action as it is now, for whoever delivers it otherwise."""
        return self._record(recording, phase=self._phase, outcome=outcome)

    @property
    def span(self) -> trace.Span | None:
        """The span that was current when the action began."""
        return self._scope.server_span

    def _read(self, recording: CurrentRuntime) -> None:
        """Read what the caller says, each part for itself."""
        told, scope, redactor, parts = self._told, self._scope, recording.redactor, self._parts
        try:
            scope.event_name = parse_event(told.event, redactor)
            scope.action = parse_action(told.action) or action_of_event(scope.event_name)
        except Exception as error:  # noqa: BLE001 - it costs the name alone
            parts.fail("name", error)
        try:
            self._take_over(told.parent)
        except Exception as error:  # noqa: BLE001 - somebody it was, and not the process
            parts.fail("parent", error)
            self._parent = ActionReference(action_id="", actor=ACTOR_FAILED)
        try:
            scope.actor = parse_actor(told.actor)
        except Exception as error:  # noqa: BLE001 - somebody it was, and not nobody
            parts.fail("actor", error)
            scope.actor = ACTOR_FAILED
        try:
            scope.tenant = parse_tenant(told.tenant)
        except Exception as error:  # noqa: BLE001 - it costs the tenant alone
            parts.fail("tenant", error)
        try:
            self._aim(recording, told.target)
        except Exception as error:  # noqa: BLE001 - it costs the target alone
            parts.fail("target", error)
        try:
            scope.metadata = parse_metadata(told.metadata)
        except Exception as error:  # noqa: BLE001 - it costs the application's own facts alone
            parts.fail("metadata", error)
        if scope.outer is not None:
            scope.outer.note_nested()
        recording.opened()

    def _take_over(self, parent: object) -> None:
        """Learn which action, begun elsewhere, has caused this one."""
        if parent is not None:
            self._parent = found = parse_parent(parent)
            self._scope.parent_action_id = found.action_id or None

    def _aim(self, recording: CurrentRuntime, target: object) -> None:
        found = parse_target(target, recording.redactor, self._scope.budget.told)
        self._scope.target, self._scope.aimed_at = found, None
        if found is not None and found.id is None:
            self._unnumbered = (found, target)

    def _open_or_refuse(
        self, recording: CurrentRuntime
    ) -> tuple[Intended | None, AuditRecord | None]:
        """Write down that it begins; return who takes an intent, and the intent, if one is due."""
        begun, intent = self._guarded(lambda: self._open(recording)) or (True, None)
        if not begun and recording.required:
            raise StoreUnavailableError(_REFUSED)
        # an action inside of another one is covered by what is known of that
        return recording.intended, intent if self._scope.outer is None else None

    def _open(self, recording: CurrentRuntime) -> tuple[bool, AuditRecord]:
        record = self._record(recording, phase="started", outcome="unknown")
        return recording.begin(record, self._scope.server_span), as_intent(record)

    def _admit(self, *, stored: bool) -> None:
        if not stored:
            refusal = StoreUnavailableError(_REFUSED)
            self.end(refusal)
            raise refusal

    def _telling(self, recording: CurrentRuntime, outcome: Outcome) -> Iterator[None]:
        """Hand over one record with each step. Never raises."""
        steps = self._close(recording, outcome)
        # one that fails is over, and so the next step is the last
        while not self._guarded(lambda: next(steps, True), makes_record=True):
            yield

    def _close(self, recording: CurrentRuntime, outcome: Outcome) -> Iterator[None]:
        scope = self._scope
        found, thing = self._unnumbered
        if found is not None and found is scope.target:
            try:
                # an object that the block has stored has its key by now
                scope.target = parse_target(thing, recording.redactor, scope.budget.told)
            except Exception as error:  # noqa: BLE001 - the target stays as it was
                self._parts.fail("target", error)
        record = self._record(recording, phase=self._phase, outcome=outcome)
        for one in with_continuations(record, scope.further):
            recording.recorder.closed(one, scope.server_span)
            yield

    def _leave(self) -> None:
        if self._token is None:
            return
        token, self._token = self._token, None
        try:
            scopes.leave(token)
        except ValueError:
            # frameworks end some blocks in another context than they began them in; there, nothing
            # is to be undone
            return

    def _origin(self) -> Origin:
        scope, recording = self._scope, self._recording
        if recording is None:
            return Origin(scope.actor, scope.tenant, scope.source)
        parent = self._parent
        if parent is not None:
            around = Origin(parent.actor, parent.tenant, parent.source, parent.request_id)
        else:
            around = recording.around() if scope.outer is None else Origin()
        actor = scope.actor
        if actor is not None:
            # the application may have set it in the meantime, with a role of its own
            actor = with_canonical_role(actor, recording.aliases)
        actor = actor or around.actor
        return Origin(
            None if actor is None else shown_actor(actor, recording.redactor, scope.budget.told),
            shown_tenant(scope.tenant or around.tenant, recording.redactor, scope.budget.told),
            scope.source or around.source,
            around.request_id,
        )

    def _outcome(self, error: BaseException | None) -> Outcome:
        cut_off = is_cancellation(error) or isinstance(error, _CUT_OFF)
        if cut_off or self._transaction == "unknown":
            return "unknown"
        failed = self._failure is not None or self._scope.final_transaction == "rolled_back"
        return "failure" if failed else "success"

    @property
    def _transaction(self) -> TransactionOutcome:
        """As the scope says it; unknown while a transaction is open that has written."""
        return "unknown" if self._scope.changes_pending > 0 else self._scope.transaction

    def _tell(self, changes: SpilledChanges) -> Iterator[AuditRecord]:
        """Make the records of a transaction that is about to be committed."""
        if self._recording is None:
            return
        known = self._record(self._recording, phase="changes", outcome="unknown")
        yield from changes_of(known, self._scope, "committed", changes, self._parts)

    def _told_later(
        self, scope: AuditScope, outcome: TransactionOutcome, changes: SpilledChanges
    ) -> None:
        recording = self._recording
        if recording is None:
            return

        def tell() -> None:
            known = self._record(recording, phase="changes", outcome="unknown")
            for one in changes_of(known, scope, outcome, changes, self._parts):
                recording.recorder.closed(one, scope.server_span)

        self._guarded(tell, makes_record=True)

    def _record(self, recording: CurrentRuntime, *, phase: Phase, outcome: Outcome) -> AuditRecord:
        scope, redactor, parts = self._scope, recording.redactor, self._parts
        name, actor, target = "unnamed", ACTOR_FAILED, None
        origin = Origin()
        metadata: dict[str, Any] = {}
        try:
            if scope.event_name:
                name = parse_event(scope.event_name, redactor)
                parts.succeed("name")
        except Exception as error:  # noqa: BLE001 - it costs the name alone
            parts.fail("name", error)
        try:
            origin = scope.known_origin()
            actor = origin.actor or process_actor(recording.service())
            if actor.reason != ACTOR_FAILED.reason:
                parts.succeed("actor")
        except Exception as error:  # noqa: BLE001 - somebody it was, and not nobody
            parts.fail("actor", error)
        try:
            # what is said inside of the block may be anything
            target = parse_target(target_of(scope, redactor), redactor, scope.budget.told)
            if target is not None:
                parts.succeed("target")
        except Exception as error:  # noqa: BLE001 - it costs the target alone
            parts.fail("target", error)
        try:
            metadata = application_metadata(scope, redactor)
            if metadata:
                parts.succeed("metadata")
        except Exception as error:  # noqa: BLE001 - it costs the application's own facts alone
            parts.fail("metadata", error)
        return action_record(
            scope,
            phase=phase,
            outcome=outcome,
            event_name=name,
            action=parse_action(scope.action) or "EXECUTE",
            level="changes",
            actor=actor,
            tenant=origin.tenant,
            target=target,
            source=origin.source,
            request=None if origin.request_id is None else Request(id=origin.request_id),
            transaction=self._transaction,
            error=self._failure,
            metadata=parts.named(with_scope_facts(metadata, scope)),
        )

    def _guarded(self, step: Callable[[], Any], *, makes_record: bool = False) -> Any:
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            assert self._recording is not None  # noqa: S101 - nothing is done without
            self._recording.on_error()
            log_limited(_logger, "manual", "An action was not recorded in full", error=error)
            if makes_record:
                self._recording.on_loss(error)
            return None


def _nothing() -> None:
    """Count nothing, where nothing is audited."""


def _is_orderly_exit(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)
