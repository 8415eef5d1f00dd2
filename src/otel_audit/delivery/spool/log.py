"""The spool of this process: appended to by any thread, read and freed by the writer.

A position counts bytes from the spool's first one, over all its segments; the position of a frame
is that of its end, so that "everything up to here" is a comparison of two integers.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

from otel_audit._util.fork import call_in_child
from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.spool.directory import remove_empty, withdraw
from otel_audit.delivery.spool.encryption import context_of
from otel_audit.delivery.spool.errors import (
    EncryptionError,
    SpoolClosedError,
    SpoolError,
    SpoolForkedError,
    SpoolReadError,
    SpoolWriteError,
)
from otel_audit.delivery.spool.format import (
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameKind,
    encode,
    record_key,
    record_name,
)
from otel_audit.delivery.spool.leases import Lease
from otel_audit.delivery.spool.locks import LOCK, is_still, release
from otel_audit.delivery.spool.ownership import OwnDirectory
from otel_audit.delivery.spool.quota import Quota
from otel_audit.delivery.spool.read_back import (
    Beginnings,
    ReadFrame,
    UnreadableFrames,
    last_known,
    read_closed,
)
from otel_audit.delivery.spool.segments import OpenActions, Segment, Segments, UnackedFrames
from otel_audit.delivery.spool.settings import SpoolSettings
from otel_audit.delivery.spool.watermarks import Watermark, Watermarks

Position: TypeAlias = int
"""Bytes from the spool's beginning to a frame's end."""

START: Final[Position] = 0
"""Before the first frame."""

# looking them up in the enumeration costs as much as checking a checksum
_OPENED: Final = int(FrameKind.OPENED)
_CLOSED: Final = int(FrameKind.CLOSED)
_DISCARDED: Final = int(FrameKind.DISCARDED)
_ENDED: Final = int(FrameKind.ENDED)
_CARRY_FROM_SEGMENTS: Final = 2
_LOOK_AROUND_SECONDS: Final = 1.0
DELIVERED_STAYS: Final = 60.0
"""Seconds after which a file is given up in which all is delivered, full or not: what was erased
from the trail since is not to stay on this disk until somebody has written 8 MB more."""
_READ_PATIENCE: Final = 60.0
"""Seconds for which a segment that the disk does not give back is tried again."""


class SpooledRecord(NamedTuple):
    """A closed or ended action that is not acknowledged.

    Attributes:
        position: To acknowledge it by.
        record_id: UUID, 36 characters, lower case.
        payload: As appended. With `changed`: of the frame before the end, the answered one; where
            that is damaged, the opened one, and empty where that cannot be read either.
        changed: Of one that has ended, what has changed since `payload`.
    """

    position: Position
    record_id: str
    payload: bytes
    changed: bytes | None = None


class Spool:
    """Append-only, checksummed, in segments. Made by `open_spool`.

    Attributes:
        settings: What it was opened with.
        producer_id: Its id, the name of its directory.
        path: Its directory.
        damaged: Closed records that could not be read back.
        forked: Whether this process is a child of the one that opened the spool.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        home: OwnDirectory,
        place: OwnDirectory,
        lock: int,
        *,
        leased: bool = False,
    ) -> None:
        """Take over a directory that was just made, and its lock.

        Args:
            settings: What it was opened with.
            home: The service's directory.
            place: The spool's.
            lock: The file descriptor that holds its lock.
            leased: Whether only the lock's file shows others that this process lives.

        Raises:
            SpoolWriteError: The first segment cannot be made.
        """
        self.settings = settings
        path = place.path
        self.producer_id = path.name
        self.path = path
        self._home = home
        self._place = place
        self.damaged = 0
        self.forked = False
        self._lock_file = lock
        self._cipher = (
            None if settings.encryption is None else settings.encryption.for_spool(path.name)
        )
        # held for a write at most
        self._lock = own_lock()
        # held while files are synced, closed or removed; never taken by an append
        self._upkeep = own_lock()
        self._closed = False
        self._segments = Segments(
            home, place, settings.segment_bytes, keep_files=settings.fsync != "never"
        )
        self._outstanding = UnackedFrames()
        self._actions = OpenActions()
        self._quota = Quota(settings, home, path.name)
        self._ages = settings.max_age is not None
        self._synced = 0
        self._segments_synced = 0
        self._sync_failed_through = 0
        self._looked_around = time.monotonic()
        self._filling = (0, 0.0)  # a segment, and since when there is something in it
        self._lease = Lease(lock) if leased else None
        self._unreadable_since: dict[int, float] = {}
        self._watermarks = self._begin_watermarks()
        self._noted_through = 1
        _spools.add(self)

    # --- what any thread may call

    def append(self, kind: FrameKind, record_id: str, payload: bytes) -> Position:
        """Append a frame: one write to the file, nothing synced.

        Args:
            kind: `FrameKind.OPENED` carries what a crash would leave, `.ANSWERED` and `.CLOSED`
                a whole record, as far as it is known; `.DISCARDED` takes back what was opened.
                See also `end`.
            record_id: UUID in hex, with or without hyphens.
            payload: At most `MAX_PAYLOAD_BYTES`; opaque.

        Returns:
            The frame's position, to wait for in `synced` or to acknowledge.

        Raises:
            SpoolFullError: A bound is reached.
            SpoolWriteError: The file system did not take it.
            SpoolClosedError: The spool is closed.
            SpoolForkedError: This process is a child of the one that opened it.
            ValueError: The record id is not a UUID, or the payload is too long.
        """
        if self.forked:
            raise SpoolForkedError("the spool belongs to the parent process; reopen it")
        key = record_key(record_id)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {len(payload)} bytes is over {MAX_PAYLOAD_BYTES}")
        frame = self._encode(kind, key, payload)
        size = len(frame)
        with self._lock:
            segments = self._segments
            if self._closed or segments.bytes + size > self._quota.room_to_begin or self._ages:
                self._admit(size, begins=kind == _OPENED)
            segment = segments.write(frame)
            position = segments.appended
            if kind == _CLOSED:
                self._note_closed(key, segment, position)
            elif kind == _DISCARDED:
                self._actions.end(key, 0)
            else:
                self._actions.note(key, segment, size, position)
            segments.in_doubt = False
        return position

    def end(self, record_id: str, changed: bytes, answered: Position) -> Position | None:
        """Close an action by what has changed since its answered frame, if that can be relied on.

        The two frames must stand in one segment, so that neither outlives the other.

        Args:
            record_id: As for `append`.
            changed: At most `MAX_PAYLOAD_BYTES`; opaque.
            answered: What `append` returned for the answered frame.

        Returns:
            The frame's position; None if a closed frame has to say all: the answered frame is not
            here, is not the action's last one, or there is no room left behind it.

        Raises:
            SpoolFullError: As for `append`, as are all others.
            SpoolWriteError: The file system did not take it.
            SpoolClosedError: The spool is closed.
            SpoolForkedError: This process is a child of the one that opened it.
            ValueError: The record id is not a UUID.
        """
        if self.forked:
            raise SpoolForkedError("the spool belongs to the parent process; reopen it")
        key = record_key(record_id)
        if len(changed) > MAX_PAYLOAD_BYTES:
            return None
        frame = self._encode(_ENDED, key, changed)
        size = len(frame)
        with self._lock:
            segments, action = self._segments, self._actions.get(key)
            if action is None or action[4] != answered or not segments.has_room(action[1], size):
                return None
            if self._closed or segments.bytes + size > self._quota.room_to_begin:
                self._admit(size, begins=False)
            segment = segments.write(frame)
            position = segments.appended
            self._note_closed(key, segment, position)
            segments.in_doubt = False
        return position

    def _encode(self, kind: int, key: bytes, payload: bytes) -> bytes:
        cipher = self._cipher
        if cipher is not None:
            payload = cipher.encrypt(payload, context_of(kind, key))
        return encode(kind, key, payload, time.time_ns(), encrypted=cipher is not None)

    def _note_closed(self, key: bytes, segment: Segment, position: Position) -> None:
        self._outstanding.add(position, time.monotonic())
        segment.needs = position
        segment.closed += 1
        self._actions.end(key, position)

    @property
    def appended(self) -> Position:
        """Everything up to here was given to the kernel: it outlives this process."""
        return self._segments.appended

    @property
    def synced(self) -> Position:
        """Everything up to here is on disk: it outlives a power loss. Moves only in `sync`."""
        return self._synced

    @property
    def is_held(self) -> bool:
        """Whether the calling thread is in the middle of something here: see `own_lock`."""
        # asked directly, as each append asks: see `is_mine`
        held: bool = self._lock._is_owned() or self._upkeep._is_owned()  # noqa: SLF001
        return held and not self.forked

    @property
    def is_gone(self) -> bool:
        """Whether its directory was removed, by a cleaner or by an adopter that was mistaken."""
        return not self._closed and not self._place.exists

    @property
    def pending(self) -> int:
        """Closed records that are not acknowledged."""
        with self._lock:
            return len(self._outstanding)

    @property
    def open_actions(self) -> int:
        """Actions that have not closed."""
        return len(self._actions)

    def is_open(self, record_id: str) -> bool:
        """Whether there is a frame of an action that has not closed.

        Raises:
            ValueError: The record id is not a UUID.
        """
        return record_key(record_id) in self._actions

    @property
    def bytes_used(self) -> int:
        """Bytes of this spool on disk."""
        return self._segments.bytes

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest closed record that is not acknowledged; 0 without one."""
        with self._lock:
            return self._oldest_age()

    # --- what the writer calls

    def sync(self) -> Position:
        """Bring everything appended so far to disk (fdatasync). Blocks; not for an event loop.

        Also the time to look around: whether the files are still there, and how much the other
        spools of this service hold. With ``fsync = never`` it does only that.

        Returns:
            `synced`.

        Raises:
            SpoolWriteError: The disk did not take it, or the files are gone. What was not synced
                then counts as synced only when it is acknowledged: a second try would succeed
                without having written anything.
            SpoolForkedError: As for `append`.
        """
        self._refuse_child()
        with self._upkeep:
            if self._closed:
                return self.synced
            if time.monotonic() - self._looked_around >= _LOOK_AROUND_SECONDS:
                self._looked_around = time.monotonic()
                if self._lease is not None:
                    self._lease.renew()
                self._look_around()
                self._give_up_delivered()
                self._free()
            if self.settings.fsync != "never" and self._synced != self._segments.appended:
                self._sync()
            self._note_watermarks()
            return self.synced

    def read(self, after: Position = START) -> Iterator[SpooledRecord]:
        """Read closed records that are not acknowledged, in order, from disk.

        Args:
            after: A position as `append` or an earlier item gave it.

        Yields:
            What had been appended when the iteration began. A record that cannot be read back is
            counted in `damaged`, logged, and struck off.

        Raises:
            SpoolReadError: It cannot be read now; later it may.
            SpoolForkedError: As for `append`.
        """
        self._refuse_child()
        with self._lock:
            # closed: the files may be an adopter's by now
            segments = [] if self._closed else self._segments.extents(after)
        for segment in segments:
            try:
                yield from self._read_segment(segment, max(after - segment.base, 0))
            except SpoolReadError:
                self._unreadable_since.setdefault(segment.number, time.monotonic())
                raise
            self._unreadable_since.pop(segment.number, None)

    def acknowledge(self, positions: Iterable[Position]) -> None:
        """Strike off records that are stored, and remove segments that nothing needs any more.

        Args:
            positions: Of closed frames, in any order; a second time changes nothing.

        Raises:
            ValueError: A position is not that of a closed frame.
            SpoolForkedError: As for `append`.
        """
        self._refuse_child()
        known = list(positions)
        with self._lock:
            self._outstanding.acknowledge(known)
        with self._upkeep:
            if not self._closed:
                self._free()

    def close(self) -> bool:
        """End in order. In a forked child, and a second time, it does nothing.

        Returns:
            Whether nothing was left: then the files are removed. Else they stay for adoption.
        """
        if self.forked:
            return False
        with self._upkeep:
            if self._closed:
                return not self._place.exists
            try:
                self.sync()
            except SpoolWriteError as error:
                self._log_error(str(error))
                self._note_watermarks()
            with self._lock:
                self._closed = True
                done = not self._outstanding and not self._actions
            self._segments.close()
            if done:
                done = self._remove()
            else:
                release(self._lock_file)
            _spools.discard(self)
            return done

    # --- appending; the lock is held

    def _oldest_age(self) -> float:
        since = self._outstanding.oldest_time
        return 0.0 if since is None else time.monotonic() - since

    def _admit(self, size: int, *, begins: bool) -> None:
        """See that there is room for a frame, where that is not plain."""
        if self._closed:
            raise SpoolClosedError("the spool is closed")
        own = self._segments.bytes + size
        if own > (self._quota.room_to_begin if begins else self._quota.room):
            self._quota.check_room(own, begins=begins)
        if begins and self._ages:
            self._quota.check_age(self._oldest_age())

    # --- syncing; the upkeep lock is held

    def _sync(self) -> None:
        with self._lock:
            target = self._segments.appended
            files = self._segments.open_ones()
        try:
            for segment in files:
                os.fdatasync(segment.file)
            if files[-1].number > self._segments_synced:
                self._place.sync()
        except OSError as error:
            with self._lock:
                self._segments.in_doubt = True
                self._sync_failed_through = self._segments.appended
            raise SpoolWriteError(
                f"the spool cannot be brought to disk ({error.strerror})", error.errno
            ) from error
        self._segments_synced = files[-1].number
        for segment in files[:-1]:
            segment.close()
        with self._lock:
            if self._is_acknowledged(self._sync_failed_through):
                self._synced = target

    def _look_around(self) -> None:
        with self._lock:
            current = self._segments.last
            files = ((current.name, current.file), (LOCK, self._lock_file))
            try:
                self._quota.recount()
                if all(is_still(self._place, name, file) for name, file in files):
                    return
            except OSError as error:
                raise SpoolWriteError(
                    f"the spool in {self.path} cannot be looked at ({error.strerror})", error.errno
                ) from error
            self._segments.in_doubt = True
        raise SpoolWriteError(f"files of the spool were removed from {self.path}")

    def _is_acknowledged(self, through: int) -> bool:
        oldest = self._outstanding.oldest
        return oldest is None or through < oldest

    def _begin_watermarks(self) -> Watermarks | None:
        try:
            return Watermarks(self._lock_file)
        except OSError as error:
            self._log_error(f"what it holds cannot be noted ({error.strerror})")
            return None

    def _note_watermarks(self) -> None:
        """Note how much there is; where that fails, losses after the end may not be missed."""
        if self._watermarks is None:
            return
        with self._lock:
            marks = [self._mark_of(one) for one in self._segments.since(self._noted_through)]
        try:
            for mark in marks:
                self._watermarks.note(mark)
        except OSError as error:
            self._log_error(f"what it holds cannot be noted ({error.strerror})")
        else:
            self._noted_through = marks[-1].segment

    def _let_go(self, head: Segment) -> None:
        """Note it before the file is gone: what is noted and not there counts as lost."""
        try:
            if self._watermarks is not None:
                self._watermarks.let_go(head.number)
        except OSError as error:
            # space is freed all the same: an alarm too many is better than a spool that fills up
            self._log_error(f"what it holds cannot be noted ({error.strerror})")

    def _mark_of(self, segment: Segment) -> Watermark:
        pending = self._outstanding.count(segment.base, segment.base + segment.whole)
        return Watermark(
            segment.number, segment.whole, segment.last, segment.closed, pending, segment.pins
        )

    # --- freeing; the upkeep lock is held

    def _give_up_delivered(self) -> None:
        """Go on in another file, if nothing in the last one is needed and it is no longer young."""
        with self._lock:
            last, now = self._segments.last, time.monotonic()
            if not last.size or self._filling[0] != last.number:
                self._filling = (last.number, now)
            elif (
                now - self._filling[1] >= DELIVERED_STAYS
                and not last.pins
                and self._is_acknowledged(last.needs)
            ):
                try:
                    self._segments.begin_next()
                except SpoolWriteError as error:
                    # it only stays longer; the next look tries again
                    self._log_error(str(error))

    def _free(self) -> None:
        try:
            while (head := self._spent_head()) is not None:
                if head.pins and not (self._is_worth_carrying() and self._carry_over(head)):
                    return
                if not self._is_durable(head.carried):
                    return
                self._let_go(head)
                with self._lock:
                    self._segments.remove_first()
        except (SpoolError, OSError) as error:
            # it only stays longer; the next acknowledgement tries again
            self._log_error(str(error))

    def _is_durable(self, position: int) -> bool:
        """See that copies are on disk before their originals go, unless syncing is turned off."""
        if position > self._synced and self.settings.fsync != "never":
            # not `sync`, which frees too
            self._sync()
        return position <= self._synced or self.settings.fsync == "never"

    def _spent_head(self) -> Segment | None:
        """The oldest segment, if it is full and its closed records are acknowledged."""
        with self._lock:
            head = self._segments.first
            spent = head is not self._segments.last and self._is_acknowledged(head.needs)
            return head if spent else None

    def _is_worth_carrying(self) -> bool:
        """Copying costs at most as much as it frees, else long actions would be copied for ever."""
        slack = _CARRY_FROM_SEGMENTS * self.settings.segment_bytes
        return self._segments.bytes > 2 * self._actions.live_bytes + slack

    def _carry_over(self, head: Segment) -> bool:
        """Append again the last frame of each action that keeps a segment."""
        with self._lock:
            keys = list(self._actions.pinning(head))
        for key in keys:
            self._carry(key, head)
        return not head.pins

    def _carry(self, key: bytes, head: Segment) -> None:
        with self._lock:
            action = self._actions.get(key)
            if action is None or action[0] is not head:
                return
            _, segment, start, size, _ = action
            with segment.place.reading(segment.name) as file:
                file.seek(start)
                frame = file.read(size)
            if len(frame) < size:
                raise SpoolWriteError(f"a segment of the spool in {self.path} was cut short")
            self._admit(size, begins=False)
            segment = self._segments.write(frame)
            self._actions.move(key, segment, segment.size - len(frame))
            self._segments.in_doubt = False

    def _remove(self) -> bool:
        try:
            try:
                self._segments.remove()
                withdraw(self._home, self._place)
            finally:
                release(self._lock_file)
            remove_empty(self._home, self._place)
        except OSError as error:
            self._log_error(f"the emptied spool cannot be removed ({error.strerror})")
            return False
        return True

    # --- reading

    def _read_segment(self, segment: Segment, start: int) -> Iterator[SpooledRecord]:
        since = self._unreadable_since.get(segment.number)
        # a disk that fails for a moment costs no record; one that stays broken holds up no other
        patient = since is None or time.monotonic() - since < _READ_PATIENCE
        beginnings = Beginnings(segment, self._before(segment), self._open)
        for found in read_closed(segment, start=start, patient=patient):
            if isinstance(found, UnreadableFrames):
                self._give_up(found)
            elif self._is_outstanding(found.position):
                yield from self._record(found, beginnings)

    def _before(self, segment: Segment) -> list[Segment]:
        with self._lock:
            return [one for one in self._segments.extents(START) if one.base < segment.base]

    def _is_outstanding(self, position: int) -> bool:
        with self._lock:
            return position in self._outstanding

    def _record(self, found: ReadFrame, beginnings: Beginnings) -> Iterator[SpooledRecord]:
        position, frame, before = found
        name = record_name(frame.record_id)
        try:
            payload = self._open(frame)
        except EncryptionError as error:
            self._give_up(UnreadableFrames(position - 1, position, str(error)))
            return
        if frame.kind is not FrameKind.ENDED:
            yield SpooledRecord(position, name, payload)
            return
        kind, known = last_known(before, self._open)
        if kind is not FrameKind.ANSWERED:
            self._note_undescribed(position)
        if kind is None:
            # the file with its beginning is kept until this is acknowledged
            _, known = last_known(beginnings.of(frame.record_id), self._open)
        yield SpooledRecord(position, name, known, payload)

    def _open(self, frame: Frame) -> bytes:
        if self._cipher is None:
            return frame.payload
        return self._cipher.decrypt(frame.payload, context_of(frame.kind, frame.record_id))

    def _note_undescribed(self, position: Position) -> None:
        """Keep the file of a record of which only its beginning or its end could be read back."""
        with self._lock:
            self._segments.mark_damaged(position - 1)
        self._log_error(
            "the description of a record was damaged on disk: what is left of it is delivered, and "
            "the damaged file will be kept (otel-audit quarantine)"
        )

    def _give_up(self, lost: UnreadableFrames) -> None:
        """Count the records that were there and are no more."""
        with self._lock:
            records = self._outstanding.within(lost.after, lost.through)
            self._outstanding.acknowledge(records)
            if records:
                self._segments.mark_damaged(lost.after)
        if records:
            self.damaged += len(records)
            self._log_error(
                f"{self.damaged} records were damaged on disk and are lost ({lost.reason}); the "
                "damaged file will be kept (otel-audit quarantine)"
            )

    # --- the rest

    def _refuse_child(self) -> None:
        if self.forked:
            raise SpoolForkedError("the spool belongs to the parent process; reopen it")

    def _log_error(self, what: str) -> None:
        log_limited(_log, str(self.path), "audit spool %s: %s", self.path, what)

    def _forsake(self) -> None:
        self.forked = True
        with suppress(OSError):
            self._segments.close()


_log = logging.getLogger("otel_audit")
_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _forsake_all() -> None:
    for spool in list(_spools):
        spool._forsake()  # noqa: SLF001 - the two are one
    _spools.clear()


# a child that kept the parent's files open would keep their space when they are removed
call_in_child(_forsake_all)
