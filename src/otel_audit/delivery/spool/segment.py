"""One file of a spool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
        size: Bytes in it, those of a write that did not come to its end included.
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
