"""Which parts of an action could not be described: they are named in its record, and counted.

The bare fact comes first: ids, times, method, path, status and outcome cannot fail. All else
describes it, each part for itself, and a part that fails costs no more than that part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.record import INCOMPLETE, Actor

_logger = logging.getLogger("otel_audit.action")

ACTOR_FAILED: Final = Actor(id="anonymous", type="user", reason="actor_failed")
"""The actor could not be determined: "not known" is never "nobody"."""


class Parts:
    """The parts of one action that could not be described so far."""

    __slots__ = ("_on_error", "failed")

    def __init__(self, on_error: Callable[[], None]) -> None:
        """Begin with none.

        Args:
            on_error: Called for each failure of ours.
        """
        self._on_error = on_error
        self.failed: dict[str, None] = {}

    def fail(self, part: str, error: Exception) -> None:
        """Take note that a part could not be described; it stays counted. Never raises.

        Args:
            part: Its name, as in a record: ``name``, ``target``, ``actor``, ``request``, …
            error: Why.
        """
        self.failed[part] = None
        self._on_error()
        log_limited(
            _logger, f"part {part}", "A part of an action could not be described: %s", part,
            error=error,
        )  # fmt: skip

    def succeed(self, part: str) -> None:
        """Take note that a part which may have failed before is described now."""
        if self.failed:
            self.failed.pop(part, None)

    def named(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Add to a record's metadata which parts are missing or withheld, if any are."""
        return {**metadata, INCOMPLETE: list(self.failed)} if self.failed else metadata
