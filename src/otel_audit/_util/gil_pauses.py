"""Pauses in the long computations of a background thread, in which others get the interpreter.

A thread that computes keeps the interpreter's lock for 5 milliseconds at a time
(`sys.getswitchinterval`, which is the application's), and the thread that serves requests waits.
Releasing the lock for no time changes nothing: a waiting thread needs longer to wake up than this
one needs to take the lock again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_SHORTEST: Final = 0.001
"""Seconds of work between two pauses where another thread has wanted the interpreter just now.

After each pause the processor's caches hold what the other thread needed: with 0.3 ms a row took
1.3 to 2.3 times the processor time.
"""

_LONGEST: Final = 0.002
"""The same where none has for a while: pauses then take a twentieth of the time."""

_FEW: Final = 6
"""Items that take less time than a pause is worth."""

_PAUSE: Final = 0.00005
"""Seconds: long enough that a waiting thread wakes up; `sleep(0)` lets none in."""
_ALONE: Final = 0.0003
"""Seconds that a pause takes at most if nobody else has run in it."""


def with_pauses(items: Sequence[T]) -> Iterable[T]:
    """Yield items, and pause between two of them now and then.

    For a few items nothing pauses, nor in the main thread, for which others are to make room.

    Args:
        items: Each takes some work, of its own or of the caller's.
    """
    if len(items) < _FEW or threading.current_thread() is threading.main_thread():
        return items
    return _paused_between(items)


def _paused_between(items: Iterable[T]) -> Iterator[T]:
    clock = time.perf_counter
    work = _SHORTEST
    until = clock() + work
    for item in items:
        yield item
        now = clock()
        if now >= until:
            time.sleep(_PAUSE)
            then = clock()
            work = _SHORTEST if then - now > _ALONE else min(work * 2, _LONGEST)
            until = then + work
