"""Records out of the spools that dead processes of this service left."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.entries import Entry, read_back
from otel_audit.pipeline.spool import AbandonedSpool

_logger = logging.getLogger(__name__)

Adopt = Callable[[], list[AbandonedSpool]]
Write = Callable[[Sequence[Entry]], Awaitable[bool]]


def batches_of(spool: AbandonedSpool, size: int, counters: Counters) -> Iterator[list[Entry]]:
    """Read the records of a dead process: closed ones as they are, cut-down ones as far as known.

    Args:
        spool: What it left.
        size: Records in a batch.
        counters: Where what cannot be read is counted as dropped.

    Yields:
        Batches, in order. The record of an action that was cut down says ``unknown``.
    """
    found = _entries(spool)
    while batch := list(islice(found, size)):
        yield batch
    report = spool.report
    if not report.clean:
        counters.add("dropped", report.damaged_frames + len(report.unreadable))
        _logger.critical(
            "The spool of a dead process is damaged: %s: %d places altered, %d files unreadable; "
            "the records there are lost",
            spool.path, report.damaged_frames, len(report.unreadable),
        )  # fmt: skip


def _entries(spool: AbandonedSpool) -> Iterator[Entry]:
    for recovered in spool.records():
        yield read_back(recovered.record_id, recovered.payload)


class Recovery:
    """Adopts the spools of dead processes, and brings what is in them to the store.

    A spool that cannot be removed, because a part of it cannot be read, is delivered once and then
    left alone by this process, else it would come again every few seconds.
    """

    def __init__(self, adopt: Adopt, counters: Counters) -> None:
        """Take what adopts.

        Args:
            adopt: Locks the spools of dead processes.
            counters: Where what cannot be read is counted.
        """
        self._adopt = adopt
        self._counters = counters
        self._left_alone: set[Path] = set()

    async def deliver(self, write: Write, size: int) -> None:
        """Deliver what can be adopted now, and remove it.

        Args:
            write: Stores a batch, however long it takes; False where delivery ends before that.
            size: Entries in a batch.
        """
        with ExitStack() as held:
            spools = self._adopt()
            for spool in spools:
                held.callback(spool.release)
            for spool in spools:
                if spool.path in self._left_alone:
                    continue
                if not await self._deliver(spool, write, size):
                    return

    async def _deliver(self, spool: AbandonedSpool, write: Write, size: int) -> bool:
        recovered = 0
        for batch in batches_of(spool, size, self._counters):
            if not await write(batch):
                return False
            recovered += len(batch)
        if not spool.remove():
            self._left_alone.add(spool.path)
        if recovered:
            _logger.warning("Delivered %d audit records that a dead process had left", recovered)
        return True
