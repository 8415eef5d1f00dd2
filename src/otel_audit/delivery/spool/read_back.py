"""Reading a living spool's closed and ended frames back from its segments."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EIO
from typing import Final, NamedTuple

from otel_audit.delivery.spool.directory import LARGEST_FILE
from otel_audit.delivery.spool.errors import SpoolReadError
from otel_audit.delivery.spool.format import BUFFER_BYTES, Damage, Frame, FrameKind, scan
from otel_audit.delivery.spool.ownership import ForeignError, report_foreign
from otel_audit.delivery.spool.segments import Segment


class ReadFrame(NamedTuple):
    """A closed or ended frame.

    Attributes:
        position: Of its end.
        frame: The frame.
        before: Of an action that was closed by what had changed: its frame before that, the
            answered one, or the opened one where that is damaged; None if neither is there.
    """

    position: int
    frame: Frame
    before: Frame | None = None


class LastFrames:
    """The last frame of each action under way, as one segment is read from its beginning.

    Held with its payload until the action is over, or the segment is read.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._last: dict[bytes, Frame] = {}

    def note(self, frame: Frame) -> Frame | None:
        """Take note of a frame.

        Returns:
            What `ReadFrame.before` is for it.
        """
        key = frame.record_id
        if frame.kind in UNDER_WAY:
            self._last[key] = frame
            return None
        before = self._last.pop(key, None)
        return before if frame.kind is FrameKind.ENDED else None


UNDER_WAY: Final = frozenset({FrameKind.OPENED, FrameKind.ANSWERED})
CLOSING: Final = frozenset({FrameKind.CLOSED, FrameKind.ENDED})
"""Kinds of frames with which an action is over, and has its record."""


class UnreadableFrames(NamedTuple):
    """Frames that end after one position and not after another cannot be read any more."""

    after: int
    through: int
    reason: str


def read_closed(
    segment: Segment, *, start: int, patient: bool = False
) -> Iterator[ReadFrame | UnreadableFrames]:
    """Read the closed and ended frames of a segment.

    Args:
        segment: Read up to its size, where a frame ends.
        start: Offset in the file where the first one wanted begins.
        patient: Whether what the disk does not give now is left to be read later.

    Yields:
        In order, what is there and what is lost: altered, cut off, on a bad sector, deleted.

    Raises:
        SpoolReadError: It cannot be read now (too many open files, no memory, …); later it may.
    """
    base, end = segment.base, segment.size
    done = start
    under_way = LastFrames()
    try:
        with segment.place.reading(
            segment.name, at_most=LARGEST_FILE, buffering=BUFFER_BYTES
        ) as file:
            # from its beginning: what an ended frame relies on may stand before `start`
            for found in scan(file, end=end):
                done = max(found.end, start)
                if not isinstance(found, Damage):
                    before = under_way.note(found)
                    if found.kind in CLOSING and found.start >= start:
                        yield ReadFrame(base + found.end, found, before)
                elif found.end > start:
                    yield UnreadableFrames(base + found.start, base + found.end, found.reason)
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
