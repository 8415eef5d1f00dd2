"""Strict delivery in a plain ``with``: wait for an intent, but never on an event loop."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from otel_audit._util.aio import is_in_loop
from otel_audit._util.loop_thread import run_in_thread
from otel_audit._util.ratelimited_log import log_limited

_logger = logging.getLogger("otel_audit.action")


def wait_for_intent(ask: Callable[[], Awaitable[bool]]) -> bool:
    """Wait until the store has an intent; it holds up its thread, but never an event loop.

    Args:
        ask: Waits for it; raises nothing.

    Returns:
        Whether the store has it. True without an intent where an event loop runs in this thread,
        which is logged: there, only ``async with`` can wait.
    """
    if is_in_loop():
        log_limited(
            _logger, "intent in a coroutine",
            "A block in a coroutine begins without an intent: use `async with otel_audit.audit(…)`",
            level=logging.WARNING,
        )  # fmt: skip
        return True

    async def answer() -> bool:
        return await ask()

    # in a thread of its own: asyncio.run would take away the caller's own event loop
    done = run_in_thread("otel-audit-intent", answer)
    return done.exception() is None and done.result()
