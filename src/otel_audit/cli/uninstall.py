"""`otel-audit uninstall`: remove the audit store."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from dataclasses import asdict

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig


@click.command()
@dsn_option
@click.option("--drop-roles", is_flag=True, help="Remove the group roles, too, if unused.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def uninstall(dsn: str | None, drop_roles: bool, yes: bool, as_json: bool) -> None:
    """Remove the audit store and all of its records.

    It prints what it will remove, and asks for the database's name. It refuses while a legal hold
    is in force. Spools, keys and archives stay; it prints their places. Run it as a superuser.
    """
    from otel_audit_postgres.schema.uninstall import contents, drop_group_roles
    from otel_audit_postgres.schema.uninstall import uninstall as remove

    if as_json and not yes:
        raise click.UsageError("--json asks nothing: add --yes")
    dsn = chosen_dsn(dsn)
    if drop_roles and (done := run_coroutine(drop_group_roles(dsn))) is not None:
        if as_json:
            echo_json({"done": done})
        else:
            echo("there is no audit store in this database any more", *done)
        return
    found = run_coroutine(contents(dsn))
    if not as_json:
        days = "" if found.first is None else f" of {found.first:%Y-%m-%d} to {found.last:%Y-%m-%d}"
        echo(
            f"database {found.database}: schema audit with {found.records} records{days}, its "
            "ledger, quarantine and guards will be removed. There is no backup, and no way back."
        )
    if not yes:
        given = click.prompt("The database's name, to remove it", default="", show_default=False)
        if given != found.database:
            raise click.ClickException("that is not its name: nothing was removed")
    lines = run_coroutine(remove(dsn, drop_roles=drop_roles))
    config = AuditConfig()
    stays = [f"spool (if there is one): {config.spool_path}" if config.has_spool else ""]
    stays += [f"signing key: {config.signing_key_file}" if config.signing_key_file else ""]
    stays += [f"archive: {config.archive}" if config.archive else ""]
    stays += [] if drop_roles else ["roles otel_audit_*: uninstall --drop-roles removes them, too"]
    if as_json:
        echo_json({**asdict(found), "done": lines, "left": [one for one in stays if one]})
        return
    echo(*lines, *(f"left: {one}" for one in stays if one))
    echo("then: pip uninstall otel-audit, and unset OTEL_AUDIT_*")
