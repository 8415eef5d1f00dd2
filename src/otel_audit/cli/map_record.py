"""`otel-audit map`: show a record as another system would see it."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo_json_text
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection

    from otel_audit.shapes import Event

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@click.command("map")
@dsn_option
@click.argument("record_id")
@click.option("--to", "name", required=True, metavar="SHAPE", help="native, ocsf, ecs, ….")
@json_option
def map_record(dsn: str | None, record_id: str, name: str, as_json: bool) -> None:
    """Show a record in the format of another system.

    Shapes are native, ocsf (ocsf-1.1.0, ocsf-1.5.0), ecs, cloudevents and fhir. Encrypted personal
    values are pseudonyms, as in a stream. The output is always JSON; with --json it is
    one line.
    """
    from otel_audit_postgres.query.trail import open_trail

    from otel_audit.shapes import UnshapeableError, shape_named

    shape = shape_named(name)

    async def answer() -> list[Event]:
        async with open_trail(chosen_dsn(dsn), views=AuditConfig().record_views) as trail:
            return await trail.ask(
                "show",
                {"id": record_id},
                lambda connection: _events(connection, record_id),
                len,
                ("audit_record", record_id.lower()),
            )

    try:
        found = run_coroutine(answer())
        documents = [shape(event) for event in found]
    except UnshapeableError as error:
        raise click.ClickException(f"record {record_id}: {error}") from None
    if not found:
        raise click.ClickException(f"there is no record {record_id} in the store")
    for document in documents:
        echo_json_text(json.dumps(document, indent=None if as_json else 2))


async def _events(connection: Connection[Any], record_id: str) -> list[Event]:
    """The rows of an id, each with its place in the log."""
    from otel_audit_postgres.ledger.leaves import Leaf, content_hash
    from otel_audit_postgres.ledger.sealed_rows import find_leaf, horizon
    from otel_audit_postgres.pseudonyms import without_ciphertexts
    from otel_audit_postgres.query.queries import show

    from otel_audit.shapes import read_event

    events = []
    log = (await horizon(connection)).origin
    for shown in await show(connection, record_id):
        recorded_us = (shown.found.recorded_at - _EPOCH) // _MICROSECOND
        leaf = Leaf(recorded_us, shown.found.id.bytes, content_hash(shown.payload))
        place = await find_leaf(connection, leaf)
        number, is_as_sealed = (None, True) if place is None else place
        events.append(
            read_event(
                without_ciphertexts(shown.payload), leaf=number, log=log if place else "",
                content_hash=shown.content_hash, is_as_sealed=is_as_sealed,
                recorded_ns=recorded_us * 1000,
            )
        )  # fmt: skip
    return events
