"""Delivers the spools that dead processes of this service left."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.queue_entries import Entry, read_back
from otel_audit.delivery.spool import AbandonedSpool, FrameKind, RecoveryReport

_logger = logging.getLogger(__name__)

_MOST_NAMED: Final = 10
"""Records that a line of the log names."""

Adopt = Callable[[], list[AbandonedSpool]]
WriteBatch = Callable[[Sequence[Entry]], Awaitable[bool]]
Known = Callable[[Sequence[str]], Awaitable[set[str] | None]]


class RecoveredEntry(NamedTuple):
    """An entry of a dead process, the id that the spool knows it by, and whether it is whole."""

    entry: Entry
    record_id: str
    whole: bool


def batches_of(
    spool: AbandonedSpool, size: int, counters: Counters
) -> Iterator[list[RecoveredEntry]]:
    """Read the records of a dead process: closed ones whole, interrupted ones as far as known.

    Args:
        spool: What it left.
        size: Records in a batch.
        counters: Where what cannot be read is counted as dropped.

    Yields:
        Batches, in order. The record of an action that was cut down has outcome ``unknown`` from
        the start, and phase ``started`` if it had no answer.
    """
    found = _entries(spool)
    while batch := list(islice(found, size)):
        yield batch
    report = spool.report
    if not report.clean:
        counters.add("dropped", report.lost + len(report.unreadable))
        _logger.critical(
            "The spool of a dead process is damaged: %s: %d places altered or gone, %d files "
            "unreadable; %d records there are lost, as far as can be said, and the damaged files "
            "are kept (otel-audit quarantine)%s",
            spool.path, report.damaged_frames, len(report.unreadable), report.lost, _named(report),
        )  # fmt: skip


def _named(report: RecoveryReport) -> str:
    """Name the lost records whose ids can still be read, the first ones."""
    names = sorted({damage.record_id for damage in report.damages if damage.record_id})
    if not names:
        return ""
    further = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"; lost records whose ids can be read: {', '.join(names[:_MOST_NAMED])}{further}"


def _entries(spool: AbandonedSpool) -> Iterator[RecoveredEntry]:
    for recovered in spool.records():
        entry = read_back(recovered.record_id, recovered.payload, recovered.changed)
        yield RecoveredEntry(entry, recovered.record_id, recovered.kind is FrameKind.CLOSED)


class Recovery:
    """Adopts the spools of dead processes, and brings what is in them to the store.

    A spool that cannot be removed, because a part of it cannot be read, is delivered once and then
    left alone by this process, else it would come again every few seconds.
    """

    def __init__(self, adopt: Adopt, counters: Counters) -> None:
        """Remember what the records are delivered with.

        Args:
            adopt: Locks the spools of dead processes.
            counters: Where what cannot be read is counted.
        """
        self._adopt = adopt
        self._counters = counters
        self._left_alone: set[Path] = set()

    def finds_any(self) -> bool:
        """Whether dead processes have left anything that can be adopted now; leaves it there."""
        spools = self._adopt()
        for spool in spools:
            spool.release()
        return any(spool.path not in self._left_alone for spool in spools)

    async def deliver(self, write: WriteBatch, known: Known, size: int) -> None:
        """Deliver what can be adopted now, and remove it.

        Args:
            write: Stores a batch, however long it takes; False where delivery ends before that.
            known: Returns which records the store has, of any tenant, however long it takes;
                None if delivery ends before that.
            size: Entries in a batch.
        """
        with ExitStack() as held:
            spools = self._adopt()
            for spool in spools:
                held.callback(spool.release)
            for spool in spools:
                if spool.path in self._left_alone:
                    continue
                if not await self._deliver(spool, write, known, size):
                    return

    async def _deliver(
        self, spool: AbandonedSpool, write: WriteBatch, known: Known, size: int
    ) -> bool:
        recovered = 0
        for batch in batches_of(spool, size, self._counters):
            entries = await _without_stored(batch, known)
            if entries is None or (entries and not await write(entries)):
                return False
            recovered += len(entries)
        if not spool.remove():
            self._left_alone.add(spool.path)
        if recovered:
            _logger.warning("Delivered %d audit records that a dead process had left", recovered)
        return True


async def _without_stored(batch: Sequence[RecoveredEntry], known: Known) -> list[Entry] | None:
    """Leave out what is not whole in the spool alone: its record went to the store from memory.

    What is known of such an action here may lack its tenant or be another text, and would be a
    second row then.
    """
    cut_down = [found.record_id for found in batch if not found.whole]
    stored = await known(cut_down) if cut_down else set()
    if stored is None:
        return None
    return [found.entry for found in batch if found.whole or found.record_id not in stored]
