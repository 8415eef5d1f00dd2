"""An event between threads that a thread which is cut off at any point leaves whole."""

from __future__ import annotations

import threading
from contextlib import suppress


class AutoResetEvent:
    """Set by any thread, waited for by one; the end of a wait resets it.

    It is one lock, and each method one call of it in C. `threading.Event` and `threading.Condition`
    hold a lock in Python code meanwhile, which a thread that is cut off there keeps for ever.
    `queue.SimpleQueue.get` with a timeout may wait for ever (CPython 3.7 to 3.13 at least): if its
    time is over between the two looks that it takes, it goes on with a negative one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """End the wait under way, or the next one. Never raises."""
        with suppress(RuntimeError):  # it is set already
            self._lock.release()

    def clear(self) -> None:
        """Let the next wait wait, although it was set before."""
        self._lock.acquire(blocking=False)

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is set, and reset it.

        Args:
            timeout: Seconds to wait at most; 0 or less: only look. None: for ever.

        Returns:
            Whether it was set.
        """
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))
