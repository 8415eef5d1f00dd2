"""`otel-audit seal`: seal what is stored into the ledger."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click
from opentelemetry import metrics

from otel_audit._util.loop_thread import WorkerLoop
from otel_audit._util.printable import log_to_stderr
from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.ledger.sealer import Sealer
    from otel_audit_postgres.retention.metrics import RetentionWatch

_UNSIGNED = (
    "UNSIGNED: no OTEL_AUDIT_SIGNING_KEY_FILE is set. Whoever owns the database can rewrite rows "
    "and ledger together, and verify will not see it. Make a key: otel-audit keygen FILE"
)


@click.command()
@dsn_option
@click.option("--once", is_flag=True, help="Seal the waiting rows, then exit.")
@click.option("--key-file", type=click.Path(path_type=Path), help="The private key's file.")
@click.option("--anchor", "anchors", multiple=True, help="Anchor to publish to; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="With --once: print JSON.")
def seal(
    dsn: str | None, once: bool, key_file: Path | None, anchors: tuple[str, ...], as_json: bool
) -> None:
    """Seal stored rows into the ledger, sign it and publish it.

    Runs until SIGTERM or SIGINT, unless --once is given. Any number may run: one works, the others
    stand by. Run it apart from the applications, as a member of otel_audit_sealer.
    """
    from otel_audit_postgres.ledger.anchors import anchors_from
    from otel_audit_postgres.ledger.metrics import publish
    from otel_audit_postgres.ledger.sealer import Sealer
    from otel_audit_postgres.ledger.settings import chosen_signer
    from otel_audit_postgres.retention.metrics import RetentionWatch
    from otel_audit_postgres.retention.metrics import publish as publish_retention

    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    config = AuditConfig()
    signer = chosen_signer(config, key_file)
    if signer is None:
        echo(_UNSIGNED, colour="yellow", err=True)
    sealer = Sealer(
        chosen_dsn(dsn),
        signer=signer,
        anchors=anchors_from(anchors or config.anchor),
        batch=config.seal_batch,
        connect_timeout=config.connect_timeout,
    )
    meter = metrics.get_meter("otel_audit")
    publish(meter, sealer)
    watch = RetentionWatch(chosen_dsn(dsn))
    if not once:
        publish_retention(meter, watch)
    # its threads do not hold up the end where an anchor hangs
    with asyncio.Runner(loop_factory=WorkerLoop) as runner:
        runner.run(
            _once(sealer, as_json=as_json)
            if once
            else _for_ever(sealer, config.seal_interval, watch)
        )


async def _once(sealer: Sealer, *, as_json: bool) -> None:
    try:
        done = await sealer.seal()
        rows, faulty, malformed = done.rows, list(done.faulty), len(done.malformed)
        while done.rows:
            done = await sealer.seal()
            rows += done.rows
            faulty += done.faulty
            malformed += len(done.malformed)
        await sealer.end_publications()
    finally:
        await sealer.close()
    if done.is_held_up:
        raise click.ClickException(done.held_up_by())
    if as_json:
        echo_json({
            "leads": done.leads, "sealed": rows, "size": done.size, "malformed": malformed,
            "faulty": faulty,
        })  # fmt: skip
    elif not done.leads:
        echo("another sealer is running")
    else:
        echo(f"sealed {rows} rows; the log has {done.size}")
    if not done.leads:
        return
    if malformed and not as_json:
        echo(f"{malformed} of them were inserted malformed: `otel-audit verify` names them")
    if faulty:
        raise click.ClickException(
            f"{len(faulty)} rows were changed or deleted before they were sealed; "
            f"the first is {faulty[0]}"
        )
    if sealer.failed_publications:
        raise click.ClickException("a checkpoint could not be published; see the log")


async def _for_ever(sealer: Sealer, interval: float, watch: RetentionWatch) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watching = asyncio.create_task(watch.run())
    try:
        await sealer.run(stop, interval)
        await sealer.end_publications()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await sealer.close()
