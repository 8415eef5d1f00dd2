"""Strict delivery for what is recorded by hand: the store has an intent before a block begins."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from opentelemetry import trace

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.record import AuditRecord

_logger = logging.getLogger("otel_audit.action")

Intended: TypeAlias = Callable[[AuditRecord, trace.Span | None], Awaitable[bool]]
"""Brings an intent to the store; says whether the store has it for sure."""


async def is_stored(intended: Intended, intent: AuditRecord, span: trace.Span | None) -> bool:
    """Wait until the store has an intent, or it is clear that it has not. Raises no failure."""
    try:
        return await intended(intent, span)
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known to be stored
        log_limited(_logger, "intent", "An intent could not be stored", error=error)
        return False


def is_stored_blocking(intended: Intended, intent: AuditRecord, span: trace.Span | None) -> bool:
    """As `is_stored`, for a plain ``with``; it holds up its thread, but never an event loop.

    Returns:
        True without an intent where an event loop runs in this thread, which is logged: there,
        only ``async with`` can wait.
    """
    if _loop_runs_here():
        log_limited(
            _logger, "intent in a coroutine",
            "A block in a coroutine begins without an intent: use `async with otel_audit.audit(…)`",
            level=logging.WARNING,
        )  # fmt: skip
        return True
    answers: list[bool] = []

    def ask() -> None:
        async def wait() -> None:
            answers.append(await is_stored(intended, intent, span))

        asyncio.run(wait())

    # in a thread of its own: asyncio.run would take away the caller's own event loop
    thread = threading.Thread(target=ask, name="otel-audit-intent", daemon=True)
    thread.start()
    thread.join()
    return answers == [True]


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
