"""Delivery as the settings describe it, to whatever sink."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.config import AuditConfig
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.fingerprint import destination_digest
from otel_audit.delivery.local_quarantine import LocalQuarantine
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer import application_resource
from otel_audit.delivery.sink import Refused, Sink
from otel_audit.delivery.spool import AesGcmEncryption, Encryption, adopt, open_spool
from otel_audit.errors import ConfigurationError
from otel_audit.setting_values import PREFIX

_UNNAMED: Final = "unknown_service"
_logger = logging.getLogger(__name__)


def make_delivery(
    config: AuditConfig, make_sink: Callable[[], Sink], counters: Counters, *, spooled: bool = True
) -> Delivery:
    """Build delivery, and open its spool; nothing is connected yet.

    Args:
        config: Sizes, times and the spool.
        make_sink: Makes the sink, in the writer's thread.
        counters: Where everything is counted.
        spooled: Whether there is a spool at all.

    Raises:
        ConfigurationError: The spool cannot be kept; the message says the remedy.
        MissingExtraError: The spool is to be encrypted, and the package for it is missing.
    """
    options = DeliveryOptions(
        queue_size=config.queue_size,
        batch_size=config.batch_size,
        batch_interval=config.batch_interval,
    )
    if not spooled:
        return Delivery(make_sink, counters, options)
    service = service_of_spool()
    encryption = spool_encryption(config)
    return Delivery(
        make_sink,
        counters,
        options,
        spool=functools.partial(
            open_spool,
            config.spool_path,
            service=service,
            fsync=config.spool_fsync,
            max_bytes=config.spool_max_bytes,
            segment_bytes=config.spool_segment_bytes,
            max_age=config.spool_max_age,
            encryption=encryption,
            destination=destination_digest(config),
            apart=is_unnamed(service),
        ),
        adopt=functools.partial(
            adopt,
            config.spool_path,
            service,
            encryption=encryption,
            destination=own_destination(config),
        ),
    )


def own_destination(config: AuditConfig) -> str | None:
    """Say which of the spools that name this process's service are its own.

    Returns:
        The digest of their destination; None, which is any, for a service that has a name: where
        its store is now, there belongs what it left. All that have none are one in a spool's eyes.
    """
    return destination_digest(config) if is_unnamed(service_of_spool()) else None


def is_unnamed(service: str) -> bool:
    """Return whether a name is OpenTelemetry's for a nameless service (`service.name`)."""
    return service.startswith(_UNNAMED)


def local_quarantine(config: AuditConfig, service: str | None = None) -> LocalQuarantine:
    """Name the place for what a store refuses that has no quarantine of its own.

    Args:
        config: Where the spool is.
        service: Whose; by default this process's service.

    Raises:
        ConfigurationError: The key of the spool is none.
    """
    return LocalQuarantine(
        config.spool_path,
        service or service_of_spool(),
        max_bytes=config.spool_max_bytes,
        encryption=spool_encryption(config),
        on_kept=_log_kept,
    )


def service_of_spool() -> str:
    """Name the service whose spools are this process's to adopt."""
    return str(application_resource().attributes.get("service.name", _UNNAMED))


def spool_encryption(config: AuditConfig) -> Encryption | None:
    """Make what encrypts the spool, if it is to be encrypted.

    Raises:
        ConfigurationError: The key is not a key.
        MissingExtraError: The package for it is missing.
    """
    if config.spool_key is None:
        return None
    try:
        return AesGcmEncryption(bytes.fromhex(config.spool_key.get_secret_value().strip()))
    except ValueError:
        raise ConfigurationError(
            f"{PREFIX}SPOOL_KEY: 32 bytes in hex are needed, such as `openssl rand -hex 32` makes"
        ) from None


def _log_kept(place: Path, refused: Sequence[Refused]) -> None:
    log_limited(
        _logger, "quarantine",
        "%d audit records were refused and are kept in %s; see them: otel-audit quarantine",
        len(refused), place,
    )  # fmt: skip
