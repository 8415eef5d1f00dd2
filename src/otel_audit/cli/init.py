"""`otel-audit init`: make the audit store."""

from __future__ import annotations

import click

from otel_audit._util.loop_thread import run_lasting
from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.terminal import echo
from otel_audit.config import AuditConfig


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
@click.option("--sql", "show_sql", is_flag=True, help="Print the SQL instead of running it.")
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
    show_sql: bool,
) -> None:
    """Create the audit store, or bring it up to date.

    Safe to run again: it does only what is missing, in one transaction, and says what it did.
    Run it as a superuser, or as a role that may create a schema in the database.

    With --outbox it makes only the table audit.outbox, for OTEL_AUDIT_ORM=transactional: in the
    application's own database, which --dsn or OTEL_AUDIT_OUTBOX_DSN names.
    """
    if outbox:
        if roles or writer or reader or sealer or retention or viewer or streamer or tenants:
            raise click.UsageError("--outbox makes nothing else: run init again without it")
        _init_outbox(dsn, application, relay, show_sql=show_sql)
        return
    if application or relay:
        raise click.UsageError("--application and --relay need --outbox")
    from otel_audit_postgres.schema.install import init as make_schema
    from otel_audit_postgres.schema.install import schema_sql

    if show_sql and tenants:
        raise click.UsageError("--tenant cannot be printed: enter it in audit.reader_tenants")
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
    report = run_lasting(
        make_schema(
            chosen_dsn(dsn),
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
    echo(*report.lines)


def _init_outbox(
    dsn: str | None, application: str | None, relay: str | None, *, show_sql: bool
) -> None:
    from otel_audit_postgres.outbox import init_outbox, outbox_sql

    if show_sql:
        echo(*outbox_sql(application=application, relay=relay).split("\n"))
        return
    if dsn is None:
        dsn = AuditConfig().outbox_asyncpg_dsn
    lines = run_lasting(init_outbox(chosen_dsn(dsn), application=application, relay=relay))
    echo(*lines)
