"""The boundary that no error of ours crosses: it is caught, counted, and logged once a minute."""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec

from otel_audit._util.ratelimited_log import log_limited

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("otel_audit.orm")

_P = ParamSpec("_P")


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

    def guard(self, listener: Callable[_P, None]) -> Callable[_P, None]:
        """Wrap a listener so that the application never sees its errors."""
        name = listener.__name__.strip("_")

        @functools.wraps(listener)
        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
            try:
                listener(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - must not reach the application
                self.note(name, error)

        return guarded
