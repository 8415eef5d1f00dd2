"""How fast this machine is, for limits of CPU time that were set on another one."""

from __future__ import annotations

import json
import time
from typing import Final


def how_slow() -> float:
    """How many times slower this machine is than the one that the limits were set on, or 1.

    A machine that others use changes its pace within minutes: ask again before a second try.
    """
    return max(min(_seconds_of_calls() for _ in range(5)) / _SECONDS_THERE, 1.0)


_SECONDS_THERE: Final = 0.045


def _seconds_of_calls() -> float:
    began = time.thread_time()
    for number in range(30_000):
        json.dumps([number, str(number)])
    return time.thread_time() - began
