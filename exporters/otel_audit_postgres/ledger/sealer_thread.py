"""Sealing within an application's own process, where its role may: for simple installations.

Weaker than a separate sealer: whoever takes over the application has the key, too.
"""

from __future__ import annotations

import asyncio
import logging

from otel_audit._util.aio import wait_at_most
from otel_audit._util.loop_thread import LoopThread, ThreadState
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import OtelAuditError
from otel_audit_postgres.ledger.sealer import LedgerError, Sealer

_logger = logging.getLogger(__name__)

_AFTER_A_REFUSAL = 60.0
"""Seconds until the next try, where a person has to mend something first."""


class SealingThread:
    """A thread with its own event loop that seals until it is stopped. It never raises."""

    def __init__(self, sealer: Sealer, interval: float) -> None:
        """Remember the sealer; the thread is not started yet.

        Args:
            sealer: Used by this thread alone.
            interval: Seconds between two rounds where little waits.
        """
        self._sealer = sealer
        self._interval = interval
        self._stopping = False
        self._thread = LoopThread("otel-audit-seal", self._seal)

    @property
    def state(self) -> ThreadState:
        """The thread's state."""
        found = self._thread.state
        # the thread may live, and the ledger not be sealed all the same
        return found._replace(failure=found.failure or self._sealer.failure)

    def start(self) -> None:
        """Begin to seal."""
        self._thread.start()

    def ensure(self) -> None:
        """Replace the thread if it is gone. Never raises."""
        self._thread.ensure()

    def stop(self, timeout: float) -> None:
        """Seal what waits, once more, and end; give up after so many seconds."""
        self._stopping = True
        self._thread.end()
        self._thread.join(timeout)

    async def _seal(self) -> None:
        # where this starts again: its connection was of a loop that is gone
        await self._sealer.close()
        stop = asyncio.Event()
        watching = asyncio.create_task(self._watch(stop))
        try:
            while not stop.is_set():
                await self._until_refused(stop)
        finally:
            watching.cancel()
            await self._sealer.close()

    async def _watch(self, stop: asyncio.Event) -> None:
        wake = self._thread.wake
        while not self._stopping:
            await wake.wait()
            wake.clear()
        stop.set()

    async def _until_refused(self, stop: asyncio.Event) -> None:
        try:
            await self._sealer.run(stop, self._interval)
        except LedgerError as error:
            log_limited(_logger, "refused", "Sealing is refused: %s", error)
        except OtelAuditError as error:
            log_limited(_logger, "unfit", "Sealing is not possible: %s", error)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            log_limited(_logger, "failed", "Sealing failed, and is tried again", error=error)
        await wait_at_most(stop, _AFTER_A_REFUSAL)
