"""Delivery before a forked child ends by `os._exit`, as the children of job queues do.

Celery's children of a pool with ``max_tasks_per_child``, RQ's work horses and others end without
`atexit` and without the finalizers of multiprocessing. What they recorded would wait in the spool
until another process of the service records something.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NoReturn

_GRACE = 1.0
"""Seconds beyond the time that delivery itself may take."""


def deliver_before_exit(deliver: Callable[[], object], timeout: float) -> None:
    """Deliver records before this process, a forked child, ends by `os._exit`.

    Args:
        deliver: Delivers what waits; returns at once where nothing does.
        timeout: Seconds that it may take.
    """
    leave = os._exit
    child = os.getpid()

    def deliver_and_exit(status: int) -> NoReturn:
        # not in a child of this one, which has records of its own
        try:
            if os.getpid() == child:
                _within(deliver, timeout)
        finally:
            leave(status)

    os._exit = deliver_and_exit


def _within(deliver: Callable[[], object], timeout: float) -> None:
    # in a thread: a signal handler may call this while its own thread holds a lock of ours
    thread = threading.Thread(target=deliver, name="otel-audit-exit", daemon=True)
    thread.start()
    thread.join(timeout + _GRACE)
