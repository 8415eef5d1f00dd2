"""Parts of an action that could not be described: left out, named in its records, and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.record import INCOMPLETE

_logger = logging.getLogger("otel_audit.action")


class FailedParts(msgspec.Struct, eq=False):
    """The parts of one action that could not be described so far.

    Attributes:
        on_error: Called for each failure of ours.
        failed: Their names.
    """

    on_error: Callable[[], None]
    failed: dict[str, None] = {}

    def fail(self, part: str, error: Exception) -> None:
        """Take note that a part could not be described; it stays counted. Never raises.

        Args:
            part: Its name, as in a record: ``name``, ``target``, ``actor``, ``request``, …
            error: Why.
        """
        self.failed[part] = None
        self.on_error()
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
