"""The segments of one spool, and what keeps them: open actions, records not acknowledged.

Frames go to the last segment; the first one is removed as soon as nothing needs it.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from otel_audit.delivery.spool.damaged import keep_damaged
from otel_audit.delivery.spool.directory import segment_name
from otel_audit.delivery.spool.errors import SpoolWriteError
from otel_audit.delivery.spool.ownership import OwnDirectory

CLOSED_FILE: Final = -1


@dataclass(slots=True, eq=False)
class Segment:
    """A segment that this process has written.

    Attributes:
        place: The directory that it is in.
        number: Counts from 1.
        base: Position of its first byte.
        file: Its file descriptor, `CLOSED_FILE` when nothing is left to write or to sync.
        size: Bytes in it, those of an unfinished write included.
        whole: Bytes of whole frames, which come first.
        last: Offset of the last of these.
        closed: Closed frames in it.
        damaged: Whether something in it could not be read back.
        pins: Open actions whose earliest frame that still matters is here.
        needs: It may go when closed frames up to this position are acknowledged.
        carried: It may go when frames up to this position are as durable as its own were.
    """

    place: OwnDirectory
    number: int
    base: int
    file: int
    size: int = 0
    whole: int = 0
    last: int = 0
    closed: int = 0
    damaged: bool = False
    pins: int = 0
    needs: int = 0
    carried: int = 0

    @property
    def name(self) -> str:
        """Its file's name."""
        return segment_name(self.number)

    @property
    def path(self) -> Path:
        """Its file, as it was found; for messages."""
        return self.place.path / self.name

    @property
    def end(self) -> int:
        """Position after its last byte."""
        return self.base + self.size

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.file != CLOSED_FILE:
            os.close(self.file)
            self.file = CLOSED_FILE


def create_segment(spool: OwnDirectory, number: int, base: int) -> Segment:
    """Make an empty segment, mode 0600.

    Raises:
        SpoolWriteError: The file system refuses.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
    try:
        return Segment(spool, number, base, spool.open(segment_name(number), flags))
    except OSError as error:
        raise SpoolWriteError(
            f"a new segment of the spool cannot be made ({error.strerror})", error.errno
        ) from error


class Segments:
    """Files in the order of writing. Not thread-safe.

    Attributes:
        bytes: Bytes of all of them.
        last: The one that is written.
        appended: Position after the last whole frame.
        in_doubt: The last file may hold bytes that are not accounted for, or may not be written
            any more: what follows goes into a new one.
    """

    __slots__ = ("_home", "_keep_files", "_segment_bytes", "_segments", "_spool", "appended",
                 "bytes", "in_doubt", "last")  # fmt: skip

    def __init__(
        self, home: OwnDirectory, spool: OwnDirectory, segment_bytes: int, *, keep_files: bool
    ) -> None:
        """Make the first segment.

        Args:
            home: The service's directory.
            spool: The spool's directory.
            segment_bytes: Size at which a segment is full.
            keep_files: Whether a full segment's file stays open, to be synced.

        Raises:
            SpoolWriteError: The file system refuses.
        """
        self._home = home
        self._spool = spool
        self._segment_bytes = segment_bytes
        self._keep_files = keep_files
        self.last = create_segment(spool, 1, 0)
        self._segments = deque([self.last])
        self.bytes = 0
        self.appended = 0
        self.in_doubt = False

    @property
    def first(self) -> Segment:
        """The oldest one."""
        return self._segments[0]

    def open_ones(self) -> list[Segment]:
        """List those whose file is open."""
        return [segment for segment in self._segments if segment.file != CLOSED_FILE]

    def since(self, number: int) -> list[Segment]:
        """List those that have a number, or a later one, and the oldest one."""
        first = self.first.number
        later = islice(self._segments, max(number - first, 1), None)
        return [self.first, *later]

    def extents(self, after: int) -> list[Segment]:
        """List those that reach beyond a position, as they are now."""
        return [replace(part) for part in self._segments if part.end > after]

    def write(self, frame: bytes) -> Segment:
        """Append a frame.

        The caller sets `in_doubt` to False when it has accounted for the frame: an exception that
        a signal handler raises in between leaves it True.

        Returns:
            The segment that has it, at its end.

        Raises:
            SpoolWriteError: It is not appended, and what was before it is as it was.
        """
        size = len(frame)
        segment = self.last
        if self.in_doubt or segment.size + size > self._segment_bytes:
            segment = self._with_room_for(size)
        self.in_doubt = True
        try:
            written = os.write(segment.file, frame)
            while written < size:
                written += os.write(segment.file, frame[written:])
        except OSError as error:
            self.in_doubt = not _cut(segment)
            raise SpoolWriteError(
                f"the spool cannot be written ({error.strerror})", error.errno
            ) from error
        segment.last = start = segment.size
        segment.size = segment.whole = start + size
        self.bytes += size
        self.appended += size
        return segment

    def has_room(self, segment: Segment, size: int) -> bool:
        """Return whether a frame of that size will go to this very segment."""
        return (
            segment is self.last
            and not self.in_doubt
            and segment.size + size <= self._segment_bytes
        )

    def mark_damaged(self, position: int) -> None:
        """Note that what stands after a position could not be read back."""
        for segment in self._segments:
            if segment.base <= position < segment.end:
                segment.damaged = True

    def remove_first(self) -> None:
        """Remove the oldest segment's file and forget it.

        Raises:
            OSError: The file cannot be removed.
        """
        segment = self._segments[0]
        # closed first: what is removed while it is open stays on FUSE and NFS, under another name
        segment.close()
        self._let_go(segment)
        self._segments.popleft()
        self.bytes -= segment.size

    def close(self) -> None:
        """Close all files."""
        for segment in self._segments:
            segment.close()

    def remove(self) -> None:
        """Remove all files.

        Raises:
            OSError: A file cannot be removed.
        """
        for segment in self._segments:
            self._let_go(segment)

    def _let_go(self, segment: Segment) -> None:
        if segment.damaged:
            with suppress(FileNotFoundError):
                if keep_damaged(self._home, self._spool, segment.name):
                    return
        self._spool.unlink(segment.name)

    def _with_room_for(self, size: int) -> Segment:
        current = self.last
        if self.in_doubt:
            self._count_remainder(current)
        elif not current.size or current.size + size <= self._segment_bytes:
            return current
        return self.begin_next()

    def begin_next(self) -> Segment:
        """Let what follows go into a new segment.

        Raises:
            SpoolWriteError: The file system refuses.
        """
        current = self.last
        following = create_segment(self._spool, current.number + 1, current.end)
        if not self._keep_files:
            current.close()
        self._segments.append(following)
        self.last = following
        return following

    def _count_remainder(self, segment: Segment) -> None:
        """Count the bytes that an unfinished write has left."""
        try:
            size = os.fstat(segment.file).st_size
        except OSError as error:
            # still in doubt: the next append checks again
            raise SpoolWriteError(
                f"a segment of the spool cannot be looked at ({error.strerror})", error.errno
            ) from error
        self.bytes += size - segment.size
        segment.size = size
        self.appended = segment.end


def _cut(segment: Segment) -> bool:
    """Cut off a part of a frame; if that fails too, nothing may follow it in this file."""
    try:
        os.ftruncate(segment.file, segment.size)
    except OSError:
        return False
    return True


OpenAction = tuple[Segment, Segment, int, int, int]
"""State of an open action: the segment that it keeps, the segment with its last frame, that
frame's offset in the file, its size, and the position at which it was appended first. A plain
tuple: one is made for every frame."""


class OpenActions:
    """Actions with a frame in the spool that have not closed. Not thread-safe."""

    __slots__ = ("_actions", "live_bytes")

    def __init__(self) -> None:
        self._actions: dict[bytes, OpenAction] = {}
        self.live_bytes = 0
        """Bytes of the last frames of all of them."""

    def __len__(self) -> int:
        return len(self._actions)

    def __contains__(self, key: bytes) -> bool:
        return key in self._actions

    def get(self, key: bytes) -> OpenAction | None:
        """Find an action."""
        return self._actions.get(key)

    def pinning(self, segment: Segment) -> list[bytes]:
        """List the actions that keep a segment."""
        return [key for key, (pinned, *_) in self._actions.items() if pinned is segment]

    def note(self, key: bytes, segment: Segment, size: int, position: int) -> None:
        """Note an action's new last frame, which is the last one of its segment."""
        known = self._actions.get(key)
        start = segment.size - size
        if known is None:
            segment.pins += 1
            self._actions[key] = (segment, segment, start, size, position)
            self.live_bytes += size
        else:
            self._actions[key] = (known[0], segment, start, size, position)
            self.live_bytes += size - known[3]

    def end(self, key: bytes, needs: int) -> None:
        """Forget an action; what it kept may go when ``needs`` is acknowledged."""
        known = self._actions.pop(key, None)
        if known is not None:
            pinned, _, _, size, _ = known
            self.live_bytes -= size
            pinned.pins -= 1
            pinned.needs = max(pinned.needs, needs)

    def move(self, key: bytes, segment: Segment, start: int) -> None:
        """Note that an action's last frame was copied, so that it keeps only the copy."""
        pinned, _, _, size, position = self._actions[key]
        pinned.pins -= 1
        pinned.carried = max(pinned.carried, segment.base + start + size)
        segment.pins += 1
        self._actions[key] = (segment, segment, start, size, position)


_COMPACT_FROM: Final = 65_536
"""Positions in front that are done, before the list is copied without them."""


class UnackedFrames:
    """Positions of closed frames in the order of appending. Not thread-safe."""

    __slots__ = ("_early", "_head", "_last", "_positions", "_times")

    def __init__(self) -> None:
        self._positions: array[int] = array("Q")
        self._times: array[float] = array("d")
        self._head = 0
        self._last = 0
        # acknowledged out of order, so still behind an older one
        self._early: set[int] = set()

    def __len__(self) -> int:
        return len(self._positions) - self._head - len(self._early)

    def __contains__(self, position: int) -> bool:
        return position not in self._early and self._index(position) is not None

    @property
    def oldest(self) -> int | None:
        """Position of the first one, None if there is none."""
        return self._positions[self._head] if self._head < len(self._positions) else None

    @property
    def oldest_time(self) -> float | None:
        """When the first one was added, on the clock of `add`; None if there is none."""
        return self._times[self._head] if self._head < len(self._times) else None

    def add(self, position: int, time: float) -> None:
        """Note a frame.

        Args:
            position: Greater than all before.
            time: Seconds on a monotonic clock.
        """
        self._positions.append(position)
        self._times.append(time)
        self._last = position

    def within(self, after: int, through: int) -> list[int]:
        """List positions greater than ``after`` and not greater than ``through``."""
        first = bisect_right(self._positions, after, self._head)
        last = bisect_right(self._positions, through, self._head)
        return [found for found in self._positions[first:last] if found not in self._early]

    def count(self, after: int, through: int) -> int:
        """Count positions greater than ``after`` and not greater than ``through``."""
        first = bisect_right(self._positions, after, self._head)
        last = bisect_right(self._positions, through, self._head)
        return last - first - sum(after < found <= through for found in self._early)

    def acknowledge(self, positions: Iterable[int]) -> None:
        """Strike frames off, in any order; a second time changes nothing.

        Raises:
            ValueError: A position is not that of a closed frame.
        """
        for position in positions:
            if position == self.oldest:
                self._advance()
            elif self._index(position) is not None:
                self._early.add(position)
            elif position >= self._first_unknown():
                raise ValueError("acknowledged a position that is not that of a closed frame")
        self._compact()

    def _first_unknown(self) -> int:
        """Below it every position was acknowledged before, or never was one."""
        return self._last + 1 if self.oldest is None else self.oldest

    def _advance(self) -> None:
        self._head += 1
        while self._early and (oldest := self.oldest) in self._early:
            # in this order nothing comes between the two
            self._head += 1
            self._early.discard(oldest)

    def _index(self, position: int) -> int | None:
        at = bisect_left(self._positions, position, self._head)
        return at if at < len(self._positions) and self._positions[at] == position else None

    def _compact(self) -> None:
        if self._head >= _COMPACT_FROM and self._head * 2 >= len(self._positions):
            del self._positions[: self._head]
            del self._times[: self._head]
            self._head = 0
