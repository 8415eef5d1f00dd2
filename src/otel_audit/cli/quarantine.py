"""`otel-audit quarantine`: what a receiver or PostgreSQL refused, and what to do with it."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.cli.options import dsn_option
from otel_audit.cli.terminal import echo, echo_document, echo_json
from otel_audit.config import AuditConfig
from otel_audit.delivery.local_quarantine import (
    LocalQuarantine,
    QuarantinedRecord,
    services_with_quarantine,
)
from otel_audit.delivery.spool import damaged_files
from otel_audit.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from otel_audit_postgres.quarantine_review import QuarantinedRow


@click.command()
@dsn_option
@click.option(
    "--spool-dir",
    type=click.Path(path_type=Path),
    help="The spool. Default: OTEL_AUDIT_SPOOL_DIR.",
)
@click.option("--service", help="Only records of this service that a receiver refused.")
@click.option("--show", metavar="ID", help="Print the refused texts of this record id.")
@click.option(
    "--retry", is_flag=True,
    help="Try to store the records again; those that a receiver refused go back to the spool.",
)  # fmt: skip
@click.option("--release", metavar="ID", help="Close the entry with this id (or hash).")
@click.option("--because", metavar="TEXT", help="Reason of the release; it is recorded.")
@click.option("--json", "as_json", is_flag=True, help="List as JSON.")
def quarantine(  # noqa: PLR0913, PLR0917 - an option each
    dsn: str | None,
    spool_dir: Path | None,
    service: str | None,
    show: str | None,
    release: str | None,
    because: str | None,
    *,
    retry: bool,
    as_json: bool,
) -> None:
    """List refused records; store them again, or release them.

    Records that an OTLP receiver refused are beside the spool. Records that PostgreSQL refused are
    in audit.quarantine, where nothing is deleted: --dsn names the store as its retention role or
    owner, and --retry writes as OTEL_AUDIT_DSN.
    """
    config = AuditConfig() if spool_dir is None else AuditConfig(spool_dir=spool_dir)
    keeper = config.asyncpg_dsn if dsn is None else plain_dsn(dsn)
    found = list(_quarantines(config, service, asks_store=keeper is not None))
    stored = (
        [] if keeper is None else _stored_rows(keeper, is_asked=dsn is not None or bool(release))
    )
    if release is not None:
        _release(keeper, stored or [], release, because)
    elif retry:
        for name, place in found:
            echo(f"{name}: {_put_back(config, name, place)} records put back into the spool")
        if keeper is not None and stored is None:
            raise StoreError("audit.quarantine: this role may not read it, so nothing was retried")
        if keeper is not None and stored:
            _retry(config.asyncpg_dsn or keeper, keeper, stored)
    elif show is not None:
        kept = [item for _, place in found for item in place.read()]
        _show([item for item in kept if item.refused.record_id == show],
              [row for row in stored or [] if show in _names(row)], show)  # fmt: skip
    elif as_json:
        _list_as_json(config, found, stored)
    else:
        _list(config, found, keeper, stored)


def _list(
    config: AuditConfig,
    found: list[tuple[str, LocalQuarantine]],
    keeper: str | None,
    stored: list[QuarantinedRow] | None,
) -> None:
    kept = [item for _, place in found for item in place.read()]
    for item in kept:
        when = datetime.fromtimestamp(item.kept_at, UTC)
        identity = item.refused.record_id or "no id"
        echo(f"{when:%Y-%m-%d %H:%M:%S} UTC  {identity}  {item.refused.reason}")
    echo(f"{len(kept)} refused records in {config.spool_path}")
    damaged = [file for name, _ in found for file in damaged_files(config.spool_path, name)]
    for file in damaged:
        echo(f"{file}: damaged spool file; its records are lost")
    if keeper is None or stored is None:
        return
    for row in stored:
        when = row.recorded_at.astimezone(UTC)
        echo(f"{when:%Y-%m-%d %H:%M:%S} UTC  {row.record_id or row.content_hash.hex()}  "
             f"{row.reason}")  # fmt: skip
    echo(f"{len(stored)} refused records in audit.quarantine")


def _list_as_json(
    config: AuditConfig,
    found: list[tuple[str, LocalQuarantine]],
    stored: list[QuarantinedRow] | None,
) -> None:
    damaged = [file for name, _ in found for file in damaged_files(config.spool_path, name)]
    echo_json({
        "spool": [
            {"kept_at": datetime.fromtimestamp(one.kept_at, UTC), "service": name,
             "record_id": one.refused.record_id, "reason": one.refused.reason}
            for name, place in found for one in place.read()
        ],
        "damaged": [str(file) for file in damaged],
        "store": None if stored is None else [
            {"recorded_at": row.recorded_at, "record_id": row.record_id,
             "content_hash": row.content_hash.hex(), "reason": row.reason}
            for row in stored
        ],
    })  # fmt: skip


def _stored_rows(keeper: str, *, is_asked: bool) -> list[QuarantinedRow] | None:
    """The rows of audit.quarantine; None if they cannot be read, with a warning printed."""
    from otel_audit_postgres.quarantine_review import quarantined

    try:
        return run_coroutine(quarantined(keeper))
    except StoreError as error:
        if is_asked:
            raise
        # an application's own login may not look; what lies on this machine is shown all the same
        echo(f"audit.quarantine: {error}", err=True)
        return None


def _names(row: QuarantinedRow) -> tuple[str, str]:
    return row.record_id, row.content_hash.hex()


def _release(
    keeper: str | None, stored: list[QuarantinedRow], name: str, because: str | None
) -> None:
    from otel_audit_postgres.quarantine_review import release

    if keeper is None:
        raise ConfigurationError("no audit store: set OTEL_AUDIT_DSN, or give --dsn")
    if not because:
        raise ConfigurationError("quarantine: --release needs --because; the reason is recorded")
    rows = [row for row in stored if name in _names(row)]
    if not rows:
        raise ConfigurationError(f"audit.quarantine: no record with the id {name}")
    run_coroutine(release(keeper, rows, "dismissed", because))
    echo(f"{len(rows)} refused records released")


def _retry(writer: str, keeper: str, stored: list[QuarantinedRow]) -> None:
    from otel_audit_postgres.quarantine_review import release, retry

    done = run_coroutine(retry(writer, stored))
    if done:
        run_coroutine(release(keeper, done, "stored", "otel-audit quarantine --retry"))
    echo(f"audit.quarantine: {len(done)} records stored, {len(stored) - len(done)} refused again")


def _quarantines(
    config: AuditConfig, service: str | None, *, asks_store: bool
) -> Iterator[tuple[str, LocalQuarantine]]:
    from otel_audit.delivery.factory import local_quarantine

    if asks_store and not config.spool_path.is_dir():
        return
    for name in services_with_quarantine(config.spool_path):
        if service in (None, name):
            yield name, local_quarantine(config, name)


def _put_back(config: AuditConfig, service: str, place: LocalQuarantine) -> int:
    from otel_audit.delivery.factory import spool_encryption
    from otel_audit.delivery.fingerprint import destination_digest
    from otel_audit.delivery.spool import FrameKind, open_spool

    spool = open_spool(
        config.spool_path,
        service=service,
        max_bytes=config.spool_max_bytes,
        segment_bytes=config.spool_segment_bytes,
        encryption=spool_encryption(config),
        destination=destination_digest(config),
    )

    def take(record_id: str, text: bytes) -> None:
        spool.append(FrameKind.CLOSED, record_id, text)
        spool.sync()

    try:
        return place.give_back(take)
    finally:
        spool.close()


def _show(items: list[QuarantinedRecord], stored: list[QuarantinedRow], record_id: str) -> None:
    if not items and not stored:
        raise ConfigurationError(f"no refused record has the id {record_id}")
    for item in items:
        echo_document(item.refused.received.decode("utf-8", "replace"))
    for row in stored:
        echo_document(row.received)
