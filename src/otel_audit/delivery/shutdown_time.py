"""The time that all waits of one shutdown may take together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ShutdownTime:
    """Gives each wait of a shutdown what the waits before it have left.

    The end of a lifespan and the exit of the process behind it are one shutdown, unless something
    was recorded in between, or the process was forked.
    """

    def __init__(self, seconds: float, recorded: Callable[[], int]) -> None:
        """Begin with the whole time.

        Args:
            seconds: What the waits may take together.
            recorded: How many records this process has made.
        """
        self._seconds = seconds
        self._recorded = recorded
        self._after: tuple[int, int] | None = None
        self._until = 0.0

    @contextmanager
    def waits(self) -> Iterator[Callable[[], float]]:
        """Wait with it: yields what says how many seconds are left, 0 or more."""
        if self._after != self._state():
            self._until = time.monotonic() + self._seconds
        try:
            yield lambda: max(self._until - time.monotonic(), 0.0)
        finally:
            self._after = self._state()

    def _state(self) -> tuple[int, int]:
        return os.getpid(), self._recorded()
