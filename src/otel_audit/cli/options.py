"""Options that several commands share."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from otel_audit.config import AuditConfig, plain_dsn
from otel_audit.errors import ConfigurationError

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

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


def moment(text: str | None) -> datetime | None:
    """Read a time: ISO 8601, or how long ago (``90m``, ``12h``, ``7d``, ``2w``).

    Raises:
        click.BadParameter: It is neither.
    """
    if text is None:
        return None
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if ago:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text} is no time: 2026-11-21T12:00:00Z, or 7d") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
