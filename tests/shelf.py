"""A sink in memory, for whatever brings records to sinks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from otel_audit.delivery.sink import Refused, Written
from otel_audit.record import AuditRecord


class Shelf:
    """Keeps what it is given, and can be told to fail, to take long, or to keep others waiting."""

    def __init__(self) -> None:
        self.stored: list[AuditRecord] = []
        self.quarantined: list[Refused] = []
        self.asked: list[int] = []
        """How many records each write had, also of those that are under way or have failed."""
        self.failures: list[Exception] = []
        self.held = False
        self.takes = 0.0
        self.closed = 0
        self.threads: set[str] = set()

    async def check(self) -> None: ...

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        self.threads.add(threading.current_thread().name)
        self.asked.append(len(records))
        while self.held:  # noqa: ASYNC110 - another thread says so
            await asyncio.sleep(0.001)
        await asyncio.sleep(self.takes)
        if self.failures:
            raise self.failures.pop(0)
        self.stored += records
        return Written(stored=len(records))

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        self.quarantined += refused

    async def known(self, record_ids: Sequence[str]) -> set[str]:
        return set()

    async def close(self) -> None:
        self.closed += 1


def no_more_threads(_: threading.Thread) -> None:
    """In place of `threading.Thread.start`: what a limit of processes does."""
    raise RuntimeError("can't start new thread")
