"""Options that several commands share."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import re
from datetime import datetime
from typing import Final

import click

from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.cli.dev_store import dev_hint
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

_DSN_GIVEN: Final = "otel_audit.dsn_given"


def _note_dsn(context: click.Context, _parameter: click.Parameter, dsn: str | None) -> str | None:
    if dsn is not None:
        context.meta[_DSN_GIVEN] = True
    return dsn


def is_dsn_given(context: click.Context) -> bool:
    """Whether the command was given ``--dsn``, so that errors name it."""
    return context.meta.get(_DSN_GIVEN, False) is True


dsn_option = click.option(
    "--dsn",
    callback=_note_dsn,
    metavar="DSN",
    help="The audit store. Default: OTEL_AUDIT_DSN.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
local_option = click.option(
    "--local", "is_local", is_flag=True, help="Show times in this machine's time zone, not in UTC."
)


def seconds(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """Read a duration in seconds: `30s`, `15m`, or a number. A callback of an option."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not a duration: expected 30s, 15m, 12h or 7d", context, parameter
        )
    return float(found[1]) * _SECONDS[found[2]]


def chosen_dsn(dsn: str | None) -> str:
    """Return the DSN of the option, otherwise of the settings.

    Raises:
        ConfigurationError: There is none.
    """
    if dsn is not None:
        return plain_dsn(dsn)
    found = AuditConfig().asyncpg_dsn
    if found is None:
        raise ConfigurationError(f"no audit store: set OTEL_AUDIT_DSN, or give --dsn{dev_hint()}")
    return found


def read_time(text: str | None) -> datetime | None:
    """Read a time: ISO 8601, a duration before now (``12h``, ``7d``), or ``yesterday``.

    Raises:
        click.BadParameter: It is none.
    """
    from otel_audit_postgres.query.times import parse_time

    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
