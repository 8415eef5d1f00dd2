"""The log lines of the sink: its own, and one line of JSON for each request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from otel_audit._util.printable import ascii_json, log_to_stderr

logger: Final = logging.getLogger("otel_audit.server")
_access: Final = logging.getLogger("otel_audit.server.access")

_LONGEST_PATH: Final = 200
"""Characters of a path in the log: a sender chooses them."""


def write(  # noqa: PLR0913, PLR0917 - one for each part of a line
    method: str,
    path: str,
    status: int,
    client: str | None,
    seconds: float,
    extra: Mapping[str, Any],
) -> None:
    """Write one request's line.

    Args:
        method: The HTTP method, or ``gRPC``.
        path: Its path.
        status: Of HTTP or of gRPC.
        client: The address that it came from.
        seconds: How long it took.
        extra: What else is known of it.
    """
    if not _access.isEnabledFor(logging.INFO):
        return
    line = {
        "method": method,
        "path": path[:_LONGEST_PATH],
        "status": status,
        "client": client,
        "duration_ms": round(seconds * 1000, 1),
        **extra,
    }
    _access.info("%s", ascii_json(msgspec.json.encode(line).decode()))


def to_stderr() -> None:
    """Write log lines to standard error; those of requests are JSON alone."""
    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    if not _access.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _access.addHandler(handler)
        _access.propagate = False
