"""The error of a record: the exception's type, and a message without values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.record import ErrorInfo
from otel_audit.redaction.truncate import cut_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import Budget

_LONGEST = 1_000
"""Characters of a message, at most."""

_MOST_LEAVES = 8
"""Exceptions of a group that its message lists."""

_MOST_GROUPS = 100
"""Steps through the groups in a group, which may be deep; the rest is not listed."""


def describe_error(
    error: BaseException, redactor: Redactor, budget: Budget | None = None
) -> ErrorInfo:
    """Describe an exception.

    Args:
        error: Any exception.
        redactor: Takes secrets out of the message.
        budget: What describing the action may cost; noted there is what was cut.

    Returns:
        The qualified type name (``error.type`` of the semantic conventions) and the redacted
        message. Of a database error only the driver's first line is kept, of a validation error
        only the count: the rest quotes values. Of a group the message lists what is in it, and from
        what that came.
    """
    name = _type(error)
    try:
        whole = _message(error)
        if budget is not None and len(whole) > _LONGEST:
            budget.note_cut("error.message")
        # cut first: a message may quote what a client has sent, however long
        message = redactor.text(cut_text(whole, _LONGEST), None if budget is None else budget.error)
    except Exception:  # noqa: BLE001 - an exception whose text cannot be had is known by its type
        message = ""
    return ErrorInfo(type=name, message=message[:_LONGEST] or None)


def _type(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _message(error: BaseException) -> str:
    if not isinstance(error, BaseExceptionGroup):
        return _own_message(error)
    parts: list[str] = []
    room = 2 * _LONGEST
    for one in _leaves(error):
        parts.append(_with_cause(one))
        room -= len(parts[-1])
        if room < 0 or len(parts) == _MOST_LEAVES:
            break
    return f"{error.args[0] if error.args else ''}: {'; '.join(parts)}"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Give what is in a group and in the groups in it, without recursion; it may be deep."""
    left: list[BaseException] = [group]
    for _ in range(_MOST_GROUPS):
        if not left:
            return
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left.extend(reversed(one.exceptions[:_MOST_LEAVES]))
        else:
            yield one


def _with_cause(error: BaseException) -> str:
    text = f"{_type(error)}: {_own_message(error)[:_LONGEST]}"
    cause = error.__cause__
    if cause is None:
        return text
    return f"{text} (from {_type(cause)}: {_own_message(cause)[:_LONGEST]})"


def _own_message(error: BaseException) -> str:
    if hasattr(error, "statement") and hasattr(error, "params"):
        original = getattr(error, "orig", None)
        return str(original).partition("\n")[0] if original is not None else ""
    count = getattr(error, "error_count", None)
    if callable(count):
        return f"{count()} validation errors"
    errors = getattr(error, "errors", None)
    if callable(errors):
        return f"{len(errors())} validation errors"
    return str(error)
