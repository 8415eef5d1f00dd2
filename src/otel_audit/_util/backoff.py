"""Pauses between tries of what fails: each twice as long as the one before, up to a cap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries, in seconds.

    Attributes:
        first: After the first failure; doubles with each, up to ``longest``.
        longest: The cap.
    """

    first: float = 0.1
    longest: float = 15.0

    def pauses(self) -> Iterator[float]:
        """Give one pause after the other, without end."""
        pause = min(self.first, self.longest)
        while True:
            yield pause
            pause = min(pause * 2, self.longest)
