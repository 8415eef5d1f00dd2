"""Reading a living spool's closed frames back from its segments."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EIO
from typing import Final, NamedTuple

from otel_audit.delivery.spool.directory import LARGEST_FILE
from otel_audit.delivery.spool.errors import SpoolReadError
from otel_audit.delivery.spool.format import BUFFER_BYTES, Damage, Frame, FrameKind, scan
from otel_audit.delivery.spool.ownership import ForeignError, report_foreign
from otel_audit.delivery.spool.segments import Segment

_CLOSED: Final = frozenset({int(FrameKind.CLOSED)})


class ReadFrame(NamedTuple):
    """A closed frame, and the position of its end."""

    position: int
    frame: Frame


class UnreadableFrames(NamedTuple):
    """Frames that end after one position and not after another cannot be read any more."""

    after: int
    through: int
    reason: str


def read_closed(
    segment: Segment, *, start: int, patient: bool = False
) -> Iterator[ReadFrame | UnreadableFrames]:
    """Read the closed frames of a segment.

    Args:
        segment: Read up to its size, where a frame ends.
        start: Offset in the file to begin at, where a frame begins.
        patient: Whether what the disk does not give now is left to be read later.

    Yields:
        In order, what is there and what is lost: altered, cut off, on a bad sector, deleted.

    Raises:
        SpoolReadError: It cannot be read now (too many open files, no memory, …); later it may.
    """
    base, end = segment.base, segment.size
    done = start
    try:
        with segment.place.reading(
            segment.name, at_most=LARGEST_FILE, buffering=BUFFER_BYTES
        ) as file:
            for found in scan(file, start=start, end=end, kinds=_CLOSED):
                done = found.end
                if isinstance(found, Damage):
                    yield UnreadableFrames(base + found.start, base + found.end, found.reason)
                else:
                    yield ReadFrame(base + found.end, found)
    except ForeignError as error:
        report_foreign(error.path, error.why)
        yield UnreadableFrames(
            base + done, base + end, f"another file stands for the segment: {error.why}"
        )
    except (FileNotFoundError, EOFError) as error:
        yield UnreadableFrames(base + done, base + end, f"the segment was deleted or cut: {error}")
    except OSError as error:
        if error.errno != EIO or patient:
            raise SpoolReadError(f"the spool cannot be read ({error.strerror})") from error
        yield UnreadableFrames(base + done, base + end, "the disk cannot be read")
