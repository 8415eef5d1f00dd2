"""The durable spool: its records are delivered also if the process dies.

Private: ``docs/api.md`` lists the public modules.
"""

from otel_audit.delivery.spool.damaged import damaged_files
from otel_audit.delivery.spool.encryption import AesGcmEncryption, Encryption
from otel_audit.delivery.spool.errors import (
    EncryptionError,
    SpoolClosedError,
    SpoolError,
    SpoolForkedError,
    SpoolFullError,
    SpoolReadError,
    SpoolWriteError,
)
from otel_audit.delivery.spool.format import FrameKind
from otel_audit.delivery.spool.log import START, Position, Spool, SpooledRecord
from otel_audit.delivery.spool.open import open_spool, reopen
from otel_audit.delivery.spool.ownership import foreign_found
from otel_audit.delivery.spool.recover import (
    AbandonedSpool,
    DamagedBytes,
    Recovered,
    RecoveryReport,
    adopt,
)
from otel_audit.delivery.spool.settings import Fsync, SpoolSettings
from otel_audit.delivery.spool.status import SpoolStatus, inspect

__all__ = [
    "START",
    "AbandonedSpool",
    "AesGcmEncryption",
    "DamagedBytes",
    "Encryption",
    "EncryptionError",
    "FrameKind",
    "Fsync",
    "Position",
    "Recovered",
    "RecoveryReport",
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
