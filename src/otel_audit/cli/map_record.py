"""`otel-audit map`: show a record as another system would see it."""

from __future__ import annotations

import json

import click

from otel_audit._util.loop_thread import run_lasting
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo_json_text
from otel_audit.config import AuditConfig


@click.command("map")
@dsn_option
@click.argument("record_id")
@click.option("--to", "name", required=True, metavar="SHAPE", help="native, ocsf, ecs, ….")
@json_option
def map_record(dsn: str | None, record_id: str, name: str, as_json: bool) -> None:
    """Show a record as another system would see it.

    Shapes are native, ocsf (ocsf-1.1.0, ocsf-1.5.0), ecs, cloudevents and fhir. What is printed is
    JSON in any case; with --json it is one line.
    """
    from otel_audit_postgres.query.queries import Shown
    from otel_audit_postgres.query.trail import open_trail

    from otel_audit.shapes import UnshapeableError, read_event, shape_named

    shape = shape_named(name)

    async def answer() -> tuple[Shown, ...]:
        async with open_trail(chosen_dsn(dsn), views=AuditConfig().record_views) as trail:
            return await trail.show(record_id)

    found = run_lasting(answer())
    if not found:
        raise click.ClickException(f"there is no record {record_id} in the store")
    for shown in found:
        try:
            event = read_event(
                shown.payload,
                leaf=None,
                log="",
                content_hash=shown.content_hash,
                recorded_ns=int(shown.found.recorded_at.timestamp() * 1000) * 1_000_000,
            )
            document = shape(event)
        except UnshapeableError as error:
            raise click.ClickException(f"record {record_id}: {error}") from None
        echo_json_text(json.dumps(document, indent=None if as_json else 2))
