"""Closed frames that are not acknowledged yet: 16 bytes of memory for each."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

_COMPACT_FROM: Final = 65_536


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
