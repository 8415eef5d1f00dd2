"""The segments of one spool: frames go to the last one, the first one is removed."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from otel_audit.delivery.spool.damaged import keep_damaged
from otel_audit.delivery.spool.errors import SpoolWriteError
from otel_audit.delivery.spool.ownership import OwnDirectory
from otel_audit.delivery.spool.segment import CLOSED_FILE, Segment, create_segment


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
            self._settle(current)
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

    def _settle(self, segment: Segment) -> None:
        """Count what a write that did not come to its end has left."""
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
