"""Reading a living spool's closed and ended frames back from its segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from errno import EIO
from typing import BinaryIO, Final, NamedTuple

from otel_audit.delivery.spool.directory import LARGEST_FILE
from otel_audit.delivery.spool.errors import EncryptionError, SpoolReadError
from otel_audit.delivery.spool.format import BUFFER_BYTES, Damage, Frame, FrameKind, scan
from otel_audit.delivery.spool.ownership import ForeignError, report_foreign
from otel_audit.delivery.spool.segments import Segment


class ReadFrame(NamedTuple):
    """A closed or ended frame.

    Attributes:
        position: Of its end.
        frame: The frame.
        before: Of an action that was closed by what had changed: its frames before that in the same
            segment, the latest one first, but for those that are damaged.
    """

    position: int
    frame: Frame
    before: Sequence[Frame] = ()


UNDER_WAY: Final = frozenset({FrameKind.OPENED, FrameKind.ANSWERED})
CLOSING: Final = frozenset({FrameKind.CLOSED, FrameKind.ENDED})
"""Kinds of frames with which an action is over, and has its record."""


class FramesUnderWay:
    """The frames of each action under way, as one segment is read from its beginning.

    Held with their payloads until the action is over, or the segment is read.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._frames: dict[bytes, tuple[Frame, ...]] = {}

    def note(self, frame: Frame) -> Sequence[Frame]:
        """Take note of a frame.

        Returns:
            What `ReadFrame.before` is for it.
        """
        key = frame.record_id
        if frame.kind in UNDER_WAY:
            self._frames[key] = (frame, *self._frames.get(key, ()))
            return ()
        before = self._frames.pop(key, ())
        return before if frame.kind is FrameKind.ENDED else ()


def last_known(
    before: Iterable[Frame], decrypt: Callable[[Frame], bytes]
) -> tuple[FrameKind | None, bytes]:
    """Return what the first of some frames says that can be decrypted.

    Args:
        before: Frames of one action, the latest one first.
        decrypt: Gives a frame's payload; raises `EncryptionError` where it cannot.

    Returns:
        Its kind and its payload; None and nothing where none can be decrypted.
    """
    for frame in before:
        try:
            return frame.kind, decrypt(frame)
        except EncryptionError:
            continue
    return None, b""


class Beginnings:
    """Opened frames in earlier segments, of actions whose answer in one segment is damaged.

    Nothing is read before the first one is asked for, and then all of them are found at once.
    """

    def __init__(
        self, segment: Segment, earlier: Sequence[Segment], decrypt: Callable[[Frame], bytes]
    ) -> None:
        """Remember where to look.

        Args:
            segment: Where the actions end.
            earlier: The segments before that, in order.
            decrypt: As for `last_known`.
        """
        self._segment = segment
        self._earlier = earlier
        self._decrypt = decrypt
        self._found: dict[bytes, Frame] | None = None

    def of(self, record_id: bytes) -> Sequence[Frame]:
        """Return an action's opened frame, if one is there.

        Raises:
            SpoolReadError: A segment cannot be read now; later it may.
        """
        if self._found is None:
            self._found = self._read()
        found = self._found.get(record_id)
        return () if found is None else (found,)

    def _read(self) -> dict[bytes, Frame]:
        answered: set[bytes] = set()
        wanted: set[bytes] = set()
        for frame in _readable(self._segment):
            if frame.kind is FrameKind.ENDED and frame.record_id not in answered:
                wanted.add(frame.record_id)
            elif frame.kind is FrameKind.ANSWERED and last_known((frame,), self._decrypt)[0]:
                answered.add(frame.record_id)
        return {
            frame.record_id: frame
            for segment in self._earlier
            for frame in _readable(segment)
            if frame.kind in UNDER_WAY and frame.record_id in wanted
        }


def _readable(segment: Segment) -> Iterator[Frame]:
    """Read a segment's frames as far as they are there, and can be read."""
    try:
        with _reading(segment) as file:
            for found in scan(file, end=segment.size):
                if not isinstance(found, Damage):
                    yield found
    except (ForeignError, FileNotFoundError, EOFError):
        return
    except OSError as error:
        if error.errno != EIO:
            raise SpoolReadError(f"the spool cannot be read ({error.strerror})") from error


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
    under_way = FramesUnderWay()
    try:
        with _reading(segment) as file:
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


def _reading(segment: Segment) -> AbstractContextManager[BinaryIO]:
    return segment.place.reading(segment.name, at_most=LARGEST_FILE, buffering=BUFFER_BYTES)
