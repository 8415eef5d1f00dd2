"""A producer's own records: that it has begun, that it lives, that it has ended."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from pydantic import SecretStr

from otel_audit.action.compose import process_actor, process_record
from otel_audit.config import AuditConfig
from otel_audit.record import AuditRecord, Target, to_json

STARTED: Final = "audit.stream.started"
ALIVE: Final = "audit.stream.alive"
ENDED: Final = "audit.stream.ended"


@dataclass(frozen=True, slots=True)
class ProducerRecordOptions:
    """Options of a producer's own records.

    Attributes:
        configuration: SHA-256 of the configuration, from `configuration_hash`.
        heartbeat: Seconds of idleness after which a record says that the process lives; 0: none.
    """

    configuration: str
    heartbeat: float = 0.0


def configuration_hash(config: AuditConfig) -> str:
    """Digest the settings, so that a change of them shows. Of a secret only whether it is set.

    Returns:
        SHA-256 in hex.
    """
    named = {name: _as_text(getattr(config, name)) for name in sorted(AuditConfig.model_fields)}
    return hashlib.sha256(to_json(named)).hexdigest()


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "set"
    if callable(value):
        return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    return repr(value)


def producer_record(
    event: str, producer_id: str, resource: Mapping[str, Any], configuration: str
) -> AuditRecord:
    """Make one of the producer's own records.

    Args:
        event: `STARTED`, `ALIVE` or `ENDED`.
        producer_id: The process's id as a producer.
        resource: Its resource attributes; ``service.name`` stands in for the actor.
        configuration: From `configuration_hash`.

    Returns:
        The record, complete but for its number.
    """
    service = str(resource.get("service.name", "process"))
    facts: dict[str, Any] = {"pid": os.getpid()}
    if event == STARTED:
        facts |= {
            "service": service,
            "service_version": str(resource.get("service.version", "")),
            "otel_audit_version": VERSION,
            "host": socket.gethostname(),
            "configuration_sha256": configuration,
        }
    return process_record(
        event,
        actor=process_actor(service),
        target=Target(type="producer", id=producer_id),
        metadata=facts,
    )


def _own_version() -> str:
    try:
        return version("otel-audit")
    except PackageNotFoundError:
        return ""


VERSION: Final = _own_version()
"""Looked up when this is imported: an event loop must not wait for a disk."""
