"""`otel-audit relay`: bring to the store what applications have left in their outbox."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import asyncio
import logging
import signal

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit._util.printable import log_to_stderr
from otel_audit.cli.options import json_option
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.outbox_relay import BATCH_BYTES, Outbox, Relay, RelayOptions, relay_all
from otel_audit.delivery.sink import Sink
from otel_audit.errors import ConfigurationError


@click.command()
@click.option("--outbox-dsn", metavar="DSN", help="The application's database. Default: "
              "OTEL_AUDIT_OUTBOX_DSN, else OTEL_AUDIT_DSN.")  # fmt: skip
@click.option("--follow", is_flag=True, help="Run until SIGTERM or SIGINT.")
@json_option
def relay(outbox_dsn: str | None, *, follow: bool, as_json: bool) -> None:
    """Move records from audit.outbox to the audit store.

    Use it if the application is stopped, or does not relay itself. Any number may run at the same
    time, also beside the applications. The destination is set as for an application:
    OTEL_AUDIT_DSN, or OTEL_AUDIT_EXPORTER and what belongs to it.
    """
    from otel_audit_postgres.outbox import PostgresOutbox

    from otel_audit.runtime import sink_maker

    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    config = AuditConfig()
    dsn = config.outbox_asyncpg_dsn if outbox_dsn is None else plain_dsn(outbox_dsn)
    if dsn is None:
        raise ConfigurationError("no outbox: set OTEL_AUDIT_OUTBOX_DSN, or give --outbox-dsn")
    if not config.active or config.exporter == "none":
        raise ConfigurationError("no audit store: set OTEL_AUDIT_DSN")
    make_sink = sink_maker(config)
    outbox = PostgresOutbox(dsn, connect_timeout=config.connect_timeout)
    if follow:
        run_coroutine(_follow(outbox, make_sink(), config, as_json=as_json))
    else:
        run_coroutine(_once(outbox, make_sink(), config.batch_size, as_json=as_json))


async def _once(outbox: Outbox, sink: Sink, batch_size: int, *, as_json: bool) -> None:
    counters = Counters()
    try:
        await outbox.check()
        await sink.check()
        await relay_all(outbox, sink, counters, BatchSize(batch_size, BATCH_BYTES))
        left = (await outbox.state()).depth
    finally:
        await outbox.close()
        await sink.close()
    if as_json:
        echo_json({
            "relayed": counters.relayed, "quarantined": counters.quarantined, "left": left
        })  # fmt: skip
        return
    echo(f"relayed {counters.relayed} records")
    if counters.quarantined:
        echo(f"{counters.quarantined} records were refused, and are in quarantine")
    if left:
        echo(f"{left} records are left: written meanwhile, or taken by another relay")


async def _follow(outbox: Outbox, sink: Sink, config: AuditConfig, *, as_json: bool) -> None:
    counters = Counters()
    options = RelayOptions(interval=config.outbox_interval, batch_size=config.batch_size)
    worker = Relay(lambda: outbox, lambda: sink, counters, options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await outbox.check()
    finally:
        await outbox.close()
    worker.start()
    await stop.wait()
    await asyncio.to_thread(worker.close, config.shutdown_timeout)
    if as_json:
        echo_json({"relayed": counters.relayed, "quarantined": counters.quarantined})
    else:
        echo(f"relayed {counters.relayed} records")
