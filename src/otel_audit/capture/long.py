"""Actions that take long: a record says that they have started, so that none runs unseen."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable

import msgspec

from otel_audit.ids import uuid7
from otel_audit.record import AuditRecord


def call_after(seconds: float, act: Callable[[], None]) -> asyncio.TimerHandle | None:
    """Have something done when a time is over, unless the handle is cancelled before.

    Args:
        seconds: The time.
        act: Is called on the event loop, in an empty context; must not raise.

    Returns:
        The handle; None where no asyncio loop runs.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    # an empty context: what the request's own holds is not kept alive by the clock
    return loop.call_later(seconds, act, context=contextvars.Context())


def record_started(known: AuditRecord) -> AuditRecord:
    """Make the record of an action that still runs.

    Args:
        known: What its record would be by now.

    Returns:
        A record of phase ``started`` with an id of its own and the same action id. Changes are
        left to the record at the end, which knows what became of them.
    """
    return msgspec.structs.replace(
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
