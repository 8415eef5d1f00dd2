"""The life cycle of an action: open, intent, closed, late; and what happens outside any.

HTTP requests, WebSockets and actions by hand go through the same steps. They differ in what they
know: each says with `Lifecycle._known` what its record would be by now. A request has one step
more, answered, before it is closed: ``_answered`` in ``http/exchange.py``.

The bare fact comes first: ids, times, method, path, status and outcome cannot fail. All else
describes it. A part that fails is left out, and no other (`FailedParts`).
An action that takes long gets a record that it has started (`Watchdog`), so that none runs unseen.

Nothing here raises anything of ours. A step that fails is counted and logged, and the application
continues; where that costs a record, the loss is counted, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextvars import Token
from itertools import chain
from typing import TYPE_CHECKING, Protocol, TypeVar

from otel_audit import scope as scopes
from otel_audit._util.aio import Timer, call_after, in_slices, running_trio
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.action.compose import change_records, changes_outside, with_continuations
from otel_audit.action.failed_parts import FailedParts
from otel_audit.scope import AuditScope, PendingScope

if TYPE_CHECKING:
    from otel_audit._util.spill import SpilledChanges
    from otel_audit.action.compose import Ending
    from otel_audit.action.ports import Close, Ports
    from otel_audit.record import AuditRecord, TransactionOutcome

_logger = logging.getLogger("otel_audit.action")

_Known = TypeVar("_Known")


class Lifecycle(ABC):
    """One action from its beginning to its last record."""

    def __init__(self, ports: Ports, audit: AuditScope, parts: FailedParts) -> None:
        """Start a lifecycle in which nothing has been recorded yet.

        Args:
            ports: What takes the records.
            audit: The known facts of the action.
            parts: Takes note of what cannot be described.
        """
        self._ports = ports
        self._audit = audit
        self._parts = parts
        self._token: Token[AuditScope | PendingScope | None] | None = None
        self._further: Iterator[None] | None = None
        self._is_released = False
        audit.at_commit = self._records_at_commit

    @abstractmethod
    def _known(self, *, at_commit: bool) -> AuditRecord:
        """Make the record of what is known now, to derive records of single transactions from.

        Args:
            at_commit: Whether a transaction is about to be committed within the action; else one
                has ended after it.
        """

    def _write_opened(
        self, begin: Callable[[_Known], bool], known: _Known, *, refuse: bool
    ) -> bool:
        """Open: write down that the action has begun, so that a crash leaves a trace of it.

        Args:
            begin: Writes it down; False where the action must be refused.
            known: What it is made of, such as a record of phase ``started``.
            refuse: Whether an error of ours refuses it, too.
        """
        try:
            return begin(known)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_failure(error)
            return not refuse

    async def _store_intent(self, intent: AuditRecord) -> bool:
        """Intent: wait until the store has it; False where that is not known for sure."""
        if self._ports.intended is None:
            return True
        try:
            return await self._ports.intended(intent, self._audit.server_span)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known to be stored
            self._count_failure(error)
            return False

    def _enter(self) -> None:
        """Make the action the current one."""
        self._token = scopes.enter(self._audit)

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

    def _end_scope(self) -> None:
        """Close the scope, after which the outcome of its transactions is known.

        Commits that the database has answered are assigned first, so that they are in the action's
        own record. What ends after this gets a record of its own.
        """
        try:
            self._ports.report_commits()
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._parts.fail("changes", error)
        self._audit.on_late_changes = self._record_late
        self._audit.close()

    def _hand_over(self, make: Callable[[], AuditRecord]) -> AuditRecord | None:
        """Closed: make the action's own record and hand it over.

        Returns:
            The record; None if it is lost. Those of further changes come with `_hand_over_rest`.
        """
        try:
            record = make()
            self._ports.recorder.closed(record, self._audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._lost(error)
            return None
        self._continue(record)
        return record

    def _hand_over_ending(self, close: Close, ending: Ending) -> AuditRecord | None:
        """As `_hand_over`, of an action whose answer was written down: only what has changed."""
        try:
            record = close(ending, self._audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._lost(error)
            return None
        self._continue(record)
        return record

    def _continue(self, record: AuditRecord) -> None:
        if self._audit.overflow_changes:
            continuations = with_continuations(record, self._audit.overflow_changes)
            next(continuations)  # that is the record itself
            self._further = self._each(continuations)

    def _hand_over_rest(self) -> None:
        if self._further is not None:
            for _ in self._further:
                pass

    async def _hand_over_rest_async(self) -> None:
        """As `_hand_over_rest`, but yields to the event loop between two records."""
        if self._further is not None:
            # the action's own record was handed over just now: a turn comes before the next one
            await in_slices(chain((None,), self._further))

    def _release(self) -> None:
        """Hold the scope weakly from now on; the scope holds this, for changes that come later.

        Until then each keeps the other, and such a cycle is freed by the garbage collector alone:
        after each action, together with all that it refers to.
        """
        if not self._is_released:
            self._is_released = True
            self._audit = weakref.proxy(self._audit)

    def _each(self, records: Iterable[AuditRecord]) -> Iterator[None]:
        """Hand over one record with each step."""
        try:
            for one in records:
                self._ports.recorder.closed(one, self._audit.server_span)
                yield
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._lost(error)

    def _records_at_commit(self, changes: SpilledChanges) -> Iterator[AuditRecord]:
        """Make the records of a transaction that is about to be committed, which takes them along.

        Raises:
            Exception: They cannot be made: then the transaction must not be committed either.
        """
        known = self._known(at_commit=True)
        return change_records(known, self._audit, "committed", changes, self._parts)

    def _record_late(
        self, audit: AuditScope, outcome: TransactionOutcome, changes: SpilledChanges
    ) -> None:
        """Late: a transaction has ended after the action's record; it gets one of its own."""
        try:
            known = self._known(at_commit=False)
            for one in change_records(known, audit, outcome, changes, self._parts):
                self._ports.recorder.closed(one, audit.server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._lost(error)

    def _count_failure(self, error: Exception) -> None:
        """Count and log a failure of ours."""
        self._ports.on_error()
        log_limited(_logger, "action", "An action was not recorded in full", error=error)

    def _lost(self, error: Exception) -> None:
        """Count and log a failure of ours that costs a record."""
        self._count_failure(error)
        self._ports.on_loss(error)


def record_outside(
    ports: Ports,
    outcome: TransactionOutcome,
    changes: SpilledChanges,
    service: Callable[[], str],
    begun_in: str | None,
) -> None:
    """Record a transaction that no action contained. Never raises.

    Args:
        ports: What takes the records.
        outcome: How the transaction ended.
        changes: What it changed.
        service: Names the process.
        begun_in: Id of the action that began the task which has written, and which is over.
    """
    try:
        parts = FailedParts(ports.on_error)
        for one in changes_outside(outcome, changes, service, parts, begun_in=begun_in):
            ports.recorder.closed(one, None)
    except Exception as error:  # noqa: BLE001 - must not reach the application
        ports.on_error()
        ports.on_loss(error)


class Watchdog:
    """Notifies actions that have been under way for long: one timer a loop, not one an action."""

    def __init__(self, after: float) -> None:
        """Set the time.

        Args:
            after: Seconds.
        """
        self._after = after
        self._of_thread = threading.local()

    def begin(self, act: Callable[[], None]) -> WatchedAction | None:
        """Call a function when the time is over.

        Args:
            act: Is called on the event loop, in an empty context; must not raise.

        Returns:
            The entry, to end it before that; None if no event loop runs here.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if running_trio() is None:
                return None
            timer = call_after(self._after, act)
            return None if timer is None else _Alone(timer)
        board: _LoopWatch | None = getattr(self._of_thread, "board", None)
        if board is None or board.loop is not loop:
            board = self._of_thread.board = _LoopWatch(loop, self._after)
        board.add(act)
        return board


class WatchedAction(Protocol):
    """An action's entry at the watchdog."""

    def end(self, act: Callable[[], None]) -> None:
        """Cancel the call."""


class _Alone:
    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def end(self, act: Callable[[], None]) -> None:  # noqa: ARG002 - there is only the one
        self._timer.cancel()


class _LoopWatch:
    """The actions under way on one event loop, in the order they began."""

    def __init__(self, loop: asyncio.AbstractEventLoop, after: float) -> None:
        self.loop = loop
        self._after = after
        self._due: dict[Callable[[], None], float] = {}
        self._is_set = False

    def add(self, act: Callable[[], None]) -> None:
        due = self.loop.time() + self._after
        self._due[act] = due
        if not self._is_set:
            self._set(self._after)

    def end(self, act: Callable[[], None]) -> None:
        self._due.pop(act, None)

    def _set(self, seconds: float) -> None:
        self._is_set = call_after(seconds, self._look) is not None

    def _look(self) -> None:
        self._is_set = False
        now = self.loop.time()
        for act, due in list(self._due.items()):
            if due > now:
                self._set(due - now)
                return
            del self._due[act]
            act()
