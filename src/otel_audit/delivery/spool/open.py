"""Opening a spool for this process."""

from __future__ import annotations

from pathlib import Path

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool.directory import DIR_SETTING, create, prepare_service_directory
from otel_audit.delivery.spool.encryption import Encryption
from otel_audit.delivery.spool.errors import SpoolWriteError
from otel_audit.delivery.spool.filesystem import file_system
from otel_audit.delivery.spool.leases import RENEWED_WITHIN
from otel_audit.delivery.spool.locks import release
from otel_audit.delivery.spool.log import Spool
from otel_audit.delivery.spool.manifest import label_of_this_process
from otel_audit.delivery.spool.settings import MAX_BYTES, SEGMENT_BYTES, Fsync, SpoolSettings
from otel_audit.errors import ConfigurationError


def open_spool(  # noqa: PLR0913 - settings, each by its name
    directory: Path,
    *,
    service: str,
    fsync: Fsync = "interval",
    max_bytes: int = MAX_BYTES,
    segment_bytes: int = SEGMENT_BYTES,
    max_age: float | None = None,
    encryption: Encryption | None = None,
    destination: str = "",
    apart: bool = False,
    producer_id: str | None = None,
) -> Spool:
    """Open a new spool for this process.

    Args:
        directory: Holds the spools of all services; made if it does not exist.
        service: The service's name; spools of the same service adopt each other.
        fsync: See `SpoolSettings`, as for all that follow.
        max_bytes: Bound on the bytes of all spools of this service.
        segment_bytes: Size at which a segment is full.
        max_age: Seconds that the oldest record may wait; None: no bound.
        encryption: Encrypts payloads at rest, if given.
        destination: Digest of where the records belong, if it is known.
        apart: Whether spools of other destinations are other applications'.
        producer_id: UUID of this process's stream, if it has one already; a fresh one is made
            otherwise.

    Returns:
        An empty spool with its lock held.

    Raises:
        ConfigurationError: A bound is impossible, or the directory cannot hold a spool; the
            message names the setting and says the remedy.
    """
    settings = SpoolSettings(
        directory=Path(directory),
        service=service,
        fsync=fsync,
        max_bytes=max_bytes,
        segment_bytes=segment_bytes,
        max_age=max_age,
        encryption=encryption,
        destination=destination,
        apart=apart,
    )
    return _open(settings, producer_id or uuid7())


def reopen(spool: Spool) -> Spool:
    """Open a new spool with the settings of another one: what a forked child needs.

    Raises:
        ConfigurationError: As for `open_spool`.
    """
    return _open(spool.settings, uuid7())


def _open(settings: SpoolSettings, producer_id: str) -> Spool:
    home = prepare_service_directory(settings.directory, settings.service)
    key_id = "" if settings.encryption is None else settings.encryption.key_id
    lease = RENEWED_WITHIN if file_system(home.path).shared else 0.0
    label = label_of_this_process(
        settings.service, producer_id, key_id, settings.destination, lease
    )
    place, lock = create(home, label)
    try:
        return Spool(settings, home, place, lock, leased=bool(lease))
    except SpoolWriteError as error:
        release(lock)
        raise ConfigurationError(f"{DIR_SETTING}: {place.path}: {error}") from error
