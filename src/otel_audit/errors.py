"""What can go wrong, each with a message that says what, where, and what to do."""

from __future__ import annotations


class OtelAuditError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(OtelAuditError):
    """A setting is missing, unknown, or wrong; the message names it."""


class InstrumentationError(OtelAuditError):
    """The application cannot be instrumented as asked."""


class MissingExtraError(OtelAuditError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, needed_for: str, extra: str) -> None:
        """Say what needs it and how to install it.

        Args:
            needed_for: What the user asked for, in a few words.
            extra: The extra of this distribution that brings it.
        """
        super().__init__(
            f"{needed_for} needs a package that is not installed: pip install 'otel-audit[{extra}]'"
        )
        self.extra = extra


class InvalidAuditSpanError(OtelAuditError, ValueError):
    """A span is marked as an audit span and lacks what every record must say."""


class StoreError(OtelAuditError):
    """The audit store is reachable, but not in the state it must be in."""


class StoreUnavailableError(StoreError):
    """The audit store cannot be reached now; trying again may help.

    Attributes:
        retry_after: Seconds that it asks to be left alone; None where it does not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Say what happened, and when to come again if that is known."""
        super().__init__(message)
        self.retry_after = retry_after
