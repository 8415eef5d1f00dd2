"""What waits for the store: in memory as far as it fits, and on disk where there is a spool."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec

from otel_audit.complaints import complain
from otel_audit.errors import OtelAuditError
from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.spool import Kind, Position, Spool, SpoolError, SpoolFullError, reopen
from otel_audit.record import AuditRecord, to_json

_logger = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(AuditRecord).decode


class Item(NamedTuple):
    """A finished record that waits; its position in the spool, None where it is not on disk."""

    record: AuditRecord
    position: Position | None


class Backlog:
    """Records that the store has not acknowledged. The caller's lock guards what says so.

    A record on disk that does not fit into memory is read back when memory has been emptied.
    """

    def __init__(
        self, spool: Callable[[], Spool] | None, counters: Counters, queue_size: int
    ) -> None:
        """Open the spool, if there is to be one.

        Args:
            spool: Opens it.
            counters: Where failures of the spool are counted.
            queue_size: Records kept in memory.

        Raises:
            ConfigurationError: The spool cannot be kept.
        """
        self._counters = counters
        self._queue_size = queue_size
        self._memory: deque[Item] = deque()
        self._underway = 0
        self._spilled = False
        self._opening = threading.Lock()
        self._at_rest = False
        self.spool = None if spool is None else spool()

    def after_fork(self) -> None:
        """Begin anew in a child: what waits is the parent's to deliver."""
        self._opening = threading.Lock()
        self._memory.clear()
        self._underway = 0
        self._spilled = False

    @property
    def depth(self) -> int:
        """Records that wait, those of a write under way included."""
        held = len(self._memory) + self._underway
        spool = self.open_spool
        return held if spool is None else max(held, spool.pending)

    @property
    def ready(self) -> int:
        """Records in memory."""
        return len(self._memory)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._memory) or self._spilled

    def note(self, kind: Kind, record: AuditRecord) -> None:
        """Write down what is known of an action that is not over; nothing without a spool.

        Raises:
            SpoolFullError: A bound of the spool is reached, and the action has only begun.
        """
        self._note(kind, record.record_id, to_json(record))

    def discard(self, record_id: str) -> None:
        """Take back what was written down of an action that is not recorded after all."""
        self._note(Kind.DISCARDED, record_id, b"")

    def _note(self, kind: Kind, record_id: str, payload: bytes) -> None:
        spool = self._own_spool()
        if spool is None:
            return
        try:
            spool.append(kind, record_id, payload)
        except (SpoolError, ValueError) as error:
            if kind is Kind.OPENED and isinstance(error, SpoolFullError):
                raise
            self._complain_of_spool(error)

    def put(self, record: AuditRecord) -> bool:
        """Take over a finished record; call it under the lock.

        Returns:
            Whether it is kept; False where it is neither on disk nor fits into memory.
        """
        position = self._append(record)
        if len(self._memory) < self._queue_size:
            self._memory.append(Item(record, position))
            return True
        self._spilled = self._spilled or position is not None
        return position is not None

    def take(self, count: int) -> list[Item]:
        """Take records out of memory, to be written; call it under the lock."""
        number = min(len(self._memory), count)
        self._underway = number
        return [self._memory.popleft() for _ in range(number)]

    def take_from_disk(self, count: int) -> Iterator[list[Item]]:
        """Read back everything that waits on disk, a batch at a time; blocks, needs no lock."""
        spool = self.open_spool
        if spool is None:
            return
        self._spilled = False
        try:
            found = (Item(_decode(kept.payload), kept.position) for kept in spool.read())
            while batch := list(islice(found, count)):
                yield batch
        except BaseException:
            self._spilled = True
            raise

    def done(self, items: Iterable[Item]) -> None:
        """Let go of records that the store has acknowledged."""
        self._underway = 0
        spool = self.open_spool
        if spool is not None:
            spool.acknowledge(item.position for item in items if item.position is not None)

    @property
    def open_spool(self) -> Spool | None:
        """The spool, if there is one and this process has it open."""
        spool = self.spool
        return None if spool is None or spool.forked or self._at_rest else spool

    def rest(self) -> None:
        """Remove the spool's files if nothing needs them; it is opened again when something does.

        Call it under the lock.
        """
        with self._opening:
            spool = self.open_spool
            if spool is not None and self.depth == 0 and spool.open_actions == 0:
                self._at_rest = True
                spool.close()

    def close(self) -> int:
        """End in order; what is on disk stays there for the next process.

        Returns:
            Records that are lost, because they were only in memory.
        """
        lost = sum(1 for item in self._memory if item.position is None)
        if self.spool is None:
            lost += self._underway
        elif self.open_spool is not None:
            self.open_spool.close()
        self._memory.clear()
        self._underway = 0
        return lost

    def _own_spool(self) -> Spool | None:
        """The spool of this very process: a forked child, or one after a rest, opens its own."""
        spool = self.spool
        if spool is None or not (spool.forked or self._at_rest):
            return spool
        with self._opening:
            if self.spool is not None and (self.spool.forked or self._at_rest):
                try:
                    self.spool = reopen(self.spool)
                    self._at_rest = False
                except OtelAuditError as error:
                    self.spool = None
                    _logger.critical("Records wait in memory only: %s", error)
        return self.spool

    def _append(self, record: AuditRecord) -> Position | None:
        spool = self._own_spool()
        if spool is None:
            return None
        try:
            return spool.append(Kind.CLOSED, record.record_id, to_json(record))
        except (SpoolError, ValueError) as error:
            # a ValueError: too long for a frame, or no UTF-8; the store has its own ways with that
            self._complain_of_spool(error)
        return None

    def _complain_of_spool(self, error: Exception) -> None:
        self._counters.add("spool_errors")
        complain(
            _logger, "spool",
            "What is known of an action is in memory only, because the spool did not take it: %s",
            error if isinstance(error, SpoolError) else "it cannot be written down",
            level=logging.CRITICAL, error=error,
        )  # fmt: skip
