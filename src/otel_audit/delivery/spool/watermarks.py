"""The size of each segment, noted in the lock's file, so that a later loss is noticed.

A segment that is empty, cut short or full of zeros looks like one whose last write a crash cut off.
The notes distinguish the two: what they name was appended, and not acknowledged. They are
written whenever the spool is synced, so they may lag behind what was appended, never run ahead.

The lock's file holds slots of 32 bytes, little-endian, each with a CRC-32 of its own. The first one
says which segment is the oldest; slot ``n`` belongs to segment ``n``. An empty file is that of a
version that made no notes, or of a person who made it by hand.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple
from zlib import crc32

_SLOT: Final = struct.Struct("<QIIIII")
_CHECKSUM: Final = struct.Struct("<I")
SLOT_BYTES: Final = _SLOT.size + _CHECKSUM.size
_NOTHING: Final = (0, 0, 0, 0, 0, 0)
_HEAD: Final = int.from_bytes(b"otelmark", "little")


class Watermark(NamedTuple):
    """The content of one segment at the last sync.

    Attributes:
        segment: Its number.
        size: Bytes of whole frames.
        last: Offset of the last one of them.
        closed: Closed frames in them.
        pending: How many of these were not acknowledged.
        open_actions: Actions that were under way and have their earliest frame in it.
    """

    segment: int
    size: int
    last: int
    closed: int
    pending: int
    open_actions: int


class DamagedWatermarksError(Exception):
    """The notes are there and cannot be read."""


class Watermarks:
    """The notes of this process's own spool. Not thread-safe."""

    __slots__ = ("_file", "_written")

    def __init__(self, file: int) -> None:
        """Start for a spool whose first segment is empty.

        Args:
            file: The lock's file descriptor.

        Raises:
            OSError: The file system refuses.
        """
        self._file = file
        self._written: dict[int, Watermark] = {}
        _put(file, 0, (_HEAD, 1, 0, 0, 0, 0))

    def note(self, mark: Watermark) -> None:
        """Note how much a segment holds; costs nothing if that is noted already.

        Raises:
            OSError: The file system refuses.
        """
        if self._written.get(mark.segment) != mark:
            _put(self._file, mark.segment, mark)
            self._written[mark.segment] = mark

    def let_go(self, segment: int) -> None:
        """Note that a segment is about to be removed, as all in it is acknowledged.

        Raises:
            OSError: The file system refuses.
        """
        _put(self._file, 0, (_HEAD, segment + 1, 0, 0, 0, 0))
        self._written.pop(segment, None)


def forget_watermarks(file: int, through: int) -> None:
    """Note that all segments up to one are about to be removed, as all in them is stored.

    Raises:
        OSError: The file system refuses.
    """
    _put(file, 0, (_HEAD, through + 1, 0, 0, 0, 0))


def read_watermarks(file: int) -> dict[int, Watermark] | None:
    """Read the notes of a dead process.

    Args:
        file: The lock's file descriptor.

    Returns:
        What its segments held, by number; None if it made no notes.

    Raises:
        DamagedWatermarksError: It made some, and they cannot be read.
    """
    try:
        slots = os.fstat(file).st_size // SLOT_BYTES
        if not os.fstat(file).st_size:
            return None
        head = _get(file, 0)
        if head is None or head[0] != _HEAD:
            raise DamagedWatermarksError("they do not begin as they should")
        found = {}
        for number in range(head[1], slots):
            slot = _get(file, number)
            if slot == _NOTHING:
                continue  # its note failed, a later one did not
            if slot is None or slot[0] != number:
                raise DamagedWatermarksError(f"those on segment {number} are damaged")
            found[number] = Watermark(*slot)
    except OSError as error:
        raise DamagedWatermarksError(error.strerror or "they cannot be read") from error
    return found


def _put(file: int, slot: int, values: tuple[int, ...]) -> None:
    data = _SLOT.pack(*values)
    os.pwrite(file, data + _CHECKSUM.pack(crc32(data)), slot * SLOT_BYTES)


def _get(file: int, slot: int) -> tuple[int, ...] | None:
    data = os.pread(file, SLOT_BYTES, slot * SLOT_BYTES)
    if len(data) < SLOT_BYTES:
        return None
    if not any(data):
        return _NOTHING
    if crc32(data[:-4]) != _CHECKSUM.unpack_from(data, _SLOT.size)[0]:
        return None
    return _SLOT.unpack_from(data)
