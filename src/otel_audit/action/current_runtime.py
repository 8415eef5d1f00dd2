"""The process's current runtime for manual recording, and the warning without one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_audit.errors import ConfigurationError
from otel_audit.setting_values import PREFIX, is_set_false, is_set_true

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from otel_audit.action.ports import Intended, Recorder
    from otel_audit.record import AuditRecord, Receipt
    from otel_audit.redaction import Redactor
    from otel_audit.scope import Origin

_logger = logging.getLogger("otel_audit")

made_last: ContextVar[str | None] = ContextVar("otel_audit_made_last", default=None)
"""Id of the record that was made by hand last, in this task or thread."""


@dataclass(frozen=True, slots=True)
class CurrentRuntime:
    """The runtime's parts that manual recording needs.

    Attributes:
        recorder: Takes the records.
        redactor: Takes secrets out.
        aliases: The application's roles to canonical ones.
        service: Name of the process, which is the actor if there is no other.
        report_commits: Assigns commits that the database has answered to their actions.
        around: Returns actor and tenant where no action is under way.
        opened: Called for each action that begins, before anything else.
        begin: Writes down that an action has begun; False where it must not.
        on_error: Called for each failure of ours.
        on_loss: Called for each failure of ours that costs a record.
        receipt: Waits until the store has a record, at most so many seconds; None: there is no
            store that says so.
        enlist: Writes a record in the transaction of a session of the application, and returns
            something to await for an asynchronous one; None: the settings do not allow it.
        intended: Brings the intent of an action to the store before it begins; None: none is due.
        required: Whether an action that cannot be recorded must not begin.
    """

    recorder: Recorder
    redactor: Redactor
    aliases: Mapping[str, str]
    service: Callable[[], str]
    report_commits: Callable[[], None]
    around: Callable[[], Origin]
    opened: Callable[[], None]
    begin: Callable[[AuditRecord, Span | None], bool]
    on_error: Callable[[], None]
    required: bool
    enlist: Callable[[Any, AuditRecord, Span | None], Any] | None = None
    intended: Intended | None = None
    on_loss: Callable[[Exception], None] = lambda _error: None
    receipt: Callable[[str, float], Awaitable[Receipt]] | None = None


class _State:
    """The one of this process."""

    in_use: CurrentRuntime | None = None
    warned = False


def use(runtime: CurrentRuntime | None) -> None:
    """Set the runtime through which manual recording records; None: end it."""
    _State.in_use = runtime
    _State.warned = False


def leave_out() -> None:
    """Record nothing by hand, without a warning, because auditing is off on purpose."""
    _State.warned = True


def in_use() -> CurrentRuntime | None:
    """Return what to record through; None if nothing is audited, which is logged once.

    Raises:
        ConfigurationError: Nothing is audited, and ``OTEL_AUDIT_REQUIRED`` is set.
    """
    if _State.in_use is None:
        _warn_not_audited()
    return _State.in_use


def _warn_not_audited() -> None:
    if is_set_true("required"):
        raise ConfigurationError(
            f"{PREFIX}REQUIRED is set, and nothing is audited in this process: call "
            "otel_audit.instrument() before the first otel_audit.audit() or otel_audit.emit()"
        )
    if _State.warned or is_set_false("enabled"):
        return
    _State.warned = True
    _logger.warning(
        "WHAT IS RECORDED BY HAND IS LOST: nothing is audited in this process; call "
        "otel_audit.instrument() first, or set %sENABLED=false if that is meant",
        PREFIX,
    )
