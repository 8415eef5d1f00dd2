"""Locks of which a thread can tell that it holds them.

Code that we do not choose may run in the middle of ours, on the same thread: a signal handler, what
the garbage collector ends (a generator with an open action in it), a logging handler. If it records
something, it must neither wait for a lock that its own thread holds, nor change what is half
changed under that lock. So it asks first, and what it wants is done when the lock is free again.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from otel_audit._util.fork import call_in_child

OwnLock: TypeAlias = Any
"""A `threading.RLock`: only one that has an owner can say who that is. Used by ``with``, which is
one call in C, so that a thread which is cut off leaves it free."""

_owned: Final[dict[int, Callable[[], Any]]] = {}
"""Weak references to all of these locks; each step is one operation on a dictionary."""

_numbers: Final = itertools.count()


def own_lock() -> OwnLock:
    """Make a lock."""
    lock = threading.RLock()
    number = next(_numbers)
    _owned[number] = weakref.ref(lock, lambda _: _owned.pop(number, None))
    return lock


def is_mine(lock: OwnLock) -> bool:
    """Return whether the calling thread holds a lock."""
    found: bool = lock._is_owned()  # noqa: SLF001 - threading.Condition asks it the same way
    return found


def holds_any() -> bool:
    """Return whether the calling thread holds any of these locks."""
    for alive in list(_owned.values()):
        lock = alive()
        if lock is not None and is_mine(lock):
            return True
    return False


# first of all, as what is made anew in a child has its locks anew: an old one may seem to belong to
# a thread that has got the number of the parent's
call_in_child(_owned.clear)
