"""Sealing within an application's own process, where its role may: for simple installations.

Weaker than a sealer apart: whoever takes over the application holds the key, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

from otel_audit.complaints import complain
from otel_audit.errors import OtelAuditError
from otel_audit_postgres.ledger.sealer import LedgerError, Sealer

_logger = logging.getLogger(__name__)

_AFTER_A_REFUSAL = 60.0


class SealingThread:
    """A thread with its own event loop that seals until it is stopped. It never raises."""

    def __init__(self, sealer: Sealer, interval: float) -> None:
        """Remember what to run; nothing is started yet.

        Args:
            sealer: Used by this thread alone.
            interval: Seconds between two rounds where little waits.
        """
        self._sealer = sealer
        self._interval = interval
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="otel-audit-seal", daemon=True)

    def start(self) -> None:
        """Begin to seal."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Seal what waits, once more, and end; give up after so many seconds."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):  # it has just ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._seal())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    async def _seal(self) -> None:
        try:
            while not self._stop.is_set():
                await self._until_refused()
        finally:
            await self._sealer.close()

    async def _until_refused(self) -> None:
        try:
            await self._sealer.run(self._stop, self._interval)
        except LedgerError as error:
            complain(_logger, "refused", "Sealing is refused: %s", error)
        except OtelAuditError as error:
            complain(_logger, "unfit", "Sealing is not possible: %s", error)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            complain(_logger, "failed", "Sealing failed, and is tried again", error=error)
        if self._stop.is_set():
            return
        try:
            async with asyncio.timeout(_AFTER_A_REFUSAL):
                await self._stop.wait()
        except TimeoutError:
            return
