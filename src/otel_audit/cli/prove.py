"""`otel-audit prove`: evidence that is checked without access to the store."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.ledger.prove import Bundle


@click.command()
@dsn_option
@click.argument("record_id", required=False)
@click.option("--entity", help="Prove every sealed record about it, such as order:123.")
@click.option(
    "--grown-from", type=click.File("r", encoding="utf-8"), metavar="FILE",
    help="Prove that the log begins with the log of an earlier checkpoint, held in FILE.",
)  # fmt: skip
@click.option(
    "--key", "keys", multiple=True, help="Public key to include, or its file. Repeatable."
)
@click.option("--out", type=click.Path(path_type=Path), help="Directory to make.")
@json_option
def prove(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    record_id: str | None,
    entity: str | None,
    grown_from: TextIO | None,
    keys: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Write evidence of a record, a history or the log's growth.

    RECORD_ID may be the first digits of an id, as search shows it.

    The directory holds evidence.json and verify.py, which checks it with Python alone, offline.
    """
    if sum(given is not None for given in (record_id, entity, grown_from)) != 1:
        raise click.UsageError("give one of RECORD_ID, --entity and --grown-from")
    from otel_audit_postgres.ledger import prove as ledger
    from otel_audit_postgres.ledger.settings import chosen_public_keys

    config = AuditConfig()
    public, store = chosen_public_keys(config, keys), chosen_dsn(dsn)
    bundle: Bundle
    if record_id is not None:
        record_id = run_coroutine(_full_id(store, record_id))
        bundle = run_coroutine(ledger.prove_record(store, record_id, public))
    elif entity is not None:
        bundle = run_coroutine(ledger.prove_entity(store, entity, public))
    else:
        assert grown_from is not None  # noqa: S101 - one of the three is given
        bundle = run_coroutine(ledger.prove_growth(store, grown_from.read(), public))
    run_coroutine(_record(store, config, record_id or entity or "growth", bundle))
    directory = out or Path(f"evidence-{_plain(record_id or entity or 'growth')}")
    ledger.write(bundle, directory)
    if as_json:
        echo_json({
            "directory": str(directory), "records": len(bundle.get("records", ())),
            "keys": len(public),
        })  # fmt: skip
        return
    echo(f"{directory}: evidence written. To check it, run there: python verify.py")
    if not public:
        echo("the evidence has no public key: name one with --key", colour="yellow", err=True)


async def _full_id(store: str, beginning: str) -> str:
    from otel_audit_postgres.query.trail import open_trail

    async with open_trail(store) as trail:
        return await trail.full_id(beginning)


async def _record(store: str, config: AuditConfig, what: str, bundle: Bundle) -> None:
    """Evidence that leaves the store is a look into it."""
    from otel_audit_postgres.query.trail import open_trail

    async with open_trail(store, views=config.record_views) as trail:
        await trail.proved(what, len(bundle.get("records", ())))


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)[:100]
