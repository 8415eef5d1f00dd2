"""The one place where audit records are built, and where one is derived from another.

A new field of a record is filled here: in `action_record` where an action knows it, in
`process_record` where the process does, or in a derivation where a later step does. Each rule of
phases, of changes that have no room, and of what a record leaves out is written once.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
from opentelemetry.trace import Span, TraceFlags

from otel_audit._util.ids import uuid7
from otel_audit.record import (
    ACTOR_FAILED,
    ANONYMOUS,
    INCOMPLETE,
    SCHEMA_VERSION,
    TRUNCATED,
    AccessDecision,
    Actor,
    AuditRecord,
    Change,
    ErrorInfo,
    Outcome,
    Phase,
    Received,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    TransactionOutcome,
    to_json,
)
from otel_audit.scope import Provenance

if TYPE_CHECKING:
    from otel_audit._util.spill import SpilledChanges
    from otel_audit.action.failed_parts import FailedParts
    from otel_audit.redaction import Redactor
    from otel_audit.scope import AuditScope

_replace = msgspec.structs.replace

PART: Final = "audit.part"
"""Which of the records of one set of changes this is; the record that they continue is 1."""

CHANGE_RECORDS: Final = "audit.changes.records"
"""Ids of the records with the changes of an action's own transactions."""

RETRIED: Final = "audit.retried"
"""The number of transactions that were rolled back before the committed one."""

ROLLED_BACK: Final = "audit.rolled_back"
"""What else was rolled back, or refused: how many of each, such as ``insert seat``."""

BEGUN_IN: Final = "audit.begun_in"
"""Id of the action that began the task which has written: it was over, so this is not its own."""

_MOST_NAMED: Final = 100
"""Records with further changes that the action's own record names; further ones are still
stored."""
_ACTIONS: Final = {"insert": "CREATE", "update": "UPDATE", "delete": "DELETE"}
_REFUSED: Final = frozenset({401, 403})
"""Unauthorized, Forbidden: the answers to who is not let in."""
_OUTCOMES: Final[dict[TransactionOutcome, Outcome]] = {
    "committed": "success",
    "unknown": "unknown",
}


# Builders: a record from what is known


def action_record(  # noqa: PLR0913 - one argument a field that only the caller knows
    scope: AuditScope,
    *,
    phase: Phase,
    outcome: Outcome,
    event_name: str,
    action: str,
    level: str,
    actor: Actor,
    metadata: dict[str, Any],
    transaction: TransactionOutcome,
    tenant: Tenant | None = None,
    target: Target | None = None,
    source: Source | None = None,
    request: Request | None = None,
    response: Response | None = None,
    error: ErrorInfo | None = None,
) -> AuditRecord:
    """Build the record of an action as it is now: its bare facts, and what describes it.

    Args:
        scope: The action; gives ids, times and changes.
        phase: The part of the action that the record describes.
        outcome: How it ended.
        event_name: What it is called; redacted, and so is all that follows.
        action: Of which kind it is.
        level: How much of it is recorded.
        actor: Who does it.
        metadata: The application's own facts and ours.
        transaction: How the transactions that wrote ended.
        tenant: For whom.
        target: On what.
        source: From where.
        request: The HTTP request, where there was one.
        response: The answer to it.
        error: What went wrong.
    """
    changes = () if level == "metadata" else tuple(scope.changes)
    provenance = scope.provenance
    # in two steps: for a call with more than 15 names CPython builds a dictionary first
    record = AuditRecord(
        record_id=scope.record_id,
        action_id=scope.action_id,
        parent_action_id=scope.parent_action_id,
        phase=phase,
        schema_version=SCHEMA_VERSION,
        event_name=event_name,
        action=action,
        outcome=outcome,
        decision=_decision(response),
        occurred_at=scope.occurred_at,
        duration=time.perf_counter_ns() - scope.started,
        actor=actor,
        tenant=tenant,
        target=target,
        transaction=transaction,
    )
    return _replace(
        record,
        source=source,
        request=request,
        response=response,
        changes=changes,
        changes_total=_total(scope.changes_total, changes),
        changes_rolled_back=scope.changes_rolled_back,
        error=error,
        trace_id=provenance.trace_id,
        span_id=provenance.span_id,
        trace_sampled=provenance.sampled,
        producer_id=provenance.producer_id,
        level=level,
        metadata=metadata,
        resource=provenance.resource,
    )


def _decision(response: Response | None) -> AccessDecision | None:
    """The decision that the answer shows: refused, or unknown."""
    if response is not None and response.status_code in _REFUSED:
        return "denied"
    return None


class Opening(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The facts that are written down when an action begins: all that a crash leaves of it.

    One is made for each action, and few are ever read; only those become a record.

    Attributes:
        record_id, action_id, occurred_at: As in the record.
        event_name: What it is called, as far as that can be known; redacted, and so is all else.
        action: Of which kind it is.
        level: How much of it will be recorded.
        request_id, method, path: The head of the request, as far as that costs nothing.
        provenance: Where it takes place; ``place`` in the frame, as earlier spools have it.
        source: From where.
        actor: Who does it, where somebody has said so already.
    """

    record_id: str
    action_id: str
    occurred_at: int
    event_name: str
    action: str
    level: str
    request_id: str
    method: str
    path: str
    provenance: Provenance = msgspec.field(name="place")
    source: Source | None = None
    actor: Actor | None = None

    def record(self) -> AuditRecord:
        """Build the record, of phase ``started``."""
        provenance = self.provenance
        return AuditRecord(
            record_id=self.record_id,
            action_id=self.action_id,
            phase="started",
            schema_version=SCHEMA_VERSION,
            event_name=self.event_name,
            action=self.action,
            outcome="unknown",
            occurred_at=self.occurred_at,
            actor=self.actor or ANONYMOUS,
            source=self.source,
            request=Request(id=self.request_id, method=self.method, path=self.path),
            transaction="none",
            trace_id=provenance.trace_id,
            span_id=provenance.span_id,
            trace_sampled=provenance.sampled,
            producer_id=provenance.producer_id,
            level=self.level,
            resource=provenance.resource,
        )


def process_record(  # noqa: PLR0913 - one argument a field that only the caller knows
    event_name: str,
    *,
    actor: Actor,
    action: str = "EXECUTE",
    outcome: Outcome = "success",
    level: str = "metadata",
    target: Target | None = None,
    changes: tuple[Change, ...] = (),
    changes_total: int = 0,
    transaction: TransactionOutcome = "none",
    action_id: str | None = None,
    parent_action_id: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> AuditRecord:
    """Build the record of what a process does outside any recorded action.

    Args:
        event_name: What it is called.
        actor: Who does it; see `process_actor`.
        action: Of which kind it is.
        outcome: How it ended.
        level: How much of it is recorded.
        target: On what.
        changes: What it changed, as far as this record has room for it.
        changes_total: How many changes there were.
        transaction: How the transaction that wrote ended.
        action_id: The action that it belongs to; None: it is one of its own.
        parent_action_id: The action that has caused it.
        metadata: Further facts.
    """
    record_id = uuid7()
    return AuditRecord(
        record_id=record_id,
        action_id=record_id if action_id is None else action_id,
        parent_action_id=parent_action_id,
        phase="completed" if action_id is None else "changes",
        schema_version=SCHEMA_VERSION,
        event_name=event_name,
        action=action,
        outcome=outcome,
        occurred_at=time.time_ns(),
        actor=actor,
        target=target,
        changes=changes,
        changes_total=_total(changes_total, changes),
        transaction=transaction,
        level=level,
        metadata={} if metadata is None else metadata,
    )


def process_actor(service: str) -> Actor:
    """The process itself, which is the actor if there is no other."""
    return Actor(id=service, type="system", source="process")


def changes_outside(  # noqa: PLR0913 - one fact an argument
    outcome: TransactionOutcome,
    changes: SpilledChanges,
    service: Callable[[], str],
    parts: FailedParts,
    *,
    begun_in: str | None = None,
    action_id: str | None = None,
) -> Iterator[AuditRecord]:
    """Build the records of a transaction that no action contained: a script, a worker, a start-up.

    The transaction and the number of its rows are always recorded; each other part may fail alone.

    Args:
        outcome: How the transaction ended.
        changes: What it changed.
        service: Gives the process's service name, which stands in for the actor.
        parts: Takes note of what could not be described.
        begun_in: Id of the action that began the task which has written, and which is over.
        action_id: Id of the action that has written, where that is not recorded itself.

    Returns:
        A record named ``database.changed``, by an actor of type ``system``, and those of the
        changes that are too many for it.
    """
    total = changes.count
    first, further = _first_changes(changes, parts)
    operations = {change.operation for change in first}
    try:
        actor = process_actor(service())
    except Exception as error:  # noqa: BLE001 - it costs the actor alone
        parts.fail("actor", error)
        actor = ACTOR_FAILED
    record = process_record(
        "database.changed",
        actor=actor,
        action=_ACTIONS.get(operations.pop(), "EXECUTE") if len(operations) == 1 else "EXECUTE",
        outcome=_OUTCOMES.get(outcome, "failure"),
        level="changes",
        changes=first,
        changes_total=total,
        transaction=outcome,
        action_id=action_id,
        parent_action_id=begun_in,
        metadata=parts.named({} if begun_in is None else {BEGUN_IN: begun_in}),
    )
    return with_continuations(record, further)


# Derivations of phases: one action has several records


def as_intent(record: AuditRecord, actor: Actor | None = None) -> AuditRecord:
    """Turn what is known when an action begins into its intent, a record of its own.

    Args:
        record: Of phase ``started``.
        actor: Who it is, where that is not settled yet; None: as the record says.
    """
    actor = record.actor if actor is None else actor
    return _replace(record, record_id=uuid7(), phase="intent", actor=actor)


def as_started(known: AuditRecord) -> AuditRecord:
    """Make the record of an action that still runs.

    Args:
        known: What its record would be by now.

    Returns:
        A record of phase ``started`` with an id of its own and the same action id. Changes are
        left to the record at the end, which knows whether they were committed.
    """
    return _replace(
        known,
        record_id=uuid7(),
        phase="started",
        outcome="unknown",
        duration=time.time_ns() - known.occurred_at,
        changes=(),
        changes_total=None,
        changes_rolled_back=0,
        transaction="none",
    )


def change_records(
    known: AuditRecord,
    scope: AuditScope,
    outcome: TransactionOutcome,
    changes: SpilledChanges,
    parts: FailedParts,
) -> Iterator[AuditRecord]:
    """Make the records of one transaction of an action, apart from the action's own record.

    Args:
        known: What the action's own record was, or would be by now.
        scope: The action.
        outcome: How the transaction ended.
        changes: What it changed, as far as it is kept.
        parts: Takes note of what could not be described.

    Returns:
        A record of phase ``changes`` with the same action id, without the bodies, and those of
        the changes that are too many for it.
    """
    total = changes.count
    first, further = _first_changes(changes, parts)
    record = _replace(
        without_exchange(known),
        record_id=uuid7(),
        phase="changes",
        outcome=_OUTCOMES.get(outcome, "failure"),
        occurred_at=time.time_ns(),
        duration=0,
        changes=first,
        changes_total=_total(total, first),
        changes_rolled_back=scope.changes_rolled_back,
        transaction=outcome,
        metadata=parts.named(known.metadata),
    )
    return with_continuations(record, further)


def with_continuations(
    record: AuditRecord, further: SpilledChanges | None
) -> Iterator[AuditRecord]:
    """Give a record, and after it one of phase ``continued`` for each page of further changes.

    Each has an id of its own, the same action id, and the same total of changes.

    Args:
        record: The record, with the first changes; without any, further ones are not wanted.
        further: The changes after those.
    """
    yield record
    if further is None or not record.changes:
        return
    bare = without_exchange(record)
    for number, page in enumerate(further.parts(), 2):
        yield as_continued(bare, uuid7(), tuple(page), {PART: number})


def as_continued(
    record: AuditRecord, record_id: str, changes: tuple[Change, ...], numbers: dict[str, Any]
) -> AuditRecord:
    """Make the record of changes for which the first record of an action has no room.

    Args:
        record: The first one, without the exchange.
        record_id: The id of the new one.
        changes: Its changes.
        numbers: Which of the records it is; added to the metadata.
    """
    return _replace(
        record,
        record_id=record_id,
        phase="continued",
        changes=changes,
        metadata={**record.metadata, **numbers},
    )


class Ending(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The fields of an action that may change after its answer; all others are as written then.

    Attributes:
        outcome: How it ended.
        duration: How long it took, nanoseconds.
        transaction: How the transactions that wrote ended.
        changes_total: How many changes there were.
        changes_rolled_back: As in the record.
        target: On what; unset where that is as before.
        changes: What changed in the database; unset where that is as before.
        tenant, decision: As before; here, too, for where the record of the answer is damaged.
        sequence_number: Its place in the producer's stream; only where it is written down.
    """

    outcome: Outcome
    duration: int
    transaction: TransactionOutcome
    changes_total: int = 0
    changes_rolled_back: int = 0
    target: Target | msgspec.UnsetType | None = msgspec.UNSET
    changes: tuple[Change, ...] | msgspec.UnsetType = msgspec.UNSET
    tenant: Tenant | None = None
    decision: AccessDecision | None = None
    sequence_number: int | None = None

    def text(self, number: int) -> bytes:
        """Write it as JSON, with the record's place in the producer's stream."""
        return b'{"sequence_number":%d,' % number + to_json(self)[1:]


def ending_of(
    answered: AuditRecord, scope: AuditScope, *, outcome: Outcome, target: Target | None
) -> Ending:
    """Say what has changed of an action since its answer.

    Args:
        answered: The record of that moment.
        scope: The action; gives the time and the outcome of its transactions.
        outcome: How it ended.
        target: On what; a change may have named it since.
    """
    changed = answered.level != "metadata" and len(answered.changes) != len(scope.changes)
    return Ending(
        outcome,
        time.perf_counter_ns() - scope.started,
        scope.transaction,
        scope.changes_total,
        scope.changes_rolled_back,
        msgspec.UNSET if target is answered.target else target,
        tuple(scope.changes) if changed else msgspec.UNSET,
        answered.tenant,
        answered.decision,
    )


def ended(answered: AuditRecord, ending: Ending, number: int | None = None) -> AuditRecord:
    """Apply an ending to the record of the answer.

    Args:
        answered: The record of that moment.
        ending: What has changed since.
        number: Its place in the producer's stream; None: it has none yet.
    """
    changes = answered.changes if ending.changes is msgspec.UNSET else ending.changes
    return _replace(
        answered,
        outcome=ending.outcome,
        duration=ending.duration,
        target=answered.target if ending.target is msgspec.UNSET else ending.target,
        changes=changes,
        changes_total=_total(ending.changes_total, changes),
        changes_rolled_back=ending.changes_rolled_back,
        transaction=ending.transaction,
        sequence_number=number,
    )


def ended_unseen(begun: AuditRecord, ending: Ending) -> AuditRecord:
    """Make a record from the beginning and the end of an action; the record of its answer is lost.

    Args:
        begun: What was written down when it began.
        ending: What was written down when it ended.
    """
    is_anonymous = begun.actor == ANONYMOUS
    missing = {
        "actor": is_anonymous,
        "request.body": begun.level in _WITH_BODIES,
        "target": ending.target is msgspec.UNSET,
        "changes": ending.changes is msgspec.UNSET
        and ending.changes_total > 0
        and begun.level != "metadata",
    }
    record = _replace(
        begun,
        phase="completed",
        actor=ACTOR_FAILED if is_anonymous else begun.actor,
        tenant=ending.tenant,
        decision=ending.decision,
        metadata={
            **begun.metadata,
            INCOMPLETE: [*_ONLY_ANSWERED, *(part for part, is_lost in missing.items() if is_lost)],
        },
    )
    return ended(record, ending, ending.sequence_number)


_ONLY_ANSWERED: Final = (
    "record", "name", "route", "headers", "query", "response", "error", "metadata",
)  # fmt: skip
"""Parts of a record that neither its beginning nor its end says."""

_WITH_BODIES: Final = frozenset({"request", "request_response"})


# Derivations on the way to the store


def provenance_of(span: Span | None, producer_id: str, resource: dict[str, Any]) -> Provenance:
    """Say where the records of an action come from; see `with_provenance`."""
    if span is None:
        return Provenance(producer_id=producer_id, resource=resource)
    trace_id, span_id, sampled = _span_facts(span)
    return Provenance(producer_id, trace_id, span_id, sampled, resource)


def in_trace(record: AuditRecord, span: Span) -> AuditRecord:
    """Point a record to the span of its action."""
    trace_id, span_id, sampled = _span_facts(span)
    return _replace(record, trace_id=trace_id, span_id=span_id, trace_sampled=sampled)


def with_provenance(
    record: AuditRecord,
    span: Span | None,
    producer_id: str | None,
    resource: dict[str, Any],
    number: int | None = None,
) -> AuditRecord:
    """Say in a record by which process it was made, and in which trace.

    Args:
        record: The record, complete but for that.
        span: The span of its action, if any.
        producer_id: The process as a producer; None: it has no place in a stream.
        resource: The process's resource attributes.
        number: Its place in the producer's stream; None: it has none yet.
    """
    trace_id, span_id, sampled = (None, None, None) if span is None else _span_facts(span)
    return _replace(
        record,
        producer_id=producer_id,
        sequence_number=number,
        trace_id=trace_id,
        span_id=span_id,
        trace_sampled=sampled,
        resource=resource,
    )


def numbered(record: AuditRecord, producer_id: str, number: int) -> AuditRecord:
    """Give a record its place in a producer's stream."""
    return _replace(record, producer_id=producer_id, sequence_number=number)


def unnumbered(record: AuditRecord) -> AuditRecord:
    """Leave out the place in a stream: another record of the same action has it."""
    return _replace(record, sequence_number=None)


def as_received(
    record: AuditRecord, received: Received, tenant: Tenant | None, resource: dict[str, Any]
) -> AuditRecord:
    """Mark a record that came over the network, by what only its receiver may state."""
    return _replace(record, received=received, tenant=tenant, resource=resource)


def chain_broken(record: AuditRecord, record_id: str) -> AuditRecord:
    """Build the record that another one does not follow the one before it in its stream.

    Args:
        record: The one that does not.
        record_id: The id of the new record.
    """
    found = process_record(
        "audit.chain.broken",
        actor=process_actor("otel-audit"),
        action="VERIFY",
        outcome="failure",
        target=Target(type="producer", id=record.producer_id),
        metadata={"record": record.record_id, "number": record.sequence_number},
    )
    return _replace(
        found,
        record_id=record_id,
        action_id=record_id,
        occurred_at=record.occurred_at,
        duration=0,
        tenant=record.tenant,
        received=record.received and _without_signal(record.received),
    )


def _without_signal(received: Received) -> Received:
    return Received(by=received.by)


def without_receiver(record: AuditRecord) -> AuditRecord:
    """Leave out how a record came in."""
    return _replace(record, received=None)


def with_resource(record: AuditRecord, resource: dict[str, Any]) -> AuditRecord:
    """Say by which process a record was made."""
    return _replace(record, resource=resource)


def stored_as(record: AuditRecord, record_id: str, conflict_of: str) -> AuditRecord:
    """Give a record another id, as another record has its own."""
    return _replace(record, record_id=record_id, conflict_of=conflict_of)


def without_conflict(record: AuditRecord) -> AuditRecord:
    """Take off the mark of `stored_as`, which only the store's sink may set."""
    return record if record.conflict_of is None else _replace(record, conflict_of=None)


# Derivations that leave something out


def without_exchange(record: AuditRecord) -> AuditRecord:
    """Leave out the bodies and the answer, which the action's own record has."""
    request = record.request
    return _replace(
        record,
        request=None if request is None else _replace(request, body=None),
        response=None,
    )


def with_exchange(
    record: AuditRecord, request: Request | None, response: Response | None
) -> AuditRecord:
    """Replace request and response."""
    return _replace(record, request=request, response=response)


def with_changes(
    record: AuditRecord, changes: tuple[Change, ...], total: int | None
) -> AuditRecord:
    """Replace the changes and their total."""
    return _replace(record, changes=changes, changes_total=total)


def with_metadata(record: AuditRecord, metadata: dict[str, Any]) -> AuditRecord:
    """Replace the metadata."""
    return _replace(record, metadata=metadata)


def with_truncated(record: AuditRecord, part: str) -> AuditRecord:
    """Name in the metadata a part that was left out for its size."""
    known = record.metadata.get(TRUNCATED)
    names = [*(known if isinstance(known, list) else ()), part]
    return with_metadata(record, {**record.metadata, TRUNCATED: list(dict.fromkeys(names))})


# Metadata of an action


def application_metadata(scope: AuditScope, redactor: Redactor) -> dict[str, Any]:
    """Redact what the application has added to an action, as it is now, within its budget."""
    if not scope.metadata:
        return {}
    try:
        # a copy: another task may add to it in the meantime
        given = dict(scope.metadata)
    except RuntimeError:
        given = {}
        scope.budget.note_cut("metadata")
    found = redactor.document(given, scope.budget.metadata())
    # what could not be read at all is one word
    return found if isinstance(found, dict) else {"audit.metadata": found}


def with_scope_facts(metadata: dict[str, Any], scope: AuditScope) -> dict[str, Any]:
    """Add what has no field of its own: the records with the changes, retries, cut parts."""
    if scope.rolled_back_transactions and scope.is_retried:
        metadata = {
            **metadata,
            RETRIED: scope.rolled_back_transactions,
            ROLLED_BACK: dict(scope.rolled_back),
        }
    if scope.change_records:
        metadata = {**metadata, CHANGE_RECORDS: scope.change_records[:_MOST_NAMED]}
    cut = scope.budget.cut
    return {**metadata, TRUNCATED: cut} if cut else metadata


def _total(total: int, changes: tuple[Change, ...]) -> int | None:
    """Say how many changes there were, where a record does not hold them all."""
    return total if total != len(changes) else None


def _first_changes(
    changes: SpilledChanges, parts: FailedParts
) -> tuple[tuple[Change, ...], SpilledChanges | None]:
    """Take the changes of the first record out; none if they cannot be read."""
    try:
        first, further = changes.split(changes.room.page)
    except Exception as error:  # noqa: BLE001 - how many there were is known all the same
        parts.fail("changes", error)
        return (), None
    return tuple(first), further


def _span_facts(span: Span) -> tuple[str, str, bool]:
    global _last_facts  # noqa: PLW0603 - replaced as a whole: any thread may
    last, facts = _last_facts
    if last() is not span:
        # a tuple: its properties would be a call each
        trace_number, span_number, _, flags, _, _ = span.get_span_context()
        # as format_trace_id and format_span_id do, for half of what a format specifier costs
        trace_id, span_id = "%032x" % trace_number, "%016x" % span_number  # noqa: UP031
        facts = trace_id, span_id, bool(flags & TraceFlags.SAMPLED)
        # weakly: the span, and what the application hung on it, ends with its action
        try:  # noqa: SIM105 - costs less than `suppress`
            _last_facts = weakref.ref(span), facts
        except TypeError:
            pass
    return facts


_Facts = tuple[Callable[[], Span | None], tuple[str, str, bool]]
_last_facts: _Facts = (lambda: None), ("", "", False)
"""Of the span that was asked for last: an action's records follow one another."""
