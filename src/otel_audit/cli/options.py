"""Options that several commands share."""

from __future__ import annotations

import click

from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

dsn_option = click.option(
    "--dsn",
    metavar="DSN",
    help="The audit store; by default what OTEL_AUDIT_DSN says.",
)


def chosen_dsn(dsn: str | None) -> str:
    """Take the DSN of the option, else of the settings.

    Raises:
        ConfigurationError: There is none.
    """
    if dsn is not None:
        return plain_dsn(dsn)
    found = AuditConfig().asyncpg_dsn
    if found is None:
        raise ConfigurationError("no audit store: set OTEL_AUDIT_DSN, or give --dsn")
    return found
