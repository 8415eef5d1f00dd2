"""`otel-audit init`: make the audit store."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit_postgres.schema.create import Created

_WRITER: Final = "app_audit"
_READER: Final = "auditor"


@click.command()
@dsn_option
@click.option("--roles", is_flag=True, help="Create the group roles, and guard the schema.")
@click.option("--writer", metavar="ROLE", help="Login role that is to write; with --roles.")
@click.option("--reader", metavar="ROLE", help="Login role that is to read; with --roles.")
@click.option("--tenant", "tenants", multiple=True, help="Let --reader see this one only; repeat.")
@click.option("--sealer", metavar="ROLE", help="Login role that is to seal; with --roles.")
@click.option("--retention", metavar="ROLE", help="Login role for retention; with --roles.")
@click.option("--viewer", metavar="ROLE", help="Login role of the viewer; with --roles.")
@click.option("--streamer", metavar="ROLE", help="Login role of streams; with --roles.")
@click.option("--outbox", is_flag=True, help="Make the outbox in an application's own database.")
@click.option("--application", metavar="ROLE", help="The application's role; with --outbox.")
@click.option("--relay", metavar="ROLE", help="Role that empties the outbox; with --outbox.")
@click.option("--create", is_flag=True, help="Make the database and login roles, too.")
@click.option("--sql", "show_sql", is_flag=True, help="Print the SQL instead of running it.")
@json_option
def init(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    roles: bool,
    writer: str | None,
    reader: str | None,
    sealer: str | None,
    retention: str | None,
    viewer: str | None,
    streamer: str | None,
    tenants: tuple[str, ...],
    outbox: bool,
    application: str | None,
    relay: str | None,
    create: bool,
    show_sql: bool,
    as_json: bool,
) -> None:
    """Create the audit store, or bring it up to date.

    Safe to run again: it adds only what is missing, in one transaction, and prints what it did.
    Run it as a superuser, or as a role that may create a schema in the database.

    --create makes the database, and the login roles that --writer, --reader and so on name, each
    with a new password; without names app_audit writes and auditor reads. Roles for an existing
    store are named alone: --create --sealer sealer. It prints their DSNs, once, and what to do
    next.

    With --outbox it makes only the table audit.outbox, for OTEL_AUDIT_ORM=transactional: in the
    application's own database, which --dsn or OTEL_AUDIT_OUTBOX_DSN names.
    """
    others = (roles, create, writer, reader, sealer, retention, viewer, streamer, tenants)
    _refuse_contradictions(
        (outbox and any(others), "--outbox makes nothing else: run init again without it"),
        (not outbox and (application or relay), "--application and --relay need --outbox"),
        (create and show_sql, "--create runs what it makes: leave out --sql"),
        (show_sql and tenants, "--tenant cannot be printed: enter it in audit.reader_tenants"),
    )
    if outbox:
        _init_outbox(dsn, application, relay, show_sql=show_sql, as_json=as_json)
        return
    from otel_audit_postgres.schema.install import init as make_schema
    from otel_audit_postgres.schema.install import schema_sql

    if create:
        roles = True
        # who adds a sealer to a store must not get a further role that writes
        if writer or reader or not (sealer or retention or viewer or streamer):
            writer, reader = writer or _WRITER, reader or _READER
    if show_sql:
        sql = schema_sql(
            roles=roles,
            writer=writer,
            reader=reader,
            sealer=sealer,
            retention=retention,
            viewer=viewer,
            streamer=streamer,
        )
        echo(*sql.split("\n"))
        return
    dsn = chosen_dsn(dsn)
    made = None
    if create:
        from otel_audit_postgres.schema.create import create_missing

        named = (writer, reader, sealer, retention, viewer, streamer)
        made = run_coroutine(create_missing(dsn, [one for one in named if one]))
    report = run_coroutine(
        make_schema(
            dsn,
            roles=roles,
            writer=writer,
            reader=reader,
            sealer=sealer,
            retention=retention,
            tenants=tenants,
            viewer=viewer,
            streamer=streamer,
        )
    )
    if as_json:
        echo_json({**asdict(report), "created": None if made is None else asdict(made)})
        return
    if made is not None and made.database is not None:
        echo(f"database {made.database}: created")
    echo(*report.lines)
    _print_next_steps(dsn, made, writer, reader)


def _refuse_contradictions(*found: tuple[object, str]) -> None:
    for is_so, message in found:
        if is_so:
            raise click.UsageError(message)


def _print_next_steps(
    dsn: str, made: Created | None, writer: str | None, reader: str | None
) -> None:
    """Print what to set and to run; passwords are shown here and nowhere else."""
    if made is None and writer is None:
        echo("next: otel-audit doctor", err=True)
        return
    dsns = {} if made is None else made.dsns
    if writer is not None:
        echo("", "next, where the application runs:")
        echo(f"  export OTEL_AUDIT_DSN='{_dsn_of(writer, dsns, dsn)}'")
        echo("  otel-audit doctor", "  otel-audit run uvicorn app:app")
    if reader is not None:
        echo("and where it is looked at:" if writer else "next, where it is looked at:")
        echo(f"  export OTEL_AUDIT_DSN='{_dsn_of(reader, dsns, dsn)}'")
        echo("  otel-audit search")
    for role, text in dsns.items():
        if role not in (writer, reader):
            echo(f"{role}: {text}")
    if any(role is not None and role not in dsns for role in (writer, reader)):
        echo("(… is the role's own password: init shows one only when it makes the role)")


def _dsn_of(role: str, made: Mapping[str, str], dsn: str) -> str:
    from otel_audit_postgres.schema.create import dsn_for

    return made.get(role) or dsn_for(dsn, role).replace("@", ":…@", 1)


def _init_outbox(
    dsn: str | None, application: str | None, relay: str | None, *, show_sql: bool, as_json: bool
) -> None:
    from otel_audit_postgres.outbox import init_outbox, outbox_sql

    if show_sql:
        echo(*outbox_sql(application=application, relay=relay).split("\n"))
        return
    if dsn is None:
        dsn = AuditConfig().outbox_asyncpg_dsn
    if dsn is None:
        raise ConfigurationError(
            "no database of the application: set OTEL_AUDIT_OUTBOX_DSN, or give --dsn"
        )
    lines = run_coroutine(init_outbox(plain_dsn(dsn), application=application, relay=relay))
    if as_json:
        echo_json({"lines": lines})
        return
    echo(*lines)
