"""`otel-audit quarantine`: what a receiver has refused, kept on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from otel_audit.cli.terminal import echo, echo_document
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.pipeline.quarantine import Kept, LocalQuarantine, services_with_quarantine


@click.command()
@click.option(
    "--spool-dir",
    type=click.Path(path_type=Path),
    help="By default what OTEL_AUDIT_SPOOL_DIR says.",
)
@click.option("--service", help="Only of this service.")
@click.option("--show", metavar="ID", help="Print what was refused under this record id.")
@click.option(
    "--retry", is_flag=True,
    help="Put the records back into the spool: the service's next or running process sends them.",
)  # fmt: skip
def quarantine(
    spool_dir: Path | None, service: str | None, show: str | None, *, retry: bool
) -> None:
    """List records that an OTLP receiver refused, and why; or send them again.

    They are kept beside the spool. What PostgreSQL refuses is in the table audit.quarantine.
    """
    config = AuditConfig() if spool_dir is None else AuditConfig(spool_dir=spool_dir)
    found = list(_quarantines(config, service))
    if retry:
        for name, place in found:
            echo(f"{name}: {_put_back(config, name, place)} records put back into the spool")
        return
    kept = [item for _, place in found for item in place.read()]
    if show is not None:
        _show([item for item in kept if item.refused.record_id == show], show)
        return
    for item in kept:
        when = datetime.fromtimestamp(item.kept_at, UTC)
        identity = item.refused.record_id or "no id"
        echo(f"{when:%Y-%m-%d %H:%M:%S} UTC  {identity}  {item.refused.reason}")
    echo(f"{len(kept)} refused records in {config.spool_dir}")


def _quarantines(config: AuditConfig, service: str | None) -> Iterator[tuple[str, LocalQuarantine]]:
    from otel_audit.pipeline.setup import local_quarantine

    for name in services_with_quarantine(config.spool_dir):
        if service in (None, name):
            yield name, local_quarantine(config, name)


def _put_back(config: AuditConfig, service: str, place: LocalQuarantine) -> int:
    from otel_audit.pipeline.destination import destination_digest
    from otel_audit.pipeline.setup import spool_sealing
    from otel_audit.pipeline.spool import Kind, open_spool

    spool = open_spool(
        config.spool_dir,
        service=service,
        max_bytes=config.spool_max_bytes,
        segment_bytes=config.spool_segment_bytes,
        sealing=spool_sealing(config),
        destination=destination_digest(config),
    )

    def take(record_id: str, text: bytes) -> None:
        spool.append(Kind.CLOSED, record_id, text)
        spool.sync()

    try:
        return place.give_back(take)
    finally:
        spool.close()


def _show(items: list[Kept], record_id: str) -> None:
    if not items:
        raise ConfigurationError(f"nothing was refused under the id {record_id}")
    for item in items:
        echo_document(item.refused.received.decode("utf-8", "replace"))
