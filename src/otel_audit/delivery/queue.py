"""The queue for the store: in memory as far as it fits, and on disk if there is a spool."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import count, islice, takewhile
from typing import Final

import msgspec

from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.queue_entries import Entry, read_back
from otel_audit.delivery.spool import (
    FrameKind,
    Position,
    Spool,
    SpoolClosedError,
    SpooledRecord,
    SpoolError,
    SpoolWriteError,
    reopen,
)
from otel_audit.errors import OtelAuditError
from otel_audit.record import AuditRecord, to_json

_logger = logging.getLogger(__name__)

_NOT_WRITABLE = (ValueError, TypeError, RecursionError)
"""Too long for a frame, no UTF-8, no JSON, too deep: the store sanitizes it or quarantines it."""

_MANY_CHANGES: Final = 200
"""Changes of one record that is not kept in memory as long as it is on disk."""

_OPENING_PAUSE: Final = 1.0
"""Seconds between two tries to open a spool that cannot be opened."""


class ChangedSince(msgspec.Struct, frozen=True, gc=False):
    """What has changed of an entry since the frame that was written with its answer.

    Attributes:
        text: As JSON.
        answered: Where the spool has that frame.
        answered_size: Bytes of its payload.
    """

    text: bytes
    answered: Position
    answered_size: int


class Item(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A finished entry that waits.

    Attributes:
        entry: What is to be written.
        position: Where the spool has it; None if it is not on disk.
        size: Bytes of it as JSON; 0 where that cannot be said.
        spool: Which spool has it; a later one knows nothing of its position.
        number: Identifies it among all in memory; 0 if it was read back from disk.
    """

    entry: Entry
    position: Position | None
    size: int = 0
    spool: Spool | None = None
    number: int = 0


class RecordQueue:
    """Entries that the store has not acknowledged. Methods marked so need the caller's lock.

    What is on disk and does not fit into memory is read back when memory has been emptied; until
    then everything goes to disk alone, so that nothing overtakes it for ever.

    An entry leaves memory when it is done with, not when it is taken: a thread that ends in
    between, at whatever place, has lost nothing. All that `done` does may be done twice.

    Attributes:
        spool: Where entries are kept on disk; None: they are kept in memory alone.
        at_next_append: Called once, after the next frame was appended; must not block or raise.
    """

    def __init__(
        self, spool: Callable[[], Spool] | None, counters: Counters, queue_size: int
    ) -> None:
        """Open the spool, if there is to be one.

        Args:
            spool: Opens it.
            counters: Where failures of the spool are counted.
            queue_size: Entries kept in memory.

        Raises:
            ConfigurationError: The spool cannot be kept.
        """
        self._counters = counters
        self._queue_size = queue_size
        self._next_opening = 0.0
        self.spool = None if spool is None else spool()
        self.at_next_append: Callable[[], None] | None = None
        self.after_fork()

    def after_fork(self) -> None:
        """Start again in a child: the parent delivers the waiting records."""
        # held for an append at most; else a rest could close the spool under it
        self._using = own_lock()
        self.at_next_append = None
        self._memory: deque[Item] = deque()
        self._memory_only: set[int] = set()
        self._numbers = count(1)
        self._spilled = False
        self._at_rest = self._ended = False
        self._damaged = 0
        self._to_take_back: set[str] = set()

    @property
    def depth(self) -> int:
        """Entries that wait, those of a write under way included."""
        spool = self.open_spool
        return len(self._memory_only) + (0 if spool is None else spool.pending)

    @property
    def is_held(self) -> bool:
        """Whether the calling thread is in the middle of something here: see `own_lock`."""
        if self._using._is_owned():  # noqa: SLF001 - asked directly: see `is_mine`
            return True
        spool = self.spool
        return spool is not None and spool.is_held

    @property
    def ready(self) -> int:
        """Entries in memory, those of a write under way included."""
        return len(self._memory)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._memory) or self._spilled

    def note(self, kind: FrameKind, record_id: str, known: AuditRecord | bytes) -> Position | None:
        """Write down what is known of an action that is not over; nothing without a spool.

        After the end nothing is written before the action is over, too: it would never be removed.
        Nor is it in the middle of another append on the same thread.

        Args:
            kind: How far it has come.
            record_id: The id of its record.
            known: What is known: a record, or its JSON text where that exists.

        Returns:
            Where the spool has it; None if it is not on disk.

        Raises:
            SpoolError: The spool does not take it, and the action has only begun.
        """
        if self._ended or self.is_held:
            return None
        try:
            text = known if isinstance(known, bytes) else to_json(known)
            return self._append(kind, record_id, text)
        except SpoolError as error:
            if kind is FrameKind.OPENED and not isinstance(error, SpoolClosedError):
                raise
            self._note_spool_error(error)
        except _NOT_WRITABLE as error:
            self._note_spool_error(error)
        return None

    def discard(self, record_id: str) -> None:
        """Discard what was written down of an action that is not recorded after all."""
        if self._ended:
            return
        try:
            self._append(FrameKind.DISCARDED, record_id, b"")
        except (SpoolError, ValueError) as error:
            self._note_spool_error(error)

    def put(self, entry: Entry, text: bytes | ChangedSince | None = None) -> bool:
        """Add a finished entry; call it under the lock.

        Args:
            entry: The entry.
            text: The same as JSON, where that exists, or what has changed since its answer.

        Returns:
            Whether it is kept; False where it is neither on disk nor fits into memory.
        """
        position, size = self._append_finished(entry, text)
        number = next(self._numbers)
        if position is None:
            if len(self._memory) >= self._queue_size:
                return False
            self._memory_only.add(number)
        elif self._spilled or len(self._memory) >= self._queue_size or _is_large(entry):
            self._spilled = True
            return True
        self._memory.append(Item(entry, position, size, self.spool, number))
        return True

    def take(self, batch: BatchSize) -> list[Item]:
        """Choose entries of memory to be written, from the oldest on; call it under the lock.

        They stay there until they are `done`.
        """
        most = batch.fitting(item.size for item in self._memory)
        return list(islice(self._memory, most))

    def begin_again(self, in_hand: Collection[Item]) -> None:
        """Repair the counts after the writer has ended at any point of its work.

        Call it under the lock.

        Args:
            in_hand: What the caller keeps in addition to what is in memory.
        """
        spool = self.open_spool
        if spool is not None:
            kept = {item.position for item in (*self._memory, *in_hand) if item.spool is spool}
            self._spilled = self._spilled or spool.pending > len(kept - {None})

    def replace_gone(self, in_hand: int) -> Spool | None:
        """Open another spool where the directory of this one is gone; call it under the lock.

        What is in memory stays there, and nothing is refused any more. What was on disk alone is
        gone with it, which is counted; an adopter that took it delivers it.

        Args:
            in_hand: Entries that were taken, and are not done with.

        Returns:
            The one that is gone, for the caller to close without the lock; None if none is.
        """
        old = self.open_spool
        if old is None or not old.is_gone:
            return None
        with self._using:
            try:
                self.spool = reopen(old)
            except OtelAuditError as error:
                log_limited(
                    _logger, "gone", "The spool is gone, and no other can be opened: %s", error
                )
                return None
        here = in_hand + sum(item.position is not None for item in self._memory)
        lost = max(old.pending - here, 0)
        self._memory = deque(map(self._as_it_is_now, self._memory))
        self._spilled = False
        self._damaged = 0
        self._counters.add("dropped", lost)
        log_limited(
            _logger, "gone",
            "The spool %s was removed while it was in use; another one is open. %d records that "
            "were in it alone are lost, unless another machine has adopted it", old.path, lost,
            level=logging.CRITICAL,
        )  # fmt: skip
        return old

    def _as_it_is_now(self, item: Item) -> Item:
        """The entry, in memory only if its spool is gone."""
        if item.position is None or item.spool is self.spool:
            return item
        self._memory_only.add(item.number)
        return msgspec.structs.replace(item, position=None, spool=None)

    def begin_reading(self) -> Position | None:
        """See whether it is time to read back what is only on disk; call it under the lock.

        Returns:
            How far to read; None if memory has to be emptied first, or there is nothing.
        """
        spool = self.open_spool
        if self._memory or not self._spilled or spool is None:
            return None
        self._spilled = False
        return spool.appended

    def read(self, through: Position, batch: BatchSize) -> Iterator[list[Item]]:
        """Read back what waits on disk, a batch at a time; blocks, needs no lock.

        Args:
            through: From `begin_reading`; what came later is in memory.
            batch: How much is a batch.

        Raises:
            SpoolReadError: It cannot be read now; later it may.
        """
        spool = self.open_spool
        if spool is None:
            return
        try:
            wanted = takewhile(lambda kept: kept.position <= through, spool.read())
            yield from _batches(wanted, spool, batch)
        except BaseException:
            self._spilled = True
            raise
        finally:
            self._count_damage(spool)

    def done(self, items: Sequence[Item], postponed: Sequence[Item] = ()) -> None:
        """Let go of entries that the store has acknowledged; call it under the lock.

        Args:
            items: These entries.
            postponed: Others that were taken with them, and that the caller keeps from now on.
        """
        spool = self.open_spool
        if spool is not None:
            spool.acknowledge(
                item.position for item in items if item.position is not None and item.spool is spool
            )
            self._to_take_back.update(
                item.entry.record_id for item in items if item.position is None
            )
            if self._to_take_back:
                self._take_back(spool)
        self._memory_only.difference_update(item.number for item in items)
        gone = {item.number for item in (*items, *postponed)}
        while self._memory and self._memory[0].number in gone:
            self._memory.popleft()

    @property
    def open_spool(self) -> Spool | None:
        """The spool, if there is one and this process has it open."""
        spool = self.spool
        return None if spool is None or spool.forked or self._at_rest else spool

    def rest(self) -> None:
        """Remove the spool's files if nothing needs them; it is opened again when something does.

        Call it under the lock.
        """
        with self._using:
            spool = self.open_spool
            if spool is not None and self.depth == 0 and spool.open_actions == 0:
                self._at_rest = True
                spool.close()

    def close(self) -> int:
        """End in order; what is on disk stays there for the next process.

        Returns:
            Entries that are lost, because they were only in memory.
        """
        lost = len(self._memory_only)
        self._ended = True
        with self._using:
            if self.open_spool is not None:
                self._take_back(self.open_spool)
                self.open_spool.close()
                self._at_rest = True
        # last: after an exception above, whoever closes again counts them
        self._memory_only.clear()
        self._memory.clear()
        return lost

    def leave(self, entry: Entry, text: bytes | ChangedSince | None = None) -> bool:
        """Write down an entry for the next process, after the end; call it under the lock.

        Args:
            entry: The entry.
            text: As for `put`.

        Returns:
            Whether it is on disk.
        """
        position, _ = self._append_finished(entry, text)
        if position is None:
            return False
        self.close()
        return True

    def _take_back(self, spool: Spool) -> None:
        """Take back what the spool has of actions whose record went to the store from memory.

        Otherwise the adopter of the spool would record them once more, as interrupted.
        """
        for record_id in list(self._to_take_back):
            try:
                if spool.is_open(record_id):
                    spool.append(FrameKind.DISCARDED, record_id, b"")
            except SpoolError:
                continue  # tried again with the next acknowledgement
            except ValueError:
                pass  # no id that the spool could know
            self._to_take_back.discard(record_id)

    def _append(self, kind: FrameKind, record_id: str, payload: bytes) -> Position | None:
        with self._using:
            spool = self.spool
            if spool is not None and (spool.forked or self._at_rest):
                spool = self._reopened(spool)
            if spool is None:
                return None
            position = spool.append(kind, record_id, payload)
        if self.at_next_append is not None:
            self._tell_of_append()
        return position

    def _append_finished(
        self, entry: Entry, text: bytes | ChangedSince | None
    ) -> tuple[Position | None, int]:
        size = 0
        if isinstance(text, ChangedSince):
            position = self._append_changed(entry.record_id, text)
            if position is not None:
                return position, text.answered_size + len(text.text)
            text = None  # then all is said once more
        try:
            written = to_json(entry) if text is None else text
            size = len(written)
            return self._append(FrameKind.CLOSED, entry.record_id, written), size
        except (SpoolError, *_NOT_WRITABLE) as error:
            self._note_spool_error(error)
        return None, size

    def _append_changed(self, record_id: str, changed: ChangedSince) -> Position | None:
        """Close an action by what has changed since its answer; None if that cannot be."""
        with self._using:
            spool = self.spool
            if spool is None or spool.forked or self._at_rest:
                return None
            try:
                position = spool.end(record_id, changed.text, changed.answered)
            except (SpoolError, ValueError):
                return None  # a whole frame is tried next, and says why
        if self.at_next_append is not None:
            self._tell_of_append()
        return position

    def _tell_of_append(self) -> None:
        tell, self.at_next_append = self.at_next_append, None
        if tell is not None:  # another thread may have been first
            tell()

    def _reopened(self, spool: Spool) -> Spool:
        """The spool of this very process: a forked child, or one after a rest, opens its own."""
        if time.monotonic() < self._next_opening:
            raise SpoolWriteError("it could not be opened a moment ago")
        try:
            self.spool = reopen(spool)
        except OtelAuditError as error:
            self._next_opening = time.monotonic() + _OPENING_PAUSE
            raise SpoolWriteError(f"it cannot be opened again: {error}") from error
        self._at_rest = False
        self._damaged = 0
        return self.spool

    def _count_damage(self, spool: Spool) -> None:
        lost, self._damaged = spool.damaged - self._damaged, spool.damaged
        if lost:
            self._counters.add("dropped", lost)
            _logger.critical(
                "%d audit records in %s cannot be read any more, and are lost", lost, spool.path
            )

    def _note_spool_error(self, error: Exception) -> None:
        self._counters.add("spool_errors")
        log_limited(
            _logger, "spool",
            "What is known of an action is in memory only, because the spool did not take it: %s",
            error if isinstance(error, SpoolError) else "it cannot be written down",
            level=logging.CRITICAL, error=error,
        )  # fmt: skip


def _is_large(entry: Entry) -> bool:
    """Recognize records of a transaction of many rows: each holds about a megabyte of objects."""
    return isinstance(entry, AuditRecord) and len(entry.changes) > _MANY_CHANGES


def _batches(kept: Iterable[SpooledRecord], spool: Spool, size: BatchSize) -> Iterator[list[Item]]:
    batch: list[Item] = []
    held = 0
    for one in kept:
        # read again each time, as it adapts meanwhile
        if batch and (len(batch) >= size.entries or held + _size(one) > size.bytes):
            yield batch
            batch, held = [], 0
        batch.append(_item(one, spool))
        held += _size(one)
    if batch:
        yield batch


def _item(kept: SpooledRecord, spool: Spool) -> Item:
    entry = read_back(kept.record_id, kept.payload, kept.changed)
    return Item(entry, kept.position, _size(kept), spool)


def _size(kept: SpooledRecord) -> int:
    return len(kept.payload) + len(kept.changed or b"")
