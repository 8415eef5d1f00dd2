"""One action that is recorded by hand, from its beginning to its record."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from copy import copy
from typing import Any

from opentelemetry import trace

from otel_audit import scope as scopes
from otel_audit._util.action_reference import ActionReference
from otel_audit._util.aio import is_cancellation
from otel_audit._util.ids import uuid7
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
from otel_audit.action.blocking_intent import wait_for_intent
from otel_audit.action.compose import (
    action_record,
    application_metadata,
    as_intent,
    process_actor,
    with_scope_facts,
)
from otel_audit.action.current_runtime import CurrentRuntime, made_last
from otel_audit.action.error_info import describe_error
from otel_audit.action.failed_parts import FailedParts
from otel_audit.action.lifecycle import Lifecycle
from otel_audit.action.ports import NoPorts
from otel_audit.errors import ConfigurationError, StoreUnavailableError
from otel_audit.identity.redact_identity import shown_actor, shown_tenant
from otel_audit.policy.verbs import action_of_event
from otel_audit.record import (
    ACTOR_FAILED,
    AuditRecord,
    ErrorInfo,
    Outcome,
    Phase,
    Receipt,
    Request,
    Target,
    TransactionOutcome,
)
from otel_audit.scope import AuditScope, Origin, outcome_of_transactions

_REFUSED = "The action cannot be recorded in the audit trail now, so it was not begun"

_CUT_OFF = (GeneratorExit, KeyboardInterrupt)
"""Exceptions that end a block from outside: how far it had come is not known."""


class Action(Lifecycle):
    """An action under way. None of its methods raises for what the application gives."""

    def __init__(self, arguments: RecordArguments, runtime: CurrentRuntime | None) -> None:
        """Remember the arguments; see `audit`.

        Args:
            arguments: What the caller says.
            runtime: Where to; None: nowhere.
        """
        self._arguments = arguments
        self._runtime = runtime
        self._pid = os.getpid()
        self._phase: Phase = "completed"
        self._unnumbered: tuple[Target | None, object] = (None, None)
        self._parent: ActionReference | None = None
        around = scopes.current_scope()
        # a task keeps the scope that it was begun in: whose action that was does nothing any more
        outer = scopes.open_scope() if arguments.parent is None else None
        span = trace.get_current_span()
        scope = AuditScope(
            parent_action_id=None if around is None else around.action_id,
            server_span=span if span.get_span_context().is_valid else None,
            outer=outer,
        )
        ports = NoPorts() if runtime is None else runtime
        super().__init__(ports, scope, FailedParts(ports.on_error))
        scope.origin = self._origin
        if runtime is None:
            # nothing takes its records, not even a transaction of its own
            scope.at_commit = _no_records
            return
        try:
            self._read(runtime)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    @property
    def action_id(self) -> str:
        """The action's id: what the records of nested actions name as their parent."""
        return self._audit.action_id

    @property
    def record_id(self) -> str:
        """The record's id: the row's primary key in the store."""
        return self._audit.record_id

    async def wait_for_receipt(self, timeout: float = 10.0) -> Receipt:  # noqa: ASYNC109
        """Wait until the store has the record of this action, and get what it says of it.

        Args:
            timeout: Seconds to wait.

        Raises:
            ConfigurationError: The action is not over, so that its record is not made yet; or
                nothing is audited, or not to a store.
            StoreUnavailableError: The store does not have it in time; it is kept until it has.
        """
        if self._runtime is None or self._runtime.receipt is None:
            raise ConfigurationError("wait_for_receipt(): nothing is audited in this process")
        if not self._audit.closed:
            raise ConfigurationError(
                "wait_for_receipt(): the action is not over; ask after its block"
            )
        return await self._runtime.receipt(self.record_id, timeout)

    def is_of(self, scope: AuditScope | None) -> bool:
        """Return whether this is the action that a scope belongs to."""
        return self._audit is scope

    def add_metadata(self, **values: Any) -> None:
        """Add the application's own facts; they are redacted when recorded."""
        self._audit.metadata.update(values)

    def set_target(self, target: object) -> None:
        """Say what is acted upon; see `audit`."""
        if self._runtime is None:
            return
        try:
            self._aim(self._runtime, target)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)

    def fail(self, reason: str) -> None:
        """Make the outcome ``failure``, without an exception.

        Args:
            reason: Recorded as the error's type; a word such as ``quota_exceeded``.
        """
        if self._runtime is not None:
            self._audit.error = ErrorInfo(type=parse_event(reason, self._runtime.redactor))

    def begin(self) -> None:
        """Make the action the current one, and write down that it has begun.

        Raises:
            StoreUnavailableError: It could not be recorded, and ``OTEL_AUDIT_REQUIRED`` is set;
                or delivery is strict, and the store does not take its intent.
        """
        if self._runtime is None:
            return
        intent = self._open_or_refuse(self._runtime)
        if intent is not None:
            self._admit(stored=wait_for_intent(lambda: self._store_intent(intent)))
        self._enter()

    async def begin_async(self) -> None:
        """As `begin`, but it waits for an intent without holding up the event loop."""
        if self._runtime is None:
            return
        intent = self._open_or_refuse(self._runtime)
        if intent is not None:
            self._admit(stored=await self._store_intent(intent))
        self._enter()

    def end(self, error: BaseException | None) -> None:
        """Hand over the record. Ending twice does nothing.

        Args:
            error: What left the block, if anything.
        """
        outcome = self._over(error)
        if outcome is not None:
            self.record_now(outcome)

    async def end_async(self, error: BaseException | None) -> None:
        """As `end`, but yields to the event loop between two records.

        Args:
            error: What left the block, if anything.
        """
        outcome = self._over(error)
        if outcome is not None:
            try:
                self._make_record(outcome)
                await self._hand_over_rest_async()
            finally:
                self._release()

    def _over(self, error: BaseException | None) -> Outcome | None:
        """Leave the action; return its outcome, None if it ended before or nothing is audited."""
        self._leave()
        runtime, scope = self._runtime, self._audit
        if runtime is None:
            self._release()
            return None
        if scope.closed:
            return None
        if self._pid != os.getpid():
            # a fork in the middle: the parent records the action, the child its own part
            scope.record_id, self._phase = uuid7(), "continued"
        self._end_scope()
        if scope.error is None and error is not None and not _is_orderly_exit(error):
            try:
                scope.error = describe_error(error, runtime.redactor, scope.budget)
            except Exception as ours:  # noqa: BLE001 - its type is known all the same
                self._parts.fail("error", ours)
                scope.error = ErrorInfo(type=type(error).__name__)
        return self._outcome(error)

    def record_now(self, outcome: Outcome) -> None:
        """Record the action as it is now. Never raises."""
        try:
            self._make_record(outcome)
            self._hand_over_rest()
        finally:
            self._release()

    def _release(self) -> None:
        # the application may keep this object, and ask it for what stands in the scope
        if not self._is_released:
            self._is_released = True
            copy(self)._follow(self._audit)  # noqa: SLF001 - one of its own kind

    def _follow(self, scope: AuditScope) -> None:
        """Replace the action that this is a copy of: only its scope keeps this one alive."""
        self._audit = weakref.proxy(scope)
        scope.origin = self._origin
        if self._runtime is not None:
            scope.at_commit = self._records_at_commit
        if scope.on_late_changes is not None:
            scope.on_late_changes = self._record_late

    def finished(self, outcome: Outcome) -> AuditRecord:
        """Make the record of the action as it is now, for another way of delivery."""
        try:
            return self._record(phase=self._phase, outcome=outcome)
        finally:
            self._release()

    def _known(self, *, at_commit: bool) -> AuditRecord:  # noqa: ARG002 - it is the same then
        """Make the record of what is known now."""
        return self._record(phase="changes", outcome="unknown")

    @property
    def span(self) -> trace.Span | None:
        """The span that was current when the action began."""
        return self._audit.server_span

    def _read(self, runtime: CurrentRuntime) -> None:
        """Read what the caller says, each part for itself."""
        given, scope, redactor, parts = self._arguments, self._audit, runtime.redactor, self._parts
        try:
            scope.event_name = parse_event(given.event, redactor)
            scope.action = parse_action(given.action) or action_of_event(scope.event_name)
        except Exception as error:  # noqa: BLE001 - it costs the name alone
            parts.fail("name", error)
        try:
            self._take_over(given.parent)
        except Exception as error:  # noqa: BLE001 - somebody it was, and not the process
            parts.fail("parent", error)
            self._parent = ActionReference(action_id="", actor=ACTOR_FAILED)
        try:
            scope.actor = parse_actor(given.actor)
        except Exception as error:  # noqa: BLE001 - not known is not nobody
            parts.fail("actor", error)
            scope.actor = ACTOR_FAILED
        try:
            scope.tenant = parse_tenant(given.tenant)
        except Exception as error:  # noqa: BLE001 - it costs the tenant alone
            parts.fail("tenant", error)
        try:
            self._aim(runtime, given.target)
        except Exception as error:  # noqa: BLE001 - it costs the target alone
            parts.fail("target", error)
        try:
            scope.metadata = parse_metadata(given.metadata)
        except Exception as error:  # noqa: BLE001 - it costs the application's own facts alone
            parts.fail("metadata", error)
        if scope.outer is not None:
            scope.outer.note_nested()
        runtime.opened()

    def _take_over(self, parent: object) -> None:
        """Note the action, begun elsewhere, that has caused this one."""
        if parent is not None:
            self._parent = found = parse_parent(parent)
            self._audit.parent_action_id = found.action_id or None

    def _aim(self, runtime: CurrentRuntime, target: object) -> None:
        found = parse_target(target, runtime.redactor, self._audit.budget.given)
        self._audit.target, self._audit.aimed_at = found, None
        if found is not None and found.id is None:
            self._unnumbered = (found, target)

    def _open_or_refuse(self, runtime: CurrentRuntime) -> AuditRecord | None:
        """Write down that it begins; return the intent, if one is due."""
        try:
            record = self._record(phase="started", outcome="unknown")
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)
            return None
        begun = self._write_opened(
            lambda record: runtime.begin(record, self._audit.server_span), record, refuse=False
        )
        if not begun and runtime.required:
            raise StoreUnavailableError(_REFUSED)
        # an action inside of another one is covered by what is known of that
        wanted = runtime.intended is not None and self._audit.outer is None
        return as_intent(record) if wanted else None

    def _admit(self, *, stored: bool) -> None:
        if not stored:
            refusal = StoreUnavailableError(_REFUSED)
            self.end(refusal)
            raise refusal

    def _make_record(self, outcome: Outcome) -> None:
        runtime = self._runtime
        if runtime is not None:
            self._aim_again(runtime)
            self._hand_over(lambda: self._record(phase=self._phase, outcome=outcome))
            made_last.set(self.record_id)

    def _aim_again(self, runtime: CurrentRuntime) -> None:
        """Read the key of an object that had none: the block has stored it by now."""
        found, thing = self._unnumbered
        if found is None or found is not self._audit.target:
            return
        try:
            self._audit.target = parse_target(thing, runtime.redactor, self._audit.budget.given)
        except Exception as error:  # noqa: BLE001 - the target stays as it was
            self._parts.fail("target", error)

    def _origin(self) -> Origin:
        scope, runtime = self._audit, self._runtime
        if runtime is None:
            return Origin(scope.actor, scope.tenant, scope.source)
        parent = self._parent
        if parent is not None:
            around = Origin(parent.actor, parent.tenant, parent.source, parent.request_id)
        else:
            around = runtime.around() if scope.outer is None else Origin()
        actor = scope.actor
        if actor is not None:
            # the application may have set it in the meantime, with a role of its own
            actor = with_canonical_role(actor, runtime.aliases)
        actor = actor or around.actor
        return Origin(
            None if actor is None else shown_actor(actor, runtime.redactor, scope.budget.given),
            shown_tenant(scope.tenant or around.tenant, runtime.redactor, scope.budget.given),
            scope.source or around.source,
            around.request_id,
        )

    def _outcome(self, error: BaseException | None) -> Outcome:
        cut_off = is_cancellation(error) or isinstance(error, _CUT_OFF)
        if cut_off or self._transaction == "unknown":
            return "unknown"
        if self._audit.error is not None:
            return "failure"
        return outcome_of_transactions(self._audit.final_transaction) or "success"

    @property
    def _transaction(self) -> TransactionOutcome:
        """As the scope says it; unknown while a transaction is open that has written."""
        return "unknown" if self._audit.changes_pending > 0 else self._audit.transaction

    def _record(self, *, phase: Phase, outcome: Outcome) -> AuditRecord:
        runtime = self._runtime
        assert runtime is not None  # noqa: S101 - nothing is recorded without
        scope, redactor, parts = self._audit, runtime.redactor, self._parts
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
            actor = origin.actor or process_actor(runtime.service())
            if actor.reason != ACTOR_FAILED.reason:
                parts.succeed("actor")
        except Exception as error:  # noqa: BLE001 - not known is not nobody
            parts.fail("actor", error)
        try:
            # what is said inside of the block may be anything
            target = parse_target(target_of(scope, redactor), redactor, scope.budget.given)
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
            error=scope.error,
            metadata=parts.named(with_scope_facts(metadata, scope)),
        )


def _no_records(_changes: SpilledChanges) -> Iterator[AuditRecord]:
    return iter(())


def _is_orderly_exit(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)
