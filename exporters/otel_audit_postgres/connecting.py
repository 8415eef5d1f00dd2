"""The one place where asyncpg is imported and connections are opened."""

from __future__ import annotations

from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.config import plain_dsn
from otel_audit.errors import MissingExtraError, StoreError
from otel_audit_postgres.failures import as_store_error

try:
    import asyncpg
    from asyncpg.exceptions import InsufficientPrivilegeError, LockNotAvailableError
except ImportError as missing:
    raise MissingExtraError("the PostgreSQL audit store", "postgres") from missing

APPLICATION_NAME = "otel-audit"
"""How our connections call themselves in ``pg_stat_activity``."""

Connection = asyncpg.Connection

__all__ = [
    "APPLICATION_NAME",
    "Connection",
    "InsufficientPrivilegeError",
    "LockNotAvailableError",
    "connect",
]


async def connect(dsn: str, timeout: float) -> asyncpg.Connection[Any]:  # noqa: ASYNC109
    """Open a connection of our own.

    Args:
        dsn: ``postgresql://`` or ``postgresql+asyncpg://``.
        timeout: Seconds that it may take.

    Returns:
        The connection.

    Raises:
        StoreUnavailableError: Nobody answers, or the server takes no connections now.
        StoreError: The DSN cannot be read, or user, password or database are refused.
    """
    with suppress_instrumentation():
        try:
            return await asyncpg.connect(
                plain_dsn(dsn),
                timeout=timeout,
                server_settings={"application_name": APPLICATION_NAME},
            )
        except (ValueError, OverflowError):  # the original message may quote parts of the password
            raise StoreError(
                "OTEL_AUDIT_DSN cannot be read, or its options do not fit: it must look like "
                "postgresql://user:password@host:5432/database, special characters percent-encoded"
            ) from None
        except Exception as error:  # noqa: BLE001 - each becomes one of ours
            raise as_store_error(error, "connect to the audit store") from None
