"""The boundary that no error of ours crosses: it is caught, counted, and logged once a minute."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from otel_audit._util.ratelimited_log import log_limited

logger = logging.getLogger("otel_audit.orm")


@dataclass(slots=True)
class ErrorGuard:
    """Errors of our own, counted.

    Attributes:
        count: How many there were.
    """

    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tally(self) -> None:
        """Count an error that is logged elsewhere."""
        with self._lock:
            self.count += 1

    def note(self, matter: str, error: BaseException) -> None:
        """Count an error and log its type and place, never its message."""
        with self._lock:
            self.count += 1
        log_limited(logger, f"orm {matter}", "ORM capture failed (%s)", matter, error=error)
