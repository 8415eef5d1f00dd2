"""The action under way: the facts known so far.

One mutable `AuditScope` per action, found through a context variable. The object itself is shared:
what a middleware, a dependency in a thread, or a background task adds is seen by all.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from itertools import islice
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, final

import msgspec
from opentelemetry.trace import Span

from otel_audit._util.fork import call_in_child
from otel_audit._util.ids import uuid7
from otel_audit._util.spill import SpilledChanges
from otel_audit.record import (
    Actor,
    ActorType,
    AuditRecord,
    Change,
    ErrorInfo,
    Outcome,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    TransactionOutcome,
)
from otel_audit.redaction.budget import Budget

_logger = logging.getLogger("otel_audit")

_current: ContextVar[AuditScope | PendingScope | None] = ContextVar(
    "otel_audit_scope", default=None
)
# reentrant: an unclosed session may be collected, and reported, at any allocation
_counting = threading.RLock()

LateChanges: TypeAlias = "Callable[[AuditScope, TransactionOutcome, SpilledChanges], None]"
"""Takes what a transaction left after the scope had closed: scope, outcome, changes."""


_MOST_ROLLED_BACK = 50
"""Names such as `insert order` whose rolled-back changes are counted; further names are left
out."""


class OpenTransaction(Protocol):
    """A transaction that has written, and has not ended."""

    def pending(self, owner: AuditScope, /) -> Iterator[Change]:
        """An action's changes in it so far, as far as they are in memory."""


class Origin(NamedTuple):
    """The facts that an inner action takes over from the outer one, as far as known now."""

    actor: Actor | None = None
    tenant: Tenant | None = None
    source: Source | None = None
    request_id: str | None = None


class Provenance(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where an action takes place: in which trace, and in which process.

    Attributes:
        producer_id: The process as a producer; None: not settled yet.
        trace_id, span_id, sampled: The server span, as in a record.
        resource: The process's resource attributes; not to be changed.
    """

    producer_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    sampled: bool | None = None
    resource: dict[str, Any] = {}


NOWHERE = Provenance()


@final
class AuditScope(msgspec.Struct, eq=False, weakref=True):
    """The facts known so far about one action.

    Attributes:
        record_id: The record's id, made when the scope opens.
        action_id: The action's id; the record's own where the action has only one.
        occurred_at: When it began, Unix nanoseconds.
        started: The same on the monotonic clock, nanoseconds.
        error: What made an action by hand fail.
        server_span: The application's own span of the request, where there is one.
        provenance: Trace and process, where that is settled already: then its records need no copy
            that says so.
        changes: Changes whose transaction has ended, each with its outcome: committed, unknown,
            and rolled-back ones if they are kept; the first thousand, or as configured.
        overflow_changes: The changes beyond that.
        change_records: Ids of the records in the transactions themselves, which hold their changes,
            which are not in ``changes`` then.
        changes_total: How many changes were committed or are unknown, in any record.
        changes_pending: Flushed changes whose transaction has not ended.
        changes_rolled_back: Flushed changes that were rolled back.
        open_transactions: The transactions in which they are.
        transactions: How the transactions that wrote ended.
        last_transaction: How the last of them ended.
        rolled_back: What was rolled back, or refused, such as ``insert seat``; and how many of it.
        rolled_back_transactions: How many transactions that wrote were rolled back.
        closed: Whether the action is over: nothing that begins now is its own.
        on_late_changes: Takes what a transaction leaves after the scope has closed.
        at_commit: Makes records of changes that are about to be committed; none if the action
            is not recorded.
        nested: How many actions were recorded inside of this one.
        origin: Finds out who does it, for whom and from where; None: only what stands here.
        outer: The action that it was nested in, which knows what this one does not.
        begun_in: Id of the action that began what belongs to no action: a task that outlives it.
        aimed_at: A mapped object that is the target; its key is read when the action is recorded.
        identities: Objects of the application that may say who does it, and for whom.
        of_request: Whether a request is the action; a forked child has no part in it.
        budget: What describing the action may cost, and what was cut for it.
    """

    record_id: str = ""
    action_id: str = ""
    parent_action_id: str | None = None
    occurred_at: int = 0
    started: int = 0
    event_name: str | None = None
    action: str | None = None
    actor: Actor | None = None
    tenant: Tenant | None = None
    target: Target | None = None
    aimed_at: object | None = None
    source: Source | None = None
    request: Request | None = None
    response: Response | None = None
    error: ErrorInfo | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    server_span: Span | None = None
    provenance: Provenance = NOWHERE
    changes: list[Change] = msgspec.field(default_factory=list)
    overflow_changes: SpilledChanges | None = None
    change_records: list[str] = msgspec.field(default_factory=list)
    open_transactions: set[OpenTransaction] = msgspec.field(default_factory=set)
    changes_total: int = 0
    changes_pending: int = 0
    changes_rolled_back: int = 0
    transactions: set[TransactionOutcome] = msgspec.field(default_factory=set)
    last_transaction: TransactionOutcome = "none"
    rolled_back: dict[str, int] = msgspec.field(default_factory=dict)
    rolled_back_transactions: int = 0
    closed: bool = False
    on_late_changes: LateChanges | None = None
    at_commit: Callable[[SpilledChanges], Iterable[AuditRecord]] | None = None
    nested: int = 0
    origin: Callable[[], Origin] | None = None
    outer: AuditScope | None = None
    begun_in: str | None = None
    identities: Callable[[], Iterable[object]] | None = None
    of_request: bool = False
    budget: Budget = msgspec.field(default_factory=Budget)

    def __post_init__(self) -> None:
        self.occurred_at = self.occurred_at or time.time_ns()
        self.started = self.started or time.perf_counter_ns()
        self.record_id = self.record_id or uuid7(self.occurred_at)
        self.action_id = self.action_id or self.record_id

    def close(self) -> None:
        """The action is over."""
        self.closed = True

    def note_flushed(self, count: int, transaction: OpenTransaction) -> None:
        """Count changes that were flushed in a transaction that is still open."""
        with _counting:
            self.changes_pending += count
            self.open_transactions.add(transaction)

    def pending(self, most: int) -> list[Change]:
        """Changes that were flushed and may yet be undone, as far as they are in memory.

        Args:
            most: How many changes are wanted.
        """
        with _counting:
            transactions = list(self.open_transactions)
        found = (change for one in transactions for change in one.pending(self))
        return list(islice(found, most))

    def note_transaction_end(  # noqa: PLR0913 - one fact an argument
        self,
        outcome: TransactionOutcome,
        changes: SpilledChanges,
        *,
        recorded_in_transaction: int = 0,
        keep_rolled_back: bool = False,
        transaction: OpenTransaction | None = None,
        refused: Iterable[str] = (),
    ) -> None:
        """Take over what a transaction that wrote has left.

        Args:
            outcome: ``committed``, ``rolled_back`` or ``unknown``.
            changes: What it had flushed.
            recorded_in_transaction: How many more changes it had, in records that the transaction
                itself holds.
            keep_rolled_back: Keep the changes of a transaction that was rolled back, too.
            transaction: The transaction, as it was given to `note_flushed`.
            refused: What the database has refused in it, such as ``insert seat``.
        """
        count = changes.count + recorded_in_transaction
        with _counting:
            if transaction is not None:
                self.open_transactions.discard(transaction)
            self.changes_pending -= count
            self.transactions.add(outcome)
            self.last_transaction = outcome
            if outcome == "rolled_back":
                self.changes_rolled_back += count
                self._note_rolled_back(changes, refused)
            else:
                self.changes_total += count
        if outcome == "rolled_back" and not keep_rolled_back:
            changes = SpilledChanges()
        if not self.closed or self.on_late_changes is None:
            self.keep(changes)
        elif not recorded_in_transaction or changes or outcome != "committed":
            self.on_late_changes(self, outcome, changes)

    def _note_rolled_back(self, changes: SpilledChanges, refused: Iterable[str]) -> None:
        self.rolled_back_transactions += 1
        done = (f"{change.operation} {change.table}" for change in changes.recent)
        for name in (*done, *refused):
            if name in self.rolled_back or len(self.rolled_back) < _MOST_ROLLED_BACK:
                self.rolled_back[name] = self.rolled_back.get(name, 0) + 1

    def keep(self, changes: SpilledChanges) -> None:
        """Keep changes: the first here, those beyond the bound in ``overflow_changes``."""
        with _counting:
            if self.overflow_changes is None:
                recent, kept = changes.recent, self.changes
                if (
                    not (changes.full or changes.unspilled)
                    and len(kept) + len(recent) <= changes.room.page
                ):
                    kept += recent
                    return
                first, changes = changes.split(changes.room.page - len(self.changes))
                self.changes.extend(first)
            self._keep_overflow(changes)

    def _keep_overflow(self, changes: SpilledChanges) -> None:
        if self.overflow_changes is not None:
            self.overflow_changes.absorb(changes)
        elif changes:
            self.overflow_changes = changes

    def note_savepoint_rollback(self, count: int) -> None:
        """Count changes undone by a savepoint whose transaction continues."""
        with _counting:
            self.changes_pending -= count
            self.changes_rolled_back += count

    def note_nested(self) -> None:
        """Count an action that is recorded inside of this one."""
        with _counting:
            self.nested += 1

    def known_origin(self) -> Origin:
        """Say who does it, for whom and from where, as far as that is known now."""
        found = Origin()
        scope: AuditScope | None = self
        # a loop: actions may be nested as deep as the application's own functions
        while scope is not None:
            own = Origin(scope.actor, scope.tenant, scope.source)
            here = own if scope.origin is None else scope.origin()
            found = Origin(
                actor=found.actor or here.actor,
                tenant=found.tenant or here.tenant,
                source=found.source or here.source,
                request_id=found.request_id or here.request_id,
            )
            scope = scope.outer
        return found

    @property
    def transaction(self) -> TransactionOutcome:
        """The outcome of all transactions that wrote."""
        ended = self.transactions
        if len(ended) == 1:
            (only,) = ended
            return only
        if not ended:
            return "none"
        return "unknown" if "unknown" in ended else "mixed"

    @property
    def final_transaction(self) -> TransactionOutcome:
        """The final outcome: a committed retry makes up for a rollback."""
        return "unknown" if "unknown" in self.transactions else self.last_transaction

    @property
    def is_retried(self) -> bool:
        """Whether a transaction was rolled back, and a later one committed."""
        return self.rolled_back_transactions > 0 and self.final_transaction == "committed"


def outcome_of_transactions(final: TransactionOutcome) -> Outcome | None:
    """The outcome of an action as far as its transactions decide it.

    Args:
        final: See `AuditScope.final_transaction`.

    Returns:
        None if they leave it to the rest of what is known: nothing was written, or it is committed.
    """
    if final == "unknown":
        return "unknown"
    return "failure" if final in ("rolled_back", "mixed") else None


class PendingScope(ABC):
    """An action of which no record is due as things are: its scope is made when one is asked for.

    Attributes:
        made: The scope, once it was asked for.
        is_over: Whether the action is over.
    """

    __slots__ = ("is_over", "made")

    def __init__(self) -> None:
        self.made: AuditScope | None = None
        self.is_over = False

    def resolve(self) -> AuditScope | None:
        """Make the scope, once; None if that has failed, which was counted. Never raises."""
        with _counting:
            if self.made is None:
                self.made = self._make()
            return self.made

    @abstractmethod
    def _make(self) -> AuditScope | None:
        """Make the scope; a closed one where the action is over. Must not raise."""

    @abstractmethod
    def identities(self) -> Iterable[object]:
        """Objects of the application that may say who does it, as for a scope."""


def current_scope() -> AuditScope | None:
    """Return the scope that this task or thread was begun in, None outside any action.

    The action may be over: a task keeps its scope for as long as it lives.
    """
    scope = _current.get()
    # by its very type, here and below: asked for each event of the ORM
    return scope if scope is None or type(scope) is AuditScope else scope.resolve()


def open_scope() -> AuditScope | None:
    """Return the scope of the action under way, None outside any action, and after its end."""
    scope = _current.get()
    if isinstance(scope, PendingScope):
        scope = None if scope.is_over else scope.resolve()
    return None if scope is None or scope.closed else scope


def action_under_way() -> AuditScope | PendingScope | None:
    """As `open_scope`, but a pending scope stays one: enough to tell one action from another."""
    scope = _current.get()
    if scope is not None and type(scope) is not AuditScope:
        if scope.made is None:
            return None if scope.is_over else scope
        scope = scope.made
    return None if scope is None or scope.closed else scope


def identities_at_hand() -> Iterable[object]:
    """Objects of the application that may say who does the action under way; makes no scope."""
    scope = action_under_way()
    return () if scope is None or scope.identities is None else scope.identities()


@contextmanager
def detached() -> Iterator[None]:
    """Leave the action under way for as long as the block lasts.

    What begins in the block (a task, a worker) belongs to the process, not to the action::

        with otel_audit.detached():
            worker = asyncio.create_task(work(queue))
    """
    token = enter(None)
    try:
        yield
    finally:
        leave(token)


enter: Callable[[AuditScope | PendingScope | None], Token[AuditScope | PendingScope | None]] = (
    _current.set
)
"""Make a scope the current one; give the token to `leave`."""

leave: Callable[[Token[AuditScope | PendingScope | None]], None] = _current.reset
"""Undo `enter`."""


class _Outside:
    """Whether calls outside any action are worth a warning, and which were warned of."""

    is_audited = False
    warned: ClassVar[set[str]] = set()


def warn_outside(*, is_audited: bool) -> None:
    """Warn of calls outside any action from now on, if this process is audited at all."""
    _Outside.is_audited = is_audited
    _Outside.warned.clear()


def _scope_for(function: str) -> AuditScope | None:
    """Return the scope of the action under way; outside any say once that a call is in vain."""
    scope = open_scope()
    if scope is None and _Outside.is_audited and function not in _Outside.warned:
        _Outside.warned.add(function)
        _logger.warning(
            "otel_audit.%s() was called outside any action, or after its end, and does nothing "
            "there: call it in a request, or in a block of otel_audit.audit(); this is said once",
            function,
        )
    return scope


def set_actor(  # noqa: PLR0913 - one fact an argument
    id: str,  # noqa: A002 - the field's name
    *,
    type: ActorType = "user",  # noqa: A002 - the field's name
    role: str | None = None,
    email: str | None = None,
    on_behalf_of: str | None = None,
    roles: tuple[str, ...] = (),
) -> None:
    """Say who does the action under way.

    What the application says wins over what a token says. Outside an action this does nothing,
    which is logged once.

    Args:
        id: Stable identifier, for example the user's primary key as text.
        type: ``user``, ``service`` or ``system``.
        role: The application's own class of actor, for example ``platform_admin``.
        email: E-mail address.
        on_behalf_of: The actor really behind this one (impersonation).
        roles: Further roles or scopes.

    Example::

        with otel_audit.audit("order.paid"):
            otel_audit.set_actor("clerk-1", role="clerk")
    """
    scope = _scope_for("set_actor")
    if scope is not None:
        scope.actor = Actor(
            id=str(id),
            type=type,
            role=role,
            email=email,
            verified=True,
            on_behalf_of=on_behalf_of,
            roles=tuple(roles),
            source="app",
        )


def set_tenant(id: str, *, slug: str | None = None) -> None:  # noqa: A002 - the field's name
    """Say for which tenant the action under way is done.

    Outside an action this does nothing, which is logged once.

    Args:
        id: Stable identifier, for example the tenant's primary key as text.
        slug: Its readable name.

    Example::

        with otel_audit.audit("order.paid"):
            otel_audit.set_tenant("42", slug="acme")
    """
    scope = _scope_for("set_tenant")
    if scope is not None:
        scope.tenant = Tenant(id=str(id), slug=slug)


def set_target(
    type: str | Target | object,  # noqa: A002 - the field's names
    id: str | None = None,  # noqa: A002
) -> None:
    """Say what the action under way acts upon.

    Outside an action this does nothing, which is logged once.

    Args:
        type: What kind of thing it is, ``order``; or a mapped object (its class and its primary
            key are recorded, as in its changes), or a `Target`.
        id: Its id, for a kind alone.

    Raises:
        TypeError: It is none of these.

    Example::

        with otel_audit.audit("order.paid"):
            otel_audit.set_target("order", "7")
    """
    is_mapped = not isinstance(type, str | Target)
    if is_mapped and "_sa_instance_state" not in getattr(type, "__dict__", ()):
        raise TypeError(
            "set_target() takes the type of what is acted upon and its id, as in "
            'set_target("order", "7"), or a mapped object; '
            f"not a value of type {type.__class__.__qualname__}"
        )
    if id is not None and not isinstance(type, str):
        raise TypeError("set_target() takes an id with a type alone: a mapped object has its own")
    scope = _scope_for("set_target")
    if scope is None:
        return
    scope.aimed_at = type if is_mapped else None
    if isinstance(type, str):
        scope.target = Target(type=type, id=None if id is None else str(id))
    else:
        scope.target = type if isinstance(type, Target) else None


def set_event(name: str, *, action: str | None = None) -> None:
    """Name the action under way.

    Outside an action this does nothing, which is logged once.

    Args:
        name: Event name: resource, past participle, such as ``order.refunded``.
        action: ``CREATE READ UPDATE DELETE EXECUTE LOGIN`` …; derived from the request if None.

    Example::

        with otel_audit.audit("order.changed"):
            otel_audit.set_event("order.refunded", action="UPDATE")
    """
    scope = _scope_for("set_event")
    if scope is not None:
        scope.event_name = name
        scope.action = action or scope.action


def add_metadata(**values: Any) -> None:
    """Add the application's own facts to the action under way; they are redacted when recorded.

    Outside an action this does nothing, which is logged once.

    Args:
        values: The facts by name. A later value of a name replaces an earlier one. What is no JSON
            is recorded in a form of it, as in a body.

    Example::

        with otel_audit.audit("order.paid"):
            otel_audit.add_metadata(channel="phone")
    """
    scope = _scope_for("add_metadata")
    if scope is not None:
        scope.metadata.update(values)


def _leave_requests() -> None:
    """A forked child is not part of the request in which it was forked: the parent answers it."""
    scope = _current.get()
    if isinstance(scope, PendingScope):
        scope.is_over = True
        scope = scope.made
    while scope is not None:
        if scope.of_request:
            scope.close()
            scope.on_late_changes = None
        scope = scope.outer


call_in_child(_leave_requests)
