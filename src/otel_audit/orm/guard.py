"""The boundary that no error of ours crosses: it is caught, counted, and logged once a minute."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otel_audit._util.ratelimited_log import log_limited

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("otel_audit.orm")


@dataclass(frozen=True, slots=True)
class ErrorGuard:
    """Errors of our own.

    Attributes:
        tally: Counts one; alone for one that is logged elsewhere.
    """

    tally: Callable[[], None]

    def note(self, key: str, error: BaseException) -> None:
        """Count an error and log its type and place, never its message."""
        self.tally()
        log_limited(logger, f"orm {key}", "ORM capture failed (%s)", key, error=error)
