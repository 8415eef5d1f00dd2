"""`otel-audit migrate` and `maintain`: keep the store up to date."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_json


@click.command()
@dsn_option
@click.option("--sql", "show_sql", is_flag=True, help="Print the SQL instead of running it.")
@click.option(
    "--from", "since", type=click.IntRange(0), metavar="VERSION",
    help="With --sql: the store's version, so that no database is needed.",
)  # fmt: skip
@click.option("--roles", is_flag=True, help="With --from: the store has the group roles.")
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if it is behind.")
@json_option
def migrate(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    show_sql: bool,
    since: int | None,
    roles: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Bring an existing audit store up to date.

    It runs in one transaction, and can be repeated. A store never goes back to an earlier version.
    Run it as the role that ran init. --check works with any role that may read the store.
    """
    from otel_audit_postgres.schema import install

    if (since is not None or roles) and not show_sql:
        raise click.UsageError("--from and --roles are for --sql")
    if check:
        if show_sql:
            raise click.UsageError("--check changes nothing: leave out --sql")
        _check(dsn, as_json=as_json)
        return
    if not show_sql:
        done = run_coroutine(install.migrate(chosen_dsn(dsn)))
        if as_json:
            echo_json(asdict(done))
        else:
            echo(*done.lines)
        return
    if since is None:
        since, roles = run_coroutine(install.missing_migrations(chosen_dsn(dsn)))
    echo(*install.schema_sql(roles=roles, since=since).split("\n"))


def _check(dsn: str | None, *, as_json: bool) -> None:
    from otel_audit_postgres.schema import install

    found = run_coroutine(install.waiting_migrations(chosen_dsn(dsn)))
    if as_json:
        echo_json(asdict(found))
    elif found.waiting:
        echo(
            f"version {found.version} of {found.latest}; to apply: {', '.join(found.waiting)}",
            "run `otel-audit migrate` as whoever ran init",
        )
    else:
        echo(f"up to date at version {found.version}")
    sys.exit(1 if found.waiting else 0)


@click.command()
@dsn_option
# this month and two more: a timer that fails has a month to be noticed in
@click.option(
    "--ahead", type=click.IntRange(0, 12), default=2, show_default=True, metavar="MONTHS",
    help="How many months ahead partitions are made.",
)  # fmt: skip
@click.option(
    "--month", "months", type=click.DateTime(["%Y-%m"]), multiple=True, metavar="YYYY-MM",
    help="Move this month's rows from the default partition into its own; repeat.",
)  # fmt: skip
@json_option
def maintain(dsn: str | None, ahead: int, months: tuple[datetime, ...], as_json: bool) -> None:
    """Make the partitions of the months ahead.

    Reports what is in the default one. Run it from a timer; a running application does the same
    once a day. Exit status 1 if a month has no partition: its records are kept in the default
    one, so nothing is lost. Also 1 if the default one is detached: such records then wait in the
    spools.
    """
    from otel_audit_postgres.schema.partitions import DEFAULT_DETACHED
    from otel_audit_postgres.schema.partitions import maintain as keep_up

    done = run_coroutine(
        keep_up(chosen_dsn(dsn), ahead=ahead, months=[month.date() for month in months])
    )
    if as_json:
        echo_json(asdict(done))
        sys.exit(0 if done.ok else 1)
    for partition in done.partitions:
        detail = f": {partition.detail}" if partition.detail else ""
        echo(f"partition {partition.name}: {partition.state}{detail}")
    for month, rows in done.in_default.items():
        echo(
            f"default partition: {rows} rows of {month}; to give it a partition of its own: "
            f"otel-audit maintain --month {month}"
        )
    if not done.has_default:
        echo(DEFAULT_DETACHED)
    elif not done.in_default:
        echo("default partition: empty")
    sys.exit(0 if done.ok else 1)
