"""The time that all waits of one shutdown may take together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ShutdownTime:
    """Gives each wait of a shutdown what the waits before it have left.

    The end of a lifespan and the exit of the process behind it are one shutdown, unless something
    was recorded since the first began, another lifespan has started, or the process was forked.
    Only waits use the time up, and not what the process does between them.
    """

    def __init__(self, seconds: float, recorded: Callable[[], int] = lambda: 0) -> None:
        """Begin with the whole time.

        Args:
            seconds: What the waits may take together.
            recorded: How many records this process has made; by default it makes none itself.
        """
        self._seconds = seconds
        self._recorded = recorded
        self._of: tuple[int, int] | None = None
        self._left = seconds

    @contextmanager
    def waits(self) -> Iterator[Callable[[], float]]:
        """Wait with it: yields what says how many seconds are left, 0 or more."""
        state = os.getpid(), self._recorded()
        if self._of != state:
            self._of, self._left = state, self._seconds
        end = time.monotonic() + self._left

        def left() -> float:
            return max(end - time.monotonic(), 0.0)

        try:
            yield left
        finally:
            self._left = left()

    def renew(self) -> None:
        """Give all of it to the next wait: the process has begun something new."""
        self._of = None
