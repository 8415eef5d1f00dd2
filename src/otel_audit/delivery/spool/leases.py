"""Leases: they show whether a spool's process lives, where locks may not reach.

On a file system that several machines mount, a lock may be known to one of them only. So a process
there touches its lock's file every few seconds. Another that sees it untouched for long enough, by
his own clock, takes the process for dead. The times in the file are only compared with each other.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from otel_audit.delivery.spool.locks import LOCK
from otel_audit.delivery.spool.manifest import Manifest, boot_id
from otel_audit.delivery.spool.ownership import OwnDirectory

RENEWED_WITHIN: Final = 5.0
"""Seconds within which a living process touches its lock's file."""
EXPIRES_AFTER: Final = 45.0
"""Seconds without a touch after which a process counts as dead: a disk may hang for a while."""

_seen: dict[Path, tuple[int, float]] = {}


class Lease:
    """The lease of this process's own spool."""

    __slots__ = ("_next", "_opened")

    def __init__(self, opened: int) -> None:
        """Remember the lock; it is held already.

        Args:
            opened: The lock's file descriptor.
        """
        self._opened = opened
        self._next = 0.0

    def renew(self) -> None:
        """Touch the lock's file, if it is time to. Never raises."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + RENEWED_WITHIN / 2
            # what cannot be touched shows elsewhere: the spool's own files are looked at
            with suppress(OSError):
                os.utime(self._opened)


def locks_reach(spool: Path, label: Manifest) -> bool:
    """Return whether a lock that its writer holds is seen here, whatever the file system.

    It was proven by the writer that its lock keeps others out. The same kernel has the same locks
    for all that use the same mounted file system, whatever their host's name.
    """
    same_kernel = bool(label.boot_id) and label.boot_id == boot_id()
    return same_kernel and label.device in (0, spool.stat().st_dev)


def has_expired(spool: OwnDirectory) -> bool:
    """Return whether a lease was not renewed for as long as this process has looked.

    Raises:
        OSError: The lock's file cannot be looked at.
    """
    touched = spool.look(LOCK).st_mtime_ns
    now = time.monotonic()
    known = _seen.get(spool.path)
    if known is None or known[0] != touched:
        _seen[spool.path] = (touched, now)
        return False
    return now - known[1] >= EXPIRES_AFTER


def forget(spool: OwnDirectory) -> None:
    """Forget what was seen of a spool that is gone."""
    _seen.pop(spool.path, None)
