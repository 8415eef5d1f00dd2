"""The interfaces between the capture of actions and the other parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from opentelemetry import trace

from otel_audit.action.compose import Ending, Opening
from otel_audit.record import AuditRecord

Intended: TypeAlias = Callable[[AuditRecord, trace.Span | None], Awaitable[bool]]
"""Brings an intent to the store; says whether the store has it for sure."""


Close: TypeAlias = Callable[[Ending, trace.Span | None], AuditRecord]
"""Closes an answered action by what has changed since; gives the record that is handed over."""


class Recorder(Protocol):
    """Takes what is known of an action; keeps it in microseconds and never raises."""

    def opened(self, begun: AuditRecord | Opening, server_span: trace.Span | None, /) -> bool:
        """An action has begun; False where it must be refused, as it could not be recorded."""

    def answered(self, record: AuditRecord, server_span: trace.Span | None, /) -> Close | None:
        """The client is about to see the end of its answer.

        Returns:
            What closes the action by the fields that changed since; None: `closed` is needed.
        """

    def discarded(self, record_id: str, /) -> None:
        """The opened action is not recorded after all."""

    def closed(self, record: AuditRecord, server_span: trace.Span | None, /) -> None:
        """The action is over, and its record is final."""


class NoRecorder:
    """A recorder that drops records, for ``OTEL_AUDIT_EXPORTER=none`` and without auditing."""

    def opened(self, _begun: AuditRecord | Opening, _span: trace.Span | None, /) -> bool:
        """Accept the record, and keep nothing."""
        return True

    def answered(self, _record: AuditRecord, _span: trace.Span | None, /) -> None:
        """Keep nothing."""

    def discarded(self, _record_id: str, /) -> None:
        """Drop the record."""

    def closed(self, _record: AuditRecord, _span: trace.Span | None, /) -> None:
        """Drop the record."""


class Ports(Protocol):
    """The receivers of an action's reports."""

    @property
    def recorder(self) -> Recorder:
        """Takes the records."""

    @property
    def report_commits(self) -> Callable[[], None]:
        """Assigns commits that the database has answered to their actions."""

    @property
    def on_error(self) -> Callable[[], None]:
        """Called for each failure of ours."""

    @property
    def on_loss(self) -> Callable[[Exception], None]:
        """Called for each failure of ours that costs a record."""

    @property
    def intended(self) -> Intended | None:
        """Brings the intent of an action to the store before it begins; None: none is due."""


def do_nothing(*_: object) -> None:
    """Do nothing."""


class NoPorts:
    """The ports where nothing is audited."""

    recorder: Recorder = NoRecorder()
    report_commits: Callable[[], None] = staticmethod(do_nothing)
    on_error: Callable[[], None] = staticmethod(do_nothing)
    on_loss: Callable[[Exception], None] = staticmethod(do_nothing)
    intended: Intended | None = None
