"""Lines in the log, one a minute at the most for each spool."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

_SECONDS: Final = 60.0
_log = logging.getLogger("otel_audit")


class Complaints:
    """The log of one spool. What is left out is counted elsewhere."""

    __slots__ = ("_next", "_spool")

    def __init__(self, spool: Path) -> None:
        """Name the spool."""
        self._spool = spool
        self._next = 0.0

    def say(self, what: str) -> None:
        """Write a line, unless one was written within the last minute."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS
            _log.error("audit spool %s: %s", self._spool, what)
