"""Errors of an open spool. No message shows a payload."""

from __future__ import annotations

from otel_audit.errors import OtelAuditError


class SpoolError(OtelAuditError):
    """Base of what a spool raises."""


class SpoolFullError(SpoolError):
    """A bound (bytes or age) is reached; nothing was written."""


class SpoolWriteError(SpoolError):
    """The file system did not take the data; nothing of the frame is counted as appended.

    Attributes:
        errno: The system's error number, for example ``errno.ENOSPC``.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        """Make the error.

        Args:
            message: What failed, and where.
            errno: The system's error number, if it gave one.
        """
        super().__init__(message)
        self.errno = errno


class SpoolReadError(SpoolError):
    """The file system does not give the data back now; trying again may help."""


class SpoolClosedError(SpoolError):
    """The spool was closed before."""


class SpoolForkedError(SpoolError):
    """The spool belongs to the parent process; the child must open its own (`reopen`)."""


class EncryptionError(SpoolError):
    """An encrypted payload cannot be decrypted: another key, or it was altered."""
