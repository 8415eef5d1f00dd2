"""Pauses between tries: each twice as long as the one before, up to a cap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

FIRST_PAUSE: Final = 0.1
"""Seconds: what is away for a moment only, such as a pooler that restarts, delays no longer."""
LONGEST_PAUSE: Final = 15.0
"""Seconds: once a store is back, it is tried again after so long at most."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries, in seconds.

    Attributes:
        first: After the first failure; doubles with each, up to ``longest``.
        longest: The cap.
    """

    first: float = FIRST_PAUSE
    longest: float = LONGEST_PAUSE

    def pauses(self) -> Iterator[float]:
        """Give one pause after the other, without end."""
        pause = min(self.first, self.longest)
        while True:
            yield pause
            pause = min(pause * 2, self.longest)
