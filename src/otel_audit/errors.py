"""The exceptions; each message says what, where, and what to do."""

from __future__ import annotations


class OtelAuditError(Exception):
    """Base of every error this package raises on purpose.

    Example::

        try:
            otel_audit.AuditConfig(batch_size=0)
        except otel_audit.OtelAuditError as error:
            print(error)  # what is wrong, where, and what to do
    """


class ConfigurationError(OtelAuditError):
    """A setting is missing, unknown, or wrong; the message names it.

    Example::

        try:
            otel_audit.AuditConfig(exporter="nowhere")
        except otel_audit.ConfigurationError as error:
            assert "OTEL_AUDIT_EXPORTER" in str(error)
    """


class InvalidInputError(ConfigurationError):
    """A query or an id that somebody gave cannot be read; the message says where.

    On the command line the exit status is then 2, as for any wrong use.

    Example::

        from otel_audit.errors import InvalidInputError
        from otel_audit_postgres.query.grammar import parse

        try:
            parse("acter:ada")
        except InvalidInputError as error:
            assert "did you mean actor:?" in str(error)
    """


class InstrumentationError(OtelAuditError):
    """The application cannot be instrumented as requested.

    Example::

        try:
            otel_audit.instrument("no application", config=otel_audit.AuditConfig(exporter="none"))
        except otel_audit.InstrumentationError as error:
            print(error)
    """


class MissingExtraError(OtelAuditError, ImportError):
    """An optional dependency is needed and not installed.

    Example::

        try:
            otel_audit.instrument(config=otel_audit.AuditConfig(exporter="none"))
        except otel_audit.MissingExtraError as error:
            print(error)  # names the pip command
    """

    def __init__(self, needed_for: str, extra: str) -> None:
        """Make the message: what needs the extra, and how to install it.

        Args:
            needed_for: The feature that needs it, in a few words.
            extra: The extra of this distribution that brings it.
        """
        super().__init__(
            f"{needed_for} needs a package that is not installed: pip install 'otel-audit[{extra}]'"
        )
        self.extra = extra


class InvalidAuditSpanError(OtelAuditError, ValueError):
    """A span is marked as an audit span and lacks what every record must say.

    Example::

        from otel_audit.attributes import record_from_attributes

        try:
            record_from_attributes(
                {"audit.flagged": True}, name="order.paid", start_time=1, end_time=2, trace=None,
                own_ids=("1" * 32, "2" * 16), resource={},
            )
        except otel_audit.InvalidAuditSpanError as error:
            assert "audit.actor.id" in str(error)
    """


class StoreError(OtelAuditError):
    """The audit store is reachable, but not in the state it must be in.

    Example::

        async def is_stored(record_id: str) -> bool:
            try:
                await otel_audit.wait_for_receipt(record_id, timeout=5)
            except otel_audit.StoreError:
                return False
            return True
    """


class StoreUnavailableError(StoreError):
    """The audit store cannot be reached now; trying again may help.

    Attributes:
        retry_after: Seconds after which to try again; None if the receiver does not say.

    Example::

        try:
            with otel_audit.audit("tenant.provisioned"):
                ...
        except otel_audit.StoreUnavailableError:
            ...  # required or strict, and it could not be recorded: it was not begun
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Make the error.

        Args:
            message: What happened.
            retry_after: Seconds after which to try again, if the store said so.
        """
        super().__init__(message)
        self.retry_after = retry_after
