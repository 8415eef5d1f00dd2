"""`otel-audit init`: make the audit store."""

from __future__ import annotations

import asyncio

import click

from otel_audit.cli.options import chosen_dsn, dsn_option


@click.command()
@dsn_option
@click.option("--roles", is_flag=True, help="Create the owner, writer, reader and sealer roles.")
@click.option("--writer", metavar="ROLE", help="Login role that is to write; with --roles.")
@click.option("--reader", metavar="ROLE", help="Login role that is to read; with --roles.")
@click.option("--tenant", "tenants", multiple=True, help="Let --reader see this one only; repeat.")
@click.option("--sealer", metavar="ROLE", help="Login role that is to seal; with --roles.")
@click.option("--sql", "show_sql", is_flag=True, help="Print the SQL instead of running it.")
def init(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    roles: bool,
    writer: str | None,
    reader: str | None,
    sealer: str | None,
    tenants: tuple[str, ...],
    show_sql: bool,
) -> None:
    """Create the schema audit and its tables, or bring them up to date.

    Safe to run again: it does only what is missing, in one transaction, and says what it did.
    Run it as a superuser, or as a role that may create a schema in the database.
    """
    from otel_audit_postgres.schema import init as make_schema
    from otel_audit_postgres.schema import schema_sql

    if show_sql and tenants:
        raise click.UsageError("--tenant cannot be printed: enter it in audit.reader_tenants")
    if show_sql:
        click.echo(schema_sql(roles=roles, writer=writer, reader=reader, sealer=sealer))
        return
    report = asyncio.run(
        make_schema(
            chosen_dsn(dsn),
            roles=roles,
            writer=writer,
            reader=reader,
            sealer=sealer,
            tenants=tenants,
        )
    )
    for line in report.lines:
        click.echo(line)
