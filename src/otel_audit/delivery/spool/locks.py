"""The lock that distinguishes a living process's spool from a dead one's: flock(2) on an open file.

The kernel gives it back when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final

from otel_audit._util.fork import call_in_child
from otel_audit.delivery.spool.ownership import OwnDirectory

LOCK: Final = "lock"


def create_lock(spool: OwnDirectory) -> int | None:
    """Make and take the lock of a new spool, and see that it keeps others out.

    Returns:
        The file descriptor that holds it; None if locks have no effect on this file system.

    Raises:
        OSError: The file cannot be made, or the file system has no locks.
    """
    held = spool.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        works = _lock(held) and not _can_be_taken(spool)
    except OSError:
        os.close(held)
        raise
    if works:
        _held.add(held)
        return held
    os.close(held)
    return None


def lock_if_dead(spool: OwnDirectory) -> int | None:
    """Take the lock of a spool whose process is gone.

    Returns:
        The file descriptor that holds it; None if its process lives, or another one has it.

    Raises:
        ForeignError: The lock's file is not ours.
        FileNotFoundError: There is none: it was removed meanwhile, a power loss took it, or
            somebody deleted it and its holder may live.
        OSError: The lock's file cannot be opened or locked.
    """
    held = spool.open(LOCK, os.O_RDWR)
    if _lock(held) and is_still(spool, LOCK, held):
        _held.add(held)
        return held
    os.close(held)
    return None


def release(held: int) -> None:
    """Give a lock back, also where a child, forked without Python's hooks, still has its file open.

    In a forked child it does nothing: the lock is the parent's, and the file is closed already.
    """
    if held not in _held:
        return
    _held.discard(held)
    with suppress(OSError):
        fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)


def _forsake() -> None:
    """In a forked child: close the files, else the lock of a killed parent would stay taken."""
    for held in _held:
        with suppress(OSError):
            os.close(held)
    _held.clear()


_held: set[int] = set()
call_in_child(_forsake)


def _can_be_taken(spool: OwnDirectory) -> bool:
    second = spool.open(LOCK, os.O_RDWR)
    try:
        return _lock(second)
    finally:
        os.close(second)


def _lock(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still(place: OwnDirectory, name: str, opened: int) -> bool:
    """Return whether an open file still has its name: an adopter may have removed it."""
    try:
        there = place.look(name)
    except FileNotFoundError:
        return False
    held = os.fstat(opened)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
