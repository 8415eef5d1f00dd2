"""How fast this machine is, for limits of CPU time that were set on another one."""

from __future__ import annotations

import json
import statistics
import time
from typing import Final


def how_slow() -> float:
    """How many times slower this machine is than the one that the limits were set on, or 1.

    A machine that others use changes its pace within minutes: ask again before a second try.
    """
    # the median, and not the least: what is compared with it takes seconds, in which others use the
    # same caches and half of the same core all the time
    return max(statistics.median(_seconds_of_calls() for _ in range(11)) / _SECONDS_THERE, 1.0)


_SECONDS_THERE: Final = 0.045


def _seconds_of_calls() -> float:
    began = time.thread_time()
    for number in range(30_000):
        json.dumps([number, str(number)])
    return time.thread_time() - began
