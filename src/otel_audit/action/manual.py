"""Manual recording: for jobs, scripts, workers, and everything that a request's record lacks.

Works with and without HTTP, tracing and a database; inside a request, an action gets a record of
its own that names the request's action as its parent.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, overload

from otel_audit._util.action_reference import ActionReference
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.action.arguments import RecordArguments
from otel_audit.action.current_runtime import in_use
from otel_audit.action.manual_action import Action
from otel_audit.errors import ConfigurationError
from otel_audit.record import ACTOR_FAILED, Outcome
from otel_audit.scope import Origin, current_scope, open_scope

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

_logger = logging.getLogger("otel_audit.action")

F = TypeVar("F", bound=Callable[..., Any])


def audit(  # noqa: PLR0913 - one fact an argument
    event: str,
    *,
    actor: object = None,
    tenant: object = None,
    target: object = None,
    metadata: object = None,
    action: str | None = None,
    parent: ActionReference | str | None = None,
) -> AuditContext:
    """Record what a block or a function does, as an action of its own.

    ``with`` and ``async with`` record a block, ``@audit(…)`` a function or a coroutine function::

        with otel_audit.audit("tenant.provisioned", actor="job-7", target="tenant:42") as action:
            action.add_metadata(plan="trial")

    Changes by database sessions in the block belong to the action. An exception makes the outcome
    ``failure``, and is raised as usual. Everything is redacted.

    Args:
        event: Event name: resource, past participle, such as ``tenant.provisioned``.
        actor: Who: an id, a mapping or an object with ``id`` (and ``type``, ``role``, ``email``,
            ``roles``). None: the actor of the action around this one, or the process itself if
            there is none.
        tenant: For whom: an id, or a mapping or object with ``id`` and ``slug``. None: as around.
        target: What is acted upon: ``type:id``, or an object that has an id when the block ends.
        metadata: The application's own facts, a mapping.
        action: ``CREATE READ UPDATE DELETE EXECUTE LOGIN`` …; from the event name if None.
        parent: The action that caused this one, if it is not the one around: the result of
            `current_action`, or its text. Actor, tenant and source are taken from it.

    Returns:
        What ``with`` takes, and what decorates.

    Raises:
        ConfigurationError: The event is a function, as in ``@audit`` without parentheses; or what
            is decorated is a generator function. When the action begins: nothing is audited, and
            ``OTEL_AUDIT_REQUIRED`` is set.
        StoreUnavailableError: When the action begins: it could not be recorded, and
            ``OTEL_AUDIT_REQUIRED`` is set; or delivery is strict, and the store does not take its
            intent.
    """
    if callable(event):
        raise ConfigurationError('audit: name the event, as in @audit("report.built")')
    return AuditContext(RecordArguments(event, actor, tenant, target, metadata, action, parent))


def emit(  # noqa: PLR0913 - one fact an argument
    event: str,
    *,
    actor: object = None,
    tenant: object = None,
    target: object = None,
    metadata: object = None,
    action: str | None = None,
    parent: ActionReference | str | None = None,
    outcome: Outcome = "success",
) -> str | None:
    """Record that something has happened.

    `emit_in_transaction` records it only if a transaction is committed.

    Args:
        event: Event name, as for `audit`; the next arguments are as there, too.
        actor: Who.
        tenant: For whom.
        target: What was acted upon.
        metadata: The application's own facts.
        action: What kind of action.
        parent: The action that has caused it.
        outcome: ``success``, ``failure`` or ``unknown``.

    Returns:
        The record's id; None if nothing is audited.

    Raises:
        ConfigurationError: Nothing is audited, and ``OTEL_AUDIT_REQUIRED`` is set.

    Example::

        record_id = otel_audit.emit("user.logged_in", actor="u-1", outcome="failure")
    """
    runtime = in_use()
    if runtime is None:
        return None
    arguments = RecordArguments(event, actor, tenant, target, metadata, action, parent)
    emitted = Action(arguments, runtime)
    emitted.record_now(_known_outcome(outcome))
    return emitted.record_id


@overload
def emit_in_transaction(
    session: AsyncSession | AsyncConnection | async_scoped_session[Any],
    event: str,
    *,
    actor: object = None,
    tenant: object = None,
    target: object = None,
    metadata: object = None,
    action: str | None = None,
    parent: ActionReference | str | None = None,
    outcome: Outcome = "success",
) -> Awaitable[str | None]: ...


@overload
def emit_in_transaction(
    session: Session | Connection | scoped_session[Any],
    event: str,
    *,
    actor: object = None,
    tenant: object = None,
    target: object = None,
    metadata: object = None,
    action: str | None = None,
    parent: ActionReference | str | None = None,
    outcome: Outcome = "success",
) -> str | None: ...


def emit_in_transaction(  # noqa: PLR0913 - one fact an argument
    session: Any,
    event: str,
    *,
    actor: object = None,
    tenant: object = None,
    target: object = None,
    metadata: object = None,
    action: str | None = None,
    parent: ActionReference | str | None = None,
    outcome: Outcome = "success",
) -> str | Awaitable[str | None] | None:
    """Record an event if and only if the caller's own transaction is committed.

    This needs ``OTEL_AUDIT_ORM=transactional``. Awaitable for an asynchronous session::

        await otel_audit.emit_in_transaction(db, "order.refunded", target=order)

    Args:
        session: A session or connection of SQLAlchemy; its transaction takes the record along.
        event: Event name, as for `emit`; the other arguments are as there, too.
        actor: Who.
        tenant: For whom.
        target: What was acted upon.
        metadata: The application's own facts.
        action: What kind of action.
        parent: The action that has caused it.
        outcome: ``success``, ``failure`` or ``unknown``.

    Returns:
        The record's id; None if nothing is audited.

    Raises:
        ConfigurationError: The settings do not allow it, ``session`` is none, or nothing is
            audited and ``OTEL_AUDIT_REQUIRED`` is set.
        StoreError: The session's database has no outbox for the event.
    """
    runtime = in_use()
    if runtime is None:
        return _nothing() if hasattr(session, "run_sync") else None
    if runtime.enlist is None:
        raise ConfigurationError(
            "emit_in_transaction() writes to audit.outbox in the application's database: "
            "set OTEL_AUDIT_ORM=transactional"
        )
    arguments = RecordArguments(event, actor, tenant, target, metadata, action, parent)
    emitted = Action(arguments, runtime)
    record = emitted.finished(_known_outcome(outcome))
    written = runtime.enlist(session, record, emitted.span)
    return emitted.record_id if written is None else _after(written, emitted.record_id)


def _known_outcome(outcome: Outcome) -> Outcome:
    return outcome if outcome in get_args(Outcome) else "unknown"


async def _nothing() -> None:
    """Give an awaitable to who awaits."""


async def _after(written: Awaitable[None], record_id: str) -> str:
    await written
    return record_id


def current_action() -> ActionReference | None:
    """Name the action under way, for work that it causes elsewhere: in a queue, a thread, a worker.

    Call it when the actor is known: later facts are not in the reference. Never raises.

    Returns:
        What ``audit(parent=…)`` takes there; its ``to_json()`` is a text for a message. None
        outside any action, and after its end.

    Example::

        with otel_audit.audit("order.placed", actor="ann"):
            reference = otel_audit.current_action()
        otel_audit.emit("label.printed", parent=reference)
    """
    scope = open_scope()
    if scope is None:
        return None
    try:
        origin = scope.known_origin()
    except Exception as error:  # noqa: BLE001 - must not reach the application
        log_limited(_logger, "reference", "Who does an action is not in its reference", error=error)
        origin = Origin(actor=ACTOR_FAILED)
    return ActionReference(
        action_id=scope.action_id,
        actor=origin.actor,
        tenant=origin.tenant,
        source=origin.source,
        request_id=origin.request_id,
    )


class AuditContext:
    """The result of `audit`: for ``with``, for ``async with``, and as a decorator."""

    def __init__(self, arguments: RecordArguments) -> None:
        """Remember the arguments; no action is started yet.

        Args:
            arguments: What the caller of `audit` gave.
        """
        self._arguments = arguments
        self._underway: list[Action] = []

    def __enter__(self) -> Action:
        """Begin an action; see `audit`.

        Raises:
            ConfigurationError: Nothing is audited, and ``OTEL_AUDIT_REQUIRED`` is set.
            StoreUnavailableError: It could not be recorded, and ``OTEL_AUDIT_REQUIRED`` is set;
                or delivery is strict, and the store does not take its intent.
        """
        action = Action(self._arguments, in_use())
        action.begin()
        self._underway.append(action)
        return action

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End it; an exception is raised further."""
        self._last().end(error)

    async def __aenter__(self) -> Action:
        """As ``with``; with strict delivery it waits until the store has the intent.

        Raises:
            ConfigurationError, StoreUnavailableError: As ``with``.
        """
        action = Action(self._arguments, in_use())
        await action.begin_async()
        self._underway.append(action)
        return action

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """As ``with``, but yields to the event loop between the records of a large action."""
        await self._last().end_async(error)

    def __call__(self, function: F) -> F:
        """Record each call of a function or a coroutine function.

        Raises:
            ConfigurationError: It is a generator function: what it does happens between its
                steps, in the middle of its caller. Use ``with`` inside of it.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"audit: {function.__qualname__} is a generator function; use `with` inside of it"
            )
        arguments = self._arguments

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            with AuditContext(arguments):
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def recorded_async(*args: Any, **kwargs: Any) -> Any:
            async with AuditContext(arguments):
                return await function(*args, **kwargs)

        is_async = inspect.iscoroutinefunction(function)
        return cast("F", recorded_async if is_async else recorded)

    def _last(self) -> Action:
        """The action that ends: of several that use this very object, the one of this context."""
        current = current_scope()
        mine = [action for action in self._underway if action.is_of(current)]
        action = (mine or self._underway)[-1]
        self._underway.remove(action)
        return action
