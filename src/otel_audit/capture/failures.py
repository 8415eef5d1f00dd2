"""What an exception may say of itself in a record: its type, and a message without values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.record import ErrorInfo

if TYPE_CHECKING:
    from otel_audit.redaction import Redactor

_LONGEST = 1_000
"""Characters of a message, at the most."""


def describe_error(error: BaseException, redactor: Redactor) -> ErrorInfo:
    """Describe an exception.

    Args:
        error: Any exception.
        redactor: Takes secrets out of the message.

    Returns:
        The qualified type name (``error.type`` of the semantic conventions) and the redacted
        message. Of a database error only the driver's first line is kept, of a validation error
        only the count: the rest quotes values.
    """
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    try:
        message = redactor.text(_message(error))[:_LONGEST]
    except Exception:  # noqa: BLE001 - an exception whose text cannot be had is known by its type
        message = ""
    return ErrorInfo(type=name, message=message or None)


def _message(error: BaseException) -> str:
    if hasattr(error, "statement") and hasattr(error, "params"):
        original = getattr(error, "orig", None)
        return str(original).partition("\n")[0] if original is not None else ""
    errors = getattr(error, "errors", None)
    if callable(errors):
        return f"{len(errors())} validation errors"
    return str(error)
