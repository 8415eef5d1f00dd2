"""The durable spool: what is in it is delivered, whatever becomes of the process."""

from otel_audit.pipeline.spool.adoption import (
    AbandonedSpool,
    DamagedBytes,
    Recovered,
    RecoveryReport,
    adopt,
)
from otel_audit.pipeline.spool.damaged import damaged_files
from otel_audit.pipeline.spool.errors import (
    SealError,
    SpoolClosedError,
    SpoolError,
    SpoolForkedError,
    SpoolFullError,
    SpoolReadError,
    SpoolWriteError,
)
from otel_audit.pipeline.spool.frames import Kind
from otel_audit.pipeline.spool.opening import open_spool, reopen
from otel_audit.pipeline.spool.owned import foreign_found
from otel_audit.pipeline.spool.sealing import AesGcmSealing, Cipher, Sealing
from otel_audit.pipeline.spool.settings import Fsync, SpoolSettings
from otel_audit.pipeline.spool.spool import START, Position, Spool, SpooledRecord
from otel_audit.pipeline.spool.status import SpoolStatus, inspect

__all__ = [
    "START",
    "AbandonedSpool",
    "AesGcmSealing",
    "Cipher",
    "DamagedBytes",
    "Fsync",
    "Kind",
    "Position",
    "Recovered",
    "RecoveryReport",
    "SealError",
    "Sealing",
    "Spool",
    "SpoolClosedError",
    "SpoolError",
    "SpoolForkedError",
    "SpoolFullError",
    "SpoolReadError",
    "SpoolSettings",
    "SpoolStatus",
    "SpoolWriteError",
    "SpooledRecord",
    "adopt",
    "damaged_files",
    "foreign_found",
    "inspect",
    "open_spool",
    "reopen",
]
