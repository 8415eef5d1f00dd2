"""Settings of a spool, given when it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from otel_audit.delivery.spool.encryption import Encryption
from otel_audit.errors import ConfigurationError

Fsync = Literal["never", "interval", "always"]

MIB: Final = 1024 * 1024
MAX_BYTES: Final = 1024 * MIB
"""The default bound: up to 400,000 records of 2.5 KB may wait while the store is away."""
SEGMENT_BYTES: Final = 8 * MIB
"""The default size of a file: as much stays on disk until the last record in it is stored."""
SMALLEST_SEGMENT: Final = 4096
"""A page: a file takes no less on the disk."""
LARGEST_SEGMENT: Final = 1024 * MIB
"""A file goes only when all that is in it is delivered: larger ones would keep the disk full."""
SEGMENTS_AT_LEAST: Final = 4
"""One is being written, and one's worth is kept for actions under way: fewer leave hardly any
room for what waits."""
_PREFIX: Final = "OTEL_AUDIT_SPOOL_"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """Settings of a spool.

    Attributes:
        directory: Holds the spools of all services.
        service: The service's name.
        fsync: ``never``: the kernel writes when it likes. ``interval``, ``always``: the caller
            `Spool.sync` decides when; the two are the same to the spool.
        max_bytes: Bound on the bytes of all spools of this service in the directory. Its last
            segment's worth is kept for actions that are already under way.
        segment_bytes: Size at which a segment is full.
        max_age: Seconds; no action begins while an older one is not acknowledged. None: no bound.
        encryption: Encrypts payloads at rest, if given.
        destination: Digest of where the records belong, so that no process adopts them that
            delivers elsewhere; empty: not said, and any process of the service does.
        apart: Whether spools of other destinations are other applications', as where the service
            has no name; they do not count to ``max_bytes`` then.

    Raises:
        ConfigurationError: The bounds contradict each other; the message names the setting.
    """

    directory: Path
    service: str
    fsync: Fsync = "interval"
    max_bytes: int = MAX_BYTES
    segment_bytes: int = SEGMENT_BYTES
    max_age: float | None = None
    encryption: Encryption | None = None
    destination: str = ""
    apart: bool = False

    def __post_init__(self) -> None:
        if self.fsync not in ("never", "interval", "always"):
            raise ConfigurationError(f"{_PREFIX}FSYNC: use never, interval or always")
        if not SMALLEST_SEGMENT <= self.segment_bytes <= LARGEST_SEGMENT:
            raise ConfigurationError(
                f"{_PREFIX}SEGMENT_BYTES: {self.segment_bytes} is not between "
                f"{SMALLEST_SEGMENT} and {LARGEST_SEGMENT}"
            )
        if self.max_bytes < SEGMENTS_AT_LEAST * self.segment_bytes:
            raise ConfigurationError(
                f"{_PREFIX}MAX_BYTES: {self.max_bytes} is less than {SEGMENTS_AT_LEAST} segments of"
                f" {self.segment_bytes} bytes; raise it, or lower {_PREFIX}SEGMENT_BYTES"
            )
        if self.max_age is not None and self.max_age <= 0:
            raise ConfigurationError(
                f"{_PREFIX}MAX_AGE: {self.max_age} s is not an age; unset it for no bound"
            )
