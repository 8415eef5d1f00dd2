"""One file of a spool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.pipeline.spool.directory import segment_path
from otel_audit.pipeline.spool.errors import SpoolWriteError

CLOSED_FILE: Final = -1


@dataclass(slots=True, eq=False)
class Segment:
    """A segment that this process has written.

    Attributes:
        path: Its file.
        number: Counts from 1.
        base: Position of its first byte.
        file: Its file descriptor, `CLOSED_FILE` when nothing is left to write or to sync.
        size: Bytes of whole frames in it.
        pins: Open actions whose earliest frame that still matters is here.
        needs: It may go when closed frames up to this position are acknowledged.
        carried: It may go when frames up to this position are as durable as its own were.
    """

    path: Path
    number: int
    base: int
    file: int
    size: int = 0
    pins: int = 0
    needs: int = 0
    carried: int = 0

    @property
    def end(self) -> int:
        """Position after its last byte."""
        return self.base + self.size

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.file != CLOSED_FILE:
            os.close(self.file)
            self.file = CLOSED_FILE


def create_segment(spool: Path, number: int, base: int) -> Segment:
    """Make an empty segment, mode 0600.

    Raises:
        SpoolWriteError: The file system refuses.
    """
    path = segment_path(spool, number)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return Segment(path, number, base, os.open(path, flags, 0o600))
    except OSError as error:
        raise SpoolWriteError(
            f"a new segment of the spool cannot be made ({error.strerror})", error.errno
        ) from error
