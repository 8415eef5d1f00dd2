"""Compares the expected content of a dead process's spool with the found one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from otel_audit.delivery.spool.format import Damage
from otel_audit.delivery.spool.watermarks import Watermark

_UNKNOWN: Final = Watermark(0, 0, 0, 0, 0, 0)


class SegmentFindings(NamedTuple):
    """The findings in one segment.

    Attributes:
        place: Which of the segments it is.
        segment: Its number; 0 where its name is none of ours.
        size: Bytes of its file.
        damages: What in it is not a frame.
        closed: Closed frames that are there, of those that were noted.
        outlived: Damaged frames, by segment and start, that cost no record: of the same action a
            later one is whole.
    """

    place: int
    segment: int
    size: int
    damages: Sequence[Damage]
    closed: int
    outlived: Collection[tuple[int, int]] = ()

    def losses(self, named: Sequence[Damage]) -> list[int]:
        """Return where records may be lost, of damages by their right names."""
        return [
            damage.start
            for damage in named
            if damage.reason != "torn" and (self.place, damage.start) not in self.outlived
        ]


class Expected:
    """Judges what is found by what the process has noted; see `watermarks`."""

    def __init__(self, marks: dict[int, Watermark] | None, *, doubtful: bool) -> None:
        """Remember the notes.

        Args:
            marks: By segment; None if there are none.
            doubtful: Whether there should be some: then nothing that is missing is put down to a
                crash.
        """
        self._marks = marks or {}
        self._doubtful = doubtful

    def is_noted(self, segment: int, end: int) -> bool:
        """Return whether a frame that ends there had been appended when that was noted."""
        return end <= self._marks.get(segment, _UNKNOWN).size

    def judge(self, found: SegmentFindings) -> tuple[list[Damage], int]:
        """Distinguish what a crash leaves from what is lost.

        Args:
            found: What is there, after all segments were read.

        Returns:
            The damages by their right names, and how many records are lost, as far as can be said:
            no more than the unacknowledged ones.
        """
        mark = self._marks.get(found.segment)
        if mark is None:
            named = [self._unless_torn(damage) for damage in found.damages]
            if not found.size and self._doubtful:
                named = [Damage(0, 0, "missing")]
            return named, len(found.losses(named))
        # a crash may cut off the last frame, of an action that is not over, although it was noted
        missed = max(mark.closed - found.closed, 0)
        promised = mark.size if missed else mark.last
        named = [_against(promised, mark.size, damage) for damage in found.damages]
        if found.size < promised and not (named and named[-1].end > found.size):
            named.append(Damage(found.size, mark.size, "missing"))
        places = found.losses(named)
        later = sum(start >= mark.size for start in places)
        lost = min(missed, mark.pending)
        if not lost and mark.open_actions:
            lost = len(places) - later
        return named, lost + later

    def is_out_of_place(self, segment: int, end: int) -> bool:
        """Return whether a frame is where the process has not put it: somebody moved it there.

        What it wrote after the last note stands in the last segment that was noted, or after it.

        Args:
            segment: The number of the one that it is in; 0 where its name is none of ours.
            end: Where it ends.
        """
        last = max(self._marks, default=0)
        return (
            bool(last)
            and segment != last + 1
            and segment != last
            and not self.is_noted(segment, end)
        )

    def gone(self, there: Collection[int], moved: int) -> Iterator[Watermark]:
        """Return the notes on segments that had unacknowledged records, and are gone.

        Args:
            there: The numbers of those that are there.
            moved: Closed frames that are somewhere else than they were.
        """
        for number, mark in self._marks.items():
            if number in there or not (mark.pending or mark.open_actions):
                continue
            found, moved = min(mark.closed, moved), max(moved - mark.closed, 0)
            pending = min(mark.pending, mark.closed - found)
            if pending or not found:
                yield mark._replace(pending=pending)

    def _unless_torn(self, damage: Damage) -> Damage:
        if damage.reason == "torn" and self._doubtful:
            return Damage(damage.start, damage.end, "missing")
        return damage


def _against(promised: int, size: int, damage: Damage) -> Damage:
    if damage.reason == "torn" and damage.start < promised:
        return Damage(damage.start, max(damage.end, size), "missing")
    return damage
